"""What SM groups share: being marked to act, and the communication SMs with what they have in flight.

A communication SM works on one token or partial sum at a time; ``costs.Window`` says how many vectors it may have in
flight and how long a slot stays taken after a round trip.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append
from dysharp_env.simulator.kernel.names import Flow, Root
from dysharp_env.simulator.state.codes import EV_SLOT
from dysharp_env.simulator.state.observation import COMBINE


@compiled
def mark(s: Root, kind: int, gpu: int) -> None:
    """Asks for an SM group to be looked at, or for a GPU's group sizes to be chosen, once."""
    group = s.gpus[gpu].groups[kind]
    if group.marked:
        return
    group.marked = 1
    place = s.marks[(s.marks_head + s.marks_size) % s.marks_capacity]
    place.kind = kind
    place.gpu = gpu
    s.marks_size += 1


@compiled_in_place
def flow_of(s: Root, kind: int) -> Flow:
    """Returns what vectors of a communication group are: dispatched, or sums."""
    return s.combine if kind == COMBINE else s.dispatch


@compiled
def list_sm(s: Root, kind: int, gpu: int, sm: int) -> None:
    """Puts a communication SM behind the others of its group that may take something."""
    append(s.gpus[gpu].groups[kind].able, s.sms, sm)
    mark(s, kind, gpu)


@compiled
def begin_trip(s: Root, sm: int, first: int, segments: int) -> None:
    """Counts a vector of so many segments, the first of them ``first``, that an SM puts in flight."""
    s.sms[sm].in_flight += 1
    trip = s.trips[first - s.trip0]
    trip.sm = sm
    trip.issued_ps = s.now_ps
    trip.segments_out = segments


@compiled
def end_segment(s: Root, kind: int, gpu: int, first: int) -> bool:
    """Counts a segment that has made the round trip, and returns whether it is the last of its vector.

    Then the SM's slot falls free when its window has moved past the vector's bytes.
    """
    trip = s.trips[first - s.trip0]
    trip.segments_out -= 1
    if trip.segments_out > 0:
        return False
    linger_ps = (s.now_ps - trip.issued_ps) // 1000 * flow_of(s, kind).linger_permille
    push(s, s.now_ps + linger_ps, EV_SLOT, trip.sm, 0, 0)
    s.gpus[gpu].groups[kind].in_flight -= 1
    return True
