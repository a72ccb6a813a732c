"""The event loop, step by step.

What happens in one step:

1. ``serve`` lets each event of the instant have its effect, in the order of (time, kind, sequence): a segment reaches
   the switch (``switch_arrive``) or a GPU (``reach_dispatch``, ``reach_combine``), a link or port falls free
   (``uplink_pump``, ``port_pump``), thread blocks end (``blocks_end``), a gate opens (``open_gate``), ...
   Effects ``push`` later events and ``mark`` SM groups that may now act.
2. ``pump`` lets each marked group act, first come first served: dispatch takes tokens, GEMM starts rows, combine issues
   sums, HBM fetches weights ahead, a GPU chooses group sizes. Where there is more than one thing to do, ``decide``
   lists the candidates and takes what the rule or network scores highest, or asks.
3. With no group left, time moves to the next event.

``advance`` is the only entry point. It leaves every layer that could run at ASK (a decision waits in the root with its
candidates, features and mask), DONE, GROW (the heap or the log needs more room; nothing is lost) or STUCK (nothing can
happen any more, which no legal schedule reaches).

Compiled functions take numba's ``numpy`` error model: no division checks its divisor, and none of the model's is 0.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.native import native
from dysharp_env.simulator.faults import LATE_GPU
from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.jit.rows import rows
from dysharp_env.simulator.kernel.arrival import arrive, hear_done, reach_dispatch, store_acknowledged
from dysharp_env.simulator.kernel.choices.dispatch import weigh_chunks
from dysharp_env.simulator.kernel.choosing import WAIT, decide, pump
from dysharp_env.simulator.kernel.combine import (
    depart,
    item_ready,
    list_part,
    push_acknowledged,
    reach_combine,
    requested,
)
from dysharp_env.simulator.kernel.dispatch import asked_for_token, issue_dispatch
from dysharp_env.simulator.kernel.events import next_ps, pop, push
from dysharp_env.simulator.kernel.gates import part_of
from dysharp_env.simulator.kernel.gemm import blocks_end, notified, tile_ready
from dysharp_env.simulator.kernel.groups import mark
from dysharp_env.simulator.kernel.links import is_partial, send_vector, uplink_enqueue, uplink_pump
from dysharp_env.simulator.kernel.movers import issue_soon
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.playing import answer, end
from dysharp_env.simulator.kernel.prefetch import consider, fetch_early, fetches_from_ps, hbm_falls_free
from dysharp_env.simulator.kernel.staffing import role_changed, staff_groups
from dysharp_env.simulator.kernel.switch import input_next, port_pump, switch_arrive
from dysharp_env.simulator.kernel.weights import (
    asked_for_tile,
    issue_tile,
    reach_tile,
    tile_acknowledged,
)
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import ASK, DONE, GEMM1, GROW, NOTHING, OPENS_ALL, OPENS_COMBINE, RUN, STUCK
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, GEMM, SPLIT
from dysharp_env.simulator.state.records import PLAYER, ROOT


@compiled
def depart_now(s: Root, gpu: int, first: int) -> None:
    """Sends off a vector that was at hand long enough, or the request for it."""
    if is_partial(s, first) or first >= s.sum0:
        depart(s, gpu, first)
    else:
        issue_dispatch(s, gpu, first)


@compiled
def respond(s: Root, gpu: int, first: int) -> None:
    """Sends what a GPU has read: a vector that was asked for, or a tile of weights."""
    if first < s.weights0:
        send_vector(s, gpu, first)
    else:
        uplink_enqueue(s, gpu, first)


@compiled
def open_gate(s: Root, gate: int, is_late: int) -> None:
    """Lets the stage behind a gate start, on all GPUs or on one; the layer, where GPUs do not meet, later on one.

    ``is_late`` is 1 when it is the late GPU's turn to start.
    """
    x = s.gates[gate]
    waits = x.stage == OPENS_ALL and s.late_ps > 0 and not s.meets
    if waits and not is_late:
        push(s, s.now_ps + s.late_ps, codes.EV_GATE, gate, 1, 0)
    for gpu in range(s.num_gpus):
        if (x.gpu != NOTHING and gpu != x.gpu) or (waits and (gpu == LATE_GPU) != is_late):
            continue
        if x.stage == OPENS_ALL:
            s.gpus[gpu].start_open = 1
            consider(s, gpu)
            mark(s, DISPATCH, gpu)
            mark(s, GEMM, gpu)
            mark(s, COMBINE, gpu)
            issue_soon(s, gpu)
            continue
        part_of(s, gpu, x.part).stages[x.stage].open = 1
        if x.stage == OPENS_COMBINE:
            list_part(s, gpu, x.part)
            mark(s, COMBINE, gpu)
        else:
            mark(s, GEMM, gpu)


@compiled
def reach(s: Root, node: int) -> None:
    """Lets a segment come to an end of its way: of a token, a partial sum or weights."""
    if node < s.partial0:
        reach_dispatch(s, node)
    elif node < s.weights0:
        reach_combine(s, node)
    else:
        reach_tile(s, node)


@compiled_in_place
def serve(s: Root, kind: int, a: int, b: int, c: int) -> None:
    """Lets one event have its effect; codes.py says what its operands are."""
    if kind == codes.EV_SWITCH:
        switch_arrive(s, a, b)
    elif kind == codes.EV_REACH:
        reach(s, a)
    elif kind == codes.EV_CREDIT:
        s.lanes[a * 2 + b].used_flits -= c
        uplink_pump(s, a)
    elif kind == codes.EV_INPUT_NEXT:
        input_next(s, a, b)
    elif kind == codes.EV_UPLINK:
        s.uplinks[a].wake = 0
        uplink_pump(s, a)
    elif kind == codes.EV_PORT:
        s.ports[a].wake = 0
        port_pump(s, a)
    elif kind == codes.EV_BLOCKS:
        blocks_end(s, a, b, c)
    elif kind == codes.EV_ARRIVE:
        arrive(s, a)
    elif kind == codes.EV_TILE:
        tile_ready(s, a, GEMM1)
    elif kind == codes.EV_REQUEST:
        if a < s.partial0:
            asked_for_token(s, s.nodes[a].owner)
        elif a < s.weights0:
            requested(s, s.nodes[a].owner)
        else:
            asked_for_tile(s, a)
    elif kind == codes.EV_RESPOND:
        respond(s, b, a)
    elif kind == codes.EV_ACK:
        if is_partial(s, a):
            push_acknowledged(s, a)
        elif a < s.weights0:
            store_acknowledged(s, a)
        else:
            tile_acknowledged(s, a)
    elif kind == codes.EV_MOVE:
        issue_tile(s, a)
    elif kind == codes.EV_DEPART:
        depart_now(s, b, a)
    elif kind == codes.EV_ROLE:
        role_changed(s, a, b, c)
    elif kind == codes.EV_NOTIFY:
        notified(s, a, b)
    elif kind == codes.EV_SAID:
        hear_done(s, a, b, c)
    elif kind == codes.EV_READY:
        item_ready(s, s.tokens[a].chunk, a, s.tokens[a].home)
    elif kind == codes.EV_GATE:
        open_gate(s, a, b)
    elif kind == codes.EV_HBM:
        hbm_falls_free(s, a)
    elif kind == codes.EV_EARLY:
        fetch_early(s, a)


@compiled
def needs_room(s: Root) -> bool:
    """Returns whether one more step could overrun the heap, the wheel's pool or the log."""
    return (
        s.heap_size + s.heap_margin > s.heap_capacity
        or s.wheel_size + s.heap_margin > s.pool_capacity
        or (s.logging == 1 and s.log_size + s.log_margin > s.log_capacity)
    )


