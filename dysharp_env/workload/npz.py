"""Arrays of zip archives and .npy files that may be damaged or made by other programs; objects are never read.

What a file claims is checked before memory is taken for it: the list of an archive's members, how many bytes the wanted
ones have, the header of each array. Members that nobody asks for are not looked at.
"""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zipfile
from collections.abc import Collection
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from dysharp_env.files import ConfigError, check_size, foreign, open_file, read_bytes, shown

MOST_ARRAY_BYTES = 256 << 20  # of one array, or of all arrays that are read of one file
_MOST_DIRECTORY_BYTES = 4 << 20  # list of members of a zip archive
_MOST_TEXT_BYTES = 1 << 20  # of one text in an array
_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def zip_members(path: Path, what: str = "zip archive") -> dict[str, int]:
    """Returns the names of a zip archive's members with the bytes that each has when unpacked.

    Raises:
        ConfigError: It cannot be read, is damaged or lists too many members.
    """
    with open_file(path) as file:
        return {member.filename: member.file_size for member in _opened(path, file, what).infolist()}


def _opened(path: str | Path, file: Any, what: str = "npz file") -> zipfile.ZipFile:
    """Returns the archive of an open file, whose list of members is not too long."""
    where = f"'{path}'"
    with foreign(where, what):
        file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16) - 22))
        tail = file.read()
        end = tail.rfind(b"PK\x05\x06")
        if end < 0 or len(tail) < end + 22:
            raise ConfigError(f"{where}: not a whole {what}")
        (size,) = struct.unpack("<I", tail[end + 12 : end + 16])
        if size > _MOST_DIRECTORY_BYTES:
            raise ConfigError(f"{where}: its list of members takes {size >> 20} MB; at most 4 MB are read")
        return zipfile.ZipFile(file)


def array_names(path: str | Path) -> list[str]:
    """Returns the names of the arrays that an .npz file has, without reading one.

    Raises:
        ConfigError: The file is missing or damaged.
    """
    if not os.path.exists(path):
        raise ConfigError(f"npz file '{path}' does not exist")
    return [name.removesuffix(".npy") for name in zip_members(Path(path), "npz file") if name.endswith(".npy")]


def read_arrays(path: str, names: Collection[str]) -> dict[str, np.ndarray]:
    """Returns those of the named arrays that an .npz file has; others in it are not looked at.

    Raises:
        ConfigError: The file is missing, damaged, not an npz, too large, or one of the arrays holds objects.
    """
    wanted = [name for name in dict.fromkeys(array_names(path)) if name in names]
    found = {}
    with open_file(path) as file, foreign(f"'{path}'", "npz file of plain arrays"):
        archive = _opened(path, file)
        members = [archive.getinfo(f"{name}.npy") for name in wanted]
        check_size(path, sum(member.file_size for member in members), MOST_ARRAY_BYTES, "arrays")
        for name, member in zip(wanted, members, strict=True):
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ConfigError(f"'{path}': {name} is not packed as numpy packs arrays")
            with archive.open(member) as stream:
                found[name] = _array_of(stream, member.file_size, f"'{path}': {name}")
    return found


def _array_of(stream: Any, size: int, where: str) -> np.ndarray:
    """Returns the array of an .npy stream of so many bytes."""
    shape, is_fortran, dtype = _npy_header(stream, where)
    _check_claim(shape, dtype, size - stream.tell(), where)
    content = bytearray(size - stream.tell())  # unlike bytes, an array of these can be written to
    _check_claim(shape, dtype, stream.readinto(content), where)
    if dtype.kind == "U" and (np.frombuffer(content, f"{dtype.byteorder}u4") > sys.maxunicode).any():
        raise ConfigError(f"{where}: holds what are no letters")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if is_fortran else "C")


def array_of_npy(content: bytes, where: str) -> np.ndarray:
    """Returns the array of numbers that the bytes of an .npy file hold, without copying it.

    Raises:
        ConfigError: The header is damaged, of Python objects, or claims other than what follows.
    """
    stream = io.BytesIO(content)
    shape, is_fortran, dtype = _npy_header(stream, where)
    if dtype.kind not in "iuf":
        raise ConfigError(f"{where}: holds {dtype}, not numbers; arrays of Python objects are never read")
    data = memoryview(content)[stream.tell() :]
    _check_claim(shape, dtype, len(data), where)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _check_claim(shape: tuple[int, ...], dtype: np.dtype[Any], size: int, where: str) -> None:
    # Of an array of nothing, which any axis may be of, numpy still refuses axes that are too large together.
    if prod(shape) * dtype.itemsize != size or prod(max(each, 1) for each in shape) > MOST_ARRAY_BYTES:
        raise ConfigError(f"{where}: the .npy header says {dtype} of shape {shown(shape)}, but {size} bytes follow")


def _npy_header(stream: Any, where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Returns shape, order and type of an array: of numbers, texts or truths, with no axis below 0."""
    with foreign(where, ".npy array"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what Python thinks of the header as a program
        version = np.lib.format.read_magic(stream)
        shape, is_fortran, dtype = _READ_HEADER[version](stream)
    if dtype.kind not in "iufbU" or dtype.subdtype is not None or not 0 < dtype.itemsize <= _MOST_TEXT_BYTES:
        kind = dtype if len(str(dtype)) < 40 else "something"
        raise ConfigError(f"{where}: holds {kind}, not numbers; arrays of Python objects are never read")
    if len(shape) > 8 or any(each < 0 for each in shape):
        raise ConfigError(f"{where}: the .npy header says shape {shown(shape)}")
    return shape, is_fortran, dtype


def read_npy(path: Path) -> np.ndarray:
    """Returns the array of numbers of an .npy file.

    Raises:
        ConfigError: It is too large or damaged, or holds no numbers.
    """
    return array_of_npy(read_bytes(path, MOST_ARRAY_BYTES, "array"), f"'{path}'")


def split_array_name(name: str) -> tuple[str, str | None]:
    """Returns the path and the array's name of ``FILE.npz:NAME``; of any other name itself, and None."""
    path, colon, array = name.rpartition(".npz:")
    return (f"{path}.npz", array) if colon else (name, None)
