"""Writing results: a file is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dysharp_env.config import ConfigError


def write_bytes(path: str | Path, content: bytes) -> None:
    """Replaces ``path`` by ``content`` in one step.

    Raises:
        ConfigError: The folder is missing or cannot be written to.
    """
    target = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            # mkstemp makes files that only their owner can read; results are ordinary files.
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}") from None


def write_text(path: str | Path, content: str) -> None:
    """Replaces ``path`` by UTF-8 ``content`` in one step.

    Raises:
        ConfigError: The folder is missing or cannot be written to.
    """
    write_bytes(path, content.encode("utf-8"))
