"""What episodes draw their workloads from: the scenario of the settings, or every entry of a suite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import ScheduleSpec, Starter
from dysharp_env.workload import Scenario, Workload
from dysharp_env.workload.suite import Seeds, load_suite

ANY_SEED: Seeds = (0, 2**31)  # what episodes draw from where no seeds are named


@dataclass(frozen=True)
class Source:
    """A scenario, which of its workloads are drawn, and what starts layers of them.

    Attributes:
        label: What its workloads' names begin with in a suite; empty for a scenario of its own.
        scenario: Machine, layer and routing.
        seeds: First of their workload seeds, and how many.
        starter: Starts layers under the settings' schedule.
    """

    label: str
    scenario: Scenario
    seeds: Seeds
    starter: Starter

    def draw(self, stream: np.random.Generator) -> Workload:
        """Returns the workload of a seed that is drawn from the stream."""
        first, count = self.seeds
        return self.scenario.draw(int(stream.integers(first, first + count)))

    def name(self, workload: Workload) -> str:
        """Returns the name of one of its workloads, in a suite the one that results have."""
        return f"{self.label}, {workload.name}" if self.label else workload.name

    def fitting(self, workload: object) -> Workload:
        """Returns the workload if it is of this scenario.

        Raises:
            ConfigError: It is not.
        """
        if not isinstance(workload, Workload):
            raise ConfigError(f"reset option workload={workload!r} must be a Workload")
        if workload.num_gpus != self.scenario.system.num_gpus:
            raise ConfigError(f"the workload has {workload.num_gpus} GPUs, the system {self.scenario.system.num_gpus}")
        if workload.layer != self.scenario.layer:
            raise ConfigError(f"the workload's layer '{workload.layer.name}' is not the environment's")
        return workload


def read_sources(settings: EnvSpec, schedule: ScheduleSpec, logging: bool) -> list[Source]:
    """Returns the sources that the settings name: one of their own, or a suite's entries in order.

    Args:
        settings: What every episode is.
        schedule: What is learned on top of.
        logging: Whether engines record every use of a link and SM group.

    Raises:
        ConfigError: A name is unknown, or the schedule or exposure does not fit a system.
    """

    def source(label: str, scenario: Scenario, seeds: Seeds) -> Source:
        starter = Starter(
            scenario.system,
            scenario.layer,
            schedule,
            exposure=settings.exposure(),
            compute_scale=scenario.spec.compute_scale,
            resolution=settings.resolution,
            logging=logging,
        )
        return Source(label, scenario, seeds, starter)

    if settings.suite is None:
        scenarios = _with_faults(settings.build(), settings)
        return [source("", scenario, settings.seeds or ANY_SEED) for scenario in scenarios]
    suite = load_suite(settings.suite)
    built = [(entry, scenario) for entry in suite.workloads for scenario in _with_faults(suite.build(entry), settings)]
    return [
        source(entry.model_copy(update={"faults": scenario.spec.faults}).label(scenario), scenario, entry.seeds)
        for entry, scenario in built
    ]


def _with_faults(scenario: Scenario, settings: EnvSpec) -> list[Scenario]:
    """Returns a scenario with each of the faults that episodes draw from, or as it is if they draw none."""
    return [*map(scenario.with_faults, settings.drawn_faults)] or [scenario]
