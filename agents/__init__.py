"""Learned schedules: commands on top, and the rooms that they are made of.

``policies`` (what chooses, and its files), ``opponents`` (whoever plays a layer), ``evaluation``, ``exact``,
``training``, ``distillation``: each imports rooms before it in this list, and no command. Commands share ``kit``.

>>> from agents import load_agent
>>> agent = load_agent("reference")
>>> result = agent.schedule(system="dgx-h100", gpus=2, model="qwen3-30b", routing="uniform", tokens=16)
>>> result.makespan_us > result.lower_bound_us, result.table[0].stage
(True, 'dispatch')
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .opponents.agent import Agent


def load_agent(name: str) -> Agent:
    """Returns who plays under a name that ``--schedule`` takes: an agent such as ``reference``, or a schedule.

    Raises:
        ConfigError: The name stands for nothing, or what it stands for is damaged.
    """
    # Here, so that importing any module of the package does not bring torch along.
    from .opponents.agent import Agent

    return Agent.named(name)
