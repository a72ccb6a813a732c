"""The search: it begins where it says, improves on it, and can be repeated."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from agents import search as command
from agents.opponents.rollouts import makespans_ps
from agents.training import cma_search
from agents.training.cma_search import Budget, SearchSpace, search
from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem, ScheduleSpec, load_schedule, simulate
from dysharp_env.workload.suite import SuiteSpec, load_suite

SUITE = {
    "name": "tiny",
    "workloads": [
        {"model": "deepseek-v2-lite", "tokens": 64, "routing": "dsv2-lite", "seeds": [0, 1]},
        {"system": "dgx-h200", "model": "deepseek-v3", "tokens": 128, "routing": "deepseek-v3", "seeds": [0, 1]},
    ],
}


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return str(path)


@pytest.mark.parametrize("name", ["dysharp", "dysharp-l2", "dysharp-waves"])
def test_a_search_begins_at_the_schedule_itself(name: str) -> None:
    base = load_schedule(name)
    space = SearchSpace(base)
    workloads = Problem.of_suite([*load_suite("smoke").draw(), *SuiteSpec.model_validate(SUITE).draw()])
    started, given = makespans_ps([space.schedule(space.start, "start"), base], workloads)
    assert started.tolist() == given.tolist()


def test_makespans_are_those_of_single_runs() -> None:
    items = load_suite("smoke").draw()
    schedules = [load_schedule(name) for name in ("dysharp", "comet", "dysharp-waves")]
    found = makespans_ps(schedules, Problem.of_suite(items))
    alone = [[simulate(item.scenario.system, item.workload, schedule) for item in items] for schedule in schedules]
    assert found.tolist() == [[run.engine.now_ps for run in row] for row in alone]


def test_a_makespan_that_is_none_stops_it_in_a_line(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workloads = Problem.of_suite(load_suite(suite).draw())

    def spoil(schedules: Sequence[ScheduleSpec], *rest: object) -> np.ndarray:
        return makespans_ps(schedules, *rest) * (len(schedules) == 1)

    monkeypatch.setattr(cma_search, "makespans_ps", spoil)
    with pytest.raises(ConfigError, match=r"'dgx-.*' took 0 ps under rule 0: the search stops"):
        reference = load_schedule("dysharp")
        search(reference, workloads, reference, Budget(100, 60.0), name="found")


def test_settings_are_whole_numbers_in_their_ranges() -> None:
    space = SearchSpace(load_schedule("dysharp"))
    far, near = space.start.copy(), space.start.copy()
    far[-4:], near[-4:] = 30.0, -30.0
    most, least = space.schedule(far, "most"), space.schedule(near, "least")
    assert (most.sms.dispatch, most.sms.combine, most.chunk_tokens, most.min_partial_tokens) == (32, 32, 32, 128)
    assert (least.sms.dispatch, least.sms.combine, least.chunk_tokens, least.min_partial_tokens) == (1, 1, 1, 1)


def test_it_improves_on_its_start_and_says_what_it_found(suite: str) -> None:
    workloads = Problem.of_suite(load_suite(suite).draw())
    reference = load_schedule("dysharp")
    found = search(load_schedule("dysharp-l2"), workloads, reference, Budget(500, 60.0), name="found", seed=3)
    assert found.ratio < found.start_ratio - 0.01
    assert 500 <= found.episodes < 600
    measured = makespans_ps([found.schedule, reference], workloads)
    assert np.exp(np.log(measured[0] / measured[1]).mean()) == pytest.approx(found.ratio)


def test_the_command_writes_a_schedule_that_says_what_made_it_and_repeats_it(
    suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for file in files:
        argv = ["--suite", suite, "--out", str(file), "--episodes", "300", "--batch", "1", "--seed", "5"]
        assert command.main([*argv, "--start", "dysharp-waves"]) == 0
    first, second = (load_schedule(str(file)) for file in files)
    assert first == second and first.name == "dysharp-order" and first.token_order == "expert_waves"
    said = files[0].read_text()
    assert f"--suite {suite} --name dysharp-order --start dysharp-waves --episodes 300 --batch 1 --seed 5" in said
    ratio = re.search(r"over dysharp (\d\.\d{4})", said)
    assert ratio and ratio[1] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--episodes", "0"], "episodes=0 must be at least 1"),
        (["--batch", "0"], "batch=0 must be at least 1"),
        (["--cpu-seconds", "nan"], "cpu-seconds=nan must be above 0"),
        (["--start", "dyshap"], "did you mean 'dysharp'?"),
    ],
)
def test_a_mistake_is_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--suite", "smoke", "--out", str(tmp_path / "x.yaml"), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
