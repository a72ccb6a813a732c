"""Which machine code is the present kernel's.

Numba takes a cached function for valid as long as the file that defines it has not changed, although the machine code
holds everything it calls. The kernel is many files, so its cache is named after the content of all of them: changing
any one compiles anew, and two versions never mix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dysharp_env.native import cache_root, kept_in

_ROOM = Path(__file__).resolve().parents[1]
# The rooms whose sources compiled code is made of: its functions, how they are compiled, the records they work on.
_SOURCES = ("jit", "kernel", "state")


def cache_folder() -> Path | None:
    """Returns the folder of this version's compiled kernel; None if nothing can be written anywhere."""
    root = cache_root()
    sources = sorted(source for room in _SOURCES for source in (_ROOM / room).rglob("*.py"))
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    return root / f"kernel-{digest}" if root else None


@contextmanager
def kernel_cache() -> Iterator[None]:
    """Lets functions decorated inside use ``cache_folder``."""
    with kept_in(cache_folder()):
        yield
