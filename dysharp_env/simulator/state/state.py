"""The memory of one simulated layer: flat arrays that the kernel mutates in place, and where their addresses stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dysharp_env.simulator.state.records import ARRAYS, ROOT


class State:
    """Everything a layer is: ``root``, (1,) ROOT with parameters, counters and addresses, and the arrays of ``ARRAYS``.

    ``vars(state)`` are the arrays by name. What decisions show is plain numbers here, for those who learn from it:
    ``features`` (max_candidates, feature) float32, ``context`` (context,) float32, ``mask`` (max_candidates,) bool.
    """

    def __init__(self, **arrays: np.ndarray) -> None:
        """Takes the root and all arrays, in any order."""
        vars(self).update({name: arrays[name] for name in ("root", *ARRAYS)})

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> np.ndarray: ...

    def having(self, **arrays: np.ndarray) -> State:
        """Returns the state with some other arrays; the rest is shared."""
        return State(**{**vars(self), **arrays})


# Arrays that nothing writes once they are there, so that copies of a layer may share them.
CONSTANT_ARRAYS = frozenset(
    "wire_times store_flits ask_flits gpu_experts slot_expert order splits weights network".split()
)
# Where the addresses begin, which follow each other as the arrays do.
_ADDRESS0 = ROOT.fields[f"{next(iter(ARRAYS))}_at"][1] // 8  # type: ignore[index]


class Seat(NamedTuple):
    """Where a layer keeps its root and shows its decisions; seats of layers that advance together lie side by side."""

    root: np.ndarray  # (1,) ROOT
    features: np.ndarray  # (max_candidates, feature) float32
    context: np.ndarray  # (context,) float32
    mask: np.ndarray  # (max_candidates,) bool


def point(root: np.ndarray, addresses: list[int]) -> None:
    """Writes where all arrays but the root lie, in the order of ``ARRAYS``."""
    root.view(np.int64)[_ADDRESS0 : _ADDRESS0 + len(addresses)] = addresses


def bind(state: State) -> State:
    """Writes the arrays' addresses and lengths that can change into the root, and returns the state."""
    root, *arrays = vars(state).values()
    assert all(array.flags.c_contiguous for array in arrays)
    point(root, [array.ctypes.data for array in arrays])
    root["num_tiles"] = len(state.tiles)
    root["heap_capacity"] = len(state.heap)
    root["pool_capacity"] = len(state.pool)
    root["marks_capacity"] = len(state.marks)
    root["log_capacity"] = len(state.log)
    return state


def reseat(state: State, seat: Seat) -> State:
    """Returns the state with all that is in its seat in another one; the rest stays where it is."""
    # As bytes: numpy copies records field by field, ten times as slowly.
    seat.root.view(np.uint8)[:] = state.root.view(np.uint8)
    for name in ("features", "context", "mask"):
        array = getattr(seat, name)
        array[...] = getattr(state, name)
        seat.root[f"{name}_at"] = array.ctypes.data
    return state.having(**seat._asdict())
