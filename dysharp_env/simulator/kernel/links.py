"""Links: how long flits keep one busy, what is charged to it, and segments that wait at a GPU's uplinks.

Data moves as *segments*: at token resolution one token's vector on all planes together, at packet resolution one packet
on the plane its address hashes to. Links, buffers, ports and reduction units exist once for every plane that is told
apart. A segment cuts through unless the system says store-and-forward. Control flits (acknowledgements, read requests,
notifications) are charged at either resolution, to the link of their packet's plane at the moment they cross it: they
travel on their own virtual channels and go before data, so what they cost is bandwidth. Only requests wait for the
uplink, in the order in which they are made.
"""

from __future__ import annotations

from dysharp_env.simulator.faults import SOUND
from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append, take
from dysharp_env.simulator.kernel.names import Flow, Link, Root
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING


@compiled_in_place
def sound_ps(s: Root, flits: int) -> int:
    """Returns how long ``flits`` keep a sound link busy."""
    # A table, because divisions are slow; queued flits can be more than it has entries.
    if flits < s.wire_entries:
        return s.wire_times[flits]
    exact = flits * s.ps_mult // s.ps_div
    return exact // s.quantum_ps * s.quantum_ps


@compiled
def slowed_ps(s: Root, permille: int, flits: int) -> int:
    """Returns how long ``flits`` take on a link that is so slow, without the quantum."""
    return flits * s.ps_mult // s.ps_div * permille // SOUND


@compiled_in_place
def wire_ps(s: Root, link: Link, flits: int) -> int:
    """Returns how long ``flits`` keep a link busy."""
    if link.permille == SOUND:
        return sound_ps(s, flits)
    return slowed_ps(s, link.permille, flits) // s.quantum_ps * s.quantum_ps


@compiled
def spread_ps(s: Root, flits: int) -> int:
    """Returns how long ``flits`` keep all the links of one GPU and direction busy together."""
    exact = flits * s.ps_mult // (s.ps_div * s.planes)
    return exact // s.quantum_ps * s.quantum_ps


@compiled_in_place
def delivery_ps(s: Root, link: Link, flits: int, serial_ps: int, lost_ps: int) -> int:
    """Returns the time from the first flit entering a link to the last one leaving it at the other end.

    ``serial_ps`` is what keeps the link busy, of which ``lost_ps`` is lost to packets that cross it again.
    """
    if s.quantum_ps == 1:
        return s.hop_ps + serial_ps
    return (s.hop_ps + slowed_ps(s, link.permille, flits) + lost_ps) // s.quantum_ps * s.quantum_ps


@compiled
def replayed_ps(s: Root, link: Link, gpu: int, direction: int, node: int) -> int:
    """Counts the packets of a segment that enters a link, and returns what the link loses to those that cross again."""
    packets = packets_of(s, node)
    before = link.packets
    link.packets += packets
    count = link.packets // s.replay_packets - before // s.replay_packets
    flits = (s.nodes[node].flits + packets - 1) // packets
    s.traffic[(gpu * 2 + direction) * codes.NUM_PURPOSES + codes.REPLAY] += count * flits
    return count * (s.replay_ps + slowed_ps(s, link.permille, flits))


@compiled_in_place
def crossing_ps(s: Root, link: Link, flits: int, lost_ps: int) -> int:
    """Returns how long a segment keeps a link busy that loses so much time to packets that cross it again."""
    if lost_ps == 0:
        return wire_ps(s, link, flits)
    return (slowed_ps(s, link.permille, flits) + lost_ps) // s.quantum_ps * s.quantum_ps


@compiled
def log_row(s: Root, resource: int, gpu: int, purpose: int, item: int, amount: int, start_ps: int, end_ps: int) -> None:
    """Records that a resource was in use, if this run keeps a log."""
    if s.logging:
        row = s.log[s.log_size]
        row.resource = resource
        row.gpu = gpu
        row.purpose = purpose
        row.item = item
        row.amount = amount
        row.start_ps = start_ps
        row.end_ps = end_ps
        s.log_size += 1


@compiled_in_place
def charge(s: Root, link: Link, gpu: int, direction: int, flits: int, purpose: int) -> None:
    """Charges control flits to a link of a GPU, an uplink or a port; what is queued there leaves that much later."""
    ps = wire_ps(s, link, flits)
    link.free_ps = max(link.free_ps, s.now_ps) + ps
    link.busy_ps += ps
    s.traffic[(gpu * 2 + direction) * codes.NUM_PURPOSES + purpose] += flits


@compiled
def charge_up(s: Root, gpu: int, plane: int, flits: int, purpose: int) -> None:
    """Charges control flits to an uplink."""
    charge(s, s.uplinks[gpu * s.planes + plane], gpu, codes.UP, flits, purpose)


@compiled
def charge_down(s: Root, gpu: int, plane: int, flits: int, purpose: int) -> None:
    """Charges control flits to a downlink."""
    charge(s, s.ports[gpu * s.planes + plane], gpu, codes.DOWN, flits, purpose)


@compiled_in_place
def count_data(s: Root, gpu: int, direction: int, purpose: int, node: int) -> None:
    """Counts the flits of a segment that is put on a link."""
    place = (gpu * 2 + direction) * codes.NUM_PURPOSES + purpose
    s.traffic[place] += s.nodes[node].flits
    s.payload[place] += s.nodes[node].payload_flits
    s.transfers += 1


@compiled_in_place
def is_partial(s: Root, node: int) -> bool:
    """Returns whether a node is a partial sum."""
    return s.partial0 <= node < s.store0


