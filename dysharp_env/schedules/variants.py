"""Variants of a schedule: short lists of changes, of which the fastest is taken for a layer, or one is decided on."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

# What names a schedule, and the list itself.
_FIXED = ("name", "description", "aliases", "best_of", "plans")
# A plan leaves nothing else to choose.
_WHOLE: dict[str, Any] = {"best_of": (), "plans": ()}


def with_first_filled_in(data: Any) -> Any:
    """Returns a schedule's settings with the first of its ``best_of`` filled in; what is no schedule as it is.

    Raises:
        ValueError: An entry of ``best_of`` cannot be changes, or the settings contradict the first.
    """
    best_of = data.get("best_of", ()) if isinstance(data, dict) else ()
    if not isinstance(best_of, list | tuple):
        raise ValueError(f"best_of={best_of!r} must be a list of changes, such as [{{parts.count: 2}}]")
    if not best_of:
        return data
    for place, changes in enumerate(best_of):
        _check(place, changes, best_of[0])
    filled = copy.deepcopy(data)
    for key, value in best_of[0].items():
        *parents, leaf = key.split(".")
        node: Any = filled
        for part in parents:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise ValueError(f"best_of[0]: '{key}' is not a setting")
        if node.setdefault(leaf, value) != value:
            raise ValueError(f"{key}={node[leaf]!r} contradicts best_of[0], which says {value!r}; leave one out")
    return filled


def _check(place: int, changes: Any, first: Mapping[str, Any] | Sequence[Any]) -> None:
    where = f"best_of[{place}]"
    if not isinstance(changes, dict) or not changes:
        raise ValueError(f"{where}={changes!r} must map settings to values, such as {{parts.count: 4}}")
    for key, value in changes.items():
        if not isinstance(key, str) or key.split(".")[0] in _FIXED:
            raise ValueError(f"{where}: '{key}' is not a setting to choose")
        if not isinstance(value, int | float | str):
            raise ValueError(f"{where}: {key}={value!r} must be one value; settings within it have dotted keys")
    if set(changes) != set(first):
        raise ValueError(f"{where} must set what best_of[0] does, {sorted(first)}, not {sorted(changes)}")


def described(changes: Mapping[str, Any]) -> str:
    """Returns changes in one line for people."""
    return ", ".join(f"{key}={value}" for key, value in changes.items())


def plan_changes(name: str, place: int, given: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns which schedule an entry of ``plans`` is of, empty for the one that lists it, and what it changes.

    Raises:
        ValueError: It names what cannot be changed.
    """
    changes = {"schedule": given} if isinstance(given, str) else {**given}
    base = changes.pop("schedule", "")
    if not isinstance(base, str):
        raise ValueError(f"plans[{place}]: schedule={base!r} must be a schedule's name")
    if base == name:  # reading it would never end
        raise ValueError(f"plans[{place}]: '{name}' cannot be a plan of its own")
    if isinstance(given, str):
        return base, _WHOLE
    if fixed := [key for key in changes if key.split(".")[0] in _FIXED and key != "name"]:
        raise ValueError(f"plans[{place}]: '{fixed[0]}' is not a setting to choose")
    return base, {**_WHOLE, "name": f"{name}[{place}]", **changes}
