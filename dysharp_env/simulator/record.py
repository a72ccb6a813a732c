"""A finished engine's schedule as plain tables, for the functional machine to execute."""

from __future__ import annotations

import numpy as np

from dysharp_env.multimem import Schedule
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import schedule_table


def record(engine: Engine) -> Schedule:
    """Returns what a finished engine did and with which tokens, whoever took its decisions.

    ``multimem.execute`` runs it on real vectors.
    """
    state, program = engine.state, engine.program
    chunk_of_token = state.tokens["chunk"][:-1]  # without the sentinel
    tiles = state.tiles[["first", "count"]].tolist()
    return Schedule(
        rows=schedule_table(engine),
        chunks=[np.flatnonzero(chunk_of_token == chunk) for chunk in range(chunk_of_token.max() + 1)],
        tiles=[state.pairs["token"][state.arrived_pair[first : first + count]] for first, count in tiles],
        dispatch=program.dispatch.name,
        combine=program.combine.name,
        copy_per_expert=program.copies_per_expert,
        loopback=program.loopback,
        team_gpus=engine.costs.team_gpus,
        copying=program.copying.name if program.copying else "",
    )
