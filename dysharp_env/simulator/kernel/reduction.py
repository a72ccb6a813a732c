"""Reduction units, one before each downlink: sums open in accumulator slots, evicted when slots run out.

The ports of links and units are pumped here, as what a unit has summed goes on to its downlink.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append, append_both_ways, remove, take
from dysharp_env.simulator.kernel.links import log_row, node_class, wire_ps
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.pairs import is_target
from dysharp_env.simulator.kernel.switch import (
    downlink_start,
    leave_input,
    next_of_port,
    port_append,
    port_waits,
    port_wake,
)
from dysharp_env.simulator.state.codes import COMBINE_DATA, EV_ACK, INPUT_FIFO, LOG_REDUCE, NOTHING, REQUEST, RESPONSE


@compiled_in_place
def reduce_ps(s: Root, flits: int) -> int:
    """Returns how long a contribution keeps a reduction unit busy."""
    return wire_ps(s, flits) * 1_000_000 // s.reduction_ppm


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
    port_append(s, downlink, RESPONSE, s.num_gpus, node)
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
    log_row(s, LOG_REDUCE, (port - s.num_links) // s.planes, COMBINE_DATA, node, flits, now, end_ps)
    leave_input(s, node, end_ps)
    if not s.combine.reads:
        # The switch holds the contribution now, so it acknowledges the store itself.
        push(s, end_ps + s.hop_ps, EV_ACK, node, 0, 0)
    x.open_count += 1
    x.open_pair = pair
    x.ready_ps = end_ps + s.cycle_ps
    x.contributions_left -= 1
    if x.contributions_left == 0:
        close_accumulator(s, port, total, s.sum0 + total)


@compiled
def port_pump(s: Root, port: int) -> None:
    """Starts the next segment of a port if it is free: on its downlink, or in its reduction unit."""
    node = next_of_port(s, port)
    if node == NOTHING:
        return
    if port < s.num_links:
        downlink_start(s, port, node)
    else:
        reduce_start(s, port, node)
    q = s.ports[port]
    if q.stalled_node == NOTHING and port_waits(s, port):
        port_wake(s, port, q.free_ps)


@compiled
def port_enqueue(s: Root, port: int, cls: int, source: int, node: int) -> None:
    """Puts a segment into the virtual output queue of its input and lets the port take it if it is free."""
    port_append(s, port, cls, source, node)
    port_pump(s, port)


@compiled
def expose(s: Root, node: int, gpu: int) -> None:
    """Offers a segment to every output it goes to: fan-out is split, each replica leaves when its output is free."""
    owner = s.nodes[node].owner
    plane = s.nodes[node].plane
    if node < s.partial0:
        port_enqueue(s, s.pairs[owner].gpu * s.planes + plane, node_class(s, node), gpu, node)
    elif node < s.store0:
        port = s.pairs[owner].home * s.planes + plane
        if s.combine.in_switch:
            port += s.num_links
        s.nodes[node].pieces = 1
        port_enqueue(s, port, node_class(s, node), gpu, node)
    else:
        segment = node - s.store0 - owner * s.dispatch.segments
        for pair in range(s.tokens[owner].pair0, s.tokens[owner + 1].pair0):
            if is_target(s, pair):
                copy = pair * s.dispatch.segments + segment
                s.nodes[copy].tail_ps = s.nodes[node].tail_ps
                port_enqueue(s, s.pairs[pair].gpu * s.planes + plane, REQUEST, gpu, copy)


@compiled
def switch_arrive(s: Root, node: int, gpu: int) -> None:
    """Takes a segment into the switch: straight to its outputs, or behind the others of its input FIFO."""
    if s.queueing == INPUT_FIFO:
        inputs = s.lanes[(gpu * s.planes + s.nodes[node].plane) * 2 + node_class(s, node)].inputs
        waits = inputs.head != NOTHING
        append(inputs, s.input_links, node)
        if waits:
            return
    expose(s, node, gpu)


@compiled
def input_next(s: Root, link: int, cls: int) -> None:
    """Moves an input FIFO on: its head has left the switch."""
    inputs = s.lanes[link * 2 + cls].inputs
    take(inputs, s.input_links)
    if inputs.head != NOTHING:
        expose(s, inputs.head, link // s.planes)
