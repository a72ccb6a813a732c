"""A run that learns which plan a layer wants: it learns, resumes to the same bytes, plays the plan that it chose."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml

from agents.opponents.read import read_contender
from agents.policies.files import load_policy
from agents.training import planning
from agents.training.plan_table import PlanTable, choose, play_plans
from agents.training.run_folder import RunFolder
from agents.training.run_loop import TrainingRun
from agents.training.spec import TrainSpec, read_spec
from agents.training.start import train
from dysharp_env.config import ConfigError, parse_spec
from dysharp_env.schedules import Exposure, Problem, load_schedule
from dysharp_env.simulator.network import Network
from dysharp_env.workload.suite import load_suite

# The first plan, which whoever knows nothing takes, is by far the worst.
PLANS = ["deepep", {"schedule": "dysharp", "prefetch": "ahead"}, "nvls"]
ENTRIES = [
    {"model": "olmoe", "gpus": 4, "tokens": 16, "routing": "uniform", "seeds": [0, 1]},
    {"model": "olmoe", "gpus": 4, "tokens": 64, "routing": "dsv2-lite", "seeds": [0, 1]},
]


def spec_of(folder: Path, **changes: object) -> TrainSpec:
    base = load_schedule("dysharp").model_dump(mode="json", exclude_defaults=True, exclude={"aliases"})
    schedule, suite = folder / "planning.yaml", folder / "two.yaml"
    schedule.write_text(yaml.safe_dump({**base, "name": "planning", "plans": PLANS}))
    suite.write_text(yaml.safe_dump({"name": "two", "description": "Two layers.", "workloads": ENTRIES}))
    values = {
        "name": "planned",
        "env": {"suite": str(suite), "schedule": str(schedule), "exposed": ["plan"]},
        "planning": {"width": 4, "steps": 40, "batch": 2, "threads": 1},
        "validation": str(suite),
        "total_decisions": 12,  # two layers of three plans, twice
        "eval_every_decisions": 6,
        "checkpoint_every_decisions": 6,
        **changes,
    }
    return parse_spec(TrainSpec, values, source="test")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainSpec, RunFolder]:
    root = tmp_path_factory.mktemp("planned")
    spec = spec_of(root)
    folder = RunFolder.create(root, "whole", 0)
    train(spec, folder)
    return spec, folder


@pytest.mark.parametrize("what", ["a feature", "a weight of a fit"])
def test_what_is_not_finite_stops_it(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "a feature":
        joined = PlanTable.joined

        def spoil(table: PlanTable, other: PlanTable) -> PlanTable:
            both = joined(table, other)
            both.features[0, 0, 0] = np.nan
            return both

        monkeypatch.setattr(PlanTable, "joined", spoil)
    else:
        # A network of weights that are not finite is refused where it is made.
        monkeypatch.setattr(planning, "fit_plans", lambda *args, **more: Network(*[np.full((1, 1), np.nan)] * 10))
    spec = spec_of(tmp_path)
    folder = RunFolder.create(tmp_path, "run", 0)
    with pytest.raises(ConfigError, match=f"training stopped after 0 decisions: {what} is not finite; .*not-finite"):
        train(spec, folder)


def test_it_chooses_the_best_plan(trained: tuple[TrainSpec, RunFolder]) -> None:
    spec, folder = trained
    assert read_spec(folder) == spec and spec.env.suite is not None
    problems = Problem.of_suite(load_suite(spec.env.suite).draw())
    table = play_plans(problems, load_schedule(spec.env.schedule), Exposure())
    assert (table.losses[:, 0] > 0.1).all()
    network = load_policy(folder.best).opening_network()
    best_ps = table.makespans_ps[:, :3].min(axis=1)
    for row, problem in enumerate(problems):
        run = read_contender(str(folder.path)).first.run(problem)
        chosen = choose(network, table, row)
        assert run.schedule == run.offered.options[chosen] and run.opening.asked == 1
        assert run.engine.now_ps == table.makespans_ps[row, chosen] == best_ps[row]
    with (folder.path / "evaluations.csv").open() as file:
        validated = [*csv.DictReader(file)]
    # Before it has learned it takes the first plan; then twice what it has chosen.
    assert [int(line["decisions"]) for line in validated] == [0, 0, 6, 6, 12, 12]
    told_us = np.array([float(line["makespan_us"]) for line in validated])
    np.testing.assert_allclose(told_us[:2], table.makespans_ps[:, 0] / 1e6)
    np.testing.assert_allclose(told_us[4:], best_ps / 1e6)


def test_a_resumed_run_ends_as_one_that_never_stopped(trained: tuple[TrainSpec, RunFolder], tmp_path: Path) -> None:
    spec, whole = trained
    halves = RunFolder.create(tmp_path, "halves", 0)
    train(spec.with_changes({"total_decisions": 6}), halves)
    assert halves.newest_checkpoint().name == "6"
    train(spec, halves, resume=True)
    assert read_spec(halves) == spec
    for name in ("best/policy.safetensors", "evaluations.csv"):
        assert (halves.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    tables = [run.newest_checkpoint() / "table.safetensors" for run in (whole, halves)]
    assert tables[0].read_bytes() == tables[1].read_bytes()


def test_a_table_of_other_settings_is_refused(trained: tuple[TrainSpec, RunFolder]) -> None:
    spec, folder = trained
    with pytest.raises(ConfigError, match=r"does not fit the run's settings: 'features' is not of shape \(4, 16, "):
        train(spec.with_changes({"env.max_candidates": 16, "total_decisions": 18}), folder, resume=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"env": {"exposed": ["plan"]}}, r"planning is of plans, on a suite: env.exposed=\['plan'\] must be \[plan\]"),
        ({"evolution": {}}, "planning is a way to train of its own: leave out evolution and imitation"),
        ({"planning": {"width": 0}}, "planning.width=0"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        spec_of(tmp_path, **changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("stop_at", [0, 6])
def test_an_interrupted_run_ends_as_one_that_never_stopped(
    trained: tuple[TrainSpec, RunFolder], tmp_path: Path, stop_at: int
) -> None:
    spec, whole = trained
    rare = spec.with_changes({"checkpoint_every_decisions": 100, "pictures": False})

    def stop(run: TrainingRun) -> None:
        if run.decisions >= stop_at:
            raise KeyboardInterrupt

    folder = RunFolder.create(tmp_path, "stopped", 0)
    with pytest.raises(KeyboardInterrupt):
        train(rare, folder, watch=stop)
    assert folder.newest_checkpoint().name == str(stop_at)
    train(rare, folder, resume=True)
    for name in ("best/policy.safetensors", "evaluations.csv", "checkpoints/12/table.safetensors"):
        assert (folder.path / name).read_bytes() == (whole.path / name).read_bytes(), name
