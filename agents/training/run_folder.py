"""A run folder: everything one training run wrote, readable without executing anything.

    config.yaml        the TrainSpec the run was made with
    command.txt        the command lines, first and resumed
    meta.json          every process that trained: commit, versions, machine, start, end, changed settings; the result
    events.*           TensorBoard
    episodes.csv       one line per training episode
    evaluations.csv    one line per validation
    checkpoints/N/     policy, optimiser, counters, settings and the best policy after N decisions, with checksums
    best/              the policy with the best validation ratio
    not-finite/        what training met that is no number, where it did; see finite.py

Weights are safetensors with a JSON file beside them. Files are written under another name and moved into place, folders
likewise, so a run that is killed leaves whole ones behind.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from dysharp_env.config import ConfigError, Spec
from dysharp_env.files import read_mapping, read_text, write_text

from ..policies.candidate_policy import CandidatePolicy
from ..policies.card import PolicyCard
from ..policies.files import policy_files
from .checkpoint import with_sums
from .durable import clean, remove_folder, replace_folder, sync, write_folder, writing
from .finite import FOLDER
from .stopping import held

_KEPT = 2  # checkpoints
_MOST_BYTES = 1 << 30  # of a table
_STALE_S = 3600.0  # after which nobody is still making a folder
_FILES = ("config.yaml", "command.txt", "meta.json", "episodes.csv", "evaluations.csv", "generations.csv")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run, and how its files are read and written."""

    path: Path

    @classmethod
    def create(cls, root: Path, name: str, seed: int, spec: Spec | None = None) -> RunFolder:
        """Makes ``root/NAME__SEED__TIMESTAMP``; a second run in the same second gets a number behind it.

        With a spec it is never there without its ``config.yaml``, which is all that ``--resume`` needs.

        Raises:
            ConfigError: The folder cannot be made; then there is none.
        """
        stem = f"{name}__{seed}__{time.strftime('%Y%m%d-%H%M%S')}"
        files = {} if spec is None else {"config.yaml": spec.to_yaml().encode()}
        partial = root / f".{stem}.{os.getpid()}.partial"
        try:
            root.mkdir(parents=True, exist_ok=True)
            _forget_partial(root)
            write_folder(partial, files)
            path = _moved(partial, root, stem)
            sync(root)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise ConfigError(f"cannot make a run folder in run-dir='{root}': {error.strerror}") from None
        return cls(path)

    # Configuration and provenance.

    def write_config(self, spec: Spec) -> None:
        """Writes ``config.yaml``."""
        self._write("config.yaml", spec.to_yaml())

    def add_command(self, argv: Sequence[str]) -> None:
        """Adds a command line to ``command.txt``.

        Raises:
            ConfigError: The file is damaged or cannot be written.
        """
        path = self.path / "command.txt"
        before = read_text(path, _MOST_BYTES) if path.is_file() else ""
        self._write("command.txt", before + shlex.join(argv) + "\n")

    def write_meta(self, values: Mapping[str, Any]) -> None:
        """Writes ``meta.json``."""
        self._write("meta.json", json.dumps(values, indent=2) + "\n")

    def _write(self, name: str, text: str) -> None:
        with held():
            write_text(self.path / name, text)

    def read_meta(self) -> dict[str, Any]:
        """Returns the content of ``meta.json``, empty if there is none.

        Raises:
            ConfigError: It is damaged.
        """
        path = self.path / "meta.json"
        return read_mapping(path) if path.is_file() else {}

    # Tables.

    def append_rows(self, name: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Adds lines to a CSV, with a header if it is new.

        Raises:
            ConfigError: It cannot be written.
        """
        path = self.path / name
        if not path.is_file():
            self.replace_rows(name, header, [])  # in one step: half a header would be damage
        with writing(path), path.open("a", encoding="utf-8") as file:
            file.write(_csv_text(rows))

    def read_rows(self, name: str, header: Sequence[str]) -> list[list[str]]:
        """Returns the lines of a CSV below its header; there are none if there is no such file.

        Raises:
            ConfigError: It is damaged: another header, or something that is no number outside the column ``workload``.
        """
        path = self.path / name
        if not path.is_file():
            return []
        # Lines are added without a copy, so a run that was killed may have left half a line at the end.
        text = read_text(path, _MOST_BYTES)
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
        self._write(name, _csv_text([header, *rows]))

    # Policies and checkpoints.

    @property
    def best(self) -> Path:
        """Folder of the best policy."""
        return self.path / "best"

    def checkpoints(self) -> list[Path]:
        """Returns the folders of whole checkpoints, oldest first."""
        found = (path for path in (self.path / "checkpoints").glob("*") if path.name.isdecimal())
        return sorted(found, key=lambda path: int(path.name))

    def newest_checkpoint(self) -> Path | None:
        """Returns the folder of the newest checkpoint, whose name is the number of decisions; None: there is none."""
        return next(reversed(self.checkpoints()), None)

    def save_best(self, policy: CandidatePolicy, card: PolicyCard) -> dict[str, bytes]:
        """Replaces the best policy, weights and card in one step, and returns its files.

        Raises:
            ConfigError: It cannot be written.
        """
        files = policy_files(policy, card)
        self.put_best_back(files)
        return files

    def put_best_back(self, files: Mapping[str, bytes]) -> None:
        """Replaces the best policy by the files of an earlier one; see ``save_best``."""
        replace_folder(self.best, files)

    def save_checkpoint(self, decisions: int, files: Mapping[str, bytes]) -> None:
        """Saves files, by path, that continue training after so many decisions; of all checkpoints the newest stay.

        Lines of tables from before it are on the disk before it is.

        Raises:
            ConfigError: It cannot be written; checkpoints from before are as they were.
        """
        for table in self.path.glob("*.csv"):
            with writing(table):
                sync(table)
        replace_folder(self.path / "checkpoints" / str(decisions), with_sums(files))
        for old in self.checkpoints()[:-_KEPT]:
            remove_folder(old)

    def go_back_to(self, decisions: int) -> None:
        """Removes checkpoints of later decisions, which will be made again, and what killed processes have left.

        Raises:
            ConfigError: Something cannot be removed.
        """
        folder = self.path / "checkpoints"
        clean(self.path, (*_FILES, "best", FOLDER))
        clean(folder, {left.name.split(".")[1] for left in folder.glob(".*.*")})
        for later in self.checkpoints():
            if int(later.name) > decisions:
                remove_folder(later)

    def way_on(self) -> str:
        """Returns how to go on with the run."""
        newest = self.newest_checkpoint()
        where = f"at {int(newest.name):,} decisions" if newest else "before the first checkpoint"
        return f"stopped {where}; continue with: python -m agents.train --resume {shlex.quote(str(self.path))}"


def _moved(partial: Path, root: Path, stem: str) -> Path:
    """Gives a folder the first name of these that is free: the stem, then with a number behind it."""
    for attempt in count():
        path = root / (stem if attempt == 0 else f"{stem}-{attempt}")
        if path.exists():
            continue
        try:
            return partial.rename(path)
        except OSError:
            if not path.exists():  # if it does, somebody has made it since
                raise
    raise AssertionError("numbers never end")


def _forget_partial(root: Path) -> None:
    """Removes run folders that somebody was killed while making."""
    for left in root.glob(".*__*.partial"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left)


def _csv_text(rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
