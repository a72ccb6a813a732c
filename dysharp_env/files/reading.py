"""Opening what may be anything: only files are read, and only so much of them; folders, pipes and devices are refused.

A file of ``/proc`` or one that grows may hold more than it says, so the limit is kept while reading too.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dysharp_env.files.errors import ConfigError, shown

_KINDS = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def open_file(path: str | Path) -> io.BufferedReader:
    """Returns a file that is open for reading.

    Raises:
        ConfigError: It does not exist, is no file, or cannot be read.
    """
    try:
        _require_file(path, os.stat(path).st_mode)
        # What has become a pipe since then does not keep us waiting.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _require_file(path, os.fstat(handle).st_mode)
            return io.BufferedReader(io.FileIO(handle))
        except BaseException:
            os.close(handle)
            raise
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None


def _require_file(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise ConfigError(f"cannot read '{path}': it is a folder")
    if not stat.S_ISREG(mode):
        what = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a device")
        raise ConfigError(f"cannot read '{path}': it is {what}, and only files are read")


def check_size(path: str | Path, size: int, most: int, what: str = "") -> None:
    """Checks how many bytes of something a file has.

    Raises:
        ConfigError: They are too many.
    """
    if size > most:
        limit = f"{most >> 20} MB" if most >= 1 << 20 else f"{most} bytes"
        raise ConfigError(f"'{path}': more than {limit}{f' of {what}' if what else ''} cannot be read")


def read_bytes(path: str | Path, most: int, what: str = "") -> bytes:
    """Returns what a file holds, ``most`` bytes of ``what`` if there are no more.

    Raises:
        ConfigError: It cannot be read, or holds more.
    """
    with open_file(path) as file, foreign(f"'{path}'", "file"):
        check_size(path, os.fstat(file.fileno()).st_size, most, what)
        content = file.read(most + 1) or b""
        check_size(path, len(content), most, what)
        return content


def read_text(path: str | Path, most: int, what: str = "text") -> str:
    """Returns a file of UTF-8, with or without a mark in front that says so.

    Raises:
        ConfigError: It cannot be read, holds more than ``most`` bytes, or something else than UTF-8.
    """
    return decoded(read_bytes(path, most, what), f"'{path}'")


def decoded(content: bytes, where: str) -> str:
    """Returns UTF-8 as text.

    Raises:
        ConfigError: It is something else; the message begins with ``where``.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = ", but UTF-16" if content[:2] in _UTF_16 else f": byte {error.start + 1} is {content[error.start]:#04x}"
        raise ConfigError(f"{where} is no text in UTF-8{guess}") from None


def read_gzip(path: str | Path, most: int, what: str) -> bytes:
    """Returns what a gzip file holds, if that is no more than ``most`` bytes unpacked.

    Raises:
        ConfigError: It cannot be read, is no whole gzip file, or holds more.
    """
    with open_file(path) as packed:
        try:
            with gzip.open(packed) as file:
                content = file.read(most + 1)
        except gzip.BadGzipFile:
            raise ConfigError(f"'{path}' is not a whole {what}: it is no gzip file") from None
        except (EOFError, zlib.error):
            raise ConfigError(f"'{path}' is not a whole {what}: its end is missing or damaged") from None
        except OSError as error:
            raise ConfigError(f"cannot read '{path}': {error.strerror or error}") from None
    check_size(path, len(content), most, what)
    return content


@contextmanager
def foreign(where: str, what: str) -> Iterator[None]:
    """Has whatever a library makes of a file that may be damaged or hostile raise one line.

    Args:
        where: The file, and the place in it.
        what: What it should be, as in "not a whole ...".

    Raises:
        ConfigError: The library raised something; its own of ours are let through.
    """
    try:
        yield
    except ConfigError:
        raise
    except MemoryError:
        raise ConfigError(f"{where}: needs more memory than there is") from None
    except OSError as error:
        if error.strerror is None:  # the library's, not the system's
            raise ConfigError(f"{where}: not a whole {what}: {shown(str(error))}") from None
        raise ConfigError(f"cannot read {where}: {error.strerror}") from None
    except Exception as error:
        raise ConfigError(f"{where}: not a whole {what}: {shown(str(error) or type(error).__name__)}") from None
