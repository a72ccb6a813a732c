"""One GPU: arrivals and the Hub's tables, HBM and L2, GEMM rows on SMs, and what the communication SMs issue.

Each function reacts to one thing that has happened or starts one thing that was chosen; which thing to choose is
``decisions.py``'s business. SM groups that may have become able to act are marked dirty and looked at by ``kernel.py``
once every event of the instant is served.
"""

from __future__ import annotations

from numba import njit

from dysharp_env.simulator.events import push
from dysharp_env.simulator.fabric import charge_down, charge_up, log_row, target_flits, uplink_enqueue
from dysharp_env.simulator.layout import (
    BROADCAST,
    COMBINE,
    COMBINE_ACK,
    COMBINE_REQUEST,
    DISPATCH,
    DISPATCH_ACK,
    EV_ACK,
    EV_ARRIVE,
    EV_BLOCKS,
    EV_GATE,
    EV_NOTIFY,
    EV_READY,
    EV_REQUEST,
    EV_RESPOND,
    EV_TILE,
    GATE_PHASE,
    GEMM,
    LOG_SM,
    MULTICAST,
    NO_TIME,
    NOTHING,
    NOTIFY,
    PULL_REDUCE,
    PUSH_UNICAST,
    REDUCE_SCATTER,
    UNICAST,
)
from dysharp_env.simulator.views import (
    Root,
    arrived_pair,
    dirty_ring,
    experts,
    gpu_experts,
    gpus,
    item_next,
    nodes,
    pairs,
    slot_expert,
    slot_tlb,
    tiles,
    tokens,
    units,
)


@njit(cache=True)
def mark_dirty(s: Root, kind: int, gpu: int) -> None:
    """Asks for an SM group to be looked at, once."""
    g = gpus(s)[gpu]
    if kind == DISPATCH:
        if g.dirty1:
            return
        g.dirty1 = 1
    elif kind == GEMM:
        if g.dirty2:
            return
        g.dirty2 = 1
    else:
        if g.dirty3:
            return
        g.dirty3 = 1
    dirty_ring(s)[(s.dirty_head + s.dirty_size) % s.dirty_capacity] = kind * s.num_gpus + gpu
    s.dirty_size += 1


@njit(cache=True)
def is_pull(s: Root) -> bool:
    """Returns whether home GPUs pull sums, rather than expert GPUs pushing theirs."""
    primitive = s.combine_primitive
    return primitive == PULL_REDUCE or primitive == REDUCE_SCATTER


@njit(cache=True)
def use_hbm(s: Root, gpu: int, num_bytes: int) -> int:
    """Puts an access behind all earlier ones of this GPU's HBM and returns when it is over."""
    g = gpus(s)[gpu]
    ps = num_bytes * s.hbm_mult // s.hbm_div
    g.hbm_free_ps = max(g.hbm_free_ps, s.now_ps) + ps
    g.hbm_busy_ps += ps
    return g.hbm_free_ps


@njit(cache=True)
def translate(s: Root, pair: int) -> int:
    """Looks up a pair's algebraic indices in the AL TLB and returns the delay: one memory latency if any misses.

    The TLB is first-in first-out: an entry is present while fewer than ``al_entries`` have come after it. The packets
    of one segment follow each other, so only the first can miss.
    """
    g = gpus(s)[pairs(s)[pair].gpu]
    delay_ps = 0
    first = pairs(s)[pair].slot0
    for slot in range(first, first + pairs(s)[pair].num_experts):
        if slot_tlb(s)[slot] == NOTHING or g.tlb_sequence - slot_tlb(s)[slot] >= s.al_entries:
            delay_ps = s.memory_ps
            slot_tlb(s)[slot] = g.tlb_sequence
            g.tlb_sequence += 1
    return delay_ps


# Dispatch: issue, store, arrival.


@njit(cache=True)
def issue_local(s: Root, token: int) -> None:
    """Hands a token to the experts on its own GPU: a copy through memory, no link."""
    pair = tokens(s)[token].pair0
    if pairs(s)[pair].gpu == token // s.tokens_per_gpu and pairs(s)[pair].num_experts > 0:
        push(s, s.now_ps + s.memory_ps, EV_ARRIVE, pair, 0)


