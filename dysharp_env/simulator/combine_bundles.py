"""Combine by chunk: what a decision takes of a unit is asked for, or pushed, as one bundle for each GPU at the far end.

Sums that are pushed into the switch go one by one: their contributions have no common order.
"""

from __future__ import annotations

from dysharp_env.simulator.bundles import (
    SUM_SHARE,
    begin_bundle,
    combine_window,
    fits,
    free_early,
    gather,
    passing_bundle,
    read_bundle,
    seal,
)
from dysharp_env.simulator.combine import complete, deliver
from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.events import push
from dysharp_env.simulator.fabric import (
    ask_down,
    ask_up,
    charge_down,
    charge_up,
    is_partial,
    send_vector,
    vectors_of,
    wire_ps,
)
from dysharp_env.simulator.groups import translate, use_hbm
from dysharp_env.simulator.layout import (
    COMBINE_ACK,
    COMBINE_REQUEST,
    EV_ACK,
    EV_REQUEST,
    EV_RESPOND,
    NO_TIME,
    NOTHING,
    PULL_REDUCE,
    PULL_UNICAST,
    PUSH_REDUCE,
    PUSH_UNICAST,
)
from dysharp_env.simulator.primitives import is_pull, is_summed, sums_in_switch
from dysharp_env.simulator.views import (
    Root,
    ask_flits,
    bundles,
    gpus,
    item_next,
    nodes,
    pairs,
    partial_next,
    sums,
    tokens,
    trip_of,
)


@compiled
def open_unit(s: Root, gpu: int) -> None:
    """Begins what a combine group has taken: tokens with nothing to come are done; plain reads gather by source."""
    g = gpus(s)[gpu]
    item = g.issue_head
    last = NOTHING
    if s.combine_first == NO_TIME:
        s.combine_first = s.now_ps
    while item != NOTHING:
        following = item_next(s)[item]
        token = item if is_pull(s) else pairs(s)[item].token
        if tokens(s)[token].combine_start == NO_TIME:
            tokens(s)[token].combine_start = s.now_ps
        if is_pull(s) and sums(s)[token].pieces_left == 0:
            complete(s, token)
            if last == NOTHING:
                g.issue_head = following
            else:
                item_next(s)[last] = following
        else:
            last = item
            if s.combine_primitive == PULL_UNICAST:
                gather_reads(s, gpu, token)
        item = following
    if s.combine_primitive == PULL_UNICAST:
        g.issue_head = NOTHING
        g.take_offset = 0


@compiled
def gather_reads(s: Root, gpu: int, token: int) -> None:
    """Adds a token's partial sums to what its home GPU reads from each other GPU."""
    for pair in range(tokens(s)[token].pair0, tokens(s)[token + 1].pair0):
        if is_summed(s, pair):
            gather(s, read_bundle(s, gpu, pairs(s)[pair].gpu), pair, partial_next(s))


@compiled
def issue_reads(s: Root, gpu: int) -> bool:
    """Asks for what is left to read, source by source, as far as the window allows; False if something stays."""
    g = gpus(s)[gpu]
    window = combine_window(s, gpu)
    while g.take_offset < s.num_gpus:
        bundle = read_bundle(s, gpu, (gpu + g.take_offset) % s.num_gpus)
        while bundles(s)[bundle].head != NOTHING:
            vectors = min(bundles(s)[bundle].count, window)
            if not fits(vectors, window, g.take_held):
                return False
            node = s.partial0 + seal(s, bundle, vectors, s.partial0, partial_next(s))
            begin_bundle(s, gpu, True, node, vectors)
            crossed_ps = ask_up(s, gpu, node, vectors * ask_flits(s)[0], COMBINE_REQUEST)
            nodes(s)[node].next = NOTHING
            push(s, crossed_ps + 2 * s.hop_ps, EV_REQUEST, node, 0)
        g.take_offset += 1
    return True


