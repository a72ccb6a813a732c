"""Links and switch: uplinks, credited input buffers, output ports, multicast, and in-switch reduction.

Data moves as *segments*, one token's vector on all planes together; a segment cuts through unless the system says
store-and-forward. Control flits (acknowledgements, read requests, notifications) are charged to the link they cross at
the moment they cross it and do not queue: they travel on their own virtual channels between the packets of a segment,
so at this resolution what they cost is bandwidth, not waiting.

This room knows nothing of experts or schedules: it moves nodes and schedules ``EV_REACH`` when one has arrived.
"""

from __future__ import annotations

from numba import njit

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
    MULTICAST,
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
from dysharp_env.simulator.views import (
    Root,
    active_next,
    fifo_next,
    gpus,
    lanes,
    log_rows,
    nodes,
    pairs,
    ports,
    queue_head,
    queue_tail,
    segments,
    store_flits,
    tokens,
    traffic,
    turns,
)


@njit(cache=True)
def wire_ps(s: Root, flits: int) -> int:
    """Returns how long ``flits`` keep a link busy."""
    exact = flits * s.ps_mult // s.ps_div
    return exact // s.quantum_ps * s.quantum_ps


@njit(cache=True)
def delivery_ps(s: Root, flits: int, serial_ps: int) -> int:
    """Returns the time from the first flit entering a link to the last one leaving it at the other end."""
    if s.quantum_ps == 1:
        return s.hop_ps + serial_ps
    return (s.hop_ps + flits * s.ps_mult // s.ps_div) // s.quantum_ps * s.quantum_ps


@njit(cache=True)
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


@njit(cache=True)
def charge_up(s: Root, gpu: int, flits: int, purpose: int) -> None:
    """Charges control flits to an uplink; what is queued there leaves that much later."""
    g = gpus(s)[gpu]
    ps = wire_ps(s, flits)
    g.up_free_ps = max(g.up_free_ps, s.now_ps) + ps
    g.up_busy_ps += ps
    traffic(s)[(gpu * 2 + UP) * NUM_PURPOSES + purpose] += flits


@njit(cache=True)
def charge_down(s: Root, gpu: int, flits: int, purpose: int) -> None:
    """Charges control flits to a downlink; what is queued there leaves that much later."""
    q = ports(s)[gpu]
    ps = wire_ps(s, flits)
    q.free_ps = max(q.free_ps, s.now_ps) + ps
    gpus(s)[gpu].down_busy_ps += ps
    traffic(s)[(gpu * 2 + DOWN) * NUM_PURPOSES + purpose] += flits


@njit(cache=True)
def up_flits(s: Root, node: int) -> int:
    """Returns the flits a node puts on an uplink; a multicast store names all its remote experts."""
    if s.num_pairs <= node < 2 * s.num_pairs:
        return s.sum_flits
    is_multicast = s.dispatch_primitive == MULTICAST
    return store_flits(s)[tokens(s)[node - 2 * s.num_pairs].remote_targets if is_multicast else 0]


@njit(cache=True)
def down_flits(s: Root, node: int) -> int:
    """Returns the flits a node puts on a downlink; a multicast replica names only the experts behind that port."""
    if node >= s.num_pairs:
        return s.sum_flits
    return store_flits(s)[pairs(s)[node].num_experts if s.dispatch_primitive == MULTICAST else 0]


@njit(cache=True)
def node_class(s: Root, node: int) -> int:
    """Returns the virtual-channel class of a node on its way up: read responses, or everything else."""
    if node < s.num_pairs:
        return RESPONSE if s.dispatch_primitive == PULL else REQUEST
    return RESPONSE if node < 2 * s.num_pairs and is_pull(s) else REQUEST


@njit(cache=True)
def uplink_enqueue(s: Root, gpu: int, node: int) -> None:
    """Puts a segment behind the others of its class at a GPU's uplink."""
    lane = lanes(s)[gpu * 2 + node_class(s, node)]
    nodes(s)[node].next = NOTHING
    if lane.head == NOTHING:
        lane.head = node
    else:
        nodes(s)[lane.tail].next = node
    lane.tail = node
    gpus(s)[gpu].up_queued_flits += up_flits(s, node)
    uplink_pump(s, gpu)


@njit(cache=True)
def uplink_wake(s: Root, gpu: int) -> None:
    """Makes sure the uplink is looked at again when it falls free."""
    g = gpus(s)[gpu]
    if g.up_wake == 0 and (lanes(s)[gpu * 2].head != NOTHING or lanes(s)[gpu * 2 + 1].head != NOTHING):
        g.up_wake = 1
        push(s, g.up_free_ps, EV_UPLINK, gpu, 0)


@njit(cache=True)
def uplink_pump(s: Root, gpu: int) -> None:
    """Sends the next segment of a GPU if its uplink is free and the switch has room, classes taking turns."""
    g = gpus(s)[gpu]
    now = s.now_ps
    if g.up_free_ps > now:
        uplink_wake(s, gpu)
        return
    for turn in range(2):
        cls = 1 - g.up_last_class if turn == 0 else g.up_last_class
        lane = lanes(s)[gpu * 2 + cls]
        node = lane.head
        if node == NOTHING:
            continue
        flits = up_flits(s, node)
        if s.queueing != OUTPUT_QUEUED:
            # A segment larger than the buffer passes alone: its packets stream through.
            if lane.used_flits > 0 and lane.used_flits + flits > s.credit_flits:
                continue
            lane.used_flits += flits
        lane.head = nodes(s)[node].next
        g.up_last_class = cls
        g.up_queued_flits -= flits
        serial_ps = wire_ps(s, flits)
        tail_ps = now + delivery_ps(s, flits, serial_ps)
        nodes(s)[node].tail_ps = tail_ps
        push(s, tail_ps if s.store_and_forward else now + s.hop_ps, EV_SWITCH, node, gpu)
        g.up_free_ps = now + serial_ps
        g.up_busy_ps += serial_ps
        purpose = COMBINE_DATA if s.num_pairs <= node < 2 * s.num_pairs else DISPATCH_DATA
        traffic(s)[(gpu * 2 + UP) * NUM_PURPOSES + purpose] += flits
        segments(s)[(gpu * 2 + UP) * NUM_PURPOSES + purpose] += 1
        s.transfers += 1
        log_row(s, LOG_UP, gpu, purpose, node, flits, now, now + serial_ps)
        uplink_wake(s, gpu)
        return


@njit(cache=True)
def port_wake(s: Root, port: int, time_ps: int) -> None:
    """Makes sure a port is looked at again at the given time."""
    if ports(s)[port].wake == 0:
        ports(s)[port].wake = 1
        push(s, time_ps, EV_PORT, port, 0)


@njit(cache=True)
def activate(s: Root, port: int, cls: int, source: int) -> None:
    """Gives an input its turn behind the others that have something for a port."""
    base = (port * 2 + cls) * (s.num_gpus + 1)
    turn = turns(s)[port * 2 + cls]
    active_next(s)[base + source] = NOTHING
    if turn.head == NOTHING:
        turn.head = source
    else:
        active_next(s)[base + turn.tail] = source
    turn.tail = source


@njit(cache=True)
def port_append(s: Root, port: int, cls: int, source: int, node: int) -> None:
    """Puts a segment into the virtual output queue of its input; the port is not looked at yet."""
    if s.queueing == OUTPUT_QUEUED:
        source = 0
    base = (port * 2 + cls) * (s.num_gpus + 1)
    nodes(s)[node].next = NOTHING
    if queue_head(s)[base + source] == NOTHING:
        queue_head(s)[base + source] = node
        activate(s, port, cls, source)
    else:
        nodes(s)[queue_tail(s)[base + source]].next = node
    queue_tail(s)[base + source] = node
    ports(s)[port].queued_flits += down_flits(s, node)


@njit(cache=True)
def port_take(s: Root, port: int, cls: int) -> int:
    """Removes and returns the next segment of a class, inputs taking turns."""
    base = (port * 2 + cls) * (s.num_gpus + 1)
    turn = turns(s)[port * 2 + cls]
    source = turn.head
    node = queue_head(s)[base + source]
    turn.head = active_next(s)[base + source]
    queue_head(s)[base + source] = nodes(s)[node].next
    if queue_head(s)[base + source] != NOTHING:
        activate(s, port, cls, source)
    ports(s)[port].queued_flits -= down_flits(s, node)
    return node


@njit(cache=True)
def leave_input(s: Root, node: int, end_ps: int) -> None:
    """Gives back the input buffer of a segment once its last replica has left the switch."""
    if s.queueing == OUTPUT_QUEUED:
        return
    if node < s.num_pairs:
        token = pairs(s)[node].token
        gpu = token // s.tokens_per_gpu
        whole = 2 * s.num_pairs + token if stores_once(s) else node
        if whole != node:
            tok = tokens(s)[token]
            tok.replicas_left -= 1
            tok.release_ps = max(tok.release_ps, end_ps)
            if tok.replicas_left > 0:
                return
            end_ps = tok.release_ps
    else:
        gpu = pairs(s)[node - s.num_pairs].gpu
        whole = node
    cls = node_class(s, whole)
    push(s, end_ps + s.hop_ps, EV_CREDIT, gpu, up_flits(s, whole) * 2 + cls)
    if s.queueing == INPUT_FIFO:
        push(s, end_ps, EV_INPUT_NEXT, gpu, cls)


@njit(cache=True)
def downlink_start(s: Root, port: int, node: int) -> None:
    """Sends a segment down to its GPU."""
    q = ports(s)[port]
    now = s.now_ps
    flits = down_flits(s, node)
    serial_ps = wire_ps(s, flits)
    # A segment that cuts through cannot leave before its own tail has come.
    end_ps = max(now + serial_ps, nodes(s)[node].tail_ps)
    q.free_ps = end_ps
    gpus(s)[port].down_busy_ps += serial_ps
    is_result = node >= 2 * s.num_pairs
    purpose = DISPATCH_DATA
    if is_result:
        purpose = COMBINE_DATA
    elif node >= s.num_pairs:
        purpose = EVICTION if sums_in_switch(s) else COMBINE_DATA
    traffic(s)[(port * 2 + DOWN) * NUM_PURPOSES + purpose] += flits
    segments(s)[(port * 2 + DOWN) * NUM_PURPOSES + purpose] += 1
    s.transfers += 1
    log_row(s, LOG_DOWN, port, purpose, node, flits, now, end_ps)
    push(s, end_ps - serial_ps + delivery_ps(s, flits, serial_ps), EV_REACH, node, port)
    if is_result or purpose == EVICTION:
        unit = ports(s)[s.num_gpus + port]
        unit.slots_used -= s.combine_packets
        unit.slots_draining -= s.combine_packets
        if unit.stalled_node != NOTHING:
            port_wake(s, s.num_gpus + port, max(now, unit.free_ps))
    else:
        leave_input(s, node, end_ps)


@njit(cache=True)
def close_accumulator(s: Root, port: int, token: int, node: int) -> None:
    """Takes a token's sum out of the open list and sends it to the downlink as ``node``; its slots drain with it."""
    q = ports(s)[port]
    tok = tokens(s)[token]
    if tok.open_prev == NOTHING:
        q.open_head = tok.open_next
    else:
        tokens(s)[tok.open_prev].open_next = tok.open_next
    if tok.open_next == NOTHING:
        q.open_tail = tok.open_prev
    else:
        tokens(s)[tok.open_next].open_prev = tok.open_prev
    tok.open = 0
    q.slots_draining += s.combine_packets
    nodes(s)[node].pieces = tok.open_count
    nodes(s)[node].tail_ps = tok.sum_ps
    downlink = port - s.num_gpus
    port_append(s, downlink, RESPONSE, s.num_gpus, node)
    port_wake(s, downlink, max(s.now_ps, ports(s)[downlink].free_ps))


@njit(cache=True)
def open_accumulator(s: Root, port: int, token: int) -> bool:
    """Finds slots for a token's sum, evicting the oldest partial sums if it must; False if it has to wait."""
    q = ports(s)[port]
    need = s.combine_packets
    while q.open_head != NOTHING and q.slots_used - q.slots_draining + need > s.reduction_slots:
        oldest = q.open_head
        s.evictions += 1
        close_accumulator(s, port, oldest, s.num_pairs + tokens(s)[oldest].open_pair)
    # A sum larger than the whole buffer passes alone: its packets stream through.
    if q.slots_used > 0 and q.slots_used + need > s.reduction_slots:
        return False
    q.slots_used += need
    tok = tokens(s)[token]
    tok.open = 1
    tok.open_count = 0
    tok.open_prev = q.open_tail
    tok.open_next = NOTHING
    if q.open_tail == NOTHING:
        q.open_head = token
    else:
        tokens(s)[q.open_tail].open_next = token
    q.open_tail = token
    return True


@njit(cache=True)
def reduce_start(s: Root, port: int, node: int) -> None:
    """Adds a contribution to its token's sum; the last one sends the result down."""
    q = ports(s)[port]
    pair = node - s.num_pairs
    token = pairs(s)[pair].token
    tok = tokens(s)[token]
    if tok.open == 0 and not open_accumulator(s, port, token):
        q.stalled_node = node
        return
    q.stalled_node = NOTHING
    now = s.now_ps
    flits = down_flits(s, node)
    end_ps = max(now + wire_ps(s, flits) * 1_000_000 // s.reduction_ppm, nodes(s)[node].tail_ps)
    q.free_ps = end_ps
    log_row(s, LOG_REDUCE, port - s.num_gpus, COMBINE_DATA, node, flits, now, end_ps)
    leave_input(s, node, end_ps)
    if s.combine_primitive == PUSH_REDUCE:
        # The switch holds the contribution now, so it acknowledges the store itself.
        push(s, end_ps + s.hop_ps, EV_ACK, node, 0)
    tok.open_count += 1
    tok.open_pair = pair
    tok.sum_ps = end_ps + s.cycle_ps
    tok.contributions_left -= 1
    if tok.contributions_left == 0:
        close_accumulator(s, port, token, 2 * s.num_pairs + token)


@njit(cache=True)
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
    if port < s.num_gpus:
        downlink_start(s, port, node)
    else:
        reduce_start(s, port, node)
    if q.stalled_node == NOTHING and (turns(s)[port * 2].head != NOTHING or turns(s)[port * 2 + 1].head != NOTHING):
        port_wake(s, port, q.free_ps)


@njit(cache=True)
def port_enqueue(s: Root, port: int, cls: int, source: int, node: int) -> None:
    """Puts a segment into the virtual output queue of its input and lets the port take it if it is free."""
    port_append(s, port, cls, source, node)
    port_pump(s, port)


@njit(cache=True)
def expose(s: Root, node: int, gpu: int) -> None:
    """Offers a segment to every output it goes to: fan-out is split, each replica leaves when its output is free."""
    if node < s.num_pairs:
        port_enqueue(s, pairs(s)[node].gpu, node_class(s, node), gpu, node)
    elif node < 2 * s.num_pairs:
        home = pairs(s)[node - s.num_pairs].token // s.tokens_per_gpu
        port = s.num_gpus + home if sums_in_switch(s) else home
        nodes(s)[node].pieces = 1
        port_enqueue(s, port, node_class(s, node), gpu, node)
    else:
        token = node - 2 * s.num_pairs
        end = tokens(s)[token + 1].pair0
        for pair in range(tokens(s)[token].pair0, end):
            if is_target(s, pair):
                nodes(s)[pair].tail_ps = nodes(s)[node].tail_ps
                port_enqueue(s, pairs(s)[pair].gpu, REQUEST, gpu, pair)


@njit(cache=True)
def switch_arrive(s: Root, node: int, gpu: int) -> None:
    """Takes a segment into the switch: straight to its outputs, or behind the others of its input FIFO."""
    if s.queueing == INPUT_FIFO:
        lane = lanes(s)[gpu * 2 + node_class(s, node)]
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


@njit(cache=True)
def input_next(s: Root, gpu: int, cls: int) -> None:
    """Moves an input FIFO on: its head has left the switch."""
    lane = lanes(s)[gpu * 2 + cls]
    lane.fifo_head = fifo_next(s)[lane.fifo_head]
    if lane.fifo_head != NOTHING:
        expose(s, lane.fifo_head, gpu)
