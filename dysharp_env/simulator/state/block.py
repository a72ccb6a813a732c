"""One block of memory that holds the arrays of a layer's state, so that starting a layer takes few steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dysharp_env.simulator.state.records import ARRAYS
from dysharp_env.simulator.state.state import State, point

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
    """Makes states whose arrays are alike, but for those whose number follows the routing."""

    def __init__(
        self,
        given: dict[str, np.ndarray],
        nothing: dict[str, int],
        zeros: dict[str, int | tuple[int, ...]],
        shared: dict[str, np.ndarray],
    ) -> None:
        """Lays the arrays out.

        Args:
            given: Arrays to start from; every state has a copy.
            nothing: Arrays of so many ids that are all NOTHING.
            zeros: Lengths of arrays of zeros, or the shapes of those that others read as plain float32 numbers.
            shared: Arrays that nothing changes; all states have the same ones.
        """
        self._shared = shared
        self._addresses = {name: array.ctypes.data for name, array in shared.items()}
        self._places: dict[str, Place] = {}
        places = self._places
        self._given_end = self._lay_out({name: (array.shape, array.dtype) for name, array in given.items()}, 0, places)
        self._nothing_end = self._lay_out(_of_records(nothing), self._given_end, places)
        self._fixed_end = self._lay_out(_of_records(zeros), self._nothing_end, places)
        self._given = np.zeros(self._given_end, np.uint8)
        for name, array in given.items():
            _array(self._given, self._places[name])[...] = array

    @staticmethod
    def _lay_out(arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]], end: int, places: dict[str, Place]) -> int:
        """Adds the places of arrays that follow each other from ``end`` on, and returns where the last one ends."""
        for name, (shape, dtype) in arrays.items():
            places[name] = Place(end, shape, dtype)
            end = places[name].end
        return end

    def build(self, zeros: dict[str, int], unwritten: dict[str, int]) -> State:
        """Returns a new state whose root knows where the arrays are.

        Args:
            zeros: Lengths of those arrays of zeros that follow the routing.
            unwritten: Lengths of arrays that hold anything: whoever follows the routing writes all of them.
        """
        places = {**self._places}
        zeros_end = self._lay_out(_of_records(zeros), self._fixed_end, places)
        end = self._lay_out(_of_records(unwritten), zeros_end, places)
        memory = np.empty(end, np.uint8)
        memory[: self._given_end] = self._given
        # Every byte of NOTHING, which is -1, is 255.
        memory[self._given_end : self._nothing_end] = 255
        memory[self._nothing_end : zeros_end] = 0
        base = memory.ctypes.data
        arrays, addresses = {**self._shared}, {**self._addresses}
        for name, (offset, shape, dtype) in places.items():
            arrays[name] = np.ndarray(shape, dtype, memory, offset)
            addresses[name] = base + offset
        point(arrays["root"], [addresses[name] for name in ARRAYS])
        return State(**arrays)


def _of_records(counts: Mapping[str, int | tuple[int, ...]]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Returns shapes and types of arrays of the state: of its records, or of plain float32 numbers."""
    return {
        name: ((count,), np.dtype(ARRAYS[name])) if isinstance(count, int) else (count, np.dtype(np.float32))
        for name, count in counts.items()
    }


def _array(memory: np.ndarray, place: Place) -> np.ndarray:
    return np.ndarray(place.shape, place.dtype, memory, place.offset)