@njit(cache=True)
def issue_dispatch(s: Root, gpu: int, node: int) -> None:
    """Stores a token to one GPU (unicast) or to all its targets (multicast, broadcast)."""
    g = gpus(s)[gpu]
    g.dispatch_in_flight += s.dispatch_packets
    uplink_enqueue(s, gpu, node)


@njit(cache=True)
def reach_dispatch(s: Root, pair: int) -> None:
    """Stores a token's vector in an expert GPU's memory, acknowledges it, and translates its place."""
    token = pairs(s)[pair].token
    charge_up(s, pairs(s)[pair].gpu, s.dispatch_packets * s.ack_flits, DISPATCH_ACK)
    if s.dispatch_primitive == UNICAST:
        push(s, s.now_ps + 2 * s.hop_ps, EV_ACK, pair, 0)
    else:
        # The switch merges the acknowledgements of a multicast store: the last one counts.
        tokens(s)[token].acks_left -= 1
        if tokens(s)[token].acks_left == 0:
            push(s, s.now_ps + 2 * s.hop_ps, EV_ACK, 2 * s.num_pairs + token, 0)
    if pairs(s)[pair].num_experts == 0:
        use_hbm(s, pairs(s)[pair].gpu, s.token_in_bytes)
    elif s.dispatch_primitive == MULTICAST:
        push(s, s.now_ps + translate(s, pair), EV_ARRIVE, pair, 0)
    else:
        arrive(s, pair)


@njit(cache=True)
def arrive(s: Root, pair: int) -> None:
    """Makes a token visible to its experts on one GPU, filling their tiles."""
    gpu = pairs(s)[pair].gpu
    g = gpus(s)[gpu]
    count = pairs(s)[pair].num_experts
    token = pairs(s)[pair].token
    tokens(s)[token].dispatch_end = s.now_ps
    s.dispatch_last = s.now_ps
    s.arrivals_left -= count
    g.arrivals_left -= count
    use_hbm(s, gpu, count * s.token_in_bytes)
    first = pairs(s)[pair].slot0
    for slot in range(first, first + count):
        x = experts(s)[slot_expert(s)[slot]]
        arrived_pair(s)[x.slot0 + x.arrived] = pair
        if x.open_count == 0:
            tile = x.tile0 + x.tiles_open
            tiles(s)[tile].first = x.slot0 + x.arrived
            tiles(s)[tile].expert = slot_expert(s)[slot]
            x.tiles_open += 1
            g.tiles_live += 1
        x.arrived += 1
        x.open_count += 1
        if x.open_count == s.tile_tokens or x.arrived == x.total:
            close_tile(s, slot_expert(s)[slot])
    if s.allow_partial:
        mark_dirty(s, GEMM, gpu)
    if s.arrivals_left == 0 and s.gate1 == GATE_PHASE:
        push(s, s.now_ps + s.pay1_ps, EV_GATE, 1, NOTHING)


@njit(cache=True)
def close_tile(s: Root, expert: int) -> None:
    """Ends an expert's open tile; it is ready now, or a memory latency later if its status entry has spilled."""
    x = experts(s)[expert]
    tile = x.tile0 + x.tiles_open - 1
    tiles(s)[tile].count = x.open_count
    x.open_count = 0
    spilled = gpus(s)[x.gpu].tiles_live > s.ts_entries
    # Tiles of one expert become ready in the order in which they closed.
    x.ready_ps = max(x.ready_ps, s.now_ps + (s.memory_ps if spilled else 0))
    if x.ready_ps == s.now_ps:
        tile_ready(s, tile)
    else:
        push(s, x.ready_ps, EV_TILE, tile, 0)


@njit(cache=True)
def row_ready(s: Root, gpu: int) -> int:
    """Counts one more row for a GPU's GEMM group and returns its place in the order of readiness."""
    g = gpus(s)[gpu]
    g.hold_gemm = 0
    s.ready_sequence += 1
    mark_dirty(s, GEMM, gpu)
    return s.ready_sequence


@njit(cache=True)
def tile_ready(s: Root, tile: int) -> None:
    """Makes a tile's GEMM-1 row ready."""
    x = experts(s)[tiles(s)[tile].expert]
    x.ready1 += 1
    tiles(s)[tile].ready1_ps = s.now_ps
    tiles(s)[tile].ready1_seq = row_ready(s, x.gpu)


# GEMM rows.


