"""What balance is worth, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dysharp_env.workload.placement import Placement, contiguous_placement
from dysharp_env.workload.skew import Skew, contiguous_skews, skew_of

LOADS = np.array([6.0, 2.0, 1.0, 3.0])


def test_the_busiest_gpu_over_the_mean() -> None:
    assert skew_of(LOADS, contiguous_placement(4, 2)) == pytest.approx(8 / 6)
    assert skew_of(LOADS, contiguous_placement(4, 3)) == pytest.approx(8 / 4)  # experts 0 and 1, 2, 3
    assert skew_of(LOADS, contiguous_placement(4, 8)) == pytest.approx(6 / 1.5)
    assert skew_of(0 * LOADS, contiguous_placement(4, 2)) == 1.0


def test_replicas_share_the_loads_of_their_expert() -> None:
    # Expert 0 is on both GPUs: 3 + 2 and 3 + 1 + 3.
    placement = Placement(2, np.array([0, 0, 1, 1, 1]), np.array([0, 1, 2, 3, 0]))
    assert skew_of(LOADS, placement) == pytest.approx(7 / 6)


def test_quartiles_and_the_worst_of_layers() -> None:
    loads = {3: LOADS, 5: np.array([1.0, 1.0, 1.0, 1.0]), 8: np.array([2.0, 1.0, 1.0, 0.0])}
    (skew,) = contiguous_skews(loads, [2])
    assert skew.of_layer == {3: pytest.approx(8 / 6), 5: 1.0, 8: 1.5}
    assert (skew.median, skew.worst, skew.worst_layer) == (pytest.approx(8 / 6), 1.5, 8)
    assert (skew.lower_quartile, skew.upper_quartile) == (pytest.approx(7 / 6), pytest.approx(17 / 12))
    other = Skew.of(loads, {layer: Placement(2, np.array([0, 1, 1, 0])) for layer in loads})
    assert other.of_layer[3] == pytest.approx(9 / 6)
