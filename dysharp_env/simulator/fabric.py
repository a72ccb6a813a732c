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

from dysharp_env.simulator.bundles import free_early, gather, passing_bundle, seal
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
    NO_TIME,
    NOTHING,
    NUM_PURPOSES,
    OUTPUT_QUEUED,
    PULL,
    PULL_UNICAST,
    PUSH_REDUCE,
    REQUEST,
    RESPONSE,
    UP,
)
from dysharp_env.simulator.primitives import is_pull, is_target, stores_once, sums_in_switch
from dysharp_env.simulator.rows import prefetch
from dysharp_env.simulator.views import (
    Root,
    bundles,
    copy_next,
    fifo_next,
    lanes,
    log_rows,
    nodes,
    pairs,
    payload,
    ports,
    queues,
    stores,
    sums,
    tokens,
    traffic,
    trip_of,
    turns,
    uplinks,
    wire_times,
)


@compiled
def wire_ps(s: Root, flits: int) -> int:
    """Returns how long ``flits`` keep a link busy."""
    # A table, because divisions are slow; queued flits can be more than it has entries.
    if flits < s.wire_entries:
        return wire_times(s)[flits]
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
        row = s.log_size
        log_rows(s)[row, 0] = resource
        log_rows(s)[row, 1] = gpu
        log_rows(s)[row, 2] = purpose
        log_rows(s)[row, 3] = item
        log_rows(s)[row, 4] = amount
        log_rows(s)[row, 5] = start_ps
        log_rows(s)[row, 6] = end_ps
        s.log_size = row + 1


@compiled
def charge_up(s: Root, gpu: int, plane: int, flits: int, purpose: int) -> None:
    """Charges control flits to an uplink; what is queued there leaves that much later."""
    q = uplinks(s)[gpu * s.planes + plane]
    ps = wire_ps(s, flits)
    q.free_ps = max(q.free_ps, s.now_ps) + ps
    q.busy_ps += ps
    traffic(s)[(gpu * 2 + UP) * NUM_PURPOSES + purpose] += flits


@compiled
def charge_down(s: Root, gpu: int, plane: int, flits: int, purpose: int) -> None:
    """Charges control flits to a downlink; what is queued there leaves that much later."""
    q = ports(s)[gpu * s.planes + plane]
    ps = wire_ps(s, flits)
    q.free_ps = max(q.free_ps, s.now_ps) + ps
    q.busy_ps += ps
    traffic(s)[(gpu * 2 + DOWN) * NUM_PURPOSES + purpose] += flits


@compiled
def count_data(s: Root, gpu: int, direction: int, purpose: int, node: int) -> None:
    """Counts the flits of a segment that is put on a link."""
    place = (gpu * 2 + direction) * NUM_PURPOSES + purpose
    traffic(s)[place] += nodes(s)[node].flits
    payload(s)[place] += nodes(s)[node].payload_flits
    s.transfers += 1


@compiled
def is_partial(s: Root, node: int) -> bool:
    """Returns whether a node is a partial sum."""
    return s.partial0 <= node < s.store0


@compiled
def update_plane(s: Root, token: int) -> int:
    """Returns the plane of a token's counter updates: that of the first packet of its sum."""
    # The only plane is 0, and the node is seldom at hand.
    return nodes(s)[s.sum0 + token * s.combine_segments].plane if s.planes > 1 else 0


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
    packets = s.combine_segment_packets if is_partial(s, node) else s.dispatch_segment_packets
    return packets * vectors_of(s, node) if s.by_chunk else packets


@compiled
def vectors_of(s: Root, node: int) -> int:
    """Returns how many vectors a segment at chunk resolution is."""
    is_sum = is_partial(s, node) or node >= s.sum0
    return nodes(s)[node].payload_flits // (s.combine_vector_flits if is_sum else s.dispatch_vector_flits)


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
        plane = nodes(s)[node].plane
        charge_up(s, gpu, plane, flits, purpose)
        crossed_ps = max(crossed_ps, uplinks(s)[gpu * s.planes + plane].free_ps)
    return crossed_ps


@compiled
def ask_down(s: Root, gpu: int, first: int, flits: int, purpose: int) -> None:
    """Charges the read requests for a vector, ``flits`` for each segment, to a GPU's downlinks."""
    for node in range(first, first + segments_of(s, first)):
        charge_down(s, gpu, nodes(s)[node].plane, flits, purpose)


