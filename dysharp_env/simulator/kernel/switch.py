"""The switch: credited input buffers, virtual output queues, output ports, and multicast with fan-out splitting.

This room knows nothing of experts or schedules: it moves nodes and schedules ``EV_REACH`` when one has arrived. Ports
in front of a reduction unit hand their segments to reduction.py.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append, take
from dysharp_env.simulator.kernel.links import (
    count_data,
    delivery_ps,
    flow_of_node,
    is_partial,
    log_row,
    node_class,
    wire_ps,
)
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING


@compiled
def port_wake(s: Root, port: int, time_ps: int) -> None:
    """Makes sure a port is looked at again at the given time."""
    if s.ports[port].wake == 0:
        s.ports[port].wake = 1
        push(s, time_ps, codes.EV_PORT, port, 0, 0)


@compiled_in_place
def port_waits(s: Root, port: int) -> bool:
    """Returns whether an input has something for a port."""
    turns = s.ports[port].turns
    return turns[0].head != NOTHING or turns[1].head != NOTHING


@compiled
def port_append(s: Root, port: int, cls: int, source: int, node: int) -> None:
    """Puts a segment into the virtual output queue of its input; the port is not looked at yet.

    An input gets its turn behind the others that have something for the port when it has something, and again after
    each segment of its that the port takes.
    """
    if s.queueing == codes.OUTPUT_QUEUED:
        source = 0
    base = (port * 2 + cls) * (s.num_gpus + 1)
    queue = s.queues[base + source]
    if queue.nodes.head == NOTHING:
        append(s.ports[port].turns[cls], s.queues, base + source)
    append(queue.nodes, s.nodes, node)
    s.ports[port].queued_flits += s.nodes[node].flits


@compiled_in_place
def port_take(s: Root, port: int, cls: int) -> int:
    """Removes and returns the next segment of a class, inputs taking turns."""
    turns = s.ports[port].turns[cls]
    source = take(turns, s.queues)
    queue = s.queues[source]
    node = take(queue.nodes, s.nodes)
    if queue.nodes.head != NOTHING:
        append(turns, s.queues, source)
    s.ports[port].queued_flits -= s.nodes[node].flits
    return node


@compiled
def streamed_ps(s: Root, node: int, leaving_ps: int) -> int:
    """Returns how long before its tail leaves the switch the buffer space of a segment comes free.

    Packets take space one by one as they enter the uplink and give it back one by one as they leave. A segment takes
    the space of all at once when the first enters, so it gives all back early: on average each packet holds its space
    as long as if it were alone. What is stored before it goes on, and a single packet, gives it back with its tail.
    """
    if s.store_and_forward:
        return 0
    packets = flow_of_node(s, node).segment_packets
    entering_ps = wire_ps(s, s.nodes[node].flits)
    return min(leaving_ps, (packets - 1) * (entering_ps + leaving_ps) // (2 * packets))


@compiled
def credit_ps(s: Root, node: int, free_ps: int) -> int:
    """Returns when a GPU may use buffer space again that it knows, at ``free_ps``, to be free.

    Packets fill a buffer to the brim, whole segments leave a rest: they hold what they have for less, in proportion, so
    that a buffer full of them passes as much as one full of packets. For the same reason one larger than the buffer,
    which passes alone, holds it for more.
    """
    if s.store_and_forward or flow_of_node(s, node).segment_packets == 1:
        return free_ps
    flits = s.nodes[node].flits
    held_ps = free_ps - (s.nodes[node].tail_ps - delivery_ps(s, flits, wire_ps(s, flits)))
    rest_flits = s.credit_flits - max(s.credit_flits // flits, 1) * flits
    return max(s.now_ps, free_ps - held_ps * rest_flits // s.credit_flits)


@compiled
def leave_input(s: Root, node: int, end_ps: int) -> None:
    """Gives back the input buffer of a segment once its last replica has left the switch."""
    if s.queueing == codes.OUTPUT_QUEUED:
        return
    pair = s.nodes[node].owner
    whole = node
    free_ps = end_ps - streamed_ps(s, node, end_ps - s.now_ps)
    gpu = s.pairs[pair].gpu
    if not is_partial(s, node):
        gpu = s.pairs[pair].home
        if s.dispatch.in_switch:
            segment = node - pair * s.dispatch.segments
            store = s.pairs[pair].token * s.dispatch.segments + segment
            whole = s.store0 + store
            q = s.stores[store]
            q.replicas_left -= 1
            q.end_ps = max(q.end_ps, end_ps)
            q.free_ps = max(q.free_ps, free_ps)
            if q.replicas_left > 0:
                return
            end_ps = q.end_ps
            free_ps = q.free_ps
    cls = node_class(s, whole)
    link = gpu * s.planes + s.nodes[whole].plane
    push(s, credit_ps(s, whole, free_ps + s.hop_ps), codes.EV_CREDIT, link, cls, s.nodes[whole].flits)
    if s.queueing == codes.INPUT_FIFO:
        push(s, end_ps, codes.EV_INPUT_NEXT, link, cls, 0)


@compiled
def downlink_start(s: Root, port: int, node: int) -> None:
    """Sends a segment down to its GPU."""
    q = s.ports[port]
    gpu = port // s.planes
    now = s.now_ps
    flits = s.nodes[node].flits
    serial_ps = wire_ps(s, flits)
    # A segment that cuts through cannot leave before its own tail has come.
    end_ps = max(now + serial_ps, s.nodes[node].tail_ps)
    q.free_ps = end_ps
    q.busy_ps += serial_ps
    is_result = node >= s.sum0
    purpose = codes.DISPATCH_DATA
    if is_result:
        purpose = codes.COMBINE_DATA
    elif node >= s.partial0:
        purpose = codes.EVICTION if s.combine.in_switch else codes.COMBINE_DATA
    count_data(s, gpu, codes.DOWN, purpose, node)
    log_row(s, codes.LOG_DOWN, gpu, purpose, node, flits, now, end_ps)
    push(s, end_ps - serial_ps + delivery_ps(s, flits, serial_ps), codes.EV_REACH, node, gpu, 0)
    if is_result or purpose == codes.EVICTION:
        unit = s.ports[s.num_links + port]
        unit.slots_used -= s.combine.segment_packets
        unit.slots_draining -= s.combine.segment_packets
        if unit.stalled_node != NOTHING:
            port_wake(s, s.num_links + port, max(now, unit.free_ps))
    else:
        leave_input(s, node, end_ps)


@compiled_in_place
def next_of_port(s: Root, port: int) -> int:
    """Returns the segment that a port starts now, classes and then inputs taking turns, or NOTHING; it is taken."""
    q = s.ports[port]
    if q.stalled_node == NOTHING and not port_waits(s, port):
        return NOTHING
    if q.free_ps > s.now_ps:
        port_wake(s, port, q.free_ps)
        return NOTHING
    if q.stalled_node != NOTHING:
        return q.stalled_node
    cls = 1 - q.last_class
    if q.turns[cls].head == NOTHING:
        cls = q.last_class
    q.last_class = cls
    return port_take(s, port, cls)
