"""A workload as one generation of evolution plays it, wherever it is played: a worker loads no torch for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dysharp_env.schedules import Exposure, Problem, ScheduleSpec

from ..opponents.rollouts import play_networks
from .genome import Genome


@dataclass(frozen=True, eq=False)
class Nudged:
    """A workload, the (weight, 1 + shape) weights that it is played with, and their (pair, weight) nudges."""

    problem: Problem
    weights: np.ndarray
    nudges: np.ndarray

    def size(self) -> int:
        """Returns roughly how long it takes."""
        return self.problem.size


@dataclass(frozen=True, eq=False)
class Player:
    """What plays: a genome on top of a schedule."""

    genome: Genome
    base: ScheduleSpec
    exposure: Exposure

    def __call__(self, nudged: Nudged) -> tuple[np.ndarray, np.ndarray]:
        """Returns makespans and decisions under each of the nudges, then under the opposite ones."""
        nudges = (*nudged.nudges, *-nudged.nudges)
        networks = [self.genome.network(nudged.weights, nudge) for nudge in nudges]
        exposures = [replace(self.exposure, network=network) for network in networks]
        return play_networks(self.base, exposures, nudged.problem)