@compiled
def issue_items(s: Root, gpu: int) -> bool:
    """Issues what is left of a unit, cut to a window; False if the window has no room for it."""
    g = gpus(s)[gpu]
    window = combine_window(s, gpu)
    most = window
    if s.combine_primitive == PUSH_REDUCE:
        most = 1
    elif is_pull(s):
        most = max(1, window // SUM_SHARE)
    first = g.issue_head
    vectors = 1
    last = first
    while vectors < most and item_next(s)[last] != NOTHING:
        last = item_next(s)[last]
        vectors += 1
    if not fits(vectors, window, g.take_held):
        return False
    g.issue_head = item_next(s)[last]
    item_next(s)[last] = NOTHING
    if is_pull(s):
        ask_for_sums(s, gpu, first, vectors)
    else:
        push_partials(s, gpu, first, vectors)
    return True


@compiled
def push_partials(s: Root, gpu: int, item: int, vectors: int) -> None:
    """Pushes listed partial sums, which are all for one home GPU."""
    bundle = passing_bundle(s, gpu)
    num_bytes = 0
    while item != NOTHING:
        gather(s, bundle, item, partial_next(s))
        num_bytes += pairs(s)[item].num_experts * s.token_out_bytes
        item = item_next(s)[item]
    node = s.partial0 + seal(s, bundle, vectors, s.partial0, partial_next(s))
    begin_bundle(s, gpu, True, node, vectors)
    use_hbm(s, gpu, num_bytes)
    send_vector(s, gpu, node)


@compiled
def ask_for_sums(s: Root, gpu: int, carrier: int, vectors: int) -> None:
    """Asks the experts' GPUs for the sum of the listed tokens, each for its partial sums of those it has any of."""
    x = sums(s)[carrier]
    x.inputs = 0
    flits = 0
    token = carrier
    while token != NOTHING:
        sums(s)[token].carrier = carrier
        flits += ask_flits(s)[tokens(s)[token].remote_targets if s.combine_primitive == PULL_REDUCE else 0]
        for pair in range(tokens(s)[token].pair0, tokens(s)[token + 1].pair0):
            if is_summed(s, pair):
                gather(s, passing_bundle(s, pairs(s)[pair].gpu), pair, partial_next(s))
                x.inputs += 1
        token = item_next(s)[token]
    node = s.sum0 + carrier
    nodes(s)[node].flits *= vectors
    nodes(s)[node].payload_flits *= vectors
    begin_bundle(s, gpu, True, node, vectors)
    crossed_ps = ask_up(s, gpu, node, flits, COMBINE_REQUEST)
    x.pieces_left = 0
    head = NOTHING
    tail = NOTHING
    for offset in range(s.num_gpus):
        bundle = passing_bundle(s, (gpu + offset) % s.num_gpus)
        if bundles(s)[bundle].head != NOTHING:
            x.pieces_left += 1
            partial = s.partial0 + seal(s, bundle, bundles(s)[bundle].count, s.partial0, partial_next(s))
            if head == NOTHING:
                head = partial
            else:
                nodes(s)[tail].next = partial
            tail = partial
    nodes(s)[tail].next = NOTHING
    push(s, crossed_ps + 2 * s.hop_ps, EV_REQUEST, head, 0)
    x.contributions_left = x.pieces_left
    x.heads_left = x.pieces_left
    x.begun_ps = NO_TIME


@compiled
def requested_together(s: Root, node: int) -> None:
    """Reads the bundles of partial sums that one request has asked several GPUs for; they are listed by ``next``.

    Those whose translation misses are read later, so the bundles go in two groups.
    """
    found = NOTHING
    missed = NOTHING
    found_tail = NOTHING
    missed_tail = NOTHING
    while node != NOTHING:
        following = nodes(s)[node].next
        nodes(s)[node].next = NOTHING
        if read_partials(s, node):
            if found == NOTHING:
                found = node
            else:
                nodes(s)[found_tail].next = node
            found_tail = node
        else:
            if missed == NOTHING:
                missed = node
            else:
                nodes(s)[missed_tail].next = node
            missed_tail = node
        node = following
    if found != NOTHING:
        push(s, s.now_ps + s.memory_ps, EV_RESPOND, found, 0)
    if missed != NOTHING:
        push(s, s.now_ps + 2 * s.memory_ps, EV_RESPOND, missed, 0)


@compiled
def read_partials(s: Root, node: int) -> bool:
    """Reads a bundle of partial sums that its home GPU has asked for; False if a translation misses."""
    pair = nodes(s)[node].owner
    gpu = pairs(s)[pair].gpu
    delay_ps = 0
    flits = 0
    num_bytes = 0
    while pair != NOTHING:
        targets = 0
        if s.combine_primitive == PULL_REDUCE:
            targets = pairs(s)[pair].num_experts
            delay_ps = max(delay_ps, translate(s, pair))
        flits += ask_flits(s)[targets]
        # A static reduce-scatter reads one vector from every GPU, whether it holds a result or not.
        num_bytes += max(pairs(s)[pair].num_experts, 1) * s.token_out_bytes
        pair = partial_next(s)[pair]
    ask_down(s, gpu, node, flits, COMBINE_REQUEST)
    use_hbm(s, gpu, num_bytes)
    return delay_ps == 0


@compiled
def respond_together(s: Root, node: int) -> None:
    """Sends bundles of partial sums that have been read, each from its GPU."""
    while node != NOTHING:
        following = nodes(s)[node].next
        send_vector(s, pairs(s)[nodes(s)[node].owner].gpu, node)
        node = following


@compiled
def reach_home(s: Root, node: int) -> None:
    """Takes a bundle of partial or reduced sums in at its home GPU."""
    owner = nodes(s)[node].owner
    token = pairs(s)[owner].token if is_partial(s, node) else owner
    home = token // s.tokens_per_gpu
    if not is_pull(s):
        packets = vectors_of(s, node) * s.combine_segment_packets
        charge_up(s, home, nodes(s)[node].plane, packets * s.ack_flits, COMBINE_ACK)
    if s.combine_primitive == PUSH_UNICAST:
        acked_ps = s.now_ps + 2 * s.hop_ps
        push(s, acked_ps, EV_ACK, node, 0)
        free_early(s, pairs(s)[owner].gpu, True, node, acked_ps, wire_ps(s, nodes(s)[node].flits))
    elif s.combine_primitive == PULL_UNICAST:
        end_read(s, home, node)
    if s.combine_primitive == PUSH_REDUCE:
        deliver(s, token, 0, nodes(s)[node].pieces)
    elif sums_in_switch(s):
        deliver_sums(s, sums(s)[token].carrier, nodes(s)[node].pieces)
    else:
        pair = owner
        while pair != NOTHING:
            deliver(s, pairs(s)[pair].token, 0, 1)
            pair = partial_next(s)[pair]


@compiled
def deliver_sums(s: Root, carrier: int, pieces: int) -> None:
    """Adds what has come to the sums of a bundle; with the last of its GPUs all its tokens are combined."""
    sums(s)[carrier].pieces_left -= pieces
    if sums(s)[carrier].pieces_left > 0:
        return
    end_read(s, carrier // s.tokens_per_gpu, s.sum0 + carrier)
    token = carrier
    while token != NOTHING:
        complete(s, token)
        token = item_next(s)[token]


@compiled
def end_read(s: Root, gpu: int, node: int) -> None:
    """Counts a bundle that a combine group has sent or asked for and that has come."""
    gpus(s)[gpu].combine_in_flight -= trip_of(s, node).segments_out
    trip_of(s, node).segments_out = 0


@compiled
def partials_acknowledged(s: Root, node: int) -> None:
    """Counts pushed partial sums that are stored, or in the switch."""
    gpu = pairs(s)[nodes(s)[node].owner].gpu
    packets = trip_of(s, node).segments_out * s.combine_segment_packets
    charge_down(s, gpu, nodes(s)[node].plane, packets * s.ack_flits, COMBINE_ACK)
    end_read(s, gpu, node)
