"""Checkpoints: there from the start and as time goes by, whole or not at all, and a damaged one costs one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from agents.train import main
from agents.training import durable
from agents.training.checkpoint import SUMS, require_whole
from agents.training.durable import clean, remove_folder, replace_folder
from agents.training.ppo import Learner, PpoRun
from agents.training.run_folder import RunFolder
from agents.training.run_loop import TrainingRun
from agents.training.spec import TrainSpec, read_spec
from agents.training.start import start_run, train
from agents.training.stopping import Stop, held, politely
from dysharp_env.config import ConfigError, load_spec

SMALL = {"total_decisions": 1536, "checkpoint_every_decisions": 1024, "eval_every_decisions": 1024, "pictures": False}
SMALL |= {"opponents": ()}


def small(**changes: object) -> TrainSpec:
    return load_spec(TrainSpec, "train", "smoke").with_changes({**SMALL, **changes})


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def weights(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.checkpoints()[-1].glob("*.safetensors")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with checkpoints after 1,024 and 1,536 decisions."""
    folder = start_run(small(), tmp_path_factory.mktemp("runs"))
    train(small(), folder)
    return folder


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(trained.path, tmp_path / "run")))


def restored(folder: RunFolder) -> PpoRun:
    training = PpoRun(read_spec(folder), folder, lambda _: None)
    training.restore()
    return training


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, Callable[[Path], object]] = {"flip": flip, "truncate": truncate, "unlink": Path.unlink}


