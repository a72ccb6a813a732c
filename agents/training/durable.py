"""Folders that are there whole or not at all, whenever a process or a machine dies: written beside, synced, swapped."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from dysharp_env.config import ConfigError

from .stopping import held

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_PARTIAL, _GONE = "partial", "gone"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Reports a full disk or a missing permission as a mistake of one line, and is not stopped half-way by a signal.

    Raises:
        ConfigError: Something cannot be written, removed or renamed.
    """
    with held():
        try:
            yield
        except OSError as error:
            raise ConfigError(f"cannot write '{path}': {error.strerror}") from None


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Makes a folder with these files, by their paths in it, and waits until they are on the disk.

    Raises:
        OSError: It cannot be written; then it is not there.
    """
    try:
        folder.mkdir(parents=True)
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            with path.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for each in {folder, *((folder / name).parent for name in files)}:
            sync(each)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replaces a folder by one with these files, by their paths in it, in one step where the system can.

    Where it cannot, there is none for a moment, and ``clean`` puts back what a process killed then leaves behind.

    Raises:
        ConfigError: It cannot be written; what was there before still is.
    """
    partial = _beside(folder, _PARTIAL)
    with writing(folder):
        _forget(partial)
        write_folder(partial, files)
        try:
            _swap(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        sync(folder.parent)


def _swap(partial: Path, folder: Path) -> None:
    """Puts a folder in the place of another, which may be missing."""
    if not folder.is_dir():
        os.replace(partial, folder)
    elif not _exchange(partial, folder):
        gone = _beside(folder, _GONE)
        _forget(gone)
        os.replace(folder, gone)
        try:
            os.replace(partial, folder)
        except OSError:
            os.replace(gone, folder)
            raise
        _forget(gone)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step; returns whether the system and the file system could."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # of C libraries without it; Windows has none
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def remove_folder(folder: Path) -> None:
    """Removes a folder, which is there whole until it is not there at all.

    Raises:
        ConfigError: It cannot be removed.
    """
    gone = _beside(folder, _GONE)
    with writing(folder):
        _forget(gone)
        os.replace(folder, gone)
        _forget(gone)


def clean(folder: Path, names: Iterable[str]) -> None:
    """Removes what a killed process has left of files and folders of these names, which nobody is writing now.

    Raises:
        ConfigError: Something cannot be removed.
    """
    with writing(folder):
        for name in names:
            gone = _beside(folder / name, _GONE)
            if gone.is_dir() and not (folder / name).exists() and _beside(folder / name, _PARTIAL).is_dir():
                os.replace(gone, folder / name)  # killed between the two steps of a swap
            for left in folder.glob(f".{name}.*"):
                _forget(left)


def sync(path: Path) -> None:
    """Waits until a file, or which names a folder has, is on the disk; some systems cannot say so of folders."""
    with suppress(PermissionError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}")


def _forget(path: Path) -> None:
    """Removes a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
