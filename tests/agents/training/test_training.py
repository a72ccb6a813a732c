"""Training: what a run leaves behind, that it continues exactly, and what is refused."""

import csv
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util import tensor_util

from agents import load_agent
from agents.card import main as write_card
from agents.opponents.players import Chooser
from agents.policies.files import load_policy
from agents.train import main
from agents.training.curves import CURVES, LAYOUT, description, find
from agents.training.run_folder import RunFolder
from agents.training.run_loop import TrainingRun
from agents.training.spec import TrainSpec, read_spec
from agents.training.start import train
from dysharp_env.config import load_spec, preset_names
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.workload.suite import load_suite

SMALL = ["--set", "total_decisions=2048", "--set", "eval_every_decisions=1024", "--quiet"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("runs")
    assert main(["--config", "smoke", "--run-dir", str(root), "--seed", "3", *SMALL]) == 0
    (path,) = root.iterdir()
    return RunFolder(path)


@pytest.fixture
def no_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("something was unpickled")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)


def test_a_run_folder_says_what_was_run_and_how_it_went(trained: RunFolder) -> None:
    assert re.fullmatch(r"smoke__3__\d{8}-\d{6}", trained.path.name)
    config = yaml.safe_load((trained.path / "config.yaml").read_text())
    assert (config["seed"], config["total_decisions"]) == (3, 2048)
    assert TrainSpec.model_validate(config).env.model == "olmoe"
    assert "python -m agents.train --config smoke" in (trained.path / "command.txt").read_text()
    meta = json.loads((trained.path / "meta.json").read_text())
    assert meta["decisions"] == 2048 and meta["seed"] == 3 and meta["finished"]
    (process,) = meta["processes"]
    assert process["packages"]["torch"] and process["machine"]["cores"] >= 1 and process["commit"]
    assert (process["end"], process["from_decisions"], process["to_decisions"]) == ("finished", 0, 2048)
    episodes = list(csv.DictReader((trained.path / "episodes.csv").open()))
    assert episodes
    for row in episodes:
        assert float(row["return"]) == pytest.approx(-float(row["ratio_to_bound"]), abs=1e-5)
        assert float(row["ratio_to_bound"]) >= 1
    evaluations = list(csv.DictReader((trained.path / "evaluations.csv").open()))
    assert [int(row["decisions"]) for row in evaluations] == [0] * 4 + [1024] * 4 + [2048] * 4
    best = min(
        np.mean([float(row["ratio_to_bound"]) for row in evaluations if row["decisions"] == at])
        for at in ("0", "1024", "2048")
    )
    assert meta["validation_ratio"] == pytest.approx(best)
    assert json.loads((trained.best / "policy.json").read_text())["validation_ratio"] == pytest.approx(best)


def test_a_suite_is_trained_on_and_compared_workload_by_workload(tmp_path: Path) -> None:
    env = {"suite": "smoke", "schedule": "dysharp-l2", "exposed": ["gemm"], "max_candidates": 16}
    changes = {"env": env, "total_decisions": 2048, "reference": "dysharp-l2", "policy.rule": "dysharp-l2"}
    spec = load_spec(TrainSpec, "train", "smoke").with_changes(changes)
    folder = RunFolder.create(tmp_path, "suite", 0)
    train(spec, folder)
    assert read_spec(folder) == spec
    episodes = list(csv.DictReader((folder.path / "episodes.csv").open()))
    names = {item.name for item in load_suite("smoke").draw()}
    assert {row["workload"] for row in episodes} == names
    # It starts at the reference's own rule, so no ratio is far from 1.
    assert all(0.5 < float(row["ratio_to_reference"]) < 1.5 for row in episodes)


def test_tensorboard_holds_the_curves(trained: RunFolder) -> None:
    events = EventAccumulator(str(trained.path))
    events.Reload()
    expected = {
        "rollout/return",
        "rollout/ratio_to_bound",
        "rollout/ratio_to_reference",
        "rollout/entropy",
        "time/decisions_per_second",
        "time/env_share",
        "time/policy_share",
        "time/update_share",
        "kinds/gemm_share",
        "kinds/gemm_entropy",
        "kinds/gemm_place",
        "eval/ratio_to_bound",
        "eval/ratio_to_reference",
        "train/approx_kl",
    }
    assert expected <= set(events.Tags()["scalars"])
    shares = sum(events.Scalars(f"time/{part}_share")[-1].value for part in ("env", "policy", "update"))
    assert 0.0 < shares <= 1.0
    by_step: dict[int, float] = {}
    for tag in events.Tags()["scalars"]:
        if re.fullmatch(r"kinds/\w+_share", tag):
            for event in events.Scalars(tag):
                by_step[event.step] = by_step.get(event.step, 0.0) + event.value
    assert len(by_step) == 4
    assert list(by_step.values()) == pytest.approx([1.0] * 4)


