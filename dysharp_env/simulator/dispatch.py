"""Dispatch: what an SM group issues for a token chunk, and how tokens arrive at their experts' GPUs."""

from __future__ import annotations

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.events import push
from dysharp_env.simulator.fabric import (
    ask_down,
    ask_up,
    charge_down,
    charge_up,
    is_partial,
    send_vector,
)
from dysharp_env.simulator.gemm import close_tile, end_first_kernel
from dysharp_env.simulator.groups import begin_trip, end_segment, list_sm, mark_dirty, part_of, translate, use_hbm
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
    ON_DUTY,
    PULL,
    UNICAST,
)
from dysharp_env.simulator.primitives import is_in_turn, is_pull, is_remote, is_target, stores_once
from dysharp_env.simulator.staffing import leave_if_idle, share_done
from dysharp_env.simulator.views import Root


@compiled
def take_chunk(s: Root, gpu: int, chunk: int) -> None:
    """Makes a chunk the one its GPU dispatches and takes it off the unsent list."""
    g = s.gpus[gpu]
    ch = s.chunks[chunk]
    g.chunk = chunk
    g.chunk_pos = ch.first
    if ch.prev == NOTHING:
        g.unsent_head = ch.next
    else:
        s.chunks[ch.prev].next = ch.next
    if ch.next != NOTHING:
        s.chunks[ch.next].prev = ch.prev


@compiled
def issue_local(s: Root, token: int) -> None:
    """Hands a token to the experts on its own GPU: a copy through memory, no link."""
    pair = s.tokens[token].pair0
    end = s.tokens[token + 1].pair0
    # The home GPU's own pairs come first.
    while pair < end and not is_remote(s, pair):
        if s.pairs[pair].num_experts > 0:
            push(s, s.now_ps + s.memory_ps, EV_ARRIVE, pair, 0)
        pair += 1


@compiled
def issue_dispatch(s: Root, gpu: int, sm: int, node: int) -> None:
    """Stores a token to one GPU (unicast) or to all its targets (multicast, broadcast), or asks for it (pull).

    ``node`` is the first segment of its vector.
    """
    s.gpus[gpu].dispatch_in_flight += 1
    begin_trip(s, sm, node, s.dispatch_segments)
    if s.dispatch_primitive == PULL:
        crossed_ps = ask_up(s, gpu, node, s.dispatch_ask_flits, DISPATCH_REQUEST)
        push(s, crossed_ps + 2 * s.hop_ps, EV_REQUEST, node, 0)
    else:
        send_vector(s, gpu, node)


@compiled
def issue_copies(s: Root, gpu: int, sm: int) -> None:
    """Issues what is left of an SM's token as far as its window allows; with nothing left it may take another."""
    m = s.sms[sm]
    token = m.token
    end = s.tokens[token + 1].pair0
    while m.pair < end:
        if is_target(s, m.pair) and is_in_turn(s, gpu, m.pair):
            if m.in_flight == s.dispatch_slots:
                return
            if stores_once(s):
                issue_dispatch(s, gpu, sm, s.store0 + token * s.dispatch_segments)
                break
            issue_dispatch(s, gpu, sm, m.pair * s.dispatch_segments)
        m.pair += 1
    m.token = NOTHING
    s.gpus[gpu].tokens_sent += 1
    share_done(s, gpu, s.gpus[gpu].tokens_sent - 1, s.gpus[gpu].tokens_sent, s.sends_per_gpu)
    part_of(s, gpu, s.gpus[gpu].part).sends_left -= 1
    if m.duty != ON_DUTY:
        leave_if_idle(s, DISPATCH, gpu, sm)
    elif m.in_flight < s.dispatch_slots:
        list_sm(s, DISPATCH, gpu, sm)


@compiled
def begin_token(s: Root, token: int) -> None:
    """Notes that a token's dispatch begins, if it has not elsewhere."""
    tok = s.tokens[token]
    if tok.dispatch_start == NO_TIME:
        tok.dispatch_start = s.now_ps
    if s.dispatch_first == NO_TIME:
        s.dispatch_first = s.now_ps


@compiled
def take_token(s: Root, gpu: int, token: int) -> None:
    """Gives a token to the first SM that may take one; its home GPU's own experts get it at once."""
    g = s.gpus[gpu]
    tok = s.tokens[token]
    sm = g.send_head
    g.send_head = s.sms[sm].next
    s.sms[sm].token = token
    s.sms[sm].pair = tok.pair0
    begin_token(s, token)
    if gpu == token // s.tokens_per_gpu and (s.by_peers == 0 or g.part == 0):
        issue_local(s, token)
    issue_copies(s, gpu, sm)


@compiled
def asked_for_token(s: Root, pair: int) -> None:
    """Reads a token that an expert GPU has asked its home GPU for."""
    home = s.pairs[pair].home
    first = pair * s.dispatch_segments
    ask_down(s, home, first, s.dispatch_ask_flits, DISPATCH_REQUEST)
    push(s, s.now_ps + s.memory_ps, EV_RESPOND, first, home)


