"""Searches a tiny layer's constraint program, or leaves one schedule, or one order, of it to be checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .model import ExactModel, Variable
from .tiny import Times


@dataclass(frozen=True)
class Solved:
    """What the solver found.

    Attributes:
        times: The best schedule found.
        tokens: (GPU, place) tokens in the order in which each GPU dispatches them.
        bound_ps: What no schedule can beat, as far as the search has come.
        is_proved: Whether the schedule is proved to be optimal.
    """

    times: Times
    tokens: list[list[int]]
    bound_ps: int
    is_proved: bool


def _timed(model: ExactModel, times: Times) -> Iterator[tuple[Variable, int]]:
    """Yields every variable that the model decides about, with its value in a schedule."""
    yield model.makespan, times.makespan_ps
    for mine, theirs in ((model.sends, times.sends), (model.pushes, times.pushes), (model.rows, times.rows)):
        yield from ((mine[key], theirs[key]) for key in theirs)  # type: ignore[index]
    yield from ((fetch, times.fetches[place]) for place, fetch in model.fetches.items())
    for (expert, tile), used in model.used.items():
        yield used, int((expert, tile, 1) in times.rows)
    for name, segment in model.segments.items():
        yield segment.start, times.arrivals[name]
    for (expert, token, tile), is_inside in model.in_tile.items():
        yield is_inside, int(times.tiles[expert, token] == tile)


def fix_times(model: ExactModel, times: Times) -> None:
    """Leaves one schedule: everything happens when it does there."""
    for variable, value in _timed(model, times):
        model.model.add(variable == value)


def hint(model: ExactModel, times: Times) -> None:
    """Starts the search at a schedule."""
    for variable, value in _timed(model, times):
        model.model.add_hint(variable, value)


def search(model: ExactModel, effort: float) -> Solved | None:
    """Returns the schedule of the least makespan, or None if there is no schedule.

    The effort is in the solver's deterministic seconds: the same work on every machine.

    Raises:
        RuntimeError: The effort was too small to find a schedule.
    """
    solver = model.cp.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    # Without these two the search finds no bound to speak of where tiles have no size of their own.
    solver.parameters.use_strong_propagation_in_disjunctive = True
    solver.parameters.use_precedences_in_disjunctive_constraint = True
    solver.parameters.max_deterministic_time = effort
    model.model.minimize(model.makespan)
    status = solver.solve(model.model)
    if status == model.cp.INFEASIBLE:
        return None
    if status not in (model.cp.OPTIMAL, model.cp.FEASIBLE):
        raise RuntimeError(f"CP-SAT has found no schedule: {solver.status_name(status)}")
    times = Times(
        makespan_ps=solver.value(model.makespan),
        sends={key: solver.value(variable) for key, variable in model.sends.items()},
        pushes={key: solver.value(variable) for key, variable in model.pushes.items()},
        arrivals={key: solver.value(segment.start) for key, segment in model.segments.items()},
        fetches={place: solver.value(fetch) for place, fetch in model.fetches.items()},
        rows={row: solver.value(start) for row, start in model.rows.items() if solver.value(model.used[row[:2]])},
        tiles={(e, t): tile for (e, t, tile), inside in model.in_tile.items() if solver.boolean_value(inside)},
    )
    order = sorted(model.tokens, key=lambda token: (model.home(token), solver.value(model.places[token])))
    tokens = [[token for token in order if model.home(token) == gpu] for gpu in model.gpus]
    return Solved(times, tokens, int(np.ceil(solver.best_objective_bound)), status == model.cp.OPTIMAL)