@compiled
def uplink_enqueue(s: Root, gpu: int, node: int) -> None:
    """Puts a segment behind the others of its class at a GPU's uplink."""
    link = gpu * s.planes + nodes(s)[node].plane
    lane = lanes(s)[link * 2 + node_class(s, node)]
    nodes(s)[node].next = NOTHING
    if lane.head == NOTHING:
        lane.head = node
    else:
        nodes(s)[lane.tail].next = node
    lane.tail = node
    uplinks(s)[link].queued_flits += nodes(s)[node].flits
    uplink_pump(s, link)


@compiled
def uplink_wake(s: Root, link: int) -> None:
    """Makes sure the uplink is looked at again when it falls free."""
    q = uplinks(s)[link]
    if q.wake == 0 and (lanes(s)[link * 2].head != NOTHING or lanes(s)[link * 2 + 1].head != NOTHING):
        q.wake = 1
        push(s, q.free_ps, EV_UPLINK, link, 0)


@compiled
def uplink_pump(s: Root, link: int) -> None:
    """Sends the next segment of an uplink if it is free and the switch has room, classes taking turns."""
    q = uplinks(s)[link]
    now = s.now_ps
    if q.free_ps > now:
        uplink_wake(s, link)
        return
    for turn in range(2):
        cls = 1 - q.last_class if turn == 0 else q.last_class
        lane = lanes(s)[link * 2 + cls]
        node = lane.head
        if node == NOTHING:
            continue
        flits = nodes(s)[node].flits
        if s.queueing != OUTPUT_QUEUED:
            # A segment larger than the buffer passes alone: its packets stream through.
            if lane.used_flits > 0 and lane.used_flits + flits > s.credit_flits:
                continue
            lane.used_flits += flits
        lane.head = nodes(s)[node].next
        q.last_class = cls
        q.queued_flits -= flits
        serial_ps = wire_ps(s, flits)
        tail_ps = now + delivery_ps(s, flits, serial_ps)
        nodes(s)[node].tail_ps = tail_ps
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
    if ports(s)[port].wake == 0:
        ports(s)[port].wake = 1
        push(s, time_ps, EV_PORT, port, 0)


@compiled
def activate(s: Root, port: int, cls: int, source: int) -> None:
    """Gives an input its turn behind the others that have something for a port."""
    base = (port * 2 + cls) * (s.num_gpus + 1)
    turn = turns(s)[port * 2 + cls]
    queues(s)[base + source].next = NOTHING
    if turn.head == NOTHING:
        turn.head = source
    else:
        queues(s)[base + turn.tail].next = source
    turn.tail = source


@compiled
def port_append(s: Root, port: int, cls: int, source: int, node: int) -> None:
    """Puts a segment into the virtual output queue of its input; the port is not looked at yet."""
    if s.queueing == OUTPUT_QUEUED:
        source = 0
    q = queues(s)[(port * 2 + cls) * (s.num_gpus + 1) + source]
    nodes(s)[node].next = NOTHING
    if q.head == NOTHING:
        q.head = node
        activate(s, port, cls, source)
    else:
        nodes(s)[q.tail].next = node
    q.tail = node
    ports(s)[port].queued_flits += nodes(s)[node].flits


