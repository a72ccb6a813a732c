"""The event loop: serve every event of an instant, let each SM group act, ask where a decision is exposed.

``advance`` is the only entry point. It leaves every layer that could run at ASK (a decision waits in the root with its
candidates, features and mask), DONE, GROW (the heap or the log needs more room; nothing is lost) or STUCK (nothing can
happen any more, which no legal schedule reaches).

Compiled functions take numba's ``numpy`` error model: no division checks its divisor, and none of the model's is 0.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from dysharp_env.simulator.chunks import weigh_chunks
from dysharp_env.simulator.combine import (
    issue_combine,
    issue_loads,
    item_ready,
    list_part,
    reach_combine,
    requested,
    take_unit,
)
from dysharp_env.simulator.compiled import compiled, compiled_in_place
from dysharp_env.simulator.decisions import decide
from dysharp_env.simulator.dispatch import (
    acknowledged,
    arrive,
    asked_for_token,
    end_part,
    issue_copies,
    reach_dispatch,
    take_chunk,
    take_token,
)
from dysharp_env.simulator.events import next_ps, pop
from dysharp_env.simulator.fabric import input_next, port_pump, send_vector, switch_arrive, uplink_pump
from dysharp_env.simulator.gemm import blocks_end, close_tile, notified, start_blocks, start_row, tile_ready
from dysharp_env.simulator.groups import list_sm, mark_dirty, part_of
from dysharp_env.simulator.layout import (
    ASK,
    COMBINE,
    DISPATCH,
    DONE,
    EV_ACK,
    EV_ARRIVE,
    EV_BLOCKS,
    EV_CREDIT,
    EV_GATE,
    EV_INPUT_NEXT,
    EV_NOTIFY,
    EV_PORT,
    EV_REACH,
    EV_READY,
    EV_REQUEST,
    EV_RESPOND,
    EV_SLOT,
    EV_SWITCH,
    EV_TILE,
    EV_UPLINK,
    GEMM,
    GROW,
    NOTHING,
    ON_DUTY,
    RUN,
    SPLIT,
    STUCK,
)
from dysharp_env.simulator.staffing import leave_if_idle, resize, staff_groups
from dysharp_env.simulator.views import Root, root_of

# ``decide`` returns this when the answer has to come from outside.
WAIT = -2


@compiled
def pump_dispatch(s: Root, gpu: int) -> bool:
    """Gives tokens to SMs that may take one, choosing chunks as it goes; True if it has to ask."""
    g = s.gpus[gpu]
    if not g.start_open:
        return False
    while True:
        if g.chunk == NOTHING:
            while end_part(s, gpu):
                pass
        if g.send_head == NOTHING:
            return False
        if g.chunk == NOTHING:
            row = decide(s, DISPATCH, gpu)
            if row == WAIT:
                return True
            if row == NOTHING:
                return False
            take_chunk(s, gpu, s.candidates[row])
        token = s.order[g.chunk_pos]
        g.chunk_pos += 1
        if g.chunk_pos == s.chunks[g.chunk].last:
            g.chunk = NOTHING
        take_token(s, gpu, token)


@compiled
def pump_gemm(s: Root, gpu: int) -> bool:
    """Keeps the GEMM group's SMs on thread blocks, choosing rows as it goes; True if it has to ask."""
    g = s.gpus[gpu]
    if not g.start_open:
        return False
    while g.free_sms > 0:
        if g.row_tile == NOTHING:
            if g.hold_gemm:
                return False
            row = decide(s, GEMM, gpu)
            if row == WAIT:
                return True
            if row == NOTHING:
                return False
            candidate = s.candidates[row]
            if candidate == NOTHING:
                g.hold_gemm = 1
                return False
            tile = candidate // 2
            if tile >= s.num_tiles:
                expert = tile - s.num_tiles
                tile = s.experts[expert].tile0 + s.experts[expert].tiles_open - 1
                close_tile(s, expert)
            start_row(s, gpu, tile, candidate % 2 + 1)
        start_blocks(s, gpu)
    return False


