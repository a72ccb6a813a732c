"""Dispatch by chunk: a chunk's tokens for one destination, or for all that a store names, go and arrive together."""

from __future__ import annotations

from dysharp_env.simulator.bundles import begin_bundle, dispatch_window, fits, free_early, gather, passing_bundle, seal
from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.dispatch import arrive, begin_token
from dysharp_env.simulator.events import push
from dysharp_env.simulator.fabric import ask_up, charge_down, charge_up, packets_of_segment, send_vector, wire_ps
from dysharp_env.simulator.groups import mark_dirty, part_of, translate, use_hbm
from dysharp_env.simulator.layout import (
    DISPATCH,
    DISPATCH_ACK,
    DISPATCH_REQUEST,
    EV_ACK,
    EV_ARRIVE,
    EV_REQUEST,
    MULTICAST,
    NOTHING,
    PULL,
    UNICAST,
)
from dysharp_env.simulator.primitives import is_in_turn, is_remote, is_target, stores_once
from dysharp_env.simulator.rows import prefetch
from dysharp_env.simulator.staffing import share_done
from dysharp_env.simulator.views import (
    Root,
    bundles,
    chunks,
    copy_next,
    gpus,
    nodes,
    pairs,
    slot_expert,
    slot_tile,
    stores,
    token_order,
    tokens,
    trip_of,
)


@compiled
def open_chunk(s: Root, gpu: int) -> None:
    """Begins the chunk that a GPU has taken, by chunk: its own experts get theirs, copies gather by destination."""
    g = gpus(s)[gpu]
    ch = chunks(s)[g.chunk]
    links = copy_next(s)
    at_home = passing_bundle(s, gpu)
    for position in range(ch.first, ch.last):
        token = token_order(s)[position]
        begin_token(s, token)
        is_local = gpu == token // s.tokens_per_gpu and (s.by_peers == 0 or g.part == 0)
        for pair in range(tokens(s)[token].pair0, tokens(s)[token + 1].pair0):
            if not is_remote(s, pair):
                if is_local and pairs(s)[pair].num_experts > 0:
                    gather(s, at_home, pair, links)
            elif not stores_once(s) and is_target(s, pair) and is_in_turn(s, gpu, pair):
                gather(s, gpu * s.num_gpus + pairs(s)[pair].gpu, pair, links)
    if bundles(s)[at_home].head != NOTHING:
        push(s, s.now_ps + s.memory_ps, EV_ARRIVE, bundles(s)[at_home].head, 0)
        bundles(s)[at_home].head = NOTHING
    g.chunk_pos = ch.first if stores_once(s) else 0


@compiled
def is_stored(s: Root, token: int) -> bool:
    """Returns whether a token leaves its home GPU by a store."""
    for pair in range(tokens(s)[token].pair0, tokens(s)[token + 1].pair0):
        if is_target(s, pair):
            return True
    return False


@compiled
def issue_store(s: Root, gpu: int) -> bool:
    """Stores what is left of a GPU's chunk to all its targets, cut to a window, if the window has room for it."""
    g = gpus(s)[gpu]
    window = dispatch_window(s, gpu)
    last = chunks(s)[g.chunk].last
    vectors = 0
    position = g.chunk_pos
    while position < last and vectors < window:
        vectors += is_stored(s, token_order(s)[position])
        position += 1
    if vectors == 0:
        g.chunk_pos = last
        return True
    if not fits(vectors, window, g.send_held):
        return False
    carrier = NOTHING
    end = NOTHING
    for place in range(g.chunk_pos, position):
        token = token_order(s)[place]
        if not is_stored(s, token):
            continue
        stores(s)[token].next = NOTHING
        if carrier == NOTHING:
            carrier = token
        else:
            stores(s)[end].next = token
            nodes(s)[s.store0 + carrier].flits += nodes(s)[s.store0 + token].flits
            nodes(s)[s.store0 + carrier].payload_flits += nodes(s)[s.store0 + token].payload_flits
        stores(s)[token].carrier = carrier
        end = token
    g.chunk_pos = position
    begin_bundle(s, gpu, False, s.store0 + carrier, vectors)
    send_vector(s, gpu, s.store0 + carrier)
    return True


