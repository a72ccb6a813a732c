"""The virtual best, and evaluations of those who cannot run everything: who is passed over, who is compared on what."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.evaluate import main
from agents.evaluation.table import evaluate, log_ratios, summarise
from agents.opponents.players import VirtualBest
from agents.opponents.read import designed_by_hand, read_contender, read_contenders
from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.workload.suite import SuiteSpec

LAYER = {"model": "olmoe", "gpus": 4, "tokens": 16, "routing": "uniform", "seeds": [0, 1]}
SUITE = {"name": "both", "workloads": [LAYER, {**LAYER, "hardware": "today"}]}


def problems() -> list[Problem]:
    """Returns a layer on the modelled machine and the same on today's, which does not run ``dysharp``."""
    return Problem.of_suite(SuiteSpec.model_validate(SUITE).draw())


def ends_ps(problem: Problem) -> dict[str, int]:
    """Returns when each schedule that somebody designed ends, of those that the machine can run."""
    found = {}
    for schedule in designed_by_hand():
        try:
            found[schedule.name] = problem.run(schedule).engine.now_ps
        except ConfigError:
            continue
    return found


def test_it_is_the_fastest_that_somebody_designed() -> None:
    contender = read_contender("virtual-best")
    assert {schedule.found_by for schedule in designed_by_hand()} == {"hand"}
    for problem in problems():
        ends = ends_ps(problem)
        run = contender.first.run(problem)
        assert run.engine.now_ps == min(ends.values()) and ends[run.schedule.name] == run.engine.now_ps
        # Asked step by step, and told once which it is, it is the same.
        again = contender.first.on(problem)
        assert again.base == run.schedule and again.start(problem).engine.run().now_ps == run.engine.now_ps
    modelled, today = map(ends_ps, problems())
    assert "dysharp" in modelled and "dysharp" not in today and len(today) > 5


def test_a_machine_that_runs_none_says_why() -> None:
    best = replace(read_contender("virtual-best").first, schedules=(load_schedule("dysharp"),))
    assert isinstance(best, VirtualBest) and best.run(problems()[0]).schedule.name == "dysharp"
    with pytest.raises(ConfigError, match="schedule='dysharp' needs dispatch 'multicast'"):
        best.run(problems()[1])


def test_who_cannot_run_a_layer_has_no_row_and_is_compared_on_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    layers = problems()
    contenders = read_contenders(["dysharp", "virtual-best", "fused-unicast"])
    rows = evaluate(layers, contenders)
    assert [(row.policy, row.workload) for row in rows] == [
        ("dysharp", layers[0].name),
        *((name, layer.name) for name in ("virtual-best", "fused-unicast") for layer in layers),
    ]
    told = capsys.readouterr().err
    assert "dysharp has no row for 1 of 2 layers, such as: schedule='dysharp' needs dispatch 'multicast'" in told
    counted = {line.policy: line.workloads for line in summarise(rows, "virtual-best")}
    assert counted == {"dysharp": 1, "virtual-best": 2, "fused-unicast": 2}
    assert {line.policy: line.workloads for line in summarise(rows, "dysharp")} == dict.fromkeys(counted, 1)
    shared, ratios = log_ratios(rows, "fused-unicast", "dysharp")
    makespans = {(row.policy, row.workload): row.makespan_us for row in rows}
    expected = np.log(makespans["fused-unicast", shared[0]] / makespans["dysharp", shared[0]])
    assert shared == [layers[0].name] and ratios == pytest.approx(np.array([[expected]]))


def test_who_can_run_none_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="schedule='dysharp' needs dispatch 'multicast'"):
        evaluate(problems()[1:], read_contenders(["fused-unicast", "dysharp"]))


def test_the_command_compares_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite, file = tmp_path / "both.yaml", tmp_path / "e.json"
    suite.write_text(json.dumps(SUITE))
    argv = ["--suite", str(suite), "--policy", "dysharp", "--against", "virtual-best", "--renamings", "1"]
    assert main([*argv, "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert [row["policy"] for row in document["rows"]] == ["dysharp", "virtual-best", "virtual-best"]
    (summary, _) = document["summary"]
    assert (summary["policy"], summary["against"], summary["workloads"]) == ("dysharp", "virtual-best", 1)
    assert summary["geomean_ratio"] >= 1
    assert "no row for 1 of 2" in capsys.readouterr().err
