"""The event heap: a binary heap over ``(time, kind, sequence)``, so that equal times are never settled by luck."""

from __future__ import annotations

from numba import njit

from dysharp_env.simulator.views import (
    Root,
    event_heap,
)

# The kind sits above 48 bits of sequence number, so one comparison settles both.
KIND_SHIFT = 48


@njit(cache=True)
def push(s: Root, time_ps: int, kind: int, a: int, b: int) -> None:
    """Adds an event with two operands."""
    heap = event_heap(s)
    order = (kind << KIND_SHIFT) | s.sequence
    s.sequence += 1
    i = s.heap_size
    s.heap_size = i + 1
    while i > 0:
        parent = (i - 1) >> 1
        if heap[parent, 0] < time_ps or (heap[parent, 0] == time_ps and heap[parent, 1] < order):
            break
        heap[i, 0] = heap[parent, 0]
        heap[i, 1] = heap[parent, 1]
        heap[i, 2] = heap[parent, 2]
        heap[i, 3] = heap[parent, 3]
        i = parent
    heap[i, 0] = time_ps
    heap[i, 1] = order
    heap[i, 2] = a
    heap[i, 3] = b


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
    i = 0
    while True:
        child = 2 * i + 1
        if child >= size:
            break
        right = child + 1
        if right < size and (
            heap[right, 0] < heap[child, 0] or (heap[right, 0] == heap[child, 0] and heap[right, 1] < heap[child, 1])
        ):
            child = right
        if time_ps < heap[child, 0] or (time_ps == heap[child, 0] and order < heap[child, 1]):
            break
        heap[i, 0] = heap[child, 0]
        heap[i, 1] = heap[child, 1]
        heap[i, 2] = heap[child, 2]
        heap[i, 3] = heap[child, 3]
        i = child
    heap[i, 0] = time_ps
    heap[i, 1] = order
    heap[i, 2] = last_a
    heap[i, 3] = last_b
    return kind, a, b
