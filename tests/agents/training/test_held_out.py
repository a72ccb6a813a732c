"""A run is validated on what it is trained for: its own machine and routing, on tokens that training does not see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from agents.train import main
from agents.training.held_out import describe_validation, validation_suite
from agents.training.spec import TrainSpec
from dysharp_env.config import ConfigError, load_spec
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.suite import SuiteEntry, load_suite

MINE: dict[str, Any] = {"system": "dgx-h200", "gpus": 4, "model": "olmoe", "tokens": 24, "slow_gpu": 1.5}


def spec(**env: Any) -> TrainSpec:
    return TrainSpec.model_validate({"env": {**MINE, **env}})


def scenario_of(entry: SuiteEntry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in ScenarioSpec.model_fields if name != "split"}


def test_of_a_generator_it_is_seeds_behind_those_of_training() -> None:
    for seeds, first in ((None, 2**31), ((0, 100), 10_000), ((9_000, 5_000), 14_000)):
        run = spec(routing="uniform", seeds=seeds)
        (entry,) = validation_suite(run).workloads
        assert scenario_of(entry) == scenario_of(run.env) and entry.split == "all"  # type: ignore[arg-type]
        assert entry.seeds == (first, 8) and len(validation_suite(run).draw()) == 8
        assert describe_validation(run) == (
            f"validates on 8 workloads of the run's own scenario, with seeds from {first} on"
        )


@pytest.mark.parametrize("split", ["all", "train", "test"])
def test_of_a_trace_it_is_the_validation_split(split: str) -> None:
    run = spec(model="deepseek-v2-lite", routing="recorded", split=split)
    (entry,) = validation_suite(run).workloads
    assert scenario_of(entry) == scenario_of(run.env) and entry.split == "validation"  # type: ignore[arg-type]
    assert all("split=validation" in item.name for item in validation_suite(run).draw())
    line = "validates on 8 workloads of the run's own scenario, from the validation split of traces"
    seen = ", which training sees too with split=all; split=train leaves it out"
    assert describe_validation(run) == line + (seen if split == "all" else "")


def test_of_a_suite_it_is_every_entry() -> None:
    run = TrainSpec.model_validate({"env": {"suite": "training"}})
    own = load_suite("training").workloads
    found = validation_suite(run).workloads
    assert [scenario_of(entry) for entry in found] == [scenario_of(entry) for entry in own]
    trained = {item.name for item in load_suite("training").draw()}
    assert not trained & {item.name for item in validation_suite(run).draw()}


def test_a_suite_that_is_named_is_taken_and_told() -> None:
    run = load_spec(TrainSpec, "train", "demo")
    assert validation_suite(run) == load_suite("demo-validation")
    assert describe_validation(run) == "validates on suite demo-validation, 30 workloads"
    assert describe_validation(load_spec(TrainSpec, "train", "tiny")) == "validates on 160 other tiny layers"


def test_nothing_is_left_of_a_validation_split_that_is_trained_on() -> None:
    run = spec(model="deepseek-v2-lite", routing="recorded", split="validation")
    with pytest.raises(ConfigError, match="^training on split='validation' of 'recorded' leaves no split for"):
        validation_suite(run)
    assert validation_suite(run.with_changes({"validation": "smoke"})) == load_suite("smoke")


def test_training_says_what_it_validates_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.yaml"
    settings = {"env": {**MINE, "routing": "uniform", "seeds": [0, 50]}, "total_decisions": 1, "num_envs": 1}
    settings |= {"ppo": {"n_steps": 16, "batch_size": 16, "n_epochs": 1}, "policy": {"hidden": 8, "value_hidden": 8}}
    config.write_text(yaml.safe_dump(settings))
    assert main(["--config", str(config), "--run-dir", str(tmp_path / "runs"), "--quiet"]) == 0
    told = capsys.readouterr().err.splitlines()
    assert "validates on 8 workloads of the run's own scenario, with seeds from 10000 on" in told
    (run,) = (tmp_path / "runs").iterdir()
    rows = (run / "evaluations.csv").read_text().splitlines()[1:]
    assert {f"dgx-h200 x4 olmoe top-8 24 tokens GPU 0 x1.5, uniform seed={seed}" for seed in range(10_000, 10_008)} == {
        row.split('"')[1] for row in rows
    }
