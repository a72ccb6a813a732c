"""The switch: what arrives goes to its outputs, with fan-out splitting, and down to GPUs or into reduction units.

This room knows nothing of experts or schedules: it moves nodes and schedules ``EV_REACH`` when one has arrived.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.buffers import leave_input
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append, take
from dysharp_env.simulator.kernel.links import (
    count_data,
    crossing_ps,
    delivery_ps,
    log_row,
    node_class,
    replayed_ps,
    tile_of_node,
)
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.pairs import is_target, store_of, token_of_store
from dysharp_env.simulator.kernel.ports import next_of_port, port_append, port_waits, port_wake
from dysharp_env.simulator.kernel.reduction import reduce_start
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING


@compiled
def switch_arrive(s: Root, node: int, gpu: int) -> None:
    """Takes a segment into the switch: straight to its outputs, or behind the others of its input FIFO."""
    if s.queueing == codes.INPUT_FIFO:
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
    elif node >= s.weights0:
        expose_tile(s, node, gpu)
    else:
        segment = node - s.store0 - owner * s.dispatch.segments
        token = token_of_store(s, owner)
        for pair in range(s.tokens[token].pair0, s.tokens[token + 1].pair0):
            if is_target(s, pair) and store_of(s, pair) == owner:
                copy = pair * s.dispatch.segments + segment
                s.nodes[copy].tail_ps = s.nodes[node].tail_ps
                port_enqueue(s, s.pairs[pair].gpu * s.planes + plane, codes.REQUEST, gpu, copy)


@compiled
def expose_tile(s: Root, node: int, gpu: int) -> None:
    """Offers a tile of weights to the downlinks of the copies that it is for."""
    first = s.nodes[node].owner
    plane = s.nodes[node].plane
    if node < s.weight_store0:
        port_enqueue(s, s.copies[first].gpu * s.planes + plane, node_class(s, node), gpu, node)
        return
    tile = tile_of_node(s, node)
    for copy in range(first, first + s.copies[first].replicas):
        replica = s.weights0 + copy * s.num_weight_tiles + tile
        s.nodes[replica].tail_ps = s.nodes[node].tail_ps
        port_enqueue(s, s.copies[copy].gpu * s.planes + plane, codes.REQUEST, gpu, replica)


@compiled
def port_enqueue(s: Root, port: int, cls: int, source: int, node: int) -> None:
    """Puts a segment into the virtual output queue of its input and lets the port take it if it is free."""
    port_append(s, port, cls, source, node)
    port_pump(s, port)


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
def downlink_start(s: Root, port: int, node: int) -> None:
    """Sends a segment down to its GPU."""
    q = s.ports[port]
    gpu = port // s.planes
    now = s.now_ps
    flits = s.nodes[node].flits
    lost_ps = replayed_ps(s, q, gpu, codes.DOWN, node) if s.replay_packets > 0 else 0
    serial_ps = crossing_ps(s, q, flits, lost_ps)
    # A segment that cuts through cannot leave before its own tail has come.
    end_ps = max(now + serial_ps, s.nodes[node].tail_ps)
    q.free_ps = end_ps
    q.busy_ps += serial_ps
    is_result = s.sum0 <= node < s.weights0
    purpose = codes.DISPATCH_DATA
    if is_result:
        purpose = codes.COMBINE_DATA
    elif node >= s.weights0:
        purpose = codes.WEIGHT_DATA
    elif node >= s.partial0:
        purpose = codes.EVICTION if s.combine.in_switch else codes.COMBINE_DATA
    count_data(s, gpu, codes.DOWN, purpose, node)
    log_row(s, codes.LOG_DOWN, gpu, purpose, node, flits, now, end_ps)
    push(s, end_ps - serial_ps + delivery_ps(s, q, flits, serial_ps, lost_ps), codes.EV_REACH, node, gpu, 0)
    if is_result or purpose == codes.EVICTION:
        unit = s.ports[s.num_links + port]
        unit.slots_used -= s.combine.segment_packets
        unit.slots_draining -= s.combine.segment_packets
        if unit.stalled_node != NOTHING:
            port_wake(s, s.num_links + port, max(now, unit.free_ps))
    else:
        leave_input(s, node, end_ps)
