"""GEMM rows: tiles that close, expert weights in L2, thread blocks on SMs, and who learns of a finished row."""

from __future__ import annotations

from dysharp_env.simulator.combine import expert_done, partial_ready
from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.events import push
from dysharp_env.simulator.fabric import charge_down, charge_up, log_row, update_plane
from dysharp_env.simulator.groups import block_ps, count_slot, mark_dirty, part_of, use_hbm
from dysharp_env.simulator.layout import (
    EV_BLOCKS,
    EV_GATE,
    EV_NOTIFY,
    EV_TILE,
    GATE_GPU,
    GATE_PHASE,
    GEMM,
    LOG_SM,
    NO_TIME,
    NOTHING,
    NOTIFY,
    NOTIFY_FLITS,
)
from dysharp_env.simulator.primitives import is_pull
from dysharp_env.simulator.rows import prefetch
from dysharp_env.simulator.staffing import fill_groups
from dysharp_env.simulator.views import Root

# Tokens that memory is asked for ahead of the one at hand: it answers in the time that a few of them take.
LOOK_AHEAD = 4


@compiled
def row_ready(s: Root, gpu: int) -> int:
    """Counts one more row for a GPU's GEMM group and returns its place in the order of readiness."""
    g = s.gpus[gpu]
    g.hold_gemm = 0
    s.ready_sequence += 1
    mark_dirty(s, GEMM, gpu)
    return s.ready_sequence


@compiled
def tile_ready(s: Root, tile: int) -> None:
    """Makes a tile's GEMM-1 row ready."""
    x = s.experts[s.tiles[tile].expert]
    x.ready1 += 1
    s.tiles[tile].ready1_ps = s.now_ps
    s.tiles[tile].ready1_seq = row_ready(s, x.gpu)


@compiled
def close_tile(s: Root, expert: int) -> None:
    """Ends an expert's open tile; it is ready now, or a memory latency later if its status entry has spilled."""
    x = s.experts[expert]
    tile = x.tile0 + x.tiles_open - 1
    s.tiles[tile].count = x.open_count
    x.open_count = 0
    s.shown[expert].fill = 0.0
    spilled = s.gpus[x.gpu].tiles_live > s.ts_entries
    # Tiles of one expert become ready in the order in which they closed.
    x.ready_ps = max(x.ready_ps, s.now_ps + (s.memory_ps if spilled else 0))
    if x.ready_ps == s.now_ps:
        tile_ready(s, tile)
    else:
        push(s, x.ready_ps, EV_TILE, tile, 0)


@compiled
def evict_weights(s: Root, gpu: int, need_bytes: int) -> None:
    """Drops the least recently used expert matrices of a GPU until ``need_bytes`` fit in L2."""
    g = s.gpus[gpu]
    while g.l2_used_bytes + need_bytes > s.l2_bytes and g.l2_used_bytes > 0:
        oldest = NOTHING
        stage = 1
        stamp = g.l2_stamp + 1
        for i in range(gpu * s.experts_per_gpu, (gpu + 1) * s.experts_per_gpu):
            x = s.matrices[s.gpu_experts[i]]
            if x.resident1 > 0 and x.used1 < stamp:
                stamp = x.used1
                oldest = s.gpu_experts[i]
                stage = 1
            if x.resident2 > 0 and x.used2 < stamp:
                stamp = x.used2
                oldest = s.gpu_experts[i]
                stage = 2
        x = s.matrices[oldest]
        if stage == 1:
            g.l2_used_bytes -= x.resident1
            x.resident1 = 0
        else:
            g.l2_used_bytes -= x.resident2
            x.resident2 = 0


@compiled
def fetch_weights(s: Root, expert: int, stage: int) -> int:
    """Returns when an expert's matrix is in L2, reading it from HBM if it is not.

    A matrix larger than L2 counts as filling it: rows of one expert that follow each other walk its panels together,
    but nothing else stays.
    """
    gpu = s.experts[expert].gpu
    x = s.matrices[s.experts[expert].number]
    g = s.gpus[gpu]
    g.l2_stamp += 1
    resident = x.resident1 if stage == 1 else x.resident2
    weight_bytes = s.weight1_bytes if stage == 1 else s.weight2_bytes
    if resident == 0:
        size = min(s.matrix1_bytes if stage == 1 else s.matrix2_bytes, s.l2_bytes)
        evict_weights(s, gpu, size)
        g.l2_used_bytes += size
        done_ps = use_hbm(s, gpu, weight_bytes)
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


