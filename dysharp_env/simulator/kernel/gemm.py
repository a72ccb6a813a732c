"""GEMM rows: tiles that close, thread blocks on SMs, and who learns of a finished row."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.jit.rows import prefetch
from dysharp_env.simulator.kernel.combine import expert_done, partial_ready
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append, take
from dysharp_env.simulator.kernel.gates import count_towards
from dysharp_env.simulator.kernel.groups import mark
from dysharp_env.simulator.kernel.links import charge_down, charge_up, log_row, update_plane
from dysharp_env.simulator.kernel.memory import fetch_weights, is_here, read, tile_block, write
from dysharp_env.simulator.kernel.movers import offer_mover
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.prefetch import consider, row_started
from dysharp_env.simulator.kernel.slots import count_slot
from dysharp_env.simulator.kernel.staffing import fill_groups
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NO_TIME, NOTHING
from dysharp_env.simulator.state.observation import GEMM

# Tokens that memory is asked for ahead of the one at hand: it answers in the time that a few of them take.
LOOK_AHEAD = 4


@compiled
def block_ps(s: Root, gpu: int, gemm: int, tokens: int) -> int:
    """Returns the time of one thread block of a GEMM over a tile of ``tokens`` on a GPU."""
    cost = s.gemms[gemm]
    granules = (tokens + s.row_granularity - 1) // s.row_granularity
    ps = s.block_overhead_ps + max(granules * cost.granule_ps, cost.operand_ps + granules * cost.half_granule_ps)
    return ps * s.slow_permille // 1000 if gpu == 0 else ps


@compiled
def row_ready(s: Root, gpu: int, tile: int, gemm: int) -> None:
    """Notes that a row may run from now on, and its place in the order of readiness."""
    consider(s, gpu)
    s.gpus[gpu].groups[GEMM].holding = 0
    s.ready_sequence += 1
    row = s.tiles[tile].rows[gemm]
    row.ready_ps = s.now_ps
    row.ready_sequence = s.ready_sequence
    mark(s, GEMM, gpu)


@compiled
def tile_ready(s: Root, tile: int, gemm: int) -> None:
    """Makes a tile's row ready, whose tokens are there, or holds it until the weights are: rows stay in order."""
    x = s.experts[s.tiles[tile].expert]
    if not is_here(s, x.number, gemm):
        append(s.matrices[x.number * 2 + gemm].held, s.tiles, tile)
        return
    if gemm == GEMM1:
        x.rows_ready += 1
    else:
        append(x.second, s.tiles, tile)
    row_ready(s, x.gpu, tile, gemm)


@compiled
def close_tile(s: Root, expert: int) -> None:
    """Ends an expert's open tile; it is ready now, or a memory latency later if its status entry has spilled."""
    x = s.experts[expert]
    tile = x.tile0 + x.tiles_open - 1
    s.tiles[tile].count = x.open_count
    x.open_count = 0
    s.shown[expert].fill = 0.0
    spilled = s.gpus[x.gpu].tiles_live > s.tile_status_entries
    # Tiles of one expert become ready in the order in which they closed.
    x.ready_ps = max(x.ready_ps, s.now_ps + (s.memory_ps if spilled else 0))
    if x.ready_ps == s.now_ps:
        tile_ready(s, tile, GEMM1)
    else:
        push(s, x.ready_ps, codes.EV_TILE, tile, 0, 0)


@compiled
def start_row(s: Root, gpu: int, tile: int, gemm: int) -> None:
    """Takes a row out of the ready rows and gives it to the GEMM group; SMs take its thread blocks as they are free."""
    g = s.gpus[gpu]
    t = s.tiles[tile]
    x = s.experts[t.expert]
    cost = s.gemms[gemm]
    g.row_tile = tile
    g.row_gemm = gemm
    t.weights_ps = fetch_weights(s, gpu, x.number, gemm)
    t.left = cost.blocks
    t.rows[gemm].start_ps = s.now_ps
    if gemm == GEMM1:
        x.rows_started += 1
        if s.gemm1_first == NO_TIME:
            s.gemm1_first = s.now_ps
    else:
        # Rows of GEMM-2 are queued in the order in which their GEMM-1 rows ended, so this one is the expert's first.
        take(x.second, s.tiles)
        if s.gemm2_first == NO_TIME:
            s.gemm2_first = s.now_ps
    # Of its three blocks a tile's GEMM-1 reads the first and writes the second, GEMM-2 the second and the third.
    t.inputs_ps = max(t.weights_ps, read(s, gpu, tile_block(s, tile, gemm), t.count * cost.token_in_bytes))
    write(s, gpu, tile_block(s, tile, gemm + 1), t.count * cost.token_out_bytes)
    x.unstarted[gemm] -= t.count
    row_started(s, gpu, x.number, gemm)


