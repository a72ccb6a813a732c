"""One block of memory that holds the arrays of a layer's state, so that starting a layer takes few steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dysharp_env.simulator import layout
from dysharp_env.simulator.layout import State

_ALIGNMENT = 64  # a cache line


class Place(NamedTuple):
    """Where an array lies in a block."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def end(self) -> int:
        """Where the next array may begin."""
        num_bytes = math.prod(self.shape) * self.dtype.itemsize
        return self.offset + -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


class Block:
    """Makes states whose arrays are alike, but for the number of pairs and nodes."""

    def __init__(
        self,
        given: dict[str, np.ndarray],
        nothing: dict[str, int],
        zeros: dict[str, tuple[tuple[int, ...], np.dtype]],
        shared: dict[str, np.ndarray],
    ):
        """Lays the arrays out; ``pairs``, ``nodes`` and ids of each come after them.

        Args:
            given: Arrays to start from; every state has a copy.
            nothing: Arrays of so many int32 ids that are all NOTHING.
            zeros: Shapes and types of arrays of zeros.
            shared: Arrays that nothing changes; all states have the same ones.
        """
        self._shared = shared
        self._addresses = {name: array.ctypes.data for name, array in shared.items()}
        self._places: dict[str, Place] = {}
        self._given_end = self._lay_out({name: (array.shape, array.dtype) for name, array in given.items()}, 0)
        ids = {name: ((count,), np.dtype(np.int32)) for name, count in nothing.items()}
        self._nothing_end = self._lay_out(ids, self._given_end)
        self._fixed_end = self._lay_out(zeros, self._nothing_end)
        self._given = np.zeros(self._given_end, np.uint8)
        for name, array in given.items():
            _array(self._given, self._places[name])[...] = array

    def _lay_out(self, arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]], end: int) -> int:
        for name, (shape, dtype) in arrays.items():
            self._places[name] = Place(end, shape, dtype)
            end = self._places[name].end
        return end

    def build(self, num_pairs: int, num_nodes: int, *, num_trips: int, num_fifo_links: int) -> State:
        """Returns a new state whose root knows where the arrays are; pairs and nodes hold anything.

        Args:
            num_pairs: Its pairs.
            num_nodes: Its nodes.
            num_trips: Nodes that may have a round trip.
            num_fifo_links: Nodes that may hang together in the switch's input FIFOs.
        """
        int32 = np.dtype(np.int32)
        sizes = {"item_next": num_pairs, "fifo_next": num_fifo_links}
        places = {**self._places}
        end = self._fixed_end
        for name, count in sizes.items():
            places[name] = Place(end, (count,), int32)
            end = places[name].end
        trips = places["trips"] = Place(end, (num_trips,), layout.TRIP)
        pairs = places["pairs"] = Place(trips.end, (num_pairs,), layout.PAIR)
        nodes = places["nodes"] = Place(pairs.end, (num_nodes,), layout.NODE)
        memory = np.empty(nodes.end, np.uint8)
        memory[: self._given_end] = self._given
        # Every byte of NOTHING, which is -1, is 255.
        memory[self._given_end : self._nothing_end] = memory[self._fixed_end : trips.offset] = 255
        memory[self._nothing_end : self._fixed_end] = memory[trips.offset : pairs.offset] = 0
        base = memory.ctypes.data
        arrays, addresses = {**self._shared}, {**self._addresses}
        for name, (offset, shape, dtype) in places.items():
            arrays[name] = np.ndarray(shape, dtype, memory, offset)
            addresses[name] = base + offset
        layout.point(arrays["root"], [addresses[name] for name in State._fields[1:]])
        return State(**arrays)


def _array(memory: np.ndarray, place: Place) -> np.ndarray:
    return np.ndarray(place.shape, place.dtype, memory, place.offset)
