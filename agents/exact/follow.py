"""Plays a solver's schedule of a tiny layer in the twin, to see whether what was solved can be played.

Every group takes what is next in the solver's order, and holds while that is not ready. HBM reads in that order without
a rest, unless a row starts sooner than there, and its matrix comes sooner: nobody is the later for it. A solver may
also let a row or sum wait for no reason of order, or for a token to join an open tile, which does not end a group's
hold; and it may serve some heads that arrive at one instant as it likes. Where its makespan hangs on that, the play
ends at another time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from dysharp_env.schedules import ScheduleSpec
from dysharp_env.simulator.state.codes import NO_TIME, NOTHING
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, PREFETCH
from dysharp_env.simulator.twin import Twin
from dysharp_env.simulator.twin.parts import Chunk, Decision, Matrix, Pair, Row, Unit

from .search import Solved
from .tiny import Times, TinyLayer, play

NO_RANK = 2**62  # behind every time
Key = TypeVar("Key")


def play_solved(tiny: TinyLayer, solved: Solved, schedule: ScheduleSpec) -> Times:
    """Returns the times of the twin when it plays a solution's order on top of a fitted schedule."""
    twin = tiny.twin(schedule, tiny.asked())
    return play(twin, follower(twin, solved))


def follower(twin: Twin, solved: Solved) -> Callable[[Decision], int]:
    """Returns a function that answers the twin's decisions in the solution's order."""
    pushed: set[tuple[int, int]] = set()

    def choose(decision: Decision) -> int:
        legal = decision.candidates[: int(decision.mask.sum())]
        if decision.kind == DISPATCH:
            tokens = [candidate.tokens[0].number for candidate in legal if isinstance(candidate, Chunk)]
            return min(range(len(tokens)), key=lambda row: solved.tokens[decision.gpu].index(tokens[row]))
        if decision.kind == COMBINE:
            waiting = {pair: ps for pair, ps in solved.times.pushes.items() if pair[1] == decision.gpu}
            waiting = {pair: ps for pair, ps in waiting.items() if pair not in pushed}
            # A chunk is one token here, so a unit is one partial sum.
            sums = [unit.items[0] for unit in legal if isinstance(unit, Unit)]
            shown = [(item.token.number, item.gpu) for item in sums if isinstance(item, Pair)]
            row = _next(waiting, shown, len(legal))
            if row < len(shown):
                pushed.add(shown[row])
            return row
        if decision.kind == PREFETCH:
            shown_places = [(item.expert, item.stage) for item in legal if isinstance(item, Matrix)]
            known = {place: ps for place, ps in solved.times.fetches.items() if place in shown_places}
            return _next(known, shown_places, len(legal)) if known else len(legal) - 1
        waiting_rows = {row: ps for row, ps in solved.times.rows.items() if _is_waiting(twin, decision.gpu, row)}
        shown_rows = [_key(solved, row) for row in legal if isinstance(row, Row)]
        return _next(waiting_rows, shown_rows, len(legal))

    return choose


def _key(solved: Solved, row: Row) -> tuple[int, int, int]:
    """Returns what the solution calls a row; a tile that is to be fuller than it is gets a name of no row."""
    number, place = row.tile.expert.number, row.tile.place
    size = sum(solved.times.tiles[expert, token] == place for expert, token in solved.times.tiles if expert == number)
    is_whole = not row.is_open or len(row.tile.pairs) == size
    return number, place if is_whole else NOTHING, row.stage


def _next(waiting: dict[Key, int], shown: list[Key], num_legal: int) -> int:
    """Returns the row of what starts first of all that waits; of hold if that is legal and the first is not shown."""
    first = min(waiting, key=waiting.__getitem__)
    if first in shown:
        return shown.index(first)
    if num_legal > len(shown):
        return num_legal - 1
    return min(range(len(shown)), key=lambda row: waiting.get(shown[row], NO_RANK))


def _is_waiting(twin: Twin, gpu: int, row: tuple[int, int, int]) -> bool:
    number, place, stage = row
    tiles = [expert.tiles for expert in twin.gpus[gpu].experts if expert.number == number]
    return any(place >= len(mine) or mine[place].start_ps[stage - 1] == NO_TIME for mine in tiles)
