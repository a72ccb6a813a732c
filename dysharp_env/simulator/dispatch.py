"""Dispatch: what an SM group issues for a token chunk, and how tokens arrive at their experts' GPUs."""

from __future__ import annotations

from numba import njit

from dysharp_env.simulator.events import push
from dysharp_env.simulator.fabric import charge_down, charge_up, uplink_enqueue
from dysharp_env.simulator.gemm import close_tile, end_first_kernel
from dysharp_env.simulator.groups import mark_dirty, part_of, translate, use_hbm
from dysharp_env.simulator.layout import (
    COMBINE,
    COMBINE_ACK,
    DISPATCH,
    DISPATCH_ACK,
    DISPATCH_REQUEST,
    EV_ACK,
    EV_ARRIVE,
    EV_GATE,
    EV_REQUEST,
    EV_RESPOND,
    GATE_GPU,
    GATE_PHASE,
    GEMM,
    MULTICAST,
    NO_TIME,
    NOTHING,
    PULL,
    UNICAST,
)
from dysharp_env.simulator.primitives import is_in_turn, is_remote, is_target, stores_once
from dysharp_env.simulator.views import (
    Root,
    arrived_pair,
    chunks,
    experts,
    gpus,
    pairs,
    phases,
    slot_expert,
    tiles,
    tokens,
)


@njit(cache=True)
def take_chunk(s: Root, gpu: int, chunk: int) -> None:
    """Makes a chunk the one its GPU dispatches and takes it off the unsent list."""
    g = gpus(s)[gpu]
    ch = chunks(s)[chunk]
    g.chunk = chunk
    g.chunk_pos = ch.first
    g.pair_pos = NOTHING
    if ch.prev == NOTHING:
        g.unsent_head = ch.next
    else:
        chunks(s)[ch.prev].next = ch.next
    if ch.next != NOTHING:
        chunks(s)[ch.next].prev = ch.prev


@njit(cache=True)
def has_room(s: Root, gpu: int) -> bool:
    """Returns whether dispatch may put another vector in flight; one that is larger than the limit goes alone."""
    g = gpus(s)[gpu]
    return g.dispatch_in_flight == 0 or g.dispatch_in_flight + s.dispatch_packets <= s.dispatch_window


@njit(cache=True)
def issue_local(s: Root, token: int) -> None:
    """Hands a token to the experts on its own GPU: a copy through memory, no link."""
    pair = tokens(s)[token].pair0
    end = tokens(s)[token + 1].pair0
    # The home GPU's own pairs come first.
    while pair < end and not is_remote(s, pair):
        if pairs(s)[pair].num_experts > 0:
            push(s, s.now_ps + s.memory_ps, EV_ARRIVE, pair, 0)
        pair += 1


@njit(cache=True)
def issue_dispatch(s: Root, gpu: int, node: int) -> None:
    """Stores a token to one GPU (unicast) or to all its targets (multicast, broadcast), or asks for it (pull)."""
    g = gpus(s)[gpu]
    g.dispatch_in_flight += s.dispatch_packets
    if s.dispatch_primitive == PULL:
        charge_up(s, gpu, s.dispatch_ask_flits, DISPATCH_REQUEST)
        push(s, s.now_ps + 2 * s.hop_ps, EV_REQUEST, node, 0)
    else:
        uplink_enqueue(s, gpu, node)


@njit(cache=True)
def begin_token(s: Root, gpu: int, token: int) -> None:
    """Notes that a token is being dispatched, and hands it to its home GPU's own experts if that is who dispatches."""
    g = gpus(s)[gpu]
    tok = tokens(s)[token]
    g.pair_pos = tok.pair0
    if tok.dispatch_start == NO_TIME:
        tok.dispatch_start = s.now_ps
    if s.dispatch_first == NO_TIME:
        s.dispatch_first = s.now_ps
    if gpu == token // s.tokens_per_gpu and (s.by_peers == 0 or g.part == 0):
        issue_local(s, token)


@njit(cache=True)
def issue_token(s: Root, gpu: int, token: int) -> bool:
    """Issues a token's copies as far as packets in flight allow; False if some are left."""
    g = gpus(s)[gpu]
    tok = tokens(s)[token]
    if g.pair_pos == NOTHING:
        if stores_once(s):
            if tok.acks_left > 0 and not has_room(s, gpu):
                return False
            begin_token(s, gpu, token)
            if tok.acks_left > 0:
                issue_dispatch(s, gpu, 2 * s.num_pairs + token)
            return True
        begin_token(s, gpu, token)
    end = tokens(s)[token + 1].pair0
    while g.pair_pos < end:
        if is_target(s, g.pair_pos) and is_in_turn(s, gpu, g.pair_pos):
            if not has_room(s, gpu):
                return False
            issue_dispatch(s, gpu, g.pair_pos)
        g.pair_pos += 1
    return True