@njit(cache=True)
def evict_weights(s: Root, gpu: int, need_bytes: int) -> None:
    """Drops the least recently used expert matrices of a GPU until ``need_bytes`` fit in L2."""
    g = gpus(s)[gpu]
    while g.l2_used_bytes + need_bytes > s.l2_bytes and g.l2_used_bytes > 0:
        oldest = NOTHING
        stage = 1
        stamp = g.l2_stamp + 1
        for i in range(gpu * s.experts_per_gpu, (gpu + 1) * s.experts_per_gpu):
            x = experts(s)[gpu_experts(s)[i]]
            if x.resident1 > 0 and x.used1 < stamp:
                stamp = x.used1
                oldest = gpu_experts(s)[i]
                stage = 1
            if x.resident2 > 0 and x.used2 < stamp:
                stamp = x.used2
                oldest = gpu_experts(s)[i]
                stage = 2
        x = experts(s)[oldest]
        if stage == 1:
            g.l2_used_bytes -= x.resident1
            x.resident1 = 0
        else:
            g.l2_used_bytes -= x.resident2
            x.resident2 = 0


@njit(cache=True)
def fetch_weights(s: Root, expert: int, stage: int) -> int:
    """Returns when an expert's matrix is in L2, reading it from HBM if it is not.

    A matrix larger than L2 counts as filling it: rows of one expert that follow each other walk its panels together,
    but nothing else stays.
    """
    x = experts(s)[expert]
    g = gpus(s)[x.gpu]
    g.l2_stamp += 1
    resident = x.resident1 if stage == 1 else x.resident2
    weight_bytes = s.weight1_bytes if stage == 1 else s.weight2_bytes
    if resident == 0:
        size = min(weight_bytes, s.l2_bytes)
        evict_weights(s, x.gpu, size)
        g.l2_used_bytes += size
        done_ps = use_hbm(s, x.gpu, weight_bytes)
        if stage == 1:
            x.resident1 = size
            x.weights1_ps = done_ps
        else:
            x.resident2 = size
            x.weights2_ps = done_ps
    if stage == 1:
        x.used1 = g.l2_stamp
        return x.weights1_ps
    x.used2 = g.l2_stamp
    return x.weights2_ps


@njit(cache=True)
def start_row(s: Root, gpu: int, tile: int, stage: int) -> None:
    """Takes a row out of the ready rows and gives it to the GEMM group; SMs take its thread blocks as they are free."""
    g = gpus(s)[gpu]
    t = tiles(s)[tile]
    x = experts(s)[t.expert]
    g.row_tile = tile
    g.row_stage = stage
    t.inputs_ps = fetch_weights(s, t.expert, stage)
    if stage == 1:
        x.started1 += 1
        t.left = s.blocks1
        t.start1 = s.now_ps
        if s.gemm1_first == NO_TIME:
            s.gemm1_first = s.now_ps
        t.inputs_ps = max(t.inputs_ps, use_hbm(s, gpu, t.count * s.token_in_bytes))
        use_hbm(s, gpu, t.count * s.token_mid_bytes)
    else:
        # Rows of GEMM-2 are queued in the order in which their GEMM-1 rows ended, so this one is the expert's first.
        x.row2_head = t.next
        t.left = s.blocks2
        t.start2 = s.now_ps
        if s.gemm2_first == NO_TIME:
            s.gemm2_first = s.now_ps
        t.inputs_ps = max(t.inputs_ps, use_hbm(s, gpu, t.count * s.token_mid_in_bytes))
        use_hbm(s, gpu, t.count * s.token_out_bytes)


@njit(cache=True)
def start_blocks(s: Root, gpu: int) -> None:
    """Puts thread blocks of the current row on all free SMs."""
    g = gpus(s)[gpu]
    t = tiles(s)[g.row_tile]
    count = min(g.free_sms, t.left)
    granules = (t.count + s.row_granularity - 1) // s.row_granularity
    block_ps = granules * (s.granule1_ps if g.row_stage == 1 else s.granule2_ps)
    # A block cannot end before its weights and tokens have come from HBM; its SM waits for them.
    end_ps = max(s.now_ps + block_ps, t.inputs_ps)
    g.free_sms -= count
    t.left -= count
    t.running += count
    g.sm_busy_ps += count * (end_ps - s.now_ps)
    log_row(s, LOG_SM, gpu, g.row_stage, g.row_tile, count, s.now_ps, end_ps)
    push(s, end_ps, EV_BLOCKS, g.row_tile, count * 2 + g.row_stage - 1)
    if t.left == 0:
        g.row_tile = NOTHING


