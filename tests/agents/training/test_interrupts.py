"""Ctrl-C: a run leaves a checkpoint wherever it is stopped, and goes on as if it had not been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents.train import main
from agents.training.run_folder import RunFolder
from agents.training.run_loop import TrainingRun
from agents.training.spec import TrainSpec
from agents.training.start import train
from agents.training.stopping import POLITE, alone_in
from dysharp_env.config import load_spec, parse_spec
from tests.agents.training.tiny import EVOLUTION

ROOT = Path(__file__).parents[3]
# Splits of small layers, decided on by a policy of few weights.
EVOLVED = {
    **EVOLUTION,
    "name": "evolved",
    "validation": "smoke",
    "total_decisions": 1500,
    "eval_every_decisions": 100,
}
PPO = {"total_decisions": 5120, "checkpoint_every_decisions": 1_000_000, "eval_every_decisions": 512}


def spec_of(trainer: str) -> TrainSpec:
    if trainer == "PPO":
        return load_spec(TrainSpec, "train", "smoke").with_changes(PPO)
    return parse_spec(TrainSpec, EVOLVED, source="test")


@contextmanager
def heard(number: signal.Signals) -> Iterator[None]:
    """Has a signal heard here and in processes that begin meanwhile.

    Tests that a shell runs behind it have SIGINT ignored, and those under ``nohup`` SIGHUP, which trainings respect.
    """
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(number, before)


def last_state(folder: RunFolder) -> dict[str, bytes]:
    last = folder.checkpoints()[-1]
    return {path.name: path.read_bytes() for path in last.iterdir() if path.suffix == ".safetensors"}


def stopped_after(updates: int, spec: TrainSpec, folder: RunFolder) -> None:
    """Trains until so many updates are done, then interrupts in the middle of the next."""
    done = 0

    def watch(run: TrainingRun) -> None:
        nonlocal done
        done += run.decisions > 0
        if done > updates:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, folder, watch=watch)


def test_other_episodes_begin_where_they_are_asked_for(tmp_path: Path) -> None:
    spec, folder = spec_of("PPO"), RunFolder.create(tmp_path, "run", 0)
    stopped_after(1, spec, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of actions that are masked, as those before were of other layers
        train(spec.with_changes({"env.tokens": 8}), folder, resume=True)
    assert folder.read_meta()["decisions"] == spec.total_decisions


@pytest.mark.parametrize("trainer", ["PPO", pytest.param("evolution", marks=pytest.mark.slow)])
def test_a_run_stopped_before_its_first_checkpoint_ends_as_one_that_was_not(trainer: str, tmp_path: Path) -> None:
    config, spec = tmp_path / "config.yaml", spec_of(trainer)
    config.write_text(spec.to_yaml())
    command = [sys.executable, "-m", "agents.train", "--config", str(config), "--run-dir", str(tmp_path / "runs")]
    with heard(signal.SIGINT):
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "decisions (" in line and "(0%)" not in line:
            process.send_signal(signal.SIGINT)
            break
    said += process.stderr.read()
    assert process.wait() == 130, said
    (path,) = (tmp_path / "runs").iterdir()
    halves, whole = RunFolder(path), RunFolder.create(tmp_path, "whole", 0)
    start, stopped = halves.checkpoints()
    done = int(stopped.name)
    assert start.name == "0"
    assert 0 < done < spec.total_decisions
    assert f"stopped at {done:,} decisions; continue with: python -m agents.train --resume {path}" in said
    train(spec, halves, resume=True)
    train(spec, whole)
    assert last_state(halves) == last_state(whole)
    timed = "episodes.csv" if trainer == "PPO" else "generations.csv"
    for table, columns in (("evaluations.csv", None), (timed, -1)):  # the last is wall time
        lines = [(run.path / table).read_text().splitlines() for run in (whole, halves)]
        assert [row.split(",")[:columns] for row in lines[0]] == [row.split(",")[:columns] for row in lines[1]]


@pytest.mark.parametrize("number", POLITE)
def test_signals_that_ask_to_end_do_what_ctrl_c_does(number: signal.Signals, tmp_path: Path) -> None:
    spec, folder = spec_of("PPO"), RunFolder.create(tmp_path, "run", 0)

    def watch(run: TrainingRun) -> None:
        if run.decisions > 0:
            os.kill(os.getpid(), number)

    with heard(number):
        with pytest.raises(KeyboardInterrupt):
            train(spec, folder, watch=watch)
        assert int(folder.checkpoints()[-1].name) > 0 and signal.getsignal(number) is signal.SIG_DFL


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.create(tmp_path, "run", 0)
    stopped_after(1, spec_of("PPO"), folder)
    code = (
        "import sys; from pathlib import Path; from agents.training.stopping import alone_in\n"
        "with alone_in(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(folder.path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None and other.stdout.readline() == b"in\n"
    rows = (folder.path / "episodes.csv").read_bytes()
    assert main(["--resume", str(folder.path), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert f"error: run folder '{folder.path}' is in use: another process trains there\n" in error
    assert (folder.path / "episodes.csv").read_bytes() == rows
    # A lock does not outlive its process, however that ends.
    other.kill()
    other.wait()
    with alone_in(folder.path):
        pass
