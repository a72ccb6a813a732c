"""Reading files that may claim anything: sizes are checked before memory is taken for them, and objects never made.

Every mistake is a ``ConfigError`` of one line that begins with the file, in quotes, and the place in it. The limits are
such that an import takes less than 1 GB of memory whatever its files hold.
"""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.npz import DAMAGED

MOST_IDS = (
    32 << 20
)  # ids of experts in all files of an import: in 2 or 4 bytes, and several copies while they are checked
MOST_RECORDS = 500_000  # records in all files of an import
MOST_ARRAY_BYTES = 256 << 20  # of one array, or of all arrays of one file
MOST_JSON_BYTES = 128 << 20
MOST_LINE_BYTES = 32 << 20
_MOST_DIRECTORY_BYTES = 4 << 20  # list of members of a zip archive
# What CPython takes for a list or dict and for an entry of one, at most: numbers and short texts.
_CONTAINER_BYTES, _ENTRY_BYTES, _MOST_OBJECT_BYTES = 64, 48, 384 << 20


def require_size(path: Path, most: int, what: str) -> None:
    """Checks that a file is not too large to be read at once.

    Raises:
        ConfigError: It is, or it cannot be read.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from None
    if size > most:
        raise ConfigError(f"'{path}': {size >> 20} MB of {what}; at most {most >> 20} MB can be read")


def read_start(path: Path, count: int) -> bytes:
    """Returns the first bytes of a file.

    Raises:
        ConfigError: It does not exist or cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"'{path}' does not exist")
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from None


def read_json(path: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        ConfigError: It is too large, unreadable, or not JSON.
    """
    require_size(path, MOST_JSON_BYTES, "JSON")
    return parse_json(path.read_bytes(), f"'{path}'")


def parse_json(text: bytes, where: str) -> Any:
    """Returns what a JSON text holds; characters beyond ASCII, which no format needs, come out as other ones.

    Raises:
        ConfigError: It is not JSON, or would take too much memory.
    """
    containers = text.count(b"[") + text.count(b"{")
    size = _CONTAINER_BYTES * containers + _ENTRY_BYTES * (text.count(b",") + containers)
    if size > _MOST_OBJECT_BYTES:
        raise ConfigError(
            f"{where}: {size >> 20} MB of numbers as JSON; at most {_MOST_OBJECT_BYTES >> 20} MB are read"
        )
    try:
        # One byte a character: as UTF-8, a single emoji would make all of them take four.
        return json.loads(text.removeprefix(b"\xef\xbb\xbf").decode("latin-1"), parse_constant=_refuse_constant)
    except RecursionError:
        raise ConfigError(f"{where}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"{where}: not valid JSON: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def read_lines(path: Path, most_bytes: int = MOST_LINE_BYTES) -> Iterator[tuple[int, bytes]]:
    """Yields the number, from 1, and the text of every line that is not blank.

    Raises:
        ConfigError: A line is too long, or the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(most_bytes + 1):
                number += 1
                if len(line) > most_bytes:
                    raise ConfigError(f"'{path}' line {number}: longer than {most_bytes} bytes")
                if line := line.strip():
                    yield number, line
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from None


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place, as errors name it, and the object of every line.

    Raises:
        ConfigError: A line is no JSON object.
    """
    for number, line in read_lines(path):
        where = f"'{path}' line {number}"
        record = parse_json(line, where)
        if not isinstance(record, dict):
            raise ConfigError(f"{where}: must be a JSON object, not {type(record).__name__}")
        yield where, record


def is_lines(path: Path) -> bool:
    """Returns whether a file of JSON has an object on each line, and more than one."""
    with path.open("rb") as file:
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
        raise ConfigError(f"{where}: {key}={_shown(value)} must be {_NAMES.get(kind, 'given')}")
    return value


_NAMES = {int: "a whole number", str: "text", list: "a list", dict: "a mapping"}


def count_field(record: Any, key: str, where: str, least: int = 0) -> int:
    """Returns the value of a key that is a whole number from ``least``.

    Raises:
        ConfigError: It is not, or is missing.
    """
    value = int(field(record, key, int, where))
    if not least <= value < 1 << 31:
        raise ConfigError(f"{where}: {key}={_shown(value)} must be a whole number from {least}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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


def array_of_npy(content: bytes, where: str) -> np.ndarray:
    """Returns the array that the bytes of an .npy file hold, without copying it.

    Raises:
        ConfigError: The header is damaged, of Python objects, or claims other than what follows.
    """
    stream = io.BytesIO(content)
    shape, is_fortran, dtype = _npy_header(stream, where)
    data = memoryview(content)[stream.tell() :]
    if prod(shape) * dtype.itemsize != len(data):
        raise ConfigError(f"{where}: the .npy header says {dtype} of shape {shape}, but {len(data)} bytes follow")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _npy_header(stream: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    try:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, is_fortran, dtype = read(stream)
    except (*DAMAGED, TypeError, RecursionError):
        raise ConfigError(f"{where}: not a whole .npy array") from None
    if dtype.kind not in "iuf":
        raise ConfigError(f"{where}: holds {dtype}, not numbers; arrays of Python objects are never read")
    return shape, is_fortran, dtype


def read_npy(path: Path) -> np.ndarray:
    """Returns the array of an .npy file.

    Raises:
        ConfigError: It is too large or damaged, or holds no numbers.
    """
    require_size(path, MOST_ARRAY_BYTES, "array")
    return array_of_npy(path.read_bytes(), f"'{path}'")


def zip_members(path: Path) -> dict[str, int]:
    """Returns the names of a zip archive's members with the bytes that each has when unpacked.

    Raises:
        ConfigError: It is damaged or lists too many members.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 16) - 22))
            tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            raise ConfigError(f"'{path}': not a whole zip archive")
        (size,) = struct.unpack("<I", tail[end + 12 : end + 16])
        if size > _MOST_DIRECTORY_BYTES:
            raise ConfigError(f"'{path}': its list of members takes {size >> 20} MB; at most 4 MB are read")
        with zipfile.ZipFile(path) as archive:
            return {member.filename: member.file_size for member in archive.infolist()}
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"'{path}': not a whole zip archive") from None


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
