"""Where the compiled kernel is kept between runs.

Numba takes a cached function for valid as long as the file that defines it has not changed, although the machine code
holds everything it calls. The kernel is many files, so its cache is named after the content of all of them: changing
any one compiles anew, and two versions never mix.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba

# Settings are module attributes that numba makes at run time, which a type checker cannot see.
config: Any = numba.config

_ROOM = Path(__file__).resolve().parent
# What the sources of compiled code contain: its functions, how they are compiled, and the records they work on.
_MARKS = (b"@njit", b"@compiled", b"CPUDispatcher", b"@intrinsic", b"_record(")


def cache_folder() -> Path:
    """Returns the folder of this version's compiled kernel.

    It lies beside the sources where that can be written, else in the user's cache; ``NUMBA_CACHE_DIR`` goes before.
    """
    sources = [source.read_bytes() for source in sorted(_ROOM.glob("*.py"))]
    compiled = [
        text
        for text in sources
        if any(mark in text for mark in (b"@njit", b"@compiled", b"@intrinsic", b"_record(", b"_Part"))
    ]
    digest = hashlib.sha256(b"\0".join(compiled)).hexdigest()[:16]
    if config.CACHE_DIR:
        root = Path(config.CACHE_DIR)
    elif os.access(_ROOM, os.W_OK):
        root = _ROOM / "__pycache__"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dysharp_env"
    return root / f"kernel-{digest}"


@contextmanager
def kernel_cache() -> Iterator[None]:
    """Lets functions decorated inside use ``cache_folder``; numba's own setting is as it was afterwards."""
    before = config.CACHE_DIR
    config.CACHE_DIR = str(cache_folder())
    try:
        yield
    finally:
        config.CACHE_DIR = before
