"""Writing results: a file is there whole or not at all; a pipe or device gets them straight."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from pathlib import Path

from dysharp_env.files.errors import ConfigError

# What the shell calls files of this process that are open already; a number is one's.
_OPEN = re.compile(r"/dev/(stdout|stderr)|(?:/dev/fd|/proc/self/fd)/(\d{1,6})")
_NUMBERS = {"stdout": 1, "stderr": 2}
_MOST_PREFIX = 80  # letters of a file's name in that of the one that becomes it; names have at most 255 bytes


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replaces what ``path`` leads to by ``content``: a file in one step, whose links and rights stay.

    A new file has the rights that the umask leaves. What is no file, such as a pipe or ``/dev/stdout``, is written to.

    Raises:
        ConfigError: The folder is missing, or something cannot be written to.
    """
    try:
        if (straight := _open_straight(path)) is not None:
            with os.fdopen(straight, "wb") as file:
                file.write(content)
        else:
            _replace(Path(os.path.realpath(path)), content)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write '{path}': {getattr(error, 'strerror', None) or error}") from None


def write_text(path: str | Path, content: str) -> None:
    """Replaces ``path`` by ``content`` as UTF-8; see ``write_bytes``.

    Raises:
        ConfigError: The folder is missing, or something cannot be written to.
    """
    # Names of files may hold bytes that are no text; what is written of them must be.
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def require_writable(option: str, path: str | Path) -> None:
    """Checks that ``write_bytes`` can write there, as far as that can be known beforehand.

    Raises:
        ConfigError: It cannot; the message names the option.
    """
    target, wrong = Path(os.path.realpath(path)), f"cannot write {option}='{path}'"
    try:
        if is_straight(path):
            if not os.access(path, os.W_OK):
                raise ConfigError(f"{wrong}: it is not writable")
            return
        if target.is_dir() or not target.parent.is_dir():
            raise ConfigError(f"{wrong}: it must be a file in an existing folder")
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"{wrong}: {getattr(error, 'strerror', None) or error}") from None
    if not os.access(target.parent, os.W_OK):
        raise ConfigError(f"{wrong}: the folder '{target.parent}' is not writable")


def is_straight(path: str | Path) -> bool:
    """Returns whether a path leads to something that is written to as it is: a pipe, a device, an open file."""
    if _OPEN.fullmatch(str(path)):
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def _open_straight(path: str | Path) -> int | None:
    """Returns where to write to what is no file; None of a file. A pipe that nobody reads from is waited for."""
    if found := _OPEN.fullmatch(str(path)):
        number = _NUMBERS[found[1]] if found[1] else int(found[2])
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # so that what was printed before stands before
        return os.dup(number)
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC) if is_straight(path) else None


def _replace(target: Path, content: bytes) -> None:
    name = target.name.encode(errors="surrogateescape")[:_MOST_PREFIX].decode(errors="surrogateescape")
    partial = target.with_name(f".{name}.{secrets.token_hex(6)}")
    # Unlike mkstemp's, ordinary files: the umask says who can read them.
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            if target.exists():
                os.fchmod(handle, stat.S_IMODE(target.stat().st_mode))
        os.replace(partial, target)
    except BaseException:
        os.unlink(partial)
        raise
