"""Whoever works, evaluation, search, evolution and headroom end in the same bytes as in this process."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agents import evaluate, headroom, search, train
from agents.evaluation import table
from agents.opponents.read import read_contenders
from agents.training.run_folder import RunFolder
from agents.training.spec import TrainSpec
from agents.training.start import train as train_into
from dysharp_env.__main__ import main as dysharp_env
from dysharp_env.config import parse_spec
from dysharp_env.schedules import Problem
from dysharp_env.workers import Workers
from dysharp_env.workers.cluster import Cluster
from dysharp_env.workload.suite import load_suite

RAY = ("--engine", "ray", "--workers", "2")
WORKLOADS = [
    {"model": "deepseek-v2-lite", "tokens": 32, "routing": "dsv2-lite", "seeds": [0, 2]},
    {"model": "deepseek-v2-lite", "tokens": 8, "routing": "uniform", "seeds": [0, 1]},
]


@pytest.fixture
def suite(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps({"name": "tiny", "workloads": WORKLOADS}))
    return str(path)


@pytest.fixture
def cluster(ray_cluster: None) -> Iterator[Cluster]:
    with Cluster(2) as opened:
        yield opened


def test_an_evaluation(suite: str, tmp_path: Path, ray_cluster: None, steered_run: str) -> None:
    policies = ["random", "dysharp-order", "look-ahead:dysharp", "dysharp+moonep", steered_run]
    argv = ["--suite", suite, "--rollouts", "20", *(word for name in policies for word in ("--policy", name))]
    files = [tmp_path / "here.json", tmp_path / "processes.json", tmp_path / "ray.json"]
    for file, engine in zip(files, ((), ("--workers", "2"), RAY), strict=True):
        assert evaluate.main([*argv, "--json", str(file), *engine]) == 0
    first, second, third = (file.read_bytes() for file in files)
    assert first == second == third


def test_a_search(suite: str, tmp_path: Path, ray_cluster: None) -> None:
    files = [tmp_path / "here.yaml", tmp_path / "ray.yaml"]
    for file, engine in zip(files, ((), RAY), strict=True):
        argv = ["--suite", suite, "--out", str(file), "--start", "dysharp-l2", "--episodes", "100", "--batch", "2"]
        assert search.main([*argv, "--quiet", *engine]) == 0
    # The header says how many processor seconds it took.
    here, ray = ([line for line in file.read_text().splitlines() if "seconds" not in line] for file in files)
    assert here == ray


def test_an_evolution(suite: str, tmp_path: Path, cluster: Cluster) -> None:
    values = {
        "name": "evolved",
        "env": {"suite": suite, "exposed": ["gemm"]},
        "evolution": {"pairs": 2, "batch": 2},
        "validation": suite,
        "total_decisions": 4000,
    }
    spec = parse_spec(TrainSpec, values, source="test")
    runs = [RunFolder.create(tmp_path, name, 0) for name in ("here", "ray")]
    ratios = [train_into(spec, run, workers=workers) for run, workers in zip(runs, (Workers(), cluster), strict=True)]
    assert ratios[0] == ratios[1]
    for name in ("best/policy.safetensors", "evaluations.csv"):
        here, ray = (run.path.joinpath(name).read_bytes() for run in runs)
        assert here == ray


def test_headroom_and_the_paper_s_tables(
    suite: str, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dysharp_env.commands.reproduce.QUICK_DIVISOR", 64)
    quick = ["reproduce", "--quick", "--table", "tile", "--calibration", "paper"]
    spent = ["--suite", suite, "--episodes", "30", "--rollouts", "10"]
    found = []
    for name, engine in (("here", ()), ("ray", RAY)):
        files = [tmp_path / f"{name}-{what}.json" for what in ("headroom", "tables")]
        assert headroom.main([*spent, "--json", str(files[0]), *engine]) == 0
        assert dysharp_env([*quick, "--json", str(files[1]), *engine]) == 0
        found.append([file.read_bytes() for file in files])
    assert found[0] == found[1]


def test_a_worker_that_is_killed_costs_only_time(suite: str, cluster: Cluster) -> None:
    problems = Problem.of_suite(load_suite(suite).draw())
    contenders = read_contenders(["random", "look-ahead:dysharp"], rollouts=100, seeds=range(6))
    expected = table.evaluate(problems, contenders)
    (process,) = set(cluster.map(_process, [0]))
    killer = threading.Timer(0.2, os.kill, (process, signal.SIGKILL))
    killer.start()
    assert table.evaluate(problems, contenders, workers=cluster) == expected
    killer.join()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{process}").exists()
    assert table.evaluate(problems, contenders, workers=cluster) == expected


def _process(_: int) -> int:
    return os.getpid()


def test_maskable_ppo_takes_no_workers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert train.main(["--config", "demo", "--workers", "2", "--run-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: workers play for evolution; MaskablePPO")
    assert not list(tmp_path.iterdir())
