"""Arrays of npz files that may be damaged or made by other programs; pickled objects are never read."""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dysharp_env.config import ConfigError

# What reading a truncated or foreign file raises, besides OSError.
DAMAGED = (
    ValueError,
    EOFError,
    RuntimeError,  # an encrypted archive
    lzma.LZMAError,
    KeyError,
    MemoryError,
    NotImplementedError,
    SyntaxError,
    tokenize.TokenError,  # of an array's header
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)


def read_arrays(path: str, required: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Returns all arrays of an npz file; pickled objects are refused.

    Raises:
        ConfigError: The file is missing, damaged, not an npz, or lacks an array in ``required``.
    """
    if not Path(path).is_file():
        raise ConfigError(f"npz file '{path}' does not exist")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror or error}") from None
    except (*DAMAGED, AttributeError, TypeError):  # the last two: a bare .npy array is no archive
        raise ConfigError(f"'{path}' is not a whole npz file of plain arrays") from None
    missing = [name for name in required if name not in arrays]
    if missing:
        raise ConfigError(f"'{path}' lacks the array '{missing[0]}'; it holds {sorted(arrays)}")
    return arrays


def split_array_name(name: str) -> tuple[str, str | None]:
    """Returns the path and the array's name of ``FILE.npz:NAME``; of any other name itself, and None."""
    path, colon, array = name.rpartition(".npz:")
    return (f"{path}.npz", array) if colon else (name, None)
