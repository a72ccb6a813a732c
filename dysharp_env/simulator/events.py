"""The event heap: four children a node, over ``(time, kind, sequence)``: no tie is settled by luck."""

from __future__ import annotations

from numba import njit

from dysharp_env.simulator.views import Events, Root, event_heap

# The kind sits above 48 bits of sequence number, so one comparison settles both.
KIND_SHIFT = 48


@njit(cache=True, error_model="numpy")
def is_before(heap: Events, i: int, j: int) -> int:
    """Returns 1 if one event comes before another, else 0."""
    is_earlier = heap[i].time_ps < heap[j].time_ps
    is_equal = heap[i].time_ps == heap[j].time_ps
    return is_earlier | (is_equal & (heap[i].order < heap[j].order))


@njit(cache=True, error_model="numpy")
def put(heap: Events, i: int, time_ps: int, order: int, a: int, b: int) -> None:
    """Writes an event into a hole."""
    hole = heap[i]
    hole.time_ps = time_ps
    hole.order = order
    hole.a = a
    hole.b = b


@njit(cache=True, error_model="numpy")
def move(heap: Events, source: int, hole: int) -> None:
    """Copies an event into a hole."""
    event = heap[source]
    put(heap, hole, event.time_ps, event.order, event.a, event.b)


@njit(cache=True, error_model="numpy")
def sift_up(heap: Events, i: int, time_ps: int, order: int, a: int, b: int) -> None:
    """Puts an event into the hole at ``i`` or, moving later ones down, above it."""
    while i > 0:
        parent = (i - 1) >> 2
        above = heap[parent]
        if above.time_ps < time_ps or (above.time_ps == time_ps and above.order < order):
            break
        move(heap, parent, i)
        i = parent
    put(heap, i, time_ps, order, a, b)


@njit(cache=True, error_model="numpy")
def push(s: Root, time_ps: int, kind: int, a: int, b: int) -> None:
    """Adds an event with two operands."""
    heap = event_heap(s)
    order = (kind << KIND_SHIFT) | s.sequence
    s.sequence += 1
    i = s.heap_size
    s.heap_size = i + 1
    sift_up(heap, i, time_ps, order, a, b)


@njit(cache=True, error_model="numpy")
def pop(s: Root) -> tuple[int, int, int]:
    """Removes the first event and returns its kind and operands; its time is the caller's to read before."""
    heap = event_heap(s)
    kind = heap[0].order >> KIND_SHIFT
    a = heap[0].a
    b = heap[0].b
    size = s.heap_size - 1
    s.heap_size = size
    time_ps = heap[size].time_ps
    order = heap[size].order
    last_a = heap[size].a
    last_b = heap[size].b
    # The hole goes down along the earlier children to the bottom, and the last event up from there: it mostly belongs
    # near the bottom, and which child is earlier is worked out without a branch, which nobody could predict.
    i = 0
    child = 1
    while child + 3 < size:
        right = child + 2 + is_before(heap, child + 3, child + 2)
        child += is_before(heap, child + 1, child)
        child += (right - child) * is_before(heap, right, child)
        move(heap, child, i)
        i = child
        child = 4 * i + 1
    if child < size:
        for other in range(child + 1, size):
            child += (other - child) * is_before(heap, other, child)
        move(heap, child, i)
        i = child
    sift_up(heap, i, time_ps, order, last_a, last_b)
    return kind, a, b
