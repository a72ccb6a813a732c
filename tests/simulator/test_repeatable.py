"""A run gives the same bytes alone, beside others, with a log or without, and however often its arrays grow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from dysharp_env.simulator import engine as engine_module
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.families import Families
from dysharp_env.simulator.state import records
from dysharp_env.simulator.state.state import State, bind
from dysharp_env.system import FamilySpec
from dysharp_env.system.packet import PacketFormat
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, FAMILIES
from tests.conftest import Case
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system
from tests.simulator.run_log import play

FIRST_SEED = 10_000


def content(state: State) -> list[bytes]:
    """Returns all that a finished state holds but where it lies in memory."""
    names = [name for name in records.ROOT.names if not name.endswith("_at")]
    return [state.root[name].tobytes() for name in names] + [
        array.tobytes() for name, array in vars(state).items() if name != "root"
    ]


def test_a_run_repeated_alone_or_beside_others_gives_the_same_bytes(random_case: Callable[[int], Case]) -> None:
    seeds = [FIRST_SEED + index for index in range(24)]
    alone = [content(play(random_case(seed), seed).state) for seed in seeds]
    with ThreadPoolExecutor(max_workers=2) as pool:
        beside = list(pool.map(lambda seed: content(play(random_case(seed), seed).state), seeds))
    assert alone == beside


def test_logging_changes_nothing(random_case: Callable[[int], Case]) -> None:
    for seed in range(12):
        case = random_case(seed).with_program(exposed=frozenset())
        quiet, logged = case.engine(logging=False).run().state, case.engine().run().state
        assert quiet.tokens.tobytes() == logged.tokens.tobytes() and quiet.tiles.tobytes() == logged.tiles.tobytes()


GUARD_ROWS, UNTOUCHED = 1024, -77


class TightArrays:
    """Gives a state's heap, pool and log just the room that one step is promised, with guard rows behind."""

    def __init__(self) -> None:
        self.guards: list[np.ndarray] = []

    def __call__(self, state: State) -> State:
        self._check()
        root = state.root[0]
        heap = self._array(state.heap, int(root["heap_size"]), int(root["heap_margin"]))
        pool = self._array(state.pool, int(root["pool_used"]), int(root["heap_margin"]))
        log = self._array(state.log, int(root["log_size"]), int(root["log_margin"]))
        return bind(state.having(heap=heap, pool=pool, log=log))

    def _array(self, old: np.ndarray, size: int, margin: int) -> np.ndarray:
        assert size <= len(old), "a step wrote beyond the room it was promised"
        new = np.full(size + margin + GUARD_ROWS, UNTOUCHED, old.dtype)
        new[:size] = old[:size]
        self.guards.append(new[size + margin :])
        return new[: size + margin]

    def run(self, case: Case) -> Engine:
        engine = case.engine()
        engine.state = self(engine.state)
        engine.run()
        self._check()
        return engine

    def _check(self) -> None:
        """Looks at the guards, of which each keeps its whole array, and forgets them."""
        untouched = [guard == np.full_like(guard, UNTOUCHED) for guard in self.guards]
        assert all(same.all() for same in untouched), "a step wrote beyond the room it was promised"
        self.guards.clear()


def test_when_arrays_grow_changes_nothing(random_case: Callable[[int], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(240, 260):
        case = random_case(seed).with_program(exposed=frozenset())
        roomy = case.engine().run().state
        tight = TightArrays()
        monkeypatch.setattr(engine_module, "_with_room", tight)
        grown = tight.run(case).state
        monkeypatch.undo()
        assert roomy.tokens.tobytes() == grown.tokens.tobytes(), seed
        assert roomy.root["sequence"] == grown.root["sequence"]


def families(vectors: int) -> Families:
    """Returns families of kernels whose SMs work on so many vectors of 128 B at once, at no other cost."""
    specs = dict.fromkeys(FAMILIES, FamilySpec(vectors=vectors))
    return Families(specs, PacketFormat(), multimem_bytes=8 * 128)


@pytest.mark.parametrize(
    ("program", "costs"),
    [
        # A split may give combine more SMs, and so more requests in flight at once, than the program starts with.
        ({"combine": COMBINE_PRIMITIVES["reduce_scatter"], "splits": ((1, 8, 1),), "gates": (1, 1, 1)}, {}),
        # Where times are rounded down to 0, all that the windows allow is sent in one step.
        ({"dispatch_sms": 8}, {"quantum_ps": 10**6, "families": families(32)}),
        # All tokens of a tile may become ready at once, through entries that have spilled.
        ({"combine": COMBINE_PRIMITIVES["pull_reduce"]}, {"output_readiness_entries": 1}),
    ],
)
def test_no_step_needs_more_room_than_it_is_promised(
    make_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch, program: dict[str, Any], costs: dict[str, Any]
) -> None:
    case = make_case(
        round_system(6, num_sms=16), round_layer(6, tile_tokens=512), np.array([[0, 1]] * 360), ROUND_PROGRAM
    )
    costs = dataclasses.replace(case.costs, **{"families": families(8), **costs})
    tight = TightArrays()
    monkeypatch.setattr(engine_module, "_with_room", tight)
    tight.run(case.with_program(**program)._replace(costs=costs))
