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

_ROOM = Path(__file__).resolve().parents[1]
# The rooms whose sources compiled code is made of: its functions, how they are compiled, the records they work on.
_SOURCES = ("jit", "kernel", "state")


def cache_folder() -> Path:
    """Returns the folder of this version's compiled kernel.

    It lies beside the sources where that can be written, else in the user's cache; ``NUMBA_CACHE_DIR`` goes before.
    """
    sources = sorted(source for room in _SOURCES for source in (_ROOM / room).rglob("*.py"))
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
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
