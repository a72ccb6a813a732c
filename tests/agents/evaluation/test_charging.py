"""Charged decisions: who is counted, and what a row becomes."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evaluation.charging import busiest_decisions, charge, charged_rows
from agents.evaluation.table import evaluate
from agents.opponents.players import Chooser
from agents.opponents.read import read_contender
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Problem
from dysharp_env.simulator.state.observation import GEMM
from dysharp_env.workload.suite import load_suite


def test_a_split_for_all_gpus_is_paid_once_and_the_others_by_gpu() -> None:
    (item,) = Problem.of_suite(load_suite("smoke").draw()[:1])
    player = Chooser(EnvSpec(exposed=("split",), splits=((8, 11), (4, 4)), split_moments=2))
    gpus = [decision.gpu for decision, _ in player.replay(item, 0)]
    assert busiest_decisions(player, item, 0) == 1 + np.bincount(gpus[1:]).max()
    assert busiest_decisions(player, item, 0) < len(gpus)


def test_only_kinds_that_are_named_are_counted() -> None:
    (item,) = Problem.of_suite(load_suite("smoke").draw()[:1])
    env = EnvSpec(exposed=("split", "gemm"), hold=False, partial_tiles=False, splits=((8, 11), (4, 4)), split_moments=2)
    player = Chooser(env)
    asked = [(decision.kind, decision.gpu) for decision, _ in player.replay(item, 0)]
    rows = np.bincount([gpu for kind, gpu in asked if kind == GEMM]).max()
    assert busiest_decisions(player, item, 0, ["gemm"]) == rows
    assert rows < busiest_decisions(player, item, 0) <= rows + busiest_decisions(player, item, 0, ["split"])


def test_rows_are_charged_and_schedules_are_not() -> None:
    problems, names = Problem.of_suite(load_suite("smoke").draw()), ("first", "dysharp")
    first, reference = (read_contender(name) for name in names)
    rows = charge(evaluate(problems, [first], reference), [first, reference], problems, 0.5)
    for row in rows:
        assert row.charged_us == row.makespan_us + 0.5 * row.busiest_decisions
        assert (row.busiest_decisions == 0) == (row.policy == "dysharp")
        assert row.policy == "dysharp" or row.asked / 8 <= row.busiest_decisions <= row.asked
    assert [row.makespan_us for row in charged_rows(rows)] == pytest.approx([row.charged_us for row in rows])
