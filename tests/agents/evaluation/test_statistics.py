"""Means and intervals of paired results, against worked examples."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evaluation import statistics
from agents.evaluation.statistics import geometric_mean, improvement, interquartile_mean


def test_the_middle_half_of_eight_ratios_is_its_four() -> None:
    ratios = np.array([[0.1, 0.5, 0.6, 0.8], [0.9, 1.0, 5.0, 9.0]])
    found = interquartile_mean(np.log(ratios), 0)
    # Sorted: 0.1 0.5 | 0.6 0.8 0.9 1.0 | 5 9.
    assert found.value == pytest.approx((0.6 + 0.8 + 0.9 + 1.0) / 4)
    assert found.low < found.value < found.high


def test_a_ratio_on_the_edge_counts_in_part() -> None:
    # Of five, the middle two and a half: a quarter of the second and of the fourth is outside.
    assert interquartile_mean(np.log([[1.0, 2.0, 3.0, 5.0, 100.0]]), 0).value == pytest.approx(
        (0.75 * 2 + 3 + 0.75 * 5) / 2.5
    )


def test_as_fast_counts_half_and_rounding_is_as_fast() -> None:
    table = np.array([[-0.1, 0.0, 0.2, -1e-12], [-0.3, 0.1, 0.1, -0.1]])
    assert improvement(table, 0).value == pytest.approx((1 + 0.5 + 0 + 0.5 + 1 + 0 + 0 + 1) / 8)
    assert improvement(np.full((1, 4), -0.1), 0) == (1.0, 1.0, 1.0)


def test_intervals_hold_the_mean_of_the_distribution_about_as_often_as_they_say() -> None:
    rng, inside = np.random.default_rng(0), 0
    for trial in range(100):
        # The interquartile mean of a symmetric distribution of ratios is its centre.
        found = interquartile_mean(np.log(1 + rng.normal(-0.1, 0.05, (1, 40))), trial, resamples=500)
        inside += found.low <= 0.9 <= found.high
    assert 85 <= inside <= 100


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = np.random.default_rng(1).normal(0, 0.1, (3, 20))
    whole = (geometric_mean(table, 0, 1000), interquartile_mean(table, 0, 1000))
    monkeypatch.setattr(statistics, "_BLOCK", 700)
    assert (geometric_mean(table, 0, 1000), interquartile_mean(table, 0, 1000)) == whole
