"""Headroom: what is listed, that later columns are never worse than what they begin from, and the verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agents import headroom as command
from agents.headroom import HEADLINE, Headroom, geomeans, shipped_rivals
from dysharp_env.config import preset_names


def row(**times: float) -> Headroom:
    given = {name: 100.0 for name in Headroom.__dataclass_fields__ if name.endswith("_us")}
    return Headroom(workload="w", rival="comet", **{**given, "lower_bound_us": 50.0, **times})


def test_room_is_three_per_cent_of_the_paper_s_time_whoever_finds_them() -> None:
    assert not row().is_headline and not row(own_us=97.01).is_headline
    for name in ("rival_us", "waves_us", "tuned_us", "own_us", "ahead_us", "own_ahead_us"):
        assert row(**{name: 100 * HEADLINE}).is_headline
    assert row(rival_us=200.0).best_us == 100.0
    assert geomeans([row(tuned_us=50.0), row(tuned_us=200.0)])["tuned"] == pytest.approx(1.0)


def test_rivals_are_the_shipped_schedules_of_the_same_hardware() -> None:
    names = {schedule.name for schedule in shipped_rivals()}
    assert {"comet", "deepep", "mega-moe", "dysharp-l2", "dysharp-two-chunks"} <= names
    assert not names & {"dysharp", "dysharp-waves", "dysharp-tuned", "dysharp-push", "mega-moe-multimem", "moe-hub"}
    assert names < set(preset_names("schedules"))


def test_table_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "h.json"
    budget = ["--episodes", "40", "--rollouts", "20"]
    argv = ["--suite", "smoke", "--tuned", "dysharp-l2", *budget, "--json", str(file)]
    assert command.main(argv) == 0
    out = capsys.readouterr().out
    assert "Suite smoke" in out and "geometric mean" in out
    document = json.loads(file.read_text())
    assert document["schema"] == "dysharp/headroom/1" and len(document["rows"]) == 4
    for line in document["rows"]:
        assert line["lower_bound_us"] <= line["best_us"] <= line["dysharp_us"]
        assert line["own_us"] <= line["tuned_us"] and line["ahead_us"] <= line["tuned_us"]
        assert line["own_ahead_us"] <= line["own_us"]
    assert document["geomean"]["best"] <= 1.0


@pytest.mark.parametrize("option", ["episodes", "rollouts"])
def test_a_mistake_is_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--suite", "smoke", "--tuned", "dysharp", f"--{option}", "0"]) == 2
    assert capsys.readouterr().err == f"error: {option}=0 must be at least 1\n"
