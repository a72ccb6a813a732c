"""Makespans with the time of decisions: what a row would be if deciding took a kernel so many microseconds.

The engine lets decisions take no time. Here a row pays for every decision of the GPU that was asked most, as if the
whole machine stood still for each of them. Decisions of different GPUs are taken at the same time, each by a GPU for
itself; the split at the start, which is for all of them, every GPU works out alike, so it is paid once. That is more
than a machine would lose where work goes on while a decision is taken, as it does for splits. It is no bound in the
strict sense: delays of one GPU that make another wait could add up along a chain of GPUs, and what is decided could
differ if decisions came later. Only what is asked from outside is charged, never a schedule's own rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender, Opponent, Played
from dysharp_env.simulator.state.observation import DECISION_KINDS, SPLIT

from .table import opponents_of

MOST_DECISION_US = 1000.0


def charge(
    rows: Sequence[Played],
    contenders: Sequence[Contender],
    problems: Sequence[Problem],
    decision_us: float,
    kinds: Sequence[str] = DECISION_KINDS,
) -> list[Played]:
    """Returns the rows with charged makespans beside the others; policies are played again, to count decisions by GPU.

    The contenders are all whose rows there are, the reference among them; only decisions of these kinds are charged.
    """
    players = opponents_of(contenders)
    places = {(problem.name, problem.renaming): place for place, problem in enumerate(problems)}
    charged = []
    for row in rows:
        opponent, place = players[row.policy, row.seed], places[row.workload, row.renaming]
        count = busiest_decisions(opponent, problems[place], place, kinds) if opponent.exposure.kinds else 0
        charged_us = row.makespan_us + count * decision_us
        charged.append(replace(row, busiest_decisions=count, charged_us=charged_us))
    return charged


def busiest_decisions(opponent: Opponent, problem: Problem, place: int, kinds: Sequence[str] = DECISION_KINDS) -> int:
    """Returns the decisions of these kinds of the GPU that takes most of them, those for all GPUs included."""
    numbers = {DECISION_KINDS.index(kind) for kind in kinds}
    played = opponent.replay(problem, place)
    asked = [(decision.kind, decision.gpu) for decision, _ in played if decision.kind in numbers]
    # The first split is that of all GPUs.
    for_all = next((number for number, (kind, _) in enumerate(asked) if kind == SPLIT), None)
    counts = Counter(gpu for number, (_, gpu) in enumerate(asked) if number != for_all)
    return max(counts.values(), default=0) + (for_all is not None)


def charged_rows(rows: Sequence[Played]) -> list[Played]:
    """Returns the rows with charged makespans in the place of the others."""
    return [replace(row, makespan_us=row.charged_us) for row in rows if row.charged_us is not None]