def test_every_damage_to_every_file_of_a_checkpoint_is_found(run: RunFolder) -> None:
    last = run.checkpoints()[-1]
    require_whole(last)
    files = [path for path in last.rglob("*") if path.is_file()]
    assert {"policy.safetensors", "optimizer.safetensors", "policy.json", "counters.json", "config.yaml"} <= {
        path.name for path in files
    }
    for path in files:
        whole = path.read_bytes()
        for name, damage in DAMAGES.items():
            damage(path)
            if path.name == SUMS and name == "unlink":
                require_whole(last)  # as earlier versions left them
            else:
                with pytest.raises(ConfigError, match="is damaged|is missing"):
                    require_whole(last)
            path.write_bytes(whole)
    require_whole(last)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_gone_on_from(
    run: RunFolder, trained: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run.checkpoints()[-1]
    flip(last / "optimizer.safetensors")
    assert main(["--resume", str(run.path), "--quiet"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == (
        f"'{last}/optimizer.safetensors' is damaged: its checksum is not that of {SUMS};"
        " goes on from the checkpoint before, at 1,024 decisions"
    )
    assert weights(run) == weights(trained) and names(run.path / "checkpoints") == ["1024", "1536"]
    assert (run.path / "evaluations.csv").read_bytes() == (trained.path / "evaluations.csv").read_bytes()


def test_without_a_whole_checkpoint_nothing_is_touched(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for checkpoint, damage in zip(run.checkpoints(), (truncate, Path.unlink), strict=True):
        damage(checkpoint / "policy.safetensors")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert main(["--resume", str(run.path), "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"error: '{run.path}/checkpoints/1536/policy.safetensors' is missing; nor is there another whole checkpoint\n"
    )
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["policy.safetensors", "policy.json"])
def test_a_damaged_best_policy_is_named_and_put_back(
    run: RunFolder, trained: RunFolder, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run.best / name).write_bytes(b"{")
    assert main(["--resume", str(run.path), "--quiet"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert f"'{run.best / name}' is damaged" in said[0] and "puts back the best policy" in said[0]
    assert {path.name: path.read_bytes() for path in run.best.iterdir()} == {
        path.name: path.read_bytes() for path in trained.best.iterdir()
    }


def test_weights_that_are_not_those_of_the_card_are_refused(run: RunFolder) -> None:
    flip(run.best / "policy.safetensors")
    with pytest.raises(ConfigError, match="policy.safetensors' is damaged"):
        from agents.policies.files import load_policy

        load_policy(run.best)


def test_what_killed_processes_leave_is_cleaned_when_a_run_goes_on(run: RunFolder) -> None:
    left = ["checkpoints/.512.partial", "checkpoints/.1024.gone", ".best.partial"]
    for name in left:
        (run.path / name).mkdir()
        (run.path / name / "policy.json").write_text("{")
    (run.path / ".meta.json.abcd").write_text("{")
    (run.path / ".mine").write_text("is kept")
    assert main(["--resume", str(run.path), "--quiet"]) == 0
    assert [path.name for path in run.path.rglob(".*")] == [".mine"]


def test_a_run_without_a_checkpoint_begins_anew(trained: RunFolder, tmp_path: Path) -> None:
    folder = start_run(small(), tmp_path)
    (folder.path / "episodes.csv").write_text("decis")  # killed while it wrote its first table
    train(small(), folder, resume=True)
    assert weights(folder) == weights(trained)
    assert len((folder.path / "episodes.csv").read_text().splitlines()) == len(
        (trained.path / "episodes.csv").read_text().splitlines()
    )


def test_a_run_stopped_before_its_first_update_goes_on_from_the_start(trained: RunFolder, tmp_path: Path) -> None:
    folder = start_run(small(), tmp_path)

    def watch(run: TrainingRun) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(small(), folder, watch=watch)
    assert names(folder.path / "checkpoints") == ["0"]
    train(small(), folder, resume=True)
    assert weights(folder) == weights(trained)


def test_checkpoints_by_time_change_nothing_that_is_learned(trained: RunFolder, tmp_path: Path) -> None:
    seen: list[list[str]] = []
    spec = small(checkpoint_minutes=0)
    folder = start_run(spec, tmp_path)
    train(spec, folder, watch=lambda run: seen.append(names(folder.path / "checkpoints")))
    assert seen == [["0"], ["0", "512"], ["1024", "512"], ["1024", "1536"]]
    assert weights(folder) == weights(trained)


def test_a_changed_environment_is_gone_on_with_after_a_kill(tmp_path: Path) -> None:
    """Episodes begin anew with it, and later checkpoints lead to where those are."""
    spec = small(checkpoint_minutes=0, total_decisions=4096, checkpoint_every_decisions=1_000_000)
    folder = start_run(spec, tmp_path)

    def until(decisions: int) -> Callable[[TrainingRun], None]:
        def watch(run: TrainingRun) -> None:
            if run.decisions >= decisions:
                raise KeyboardInterrupt

        return watch

    with pytest.raises(KeyboardInterrupt):
        train(spec, folder, watch=until(512))
    changed = spec.with_changes({"env.tokens": 8, "total_decisions": 2048})
    with pytest.raises(KeyboardInterrupt):
        train(changed, folder, resume=True, watch=until(1024))
    before = shutil.copytree(folder.path, tmp_path / "other")
    assert read_spec(folder) == changed
    train(changed, folder, resume=True)
    # A process that was killed before its first checkpoint has left its settings, and none of what it learned.
    other = RunFolder(before)
    other.write_config(changed.with_changes({"env.tokens": 16}))
    train(changed, other, resume=True)
    assert weights(other) == weights(folder)


def test_meta_keeps_every_process_and_what_it_changed(run: RunFolder) -> None:
    first = run.read_meta()["processes"]
    assert main(["--resume", str(run.path), "--quiet", "--set", "total_decisions=2048", "--seed", "7"]) == 0
    meta = run.read_meta()
    assert meta["processes"][:1] == first and len(meta["processes"]) == 2
    second = meta["processes"][1]
    assert second["changes"] == {"total_decisions": [1536, 2048], "seed": [0, 7]}
    assert (second["from_decisions"], second["to_decisions"], second["end"]) == (1536, 2048, "finished")
    assert second["commit"] == first[0]["commit"] and second["packages"]["numpy"] and second["ended"]
    assert yaml.safe_load((run.path / "config.yaml").read_text())["total_decisions"] == 2048
    assert meta["started"] <= second["started"] and meta["finished"] == second["ended"]


def test_meta_of_an_earlier_version_becomes_its_first_process(run: RunFolder) -> None:
    old = {"version": "0.0.9", "commit": "abc", "packages": {"torch": "2"}, "seed": 0, "started": "2026-01-01T00:00:00"}
    (run.path / "meta.json").write_text(json.dumps(old))
    assert main(["--resume", str(run.path), "--quiet"]) == 0
    meta = run.read_meta()
    assert "version" not in meta and meta["started"] == "2026-01-01T00:00:00"
    assert meta["processes"][0] == {key: value for key, value in old.items() if key != "seed"}
    assert meta["processes"][1]["end"] == "finished"


class KilledError(BaseException):
    """What a process that is killed does next: nothing."""


@pytest.mark.parametrize("exchanging", [True, False])
def test_a_folder_is_replaced_as_a_whole_or_not_at_all(
    exchanging: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = {"a": b"old", "b/c": b"old"}, {"a": b"new", "b/c": b"new"}
    left, error = 0, OSError(errno.ENOSPC, "No space left on device")

    def failing(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                raise error
            return real(*args, **more)

        return call

    if not exchanging:
        monkeypatch.setattr(durable, "_exchange", lambda one, other: False)
    for owner, name in ((os, "fsync"), (os, "replace"), (os, "mkdir"), (Path, "open")):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    outcomes = []
    for at in range(1, 30):
        folder = tmp_path / str(at) / "folder"
        replace_folder(folder, old)
        left = at
        try:
            replace_folder(folder, new)
        except ConfigError as told:
            assert str(told) == f"cannot write '{folder}': No space left on device"
        left = 0
        content = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert content in (old, new), at
        outcomes.append(content == new)
        assert names(folder.parent) == ["folder"], at
    assert outcomes[0] is False and outcomes[-1] is True


def test_a_swap_of_two_steps_that_a_kill_divides_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "_exchange", lambda one, other: False)
    folder = tmp_path / "best"
    replace_folder(folder, {"a": b"old"})
    real, calls = os.replace, []

    def replace(one: Path, other: Path) -> None:
        calls.append(one)
        if len(calls) == 2:
            raise KilledError
        real(one, other)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **more: None)
    with pytest.raises(KilledError):
        replace_folder(folder, {"a": b"new"})
    monkeypatch.undo()
    assert not folder.exists()
    clean(tmp_path, ["best"])
    assert names(tmp_path) == ["best"] and (folder / "a").read_bytes() == b"old"
    remove_folder(folder)
    assert names(tmp_path) == []


def test_a_signal_that_was_swallowed_is_obeyed_at_the_next_update() -> None:
    stop = Stop()
    stop.obey()
    with pytest.raises(KeyboardInterrupt):
        stop.interrupt(15, None)
    with pytest.raises(KeyboardInterrupt):
        stop.obey()


def test_a_signal_waits_until_what_is_being_written_is_whole() -> None:
    done = []
    with politely(), pytest.raises(KeyboardInterrupt):
        with held():
            with held():
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("inner")
            done.append("outer")
        done.append("behind")
    assert done == ["inner", "outer"]
    with held():  # and is forgotten then
        pass


def test_a_training_that_cannot_start_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(run: PpoRun) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")

    argv = ["--config", "smoke", "--run-dir", str(tmp_path), "--quiet"]
    assert main([*argv, "--set", "ppo.n_steps=100000000"]) == 2  # a terabyte
    monkeypatch.setattr(PpoRun, "begin", begin)
    assert main(argv) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("validates")]
    assert len(said) == 2
    for line in said:
        assert line.startswith("error: not enough memory: it takes less with smaller num_envs")
        assert "--resume" not in line
    assert names(tmp_path) == []


def test_a_folder_that_holds_something_else_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("is kept")
    with pytest.raises(ConfigError, match="nothing"):
        train(small(reference="nothing"), RunFolder(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "is kept"


def test_a_fault_of_the_program_costs_one_update_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = Learner.update, []

    def update(learner: Learner, progress_remaining: float) -> None:
        calls.append(progress_remaining)
        if len(calls) == 3:
            raise ZeroDivisionError
        real(learner, progress_remaining)

    monkeypatch.setattr(Learner, "update", update)
    with pytest.raises(ZeroDivisionError):
        main(["--config", "smoke", "--run-dir", str(tmp_path), "--quiet"])
    (path,) = tmp_path.iterdir()
    said = f"stopped at 1,024 decisions; continue with: python -m agents.train --resume {path}"
    assert capsys.readouterr().err.splitlines()[-1] == said


def test_what_fails_later_says_how_to_go_on(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "generations.csv").unlink(missing_ok=True)
    (run.path / "config.yaml").unlink()
    (run.path / "config.yaml").write_text(small(total_decisions=2048).to_yaml())

    def failing(training: TrainingRun) -> None:
        (run.path / "episodes.csv").unlink()
        (run.path / "episodes.csv").mkdir()

    spec = small(total_decisions=4096)
    with pytest.raises(ConfigError) as told:
        train(spec, run, resume=True, watch=failing)
    assert str(told.value) == (
        f"cannot write '{run.path}/episodes.csv': Is a directory;"
        f" stopped at 2,048 decisions; continue with: python -m agents.train --resume {run.path}"
    )
    assert run.read_meta()["processes"][-1]["end"] == "failed"
