"""Weights that are fetched ahead: whenever a GPU's HBM has nothing to do and L2 has room beside what is alive.

Candidates are matrices that some row is still to use and that L2 lacks, but for those of copies that are yet to come
over the links; the one of the expert with the most tokens is taken, GEMM-1's before GEMM-2's. Room is what is free and
what dead matrices hold, which no row is still to use. Both can change only when HBM falls free, a row starts, a token
arrives, the last tile of a copy's matrix does, or the last source says that it is done, so that is when this is looked
at.

A matrix that dies gives way before all else, as a kernel that fetches ahead tells L2 to evict first what it reads for
the last time: else rows would evict what was fetched ahead, which nobody has used yet.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.fifo import prepend_both_ways, remove
from dysharp_env.simulator.kernel.memory import fetch_weights, is_here, missing_weights, wake_hbm
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.sources import more_comes
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NOTHING


@compiled
def is_alive(s: Root, expert: int, gemm: int) -> bool:
    """Returns whether a row that uses an expert's matrix (without its part) is still to start, as far as is known.

    Where counts were not exchanged, more tokens may come for any expert until all sources are done.
    """
    if not s.counted and more_comes(s, s.experts[expert * s.parts_per_expert].gpu):
        return True
    for part in range(s.parts_per_expert):
        if s.experts[expert * s.parts_per_expert + part].unstarted[gemm] > 0:
            return True
    return False


@compiled
def known_tokens(s: Root, expert: int) -> int:
    """Returns an expert's tokens: all if counts were exchanged, else those that have arrived."""
    tokens = 0
    for part in range(s.parts_per_expert):
        x = s.experts[expert * s.parts_per_expert + part]
        tokens += x.total if s.counted else x.arrived
    return tokens


@compiled
def dead_matrix(s: Root, gpu: int, after: int) -> int:
    """Returns the first block behind ``after`` of a GPU's experts that is a dead matrix in L2, or NOTHING."""
    g = s.gpus[gpu]
    for i in range(g.first_expert, g.first_expert + g.num_experts):
        for gemm in (GEMM1, GEMM2):
            block = s.gpu_experts[i] * 2 + gemm
            if block > after and s.blocks[block].resident_bytes > 0 and not is_alive(s, s.gpu_experts[i], gemm):
                return block
    return NOTHING


@compiled
def free_bytes(s: Root, gpu: int) -> int:
    """Returns what L2 can take without dropping anything alive."""
    num_bytes = s.l2_bytes - s.gpus[gpu].l2_used_bytes
    block = dead_matrix(s, gpu, NOTHING)
    while block != NOTHING:
        num_bytes += s.blocks[block].resident_bytes
        block = dead_matrix(s, gpu, block)
    return num_bytes


@compiled
def fullest(s: Root, gpu: int) -> int:
    """Returns the block of the matrix to fetch next, or NOTHING."""
    room_bytes = free_bytes(s, gpu)
    most_tokens = 0
    found = NOTHING
    g = s.gpus[gpu]
    for i in range(g.first_expert, g.first_expert + g.num_experts):
        expert = s.gpu_experts[i]
        tokens = known_tokens(s, expert)
        for gemm in (GEMM1, GEMM2):
            missing_bytes = missing_weights(s, expert, gemm)
            fits = 0 < missing_bytes <= room_bytes
            if tokens > most_tokens and fits and is_here(s, expert, gemm) and is_alive(s, expert, gemm):
                most_tokens = tokens
                found = expert * 2 + gemm
    return found


@compiled
def fetch_ahead(s: Root, gpu: int) -> None:
    """Fetches a matrix ahead, if the layer has begun, HBM has nothing to do and there is one; dead ones go first."""
    g = s.gpus[gpu]
    if not s.prefetches or not g.start_open or g.hbm_free_ps > s.now_ps:
        return
    block = fullest(s, gpu)
    if block == NOTHING:
        return
    expert, gemm = divmod(block, 2)
    while g.l2_used_bytes + missing_weights(s, expert, gemm) > s.l2_bytes:
        dead = dead_matrix(s, gpu, NOTHING)
        remove(g.l2, s.blocks, dead)
        g.l2_used_bytes -= s.blocks[dead].resident_bytes
        # What nobody reads again need not be written, as of a copy: PTX has ``discard`` for it.
        s.blocks[dead].resident_bytes = 0
        s.blocks[dead].dirty_bytes = 0
    fetch_weights(s, gpu, expert, gemm)


@compiled
def row_started(s: Root, gpu: int, expert: int, gemm: int) -> None:
    """Lets a matrix whose last row has started give way first, and sees what may be fetched ahead now."""
    if not s.prefetches:
        return
    block = expert * 2 + gemm
    if s.blocks[block].resident_bytes > 0 and not is_alive(s, expert, gemm):
        remove(s.gpus[gpu].l2, s.blocks, block)
        prepend_both_ways(s.gpus[gpu].l2, s.blocks, block)
    fetch_ahead(s, gpu)


@compiled
def hbm_falls_free(s: Root, gpu: int) -> None:
    """Fetches something ahead, or waits on: HBM may have been given more to do."""
    s.gpus[gpu].hbm_wake = 0
    if s.gpus[gpu].hbm_free_ps > s.now_ps:
        wake_hbm(s, gpu)
    else:
        fetch_ahead(s, gpu)
