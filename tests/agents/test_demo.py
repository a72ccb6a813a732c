"""The demo: trains once, then starts at once."""

import json
import re
from pathlib import Path

import pytest

from agents.demo import main


def test_the_demo_trains_once_and_says_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--config", "smoke", "--suite", "smoke", "--run-dir", str(tmp_path), "--quiet"]
    assert main(argv) == 0
    (run,) = tmp_path.iterdir()
    first = capsys.readouterr().out
    assert "Training for 4,096 decisions" in first and "held-out workloads" in first
    shown = set(re.findall(rf"{re.escape(str(run))}/(\S+)", first.partition("Look at:")[2]))
    assert shown == {"schedule.png", "timeline.json", "schedule.csv", "evaluation.png"}
    assert "evaluation.png     every workload's ratio, and evaluation.json the numbers" in first
    assert all((run / name).stat().st_size > 0 for name in (*shown, "evaluation.json"))
    assert json.loads((run / "evaluation.json").read_text())["schema"] == "dysharp/evaluate/1"
    weights = (run / "best" / "policy.safetensors").read_bytes()
    assert main(argv) == 0
    second = capsys.readouterr().out
    assert f"Using the finished run {run}" in second
    assert [path.name for path in tmp_path.iterdir()] == [run.name]
    assert (run / "best" / "policy.safetensors").read_bytes() == weights


def test_a_mistake_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", "dmo", "--run-dir", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith("error: train='dmo' is unknown")
    assert not (tmp_path / "runs").exists()
