"""The event heap: a binary heap over ``(time, kind, sequence)``, so that equal times are never settled by luck."""

from __future__ import annotations

import numpy as np
from numba import njit

from dysharp_env.simulator.views import (
    Root,
    event_heap,
)

# The kind sits above 48 bits of sequence number, so one comparison settles both.
KIND_SHIFT = 48


@njit(cache=True)
def is_before(heap: np.ndarray, i: int, j: int) -> int:
    """Returns 1 if one event comes before another, else 0."""
    is_earlier = heap[i, 0] < heap[j, 0]
    is_equal = heap[i, 0] == heap[j, 0]
    return is_earlier | (is_equal & (heap[i, 1] < heap[j, 1]))


@njit(cache=True)
def move(heap: np.ndarray, source: int, hole: int) -> None:
    """Copies an event into a hole."""
    heap[hole, 0] = heap[source, 0]
    heap[hole, 1] = heap[source, 1]
    heap[hole, 2] = heap[source, 2]
    heap[hole, 3] = heap[source, 3]


@njit(cache=True)
def sift_up(heap: np.ndarray, i: int, time_ps: int, order: int, a: int, b: int) -> None:
    """Puts an event into the hole at ``i`` or, moving later ones down, above it."""
    while i > 0:
        parent = (i - 1) >> 1
        if heap[parent, 0] < time_ps or (heap[parent, 0] == time_ps and heap[parent, 1] < order):
            break
        move(heap, parent, i)
        i = parent
    heap[i, 0] = time_ps
    heap[i, 1] = order
    heap[i, 2] = a
    heap[i, 3] = b


@njit(cache=True)
def push(s: Root, time_ps: int, kind: int, a: int, b: int) -> None:
    """Adds an event with two operands."""
    heap = event_heap(s)
    order = (kind << KIND_SHIFT) | s.sequence
    s.sequence += 1
    i = s.heap_size
    s.heap_size = i + 1
    sift_up(heap, i, time_ps, order, a, b)


@njit(cache=True)
def pop(s: Root) -> tuple[int, int, int]:
    """Removes the first event and returns its kind and operands; its time is the caller's to read before."""
    heap = event_heap(s)
    kind = heap[0, 1] >> KIND_SHIFT
    a = heap[0, 2]
    b = heap[0, 3]
    size = s.heap_size - 1
    s.heap_size = size
    time_ps = heap[size, 0]
    order = heap[size, 1]
    last_a = heap[size, 2]
    last_b = heap[size, 3]
    # The hole goes down along the earlier children to the bottom, and the last event up from there: it mostly belongs
    # near the bottom, and which child is earlier is worked out without a branch, which nobody could predict.
    i = 0
    child = 1
    while child + 1 < size:
        child += is_before(heap, child + 1, child)
        move(heap, child, i)
        i = child
        child = 2 * i + 1
    if child < size:
        move(heap, child, i)
        i = child
    sift_up(heap, i, time_ps, order, last_a, last_b)
    return kind, a, b