@compiled
def start_row(s: Root, gpu: int, tile: int, stage: int) -> None:
    """Takes a row out of the ready rows and gives it to the GEMM group; SMs take its thread blocks as they are free."""
    g = s.gpus[gpu]
    t = s.tiles[tile]
    x = s.experts[t.expert]
    g.row_tile = tile
    g.row_stage = stage
    t.weights_ps = fetch_weights(s, t.expert, stage)
    if stage == 1:
        x.started1 += 1
        t.left = s.blocks1
        t.start1 = s.now_ps
        if s.gemm1_first == NO_TIME:
            s.gemm1_first = s.now_ps
        t.inputs_ps = max(t.weights_ps, use_hbm(s, gpu, t.count * s.token_in_bytes))
        use_hbm(s, gpu, t.count * s.token_mid_bytes)
    else:
        # Rows of GEMM-2 are queued in the order in which their GEMM-1 rows ended, so this one is the expert's first.
        x.row2_head = t.next
        t.left = s.blocks2
        t.start2 = s.now_ps
        if s.gemm2_first == NO_TIME:
            s.gemm2_first = s.now_ps
        t.inputs_ps = max(t.weights_ps, use_hbm(s, gpu, t.count * s.token_mid_in_bytes))
        use_hbm(s, gpu, t.count * s.token_out_bytes)


@compiled
def start_blocks(s: Root, gpu: int) -> None:
    """Puts thread blocks of the current row on all free SMs."""
    g = s.gpus[gpu]
    t = s.tiles[g.row_tile]
    count = min(g.free_sms, t.left)
    # While its weights stream from HBM a block works more slowly than from L2.
    cold_ps = max(t.weights_ps - s.now_ps, 0) // 1000 * s.cold_exposure
    # A block cannot end before its weights and tokens have come from HBM; its SM waits for them.
    end_ps = max(s.now_ps + block_ps(s, gpu, g.row_stage, t.count) + cold_ps, t.inputs_ps)
    g.free_sms -= count
    t.left -= count
    t.running += count
    g.sm_busy_ps += count * (end_ps - s.now_ps)
    log_row(s, LOG_SM, gpu, g.row_stage, g.row_tile, count, s.now_ps, end_ps)
    push(s, end_ps, EV_BLOCKS, g.row_tile, count * 2 + g.row_stage - 1)
    if t.left == 0:
        g.row_tile = NOTHING


@compiled
def end_first_kernel(s: Root, gpu: int, part: int) -> None:
    """Opens a part's GEMM-2 on a GPU behind a kernel boundary: its GEMM-1 is over, and what it dispatched is stored."""
    p = part_of(s, gpu, part)
    if s.gate2 == GATE_PHASE and p.gate2_asked == 0 and p.slots1_left == 0 and s.gpus[gpu].part > part:
        p.gate2_asked = 1
        push(s, s.now_ps + s.pay2_ps, EV_GATE, 2 + 4 * part, gpu)


@compiled
def finish_gemm1(s: Root, tile: int, gpu: int) -> None:
    """Makes the GEMM-2 row of a tile ready."""
    t = s.tiles[tile]
    x = s.experts[t.expert]
    t.next = NOTHING
    if x.row2_head == NOTHING:
        x.row2_head = tile
    else:
        s.tiles[x.row2_tail].next = tile
    x.row2_tail = tile
    t.ready2_ps = s.now_ps
    t.ready2_seq = row_ready(s, gpu)
    s.gpus[gpu].slots1_left -= t.count
    part_of(s, gpu, x.part).slots1_left -= t.count
    end_first_kernel(s, gpu, x.part)


