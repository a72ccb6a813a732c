"""Reads the names of those who play: schedules here, agents by the package that knows them.

``agents`` brings torch along, which takes longer to import than most layers to simulate; it is imported by its name
once one is met that is no schedule's.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from dysharp_env.schedules.names import is_schedule_name
from dysharp_env.schedules.opponent import Contender
from dysharp_env.schedules.spec import load_schedule

CONTENDER_HELP = (
    "a schedule's name or .yaml, reference (the shipped agent), a run folder, a distilled rule's .json,"
    " look-ahead:SCHEDULE, random, first, or package.module:function, which answers decisions"
)
_READER = "agents.opponents.read"


def read_contenders(given: Sequence[str]) -> list[Contender]:
    """Returns what names of schedules and agents stand for, in order; ``agents.opponents.read`` says which there are.

    Raises:
        ConfigError: A name stands for nothing, or what it stands for is damaged.
    """
    if all(map(is_schedule_name, given)):
        return [Contender.of_schedule(load_schedule(name), name) for name in given]
    contenders: list[Contender] = importlib.import_module(_READER).read_contenders(given)
    return contenders