def test_every_curve_is_explained_where_it_stands(trained: RunFolder) -> None:
    events = EventAccumulator(str(trained.path))
    events.Reload()
    tags = events.Tags()
    shown = [
        *tags["scalars"],
        *tags["images"],
        *(tag for tag in tags["tensors"] if not tag.startswith(("_", "custom"))),
    ]
    assert {"eval/schedule", "eval/workloads_to_bound", "run/configuration", "opponents/mega-moe"} <= {*shown}
    for tag in shown:
        assert find(tag) is not None, tag
        assert events.SummaryMetadata(tag).summary_description == description(tag), tag


def test_a_validation_shows_the_agent_against_schedules(trained: RunFolder) -> None:
    events = EventAccumulator(str(trained.path))
    events.Reload()
    rows = [*csv.DictReader((trained.path / "evaluations.csv").open())]
    steps = [0, 1024, 2048]
    assert [event.step for event in events.Images("eval/schedule")] == steps
    best = np.inf
    for step, event in zip(steps, events.Scalars("eval/best_ratio_to_bound"), strict=True):
        mean = np.mean([float(row["ratio_to_bound"]) for row in rows if int(row["decisions"]) == step])
        best = min(best, mean)
        assert (event.step, event.value) == (step, pytest.approx(best))
    problems = Problem.of_suite(load_suite("smoke").draw())
    bounds = [problem.bound.total_ps for problem in problems]
    for name in ("dysharp", "deepep"):
        played = [problem.run(load_schedule(name)).engine.now_ps for problem in problems]
        line = events.Scalars(f"opponents/{name}")
        assert [event.step for event in line] == steps
        assert [event.value for event in line] == [pytest.approx(np.divide(played, bounds).mean())] * 3
    spread = tensor_util.make_ndarray(events.Tensors("eval/workloads_to_bound")[-1].tensor_proto)
    assert spread[:, 2].sum() == len(problems)  # (bucket, [left, right, count])


def test_the_table_of_runs_has_settings_and_final_results(trained: RunFolder) -> None:
    events = EventAccumulator(str(trained.path))
    events.Reload()
    content = {
        tag: events.SummaryMetadata(tag).plugin_data.content for tag in events.Tags()["tensors"] if tag[0] == "_"
    }
    found = {tag.split("/")[-1]: HParamsPluginData.FromString(data) for tag, data in content.items()}
    settings = found["session_start_info"].session_start_info.hparams
    assert settings["ppo.n_steps"].number_value == 128 and settings["trainer"].string_value == "PPO"
    assert settings["env.model"].string_value == "olmoe" and "evolution.pairs" not in settings
    assert {info.name for info in found["experiment"].experiment.hparam_infos} == {*settings}
    metrics = [info.name.tag for info in found["experiment"].experiment.metric_infos]
    assert "eval/best_ratio_to_bound" in metrics and {*metrics} <= {*events.Tags()["scalars"]}
    assert found["session_end_info"].session_end_info.status == api_pb2.STATUS_SUCCESS
    (config,) = tensor_util.make_ndarray(events.Tensors("run/configuration")[0].tensor_proto).ravel().tolist()
    assert (trained.path / "config.yaml").read_text().strip() in config.decode()
    assert [path for path in trained.path.rglob("events.*") if path.parent != trained.path] == []


def test_charts_are_of_curves_that_there_are() -> None:
    patterns = [tag for charts in LAYOUT.values() for tags in charts.values() for tag in tags]
    names = [re.sub("[A-Z]{4,}", "x", curve.name) for curve in CURVES if curve.panel == "scalars"]
    for pattern in patterns:
        assert any(re.fullmatch(pattern, name) for name in names), pattern


