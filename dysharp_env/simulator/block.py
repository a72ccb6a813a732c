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

    def build(self, num_pairs: int, num_nodes: int, num_links: int) -> State:
        """Returns a new state, pairs and nodes of zeros, whose root knows where the arrays are.

        Args:
            num_pairs: Its pairs.
            num_nodes: Its nodes.
            num_links: Pairs that may hang together in bundles.
        """
        item_next = Place(self._fixed_end, (num_pairs,), np.dtype(np.int32))
        copy_next = Place(item_next.end, (num_links,), np.dtype(np.int32))
        partial_next = Place(copy_next.end, (num_links,), np.dtype(np.int32))
        fifo_next = Place(partial_next.end, (num_nodes,), np.dtype(np.int32))
        pairs = Place(fifo_next.end, (num_pairs,), layout.PAIR)
        nodes = Place(pairs.end, (num_nodes,), layout.NODE)
        memory = np.zeros(nodes.end, np.uint8)
        memory[: self._given_end] = self._given
        # Every byte of NOTHING, which is -1, is 255.
        memory[self._given_end : self._nothing_end] = memory[item_next.offset : pairs.offset] = 255
        ids = {"item_next": item_next, "copy_next": copy_next, "partial_next": partial_next, "fifo_next": fifo_next}
        places = {**self._places, **ids, "pairs": pairs, "nodes": nodes}
        state = State(**{name: _array(memory, place) for name, place in places.items()}, **self._shared)
        base = memory.ctypes.data
        addresses = {name: base + place.offset for name, place in places.items()}
        addresses |= self._addresses
        layout.point(state.root, [addresses[name] for name in State._fields if name != "root"])
        return state


def _array(memory: np.ndarray, place: Place) -> np.ndarray:
    return np.ndarray(place.shape, place.dtype, memory, place.offset)
