"""Look-ahead: try the best few candidates of a decision, let a rule play each to the end, keep the best.

What has been decided so far and the rule from there on make one complete schedule, the plan. A candidate other than
the rule's replaces the plan only if it ends sooner, so the result never ends later than the rule. Few decisions can
change when a layer ends: among rows, those of the GPU that is last to finish its GEMMs in the plan; only they are
tried. Look-ahead knows the whole routing in advance and spends many simulations a layer: no kernel could do this while
it runs. It is a yardstick for what better decisions are worth, and a teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from dysharp_env.schedules import Exposure, Problem, ScheduleSpec
from dysharp_env.schedules.opening import scores_by_rule
from dysharp_env.simulator.batch import Batch
from dysharp_env.simulator.engine import Decision, Engine
from dysharp_env.simulator.state.codes import ASK
from dysharp_env.simulator.state.observation import GEMM

KINDS = ("dispatch", "gemm")


@dataclass(frozen=True)
class LookAhead:
    """A rule with look-ahead.

    Attributes:
        schedule: The schedule whose rule plays on, and whose first choices are tried.
        rollouts: Simulations that one layer may cost; they are spread evenly over its decisions.
        candidates: Candidates tried in a decision, the rule's own among them, which costs nothing.
        kinds: Decision kinds that are looked at; the rule takes the others. Combines hardly matter, and are many.
    """

    schedule: ScheduleSpec
    rollouts: int = 400
    candidates: int = 6
    kinds: tuple[str, ...] = KINDS

    def exposure(self) -> Exposure:
        """Returns an exposure in which decisions offer what the schedule's own rule would see."""
        return Exposure(self.kinds, hold=self.schedule.hold, partial_tiles=self.schedule.partial_tiles)

    def on(self, problem: Problem) -> LookAhead:
        """Returns the same with the variant of the schedule that is fastest on a problem by its rule alone."""
        return replace(self, schedule=problem.best(self.schedule))


@dataclass(frozen=True)
class Ahead:
    """A layer played with look-ahead.

    Attributes:
        makespan_ps: When the last token was combined.
        rule_ps: When it would have been under the rule alone.
        rollouts: Simulations spent.
        choices: The row taken in each decision that was asked.
        improvements: Decisions in which another candidate than the rule's ended sooner.
    """

    makespan_ps: int
    rule_ps: int
    rollouts: int
    improvements: int
    choices: list[int] = field(repr=False)


def look_ahead(problem: Problem, ahead: LookAhead) -> Ahead:
    """Returns a problem played with look-ahead.

    Raises:
        ConfigError: The schedule does not fit the system.
    """
    ahead = ahead.on(problem)
    return play_ahead(problem.engine(ahead.schedule, ahead.exposure()), ahead)


def play_ahead(
    engine: Engine, ahead: LookAhead, note: Callable[[Decision, int], object] = lambda decision, choice: None
) -> Ahead:
    """Returns a layer at time zero played with look-ahead.

    Args:
        engine: The layer, under the schedule; it asks what the exposure does, and is at its end in the end.
        ahead: How it is played.
        note: Called with every decision that is asked and the row taken, before that is told the engine.
    """
    weights = engine.program.weights  # of the plan, if there are several
    batch = Batch(max(1, ahead.candidates - 1), engine.program.max_candidates)
    plan = engine.clone()
    plan.follow_rule()
    plan.advance()
    rule_ps = plan_ps = plan.now_ps
    last_gpu, total = _last_gpu(plan), plan.decisions
    spent, improvements, choices = 0, 0, list[int]()
    while (decision := engine.advance()) is not None:
        ranked = rank(weights, decision)
        choice = int(ranked[0])
        others = ranked[1 : ahead.candidates]
        matters = decision.kind != GEMM or decision.gpu == last_gpu
        # Decisions are passed over while more has been spent than the share of those before them.
        is_due = spent * total <= ahead.rollouts * len(choices) and spent + len(others) <= ahead.rollouts
        if matters and is_due and len(others) > 0:
            ends = _try(engine, others, batch)
            spent += len(others)
            soonest = min(range(len(ends)), key=lambda i: ends[i].now_ps)
            if ends[soonest].now_ps < plan_ps:
                choice, plan_ps, last_gpu = int(others[soonest]), ends[soonest].now_ps, _last_gpu(ends[soonest])
                improvements += 1
        choices.append(choice)
        note(decision, choice)
        engine.decide(choice)
    assert engine.now_ps == plan_ps, (engine.now_ps, plan_ps)
    return Ahead(engine.now_ps, rule_ps, spent, improvements, choices)


def rank(weights: np.ndarray, decision: Decision) -> np.ndarray:
    """Returns the legal rows of a decision by the score of a (kind, feature) rule, the first of equals first."""
    legal = np.flatnonzero(decision.mask)
    scores = scores_by_rule(weights[decision.kind], decision.features[legal])
    return legal[np.argsort(-scores, kind="stable")]


def _last_gpu(engine: Engine) -> int:
    """Returns the GPU that was the last to finish a GEMM-2 row in a finished layer."""
    tiles = engine.state.tiles
    return int(engine.state.experts["gpu"][tiles["expert"][tiles["rows"]["end_ps"][..., 1].argmax()]])


def _try(engine: Engine, choices: np.ndarray, batch: Batch) -> list[Engine]:
    """Returns the waiting layer at its end if it takes each of these rows and then the rule's."""
    waits = np.zeros(len(batch.status), bool)
    waits[: len(choices)] = True
    for copy in range(len(choices)):
        batch.place(copy, engine.clone())
    rows = np.zeros(len(waits), np.int64)
    rows[: len(choices)] = choices
    batch.answer(waits, rows)
    batch.advance()
    clones = [clone for clone in batch.engines[: len(choices)] if clone is not None]
    for clone in clones:
        if clone.status == ASK:
            clone.follow_rule()
    batch.advance()
    return clones