def test_a_card_for_the_hub_says_what_was_measured(trained: RunFolder, tmp_path: Path) -> None:
    result = {"policy": "smoke", "against": "deepep", "geomean_ratio": 0.5, "ci_low": 0.4, "ci_high": 0.6}
    result |= {"mean_ratio_to_bound": 1.5, "workloads": 7}
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"config": {"suite": {"name": "other"}}, "summary": [result]}))
    out = tmp_path / "README.md"
    assert write_card([str(trained.path), "--results", str(results), "--out", str(out)]) == 0
    _, head, body = out.read_text().split("---\n", 2)
    data = yaml.safe_load(head)
    assert data["library_name"] == "dysharp-env" and "reinforcement-learning" in data["tags"]
    (model,) = data["model-index"]
    validation, other = model["results"]
    assert (model["name"], other["dataset"]["name"]) == ("smoke", "suite other")
    assert [metric["value"] for metric in other["metrics"]] == [0.5, 1.5]
    rows = [*csv.DictReader((trained.path / "evaluations.csv").open())]
    tables = [[row for row in rows if row["decisions"] == at] for at in ("0", "1024", "2048")]
    best = min(tables, key=lambda table: np.mean([float(row["ratio_to_bound"]) for row in table]))
    ratio = np.exp(np.mean([np.log(float(row["ratio_to_reference"])) for row in best]))
    assert validation["metrics"][0]["value"] == pytest.approx(ratio, abs=1e-4)
    assert "| suite other | 7 | `deepep` | 0.500 (0.400 to 0.600) | 1.500 |" in body
    for text in ("python -m agents.train --config smoke", 'load_agent("FOLDER")', "## Limitations", "seed: 3"):
        assert text in body
    # What is in the card loads what the run folder is.
    assert load_agent(str(trained.path)).contender.name == "smoke"


