"""Many layers played inside the engine under many schedules, with no Python per decision: what searches are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from dysharp_env.schedules import Exposure, Problem, ScheduleSpec
from dysharp_env.simulator.batch import Batch
from dysharp_env.simulator.engine import Engine
from dysharp_env.workers import Workers


def makespans_ps(
    schedules: Sequence[ScheduleSpec], problems: Sequence[Problem], workers: Workers | None = None
) -> np.ndarray:
    """Returns the (schedule, problem) int64 makespans of layers that their schedules' own rules run.

    Of a schedule with variants it is that of the fastest. A worker, or this process if there are none, plays all
    schedules of a problem in one call: as many layers are in memory as there are variants of schedules.

    Raises:
        ConfigError: A schedule does not fit a system.
    """
    columns = (workers or Workers()).map(partial(_column, schedules), problems, size=size_of, constants=problems)
    return np.stack(columns, axis=1)


def _column(schedules: Sequence[ScheduleSpec], problem: Problem) -> np.ndarray:
    """Returns the (schedule,) makespans of one problem."""
    variants = [schedule.variants() for schedule in schedules]
    firsts = np.cumsum([0, *map(len, variants[:-1])])
    engines = [problem.engine(variant) for each in variants for variant in each]
    return np.minimum.reduceat(play(engines, Exposure().max_candidates), firsts)


def size_of(problem: Problem) -> int:
    """Returns roughly how long a problem takes to play."""
    return problem.size


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
