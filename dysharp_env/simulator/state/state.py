"""The memory of one simulated layer: flat arrays that the kernel mutates in place, and where their addresses stand."""

from __future__ import annotations

from collections import namedtuple
from typing import NamedTuple

import numpy as np

from dysharp_env.simulator.state.records import ARRAYS, ROOT

# Everything a layer is: ``root`` (1,) ROOT with parameters, counters and the addresses of the others, which are the
# arrays of ``ARRAYS``. What decisions show is plain numbers here, for those who learn from it: ``features``
# (max_candidates, feature) float32, ``context`` (context,) float32, ``mask`` (max_candidates,) bool.
State = namedtuple("State", ["root", *ARRAYS])  # type: ignore[misc]

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
    root, *arrays = state
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
    for name, array in seat._asdict().items():
        array[...] = getattr(state, name)
        if name != "root":
            seat.root[f"{name}_at"] = array.ctypes.data
    return state._replace(**seat._asdict())
