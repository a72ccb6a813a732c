"""The shipped agent is whole, and tiny policies play what their table says."""

from __future__ import annotations

import json
from pathlib import Path

from agents.exact.results import INSTANCES, play_on
from agents.opponents.read import read_contender
from dysharp_env.simulator.costs import PS_PER_US

REFERENCE = Path(__file__).parents[2] / "runs" / "reference"


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
