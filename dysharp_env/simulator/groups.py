"""What all SM groups share: being looked at, HBM, and the Hub's translation of dynamic-multimem addresses."""

from __future__ import annotations

from numba import njit

from dysharp_env.simulator.layout import DISPATCH, GEMM, NOTHING
from dysharp_env.simulator.views import PartView, Root, dirty_ring, gpus, pairs, parts, slot_tlb


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
def part_of(s: Root, gpu: int, part: int) -> PartView:
    """Returns what is left of a part on a GPU, and which of its stages may run there."""
    return parts(s)[gpu * s.num_parts + part]


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
        if slot_tlb(s)[slot] == NOTHING or g.tlb_sequence - slot_tlb(s)[slot] > s.al_entries:
            delay_ps = s.memory_ps
            slot_tlb(s)[slot] = g.tlb_sequence
            g.tlb_sequence += 1
    return delay_ps