@njit(cache=True)
def blocks_end(s: Root, tile: int, count: int, stage: int) -> None:
    """Frees the SMs of finished thread blocks; the last ones of a row finish it."""
    t = tiles(s)[tile]
    gpu = experts(s)[t.expert].gpu
    g = gpus(s)[gpu]
    g.free_sms += count
    g.hold_gemm = 0
    t.running -= count
    mark_dirty(s, GEMM, gpu)
    if t.running == 0 and t.left == 0:
        if stage == 1:
            t.end1 = s.now_ps
            s.gemm1_last = s.now_ps
            finish_gemm1(s, tile, gpu)
        else:
            t.end2 = s.now_ps
            s.gemm2_last = s.now_ps
            finish_gemm2(s, tile, gpu)


@njit(cache=True)
def finish_gemm1(s: Root, tile: int, gpu: int) -> None:
    """Makes the GEMM-2 row of a tile ready."""
    t = tiles(s)[tile]
    x = experts(s)[t.expert]
    t.next = NOTHING
    if x.row2_head == NOTHING:
        x.row2_head = tile
    else:
        tiles(s)[x.row2_tail].next = tile
    x.row2_tail = tile
    t.ready2_ps = s.now_ps
    t.ready2_seq = row_ready(s, gpu)
    gpus(s)[gpu].slots1_left -= t.count
    end_first_kernel(s, gpu)


@njit(cache=True)
def end_first_kernel(s: Root, gpu: int) -> None:
    """Opens a GPU's GEMM-2 behind a kernel boundary: its GEMM-1 is over, and what it dispatched is stored."""
    g = gpus(s)[gpu]
    if s.gate2 != GATE_PHASE or g.gate2_asked or g.slots1_left > 0:
        return
    if g.tokens_sent == s.tokens_per_gpu and g.dispatch_in_flight == 0:
        g.gate2_asked = 1
        push(s, s.now_ps + s.pay2_ps, EV_GATE, 2, gpu)


@njit(cache=True)
def finish_gemm2(s: Root, tile: int, gpu: int) -> None:
    """Makes the results of a tile known: to this GPU's combine group (push) or to the home GPUs (pull)."""
    t = tiles(s)[tile]
    gpus(s)[gpu].tiles_live -= 1
    gpus(s)[gpu].slots2_left -= t.count
    s.slots2_left -= t.count
    pull = is_pull(s)
    num_remote = 0
    for i in range(t.first, t.first + t.count):
        pair = arrived_pair(s)[i]
        q = pairs(s)[pair]
        q.experts_done += 1
        if not pull:
            if q.experts_done == q.num_experts:
                partial_ready(s, pair)
        elif s.notify and q.token // s.tokens_per_gpu != gpu:
            num_remote += 1
        else:
            expert_done(s, q.token)
    if num_remote > 0:
        # One counter update per token: a header flit and a flit of data.
        charge_up(s, gpu, 2 * num_remote, NOTIFY)
        push(s, s.now_ps + 2 * s.hop_ps, EV_NOTIFY, tile, gpu)
    if s.slots2_left == 0 and s.gate3 == GATE_PHASE:
        push(s, s.now_ps + s.pay3_ps, EV_GATE, 3, NOTHING)


@njit(cache=True)
def notified(s: Root, tile: int, gpu: int) -> None:
    """Counts a finished GEMM-2 row at the home GPUs of its tokens, and acknowledges the updates."""
    t = tiles(s)[tile]
    num_remote = 0
    for i in range(t.first, t.first + t.count):
        token = pairs(s)[arrived_pair(s)[i]].token
        home = token // s.tokens_per_gpu
        if home != gpu:
            num_remote += 1
            charge_down(s, home, 2, NOTIFY)
            charge_up(s, home, s.ack_flits, NOTIFY)
            expert_done(s, token)
    charge_down(s, gpu, num_remote * s.ack_flits, NOTIFY)


# Combine: readiness, issue, delivery.


