"""Distilling: which values explain a policy, what is fitted, and what the command writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import distil as command
from agents.distillation.fitting import MOST_VALUES, choose_names, explained, fit
from agents.evaluation.contexts import Decisions, record_decisions
from agents.opponents.read import learned_of, read_contender
from agents.policies.rule import WISHES, Linear, Rule
from dysharp_env.schedules import Problem
from dysharp_env.simulator.state.observation import CONTEXT, GEMM
from dysharp_env.workload.suite import load_suite


def decisions(wanted: Callable[..., Any]) -> Decisions:
    """Returns decisions in random contexts, in which a policy got just what ``wanted`` says of each."""
    rng = np.random.default_rng(0)
    contexts = rng.uniform(0, 1, (500, len(CONTEXT))).astype(np.float32)
    columns = {name: contexts[:, place] for place, name in enumerate(CONTEXT)}
    return Decisions(contexts, np.stack(wanted(columns), axis=1), np.full(500, 1 / 500), np.array([*WISHES.values()]))


def test_a_linear_policy_is_found_again() -> None:
    seen = decisions(lambda c: (0.1 - 0.05 * c["sent"], 0.02 + 0.1 * c["gemm_done"], 0 * c["sent"]))
    names = choose_names(seen, 2)
    assert names == ["gemm_done", "sent"]  # 11 * 0.1 moves further than 16 * 0.05
    wishes = fit(seen, names)
    dispatch = wishes["split_dispatch"]
    assert isinstance(dispatch, Linear) and dispatch.constant == pytest.approx(0.1, abs=1e-4)
    assert dispatch.weights == pytest.approx({"gemm_done": 0.0, "sent": -0.05}, abs=1e-4)
    assert explained(seen, names) == pytest.approx(1, abs=1e-4)
    assert explained(seen, names[:1]) < 0.9


def test_every_workload_counts_the_same(steered_run: str) -> None:
    problems = Problem.of_suite(load_suite("smoke").draw())
    (policy,) = learned_of(read_contender(steered_run))
    seen = record_decisions(policy, problems)
    assert seen.weights.sum() == pytest.approx(1)
    assert len(np.unique(seen.chosen, axis=0)) > 2
    alone = [record_decisions(policy, [problem]) for problem in problems]
    assert seen.mean_context == pytest.approx(np.mean([one.mean_context for one in alone], axis=0))


def test_it_writes_a_rule_that_plays(linear_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "rule", tmp_path / "d.json"
    suites = ["--suite", "smoke", "--validation", "smoke"]
    assert command.main([linear_run, *suites, "--values", "4", "--out", str(out), "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "explained" in shown and "CPU seconds" in shown
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 4 and sum(row["chosen"] for row in rows) == 1
    best = min(rows, key=lambda row: row["rule_ratio"])
    assert best["chosen"] and [len(row["names"]) for row in rows] == [1, 2, 3, 4]
    rule = read_contender(str(out / "rule.json")).identity
    assert isinstance(rule, Rule) and [*rule.wishes] == [*WISHES] and rule.name == "steered-rule"
    assert "dysharp_split(" in (out / "rule.h").read_text()


def test_rows_are_weighed_as_the_policy_weighs_them(row_run: str, tmp_path: Path) -> None:
    out, suites = tmp_path / "rule", ["--suite", "smoke", "--validation", "smoke"]
    assert command.main([row_run, *suites, "--values", "2", "--out", str(out)]) == 0
    (policy,) = learned_of(read_contender(row_run))
    rule = read_contender(str(out / "rule.json")).identity
    assert isinstance(rule, Rule) and rule.rows is not None and rule.rows.hold and rule.rows.partial_tiles
    assert [*rule.rows.weights] == ["size", "is_hold"]
    contexts = record_decisions(policy, Problem.of_suite(load_suite("smoke").draw())).of_kind(GEMM).contexts
    np.testing.assert_allclose(contexts @ rule.network().linear, contexts @ policy.network.linear, atol=1e-3)
    assert "dysharp_row_score(" in (out / "rule.h").read_text()


def test_a_mistake_is_one_line(linear_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([linear_run, "--values", "0", "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err == f"error: values=0 must be 1 to {MOST_VALUES}\n"
    assert not (tmp_path / "x").exists()
