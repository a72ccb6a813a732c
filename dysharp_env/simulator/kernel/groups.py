"""What SM groups share: being marked to act, and the communication SMs with what they have in flight.

A communication SM works on one token or partial sum at a time; families.py says how many vectors it may have at hand,
and when one of them departs.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append
from dysharp_env.simulator.kernel.names import Flow, Root
from dysharp_env.simulator.state.codes import EV_DEPART, NOTHING
from dysharp_env.simulator.state.observation import COMBINE, GEMM


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
def take_vector(s: Root, kind: int, gpu: int, sm: int, first: int, token_ps: int) -> bool:
    """Gives an SM a vector, whose first segment is ``first``; returns whether it departs now, or EV_DEPART says when.

    Where thread blocks do the SM's work, and any run, they are to lose the time; those that start next do.
    """
    flow = flow_of(s, kind)
    g = s.gpus[gpu]
    g.groups[kind].in_flight += 1
    s.sms[sm].in_flight += 1
    trip = s.trips[first - s.trip0]
    trip.sm = sm
    trip.segments_out = flow.segments
    work_ps = flow.vector_ps + token_ps
    if s.in_gemm_permille > 0 and g.free_sms < g.groups[GEMM].sms:
        g.debt_ps += work_ps * s.in_gemm_permille // 1000
    depart_ps = max(s.now_ps, s.sms[sm].ready_ps) + max(flow.slots * work_ps - flow.trip_ps, 0)
    trip.taken_ps = s.now_ps
    trip.departs_ps = depart_ps
    if depart_ps == s.now_ps:
        return True
    push(s, depart_ps, EV_DEPART, first, gpu, 0)
    return False


@compiled
def prepare_token(s: Root, kind: int, gpu: int, sm: int) -> None:
    """Has an SM prepare a token that it stores, once it has prepared the one before."""
    flow = flow_of(s, kind)
    m = s.sms[sm]
    m.ready_ps = max(m.ready_ps, s.now_ps) + flow.prepare_ps
    g = s.gpus[gpu]
    if s.in_gemm_permille > 0 and g.free_sms < g.groups[GEMM].sms:
        g.debt_ps += flow.prepare_ps * s.in_gemm_permille // 1000


@compiled
def end_segment(s: Root, kind: int, gpu: int, first: int) -> int:
    """Counts a segment that has made the round trip; returns whose place is free with the last of a vector, or NOTHING.

    ``first`` is the first segment of its vector.
    """
    trip = s.trips[first - s.trip0]
    trip.segments_out -= 1
    if trip.segments_out > 0:
        return NOTHING
    s.gpus[gpu].groups[kind].in_flight -= 1
    s.sms[trip.sm].in_flight -= 1
    return trip.sm
