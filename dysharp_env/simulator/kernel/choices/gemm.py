"""Decisions on which GEMM row runs next: ready rows, and open tiles that may be closed early."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.gates import part_of
from dysharp_env.simulator.kernel.gemm import block_ps, close_tile, start_blocks, start_row
from dysharp_env.simulator.kernel.groups import mark
from dysharp_env.simulator.kernel.memory import hbm_ps, is_here, missing_weights, weights_to_read
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.shares import hbm_backlog_ps, rooted
from dysharp_env.simulator.kernel.sources import more_comes
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NOTHING
from dysharp_env.simulator.state.observation import GEMM, PREFETCH

# Open tiles are listed behind all ready rows, the fullest first.
OPEN_KEY = 1 << 60


@compiled
def act_gemm(s: Root, gpu: int) -> bool:
    """Keeps free SMs on thread blocks of the row at hand; True if a row has to be chosen for them."""
    g = s.gpus[gpu]
    if not g.start_open:
        return False
    while g.free_sms > 0:
        if g.groups[PREFETCH].marked:
            # What may be fetched ahead comes first, as HBM serves in turn.
            mark(s, GEMM, gpu)
            return False
        if g.row_tile == NOTHING:
            return g.groups[GEMM].holding == 0
        start_blocks(s, gpu)
    return False


@compiled
def is_open(s: Root, tile: int) -> bool:
    """Returns whether more tokens may join a tile: closing it counts those it has."""
    return s.tiles[tile].count == 0


@compiled
def add_sorted(s: Root, count: int, limit: int, key: int, item: int, gemm: int) -> int:
    """Inserts a candidate by key, keeping the ``limit`` smallest; returns the new count."""
    if count == limit:
        if limit == 0 or key >= s.candidates[count - 1].key:
            return count
        count -= 1
    i = count
    while i > 0 and s.candidates[i - 1].key > key:
        x = s.candidates[i - 1]
        put_candidate(s, i, x.key, x.item, x.gemm)
        i -= 1
    put_candidate(s, i, key, item, gemm)
    return count + 1


@compiled
def put_candidate(s: Root, place: int, key: int, item: int, gemm: int) -> None:
    """Writes a candidate."""
    x = s.candidates[place]
    x.key = key
    x.item = item
    x.gemm = gemm


@compiled
def list_rows(s: Root, gpu: int, limit: int) -> int:
    """Lists a GPU's ready rows, one per expert and GEMM, first ready first, then tiles that may be closed early."""
    g = s.gpus[gpu]
    early_tokens = g.early_tokens
    count = 0
    for i in range(g.first_expert, g.first_expert + g.num_experts):
        first = s.gpu_experts[i] * s.parts_per_expert
        for expert in range(first, first + s.parts_per_expert):
            x = s.experts[expert]
            stages = part_of(s, gpu, x.part).stages
            if stages[GEMM2].open and x.second.head != NOTHING:
                row = s.tiles[x.second.head].rows[GEMM2]
                count = add_sorted(s, count, limit, row.ready_sequence, x.second.head, GEMM2)
            if stages[GEMM1].open:
                tile = x.tile0 + x.rows_started
                if x.rows_started < x.rows_ready:
                    row = s.tiles[tile].rows[GEMM1]
                    count = add_sorted(s, count, limit, row.ready_sequence, tile, GEMM1)
                elif s.partial_tiles and x.open_count >= early_tokens and x.rows_started == x.tiles_open - 1:
                    if is_here(s, x.number, GEMM1):
                        count = add_sorted(s, count, limit, OPEN_KEY - x.open_count, tile, GEMM1)
    return count


@compiled
def may_hold_gemm(s: Root, gpu: int) -> bool:
    """Returns whether something must still come to this GPU, or hold would wait for ever."""
    g = s.gpus[gpu]
    return more_comes(s, gpu) or g.weights_left > 0 or g.free_sms < g.groups[GEMM].sms


@compiled
def describe_row(s: Root, gpu: int, place: int, walks: bool) -> None:
    """Describes a ready row or an open tile."""
    f = s.features[place]
    candidate = s.candidates[place]
    gemm = candidate.gemm
    t = s.tiles[candidate.item]
    x = s.experts[t.expert]
    count = t.count
    ready_ps = t.rows[gemm].ready_ps
    if is_open(s, candidate.item):
        count = x.open_count
        ready_ps = s.now_ps
        f.is_partial = 1.0
    is_resident = missing_weights(s, x.number, gemm) == 0
    f.size = count / s.tile_tokens
    f.is_gemm2 = gemm
    f.weights_in_l2 = 1.0 if is_resident else 0.0
    f.waiting = rooted(s, s.now_ps - ready_ps)
    part = part_of(s, gpu, x.part)
    is_told = part.sources_left == 0
    f.expert_left = (x.total - x.arrived) / x.total if is_told else part.sources_left / part.sources
    if not walks:
        return
    f.finishes = t.finishes / count
    work_ps = block_ps(s, gpu, gemm, count) * s.gemms[gemm].blocks // max(s.gpus[gpu].groups[GEMM].sms, 1)
    fetch_ps = 0 if is_resident else hbm_ps(s, weights_to_read(s, x.number, gemm))
    f.backlog = rooted(s, hbm_backlog_ps(s, gpu))
    f.cost = rooted(s, max(work_ps, fetch_ps))


@compiled
def take_row(s: Root, gpu: int, row: int) -> bool:
    """Gives a row to the group, closing its tile if that is open, or lets the group wait."""
    candidate = s.candidates[row]
    if candidate.item == NOTHING:
        s.gpus[gpu].groups[GEMM].holding = 1
        return True
    if is_open(s, candidate.item):
        close_tile(s, s.tiles[candidate.item].expert)
    start_row(s, gpu, candidate.item, candidate.gemm)
    return True
