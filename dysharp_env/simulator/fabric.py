"""Links and switch: uplinks, credited input buffers, output ports, multicast, and in-switch reduction.

Data moves as *segments*: at token resolution one token's vector on all planes together, at packet resolution one packet
on the plane its address hashes to. Links, buffers, ports and reduction units exist once for every plane that is told
apart. A segment cuts through unless the system says store-and-forward. Control flits (acknowledgements, read requests,
notifications) are charged at either resolution, to the link of their packet's plane at the moment they cross it: they
travel on their own virtual channels and go before data, so what they cost is bandwidth. Only requests wait for the
uplink, in the order in which they are made.

This room knows nothing of experts or schedules: it moves nodes and schedules ``EV_REACH`` when one has arrived.
"""

from __future__ import annotations

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.events import push
from dysharp_env.simulator.layout import (
    COMBINE_DATA,
    DISPATCH_DATA,
    DOWN,
    EV_ACK,
    EV_CREDIT,
    EV_INPUT_NEXT,
    EV_PORT,
    EV_REACH,
    EV_SWITCH,
    EV_UPLINK,
    EVICTION,
    INPUT_FIFO,
    LOG_DOWN,
    LOG_REDUCE,
    LOG_UP,
    NOTHING,
    NUM_PURPOSES,
    OUTPUT_QUEUED,
    PULL,
    PUSH_REDUCE,
    REQUEST,
    RESPONSE,
    UP,
)
from dysharp_env.simulator.primitives import is_pull, is_target, stores_once, sums_in_switch
from dysharp_env.simulator.views import Root


@compiled
def wire_ps(s: Root, flits: int) -> int:
    """Returns how long ``flits`` keep a link busy."""
    # A table, because divisions are slow; queued flits can be more than it has entries.
    if flits < s.wire_entries:
        return s.wire_times[flits]
    exact = flits * s.ps_mult // s.ps_div
    return exact // s.quantum_ps * s.quantum_ps


@compiled
def spread_ps(s: Root, flits: int) -> int:
    """Returns how long ``flits`` keep all the links of one GPU and direction busy together."""
    exact = flits * s.ps_mult // (s.ps_div * s.planes)
    return exact // s.quantum_ps * s.quantum_ps


