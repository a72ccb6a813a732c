"""Many layers played inside the engine under many schedules, with no Python per decision: what searches are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dysharp_env.schedules import Exposure, LowerBound, ScheduleSpec
from dysharp_env.simulator.batch import Batch
from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.lowering import Lowering
from dysharp_env.system import SystemSpec
from dysharp_env.workload import Workload
from dysharp_env.workload.suite import SuiteWorkload


class Playable(Protocol):
    """A workload that can be started under any schedule."""

    @property
    def name(self) -> str:
        """Its name in its suite."""

    @property
    def system(self) -> SystemSpec:
        """The machine."""

    @property
    def workload(self) -> Workload:
        """The layer and its routing."""

    @property
    def bound(self) -> Bound:
        """What no schedule can beat."""

    def engine(self, schedule: ScheduleSpec, exposure: Exposure = ...) -> Engine:
        """Returns the layer at time zero.

        Raises:
            ConfigError: The schedule does not fit the system.
        """


@dataclass(frozen=True)
class Prepared:
    """A workload with all that does not depend on who schedules it.

    Attributes:
        item: The workload and its scenario.
        costs: What things take on its system.
        bound: What no schedule can beat.
    """

    item: SuiteWorkload
    costs: Costs
    bound: Bound

    @property
    def name(self) -> str:
        """The workload's name in its suite."""
        return self.item.name

    @property
    def system(self) -> SystemSpec:
        """The machine."""
        return self.item.scenario.system

    @property
    def workload(self) -> Workload:
        """The layer and its routing."""
        return self.item.workload

    def engine(self, schedule: ScheduleSpec, exposure: Exposure = Exposure()) -> Engine:  # noqa: B008 (frozen)
        """Returns the layer at time zero under a schedule.

        Raises:
            ConfigError: The schedule does not fit the system.
        """
        lowering = Lowering(self.costs, schedule.program(self.system, exposure), self.system.gpu.num_sms)
        return Engine(lowering, self.workload, self.bound)


def prepare(items: Sequence[SuiteWorkload]) -> list[Prepared]:
    """Returns the workloads with their costs and bounds worked out."""
    prepared = []
    for item in items:
        system = item.scenario.system
        costs = Costs.of(system, item.scenario.layer, item.entry.compute_scale)
        bound = LowerBound(system, item.scenario.layer, costs).of(item.workload)
        prepared.append(Prepared(item, costs, bound))
    return prepared


def makespans_ps(schedules: Sequence[ScheduleSpec], workloads: Sequence[Playable]) -> np.ndarray:
    """Returns the (schedule, workload) int64 makespans of layers that their schedules' own rules run.

    One workload after the other, all schedules of it in one call: as many layers are in memory as there are schedules.

    Raises:
        ConfigError: A schedule does not fit a system.
    """
    found = np.zeros((len(schedules), len(workloads)), np.int64)
    for column, workload in enumerate(workloads):
        found[:, column] = _play([workload.engine(schedule) for schedule in schedules], Exposure().max_candidates)
    return found


def play_networks(
    schedule: ScheduleSpec, exposures: Sequence[Exposure], workload: Playable
) -> tuple[np.ndarray, np.ndarray]:
    """Returns (exposure,) int64 makespans in picoseconds, and decisions taken, of networks that play one workload.

    Raises:
        ConfigError: The schedule does not fit the system.
    """
    engines = [workload.engine(schedule, exposure) for exposure in exposures]
    return _play(engines, exposures[0].max_candidates), np.array([engine.asked for engine in engines])


def _play(engines: Sequence[Engine], max_candidates: int) -> np.ndarray:
    """Runs layers that ask nothing to their ends together and returns their (layer,) int64 makespans, picoseconds."""
    batch = Batch(len(engines), max_candidates)
    for row, engine in enumerate(engines):
        batch.place(row, engine)
    batch.advance()
    return batch.now_ps.copy()
