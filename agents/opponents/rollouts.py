"""Many layers played inside the engine under many schedules, with no Python per decision: what searches are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dysharp_env.schedules import Exposure, Problem, ScheduleSpec
from dysharp_env.simulator.batch import Batch
from dysharp_env.simulator.engine import Engine


def makespans_ps(schedules: Sequence[ScheduleSpec], problems: Sequence[Problem]) -> np.ndarray:
    """Returns the (schedule, problem) int64 makespans of layers that their schedules' own rules run.

    Of a schedule with variants it is that of the fastest. One problem after the other, all schedules of it in one call:
    as many layers are in memory as there are variants of schedules.

    Raises:
        ConfigError: A schedule does not fit a system.
    """
    found = np.zeros((len(schedules), len(problems)), np.int64)
    variants = [schedule.variants() for schedule in schedules]
    firsts = np.cumsum([0, *map(len, variants[:-1])])
    for column, problem in enumerate(problems):
        engines = [problem.engine(variant) for each in variants for variant in each]
        found[:, column] = np.minimum.reduceat(play(engines, Exposure().max_candidates), firsts)
    return found


def play_networks(
    schedule: ScheduleSpec, exposures: Sequence[Exposure], problem: Problem
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (exposure,) int64 makespans in picoseconds, and decisions taken, of networks that play one problem.

    Raises:
        ConfigError: The schedule does not fit the system.
    """
    engines = [problem.engine(schedule, exposure) for exposure in exposures]
    return play(engines, exposures[0].max_candidates), np.array([engine.asked for engine in engines])


def play(engines: Sequence[Engine], max_candidates: int) -> np.ndarray:
    """Runs layers that ask nothing to their ends together and returns their (layer,) int64 makespans, picoseconds."""
    batch = Batch(len(engines), max_candidates)
    for row, engine in enumerate(engines):
        batch.place(row, engine)
    batch.advance()
    return batch.now_ps.copy()