@njit(cache=True)
def expert_done(s: Root, token: int) -> None:
    """Counts one finished expert of a token at its home GPU; with the last one the token may be combined."""
    tok = tokens(s)[token]
    g = gpus(s)[token // s.tokens_per_gpu]
    tok.experts_done += 1
    if tok.experts_done == 1 and s.notify:
        g.outputs_live += 1
    if tok.experts_done == s.top_k:
        if s.notify and g.outputs_live > s.or_entries:
            push(s, s.now_ps + s.memory_ps, EV_READY, token, 0)
        else:
            item_ready(s, tok.chunk, token, token // s.tokens_per_gpu)


@njit(cache=True)
def partial_ready(s: Root, pair: int) -> None:
    """Makes one GPU's partial sum of a token ready to be pushed, or adds it at once if it is home already."""
    token = pairs(s)[pair].token
    gpu = pairs(s)[pair].gpu
    if gpu == token // s.tokens_per_gpu:
        if tokens(s)[token].combine_start == NO_TIME:
            tokens(s)[token].combine_start = s.now_ps
        deliver(s, token, 1)
    else:
        item_ready(s, gpu * s.num_gpus * s.chunks_per_gpu + tokens(s)[token].chunk, pair, gpu)


@njit(cache=True)
def list_unit(s: Root, gpu: int, unit: int) -> None:
    """Puts a unit at the end of its GPU's list of ready units."""
    g = gpus(s)[gpu]
    u = units(s)[unit]
    u.listed = 1
    u.prev = g.ready_tail
    u.next = NOTHING
    if g.ready_tail == NOTHING:
        g.ready_head = unit
    else:
        units(s)[g.ready_tail].next = unit
    g.ready_tail = unit


@njit(cache=True)
def relist_units(s: Root, gpu: int) -> None:
    """Puts ready units in the order in which a combine kernel that starts late walks its buffer.

    Chunk after chunk; pushed partial sums go to one home GPU after the other, from the neighbour on, so that senders
    do not meet at one downlink.
    """
    g = gpus(s)[gpu]
    g.ready_head = NOTHING
    g.ready_tail = NOTHING
    for place in range(s.chunks_per_gpu):
        if is_pull(s):
            unit = gpu * s.chunks_per_gpu + place
            if units(s)[unit].listed:
                list_unit(s, gpu, unit)
        else:
            for offset in range(1, s.num_gpus):
                home = (gpu + offset) % s.num_gpus
                unit = (gpu * s.num_gpus + home) * s.chunks_per_gpu + place
                if units(s)[unit].listed:
                    list_unit(s, gpu, unit)


@njit(cache=True)
def item_ready(s: Root, unit: int, item: int, gpu: int) -> None:
    """Adds a token or partial sum to the unit it is combined with, and lists the unit if it was empty."""
    g = gpus(s)[gpu]
    u = units(s)[unit]
    item_next(s)[item] = NOTHING
    if u.head == NOTHING:
        u.head = item
    else:
        item_next(s)[u.tail] = item
    u.tail = item
    u.count += 1
    if u.listed == 0:
        u.ready_ps = s.now_ps
        list_unit(s, gpu, unit)
    g.items_waiting -= 1
    g.hold_combine = 0
    mark_dirty(s, COMBINE, gpu)


@njit(cache=True)
def take_unit(s: Root, gpu: int, unit: int) -> None:
    """Moves everything that is ready in a unit to the combine group's queue, and unlists it."""
    g = gpus(s)[gpu]
    u = units(s)[unit]
    if g.issue_head == NOTHING:
        g.issue_head = u.head
    else:
        item_next(s)[g.issue_tail] = u.head
    g.issue_tail = u.tail
    if u.prev == NOTHING:
        g.ready_head = u.next
    else:
        units(s)[u.prev].next = u.next
    if u.next == NOTHING:
        g.ready_tail = u.prev
    else:
        units(s)[u.next].prev = u.prev
    u.head = NOTHING
    u.tail = NOTHING
    u.count = 0
    u.listed = 0


@njit(cache=True)
def issue_combine(s: Root, gpu: int, item: int) -> None:
    """Asks the experts' GPUs for a token's sum (pull), or pushes one partial sum home."""
    token = item if is_pull(s) else pairs(s)[item].token
    tok = tokens(s)[token]
    if s.combine_first == NO_TIME:
        s.combine_first = s.now_ps
    if tok.combine_start == NO_TIME:
        tok.combine_start = s.now_ps
    g = gpus(s)[gpu]
    if not is_pull(s):
        g.combine_in_flight += s.combine_packets
        use_hbm(s, gpu, pairs(s)[item].num_experts * s.token_out_bytes)
        uplink_enqueue(s, gpu, s.num_pairs + item)
        return
    if tok.pieces_left == 0:
        complete(s, token)
        return
    g.combine_in_flight += s.combine_packets
    targets = tok.remote_targets if s.combine_primitive == PULL_REDUCE else 0
    charge_up(s, gpu, s.combine_packets * (s.request_flits + target_flits(s, targets)), COMBINE_REQUEST)
    end = tokens(s)[token + 1].pair0
    for pair in range(tok.pair0, end):
        if pairs(s)[pair].gpu != gpu and (pairs(s)[pair].num_experts > 0 or s.combine_primitive == REDUCE_SCATTER):
            push(s, s.now_ps + 2 * s.hop_ps, EV_REQUEST, pair, 0)


@njit(cache=True)
def requested(s: Root, pair: int) -> None:
    """Reads a partial sum that the home GPU has asked for."""
    gpu = pairs(s)[pair].gpu
    delay_ps = s.memory_ps
    targets = 0
    if s.combine_primitive == PULL_REDUCE:
        targets = pairs(s)[pair].num_experts
        delay_ps += translate(s, pair)
    charge_down(s, gpu, s.combine_packets * (s.request_flits + target_flits(s, targets)), COMBINE_REQUEST)
    # A static reduce-scatter reads one vector from every GPU, whether it holds a result or not.
    use_hbm(s, gpu, max(pairs(s)[pair].num_experts, 1) * s.token_out_bytes)
    push(s, s.now_ps + delay_ps, EV_RESPOND, pair, 0)


@njit(cache=True)
def reach_combine(s: Root, node: int) -> None:
    """Takes a partial or reduced sum in at its home GPU."""
    pair = node - s.num_pairs
    token = node - 2 * s.num_pairs if node >= 2 * s.num_pairs else pairs(s)[pair].token
    home = token // s.tokens_per_gpu
    if not is_pull(s):
        charge_up(s, home, s.combine_packets * s.ack_flits, COMBINE_ACK)
        if s.combine_primitive == PUSH_UNICAST:
            push(s, s.now_ps + 2 * s.hop_ps, EV_ACK, node, 0)
    deliver(s, token, nodes(s)[node].pieces)


@njit(cache=True)
def deliver(s: Root, token: int, pieces: int) -> None:
    """Adds partial sums to a token's result; with the last one the token is combined."""
    tok = tokens(s)[token]
    tok.pieces_left -= pieces
    if tok.pieces_left > 0:
        return
    if is_pull(s):
        home = token // s.tokens_per_gpu
        gpus(s)[home].combine_in_flight -= s.combine_packets
        mark_dirty(s, COMBINE, home)
    complete(s, token)


@njit(cache=True)
def complete(s: Root, token: int) -> None:
    """Ends a token: its result is at home."""
    g = gpus(s)[token // s.tokens_per_gpu]
    tokens(s)[token].combine_end = s.now_ps
    s.combine_last = s.now_ps
    s.tokens_left -= 1
    g.combined += 1
    if s.notify:
        g.outputs_live -= 1


@njit(cache=True)
def acknowledged(s: Root, node: int) -> None:
    """Gives a communication group back the packets of a segment that is stored."""
    if s.num_pairs <= node < 2 * s.num_pairs:
        gpu = pairs(s)[node - s.num_pairs].gpu
        charge_down(s, gpu, s.combine_packets * s.ack_flits, COMBINE_ACK)
        gpus(s)[gpu].combine_in_flight -= s.combine_packets
        mark_dirty(s, COMBINE, gpu)
        return
    token = pairs(s)[node].token if node < s.num_pairs else node - 2 * s.num_pairs
    gpu = token // s.tokens_per_gpu
    charge_down(s, gpu, s.dispatch_packets * s.ack_flits, DISPATCH_ACK)
    gpus(s)[gpu].dispatch_in_flight -= s.dispatch_packets
    mark_dirty(s, DISPATCH, gpu)
    end_first_kernel(s, gpu)


@njit(cache=True)
def is_target(s: Root, pair: int) -> bool:
    """Returns whether a dispatch sends this pair over a link."""
    if pairs(s)[pair].gpu == pairs(s)[pair].token // s.tokens_per_gpu:
        return False
    return pairs(s)[pair].num_experts > 0 or s.dispatch_primitive == BROADCAST