@compiled
def remote_on_plane(s: Root, tile: int, gpu: int, plane: int) -> int:
    """Counts a tile's tokens of other GPUs whose counters are updated over a plane."""
    t = s.tiles[tile]
    count = 0
    for i in range(t.first, t.first + t.count):
        token = s.pairs[s.arrived_pair[i]].token
        if token // s.tokens_per_gpu != gpu and update_plane(s, token) == plane:
            count += 1
    return count


@compiled
def look_ahead(s: Root, place: int, last: int) -> None:
    """Asks memory for the records of tokens that come some places on in a tile: they lie anywhere.

    Args:
        s: The root.
        place: The place at hand in the list of arrivals.
        last: The end of the tile's.
    """
    if place + 2 * LOOK_AHEAD < last:
        prefetch(s.pairs, s.arrived_pair[place + 2 * LOOK_AHEAD])
    if place + LOOK_AHEAD < last:
        token = s.pairs[s.arrived_pair[place + LOOK_AHEAD]].token
        prefetch(s.tokens, token)
        prefetch(s.slot_tile, token * s.top_k)


@compiled
def finish_gemm2(s: Root, tile: int, gpu: int) -> None:
    """Makes the results of a tile known: to this GPU's combine group (push) or to the home GPUs (pull)."""
    t = s.tiles[tile]
    s.gpus[gpu].tiles_live -= 1
    s.gpus[gpu].slots2_left -= t.count
    part = s.experts[t.expert].part
    part_of(s, gpu, part).slots2_left -= t.count
    s.phases[part].slots2_left -= t.count
    pull = is_pull(s)
    num_remote = 0
    last = t.first + t.count
    for i in range(t.first, last):
        pair = s.arrived_pair[i]
        prefetch(s.pairs, s.arrived_pair[min(i + LOOK_AHEAD, last - 1)])
        q = s.pairs[pair]
        q.experts_done += 1
        if not pull:
            count_slot(s, q.slot0, q.num_experts, tile, q.num_experts - q.experts_done)
            if q.experts_done == q.num_experts:
                partial_ready(s, pair)
        elif s.notify and q.home != gpu:
            num_remote += 1
        else:
            expert_done(s, q.token, tile)
    if num_remote > 0:
        for plane in range(s.planes):
            count = remote_on_plane(s, tile, gpu, plane) if s.planes > 1 else num_remote
            charge_up(s, gpu, plane, NOTIFY_FLITS * count, NOTIFY)
        push(s, s.now_ps + 2 * s.hop_ps, EV_NOTIFY, tile, gpu)
    if s.gate3 == GATE_PHASE and s.phases[part].slots2_left == 0:
        push(s, s.now_ps + s.pay3_ps, EV_GATE, 3 + 4 * part, NOTHING)
    if s.gate3 == GATE_GPU and part_of(s, gpu, part).slots2_left == 0:
        push(s, s.now_ps + s.pay3_ps, EV_GATE, 3 + 4 * part, gpu)


@compiled
def blocks_end(s: Root, tile: int, count: int, stage: int) -> None:
    """Frees the SMs of finished thread blocks; the last ones of a row finish it."""
    t = s.tiles[tile]
    gpu = s.experts[t.expert].gpu
    g = s.gpus[gpu]
    g.free_sms += count
    if s.split_moments > 0:
        fill_groups(s, gpu)
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


@compiled
def notified(s: Root, tile: int, gpu: int) -> None:
    """Counts a finished GEMM-2 row at the home GPUs of its tokens, and acknowledges the updates."""
    t = s.tiles[tile]
    num_remote = 0
    for i in range(t.first, t.first + t.count):
        look_ahead(s, i, t.first + t.count)
        q = s.pairs[s.arrived_pair[i]]
        token, home = q.token, q.home
        if home != gpu:
            num_remote += 1
            plane = update_plane(s, token)
            charge_down(s, home, plane, NOTIFY_FLITS, NOTIFY)
            charge_up(s, home, plane, s.ack_flits, NOTIFY)
            expert_done(s, token, tile)
    for plane in range(s.planes):
        count = remote_on_plane(s, tile, gpu, plane) if s.planes > 1 else num_remote
        charge_down(s, gpu, plane, count * s.ack_flits, NOTIFY)
