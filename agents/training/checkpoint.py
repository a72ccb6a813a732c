"""What a checkpoint holds besides what learners put into it, and whether it is as it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dysharp_env.config import ConfigError, Spec, parse_spec
from dysharp_env.files import read_mapping

SUMS = "SHA256SUMS"  # as the command sha256sum writes and checks it
COUNTERS = "counters.json"
_DIGEST = 64 + 2  # letters before a name in a line of checksums


class Counters(Spec):
    """What a checkpoint remembers besides weights and optimiser."""

    decisions: int = Field(ge=0)
    """Decisions so far."""
    updates: int = Field(ge=0)
    """Passes of the learner over its rollouts so far."""
    best_validation_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    """Lowest mean makespan over lower bound on the validation suite so far."""
    best_ratio_to_reference: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """That policy's geometric mean of makespan over the reference's."""
    wall_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds of training so far."""
    began: int | None = Field(default=None, ge=0)
    """Decisions after which the random streams and episodes began that go on behind a checkpoint that is not one of the
    regular ones; none: fresh ones begin behind it."""


def read_counters(checkpoint: Path) -> Counters:
    """Returns what a checkpoint remembers; its folder is called by the number of decisions.

    Raises:
        ConfigError: It is damaged.
    """
    path = checkpoint / COUNTERS
    counters = parse_spec(Counters, read_mapping(path), source=str(path))
    if counters.decisions != int(checkpoint.name):
        raise ConfigError(f"{path}: decisions={counters.decisions} must be the number of its folder")
    return counters


def with_sums(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Returns files with the checksums of all of them beside."""
    lines = [_line(name, content) + b"\n" for name, content in sorted(files.items())]
    return {**files, SUMS: b"".join(lines)}


def _line(name: str, content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {name}".encode()


def require_whole(folder: Path) -> None:
    """Checks the files of a folder against its checksums; those of earlier versions have none.

    Raises:
        ConfigError: A file is missing, or not what was written.
    """
    path = folder / SUMS
    if not path.is_file():
        return
    try:
        listed = path.read_bytes()
        found = [file for file in folder.rglob("*") if file.is_file() and file != path]
        files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in found}
    except OSError as error:
        raise ConfigError(f"cannot read '{error.filename or folder}': {error.strerror}") from None
    if listed == with_sums(files)[SUMS]:
        return
    names = {line[_DIGEST:].decode(errors="replace"): line for line in listed.splitlines()}
    for name in sorted(names.keys() | files.keys()):
        if name not in files:
            raise ConfigError(f"'{folder / name}' is missing")
        if names.get(name) != _line(name, files[name]):
            raise ConfigError(f"'{folder / name}' is damaged: its checksum is not that of {SUMS}")
    raise ConfigError(f"'{path}' is damaged: it is not as it was written")