@compiled
def delivery_ps(s: Root, flits: int, serial_ps: int) -> int:
    """Returns the time from the first flit entering a link to the last one leaving it at the other end."""
    if s.quantum_ps == 1:
        return s.hop_ps + serial_ps
    return (s.hop_ps + flits * s.ps_mult // s.ps_div) // s.quantum_ps * s.quantum_ps


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


@compiled
def charge_up(s: Root, gpu: int, plane: int, flits: int, purpose: int) -> None:
    """Charges control flits to an uplink; what is queued there leaves that much later."""
    q = s.uplinks[gpu * s.planes + plane]
    ps = wire_ps(s, flits)
    q.free_ps = max(q.free_ps, s.now_ps) + ps
    q.busy_ps += ps
    s.traffic[(gpu * 2 + UP) * NUM_PURPOSES + purpose] += flits


@compiled
def charge_down(s: Root, gpu: int, plane: int, flits: int, purpose: int) -> None:
    """Charges control flits to a downlink; what is queued there leaves that much later."""
    q = s.ports[gpu * s.planes + plane]
    ps = wire_ps(s, flits)
    q.free_ps = max(q.free_ps, s.now_ps) + ps
    q.busy_ps += ps
    s.traffic[(gpu * 2 + DOWN) * NUM_PURPOSES + purpose] += flits


@compiled
def count_data(s: Root, gpu: int, direction: int, purpose: int, node: int) -> None:
    """Counts the flits of a segment that is put on a link."""
    place = (gpu * 2 + direction) * NUM_PURPOSES + purpose
    s.traffic[place] += s.nodes[node].flits
    s.payload[place] += s.nodes[node].payload_flits
    s.transfers += 1


@compiled
def is_partial(s: Root, node: int) -> bool:
    """Returns whether a node is a partial sum."""
    return s.partial0 <= node < s.store0


@compiled
def update_plane(s: Root, token: int) -> int:
    """Returns the plane of a token's counter updates: that of the first packet of its sum."""
    # The only plane is 0, and the node is seldom at hand.
    return s.nodes[s.sum0 + token * s.combine_segments].plane if s.planes > 1 else 0


@compiled
def node_class(s: Root, node: int) -> int:
    """Returns the virtual-channel class of a node on its way up: read responses, or everything else."""
    if node < s.partial0:
        return RESPONSE if s.dispatch_primitive == PULL else REQUEST
    return RESPONSE if node < s.store0 and is_pull(s) else REQUEST


@compiled
def segments_of(s: Root, node: int) -> int:
    """Returns how many segments the vector has that a node belongs to."""
    return s.combine_segments if is_partial(s, node) or node >= s.sum0 else s.dispatch_segments


@compiled
def packets_of_segment(s: Root, node: int) -> int:
    """Returns how many packets a copy, partial sum or store is on its links."""
    return s.combine_segment_packets if is_partial(s, node) else s.dispatch_segment_packets


@compiled
def send_vector(s: Root, gpu: int, first: int) -> None:
    """Puts a vector, whose first segment is ``first``, at a GPU's uplinks."""
    for node in range(first, first + segments_of(s, first)):
        uplink_enqueue(s, gpu, node)


@compiled
def ask_up(s: Root, gpu: int, first: int, flits: int, purpose: int) -> int:
    """Charges the read requests for a vector to a GPU's uplinks and returns when the last one has crossed.

    Requests are ``flits`` for each segment. Those issued at one instant cross one after the other, so that readers who
    start together are answered in turn.
    """
    crossed_ps = s.now_ps
    for node in range(first, first + segments_of(s, first)):
        plane = s.nodes[node].plane
        charge_up(s, gpu, plane, flits, purpose)
        crossed_ps = max(crossed_ps, s.uplinks[gpu * s.planes + plane].free_ps)
    return crossed_ps


@compiled
def ask_down(s: Root, gpu: int, first: int, flits: int, purpose: int) -> None:
    """Charges the read requests for a vector, ``flits`` for each segment, to a GPU's downlinks."""
    for node in range(first, first + segments_of(s, first)):
        charge_down(s, gpu, s.nodes[node].plane, flits, purpose)


@compiled
def uplink_enqueue(s: Root, gpu: int, node: int) -> None:
    """Puts a segment behind the others of its class at a GPU's uplink."""
    link = gpu * s.planes + s.nodes[node].plane
    lane = s.lanes[link * 2 + node_class(s, node)]
    s.nodes[node].next = NOTHING
    if lane.head == NOTHING:
        lane.head = node
    else:
        s.nodes[lane.tail].next = node
    lane.tail = node
    s.uplinks[link].queued_flits += s.nodes[node].flits
    uplink_pump(s, link)


@compiled
def uplink_wake(s: Root, link: int) -> None:
    """Makes sure the uplink is looked at again when it falls free."""
    q = s.uplinks[link]
    if q.wake == 0 and (s.lanes[link * 2].head != NOTHING or s.lanes[link * 2 + 1].head != NOTHING):
        q.wake = 1
        push(s, q.free_ps, EV_UPLINK, link, 0)


@compiled
def uplink_pump(s: Root, link: int) -> None:
    """Sends the next segment of an uplink if it is free and the switch has room, classes taking turns."""
    q = s.uplinks[link]
    now = s.now_ps
    if q.free_ps > now:
        uplink_wake(s, link)
        return
    for turn in range(2):
        cls = 1 - q.last_class if turn == 0 else q.last_class
        lane = s.lanes[link * 2 + cls]
        node = lane.head
        if node == NOTHING:
            continue
        flits = s.nodes[node].flits
        if s.queueing != OUTPUT_QUEUED:
            # A segment larger than the buffer passes alone: its packets stream through.
            if lane.used_flits > 0 and lane.used_flits + flits > s.credit_flits:
                continue
            lane.used_flits += flits
        lane.head = s.nodes[node].next
        q.last_class = cls
        q.queued_flits -= flits
        serial_ps = wire_ps(s, flits)
        tail_ps = now + delivery_ps(s, flits, serial_ps)
        s.nodes[node].tail_ps = tail_ps
        gpu = link // s.planes
        push(s, tail_ps if s.store_and_forward else now + s.hop_ps, EV_SWITCH, node, gpu)
        q.free_ps = now + serial_ps
        q.busy_ps += serial_ps
        purpose = COMBINE_DATA if is_partial(s, node) else DISPATCH_DATA
        count_data(s, gpu, UP, purpose, node)
        log_row(s, LOG_UP, gpu, purpose, node, flits, now, now + serial_ps)
        uplink_wake(s, link)
        return


@compiled
def port_wake(s: Root, port: int, time_ps: int) -> None:
    """Makes sure a port is looked at again at the given time."""
    if s.ports[port].wake == 0:
        s.ports[port].wake = 1
        push(s, time_ps, EV_PORT, port, 0)


@compiled
def activate(s: Root, port: int, cls: int, source: int) -> None:
    """Gives an input its turn behind the others that have something for a port."""
    base = (port * 2 + cls) * (s.num_gpus + 1)
    turn = s.turns[port * 2 + cls]
    s.queues[base + source].next = NOTHING
    if turn.head == NOTHING:
        turn.head = source
    else:
        s.queues[base + turn.tail].next = source
    turn.tail = source


@compiled
def port_append(s: Root, port: int, cls: int, source: int, node: int) -> None:
    """Puts a segment into the virtual output queue of its input; the port is not looked at yet."""
    if s.queueing == OUTPUT_QUEUED:
        source = 0
    q = s.queues[(port * 2 + cls) * (s.num_gpus + 1) + source]
    s.nodes[node].next = NOTHING
    if q.head == NOTHING:
        q.head = node
        activate(s, port, cls, source)
    else:
        s.nodes[q.tail].next = node
    q.tail = node
    s.ports[port].queued_flits += s.nodes[node].flits


@compiled
def port_take(s: Root, port: int, cls: int) -> int:
    """Removes and returns the next segment of a class, inputs taking turns."""
    turn = s.turns[port * 2 + cls]
    source = turn.head
    q = s.queues[(port * 2 + cls) * (s.num_gpus + 1) + source]
    node = q.head
    turn.head = q.next
    q.head = s.nodes[node].next
    if q.head != NOTHING:
        activate(s, port, cls, source)
    s.ports[port].queued_flits -= s.nodes[node].flits
    return node


@compiled
def streamed_ps(s: Root, node: int, leaving_ps: int) -> int:
    """Returns how long before its tail leaves the switch the buffer space of a segment comes free.

    Packets take space one by one as they enter the uplink and give it back one by one as they leave. A segment takes
    the space of all at once when the first enters, so it gives all back early: on average each packet holds its space
    as long as if it were alone. What is stored before it goes on, and a single packet, gives it back with its tail.
    """
    packets = packets_of_segment(s, node)
    if s.store_and_forward:
        return 0
    entering_ps = wire_ps(s, s.nodes[node].flits)
    return min(leaving_ps, (packets - 1) * (entering_ps + leaving_ps) // (2 * packets))


@compiled
def credit_ps(s: Root, node: int, free_ps: int) -> int:
    """Returns when a GPU may use buffer space again that it knows, at ``free_ps``, to be free.

    Packets fill a buffer to the brim, whole segments leave a rest: they hold what they have for less, in proportion, so
    that a buffer full of them passes as much as one full of packets. For the same reason one larger than the buffer,
    which passes alone, holds it for more.
    """
    if s.store_and_forward or packets_of_segment(s, node) == 1:
        return free_ps
    flits = s.nodes[node].flits
    held_ps = free_ps - (s.nodes[node].tail_ps - delivery_ps(s, flits, wire_ps(s, flits)))
    rest_flits = s.credit_flits - max(s.credit_flits // flits, 1) * flits
    return max(s.now_ps, free_ps - held_ps * rest_flits // s.credit_flits)


@compiled
def leave_input(s: Root, node: int, end_ps: int) -> None:
    """Gives back the input buffer of a segment once its last replica has left the switch."""
    if s.queueing == OUTPUT_QUEUED:
        return
    pair = s.nodes[node].owner
    whole = node
    free_ps = end_ps - streamed_ps(s, node, end_ps - s.now_ps)
    if is_partial(s, node):
        gpu = s.pairs[pair].gpu
    else:
        token = s.pairs[pair].token
        gpu = s.pairs[pair].home
        if stores_once(s):
            segment = node - pair * s.dispatch_segments
            store = token * s.dispatch_segments + segment
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
    push(s, credit_ps(s, whole, free_ps + s.hop_ps), EV_CREDIT, link, s.nodes[whole].flits * 2 + cls)
    if s.queueing == INPUT_FIFO:
        push(s, end_ps, EV_INPUT_NEXT, link, cls)


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
    purpose = DISPATCH_DATA
    if is_result:
        purpose = COMBINE_DATA
    elif node >= s.partial0:
        purpose = EVICTION if sums_in_switch(s) else COMBINE_DATA
    count_data(s, gpu, DOWN, purpose, node)
    log_row(s, LOG_DOWN, gpu, purpose, node, flits, now, end_ps)
    push(s, end_ps - serial_ps + delivery_ps(s, flits, serial_ps), EV_REACH, node, gpu)
    if is_result or purpose == EVICTION:
        unit = s.ports[s.num_links + port]
        unit.slots_used -= s.combine_segment_packets
        unit.slots_draining -= s.combine_segment_packets
        if unit.stalled_node != NOTHING:
            port_wake(s, s.num_links + port, max(now, unit.free_ps))
    else:
        leave_input(s, node, end_ps)


@compiled
def reduce_ps(s: Root, flits: int) -> int:
    """Returns how long a contribution keeps a reduction unit busy."""
    return wire_ps(s, flits) * 1_000_000 // s.reduction_ppm


@compiled
def close_accumulator(s: Root, port: int, total: int, node: int) -> None:
    """Takes a sum out of the open list and sends it to the downlink as ``node``; its slots drain with it."""
    q = s.ports[port]
    x = s.sums[total]
    if x.open_prev == NOTHING:
        q.open_head = x.open_next
    else:
        s.sums[x.open_prev].open_next = x.open_next
    if x.open_next == NOTHING:
        q.open_tail = x.open_prev
    else:
        s.sums[x.open_next].open_prev = x.open_prev
    x.open = 0
    q.slots_draining += s.combine_segment_packets
    s.nodes[node].pieces = x.open_count
    s.nodes[node].tail_ps = x.ready_ps
    downlink = port - s.num_links
    port_append(s, downlink, RESPONSE, s.num_gpus, node)
    port_wake(s, downlink, max(s.now_ps, s.ports[downlink].free_ps))


@compiled
def evict(s: Root, port: int, total: int) -> None:
    """Sends what an open sum has so far home, under the name of the partial sum that came last."""
    segment = total % s.combine_segments
    s.evictions += 1
    node = s.partial0 + s.sums[total].open_pair * s.combine_segments + segment
    close_accumulator(s, port, total, node)


@compiled
def open_accumulator(s: Root, port: int, total: int) -> bool:
    """Finds slots for a sum, evicting the oldest partial sums if it must; False if it has to wait."""
    q = s.ports[port]
    need = s.combine_segment_packets
    while q.open_head != NOTHING and q.slots_used - q.slots_draining + need > s.reduction_slots:
        evict(s, port, q.open_head)
    # A sum larger than the whole buffer passes alone: its packets stream through.
    if q.slots_used > 0 and q.slots_used + need > s.reduction_slots:
        return False
    q.slots_used += need
    x = s.sums[total]
    x.open = 1
    x.open_count = 0
    x.open_prev = q.open_tail
    x.open_next = NOTHING
    if q.open_tail == NOTHING:
        q.open_head = total
    else:
        s.sums[q.open_tail].open_next = total
    q.open_tail = total
    return True


@compiled
def reduce_start(s: Root, port: int, node: int) -> None:
    """Adds a contribution to its token's sum; the last one sends the result down."""
    q = s.ports[port]
    pair = s.nodes[node].owner
    segment = node - s.partial0 - pair * s.combine_segments
    total = s.pairs[pair].token * s.combine_segments + segment
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
    if s.combine_primitive == PUSH_REDUCE:
        # The switch holds the contribution now, so it acknowledges the store itself.
        push(s, end_ps + s.hop_ps, EV_ACK, node, 0)
    x.open_count += 1
    x.open_pair = pair
    x.ready_ps = end_ps + s.cycle_ps
    x.contributions_left -= 1
    if x.contributions_left == 0:
        close_accumulator(s, port, total, s.sum0 + total)


@compiled
def port_pump(s: Root, port: int) -> None:
    """Starts the next segment of a port if it is free, classes and then inputs taking turns."""
    q = s.ports[port]
    if q.stalled_node == NOTHING and s.turns[port * 2].head == NOTHING and s.turns[port * 2 + 1].head == NOTHING:
        return
    if q.free_ps > s.now_ps:
        port_wake(s, port, q.free_ps)
        return
    if q.stalled_node != NOTHING:
        node = q.stalled_node
    else:
        cls = 1 - q.last_class
        if s.turns[port * 2 + cls].head == NOTHING:
            cls = q.last_class
        q.last_class = cls
        node = port_take(s, port, cls)
    if port < s.num_links:
        downlink_start(s, port, node)
    else:
        reduce_start(s, port, node)
    if q.stalled_node == NOTHING and (s.turns[port * 2].head != NOTHING or s.turns[port * 2 + 1].head != NOTHING):
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
        if sums_in_switch(s):
            port += s.num_links
        s.nodes[node].pieces = 1
        port_enqueue(s, port, node_class(s, node), gpu, node)
    else:
        segment = node - s.store0 - owner * s.dispatch_segments
        end = s.tokens[owner + 1].pair0
        for pair in range(s.tokens[owner].pair0, end):
            if is_target(s, pair):
                copy = pair * s.dispatch_segments + segment
                s.nodes[copy].tail_ps = s.nodes[node].tail_ps
                port_enqueue(s, s.pairs[pair].gpu * s.planes + plane, REQUEST, gpu, copy)


@compiled
def switch_arrive(s: Root, node: int, gpu: int) -> None:
    """Takes a segment into the switch: straight to its outputs, or behind the others of its input FIFO."""
    if s.queueing == INPUT_FIFO:
        lane = s.lanes[(gpu * s.planes + s.nodes[node].plane) * 2 + node_class(s, node)]
        s.fifo_next[node] = NOTHING
        waiting = lane.fifo_head != NOTHING
        if waiting:
            s.fifo_next[lane.fifo_tail] = node
        else:
            lane.fifo_head = node
        lane.fifo_tail = node
        if waiting:
            return
    expose(s, node, gpu)


@compiled
def input_next(s: Root, link: int, cls: int) -> None:
    """Moves an input FIFO on: its head has left the switch."""
    lane = s.lanes[link * 2 + cls]
    lane.fifo_head = s.fifo_next[lane.fifo_head]
    if lane.fifo_head != NOTHING:
        expose(s, lane.fifo_head, link // s.planes)