@compiled
def pump_combine(s: Root, gpu: int) -> bool:
    """Issues tokens or partial sums while SMs may take some, choosing units as it goes; True if it has to ask."""
    g = s.gpus[gpu]
    if not g.start_open or (s.exclusive and (g.part < s.num_parts or g.arrivals_left > 0)):
        return False
    while g.take_head != NOTHING:
        if g.issue_head != NOTHING:
            item = g.issue_head
            g.issue_head = s.item_next[item]
            issue_combine(s, gpu, item)
            continue
        if g.hold_combine:
            return False
        row = decide(s, COMBINE, gpu)
        if row == WAIT:
            return True
        if row == NOTHING:
            return False
        if s.candidates[row] == NOTHING:
            g.hold_combine = 1
            return False
        take_unit(s, gpu, s.candidates[row])
    return False


@compiled
def free_slot(s: Root, sm: int) -> None:
    """Lets a communication SM put another vector in flight: of the token it is at, or else of a new one."""
    m = s.sms[sm]
    per_gpu = s.most_dispatch_sms + s.most_combine_sms
    gpu = sm // per_gpu
    combines = sm % per_gpu >= s.most_dispatch_sms
    m.in_flight -= 1
    if m.token != NOTHING:
        if combines:
            issue_loads(s, gpu, sm)
        else:
            issue_copies(s, gpu, sm)
    elif m.duty != ON_DUTY:
        leave_if_idle(s, COMBINE if combines else DISPATCH, gpu, sm)
    elif m.in_flight == (s.combine_slots if combines else s.dispatch_slots) - 1:
        # With fewer in flight it is listed already.
        list_sm(s, COMBINE if combines else DISPATCH, gpu, sm)


@compiled
def open_gate(s: Root, stage: int, part: int, gpu: int) -> None:
    """Lets a stage start on all GPUs or one: 0 all groups, 1 GEMM-1, 2 GEMM-2, 3 combine of one part."""
    for i in range(s.num_gpus):
        if gpu != NOTHING and i != gpu:
            continue
        g = s.gpus[i]
        p = part_of(s, i, part)
        if stage == 0:
            g.start_open = 1
            mark_dirty(s, DISPATCH, i)
            mark_dirty(s, GEMM, i)
            mark_dirty(s, COMBINE, i)
        elif stage == 1:
            p.gate1_open = 1
            mark_dirty(s, GEMM, i)
        elif stage == 2:
            p.gate2_open = 1
            mark_dirty(s, GEMM, i)
        else:
            p.gate3_open = 1
            list_part(s, i, part)
            mark_dirty(s, COMBINE, i)


@compiled
def set_split(s: Root, row: int) -> None:
    """Divides every GPU's SMs among the three groups as a row of ``splits`` says; the GEMM group has the rest."""
    s.dispatch_sms = s.splits[row].dispatch_sms
    s.combine_sms = s.splits[row].combine_sms
    s.gemm_sms = s.total_sms - s.dispatch_sms - s.combine_sms
    for i in range(s.num_gpus):
        s.gpus[i].split = row
        s.gpus[i].min_partial = s.splits[row].early_tokens


@compiled
def pump_split(s: Root, gpu: int) -> bool:
    """Lets a GPU choose its group sizes again; True if it has to ask."""
    row = decide(s, SPLIT, gpu)
    if row == WAIT:
        return True
    if row != NOTHING and s.candidates[row] != s.gpus[gpu].split:
        resize(s, gpu, s.candidates[row])
    return False


