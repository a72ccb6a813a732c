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
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from dysharp_env import __version__
from dysharp_env.config import ConfigError, Spec
from dysharp_env.report.files import write_bytes, write_text

from ..policies.candidate_policy import CandidatePolicy
from ..policies.card import PolicyCard, read_json
from ..policies.files import policy_files

_KEPT = 2  # checkpoints
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
            for attempt in count():
                path = root / (stem if attempt == 0 else f"{stem}-{attempt}")
                with suppress(FileExistsError):
                    path.mkdir()
                    break
        except OSError as error:
            raise ConfigError(f"cannot make a run folder in run-dir='{root}': {error.strerror}") from None
        return cls(path)

    # Configuration and provenance.

    def write_config(self, spec: Spec) -> None:
        """Writes ``config.yaml``."""
        write_text(self.path / "config.yaml", as_yaml(spec))

    def add_command(self, argv: Sequence[str]) -> None:
        """Adds a command line to ``command.txt``.

        Raises:
            ConfigError: The file is damaged or cannot be written.
        """
        path = self.path / "command.txt"
        before = _read_text(path) if path.is_file() else ""
        write_text(path, before + shlex.join(argv) + "\n")

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
        """Adds lines to a CSV, with a header if it is new.

        Raises:
            ConfigError: It cannot be written.
        """
        path = self.path / name
        text = _csv_text(rows if path.is_file() else [header, *rows])
        with _writing(path), path.open("a", encoding="utf-8") as file:
            file.write(text)

    def read_rows(self, name: str, header: Sequence[str]) -> list[list[str]]:
        """Returns the lines of a CSV below its header; there are none if there is no such file.

        Raises:
            ConfigError: It is damaged: another header, or something that is no number outside the column ``workload``.
        """
        path = self.path / name
        if not path.is_file():
            return []
        # Lines are added without a copy, so a run that was killed may have left half a line at the end.
        text = _read_text(path)
        whole = text[: text.rfind("\n") + 1]
        try:
            found, *rows = csv.reader(io.StringIO(whole, newline=""), strict=True)
        except (csv.Error, ValueError):
            raise ConfigError(f"'{path}' is damaged: it is empty or not CSV") from None
        if found != list(header):
            raise ConfigError(f"'{path}' is damaged: its columns are {found}, not {list(header)}")
        numeric = [column for column, title in enumerate(header) if title != "workload"]
        for number, row in enumerate(rows, start=2):
            try:
                if len(row) != len(header):
                    raise ValueError
                int(row[0])
                for column in numeric:
                    float(row[column])
            except ValueError:
                raise ConfigError(f"'{path}' is damaged: line {number} does not hold the columns' numbers") from None
        return rows

    def replace_rows(self, name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Writes a CSV anew.

        Raises:
            ConfigError: It cannot be written.
        """
        write_text(self.path / name, _csv_text([header, *rows]))

    # Policies and checkpoints.

    @property
    def best(self) -> Path:
        """Folder of the best policy."""
        return self.path / "best"

    def checkpoints(self) -> list[Path]:
        """Returns the folders of whole checkpoints, oldest first."""
        found = (path for path in (self.path / "checkpoints").glob("*") if path.name.isdecimal())
        return sorted(found, key=lambda path: int(path.name))

    def save_best(self, policy: CandidatePolicy, card: PolicyCard) -> None:
        """Replaces the best policy.

        Raises:
            ConfigError: It cannot be written.
        """
        with _writing(self.best):
            self.best.mkdir(exist_ok=True)
        for name, content in policy_files(policy, card).items():
            write_bytes(self.best / name, content)

    def save_checkpoint(self, decisions: int, files: Mapping[str, bytes]) -> None:
        """Saves files, by name, that continue training after so many decisions; of all checkpoints the newest stay.

        Raises:
            ConfigError: It cannot be written.
        """
        final = self.path / "checkpoints" / str(decisions)
        partial = final.with_name(f".{decisions}.partial")
        with _writing(final):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for name, content in files.items():
                write_bytes(partial / name, content)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for old in self.checkpoints()[:-_KEPT]:
                shutil.rmtree(old)

    def newest_checkpoint(self) -> Path:
        """Returns the folder that a run is resumed from; its name is the number of decisions.

        Raises:
            ConfigError: There is none.
        """
        folders = self.checkpoints()
        if not folders:
            raise ConfigError(f"run folder '{self.path}' has no checkpoint to resume from")
        return folders[-1]


def as_yaml(spec: Spec) -> str:
    """Returns all settings of a spec as YAML."""
    text: str = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, width=120)
    return text


def _csv_text(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"'{path}' is damaged: it is not UTF-8 text") from None


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Reports a full disk or a missing permission as a mistake of one line, as ``write_bytes`` does."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}") from None


def describe_machine() -> dict[str, Any]:
    """Returns versions, commit and machine, for ``meta.json``."""
    return {
        "version": __version__,
        "commit": _git_commit(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
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


def _processor() -> str:
    if sys.platform.startswith("linux"):
        try:
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
        except OSError:
            pass
    return platform.processor()