@compiled
def issue_copy(s: Root, gpu: int, bundle: int) -> bool:
    """Stores a bundle to one GPU, or asks for it, if the window has room for it."""
    window = dispatch_window(s, gpu)
    vectors = min(bundles(s)[bundle].count, window)
    if not fits(vectors, window, gpus(s)[gpu].send_held):
        return False
    node = seal(s, bundle, vectors, 0, copy_next(s))
    begin_bundle(s, gpu, False, node, vectors)
    if s.dispatch_primitive == PULL:
        crossed_ps = ask_up(s, gpu, node, vectors * s.dispatch_ask_flits, DISPATCH_REQUEST)
        push(s, crossed_ps + 2 * s.hop_ps, EV_REQUEST, node, 0)
    else:
        send_vector(s, gpu, node)
    return True


@compiled
def issue_chunk(s: Root, gpu: int) -> bool:
    """Issues what is left of a GPU's chunk, by chunk, as far as its window allows; False if something stays."""
    g = gpus(s)[gpu]
    ch = chunks(s)[g.chunk]
    if stores_once(s):
        while g.chunk_pos < ch.last:
            if not issue_store(s, gpu):
                return False
    else:
        while g.chunk_pos < s.num_gpus:
            bundle = gpu * s.num_gpus + (gpu + g.chunk_pos) % s.num_gpus
            while bundles(s)[bundle].head != NOTHING:
                if not issue_copy(s, gpu, bundle):
                    return False
            g.chunk_pos += 1
    g.tokens_sent += ch.last - ch.first
    share_done(s, gpu, g.tokens_sent - (ch.last - ch.first), g.tokens_sent, s.sends_per_gpu)
    part_of(s, gpu, g.part).sends_left -= ch.last - ch.first
    g.chunk = NOTHING
    return True


@compiled
def arrive_together(s: Root, pair: int) -> None:
    """Makes the tokens of a bundle visible to their experts on one GPU."""
    while pair != NOTHING:
        following = copy_next(s)[pair]
        if following != NOTHING:
            look_ahead(s, following)
        if pairs(s)[pair].num_experts > 0:
            arrive(s, pair)
        else:
            use_hbm(s, pairs(s)[pair].gpu, s.token_in_bytes)
        pair = following


@compiled
def look_ahead(s: Root, pair: int) -> None:
    """Asks memory for the records that the arrival of a pair will touch: they lie anywhere."""
    q = pairs(s)[pair]
    prefetch(tokens(s), q.token)
    prefetch(slot_tile(s), q.slot0)
    prefetch(slot_expert(s), q.slot0)


@compiled
def end_bundle(s: Root, gpu: int, node: int) -> None:
    """Counts a bundle that is stored or read; with it a part may be over."""
    gpus(s)[gpu].dispatch_in_flight -= trip_of(s, node).segments_out
    trip_of(s, node).segments_out = 0
    mark_dirty(s, DISPATCH, gpu)


@compiled
def reach_bundle(s: Root, node: int) -> None:
    """Stores a bundle in an expert GPU's memory and acknowledges it."""
    p = pairs(s)[node]
    if s.dispatch_primitive == PULL:
        # The reader has what it asked for; nobody is told.
        arrive_together(s, node)
        end_bundle(s, p.gpu, node)
        return
    charge_up(s, p.gpu, nodes(s)[node].plane, packets_of_segment(s, node) * s.ack_flits, DISPATCH_ACK)
    acked_ps = s.now_ps + 2 * s.hop_ps
    whole = node
    if s.dispatch_primitive != UNICAST:
        # The switch merges the acknowledgements of a multicast store: the last one counts.
        store = stores(s)[p.token].carrier
        whole = s.store0 + store
        stores(s)[store].acks_left -= 1
        if stores(s)[store].acks_left > 0:
            whole = NOTHING
    if whole != NOTHING:
        push(s, acked_ps, EV_ACK, whole, 0)
        free_early(s, p.home, False, whole, acked_ps, wire_ps(s, nodes(s)[whole].flits))
    if s.dispatch_primitive == MULTICAST:
        delay_ps = 0
        pair = node
        while pair != NOTHING:
            following = copy_next(s)[pair]
            if following != NOTHING:
                prefetch(pairs(s), following)
            delay_ps = max(delay_ps, translate(s, pair))
            # They arrive soon.
            look_ahead(s, pair)
            pair = following
        push(s, s.now_ps + delay_ps, EV_ARRIVE, node, 0)
    else:
        arrive_together(s, node)


@compiled
def dispatch_acknowledged(s: Root, node: int) -> None:
    """Counts a dispatched bundle that is stored, as its sender learns it."""
    owner = nodes(s)[node].owner
    gpu = (pairs(s)[owner].token if node < s.partial0 else owner) // s.tokens_per_gpu
    charge_down(s, gpu, nodes(s)[node].plane, packets_of_segment(s, node) * s.ack_flits, DISPATCH_ACK)
    end_bundle(s, gpu, node)
