"""What all SM groups share: being looked at, communication SMs and their windows, HBM, and the Hub's translation.

A communication SM works on one token or partial sum at a time; ``costs.Window`` says how many vectors it may have in
flight and how long a slot stays taken after a round trip.
"""

from __future__ import annotations

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.events import push
from dysharp_env.simulator.layout import COUNTED, DISPATCH, EV_SLOT, GEMM, NOTHING, SPLIT
from dysharp_env.simulator.views import PartView, Root, trip_of


@compiled
def mark_dirty(s: Root, kind: int, gpu: int) -> None:
    """Asks for an SM group to be looked at, or for a GPU's group sizes to be chosen, once."""
    g = s.gpus[gpu]
    if kind == SPLIT:
        if g.dirty0:
            return
        g.dirty0 = 1
    elif kind == DISPATCH:
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
    s.dirty[(s.dirty_head + s.dirty_size) % s.dirty_capacity] = kind * s.num_gpus + gpu
    s.dirty_size += 1


@compiled
def part_of(s: Root, gpu: int, part: int) -> PartView:
    """Returns what is left of a part on a GPU, and which of its stages may run there."""
    return s.parts[gpu * s.num_parts + part]


@compiled
def block_ps(s: Root, gpu: int, stage: int, tokens: int) -> int:
    """Returns the time of one thread block of GEMM ``stage`` (1 or 2) over a tile of ``tokens`` on a GPU."""
    granules = (tokens + s.row_granularity - 1) // s.row_granularity
    block_ps = s.block_ps + granules * (s.granule1_ps if stage == 1 else s.granule2_ps)
    return block_ps * s.slow_permille // 1000 if gpu == 0 else block_ps


@compiled
def list_sm(s: Root, kind: int, gpu: int, sm: int) -> None:
    """Puts a communication SM behind the others of its group that may take something."""
    g = s.gpus[gpu]
    s.sms[sm].next = NOTHING
    if kind == DISPATCH:
        if g.send_head == NOTHING:
            g.send_head = sm
        else:
            s.sms[g.send_tail].next = sm
        g.send_tail = sm
    else:
        if g.take_head == NOTHING:
            g.take_head = sm
        else:
            s.sms[g.take_tail].next = sm
        g.take_tail = sm
    mark_dirty(s, kind, gpu)


@compiled
def begin_trip(s: Root, sm: int, first: int, segments: int) -> None:
    """Counts a vector of so many segments, the first of them ``first``, that an SM puts in flight."""
    s.sms[sm].in_flight += 1
    x = trip_of(s, first)
    x.sm = sm
    x.issued_ps = s.now_ps
    x.segments_out = segments


@compiled
def end_segment(s: Root, first: int, hold: int) -> bool:
    """Counts a segment that has made the round trip, and returns whether it is the last of its vector.

    Then the SM's slot falls free when its window has moved past the vector's bytes.
    """
    x = trip_of(s, first)
    x.segments_out -= 1
    if x.segments_out > 0:
        return False
    push(s, s.now_ps + (s.now_ps - x.issued_ps) // 1000 * hold, EV_SLOT, x.sm, 0)
    return True


@compiled
def use_hbm(s: Root, gpu: int, num_bytes: int) -> int:
    """Puts an access behind all earlier ones of this GPU's HBM and returns when it is over."""
    g = s.gpus[gpu]
    ps = num_bytes * s.hbm_mult // s.hbm_div
    g.hbm_free_ps = max(g.hbm_free_ps, s.now_ps) + ps
    g.hbm_busy_ps += ps
    return g.hbm_free_ps


@compiled
def translate(s: Root, pair: int) -> int:
    """Looks up a pair's algebraic indices in the AL TLB and returns the delay: one memory latency if any misses.

    The TLB is first-in first-out: an entry is present while fewer than ``al_entries`` have come after it. The packets
    of one segment follow each other, so only the first can miss.
    """
    g = s.gpus[s.pairs[pair].gpu]
    delay_ps = 0
    first = s.pairs[pair].slot0
    for slot in range(first, first + s.pairs[pair].num_experts):
        if s.slot_tlb[slot] == NOTHING or g.tlb_sequence - s.slot_tlb[slot] > s.al_entries:
            delay_ps = s.memory_ps
            s.slot_tlb[slot] = g.tlb_sequence
            g.tlb_sequence += 1
    return delay_ps


@compiled
def count_slot(s: Root, first: int, count: int, tile: int, left: int) -> None:
    """Notes that the row of one of a token's (or pair's) slots is done; the row of the last one left would finish it.

    Args:
        s: The root.
        first: The token's or pair's first slot.
        count: Its slots.
        tile: The tile whose row is done.
        left: Its slots whose rows are not done.
    """
    rest = NOTHING
    for slot in range(first, first + count):
        if s.slot_tile[slot] == tile:
            s.slot_tile[slot] = COUNTED
        elif s.slot_tile[slot] != COUNTED:
            rest = s.slot_tile[slot]
    # One that has not arrived is seen to when it does.
    if left == 1 and rest != NOTHING:
        s.tiles[rest].finishes += 1
