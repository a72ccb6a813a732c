"""Who can play a layer: what every sort of opponent has in common, and what becomes of a layer that it plays.

A schedule that follows its own rule is the one sort that is told here. Those that are asked are in ``agents``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from dysharp_env.schedules.exposure import Exposure
from dysharp_env.schedules.run import LayerRun, Problem, Starter
from dysharp_env.schedules.spec import ScheduleSpec
from dysharp_env.simulator.engine import Decision
from dysharp_env.workload import Scenario

Answer = Callable[[Decision], int]  # what waits -> the row of the candidate taken


@dataclass(frozen=True)
class Played:
    """One workload under one policy, played to its end.

    Attributes:
        policy: The policy's name; empty where an opponent plays that nobody has named.
        seed: Training seed of a policy, seed of random choices, or None.
        workload: Its name in the suite.
        makespan_us: Until its last token was combined; decisions take no time.
        lower_bound_us: What no schedule can beat.
        decisions: Decisions with more than one legal answer, of all GPUs, whoever took them.
        asked: Those of them that were not taken by the schedule's own rule.
        busiest_decisions: Decisions asked of the GPU that was asked most; None unless decisions are charged.
        charged_us: The makespan with the time of decisions; None unless they are charged.
        family_bound_us: What nothing can beat that runs by the policy's program, whatever it decides.
        renaming: Which numbers the GPUs had; see ``Problem.renamed``.
    """

    policy: str
    seed: int | None
    workload: str
    makespan_us: float
    lower_bound_us: float
    decisions: int
    asked: int
    busiest_decisions: int | None = None
    charged_us: float | None = None
    family_bound_us: float | None = None
    renaming: int = 0

    @property
    def ratio(self) -> float:
        """Makespan over lower bound."""
        return self.makespan_us / self.lower_bound_us


class Opponent(ABC):
    """One schedule or policy with one seed: the schedule beneath, which decisions are asked, and who answers them.

    Attributes:
        seed: Training seed of a policy, seed of random choices, or None.
    """

    seed: int | None

    @property
    @abstractmethod
    def base(self) -> ScheduleSpec:
        """The schedule beneath, whose rule takes what is not asked."""

    @property
    @abstractmethod
    def exposure(self) -> Exposure:
        """Which decisions are asked when they are answered one by one; none of a schedule's own rule."""

    @abstractmethod
    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns what answers the decisions of one layer, asked in order.

        Its place is that among all that are played; random choices have a stream for each.
        """

    def require_fit(self, scenario: Scenario) -> None:
        """Checks that the machine of a scenario can run the schedule beneath with what is asked.

        Raises:
            ConfigError: It cannot.
        """
        Starter(scenario.system, scenario.layer, self.base, exposure=self.exposure)

    def on(self, problem: Problem) -> Opponent:
        """Returns the same with what is settled once for a layer settled as for this one: the variant of a schedule."""
        return self

    def start(self, problem: Problem, *, logging: bool = False) -> LayerRun:
        """Returns a layer at time zero whose decisions are asked.

        Raises:
            ConfigError: The schedule beneath does not fit the system.
        """
        return problem.start(self.base, self.exposure, logging=logging)

    def run(self, problem: Problem, place: int = 0, *, logging: bool = False) -> LayerRun:
        """Returns a layer played to its end; logging records every use of a link and SM group, as pictures need it.

        Raises:
            ConfigError: The schedule beneath does not fit the system.
        """
        run = self.start(problem, logging=logging)
        for _ in stepwise(run, self.answers(problem, place)):
            pass
        return run

    def play(self, problems: Sequence[Problem], policy: str = "") -> list[Played]:
        """Returns what becomes of each problem under the name of a policy.

        Raises:
            ConfigError: The schedule beneath does not fit a system.
        """
        return [self.play_one(problem, place, policy) for place, problem in enumerate(problems)]

    def play_one(self, problem: Problem, place: int, policy: str = "") -> Played:
        """Returns what becomes of one problem, which has that place among all that are played.

        Raises:
            ConfigError: The schedule beneath does not fit the system.
        """
        run = self.run(problem, place)
        result = run.result(family=True)
        numbers = result.makespan_us, result.lower_bound_us, result.decisions, run.engine.asked
        family_us, renaming = result.family_bound_us, problem.renaming
        return Played(policy, self.seed, problem.name, *numbers, family_bound_us=family_us, renaming=renaming)

    def replay(self, problem: Problem, place: int) -> Iterator[tuple[Decision, int]]:
        """Yields every decision that is asked with the row taken, before it is taken; it ends as ``run`` does."""
        return stepwise(self.start(problem), self.answers(problem, place))


def stepwise(run: LayerRun, answer: Answer) -> Iterator[tuple[Decision, int]]:
    """Yields every decision that a layer asks with the row taken, before it is taken, until the layer is done."""
    while (decision := run.advance()) is not None:
        row = answer(decision)
        yield decision, row
        run.decide(row)


@dataclass(frozen=True)
class ScheduleOpponent(Opponent):
    """A schedule, which takes all decisions by its own rule."""

    schedule: ScheduleSpec
    seed = None
    exposure = Exposure()

    @property
    def base(self) -> ScheduleSpec:
        """The schedule."""
        return self.schedule

    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns what is never called."""
        return _nobody

    def on(self, problem: Problem) -> ScheduleOpponent:
        """Returns the fastest variant of the schedule on a problem."""
        return replace(self, schedule=problem.best(self.schedule))

    def start(self, problem: Problem, *, logging: bool = False) -> LayerRun:
        """Returns a layer at time zero under the fastest variant of the schedule."""
        return problem.start(self.on(problem).schedule, logging=logging)

    def run(self, problem: Problem, place: int = 0, *, logging: bool = False) -> LayerRun:
        """Returns a layer that the fastest variant of the schedule has run."""
        return problem.run(self.schedule, logging=logging)


