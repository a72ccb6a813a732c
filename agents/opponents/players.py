"""The sorts of opponent: a schedule, one with look-ahead, random or first choices, and whatever a network chooses.

A distilled rule and a trained run are both networks on top of a schedule; see ``Learned``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from agents.opponents.lookahead import LookAhead, look_ahead, play_ahead
from agents.opponents.opponent import Answer, Opponent
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Exposure, LayerRun, Problem, ScheduleSpec, load_schedule
from dysharp_env.simulator.engine import Decision
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import SPLIT


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

    def start(self, problem: Problem, *, logging: bool = False) -> LayerRun:
        """Returns a layer at time zero under the fastest variant of the schedule."""
        return problem.start(problem.best(self.schedule), logging=logging)

    def run(self, problem: Problem, place: int, *, logging: bool = False) -> LayerRun:
        """Returns a layer that the fastest variant of the schedule has run."""
        return problem.run(self.schedule, logging=logging)


def _nobody(_: Decision) -> int:
    raise AssertionError("a schedule's own rule takes all its decisions")


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

    def start(self, problem: Problem, *, logging: bool = False) -> LayerRun:
        """Returns a layer at time zero under the fastest variant of the schedule, whose decisions are asked."""
        ahead = self.ahead.on(problem)
        return problem.start(ahead.schedule, ahead.exposure(), logging=logging)

    def run(self, problem: Problem, place: int, *, logging: bool = False) -> LayerRun:
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

    def best_row(self, decision: Decision) -> int:
        """Returns the legal row that its networks score highest, the first of equals."""
        return best_row(self.opening if self.opening and decision.kind < SPLIT else self.network, decision)

    def answers(self, problem: Problem, place: int) -> Answer:
        """Returns what takes the row that the networks score highest."""
        return self.best_row

    def run(self, problem: Problem, place: int, *, logging: bool = False) -> LayerRun:
        """Returns a layer that the network has played inside the engine."""
        run = problem.start(self.base, replace(self.exposure, network=self.network, opening=self.opening), logging=logging)
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


def best_row(network: Network, decision: Decision) -> int:
    """Returns the legal row that a network scores highest, the first of equals, as the engine does."""
    count = decision.num_candidates
    return network.best(decision.features[:count], decision.context, decision.mask[:count])
