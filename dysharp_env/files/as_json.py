"""JSON of which nobody knows who wrote it: the memory that it would take is estimated before it is taken."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dysharp_env.files.errors import CONTROL, ConfigError, shown
from dysharp_env.files.reading import decoded, read_bytes

MOST_MAPPING_BYTES = 32 << 20  # of a file of settings or results
MOST_DATA_BYTES = 128 << 20  # of one of numbers
_ESCAPED = re.compile(
    rb"\\u00[01789]|\\u[dD][89a-fA-F]|\\[bf]|\x7f|\xc2[\x80-\x9f]"
)  # of what cannot be shown, perhaps
# What CPython takes for a list or dict and for an entry of one, at most: numbers and short texts.
_CONTAINER_BYTES, _ENTRY_BYTES, _MOST_OBJECT_BYTES = 64, 48, 384 << 20


def read_mapping(path: Path) -> dict[str, Any]:
    """Returns the mapping that a JSON file of settings or results holds.

    Raises:
        ConfigError: It is missing, too large, not a mapping, or refused by ``parse_json``.
    """
    content = read_bytes(path, MOST_MAPPING_BYTES, "JSON")
    data = parse_json(content, f"'{path}'")
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' must hold a mapping of keys to values, not {type(data).__name__}")
    return data


def _check_texts(data: Any, where: str) -> None:
    if isinstance(data, str) and (found := CONTROL.search(data)):
        raise ConfigError(f"{where}: a text holds the character {found[0]!a}, which cannot be shown")
    for each in [*data.keys(), *data.values()] if isinstance(data, dict) else data if isinstance(data, list) else ():
        _check_texts(each, where)


def read_json(path: Path) -> Any:
    """Returns what a JSON file of numbers holds; see ``parse_json``.

    Raises:
        ConfigError: It is too large, unreadable, or not JSON.
    """
    return parse_json(read_bytes(path, MOST_DATA_BYTES, "JSON"), f"'{path}'", is_data=True)


def parse_json(content: bytes, where: str, *, is_data: bool = False) -> Any:
    """Returns what JSON says; no key may be there twice.

    Args:
        content: The text.
        where: File and place, which messages begin with.
        is_data: Whether it is numbers, of which there may be many: letters beyond ASCII, which no format needs, then
            come out as other ones, and of keys that are there twice the last counts.

    Raises:
        ConfigError: It is not JSON, or would take too much memory; or a text that is no data has characters which
            cannot be shown.
    """
    containers = content.count(b"[") + content.count(b"{")
    size = _CONTAINER_BYTES * containers + _ENTRY_BYTES * (content.count(b",") + containers)
    if size > _MOST_OBJECT_BYTES:
        raise ConfigError(f"{where}: {size >> 20} MB of values as JSON; at most {_MOST_OBJECT_BYTES >> 20} MB are read")
    # One byte a character: as UTF-8, a single emoji would make all of them take four.
    text = content.removeprefix(b"\xef\xbb\xbf").decode("latin-1") if is_data else decoded(content, where)
    try:
        if is_data:
            return json.loads(text, parse_constant=_refuse_constant)
        data = json.loads(text, object_pairs_hook=_unique)  # what is no number is refused with the name of its key
        if _ESCAPED.search(content):
            _check_texts(data, where)
        return data
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ConfigError(f"{where}{': not valid' if is_data else ' is damaged: it is not'} JSON: {why}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key '{shown(name)}' is there twice")
        found[name] = value
    return found