@compiled
def arrive(s: Root, pair: int) -> None:
    """Makes a token visible to its experts on one GPU, filling their tiles."""
    gpu = s.pairs[pair].gpu
    g = s.gpus[gpu]
    count = s.pairs[pair].num_experts
    token = s.pairs[pair].token
    s.tokens[token].dispatch_end = s.now_ps
    s.dispatch_last = s.now_ps
    g.arrivals_left -= count
    part = s.pairs[pair].part
    s.phases[part].arrivals_left -= count
    part_of(s, gpu, part).arrivals_left -= count
    use_hbm(s, gpu, count * s.token_in_bytes)
    # A row whose only missing result of a token (pull) or of a pair (push) is its own would finish that.
    done = s.tokens[token].experts_done if is_pull(s) else s.pairs[pair].experts_done
    needed = s.top_k if is_pull(s) else count
    first = s.pairs[pair].slot0
    for slot in range(first, first + count):
        x = s.experts[s.slot_expert[slot]]
        s.arrived_pair[x.slot0 + x.arrived] = pair
        if x.open_count == 0:
            tile = x.tile0 + x.tiles_open
            s.tiles[tile].first = x.slot0 + x.arrived
            s.tiles[tile].expert = s.slot_expert[slot]
            x.tiles_open += 1
            g.tiles_live += 1
        x.arrived += 1
        x.open_count += 1
        s.slot_tile[slot] = x.tile0 + x.tiles_open - 1
        if done == needed - 1:
            s.tiles[x.tile0 + x.tiles_open - 1].finishes += 1
        s.shown[s.slot_expert[slot]].fill = x.open_count / s.tile_tokens
        s.shown[s.slot_expert[slot]].progress = x.arrived / x.total
        if x.open_count == s.tile_tokens or x.arrived == x.total:
            close_tile(s, s.slot_expert[slot])
    if s.allow_partial:
        mark_dirty(s, GEMM, gpu)
    if s.gate1 == GATE_PHASE and s.phases[part].arrivals_left == 0:
        push(s, s.now_ps + s.pay1_ps, EV_GATE, 1 + 4 * part, NOTHING)
    if s.gate1 == GATE_GPU and part_of(s, gpu, part).arrivals_left == 0:
        push(s, s.now_ps + s.pay1_ps, EV_GATE, 1 + 4 * part, gpu)
    if s.exclusive and g.arrivals_left == 0:
        mark_dirty(s, COMBINE, gpu)


@compiled
def reach_dispatch(s: Root, node: int) -> None:
    """Stores a segment in an expert GPU's memory and acknowledges it; the token has come with the last one.

    The first segment to come has the token's place translated, which the others wait for.
    """
    pair = s.nodes[node].owner
    p = s.pairs[pair]
    is_first = p.segments_left == s.dispatch_segments
    p.segments_left -= 1
    if s.dispatch_primitive == PULL:
        # The reader has what it asked for; nobody is told.
        if p.segments_left == 0:
            arrive(s, pair)
        end_dispatch_segment(s, p.gpu, pair * s.dispatch_segments)
        return
    charge_up(s, p.gpu, s.nodes[node].plane, s.dispatch_segment_packets * s.ack_flits, DISPATCH_ACK)
    if s.dispatch_primitive == UNICAST:
        push(s, s.now_ps + 2 * s.hop_ps, EV_ACK, node, 0)
    else:
        # The switch merges the acknowledgements of a multicast store: the last one counts.
        store = p.token * s.dispatch_segments + node - pair * s.dispatch_segments
        s.stores[store].acks_left -= 1
        if s.stores[store].acks_left == 0:
            push(s, s.now_ps + 2 * s.hop_ps, EV_ACK, s.store0 + store, 0)
    if is_first and s.dispatch_primitive == MULTICAST:
        p.translated_ps = s.now_ps + translate(s, pair)
    if p.segments_left > 0:
        return
    if p.num_experts == 0:
        use_hbm(s, p.gpu, s.token_in_bytes)
    elif s.dispatch_primitive == MULTICAST:
        push(s, max(s.now_ps, p.translated_ps), EV_ARRIVE, pair, 0)
    else:
        arrive(s, pair)


@compiled
def end_part(s: Root, gpu: int) -> bool:
    """Gives the next part its turn if all of the present one is stored; False if not."""
    g = s.gpus[gpu]
    if g.part == s.num_parts or part_of(s, gpu, g.part).sends_left > 0 or g.dispatch_in_flight > 0:
        return False
    g.part += 1
    end_first_kernel(s, gpu, g.part - 1)
    if s.exclusive and g.part == s.num_parts:
        mark_dirty(s, COMBINE, gpu)
    return True


@compiled
def end_dispatch_segment(s: Root, gpu: int, first: int) -> None:
    """Counts a segment that is stored or read; the last one ends the round trip of its vector."""
    if end_segment(s, first, s.dispatch_hold):
        s.gpus[gpu].dispatch_in_flight -= 1
        # With the last vector a part may be over.
        mark_dirty(s, DISPATCH, gpu)


@compiled
def acknowledged(s: Root, node: int) -> None:
    """Counts a segment that is stored, as its sender learns it."""
    owner = s.nodes[node].owner
    plane = s.nodes[node].plane
    if is_partial(s, node):
        gpu = s.pairs[owner].gpu
        charge_down(s, gpu, plane, s.combine_segment_packets * s.ack_flits, COMBINE_ACK)
        if end_segment(s, s.partial0 + owner * s.combine_segments, s.combine_hold):
            s.gpus[gpu].combine_in_flight -= 1
        return
    is_copy = node < s.partial0
    token = s.pairs[owner].token if is_copy else owner
    gpu = token // s.tokens_per_gpu
    charge_down(s, gpu, plane, s.dispatch_segment_packets * s.ack_flits, DISPATCH_ACK)
    end_dispatch_segment(s, gpu, (0 if is_copy else s.store0) + owner * s.dispatch_segments)
