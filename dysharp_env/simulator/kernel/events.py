"""Pending events, served in the order of ``(time, kind, sequence)``: no tie is settled by luck.

Those of the near future stand in a timing wheel: a ring of slots, each a short span of time with the events in it in
order, so that adding one and finding the next cost the same however many wait. Those farther off than the wheel turns,
such as thread blocks that end, wait in a heap with four children a node. Which comes next is the earlier of both.
"""

from __future__ import annotations

from numba.cpython.unsafe.numbers import trailing_zeros

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.names import Event, Events, Root
from dysharp_env.simulator.state.codes import NOTHING

# The kind sits above 48 bits of sequence number, so one comparison settles both.
KIND_SHIFT = 48


@compiled
def push(s: Root, time_ps: int, kind: int, a: int, b: int, c: int) -> None:
    """Adds an event with three operands, 0 where it has fewer."""
    order = (kind << KIND_SHIFT) | s.sequence
    s.sequence += 1
    slot = time_ps >> s.wheel_shift
    if slot - (s.now_ps >> s.wheel_shift) < s.wheel_slots:
        put_in_wheel(s, slot, time_ps, order, a, b, c)
    else:
        i = s.heap_size
        s.heap_size = i + 1
        sift_up(s.heap, i, time_ps, order, a, b, c)


@compiled
def next_ps(s: Root) -> int:
    """Returns the time of the first event, or NOTHING if none waits."""
    time_ps = s.heap[0].time_ps if s.heap_size > 0 else NOTHING
    if s.wheel_size > 0:
        first_ps = first_in_wheel(s).time_ps
        if time_ps == NOTHING or first_ps < time_ps:
            time_ps = first_ps
    return time_ps


@compiled
def pop(s: Root) -> tuple[int, int, int, int]:
    """Removes the first event, of which there must be one, and returns its kind and operands."""
    if s.wheel_size > 0:
        event = first_in_wheel(s)
        if s.heap_size == 0 or is_earlier(event, s.heap[0]):
            return take_from_wheel(s)
    return take_from_heap(s)


@compiled
def is_earlier(event: Event, other: Event) -> bool:
    """Returns whether one event comes before another."""
    return event.time_ps < other.time_ps or (event.time_ps == other.time_ps and event.order < other.order)


@compiled
def put_in_wheel(s: Root, slot: int, time_ps: int, order: int, a: int, b: int, c: int) -> None:
    """Puts an event into its slot, behind all that come before it."""
    pool = s.pool
    place = s.pool_free
    if place == NOTHING:
        place = s.pool_used
        s.pool_used = place + 1
    else:
        s.pool_free = pool[place].next
    put(pool, place, time_ps, order, a, b, c)
    event = pool[place]
    event.next = NOTHING
    if s.wheel_size == 0 or slot < s.wheel_slot:
        s.wheel_slot = slot
    s.wheel_size += 1
    i = slot & (s.wheel_slots - 1)
    q = s.wheel[i]
    if q.head == NOTHING:
        q.head = place
        q.tail = place
        s.slots_filled[i >> 6] |= 1 << (i & 63)
    elif is_earlier(pool[q.tail], event):
        pool[q.tail].next = place
        q.tail = place
    elif is_earlier(event, pool[q.head]):
        event.next = q.head
        q.head = place
    else:
        before = q.head
        while is_earlier(pool[pool[before].next], event):
            before = pool[before].next
        event.next = pool[before].next
        pool[before].next = place


@compiled
def first_in_wheel(s: Root) -> Event:
    """Returns the first event of a wheel that holds one, and turns the wheel to its slot."""
    i = s.wheel_slot & (s.wheel_slots - 1)
    head = s.wheel[i].head
    if head == NOTHING:
        words = s.wheel_slots >> 6
        word = i >> 6
        # No slot before this one holds anything, so what a full turn comes back to lies ahead too.
        bits = s.slots_filled[word] & (-1 << (i & 63))
        while bits == 0:
            word = (word + 1) & (words - 1)
            bits = s.slots_filled[word]
        found = (word << 6) + trailing_zeros(bits)  # type: ignore[call-arg]
        s.wheel_slot += (found - i) & (s.wheel_slots - 1)
        head = s.wheel[found].head
    return s.pool[head]


@compiled
def take_from_wheel(s: Root) -> tuple[int, int, int, int]:
    """Removes the first event of the wheel, which is turned to its slot."""
    i = s.wheel_slot & (s.wheel_slots - 1)
    q = s.wheel[i]
    place = q.head
    event = s.pool[place]
    q.head = event.next
    if event.next == NOTHING:
        s.slots_filled[i >> 6] &= ~(1 << (i & 63))
    event.next = s.pool_free
    s.pool_free = place
    s.wheel_size -= 1
    return event.order >> KIND_SHIFT, event.a, event.b, event.c


@compiled
def is_before(heap: Events, i: int, j: int) -> int:
    """Returns 1 if one event of the heap comes before another, else 0."""
    is_sooner = heap[i].time_ps < heap[j].time_ps
    is_equal = heap[i].time_ps == heap[j].time_ps
    return is_sooner | (is_equal & (heap[i].order < heap[j].order))


@compiled
def put(events: Events, place: int, time_ps: int, order: int, a: int, b: int, c: int) -> None:
    """Writes an event into a free place of the pool or a hole of the heap."""
    event = events[place]
    event.time_ps = time_ps
    event.order = order
    event.a = a
    event.b = b
    event.c = c


@compiled
def move(heap: Events, source: int, hole: int) -> None:
    """Copies an event into a hole of the heap."""
    event = heap[source]
    put(heap, hole, event.time_ps, event.order, event.a, event.b, event.c)


@compiled
def sift_up(heap: Events, i: int, time_ps: int, order: int, a: int, b: int, c: int) -> None:
    """Puts an event into the hole at ``i`` or, moving later ones down, above it."""
    while i > 0:
        parent = (i - 1) >> 2
        above = heap[parent]
        if above.time_ps < time_ps or (above.time_ps == time_ps and above.order < order):
            break
        move(heap, parent, i)
        i = parent
    put(heap, i, time_ps, order, a, b, c)


@compiled
def take_from_heap(s: Root) -> tuple[int, int, int, int]:
    """Removes the first event of the heap."""
    heap = s.heap
    kind = heap[0].order >> KIND_SHIFT
    a = heap[0].a
    b = heap[0].b
    c = heap[0].c
    size = s.heap_size - 1
    s.heap_size = size
    time_ps = heap[size].time_ps
    order = heap[size].order
    last_a = heap[size].a
    last_b = heap[size].b
    last_c = heap[size].c
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
    sift_up(heap, i, time_ps, order, last_a, last_b, last_c)
    return kind, a, b, c