@compiled
def begin(s: Root) -> int:
    """Does what comes before the first event: the choice of group sizes. Returns RUN, or ASK."""
    if s.chunks_weighed == 0:
        weigh_chunks(s)
        s.chunks_weighed = 1
    row = decide(s, SPLIT, 0) if s.num_splits > 0 else NOTHING
    if row == WAIT:
        return ASK
    if s.early_ps > 0:
        push(s, fetches_from_ps(s, NOTHING), codes.EV_EARLY, 0, 0, 0)
        if s.late_ps > 0:
            push(s, fetches_from_ps(s, LATE_GPU), codes.EV_EARLY, 1, 0, 0)
    staff_groups(s, s.candidates[row].item if row != NOTHING else NOTHING)
    s.split_done = 1
    s.pending_kind = NOTHING
    return RUN


@compiled_in_place
def act(s: Root) -> int:
    """Lets marked groups act until none is left. Returns RUN, ASK or GROW."""
    while s.marks_size > 0:
        if needs_room(s):
            return GROW
        first = s.marks[s.marks_head]
        kind, gpu = first.kind, first.gpu
        s.marks_head = (s.marks_head + 1) % s.marks_capacity
        s.marks_size -= 1
        # The mark goes before the group acts: what it does may give it more to do.
        s.gpus[gpu].groups[kind].marked = 0
        if pump(s, kind, gpu):
            return ASK
    return RUN


@compiled_in_place
def advance_one(s: Root) -> int:
    """Runs one layer until a decision has to be asked, the layer is done, or more room is needed."""
    if needs_room(s):
        return GROW
    if not s.split_done and begin(s) == ASK:
        return ASK
    if s.pending_kind != NOTHING:
        # The group that asked goes first, so that the answer finds it in the state it was shown.
        if pump(s, s.pending_kind, s.pending_gpu):
            return ASK
        s.pending_kind = NOTHING
    while True:
        if not s.serving:
            status = act(s)
            if status != RUN:
                return status
            # Where no token has an expert, the layer is over once it has opened.
            if s.tokens_left == 0 and s.weights_left == 0 and s.gpus[0].start_open:
                s.now_ps += s.pay_end_ps
                return DONE
            if s.heap_size + s.wheel_size == 0:
                return STUCK
            s.now_ps = next_ps(s)
        # An instant that had to stop for room goes on with its events before any group acts.
        s.serving = 1
        while next_ps(s) == s.now_ps:
            if needs_room(s):
                return GROW
            kind, a, b, c = pop(s)
            s.events += 1
            serve(s, kind, a, b, c)
        s.serving = 0


@native(nogil=True, error_model="numpy")
def advance(roots: np.ndarray, players: np.ndarray) -> int:
    """Runs every layer that may run as far as it can; returns how many now want something other than an answer.

    Layers share nothing, so slices of one array may run in threads of their own.

    Args:
        roots: (layer,) ROOT.
        players: (layer,) PLAYER, which answer what their layers ask for as long as they have room, or none at all.
    """
    others = 0
    for i in range(len(roots)):
        s = rows(roots.ctypes.data, ROOT)[i]
        before = s.status
        while True:
            if s.status == RUN:
                s.status = advance_one(s)
            if s.status != ASK or i >= len(players) or not answer(s, rows(players.ctypes.data, PLAYER)[i]):
                break
            s.status = RUN
        if i < len(players):
            end(s, rows(players.ctypes.data, PLAYER)[i])
        if s.status != ASK and s.status != before:
            others += 1
    return others