@compiled
def update_plane(s: Root, token: int) -> int:
    """Returns the plane of a token's counter updates: that of the first packet of its sum."""
    # The only plane is 0, and the node is seldom at hand.
    return s.nodes[s.sum0 + token * s.combine.segments].plane if s.planes > 1 else 0


@compiled_in_place
def node_class(s: Root, node: int) -> int:
    """Returns the virtual-channel class of a node on its way up: read responses, or everything else."""
    if node < s.partial0:
        return codes.RESPONSE if s.dispatch.reads else codes.REQUEST
    if node < s.store0:
        return codes.RESPONSE if s.combine.reads else codes.REQUEST
    return codes.RESPONSE if node >= s.weights0 and s.copying.reads else codes.REQUEST


@compiled_in_place
def flow_of_node(s: Root, node: int) -> Flow:
    """Returns what the vector is that a node belongs to, which is no tile of weights: dispatched, or a sum."""
    return s.combine if is_partial(s, node) or node >= s.sum0 else s.dispatch


@compiled_in_place
def tile_of_node(s: Root, node: int) -> int:
    """Returns which tile of weights a node is, of those of an expert."""
    return (node - s.weights0) % s.num_weight_tiles


@compiled_in_place
def packets_of(s: Root, node: int) -> int:
    """Returns the packets of a segment."""
    if node >= s.weights0:
        return s.weight_tiles[tile_of_node(s, node)].packets
    return flow_of_node(s, node).segment_packets


@compiled
def send_vector(s: Root, gpu: int, first: int) -> None:
    """Puts a vector, whose first segment is ``first``, at a GPU's uplinks."""
    for node in range(first, first + flow_of_node(s, first).segments):
        uplink_enqueue(s, gpu, node)


@compiled
def ask_up(s: Root, gpu: int, first: int, flits: int, purpose: int) -> int:
    """Charges the read requests for a vector to a GPU's uplinks and returns when the last one has crossed.

    Requests are ``flits`` for each segment. Those issued at one instant cross one after the other, so that readers who
    start together are answered in turn.
    """
    crossed_ps = s.now_ps
    for node in range(first, first + flow_of_node(s, first).segments):
        plane = s.nodes[node].plane
        charge_up(s, gpu, plane, flits, purpose)
        crossed_ps = max(crossed_ps, s.uplinks[gpu * s.planes + plane].free_ps)
    return crossed_ps


@compiled
def ask_down(s: Root, gpu: int, first: int, flits: int, purpose: int) -> None:
    """Charges the read requests for a vector, ``flits`` for each segment, to a GPU's downlinks."""
    for node in range(first, first + flow_of_node(s, first).segments):
        charge_down(s, gpu, s.nodes[node].plane, flits, purpose)


@compiled
def uplink_enqueue(s: Root, gpu: int, node: int) -> None:
    """Puts a segment behind the others of its class at a GPU's uplink."""
    link = gpu * s.planes + s.nodes[node].plane
    append(s.lanes[link * 2 + node_class(s, node)].waiting, s.nodes, node)
    s.uplinks[link].queued_flits += s.nodes[node].flits
    uplink_pump(s, link)


@compiled
def uplink_wake(s: Root, link: int) -> None:
    """Makes sure the uplink is looked at again when it falls free."""
    q = s.uplinks[link]
    waits = s.lanes[link * 2].waiting.head != NOTHING or s.lanes[link * 2 + 1].waiting.head != NOTHING
    if q.wake == 0 and waits:
        q.wake = 1
        push(s, q.free_ps, codes.EV_UPLINK, link, 0, 0)


@compiled
def uplink_pump(s: Root, link: int) -> None:
    """Sends the next segment of an uplink if it is free and the switch has room, classes taking turns."""
    q = s.uplinks[link]
    if q.free_ps > s.now_ps:
        uplink_wake(s, link)
        return
    for turn in range(2):
        cls = 1 - q.last_class if turn == 0 else q.last_class
        lane = s.lanes[link * 2 + cls]
        node = lane.waiting.head
        if node == NOTHING:
            continue
        flits = s.nodes[node].flits
        if s.queueing != codes.OUTPUT_QUEUED:
            # A segment larger than the buffer passes alone: its packets stream through.
            if lane.used_flits > 0 and lane.used_flits + flits > s.credit_flits:
                continue
            lane.used_flits += flits
        take(lane.waiting, s.nodes)
        q.last_class = cls
        q.queued_flits -= flits
        uplink_send(s, link, node)
        uplink_wake(s, link)
        return


@compiled_in_place
def uplink_send(s: Root, link: int, node: int) -> None:
    """Puts a segment on a free uplink; its head, or what is stored and forwarded its tail, is then at the switch."""
    q = s.uplinks[link]
    now = s.now_ps
    gpu = link // s.planes
    flits = s.nodes[node].flits
    lost_ps = replayed_ps(s, q, gpu, codes.UP, node) if s.replay_packets > 0 else 0
    serial_ps = crossing_ps(s, q, flits, lost_ps)
    tail_ps = now + delivery_ps(s, q, flits, serial_ps, lost_ps)
    s.nodes[node].tail_ps = tail_ps
    push(s, tail_ps if s.store_and_forward else now + s.hop_ps, codes.EV_SWITCH, node, gpu, 0)
    q.free_ps = now + serial_ps
    q.busy_ps += serial_ps
    purpose = codes.COMBINE_DATA if is_partial(s, node) else codes.DISPATCH_DATA
    if node >= s.weights0:
        purpose = codes.WEIGHT_DATA
    count_data(s, gpu, codes.UP, purpose, node)
    log_row(s, codes.LOG_UP, gpu, purpose, node, flits, now, now + serial_ps)
