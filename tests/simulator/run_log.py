"""Runs with random answers, and their logs read back: what moved where and when."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import segment_name
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.state import State
from tests.conftest import Case


class Use(NamedTuple):
    """A log row, its item spelt out: ``store`` (to a group), ``copy``, ``partial``, ``sum``, ``tile`` or ``block``."""

    resource: int
    gpu: int
    purpose: int
    what: str
    token: int
    peer: int  # the expert GPU of a copy or partial sum
    place: int  # in its vector
    group: int  # of GPUs that a store is to
    plane: int
    amount: int
    start_ps: int
    end_ps: int


def play(case: Case, seed: int) -> Engine:
    """Returns the engine after a run in which random answers are given to what it asks."""
    rng = np.random.default_rng(seed)
    engine = case.engine()
    while (asked := engine.advance()) is not None:
        engine.decide(int(rng.choice(np.flatnonzero(asked.mask))))
    return engine


def uses(state: State) -> list[Use]:
    """Returns the rows of the log."""
    found = []
    for resource, gpu, purpose, item, amount, start_ps, end_ps in state.log[: state.root["log_size"][0]].tolist():
        whats = {codes.LOG_SM: "tile", codes.LOG_HBM: "block"}
        name = (whats.get(resource, ""), item, gpu, 0, 0, 0)
        if resource not in whats:
            *name, plane, group = segment_name(state, item)
            name = (*name, group, plane)
        found.append(Use(resource, gpu, purpose, *name, amount, start_ps, end_ps))
    return found


def started(tiles: np.ndarray, gemm: int) -> np.ndarray:
    """Returns when rows of tiles, or of one, started in a GEMM."""
    return tiles["rows"]["start_ps"][..., gemm]


def ended(tiles: np.ndarray, gemm: int) -> np.ndarray:
    """Returns when rows of tiles, or of one, ended in a GEMM."""
    return tiles["rows"]["end_ps"][..., gemm]


def group_of(case: Case, gpu: int) -> int:
    """Returns the group of GPUs that one store reaches: all, but where teams are of fewer."""
    return gpu // case.costs.team_gpus if case.program.dispatch.by_team else 0
