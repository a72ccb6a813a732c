"""A GPU's memory: HBM that serves in turn, expert matrices in L2, and the Hub's translation of algebraic indices."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.state.codes import NOTHING


@compiled
def hbm_ps(s: Root, num_bytes: int) -> int:
    """Returns how long HBM serves so many bytes."""
    return num_bytes * s.hbm_mult // s.hbm_div


@compiled
def use_hbm(s: Root, gpu: int, num_bytes: int) -> int:
    """Puts an access behind all earlier ones of this GPU's HBM and returns when it is over."""
    g = s.gpus[gpu]
    ps = hbm_ps(s, num_bytes)
    g.hbm_free_ps = max(g.hbm_free_ps, s.now_ps) + ps
    g.hbm_busy_ps += ps
    return g.hbm_free_ps


@compiled
def evict_weights(s: Root, gpu: int, need_bytes: int) -> None:
    """Drops the least recently used expert matrices of a GPU until ``need_bytes`` fit in L2."""
    g = s.gpus[gpu]
    while g.l2_used_bytes + need_bytes > s.l2_bytes and g.l2_used_bytes > 0:
        oldest = NOTHING
        stamp = g.l2_stamp + 1
        for i in range(gpu * s.experts_per_gpu, (gpu + 1) * s.experts_per_gpu):
            for matrix in range(s.gpu_experts[i] * 2, s.gpu_experts[i] * 2 + 2):
                held = s.matrices[matrix]
                if held.resident_bytes > 0 and held.stamp < stamp:
                    stamp = held.stamp
                    oldest = matrix
        held = s.matrices[oldest]
        g.l2_used_bytes -= held.resident_bytes
        held.resident_bytes = 0


@compiled
def fetch_weights(s: Root, gpu: int, expert: int, gemm: int) -> int:
    """Returns when the matrix of an expert (without its part) is in L2, reading it from HBM if it is not.

    A matrix larger than L2 counts as filling it: rows of one expert that follow each other walk its panels together,
    but nothing else stays.
    """
    held = s.matrices[expert * 2 + gemm]
    cost = s.gemms[gemm]
    g = s.gpus[gpu]
    g.l2_stamp += 1
    if held.resident_bytes == 0:
        size = min(cost.matrix_bytes, s.l2_bytes)
        evict_weights(s, gpu, size)
        g.l2_used_bytes += size
        held.fetched_ps = use_hbm(s, gpu, cost.weight_bytes)
        held.resident_bytes = size
    held.stamp = g.l2_stamp
    return held.fetched_ps


@compiled
def translate(s: Root, pair: int) -> int:
    """Looks up a pair's algebraic indices in the AL TLB and returns the delay: one memory latency if any misses.

    The TLB is first-in first-out: an entry is present while fewer than ``al_tlb_entries`` have come after it. The
    packets of one segment follow each other, so only the first can miss.
    """
    g = s.gpus[s.pairs[pair].gpu]
    delay_ps = 0
    first = s.pairs[pair].slot0
    for slot in range(first, first + s.pairs[pair].num_experts):
        if s.slot_tlb[slot] == NOTHING or g.tlb_sequence - s.slot_tlb[slot] > s.al_tlb_entries:
            delay_ps = s.memory_ps
            s.slot_tlb[slot] = g.tlb_sequence
            g.tlb_sequence += 1
    return delay_ps
