"""The shipped agent is whole, and plays what its table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.evaluation.table import evaluate
from agents.exact.results import INSTANCES, play_on
from agents.opponents.read import read_contender
from dysharp_env.schedules import Problem
from dysharp_env.simulator.costs import PS_PER_US
from dysharp_env.workload.suite import load_suite

REFERENCE = Path(__file__).parents[2] / "runs" / "reference"
SEEDS = ",".join(str(REFERENCE / f"seed-{seed}") for seed in range(3))
FEW = 3  # workloads of 8 GPUs at the head of the suite


@pytest.mark.parametrize("policy", [SEEDS, str(REFERENCE / "rule" / "rule.json"), "dysharp-tuned"])
def test_makespans_are_those_of_the_table(policy: str) -> None:
    table = json.loads((REFERENCE / "held-out.json").read_text())["rows"]
    suite = load_suite("held-out")
    suite = suite.model_copy(update={"workloads": suite.workloads[:FEW]})
    contender = read_contender(policy)
    rows = evaluate(Problem.of_suite(suite.draw()), [contender], contender)
    assert len({row.workload for row in rows}) == FEW
    told = {(row["policy"], row["seed"], row["workload"]): row["makespan_us"] for row in table if row["renaming"] == 0}
    for row in rows:
        assert row.makespan_us == told[row.policy, row.seed, row.workload]


def test_it_is_small_and_has_its_curves() -> None:
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    runs = [path.parent for path in REFERENCE.rglob("config.yaml")]
    assert len(runs) == 6
    assert {path.parent for path in files if path.name.startswith("events.")} == {*runs}


def test_tiny_policies_end_where_the_table_says() -> None:
    table = json.loads((REFERENCE / "tiny" / "exact.json").read_text())["rows"]
    contender = read_contender(",".join(str(REFERENCE / "tiny" / f"seed-{seed}") for seed in range(3)))
    for instance, told in zip(INSTANCES[:3], table, strict=False):
        assert told["instance"] == instance.name and told["is_proved"]
        played = {seed: times.makespan_ps / PS_PER_US for seed, times in play_on(instance.build(), contender)}
        assert played == {row["seed"]: row["makespan_us"] for row in told["rows"] if row["policy"] == contender.name}
