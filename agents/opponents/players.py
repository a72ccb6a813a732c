"""The sorts of opponent that are asked: look-ahead, random or first choices, a function, whatever a network chooses.

A distilled rule and a trained run are both networks on top of a schedule; see ``Learned``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Integral

import numpy as np

from dysharp_env.config import ConfigError, parse_spec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Exposure, LayerRun, Problem, ScheduleSpec, load_schedule
from dysharp_env.schedules.opponent import Answer, Opponent, ScheduleOpponent
from dysharp_env.simulator.engine import Decision
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import PLAN, SPLIT

from .lookahead import LookAhead, look_ahead, play_ahead


@dataclass(frozen=True)
class VirtualBest(Opponent):
    """The fastest of some schedules on each layer, in hindsight; those that the machine cannot run are passed over."""

    schedules: tuple[ScheduleSpec, ...]
    seed = None
    exposure = Exposure()

    @property
    def base(self) -> ScheduleSpec:
        """The first of them."""
        return self.schedules[0]

    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns what is never called."""
        return ScheduleOpponent(self.base).answers(problem, place)

    def on(self, problem: Problem) -> VirtualBest:
        """Returns the fastest of the schedules on a problem alone."""
        return replace(self, schedules=(self.run(problem).schedule,))

    def start(self, problem: Problem, *, logging: bool = False) -> LayerRun:
        """Returns a layer at time zero under the fastest of the schedules."""
        return problem.start(self.on(problem).base, logging=logging)

    def run(self, problem: Problem, place: int = 0, *, logging: bool = False) -> LayerRun:
        """Returns a layer that the fastest of the schedules has run, the earliest of equals.

        Raises:
            ConfigError: The machine can run none of them.
        """
        best: LayerRun | None = None
        reason = ConfigError("there is no schedule")
        for schedule in self.schedules:
            try:
                run = problem.run(schedule, logging=logging)
            except ConfigError as error:
                reason = error
                continue
            if best is None or run.engine.now_ps < best.engine.now_ps:
                best = run
        if best is None:
            raise reason
        return best


@dataclass(frozen=True)
class LookAheadOpponent(Opponent):
    """A schedule's rule with look-ahead."""

    ahead: LookAhead
    seed = None

    @property
    def base(self) -> ScheduleSpec:
        """The schedule whose rule plays on."""
        return self.ahead.schedule

    @property
    def exposure(self) -> Exposure:
        """The decisions that are looked at."""
        return self.ahead.exposure()

    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns what repeats the choices that look-ahead has made."""
        choices = iter(look_ahead(problem, self.ahead).choices)
        return lambda _: next(choices)

    def on(self, problem: Problem) -> LookAheadOpponent:
        """Returns look-ahead with the fastest variant of the schedule on a problem."""
        return replace(self, ahead=self.ahead.on(problem))

    def start(self, problem: Problem, *, logging: bool = False) -> LayerRun:
        """Returns a layer at time zero under the fastest variant of the schedule, whose decisions are asked."""
        ahead = self.ahead.on(problem)
        return problem.start(ahead.schedule, ahead.exposure(), logging=logging)

    def run(self, problem: Problem, place: int = 0, *, logging: bool = False) -> LayerRun:
        """Returns a layer played with look-ahead."""
        run = self.start(problem, logging=logging)
        play_ahead(run.engine, replace(self.ahead, schedule=run.schedule))
        return run


class InEnvironment(Opponent):
    """Whoever is asked what an environment asks."""

    env: EnvSpec

    @cached_property
    def base(self) -> ScheduleSpec:
        """The environment's base schedule."""
        return load_schedule(self.env.schedule)

    @property
    def exposure(self) -> Exposure:
        """The environment's decisions."""
        return self.env.exposure()


