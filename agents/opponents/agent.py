"""An agent in Python: loaded by the name that commands take, it schedules layers that are told as scenarios are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dysharp_env.config import parse_spec
from dysharp_env.report.schedule import ScheduleTable
from dysharp_env.schedules import LayerRun, Problem
from dysharp_env.schedules.opponent import Contender, Opponent
from dysharp_env.simulator.engine import Decision
from dysharp_env.simulator.result import LayerResult
from dysharp_env.workload import ScenarioSpec

from .read import read_contender


@dataclass(frozen=True)
class Scheduled:
    """A layer that an agent has scheduled.

    Attributes:
        opponent: Who has.
        problem: The layer on its machine.
        run: The run; ``run.engine`` is at its end.
        result: Times, traffic and utilisation.
    """

    opponent: Opponent
    problem: Problem
    run: LayerRun
    result: LayerResult

    @property
    def makespan_us(self) -> float:
        """Until the last token is combined."""
        return self.result.makespan_us

    @property
    def lower_bound_us(self) -> float:
        """What no schedule can beat."""
        return self.result.lower_bound_us

    @property
    def table(self) -> ScheduleTable:
        """Who did what, where, from when to when; ``to_csv`` and ``to_timeline`` write it."""
        return ScheduleTable.of(self.run.engine)

    def decisions(self) -> Iterator[tuple[Decision, int]]:
        """Yields every decision that was asked with the row taken, by playing the layer again.

        What a decision shows is overwritten by the next; copy what is to be kept.
        """
        return self.opponent.replay(self.problem, 0)


@dataclass(frozen=True)
class Agent:
    """Who plays under a name; of several training seeds the first.

    Attributes:
        contender: All that the name stands for.
    """

    contender: Contender

    @classmethod
    def named(cls, name: str) -> Agent:
        """Returns the agent of a name; see ``read_contender``.

        Raises:
            ConfigError: The name stands for nothing, or what it stands for is damaged.
        """
        return cls(read_contender(name))

    def schedule(self, *, seed: int = 0, log: bool = False, **options: Any) -> Scheduled:
        """Returns a layer that the agent has scheduled.

        Args:
            seed: Of the routing.
            log: Whether every use of a link and SM group is recorded, as timelines and pictures need it.
            **options: What is scheduled: fields of ``ScenarioSpec``, such as ``system``, ``model``, ``routing`` and
                ``tokens``.

        Raises:
            ConfigError: An option is wrong, or the schedule beneath does not fit the system.
        """
        scenario = parse_spec(ScenarioSpec, options, source="schedule").build()
        problem = Problem.of(scenario.system, scenario.draw(seed), compute_scale=scenario.spec.compute_scale)
        opponent = self.contender.first
        run = opponent.run(problem, logging=log)
        return Scheduled(opponent, problem, run, run.result(family=True))