def _nobody(_: Decision) -> int:
    raise AssertionError("a schedule's own rule takes all its decisions")


@dataclass(frozen=True)
class Contender:
    """What one name stands for: opponents of one name that differ in their seed.

    Attributes:
        given: How it was named.
        name: What rows call it.
        sort: Under which key the JSON of results shows how it was named.
        identity: What it is made of; equal for the same thing under two names.
        opponents: One for each training seed or seed of random choices, mostly one.
    """

    given: str
    name: str
    sort: str
    identity: object
    opponents: tuple[Opponent, ...]

    @classmethod
    def of_schedule(cls, schedule: ScheduleSpec, given: str = "") -> Contender:
        """Returns a schedule that follows its own rule, named so or by its own name."""
        return cls(given or schedule.name, schedule.name, "schedule", schedule, (ScheduleOpponent(schedule),))

    @property
    def first(self) -> Opponent:
        """The one that plays where a layer is played once: that of the first seed."""
        return self.opponents[0]

    def described(self) -> dict[str, Any]:
        """Returns who plays first, for the ``config`` of a JSON result.

        That is a schedule in full, or of an agent how it was named, its seed, the schedule beneath and what is asked.
        """
        opponent, base = self.first, self.first.base.model_dump(mode="json")
        if isinstance(opponent, ScheduleOpponent):
            return base
        asked = {
            field.name: getattr(opponent.exposure, field.name)
            for field in fields(opponent.exposure)
            if field.name not in ("network", "opening")
        }
        return {"name": self.name, "given": self.given, "seed": opponent.seed, "schedule": base, "asked": asked}

    def is_same_as(self, other: Contender) -> bool:
        """Returns whether both are one thing, perhaps named in two ways."""
        return (self.name, self.identity) == (other.name, other.identity)

    def play(self, problems: Sequence[Problem]) -> list[Played]:
        """Returns what becomes of each problem under each of the opponents.

        Raises:
            ConfigError: A schedule does not fit a system.
        """
        return [played for opponent in self.opponents for played in opponent.play(problems, self.name)]