@compiled
def port_take(s: Root, port: int, cls: int) -> int:
    """Removes and returns the next segment of a class, inputs taking turns."""
    turn = turns(s)[port * 2 + cls]
    source = turn.head
    q = queues(s)[(port * 2 + cls) * (s.num_gpus + 1) + source]
    node = q.head
    turn.head = q.next
    q.head = nodes(s)[node].next
    if q.head != NOTHING:
        activate(s, port, cls, source)
    ports(s)[port].queued_flits -= nodes(s)[node].flits
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
    entering_ps = wire_ps(s, nodes(s)[node].flits)
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
    flits = nodes(s)[node].flits
    held_ps = free_ps - (nodes(s)[node].tail_ps - delivery_ps(s, flits, wire_ps(s, flits)))
    rest_flits = s.credit_flits - max(s.credit_flits // flits, 1) * flits
    return max(s.now_ps, free_ps - held_ps * rest_flits // s.credit_flits)


@compiled
def leave_input(s: Root, node: int, end_ps: int) -> None:
    """Gives back the input buffer of a segment once its last replica has left the switch."""
    if s.queueing == OUTPUT_QUEUED:
        return
    pair = nodes(s)[node].owner
    whole = node
    free_ps = end_ps - streamed_ps(s, node, end_ps - s.now_ps)
    if is_partial(s, node):
        gpu = pairs(s)[pair].gpu
    else:
        token = pairs(s)[pair].token
        gpu = pairs(s)[pair].home
        if stores_once(s):
            segment = node - pair * s.dispatch_segments
            store = token * s.dispatch_segments + segment
            if s.by_chunk:
                store = stores(s)[token].carrier
            whole = s.store0 + store
            q = stores(s)[store]
            q.replicas_left -= 1
            q.end_ps = max(q.end_ps, end_ps)
            q.free_ps = max(q.free_ps, free_ps)
            if q.replicas_left > 0:
                return
            end_ps = q.end_ps
            free_ps = q.free_ps
    cls = node_class(s, whole)
    link = gpu * s.planes + nodes(s)[whole].plane
    push(s, credit_ps(s, whole, free_ps + s.hop_ps), EV_CREDIT, link, nodes(s)[whole].flits * 2 + cls)
    if s.queueing == INPUT_FIFO:
        push(s, end_ps, EV_INPUT_NEXT, link, cls)


@compiled
def downlink_start(s: Root, port: int, node: int) -> None:
    """Sends a segment down to its GPU."""
    q = ports(s)[port]
    gpu = port // s.planes
    now = s.now_ps
    flits = nodes(s)[node].flits
    serial_ps = wire_ps(s, flits)
    # A segment that cuts through cannot leave before its own tail has come.
    end_ps = max(now + serial_ps, nodes(s)[node].tail_ps)
    q.free_ps = end_ps
    if s.by_chunk:
        # While a bundle's tail is on its way others go between its vectors.
        q.free_ps = now + serial_ps
    q.busy_ps += serial_ps
    is_result = node >= s.sum0
    purpose = DISPATCH_DATA
    if is_result:
        purpose = COMBINE_DATA
    elif node >= s.partial0:
        purpose = EVICTION if sums_in_switch(s) else COMBINE_DATA
    count_data(s, gpu, DOWN, purpose, node)
    log_row(s, LOG_DOWN, gpu, purpose, node, flits, now, q.free_ps)
    reach_ps = end_ps - serial_ps + delivery_ps(s, flits, serial_ps)
    push(s, reach_ps, EV_REACH, node, gpu)
    if s.by_chunk:
        free_read(s, gpu, node, reach_ps, serial_ps)
    if is_result or purpose == EVICTION:
        unit = ports(s)[s.num_links + port]
        unit.slots_used -= s.combine_segment_packets
        unit.slots_draining -= s.combine_segment_packets
        if unit.stalled_node != NOTHING:
            port_wake(s, s.num_links + port, max(now, unit.free_ps))
    else:
        leave_input(s, node, end_ps)


@compiled
def free_read(s: Root, gpu: int, node: int, home_ps: int, serial_ps: int) -> None:
    """Frees the window of a plain read that a GPU will have at ``home_ps``, if the node is one."""
    if s.partial0 <= node < s.store0:
        if s.combine_primitive == PULL_UNICAST:
            free_early(s, gpu, True, node, home_ps, serial_ps)
    elif node < s.partial0 and s.dispatch_primitive == PULL:
        free_early(s, gpu, False, node, home_ps, serial_ps)


@compiled
def free_sum(s: Root, carrier: int) -> None:
    """Frees the window of a bundle of sums once its first vector can be summed: all heads are here, and it has a slot.

    The unit takes its vectors in turn: of each token those of all GPUs, then those of the next.
    """
    x = sums(s)[carrier]
    if x.heads_left > 0 or x.begun_ps == NO_TIME:
        return
    node = s.sum0 + carrier
    flits = nodes(s)[node].flits // trip_of(s, node).segments_out
    first_ps = x.begun_ps + reduce_ps(s, s.sum_flits * x.inputs) // trip_of(s, node).segments_out
    home_ps = max(s.now_ps, first_ps) + delivery_ps(s, flits, wire_ps(s, flits))
    free_early(s, carrier // s.tokens_per_gpu, True, node, home_ps, 0)


@compiled
def reduce_ps(s: Root, flits: int) -> int:
    """Returns how long a contribution keeps a reduction unit busy."""
    return wire_ps(s, flits) * 1_000_000 // s.reduction_ppm


@compiled
def close_accumulator(s: Root, port: int, total: int, node: int) -> None:
    """Takes a sum out of the open list and sends it to the downlink as ``node``; its slots drain with it."""
    q = ports(s)[port]
    x = sums(s)[total]
    if x.open_prev == NOTHING:
        q.open_head = x.open_next
    else:
        sums(s)[x.open_prev].open_next = x.open_next
    if x.open_next == NOTHING:
        q.open_tail = x.open_prev
    else:
        sums(s)[x.open_next].open_prev = x.open_prev
    x.open = 0
    q.slots_draining += s.combine_segment_packets
    nodes(s)[node].pieces = x.open_count
    nodes(s)[node].tail_ps = x.ready_ps
    downlink = port - s.num_links
    port_append(s, downlink, RESPONSE, s.num_gpus, node)
    port_wake(s, downlink, max(s.now_ps, ports(s)[downlink].free_ps))


@compiled
def evict(s: Root, port: int, total: int) -> None:
    """Sends what an open sum has so far home, under the name of the partial sum that came last."""
    segment = total % s.combine_segments
    s.evictions += 1
    node = s.partial0 + sums(s)[total].open_pair * s.combine_segments + segment
    if s.by_chunk:
        # Its sum of all tokens is what has to go home.
        nodes(s)[node].flits = nodes(s)[s.sum0 + total].flits
        nodes(s)[node].payload_flits = nodes(s)[s.sum0 + total].payload_flits
    close_accumulator(s, port, total, node)


@compiled
def open_accumulator(s: Root, port: int, total: int) -> bool:
    """Finds slots for a sum, evicting the oldest partial sums if it must; False if it has to wait."""
    q = ports(s)[port]
    need = s.combine_segment_packets
    while q.open_head != NOTHING and q.slots_used - q.slots_draining + need > s.reduction_slots:
        evict(s, port, q.open_head)
    # A sum larger than the whole buffer passes alone: its packets stream through.
    if q.slots_used > 0 and q.slots_used + need > s.reduction_slots:
        return False
    q.slots_used += need
    x = sums(s)[total]
    if s.by_chunk and is_pull(s) and x.begun_ps == NO_TIME:
        x.begun_ps = s.now_ps
        free_sum(s, total)
    x.open = 1
    x.open_count = 0
    x.open_prev = q.open_tail
    x.open_next = NOTHING
    if q.open_tail == NOTHING:
        q.open_head = total
    else:
        sums(s)[q.open_tail].open_next = total
    q.open_tail = total
    return True


@compiled
def reduce_start(s: Root, port: int, node: int) -> None:
    """Adds a contribution to its token's sum; the last one sends the result down."""
    q = ports(s)[port]
    pair = nodes(s)[node].owner
    segment = node - s.partial0 - pair * s.combine_segments
    total = pairs(s)[pair].token * s.combine_segments + segment
    if s.by_chunk:
        total = sums(s)[total].carrier
    x = sums(s)[total]
    if x.open == 0 and not open_accumulator(s, port, total):
        q.stalled_node = node
        return
    q.stalled_node = NOTHING
    now = s.now_ps
    flits = nodes(s)[node].flits
    end_ps = max(now + reduce_ps(s, flits), nodes(s)[node].tail_ps)
    q.free_ps = end_ps
    log_row(s, LOG_REDUCE, (port - s.num_links) // s.planes, COMBINE_DATA, node, flits, now, end_ps)
    leave_input(s, node, end_ps)
    if s.combine_primitive == PUSH_REDUCE:
        # The switch holds the contribution now, so it acknowledges the store itself.
        push(s, end_ps + s.hop_ps, EV_ACK, node, 0)
        if s.by_chunk:
            free_early(s, pairs(s)[pair].gpu, True, node, end_ps + s.hop_ps, 0)
    x.open_count += 1
    x.open_pair = pair
    x.ready_ps = end_ps + s.cycle_ps
    x.contributions_left -= 1
    if x.contributions_left == 0:
        close_accumulator(s, port, total, s.sum0 + total)


@compiled
def port_pump(s: Root, port: int) -> None:
    """Starts the next segment of a port if it is free, classes and then inputs taking turns."""
    q = ports(s)[port]
    if q.stalled_node == NOTHING and turns(s)[port * 2].head == NOTHING and turns(s)[port * 2 + 1].head == NOTHING:
        return
    if q.free_ps > s.now_ps:
        port_wake(s, port, q.free_ps)
        return
    if q.stalled_node != NOTHING:
        node = q.stalled_node
    else:
        cls = 1 - q.last_class
        if turns(s)[port * 2 + cls].head == NOTHING:
            cls = q.last_class
        q.last_class = cls
        node = port_take(s, port, cls)
    if port < s.num_links:
        downlink_start(s, port, node)
    else:
        reduce_start(s, port, node)
    if q.stalled_node == NOTHING and (turns(s)[port * 2].head != NOTHING or turns(s)[port * 2 + 1].head != NOTHING):
        port_wake(s, port, q.free_ps)


@compiled
def port_enqueue(s: Root, port: int, cls: int, source: int, node: int) -> None:
    """Puts a segment into the virtual output queue of its input and lets the port take it if it is free."""
    port_append(s, port, cls, source, node)
    port_pump(s, port)


@compiled
def expose(s: Root, node: int, gpu: int) -> None:
    """Offers a segment to every output it goes to: fan-out is split, each replica leaves when its output is free."""
    owner = nodes(s)[node].owner
    plane = nodes(s)[node].plane
    if node < s.partial0:
        port_enqueue(s, pairs(s)[owner].gpu * s.planes + plane, node_class(s, node), gpu, node)
    elif node < s.store0:
        port = pairs(s)[owner].home * s.planes + plane
        if sums_in_switch(s):
            port += s.num_links
        nodes(s)[node].pieces = 1
        if s.by_chunk and sums_in_switch(s) and is_pull(s):
            carrier = sums(s)[pairs(s)[owner].token].carrier
            sums(s)[carrier].heads_left -= 1
            free_sum(s, carrier)
        port_enqueue(s, port, node_class(s, node), gpu, node)
    elif s.by_chunk:
        expose_replicas(s, node, gpu)
    else:
        segment = node - s.store0 - owner * s.dispatch_segments
        end = tokens(s)[owner + 1].pair0
        for pair in range(tokens(s)[owner].pair0, end):
            if is_target(s, pair):
                copy = pair * s.dispatch_segments + segment
                nodes(s)[copy].tail_ps = nodes(s)[node].tail_ps
                port_enqueue(s, pairs(s)[pair].gpu * s.planes + plane, REQUEST, gpu, copy)


@compiled
def expose_replicas(s: Root, node: int, gpu: int) -> None:
    """Offers a multicast bundle to its outputs: to each a bundle of the tokens that have experts behind it."""
    carrier = nodes(s)[node].owner
    links = copy_next(s)
    token = carrier
    while token != NOTHING:
        for pair in range(tokens(s)[token].pair0, tokens(s)[token + 1].pair0):
            if is_target(s, pair):
                gather(s, passing_bundle(s, pairs(s)[pair].gpu), pair, links)
                prefetch(nodes(s), pair)
        token = stores(s)[token].next
    count = 0
    for target in range(s.num_gpus):
        count += bundles(s)[passing_bundle(s, target)].head != NOTHING
    stores(s)[carrier].replicas_left = count
    stores(s)[carrier].acks_left = count
    for offset in range(s.num_gpus):
        target = (gpu + offset) % s.num_gpus
        bundle = passing_bundle(s, target)
        if bundles(s)[bundle].head != NOTHING:
            copy = seal(s, bundle, bundles(s)[bundle].count, 0, links)
            nodes(s)[copy].tail_ps = nodes(s)[node].tail_ps
            port_enqueue(s, target, REQUEST, gpu, copy)


@compiled
def switch_arrive(s: Root, node: int, gpu: int) -> None:
    """Takes a segment into the switch: straight to its outputs, or behind the others of its input FIFO."""
    if s.queueing == INPUT_FIFO:
        lane = lanes(s)[(gpu * s.planes + nodes(s)[node].plane) * 2 + node_class(s, node)]
        fifo_next(s)[node] = NOTHING
        waiting = lane.fifo_head != NOTHING
        if waiting:
            fifo_next(s)[lane.fifo_tail] = node
        else:
            lane.fifo_head = node
        lane.fifo_tail = node
        if waiting:
            return
    expose(s, node, gpu)


@compiled
def input_next(s: Root, link: int, cls: int) -> None:
    """Moves an input FIFO on: its head has left the switch."""
    lane = lanes(s)[link * 2 + cls]
    lane.fifo_head = fifo_next(s)[lane.fifo_head]
    if lane.fifo_head != NOTHING:
        expose(s, lane.fifo_head, link // s.planes)
