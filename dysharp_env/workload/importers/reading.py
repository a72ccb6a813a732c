"""Reading files that may claim anything: sizes are checked before memory is taken for them, and objects never made.

Every mistake is a ``ConfigError`` of one line that begins with the file, in quotes, and the place in it. The limits are
such that an import takes less than 1 GB of memory whatever its files hold.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dysharp_env.files import ConfigError, foreign, open_file, parse_json, shown

MOST_IDS = (
    32 << 20
)  # ids of experts in all files of an import: in 2 or 4 bytes, and several copies while they are checked
MOST_RECORDS = 500_000  # records in all files of an import
MOST_LINE_BYTES = 32 << 20


def require_few_ids(layers: int, tokens: int, top_k: int) -> None:
    """Checks that a trace that is to be drawn has no more ids than one that is imported.

    Raises:
        ConfigError: It has.
    """
    if layers * tokens * top_k > MOST_IDS:
        raise ConfigError(f"tokens={tokens} of {layers} layers are more than {MOST_IDS} ids of experts")


def read_start(path: Path, count: int) -> bytes:
    """Returns the first bytes of a file.

    Raises:
        ConfigError: It does not exist or cannot be read.
    """
    if not os.path.exists(path):
        raise ConfigError(f"'{path}' does not exist")
    with open_file(path) as file, foreign(f"'{path}'", "file"):
        return file.read(count) or b""


def read_lines(path: Path, most_bytes: int = MOST_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yields the number, from 1, and the text of every line that is not blank.

    Raises:
        ConfigError: A line is too long, or the file cannot be read.
    """
    with open_file(path) as file, foreign(f"'{path}'", "file"):
        number = 0
        while line := file.readline(most_bytes + 1):
            number += 1
            if len(line) > most_bytes:
                raise ConfigError(f"'{path}' line {number}: longer than {most_bytes} bytes")
            if line := line.strip():
                yield number, line


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place, as errors name it, and the object of every line.

    Raises:
        ConfigError: A line is no JSON object.
    """
    for number, line in read_lines(path):
        where = f"'{path}' line {number}"
        record = parse_json(line, where, is_data=True)
        if not isinstance(record, dict):
            raise ConfigError(f"{where}: must be a JSON object, not {type(record).__name__}")
        yield where, record


def is_lines(path: Path) -> bool:
    """Returns whether a file of JSON has an object on each line, and more than one."""
    with open_file(path) as file:
        first = file.readline(MOST_LINE_BYTES).strip()
        while (second := file.readline(64)) and not second.strip():
            pass
    return first.startswith(b"{") and first.endswith(b"}") and second.lstrip().startswith(b"{")


def field(record: Any, key: str, kind: type, where: str) -> Any:
    """Returns the value of a key.

    Raises:
        ConfigError: ``record`` is no mapping, the key is missing, or its value is of another type.
    """
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: must be a mapping with '{key}', not {type(record).__name__}")
    if key not in record:
        raise ConfigError(f"{where}: key '{key}' is missing")
    value = record[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where}: {key}={_written(value)} must be {_NAMES.get(kind, 'given')}")
    return value


_NAMES = {int: "a whole number", str: "text", list: "a list", dict: "a mapping"}


def count_field(record: Any, key: str, where: str, least: int = 0) -> int:
    """Returns the value of a key that is a whole number from ``least``.

    Raises:
        ConfigError: It is not, or is missing.
    """
    value = int(field(record, key, int, where))
    if not least <= value < 1 << 31:
        raise ConfigError(f"{where}: {key}={_written(value)} must be a whole number from {least}")
    return value


def _written(value: Any) -> str:
    return f"'{shown(value)}'" if isinstance(value, str) else shown(value)


def array_of(value: Any, where: str, key: str) -> np.ndarray:
    """Returns nested lists as an array of numbers.

    Raises:
        ConfigError: Lists differ in length, or hold something else than numbers.
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        array = np.empty(0, object)
    if array.dtype.kind not in "iuf":
        raise ConfigError(f"{where}: {key} must hold numbers, as many in every list")
    return array


def decode_base64(text: Any, where: str, key: str) -> bytes:
    """Returns the bytes that a base64 text stands for.

    Raises:
        ConfigError: It is no text, or not base64.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{where}: {key} must be base64 text, not {type(text).__name__}")
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ConfigError(f"{where}: {key} is not base64: {error}") from None


class Budget:
    """Counts ids and records of an import, and refuses more than memory is meant for."""

    def __init__(self) -> None:
        self.ids, self.records = 0, 0

    def take(self, ids: int, where: str) -> None:
        """Counts a record of so many ids before they are copied.

        Raises:
            ConfigError: They are too many with those before.
        """
        self.ids += ids
        self.records += 1
        if self.ids > MOST_IDS:
            raise ConfigError(
                f"{where}: more than {MOST_IDS} ids of experts in all; import fewer files at a time, or fewer steps"
            )
        if self.records > MOST_RECORDS:
            raise ConfigError(f"{where}: more than {MOST_RECORDS} records in all; import fewer files at a time")
