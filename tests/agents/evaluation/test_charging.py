"""Charged decisions: who is counted, and what a row becomes."""

import numpy as np
import pytest

from agents.evaluation.charging import busiest_decisions, charge, charged_rows
from agents.evaluation.recording import Player
from agents.evaluation.table import evaluate
from agents.opponents.contender import read_contender
from dysharp_env.schedules import Exposure, load_schedule
from dysharp_env.simulator.layout import GEMM
from dysharp_env.workload.suite import load_suite


def test_a_split_for_all_gpus_is_paid_once_and_the_others_by_gpu():
    item = load_suite("smoke").draw()[0]
    exposure = Exposure(kinds=("split",), splits=((8, 11), (4, 4)), split_moments=2)
    player = Player(load_schedule("dysharp"), exposure, lambda decision, _: 0)
    gpus = [decision.gpu for decision, _ in player.play(item, 0)]
    assert busiest_decisions(player, item, 0) == 1 + np.bincount(gpus[1:]).max()
    assert busiest_decisions(player, item, 0) < len(gpus)


def test_only_kinds_that_are_named_are_counted():
    item = load_suite("smoke").draw()[0]
    exposure = Exposure(kinds=("split", "gemm"), splits=((8, 11), (4, 4)), split_moments=2)
    player = Player(load_schedule("dysharp"), exposure, lambda decision, _: 0)
    asked = [(decision.kind, decision.gpu) for decision, _ in player.play(item, 0)]
    rows = np.bincount([gpu for kind, gpu in asked if kind == GEMM]).max()
    assert busiest_decisions(player, item, 0, ["gemm"]) == rows
    assert rows < busiest_decisions(player, item, 0) <= rows + busiest_decisions(player, item, 0, ["split"])


def test_rows_are_charged_and_schedules_are_not():
    suite, names = load_suite("smoke"), ("first", "dysharp")
    first, reference = (read_contender(name) for name in names)
    rows = charge(evaluate(suite, [first], reference), [first, reference], suite.draw(), 0.5)
    for row in rows:
        assert row.charged_us == row.makespan_us + 0.5 * row.busiest_decisions
        assert (row.busiest_decisions == 0) == (row.policy == "dysharp")
        assert row.policy == "dysharp" or row.decisions / 8 <= row.busiest_decisions <= row.decisions
    assert [row.makespan_us for row in charged_rows(rows)] == pytest.approx([row.charged_us for row in rows])