@njit(cache=True)
def asked_for_token(s: Root, pair: int) -> None:
    """Reads a token that an expert GPU has asked its home GPU for."""
    home = pairs(s)[pair].token // s.tokens_per_gpu
    charge_down(s, home, s.dispatch_ask_flits, DISPATCH_REQUEST)
    push(s, s.now_ps + s.memory_ps, EV_RESPOND, pair, home)


@njit(cache=True)
def arrive(s: Root, pair: int) -> None:
    """Makes a token visible to its experts on one GPU, filling their tiles."""
    gpu = pairs(s)[pair].gpu
    g = gpus(s)[gpu]
    count = pairs(s)[pair].num_experts
    token = pairs(s)[pair].token
    tokens(s)[token].dispatch_end = s.now_ps
    s.dispatch_last = s.now_ps
    g.arrivals_left -= count
    part = pairs(s)[pair].part
    phases(s)[part].arrivals_left -= count
    part_of(s, gpu, part).arrivals_left -= count
    use_hbm(s, gpu, count * s.token_in_bytes)
    first = pairs(s)[pair].slot0
    for slot in range(first, first + count):
        x = experts(s)[slot_expert(s)[slot]]
        arrived_pair(s)[x.slot0 + x.arrived] = pair
        if x.open_count == 0:
            tile = x.tile0 + x.tiles_open
            tiles(s)[tile].first = x.slot0 + x.arrived
            tiles(s)[tile].expert = slot_expert(s)[slot]
            x.tiles_open += 1
            g.tiles_live += 1
        x.arrived += 1
        x.open_count += 1
        if x.open_count == s.tile_tokens or x.arrived == x.total:
            close_tile(s, slot_expert(s)[slot])
    if s.allow_partial:
        mark_dirty(s, GEMM, gpu)
    if s.gate1 == GATE_PHASE and phases(s)[part].arrivals_left == 0:
        push(s, s.now_ps + s.pay1_ps, EV_GATE, 1 + 4 * part, NOTHING)
    if s.gate1 == GATE_GPU and part_of(s, gpu, part).arrivals_left == 0:
        push(s, s.now_ps + s.pay1_ps, EV_GATE, 1 + 4 * part, gpu)
    if s.exclusive and g.arrivals_left == 0:
        mark_dirty(s, COMBINE, gpu)


@njit(cache=True)
def reach_dispatch(s: Root, pair: int) -> None:
    """Stores a token's vector in an expert GPU's memory, acknowledges it, and translates its place."""
    token = pairs(s)[pair].token
    gpu = pairs(s)[pair].gpu
    if s.dispatch_primitive == PULL:
        # The reader has what it asked for; nobody is told.
        arrive(s, pair)
        take_packets_back(s, gpu)
        return
    charge_up(s, gpu, s.dispatch_ack_flits, DISPATCH_ACK)
    if s.dispatch_primitive == UNICAST:
        push(s, s.now_ps + 2 * s.hop_ps, EV_ACK, pair, 0)
    else:
        # The switch merges the acknowledgements of a multicast store: the last one counts.
        tokens(s)[token].acks_left -= 1
        if tokens(s)[token].acks_left == 0:
            push(s, s.now_ps + 2 * s.hop_ps, EV_ACK, 2 * s.num_pairs + token, 0)
    if pairs(s)[pair].num_experts == 0:
        use_hbm(s, gpu, s.token_in_bytes)
    elif s.dispatch_primitive == MULTICAST:
        push(s, s.now_ps + translate(s, pair), EV_ARRIVE, pair, 0)
    else:
        arrive(s, pair)


@njit(cache=True)
def end_part(s: Root, gpu: int) -> bool:
    """Gives the next part its turn if all of the present one is stored; False if not."""
    g = gpus(s)[gpu]
    if g.part == s.num_parts or part_of(s, gpu, g.part).sends_left > 0 or g.dispatch_in_flight > 0:
        return False
    g.part += 1
    end_first_kernel(s, gpu, g.part - 1)
    if s.exclusive and g.part == s.num_parts:
        mark_dirty(s, COMBINE, gpu)
    return True


@njit(cache=True)
def take_packets_back(s: Root, gpu: int) -> None:
    """Gives a dispatch group back the packets of one vector."""
    gpus(s)[gpu].dispatch_in_flight -= s.dispatch_packets
    mark_dirty(s, DISPATCH, gpu)


@njit(cache=True)
def acknowledged(s: Root, node: int) -> None:
    """Gives a communication group back the packets of a segment that is stored."""
    if s.num_pairs <= node < 2 * s.num_pairs:
        gpu = pairs(s)[node - s.num_pairs].gpu
        charge_down(s, gpu, s.combine_ack_flits, COMBINE_ACK)
        gpus(s)[gpu].combine_in_flight -= s.combine_packets
        mark_dirty(s, COMBINE, gpu)
        return
    token = pairs(s)[node].token if node < s.num_pairs else node - 2 * s.num_pairs
    gpu = token // s.tokens_per_gpu
    charge_down(s, gpu, s.dispatch_ack_flits, DISPATCH_ACK)
    take_packets_back(s, gpu)
