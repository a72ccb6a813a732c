"""Input buffers of the switch: when what a segment takes comes free, and when its sender may use it again."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.links import (
    delivery_ps,
    is_partial,
    node_class,
    packets_of,
    tile_of_node,
    wire_ps,
)
from dysharp_env.simulator.kernel.names import Link, Root, Store
from dysharp_env.simulator.kernel.pairs import store_of
from dysharp_env.simulator.state import codes


@compiled
def streamed_ps(s: Root, gpu: int, node: int, leaving_ps: int) -> int:
    """Returns how long before its tail leaves the switch the buffer space of a segment that came from a GPU comes free.

    Packets take space one by one as they enter the uplink and give it back one by one as they leave. A segment takes
    the space of all at once when the first enters, so it gives all back early: on average each packet holds its space
    as long as if it were alone. What is stored before it goes on, and a single packet, gives it back with its tail.
    """
    if s.store_and_forward:
        return 0
    packets = packets_of(s, node)
    entering_ps = wire_ps(s, s.uplinks[gpu * s.planes + s.nodes[node].plane], s.nodes[node].flits)
    return min(leaving_ps, (packets - 1) * (entering_ps + leaving_ps) // (2 * packets))


@compiled
def credit_ps(s: Root, link: Link, node: int, free_ps: int) -> int:
    """Returns when a GPU may use buffer space again that it knows, at ``free_ps``, to be free.

    Packets fill a buffer to the brim, whole segments leave a rest: they hold what they have for less, in proportion, so
    that a buffer full of them passes as much as one full of packets. For the same reason one larger than the buffer,
    which passes alone, holds it for more. One with packets that crossed the uplink again counts as if it had entered
    that much later.
    """
    if s.store_and_forward or packets_of(s, node) == 1:
        return free_ps
    flits = s.nodes[node].flits
    held_ps = free_ps - (s.nodes[node].tail_ps - delivery_ps(s, link, flits, wire_ps(s, link, flits), 0))
    rest_flits = s.credit_flits - max(s.credit_flits // flits, 1) * flits
    return max(s.now_ps, free_ps - held_ps * rest_flits // s.credit_flits)


@compiled
def leave_input(s: Root, node: int, end_ps: int) -> None:
    """Gives back the input buffer of a segment once its last replica has left the switch."""
    if s.queueing == codes.OUTPUT_QUEUED:
        return
    gpu = origin_of(s, node)
    free_ps = end_ps - streamed_ps(s, gpu, node, end_ps - s.now_ps)
    if node >= s.weights0:
        tile_leaves(s, node, end_ps, free_ps)
        return
    if not is_partial(s, node) and s.dispatch.in_switch:
        pair = s.nodes[node].owner
        segment = node - pair * s.dispatch.segments
        store = store_of(s, pair) * s.dispatch.segments + segment
        replica_leaves(s, s.stores[store], gpu, s.store0 + store, end_ps, free_ps)
        return
    free_input(s, gpu, node, end_ps, free_ps)


@compiled_in_place
def origin_of(s: Root, node: int) -> int:
    """Returns the GPU whose uplink carried a segment that leaves the switch."""
    owner = s.nodes[node].owner
    if node >= s.weights0:
        return s.copies[owner].source_gpu
    return s.pairs[owner].gpu if is_partial(s, node) else s.pairs[owner].home


@compiled
def tile_leaves(s: Root, node: int, end_ps: int, free_ps: int) -> None:
    """Gives back the input buffer of a tile of weights once its last replica has left the switch."""
    c = s.copies[s.nodes[node].owner]
    if s.copying.in_switch:
        store = c.store * s.num_weight_tiles + tile_of_node(s, node)
        replica_leaves(s, s.weight_stores[store], c.source_gpu, s.weight_store0 + store, end_ps, free_ps)
    else:
        free_input(s, c.source_gpu, node, end_ps, free_ps)


@compiled_in_place
def replica_leaves(s: Root, store: Store, gpu: int, whole: int, end_ps: int, free_ps: int) -> None:
    """Counts a replica of a store that has left the switch; with the last one the store's buffer is free."""
    store.replicas_left -= 1
    store.end_ps = max(store.end_ps, end_ps)
    store.free_ps = max(store.free_ps, free_ps)
    if store.replicas_left == 0:
        free_input(s, gpu, whole, store.end_ps, store.free_ps)


@compiled_in_place
def free_input(s: Root, gpu: int, whole: int, end_ps: int, free_ps: int) -> None:
    """Has a GPU learn that a segment's buffer behind its uplink is free, and an input FIFO move on."""
    cls = node_class(s, whole)
    link = gpu * s.planes + s.nodes[whole].plane
    push(s, credit_ps(s, s.uplinks[link], whole, free_ps + s.hop_ps), codes.EV_CREDIT, link, cls, s.nodes[whole].flits)
    if s.queueing == codes.INPUT_FIFO:
        push(s, end_ps, codes.EV_INPUT_NEXT, link, cls, 0)
