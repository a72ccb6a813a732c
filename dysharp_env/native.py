"""How functions become machine code, and where that is kept between runs.

``native`` is numba's ``njit`` with a cache that never stands in the way: it lies in the first folder that can be
written, or nowhere; what is damaged, or of another machine, is compiled anew; and of many processes that miss the same
function at the same time one compiles it while the others wait. ``NUMBA_DISABLE_JIT`` is not heeded: the engine's
records are addresses, which Python cannot follow (``simulator.twin`` is the engine in plain Python).
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

import numba
from numba.core.caching import FunctionCache, IndexDataCacheFile

try:
    import fcntl
except ImportError:  # not on Windows, where every process compiles for itself
    fcntl = None  # type: ignore[assignment]

# Settings are module attributes that numba makes at run time, which a type checker cannot see.
config: Any = numba.config

# Numba's own functions are compiled by the same setting, and whenever they are first called.
config.DISABLE_JIT = 0
os.environ.pop("NUMBA_DISABLE_JIT", None)  # which numba reads again

Function = TypeVar("Function", bound=Callable[..., Any])
_PACKAGE = Path(__file__).resolve().parent
_DIGEST_BYTES = 32


def cache_root() -> Path | None:
    """Returns the folder in which machine code is kept; None if nothing can be written anywhere.

    ``NUMBA_CACHE_DIR`` goes first; then beside the sources, in the user's cache, and in a folder of the user's own
    among temporary files.
    """
    return next((folder for folder in _candidates() if _is_writable(folder)), None)


def _candidates() -> Iterator[Path]:
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR)
    yield _PACKAGE / "__pycache__"
    with suppress(RuntimeError):  # there is no home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dysharp_env"
    yield Path(tempfile.gettempdir()) / f"dysharp_env-{os.getuid() if hasattr(os, 'getuid') else 'cache'}"


def _is_writable(folder: Path) -> bool:
    """Makes a folder if it is missing; returns whether it is writable, and by nobody else where others could be."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError:
        return False
    # What lies there is executed: among temporary files only what is one's own will do.
    is_own = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
    return os.access(folder, os.W_OK) and (is_own or folder.parent != Path(tempfile.gettempdir()))


@contextmanager
def kept_in(folder: Path | None) -> Iterator[None]:
    """Lets functions that are decorated inside be kept in a folder; numba's own setting is as it was afterwards."""
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder or "")
    try:
        yield
    finally:
        config.CACHE_DIR = before


class _CheckedFile(IndexDataCacheFile):
    """Numba's files of one function; machine code must be what was written, as a changed bit could end the process."""

    def _save_data(self, name: str, data: Any) -> None:
        body = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(hashlib.sha256(body).digest() + body)

    def _load_data(self, name: str) -> Any:
        content = Path(self._data_path(name)).read_bytes()
        digest, body = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            raise ValueError(f"{name} is damaged")
        return pickle.loads(body)  # numba's own format, from a folder that only the user can write


class TolerantCache(FunctionCache):
    """Numba's cache of one function, where what cannot be read is missing and what cannot be written is left out."""

    def __init__(self, function: Callable[..., Any], *, compiles_alone: bool = False) -> None:
        """Begins the cache of a function; one that ``compiles_alone`` is compiled by one process at a time.

        Raises:
            RuntimeError: Numba finds no folder for it.
        """
        super().__init__(function)
        stamp, base = self._impl.locator.get_source_stamp(), self._impl.filename_base
        self._cache_file = _CheckedFile(self._cache_path, base, stamp)
        self._compiles_alone = compiles_alone and fcntl is not None
        self._lock: int | None = None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Returns the machine code of a signature; None if there is none that can be read.

        Where it is missing, this waits for another process that compiles it, and if there is none keeps others waiting
        until ``save_overload``.
        """
        found = self._load(sig, target_context)
        if found is None and self._compiles_alone and self._take_lock():
            found = self._load(sig, target_context)
            if found is not None:
                self._release_lock()
        return found

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps machine code, where that can be written."""
        try:
            super().save_overload(sig, data)
        except OSError:
            pass
        except Exception:  # an index that cannot be read is in the way
            with suppress(OSError):
                self.flush()
                super().save_overload(sig, data)
        finally:
            self._release_lock()

    def _load(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # of damaged files pickle and LLVM raise whatever they like
            return None

    def _take_lock(self) -> bool:
        """Waits for the lock of the function; False where there can be none."""
        try:
            Path(self._cache_path).mkdir(parents=True, exist_ok=True)
            name = Path(self._cache_path) / f"{self._impl.filename_base}.lock"
            lock = os.open(name, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            os.close(lock)
            return False
        self._lock = lock
        return True

    def _release_lock(self) -> None:
        if self._lock is not None:
            # A process that was forked meanwhile has the file open too, so closing it here would not end the lock.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = None


def keep(dispatcher: Any, *, compiles_alone: bool = False) -> None:
    """Lets the machine code of a function that numba has decorated be kept, if there is a folder for it."""
    folder = config.CACHE_DIR or cache_root()
    if not folder:
        return
    with kept_in(Path(folder)), suppress(RuntimeError, OSError):
        dispatcher._cache = TolerantCache(dispatcher.py_func, compiles_alone=compiles_alone)


@overload
def native(function: Function) -> Function: ...
@overload
def native(**options: Any) -> Callable[[Function], Function]: ...
def native(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Returns a function compiled by ``numba.njit`` with these options when it is first called, or such a decorator."""
    if function is None:
        return partial(native, **options)
    dispatcher = numba.njit(**options)(function)
    keep(dispatcher, compiles_alone=True)
    return dispatcher
