"""YAML of which nobody knows who wrote it: as plain as JSON, counted before it is made into values.

No key twice in a mapping, no tags that say what type a value is to have, no control characters; aliases and merges are
fine, as long as what they stand for is not too much when it is written out.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from dysharp_env.files.errors import CONTROL, ConfigError, shown
from dysharp_env.files.reading import read_text

_MOST_BYTES, _MOST_VALUES, _MOST_LEVELS = 2**20, 50_000, 64
_TOO_MANY = f"it holds more than {_MOST_VALUES} values, its aliases written out"
_MOST_DIGITS = 300  # so that every whole number is a floating-point number too
_MERGE = "tag:yaml.org,2002:merge"
# Ten times as fast where PyYAML was built with libyaml, which its wheels are.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _PlainLoader(_Loader):  # type: ignore[misc]
    """Makes values of nodes; a mapping names no key twice, where plain YAML would silently take the last."""

    def __init__(self, text: str) -> None:
        """Reads a text."""
        super().__init__(text)
        self._nodes = self._level = 0

    def descend_resolver(self, current_node: yaml.Node | None, current_index: object) -> None:
        """Counts a node before it and what is in it are made: of too many, and too deep, none is."""
        self._nodes, self._level = self._nodes + 1, self._level + 1
        if self._nodes > _MOST_VALUES:
            raise ConfigError(_TOO_MANY)
        if self._level > _MOST_LEVELS:
            raise ConfigError(f"it is nested more than {_MOST_LEVELS} levels deep")

    def ascend_resolver(self) -> None:
        """Leaves a node."""
        self._level -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns the mapping of a node.

        Raises:
            ConfigError: It names a key twice; the message gives both lines.
        """
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            # A merge (<<) may be repeated, and what it brings in may be replaced.
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in lines:
                    raise ConfigError(f"key '{shown(key.value)}' on line {line} is already on line {lines[key.value]}")
                lines[key.value] = line
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


# As JSON and people write numbers: YAML 1.1, which PyYAML reads, has an exponent only behind a point and with a sign.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Returns what YAML says.

    Raises:
        ConfigError: It is not YAML, not plain, names a key twice, or holds too much, its aliases written out.
    """
    try:
        if "!" in text:
            _refuse_tags(text)
        loader = _PlainLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _require_size(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except ConfigError:
        raise
    except RecursionError:
        raise ConfigError("it is not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # the latter: a date that is none
        raise ConfigError(f"it is not valid YAML: {error}") from None


def _refuse_tags(text: str) -> None:
    for event in yaml.parse(text, _Loader):
        if tag := getattr(event, "tag", None):
            line = event.start_mark.line + 1  # type: ignore[union-attr]
            raise ConfigError(f"it is not valid YAML here: line {line} has the tag '{shown(tag)}'; no tags are needed")


def _require_size(node: yaml.Node) -> None:
    if _size(node, {}) > _MOST_VALUES:
        raise ConfigError(_TOO_MANY)


def _size(node: yaml.Node, sizes: dict[int, float]) -> float:
    """Returns how many values a node holds, what aliases stand for each time again; no end of one that holds itself."""
    if id(node) not in sizes:
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
        sizes[id(node)] = math.inf  # as long as what it holds is counted
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        items = [each for pair in pairs for each in pair] if pairs else node.value
        held = items if isinstance(node, yaml.CollectionNode) else ()
        sizes[id(node)] = 1 + sum(_size(each, sizes) for each in held)
    return sizes[id(node)]


def _check_scalar(node: yaml.ScalarNode) -> None:
    line = node.start_mark.line + 1
    if found := CONTROL.search(node.value):
        raise ConfigError(f"text on line {line} holds the character {found[0]!a}, which cannot be shown")
    if len(node.value) > _MOST_DIGITS and node.tag.endswith((":int", ":float")):
        raise ConfigError(f"the number on line {line} has {len(node.value)} digits; at most {_MOST_DIGITS} are read")


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the mapping a YAML file holds.

    Raises:
        ConfigError: The file is missing, unreadable, too large, not plain YAML, not a mapping, or names a key twice.
    """
    text = read_text(path, _MOST_BYTES, "YAML")
    try:
        data = parse_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"'{path}': {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"'{path}' must hold a mapping of keys to values, not {type(data).__name__}")
    return data
