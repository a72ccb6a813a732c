"""Decisions of a layer with the candidates that were shown: recorded by playing the layer again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.report.timelines.model import Instant, Track
from dysharp_env.schedules import Exposure, LayerRun, Problem, ScheduleSpec
from dysharp_env.schedules.opening import scores_by_rule
from dysharp_env.schedules.opponent import Answer, Opponent, ScheduleOpponent, stepwise
from dysharp_env.simulator.engine import Decision
from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.simulator.state.observation import COMBINE, DECISION_KINDS, DISPATCH, FEATURES, GEMM, PREFETCH, SPLIT
from dysharp_env.simulator.state.state import State

MOST_SHOWN = 8
_RULED = FEATURES.index("ruled")


class Candidate(NamedTuple):
    """One thing that a decision might have taken.

    Attributes:
        name: What it is.
        features: What is shown of it, by name; zeros are left out.
        score: What the schedule's rule gives it; None where somebody else chooses.
    """

    name: str
    features: dict[str, float]
    score: float | None


class Taken(NamedTuple):
    """A decision that was taken.

    Attributes:
        kind: One of ``DECISION_KINDS``.
        gpu: Whose.
        time_ps: When.
        legal: Candidates that might have been taken.
        chosen: The one that was.
        others: Others that might have been, as the rule orders them, or as they were listed; ``MOST_SHOWN`` at most.
    """

    kind: str
    gpu: int
    time_ps: int
    legal: int
    chosen: Candidate
    others: tuple[Candidate, ...]


def replayed(problem: Problem, opponent: Opponent) -> tuple[LayerRun, list[Taken]]:
    """Returns a layer that an opponent has played, whose engine kept a log, and the decisions that were taken.

    Of a schedule's own rule these are all of them; of whoever is asked, those that are asked.
    """
    is_rule = isinstance(opponent, ScheduleOpponent)
    answer: Answer
    if is_rule:
        schedule = problem.best(opponent.base)
        exposure = Exposure(kinds=_kinds(schedule), hold=schedule.hold, partial_tiles=schedule.partial_tiles)
        run, answer = problem.start(schedule, exposure, logging=True), _as_ruled
    else:
        run, answer = opponent.start(problem, logging=True), opponent.answers(problem, 0)
    taken = [_taken(run, decision, row, is_rule) for decision, row in stepwise(run, answer)]
    return run, taken


def _kinds(schedule: ScheduleSpec) -> tuple[str, ...]:
    """Returns the kinds of decisions that a schedule's rule takes, under any of its plans."""
    options = schedule.options
    takes = {
        "plan": len(options) > 1,
        "replicate": any(option.replicate.planner == "rule" for option in options),
        "prefetch": any(option.prefetch != "none" for option in options),
        **dict.fromkeys(("dispatch", "gemm", "combine"), True),
    }
    return tuple(kind for kind in DECISION_KINDS if takes.get(kind))


def _as_ruled(decision: Decision) -> int:
    return int(decision.features[: decision.num_candidates, _RULED].argmax())


def _taken(run: LayerRun, decision: Decision, row: int, is_rule: bool) -> Taken:
    legal = np.flatnonzero(decision.mask[: decision.num_candidates])
    state = None if run.waiting else run.engine.state
    scores: Mapping[int, float] = {}
    if is_rule and state is not None:
        weights = state.weights.reshape(len(DECISION_KINDS), -1)[decision.kind]
        found = scores_by_rule(weights, decision.features[: decision.num_candidates])
        scores = dict(enumerate(found.tolist()))

    def candidate(place: int) -> Candidate:
        shown = decision.features[place]
        features = {FEATURES[each]: round(float(shown[each]), 6) for each in np.flatnonzero(shown) if each != _RULED}
        return Candidate(_name(state, decision.kind, place), features, scores.get(place))

    rest = [place for place in legal.tolist() if place != row]
    rest.sort(key=lambda place: -scores.get(place, 0.0))
    others = tuple(candidate(place) for place in rest[:MOST_SHOWN])
    now_ps = run.engine.now_ps if state is not None else 0
    return Taken(DECISION_KINDS[decision.kind], decision.gpu, now_ps, len(legal), candidate(row), others)


def _name(state: State | None, kind: int, place: int) -> str:
    """Returns what people call a candidate of the decision at hand; before the layer its place in the list."""
    if state is None:
        return f"{DECISION_KINDS[kind]} {place}"
    item = int(state.candidates["item"][place])
    if item == NOTHING:
        return "hold"
    if kind == SPLIT:
        split = state.splits[item]
        return f"{int(split['dispatch_sms'])} dispatch and {int(split['combine_sms'])} combine SMs"
    if kind == PREFETCH:
        return f"GEMM-{item % 2 + 1} matrix of expert {item // 2}"
    if kind == GEMM:
        return f"GEMM-{int(state.candidates['gemm'][place]) + 1} tile {item}"
    if kind == DISPATCH:
        return f"chunk {item} for part {int(state.chunks['part'][item])}"
    assert kind == COMBINE, kind
    return f"sums of chunk {item % int(state.root['home_chunks'][0])}"


def decision_tracks(taken: Sequence[Taken], ranks: Mapping[str, int]) -> Iterator[Track]:
    """Yields a track of instants for each GPU and kind of decision that there were."""
    found: dict[tuple[int, str], list[Instant]] = {}
    for each in taken:
        found.setdefault((each.gpu, each.kind), []).append(_instant(each))
    for (gpu, kind), instants in sorted(found.items(), key=lambda item: (item[0][0], DECISION_KINDS.index(item[0][1]))):
        lane = DECISION_KINDS.index(kind)
        yield Track(gpu, f"decisions: {kind}", ranks["decisions"], instants=instants, lane=lane)


def _instant(taken: Taken) -> Instant:
    args: dict[str, Any] = {"candidates": taken.legal, "chosen": _shown(taken.chosen)}
    args["others"] = [_shown(each) for each in taken.others]
    if taken.legal - 1 > len(taken.others):
        args["others_not_shown"] = taken.legal - 1 - len(taken.others)
    return Instant(taken.chosen.name, taken.time_ps, args)


def _shown(candidate: Candidate) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": candidate.name}
    if candidate.score is not None:
        shown["score"] = round(candidate.score, 6)
    return {**shown, **candidate.features}