@compiled_in_place
def serve(s: Root, kind: int, a: int, b: int) -> None:
    """Lets one event have its effect."""
    if kind == EV_SWITCH:
        switch_arrive(s, a, b)
    elif kind == EV_REACH:
        if a < s.partial0:
            reach_dispatch(s, a)
        else:
            reach_combine(s, a)
    elif kind == EV_CREDIT:
        s.lanes[a * 2 + b % 2].used_flits -= b // 2
        uplink_pump(s, a)
    elif kind == EV_INPUT_NEXT:
        input_next(s, a, b)
    elif kind == EV_UPLINK:
        s.uplinks[a].wake = 0
        uplink_pump(s, a)
    elif kind == EV_PORT:
        s.ports[a].wake = 0
        port_pump(s, a)
    elif kind == EV_BLOCKS:
        blocks_end(s, a, b // 2, b % 2 + 1)
    elif kind == EV_ARRIVE:
        arrive(s, a)
    elif kind == EV_TILE:
        tile_ready(s, a)
    elif kind == EV_REQUEST:
        if a < s.partial0:
            asked_for_token(s, s.nodes[a].owner)
        else:
            requested(s, s.nodes[a].owner)
    elif kind == EV_RESPOND:
        send_vector(s, b, a)
    elif kind == EV_ACK:
        acknowledged(s, a)
    elif kind == EV_SLOT:
        free_slot(s, a)
    elif kind == EV_NOTIFY:
        notified(s, a, b)
    elif kind == EV_READY:
        item_ready(s, s.tokens[a].chunk, a, a // s.tokens_per_gpu)
    elif kind == EV_GATE:
        open_gate(s, a % 4, a // 4, b)


@compiled
def pump(s: Root, kind: int, gpu: int) -> bool:
    """Lets one SM group act, or its GPU choose group sizes; True if it has to ask."""
    if kind == SPLIT:
        return pump_split(s, gpu)
    if kind == DISPATCH:
        return pump_dispatch(s, gpu)
    if kind == GEMM:
        return pump_gemm(s, gpu)
    return pump_combine(s, gpu)


@compiled
def needs_room(s: Root) -> bool:
    """Returns whether one more step could overrun the heap, the wheel's pool or the log."""
    return (
        s.heap_size + s.heap_margin > s.heap_capacity
        or s.wheel_size + s.heap_margin > s.pool_capacity
        or (s.logging == 1 and s.log_size + s.log_margin > s.log_capacity)
    )


@compiled_in_place
def advance_one(s: Root) -> int:
    """Runs one layer until a decision has to be asked, the layer is done, or more room is needed."""
    if needs_room(s):
        return GROW
    if s.chunks_weighed == 0:
        weigh_chunks(s)
        s.chunks_weighed = 1
    if not s.split_done:
        row = decide(s, SPLIT, 0) if s.num_splits > 0 else NOTHING
        if row == WAIT:
            return ASK
        if row != NOTHING:
            set_split(s, s.candidates[row])
        staff_groups(s)
        s.split_done = 1
        s.pending_kind = NOTHING
    if s.pending_kind != NOTHING:
        # The group that asked goes first, so that the answer finds it in the state it was shown.
        if pump(s, s.pending_kind, s.pending_gpu):
            return ASK
        s.pending_kind = NOTHING
    while True:
        while s.dirty_size > 0 and not s.serving:
            if needs_room(s):
                return GROW
            group = s.dirty[s.dirty_head]
            kind = group // s.num_gpus
            gpu = group % s.num_gpus
            s.dirty_head = (s.dirty_head + 1) % s.dirty_capacity
            s.dirty_size -= 1
            # The mark goes before the group acts: what it does may give it more to do.
            g = s.gpus[gpu]
            if kind == SPLIT:
                g.dirty0 = 0
            elif kind == DISPATCH:
                g.dirty1 = 0
            elif kind == GEMM:
                g.dirty2 = 0
            else:
                g.dirty3 = 0
            if pump(s, kind, gpu):
                return ASK
        if not s.serving:
            if s.tokens_left == 0:
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
            kind, a, b = pop(s)
            s.events += 1
            serve(s, kind, a, b)
        s.serving = 0


@njit(cache=True, nogil=True, error_model="numpy")
def advance(roots: np.ndarray) -> int:
    """Runs every layer that may run as far as it can; returns how many now want something other than an answer.

    Layers share nothing, so slices of one array may run in threads of their own.
    """
    others = 0
    for i in range(len(roots)):
        s = root_of(roots, i)
        if s.status == RUN:
            s.status = advance_one(s)
            if s.status != ASK:
                others += 1
    return others
