"""Output ports of the switch: a virtual output queue for each input and class, and whose turn it is.

A port is a downlink or the reduction unit before one.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append, take
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