def test_a_card_needs_results_of_the_run(
    trained: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.md"
    results.write_text('{"summary": [{"policy": "other"}]}')
    assert write_card([str(trained.path), "--results", str(results)]) == 2
    assert "is no result of agents.evaluate with policy 'smoke'" in capsys.readouterr().err
    assert write_card([str(trained.path), "--results", str(results), "--out", str(results)]) == 2
    assert f"out='{results}' is the file that results is read from; name another" in capsys.readouterr().err


def test_all_settings_are_printed_and_make_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", "smoke", "--set", "env.tokens=32", "--seed", "5", "--run-dir", str(tmp_path / "runs")]
    assert main([*argv, "--print-config"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    spec = load_spec(TrainSpec, "train", "smoke").with_changes({"env.tokens": 32, "seed": 5})
    assert TrainSpec.model_validate(yaml.safe_load(printed)) == spec
    assert yaml.safe_load(printed)["ppo"]["gamma"] == 1.0  # which the preset does not say


def test_a_policy_loads_without_pickle_and_at_another_size(trained: RunFolder, no_pickle: None) -> None:
    for size in (16, 40):
        env = TokenScheduleEnv(model="olmoe", gpus=8, tokens=16, routing="uniform", max_candidates=size)
        policy = load_policy(trained.best, env.settings)
        observation, info = env.reset(seed=0)
        batch = {name: array[None] for name, array in observation.items()}
        action = policy.choose(batch, info["action_mask"][None].astype(bool))
        assert info["action_mask"][action[0]] == 1


def test_a_resumed_run_ends_with_the_weights_of_one_that_never_stopped(tmp_path: Path, no_pickle: None) -> None:
    spec = load_spec(TrainSpec, "train", "smoke").with_changes(
        {"total_decisions": 3072, "checkpoint_every_decisions": 1024, "eval_every_decisions": 2048}
    )

    def stop_after_two_updates(run: TrainingRun) -> None:
        if run.decisions >= 1536 and stop:
            raise KeyboardInterrupt

    weights, tables = [], []
    for stop in (False, True):
        folder = RunFolder.create(tmp_path, "run", int(stop))
        folder.write_config(spec)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                train(spec, folder, watch=stop_after_two_updates)
            assert [path.name for path in folder.checkpoints()] == ["1024", "1536"]
            train(spec, folder, resume=True)
        else:
            train(spec, folder, watch=stop_after_two_updates)
        weights.append((folder.path / "checkpoints" / "3072" / "policy.safetensors").read_bytes())
        lines = (folder.path / "episodes.csv").read_text().splitlines()
        tables.append([line.split(",")[:5] for line in lines])
    assert weights[0] == weights[1]
    assert tables[0] == tables[1]


def test_only_the_newest_checkpoints_stay_and_nothing_half_written(tmp_path: Path) -> None:
    args = ["--config", "smoke", "--run-dir", str(tmp_path), *SMALL, "--set", "checkpoint_every_decisions=512"]
    assert main(args) == 0
    (path,) = tmp_path.iterdir()
    assert sorted(item.name for item in (path / "checkpoints").iterdir()) == ["1536", "2048"]
    assert not [item for item in path.rglob(".*")]


def test_training_learns(tmp_path: Path) -> None:
    """Some seconds of training beat random choices on the validation workloads by a margin."""
    suite = tmp_path / "suite.yaml"
    scenario = {"model": "olmoe", "gpus": 4, "tokens": 64, "routing": "uniform"}
    suite.write_text(yaml.safe_dump({"name": "v", "workloads": [{**scenario, "seeds": [10_000, 4]}]}))
    exposure = {"exposed": ["gemm"], "hold": False, "max_candidates": 32, "seeds": [0, 10_000]}
    changes = {"env": {**scenario, **exposure}, "validation": str(suite), "total_decisions": 16_384, "num_envs": 8}
    changes |= {"ppo.batch_size": 256, "ppo.n_epochs": 4, "ppo.learning_rate": 3e-3, "ppo.gae_lambda": 1.0}
    # So short a run does not find the good policy from every seed; from this one it does.
    spec = load_spec(TrainSpec, "train", "smoke").with_changes({**changes, "seed": 6})
    folder = RunFolder.create(tmp_path, "learns", 0)
    folder.write_config(spec)
    trained = train(spec, folder)
    problems = Problem.of_suite(load_suite(str(suite)).draw())
    rolls = [Chooser(spec.env, seed).play(problems) for seed in range(4)]
    random = np.mean([item.ratio for roll in rolls for item in roll])
    assert trained < 0.9 * random


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config", "smok"], "choose from ['demo', 'reference', 'smoke', 'tiny'] (did you mean 'smoke'?)"),
        (["--config", "none.yaml"], "train file 'none.yaml' does not exist"),
        (["--config", "smoke", "--set", "ppo.n_step=4"], "unknown key 'ppo.n_step' (did you mean 'ppo.n_steps'?)"),
        (["--config", "smoke", "--set", "env.tokens=-1"], "env.tokens=-1"),
        (["--config", "smoke", "--set", "tokens"], "set='tokens' must be KEY=VALUE, such as total_decisions=50000"),
        (["--config", "smoke", "--set", "ppo.batch_size=9999"], "ppo.batch_size=9999 must be at most"),
        (["--config", "smoke", "--set", "validation=smoky"], "suite='smoky' is unknown"),
        (["--config", "smoke", "--set", "reference=dyshap"], "schedule='dyshap' is unknown"),
        (["--config", "tiny", "--set", "reference=fastermoe"], "schedule='fastermoe' is not modelled exactly"),
        (["--config", "smoke", "--set", "name=../up"], "name='../up'"),
        (["--config", "smoke", "--seed", "-1"], "seed=-1"),
        (["--config", "smoke", "--set", "name=2024-13-45"], "set='name=2024-13-45': the value is not valid YAML"),
        (["--config", "smoke", "--set", "name=dysharp"], "name='dysharp': a run must have a name of its own"),
        (["--config", "smoke", "--set", "name=random"], "name='random': a run must have a name of its own"),
        (["--config", "smoke", "--set", "torch_threads=257"], "torch_threads=257"),
        (["--config", "smoke", "--set", "policy.hidden=4097"], "policy.hidden=4097"),
        (["--config", "smoke", "--set", "policy.value_hidden=4097"], "policy.value_hidden=4097"),
        (["--config", "smoke", "--set", "ppo.learning_rate=1.5"], "ppo.learning_rate=1.5"),
        (["--config", "smoke", "--set", "ppo.batch_size=73"], "ppo.batch_size=73 leaves a last batch of 1 of"),
        (["--config", "smoke", "--run-dir", ""], "run-dir='' must name a folder"),
        (["--resume", "no/such/run"], "run folder 'no/such/run' does not exist"),
        (["--resume", ""], "run folder '' does not exist"),
        ([], "one of the arguments --config --resume is required"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run-dir", str(tmp_path / "runs"), *argv, "--quiet"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert message in captured.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", preset_names("train"))
def test_every_shipped_configuration_can_be_read(name: str) -> None:
    spec = load_spec(TrainSpec, "train", name)
    assert spec.name == name
    is_tiny = spec.evolution is not None and spec.evolution.tiny > 0
    assert spec.env.seeds is not None or spec.env.suite is not None or is_tiny
