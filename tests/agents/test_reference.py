"""The shipped agent is whole, and plays what its table says."""

import json
from pathlib import Path

import pytest

from agents.contender import read_contender
from agents.evaluation import evaluate
from dysharp_env.workload.suite import load_suite

REFERENCE = Path(__file__).parents[2] / "runs" / "reference"
SEEDS = ",".join(str(REFERENCE / f"seed-{seed}") for seed in range(3))
FEW = 3  # workloads of 8 GPUs at the head of the suite


@pytest.mark.parametrize("policy", [SEEDS, str(REFERENCE / "rule" / "rule.json"), "dysharp-tuned"])
def test_makespans_are_those_of_the_table(policy):
    table = json.loads((REFERENCE / "held-out.json").read_text())["rows"]
    suite = load_suite("held-out")
    suite = suite.model_copy(update={"workloads": suite.workloads[:FEW]})
    contender = read_contender(policy)
    rows = evaluate(suite, [contender], contender)
    assert len({row.workload for row in rows}) > FEW
    told = {(row["policy"], row["seed"], row["workload"]): row["makespan_us"] for row in table}
    for row in rows:
        assert row.makespan_us == told[row.policy, row.seed, row.workload]


def test_it_is_small_and_has_its_curves():
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert sum(path.name.startswith("events.") for path in files) == 3