@compiled
def start_blocks(s: Root, gpu: int) -> None:
    """Puts thread blocks of the current row on all free SMs."""
    g = s.gpus[gpu]
    t = s.tiles[g.row_tile]
    count = min(g.free_sms, t.left)
    # While its weights stream from HBM a block works more slowly than from L2.
    cold_ps = max(t.weights_ps - s.now_ps, 0) // 1000 * s.cold_exposure_permille
    own_ps = block_ps(s, gpu, g.row_gemm, t.count)
    # The blocks share what those before them lost to communication, at most their own time again.
    lost_ps = min(g.debt_ps // count, own_ps)
    g.debt_ps -= lost_ps * count
    # A block cannot end before its weights and tokens have come from HBM; its SM waits for them.
    end_ps = max(s.now_ps + own_ps + lost_ps + cold_ps, t.inputs_ps)
    g.free_sms -= count
    t.left -= count
    t.running += count
    g.sm_busy_ps += count * (end_ps - s.now_ps)
    log_row(s, codes.LOG_SM, gpu, g.row_gemm + 1, g.row_tile, count, s.now_ps, end_ps)
    push(s, end_ps, codes.EV_BLOCKS, g.row_tile, g.row_gemm, count)
    if t.left == 0:
        g.row_tile = NOTHING


@compiled
def blocks_end(s: Root, tile: int, gemm: int, count: int) -> None:
    """Frees the SMs of finished thread blocks; the last ones of a row finish it."""
    t = s.tiles[tile]
    gpu = s.experts[t.expert].gpu
    g = s.gpus[gpu]
    g.free_sms += count
    if s.split_moments > 0:
        fill_groups(s, gpu)
    offer_mover(s, gpu)
    g.groups[GEMM].holding = 0
    t.running -= count
    mark(s, GEMM, gpu)
    if t.running > 0 or t.left > 0:
        return
    t.rows[gemm].end_ps = s.now_ps
    g.slots_left[gemm] -= t.count
    if gemm == GEMM1:
        s.gemm1_last = s.now_ps
        finish_gemm1(s, tile, gpu)
    else:
        s.gemm2_last = s.now_ps
        finish_gemm2(s, tile, gpu)


@compiled
def finish_gemm1(s: Root, tile: int, gpu: int) -> None:
    """Makes the GEMM-2 row of a tile ready, as far as it depends on GEMM-1."""
    t = s.tiles[tile]
    tile_ready(s, tile, GEMM2)
    count_towards(s, gpu, s.experts[t.expert].part, codes.OPENS_GEMM2, t.count)


@compiled
def finish_gemm2(s: Root, tile: int, gpu: int) -> None:
    """Makes the results of a tile known: to this GPU's combine group (push) or to the home GPUs (pull)."""
    t = s.tiles[tile]
    s.gpus[gpu].tiles_live -= 1
    num_remote = 0
    last = t.first + t.count
    for i in range(t.first, last):
        pair = s.arrived_pair[i]
        prefetch(s.pairs, s.arrived_pair[min(i + LOOK_AHEAD, last - 1)])
        q = s.pairs[pair]
        q.experts_done += 1
        if not s.combine.reads:
            count_slot(s, q.slot0, q.num_experts, tile, q.num_experts - q.experts_done)
            if q.experts_done == q.num_experts:
                partial_ready(s, pair)
        elif s.notifies and q.home != gpu:
            num_remote += 1
        else:
            expert_done(s, q.token, tile)
    if num_remote > 0:
        for plane in range(s.planes):
            count = remote_on_plane(s, tile, gpu, plane) if s.planes > 1 else num_remote
            charge_up(s, gpu, plane, codes.NOTIFY_FLITS * count, codes.NOTIFY)
        push(s, s.now_ps + 2 * s.hop_ps, codes.EV_NOTIFY, tile, gpu, 0)
    count_towards(s, gpu, s.experts[t.expert].part, codes.OPENS_COMBINE, t.count)


@compiled
def remote_on_plane(s: Root, tile: int, gpu: int, plane: int) -> int:
    """Counts a tile's tokens of other GPUs whose counters are updated over a plane."""
    t = s.tiles[tile]
    count = 0
    for i in range(t.first, t.first + t.count):
        q = s.pairs[s.arrived_pair[i]]
        if q.home != gpu and update_plane(s, q.token) == plane:
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
            charge_down(s, home, plane, codes.NOTIFY_FLITS, codes.NOTIFY)
            charge_up(s, home, plane, s.ack_flits, codes.NOTIFY)
            expert_done(s, token, tile)
    for plane in range(s.planes):
        count = remote_on_plane(s, tile, gpu, plane) if s.planes > 1 else num_remote
        charge_down(s, gpu, plane, count * s.ack_flits, codes.NOTIFY)
