"""A run folder: everything one training run wrote, readable without executing anything.

    config.yaml        the TrainSpec the run was made with
    command.txt        the command lines, first and resumed
    meta.json          commit, versions, machine, seed, start and end
    events.*           TensorBoard
    episodes.csv       one line per training episode
    evaluations.csv    one line per validation
    checkpoints/N/     policy, optimiser and counters after N decisions
    best/              the policy with the best validation ratio

Weights are safetensors with a JSON file beside them. Files are written under another name and moved into place, so a
run that is killed leaves whole files behind.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save

from agents.policy import CandidatePolicy
from agents.weights import (
    load_weights,
    optimizer_tensors,
    read_card,
    read_json,
    read_tensors,
    restore_optimizer,
    save_policy,
)
from dysharp_env import __version__
from dysharp_env.config import ConfigError, Spec, read_yaml
from dysharp_env.report.files import write_bytes, write_text

_PACKAGES = ("torch", "stable-baselines3", "sb3-contrib", "gymnasium", "numpy", "numba", "safetensors")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and how its files are read and written."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str, seed: int) -> RunFolder:
        """Makes ``root/NAME__SEED__TIMESTAMP``; a second run in the same second gets a number behind it.

        Raises:
            ConfigError: The folder cannot be made.
        """
        stem = f"{name}__{seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            for attempt in range(1000):
                path = root / (stem if attempt == 0 else f"{stem}-{attempt}")
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                return cls(path)
        except OSError as error:
            raise ConfigError(f"cannot make a run folder in run-dir='{root}': {error.strerror}") from None
        raise ConfigError(f"run-dir='{root}' holds too many runs named '{stem}'")

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Returns an existing run.

        Raises:
            ConfigError: There is no run at ``path``.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise ConfigError(f"run folder '{path}' does not exist")
        if not (folder.path / "config.yaml").is_file():
            raise ConfigError(f"'{path}' is not a run folder: it has no config.yaml")
        return folder

    # Configuration and provenance.

    def write_config(self, spec: Spec) -> None:
        """Writes ``config.yaml``."""
        text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, width=120)
        write_text(self.path / "config.yaml", text)

    def read_config(self) -> dict[str, Any]:
        """Returns the content of ``config.yaml``.

        Raises:
            ConfigError: It cannot be read.
        """
        return read_yaml(self.path / "config.yaml")

    def add_command(self, argv: Sequence[str]) -> None:
        """Adds a command line to ``command.txt``."""
        path = self.path / "command.txt"
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        write_text(path, before + " ".join(argv) + "\n")

    def write_meta(self, values: Mapping[str, Any]) -> None:
        """Writes ``meta.json``: what is known of code and machine, what it held before, and ``values`` on top."""
        meta = {**describe_machine(), **self.read_meta(), **values}
        write_text(self.path / "meta.json", json.dumps(meta, indent=2) + "\n")

    def read_meta(self) -> dict[str, Any]:
        """Returns the content of ``meta.json``, empty if there is none.

        Raises:
            ConfigError: It is damaged.
        """
        path = self.path / "meta.json"
        return read_json(path) if path.is_file() else {}

    # Tables.

    def append_rows(self, name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Adds lines to a CSV, with a header if it is new."""
        path = self.path / name
        new = not path.is_file()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if new:
            writer.writerow(header)
        writer.writerows(rows)
        with path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())

    def drop_rows_after(self, name: str, decisions: int) -> None:
        """Removes the lines of a CSV whose first column exceeds ``decisions``: a resumed run writes them again."""
        path = self.path / name
        if path.is_file():
            header, *lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if int(line.split(",", 1)[0]) <= decisions]
            write_text(path, "\n".join([header, *kept]) + "\n")

    # Policies and checkpoints.

    @property
    def best(self) -> Path:
        """Folder of the best policy."""
        return self.path / "best"

    def checkpoints(self) -> list[Path]:
        """Returns the folders of whole checkpoints, oldest first."""
        found = (path for path in (self.path / "checkpoints").glob("*") if path.name.isdecimal())
        return sorted(found, key=lambda path: int(path.name))

    def save_best(self, policy: CandidatePolicy, decisions: int, validation_ratio: float) -> None:
        """Replaces the best policy."""
        self.best.mkdir(exist_ok=True)
        save_policy(self.best, policy, decisions, validation_ratio)

    def save_checkpoint(self, policy: CandidatePolicy, counters: Spec, decisions: int, keep: int = 2) -> None:
        """Saves all that continues training, under the number of decisions; only the ``keep`` newest stay."""
        final = self.path / "checkpoints" / str(decisions)
        partial = final.with_name(f".{decisions}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_policy(partial, policy, decisions, None)
        write_bytes(partial / "optimizer.safetensors", save(optimizer_tensors(policy.optimizer)))
        write_text(partial / "counters.json", counters.model_dump_json(indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def restore_checkpoint(self, policy: CandidatePolicy) -> dict[str, Any]:
        """Loads the newest checkpoint into ``policy`` and its optimiser and returns the counters.

        Raises:
            ConfigError: There is no checkpoint, or it is damaged or of another shape.
        """
        folders = self.checkpoints()
        if not folders:
            raise ConfigError(f"run folder '{self.path}' has no checkpoint to resume from")
        read_card(folders[-1])
        load_weights(folders[-1], policy)
        tensors = read_tensors(folders[-1] / "optimizer.safetensors")
        try:
            restore_optimizer(policy.optimizer, tensors)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ConfigError(f"'{folders[-1]}/optimizer.safetensors' does not fit the policy: {error}") from None
        return read_json(folders[-1] / "counters.json")


def describe_machine() -> dict[str, Any]:
    """Returns versions, commit and machine, for ``meta.json``."""
    return {
        "version": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in _PACKAGES},
        "machine": {"platform": platform.platform(), "cores": os.cpu_count(), "processor": _processor()},
    }


def _git_commit() -> str | None:
    try:
        here = Path(__file__).resolve().parent
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    if sys.platform.startswith("linux"):
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor()
