"""Sensitivity: what a variation changes, who changes places, and what the command prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents import sensitivity as command
from agents.evaluation.variations import BASE, VARIATIONS, read_variations
from agents.sensitivity import Ranking
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.system import load_system
from dysharp_env.system.spec import SystemSpec
from dysharp_env.workload.suite import load_suite


@pytest.mark.parametrize("name", preset_names("systems"))
def test_every_variation_fits_every_machine_and_changes_what_it_says(name: str) -> None:
    system = load_system(name)
    assert BASE.system(system) == system
    for variation in VARIATIONS:
        changed = variation.system(system)
        before, after = (vars_of(each) for each in (system, changed))
        different = {key for key in before if before[key] != after[key]}
        assert different <= set(variation.changes)
        has_none = all(before[key] == 0 for key in variation.changes)  # no block overhead to multiply, on Blackwell
        assert (
            different
            or has_none
            or variation.compute_scale != 1
            or "reduction" in variation.name
            or "queueing" in variation.name
        )


def vars_of(system: SystemSpec) -> dict[str, object]:
    data = system.model_dump()
    return {
        f"{part}.{key}": value for part in ("gpu", "link", "switch", "overheads") for key, value in data[part].items()
    }


def test_workloads_keep_their_routing_and_get_the_machine() -> None:
    items = load_suite("smoke").draw()
    (variation,) = [variation for variation in VARIATIONS if variation.name == "link latency x 2"]
    for item, changed in zip(items, variation.apply(items), strict=True):
        assert changed.workload is item.workload and changed.name == item.name
        assert changed.scenario.system.link.latency_ns == 2 * item.scenario.system.link.latency_ns
    (slower,) = [variation for variation in VARIATIONS if variation.name == "compute time x 4"]
    assert [item.entry.compute_scale * 4 for item in items] == [
        item.entry.compute_scale for item in slower.apply(items)
    ]


def ranking(*order: str, clear: tuple[str, ...] = ()) -> Ranking:
    pairs = frozenset((pair[0], pair[1]) for pair in clear)
    return Ranking("v", [*order], {policy: (1.0, 1.0, 1.0) for policy in order}, pairs)


def test_swaps_are_the_pairs_that_change_places() -> None:
    assert ranking("a", "b", "c").swaps(ranking("a", "b", "c")) == []
    assert ranking("b", "a", "c").swaps(ranking("a", "b", "c")) == [("b", "a")]
    assert ranking("c", "b", "a").swaps(ranking("a", "b", "c")) == [("c", "b"), ("c", "a"), ("b", "a")]


def test_a_swap_is_clear_if_it_is_no_tie_on_either_side() -> None:
    base = ranking("a", "b", "c", clear=("ab", "bc", "ac"))
    assert ranking("c", "b", "a", clear=("cb", "ba")).clear_swaps(base) == [("c", "b"), ("b", "a")]
    assert ranking("b", "a", "c", clear=("ba",)).clear_swaps(ranking("a", "b", "c")) == []


def test_table_and_json(steered_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "s.json"
    policies = ["--policy", steered_run, "--policy", "nvls"]
    vary = ["--vary", "compute time x 4", "--vary", "queueing input_fifo"]
    assert command.main(["--suite", "smoke", *policies, *vary, "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "as configured" in out and "compute time x 4" in out and "Of 2 variations" in out and "CPU seconds" in out
    rows = json.loads(file.read_text())["rows"]
    assert [row["variation"] for row in rows] == ["as configured", "compute time x 4", "queueing input_fifo"]
    for row in rows:
        assert set(row["order"]) == {"steered", "nvls", "dysharp"} and row["ratios"]["dysharp"] == [1.0, 1.0, 1.0]
    assert rows[0]["swaps"] == [] and ["nvls", "dysharp"] in rows[0]["clear"]
    # Where compute takes four times as long, what they differ in counts less.
    assert rows[0]["ratios"]["nvls"][0] < rows[1]["ratios"]["nvls"][0] < 1


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--policy", "nvls", "--suite", "smoke", "--rollouts", "0"]) == 2
    assert capsys.readouterr().err == "error: rollouts=0 must be at least 1\n"
    with pytest.raises(ConfigError, match=r"vary='link latency x 3' is unknown; .*did you mean 'link latency x 2'"):
        read_variations(["link latency x 3"])
