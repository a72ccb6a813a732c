"""Reads the names of those who play: schedules here, agents by the package that knows them.

That package brings torch along, which takes longer to import than most layers to simulate; it is imported by its name
once a name is met that is no schedule's. It is the folder ``agents`` beside this package in a checkout, and
``dysharp_agents`` where it is installed: other distributions have an ``agents`` of their own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from dysharp_env.schedules.names import is_schedule_name
from dysharp_env.schedules.opponent import Contender
from dysharp_env.schedules.spec import load_schedule

CONTENDER_HELP = (
    "a schedule's name or .yaml, reference (the shipped agent), a run folder, a distilled rule's .json,"
    " look-ahead:SCHEDULE, random, first, or package.module:function, which answers decisions"
)
INSTALLED_AGENTS = "dysharp_agents"
_CHECKOUT = Path(__file__).resolve().parents[2]


def read_contenders(given: Sequence[str]) -> list[Contender]:
    """Returns what names of schedules and agents stand for, in order; ``agents.opponents.read`` says which there are.

    Raises:
        ConfigError: A name stands for nothing, or what it stands for is damaged.
    """
    if all(map(is_schedule_name, given)):
        return [Contender.of_schedule(load_schedule(name), name) for name in given]
    reader = importlib.import_module(f"{agents_package()}.opponents.read")
    contenders: list[Contender] = reader.read_contenders(given)
    return contenders


def agents_package() -> str:
    """Returns the name by which the package of agents is imported here: the one that is in use, or else found."""
    if INSTALLED_AGENTS in sys.modules:
        return INSTALLED_AGENTS
    found = importlib.util.find_spec("agents")
    is_ours = found is not None and found.origin == str(_CHECKOUT / "agents" / "__init__.py")
    return "agents" if is_ours else INSTALLED_AGENTS
