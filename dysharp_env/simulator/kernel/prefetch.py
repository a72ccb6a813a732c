"""Weights that are fetched ahead: whenever a GPU's HBM has nothing to do it may bring a matrix into L2.

What there is to choose from, and when, is in ``choices/prefetch.py``. A GPU is asked as the layer begins, as HBM falls
free, a row becomes ready or starts, the last tile of a copy's matrix comes, and, where counts are not known, as the
first token of an expert does or the last source says that it is done. It is asked before its GEMM group acts.

A matrix that dies, which no row is still to use, gives way before all else, as a kernel that fetches ahead tells L2 to
evict first what it reads for the last time: else rows would evict what was fetched ahead, which nobody has used yet.
"""

from __future__ import annotations

from dysharp_env.simulator.faults import LATE_GPU
from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.fifo import prepend_both_ways, remove
from dysharp_env.simulator.kernel.groups import mark
from dysharp_env.simulator.kernel.memory import fetch_weights, missing_weights, wake_hbm
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.sources import more_comes
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NOTHING
from dysharp_env.simulator.state.observation import PREFETCH


@compiled
def consider(s: Root, gpu: int) -> None:
    """Has a GPU look for what to fetch ahead because of something new, so that it no longer holds."""
    if s.prefetches:
        s.gpus[gpu].groups[PREFETCH].holding = 0
        mark(s, PREFETCH, gpu)


@compiled
def fetches_from_ps(s: Root, gpu: int) -> int:
    """Returns when weights may be fetched ahead at the earliest: as the layer opens, or so much earlier.

    ``gpu`` may be NOTHING for any that is not late.
    """
    return s.gates[0].pay_ps - s.early_ps + (s.late_ps if gpu == LATE_GPU else 0)


@compiled
def fetch_early(s: Root, is_late: int) -> None:
    """Has the GPUs that start now, the late one or all others, look for what to fetch ahead before the layer opens."""
    for gpu in range(s.num_gpus):
        if (gpu == LATE_GPU and s.late_ps > 0) == is_late:
            consider(s, gpu)


@compiled
def are_counts_known(s: Root, gpu: int) -> bool:
    """Returns whether a GPU knows how many tokens its experts get: counts were exchanged, and that is over."""
    return s.counted and s.gpus[gpu].start_open


@compiled
def is_alive(s: Root, expert: int, gemm: int) -> bool:
    """Returns whether a row that uses an expert's matrix (without its part) is still to start, as far as is known.

    Where counts are not known, more tokens may come for any expert until all sources are done.
    """
    gpu = s.experts[expert * s.parts_per_expert].gpu
    if not are_counts_known(s, gpu) and more_comes(s, gpu):
        return True
    for part in range(s.parts_per_expert):
        if s.experts[expert * s.parts_per_expert + part].unstarted[gemm] > 0:
            return True
    return False


@compiled
def known_tokens(s: Root, expert: int) -> int:
    """Returns an expert's tokens: all if counts were exchanged, else those that have arrived."""
    tokens = 0
    are_known = are_counts_known(s, s.experts[expert * s.parts_per_expert].gpu)
    for part in range(s.parts_per_expert):
        x = s.experts[expert * s.parts_per_expert + part]
        tokens += x.total if are_known else x.arrived
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
def fetch_ahead(s: Root, gpu: int, block: int) -> None:
    """Fetches a matrix: dead ones give way for it, as far as they have to, and then what was used least recently."""
    g = s.gpus[gpu]
    expert, gemm = divmod(block, 2)
    missing_bytes = missing_weights(s, expert, gemm)
    if missing_bytes > free_bytes(s, gpu):
        s.matrices[block].at_price = 1
    while g.l2_used_bytes + missing_bytes > s.l2_bytes:
        dead = dead_matrix(s, gpu, NOTHING)
        if dead == NOTHING:
            break
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
    s.matrices[block].at_price = 0
    if s.blocks[block].resident_bytes > 0 and not is_alive(s, expert, gemm):
        remove(s.gpus[gpu].l2, s.blocks, block)
        prepend_both_ways(s.gpus[gpu].l2, s.blocks, block)
    consider(s, gpu)


@compiled
def hbm_falls_free(s: Root, gpu: int) -> None:
    """Has a GPU look for what to fetch ahead, unless it holds, or waits on: HBM may have been given more to do."""
    s.gpus[gpu].hbm_wake = 0
    if s.gpus[gpu].hbm_free_ps > s.now_ps:
        wake_hbm(s, gpu)
    else:
        mark(s, PREFETCH, gpu)
