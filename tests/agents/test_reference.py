"""The shipped agent is whole and its table is that of its evaluation; tiny policies play what theirs says.

``python -m tests.agents.test_reference`` prints the lines of the table of README and of the guide's results.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents.exact.results import INSTANCES, play_on
from agents.opponents.read import read_contender
from dysharp_env.simulator.hardware import PS_PER_US

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "runs" / "reference"
AGAINST = ("dysharp-tuned", "virtual-best", "dysharp")
LABELS = {
    "reference": "agent, 3 training seeds",
    "dysharp-tuned": "`dysharp-tuned`: the same plans by a linear rule",
    "virtual-best": "best of all designed by hand, in hindsight",
    "mega-moe": "`mega-moe`",
    "dysharp-order": "`dysharp-order`: one plan, a searched order",
    "dysharp": "`dysharp`, the paper's",
}


def table_lines() -> list[str]:
    """Returns the lines of the table on held-out workloads, which README and the guide's results have."""
    summary = json.loads((REFERENCE / "held-out.json").read_text())["summary"]
    found = {(line["policy"], line["against"]): line for line in summary}

    def ratio(policy: str, against: str) -> str:
        line = found[policy, against]
        if policy == against:
            return "1"
        return f"{line['geomean_ratio']:.3f} ({line['ci_low']:.3f} to {line['ci_high']:.3f})"

    lines = []
    for policy, label in LABELS.items():
        ratios = " | ".join(ratio(policy, against) for against in AGAINST)
        lines.append(f"| {label} | {ratios} | {found[policy, 'dysharp']['mean_ratio_to_bound']:.3f} |")
    return lines


def test_it_is_small_and_has_its_tables_and_tensorboard_shows_none_of_it() -> None:
    files = [path for path in REFERENCE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 20e6
    runs = [path.parent for path in REFERENCE.rglob("config.yaml")]
    assert len(runs) == 6
    assert {path.parent for path in files if path.name == "evaluations.csv"} == {*runs}
    assert not [path for path in files if "tfevents" in path.name]


@pytest.mark.parametrize("page", ["README.md", "dysharp_env/docs/results.md"])
def test_pages_tell_what_the_evaluation_found(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for line in table_lines():
        assert f"{line}\n" in text, line


def test_the_agent_is_surely_faster_than_each_that_it_is_held_against() -> None:
    summary = json.loads((REFERENCE / "held-out.json").read_text())["summary"]
    against = {line["against"]: line for line in summary if line["policy"] == "reference"}
    assert {*against} == {*AGAINST}
    assert all(line["geomean_ratio"] < 1 and line["ci_high"] < 1 and line["seeds"] == 3 for line in against.values())


def test_tiny_policies_end_where_the_table_says() -> None:
    table = json.loads((REFERENCE / "tiny" / "exact.json").read_text())["rows"]
    contender = read_contender(",".join(str(REFERENCE / "tiny" / f"seed-{seed}") for seed in range(3)))
    for instance, told in zip(INSTANCES[:3], table, strict=False):
        assert told["instance"] == instance.name and told["is_proved"]
        played = {seed: times.makespan_ps / PS_PER_US for seed, times in play_on(instance.build(), contender)}
        assert played == {row["seed"]: row["makespan_us"] for row in told["rows"] if row["policy"] == contender.name}


if __name__ == "__main__":
    print("\n".join(table_lines()))