@dataclass(frozen=True)
class Chooser(InEnvironment):
    """Uniformly random legal candidates, or without a seed the first: natural token order, first ready first."""

    env: EnvSpec
    seed: int | None = None

    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns what draws from the stream of a place, whatever is played beside it."""
        if self.seed is None:
            return lambda decision: int(decision.mask.argmax())
        # The same as the child that spawning one for every place gives.
        stream = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(place,)))
        return lambda decision: int(stream.choice(np.flatnonzero(decision.mask)))


@dataclass(frozen=True)
class FunctionOpponent(InEnvironment):
    """A Python function that answers decisions one by one: it is given a ``Decision`` and returns the row it takes.

    What is asked, and the schedule beneath, are the function's attribute ``env``, settings of ``EnvSpec`` as
    ``gymnasium.make`` takes them; without it they are an environment's own, and all kinds that it exposes are asked. A
    function is called in the order of time, and keeps nothing from one layer for the next.

    >>> from dysharp_env.schedules import Problem
    >>> from dysharp_env.workload import ScenarioSpec
    >>> def warm_first(decision):
    ...     return decision.best(decision.feature("weights_in_l2") + decision.feature("size"))
    >>> warm_first.env = {"schedule": "dysharp", "exposed": ["gemm"], "hold": False}
    >>> scenario = ScenarioSpec(gpus=2, tokens=16, routing="uniform").build()
    >>> run = FunctionOpponent.of(warm_first, "warm_first").run(Problem.of(scenario.system, scenario.draw(0)))
    >>> run.engine.done, run.engine.asked > 0
    (True, True)

    Attributes:
        env: What is asked, and the schedule beneath.
        function: Who answers.
        name: What messages call it.
    """

    env: EnvSpec
    function: Callable[[Decision], int]
    name: str
    seed = None

    @classmethod
    def of(cls, function: Callable[[Decision], int], name: str) -> FunctionOpponent:
        """Returns the opponent of a function.

        Raises:
            ConfigError: The function's ``env`` is wrong.
        """
        settings = getattr(function, "env", {})
        if not isinstance(settings, Mapping):
            raise ConfigError(f"'{name}': env={settings!r} must map settings of an environment to values")
        return cls(parse_spec(EnvSpec, settings, source=f"'{name}': env"), function, name)

    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns the function, with what it answers checked."""

        def answer(decision: Decision) -> int:
            row = self.function(decision)
            if not isinstance(row, Integral) or not 0 <= row < len(decision.mask) or not decision.mask[row]:
                legal = np.flatnonzero(decision.mask).tolist()
                asked = f"a decision of kind {decision.kind_name} with {row!r}"
                raise ConfigError(f"'{self.name}' answers {asked}; legal rows are {legal}")
            return int(row)

        return answer


def read_function(given: str) -> Callable[[Decision], int]:
    """Returns the function that ``package.module:function`` names.

    Raises:
        ConfigError: There is no such module on Python's path, or nothing of that name in it that can be called.
    """
    module, _, name = given.partition(":")
    try:
        found = getattr(importlib.import_module(module), name, None) if module else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # a module of theirs lacks what it imports
        raise ConfigError(f"schedule='{given}': Python finds no module '{module}'") from None
    if not callable(found):
        raise ConfigError(f"schedule='{given}': module '{module}' has no function '{name}'")
    return found


@dataclass(frozen=True, eq=False)
class Learned(InEnvironment):
    """A network that answers decisions, inside the engine where it can.

    Attributes:
        seed: Training seed of its run; None for a distilled rule.
        env: The schedule beneath and what is asked.
        network: What answers.
        opening: What answers before a layer starts; None: the same.
    """

    seed: int | None
    env: EnvSpec
    network: Network
    opening: Network | None = None

    def network_of(self, kind: int) -> Network:
        """Returns the network that answers decisions of a kind."""
        return self.opening if self.opening and kind < SPLIT else self.network

    def best_row(self, decision: Decision) -> int:
        """Returns the legal row that its networks score highest, the first of equals."""
        return best_row(self.network_of(decision.kind), decision)

    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns what takes the row that the networks score highest."""
        return self.best_row

    def run(self, problem: Problem, place: int = 0, *, logging: bool = False) -> LayerRun:
        """Returns a layer that the network has played inside the engine."""
        run = problem.start(
            self.base, replace(self.exposure, network=self.network, opening=self.opening), logging=logging
        )
        run.engine.run()
        return run


class LateLearned(Learned):
    """A policy whose splits come late: each takes effect only when the next one on its GPU is asked.

    In the engine a decision takes no time. A GPU would decide on its split while it works on with the one it has, so
    what deciding costs is that a split comes late. Here it comes late by a whole moment, mostly tens of microseconds,
    where a warp needs less than one: it shows how much hangs on deciding at the right time, and is no estimate of a
    kernel's loss.
    """

    run = Opponent.run

    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns what takes every split but the first one moment late on its GPU."""
        first: int | None = None
        decided: dict[int, int] = {}  # by GPU: what comes into effect at its next moment

        def answer(decision: Decision) -> int:
            nonlocal first
            row = self.best_row(decision)
            if decision.kind != SPLIT:
                return row  # it cannot be taken later: what it chose from would be gone
            if first is None:
                first = row  # the one for all GPUs is decided before the layer starts
                return row
            late, decided[decision.gpu] = decided.get(decision.gpu, first), row
            return late

        return answer


@dataclass(frozen=True, eq=False)
class FewerPlans(Learned):
    """A policy that takes the best of some plans, whatever it thinks of the others; where there is none, of all.

    Attributes:
        kept: Whether a plan is one of them.
    """

    kept: Callable[[ScheduleSpec], bool] = lambda _: True
    run = Opponent.run

    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns what takes the row that the networks score highest, of plans that are kept."""
        plans = problem.offer(self.base, self.exposure).plans
        kept = np.array([self.kept(plan.schedule) for plan in plans])

        def answer(decision: Decision) -> int:
            if decision.kind != PLAN:
                return self.best_row(decision)
            mask = decision.mask.copy()
            mask[: len(kept)] &= kept
            return self.best_row(replace(decision, mask=mask) if mask.any() else decision)

        return answer


def best_row(network: Network, decision: Decision) -> int:
    """Returns the legal row that a network scores highest, the first of equals, as the engine does."""
    count = decision.num_candidates
    return network.best(decision.features[:count], decision.context, decision.mask[:count])
