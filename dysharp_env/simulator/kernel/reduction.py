"""Reduction units, one before each downlink: sums open in accumulator slots, evicted when slots run out."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.buffers import leave_input
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append_both_ways, remove
from dysharp_env.simulator.kernel.links import (
    log_row,
    sound_ps,
)
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.ports import port_append, port_wake
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING


@compiled_in_place
def reduce_ps(s: Root, flits: int) -> int:
    """Returns how long a contribution keeps a reduction unit busy."""
    return sound_ps(s, flits) * 1_000_000 // s.reduction_ppm


@compiled
def close_accumulator(s: Root, port: int, total: int, node: int) -> None:
    """Takes a sum out of the open list and sends it to the downlink as ``node``; its slots drain with it."""
    q = s.ports[port]
    x = s.sums[total]
    remove(q.open, s.sums, total)
    x.open = 0
    q.slots_draining += s.combine.segment_packets
    s.nodes[node].pieces = x.open_count
    s.nodes[node].tail_ps = x.ready_ps
    downlink = port - s.num_links
    port_append(s, downlink, codes.RESPONSE, s.num_gpus, node)
    port_wake(s, downlink, max(s.now_ps, s.ports[downlink].free_ps))


@compiled
def evict(s: Root, port: int, total: int) -> None:
    """Sends what an open sum has so far home, under the name of the partial sum that came last."""
    s.evictions += 1
    segment = total % s.combine.segments
    close_accumulator(s, port, total, s.partial0 + s.sums[total].open_pair * s.combine.segments + segment)


@compiled
def open_accumulator(s: Root, port: int, total: int) -> bool:
    """Finds slots for a sum, evicting the oldest partial sums if it must; False if it has to wait."""
    q = s.ports[port]
    need = s.combine.segment_packets
    while q.open.head != NOTHING and q.slots_used - q.slots_draining + need > s.reduction_slots:
        evict(s, port, q.open.head)
    # A sum larger than the whole buffer passes alone: its packets stream through.
    if q.slots_used > 0 and q.slots_used + need > s.reduction_slots:
        return False
    q.slots_used += need
    x = s.sums[total]
    x.open = 1
    x.open_count = 0
    append_both_ways(q.open, s.sums, total)
    return True


@compiled
def reduce_start(s: Root, port: int, node: int) -> None:
    """Adds a contribution to its token's sum; the last one sends the result down."""
    q = s.ports[port]
    pair = s.nodes[node].owner
    segment = node - s.partial0 - pair * s.combine.segments
    total = s.pairs[pair].token * s.combine.segments + segment
    x = s.sums[total]
    if x.open == 0 and not open_accumulator(s, port, total):
        q.stalled_node = node
        return
    q.stalled_node = NOTHING
    now = s.now_ps
    flits = s.nodes[node].flits
    end_ps = max(now + reduce_ps(s, flits), s.nodes[node].tail_ps)
    q.free_ps = end_ps
    log_row(s, codes.LOG_REDUCE, (port - s.num_links) // s.planes, codes.COMBINE_DATA, node, flits, now, end_ps)
    leave_input(s, node, end_ps)
    if not s.combine.reads:
        # The switch holds the contribution now, so it acknowledges the store itself.
        push(s, end_ps + s.hop_ps, codes.EV_ACK, node, 0, 0)
    x.open_count += 1
    x.open_pair = pair
    x.ready_ps = end_ps + s.cycle_ps
    x.contributions_left -= 1
    if x.contributions_left == 0:
        close_accumulator(s, port, total, s.sum0 + total)
