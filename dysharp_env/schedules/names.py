"""Names of schedules: presets, their aliases, files, and any of these with a planner of copies behind it.

``BASE+PLANNER`` is a schedule whose work a planner shares out, with the settings that the planner is published with;
``BASE+PLANNER:WEIGHTS`` says besides how weights travel, and a number behind that, as in ``BASE+PLANNER:1.05``, which
load of the busiest GPU over the mean is balanced enough.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import yaml

from dysharp_env.config import ConfigError, find_config, preset_names, require_choice
from dysharp_env.schedules.replication import PLANNERS, WEIGHTS

_FILES = (".yaml", ".yml")


class ScheduleName(NamedTuple):
    """A name, taken apart."""

    base: str  # a preset's name or alias, or a file
    planner: str = ""  # empty: as the base says
    weights: str = ""  # empty: as the planner is published
    tolerance: str = ""  # likewise


def schedule_names() -> list[str]:
    """Returns every name that ``load_schedule`` takes, without planners: presets, then their aliases."""
    return [*preset_names("schedules"), *sorted(_aliases())]


def preset_of(name: str) -> str:
    """Returns the preset that an alias stands for, or any other name as it is; a planner stays behind it."""
    base, plus, planner = name.partition("+")
    return f"{_aliases().get(base, base)}{plus}{planner}"


def is_schedule_name(given: str) -> bool:
    """Returns whether a name can only be a schedule's: its base is a preset, an alias or a YAML file."""
    base = _split(given).base
    return base in schedule_names() or base.endswith(_FILES)


def read_schedule_name(given: str) -> ScheduleName:
    """Returns the parts of a name.

    Raises:
        ConfigError: The base is no schedule, or there is no such planner or way of weights.
    """
    name = _split(given)
    if not name.base.endswith(_FILES):
        require_choice("schedule", name.base, schedule_names())
    if name.base == given:
        return name
    require_choice(f"schedule='{given}': planner", name.planner, PLANNERS)
    if name.weights:
        require_choice(f"schedule='{given}': weights", name.weights, WEIGHTS)
    if name.tolerance and not _is_tolerance(name.tolerance):
        raise ConfigError(f"schedule='{given}': tolerance '{name.tolerance}' must be a number from 1 on, such as 1.05")
    if name.planner == "eplb" and (extras := name.weights or name.tolerance):
        raise ConfigError(f"schedule='{given}': eplb moves no weights in the layer; leave ':{extras}' out")
    return name


def _split(given: str) -> ScheduleName:
    if "+" not in given or given.endswith(_FILES):
        return ScheduleName(given)
    base, _, planner = given.rpartition("+")
    planner, _, rest = planner.partition(":")
    weights, colon, tolerance = rest.partition(":")
    if not colon and weights[:1].isdecimal():
        weights, tolerance = "", weights
    return ScheduleName(base, planner, weights, tolerance)


def _is_tolerance(text: str) -> bool:
    try:
        return 1 <= float(text) < float("inf")
    except ValueError:
        return False


@cache
def _aliases() -> dict[str, str]:
    """Returns the preset of each alias; only the line that names aliases is read, as every command lists them."""
    presets = {}
    for name in preset_names("schedules"):
        for line in find_config("schedules", name).read_text(encoding="utf-8").splitlines():
            if line.startswith("aliases:"):
                presets.update(dict.fromkeys(yaml.safe_load(line)["aliases"], name))
    return presets
