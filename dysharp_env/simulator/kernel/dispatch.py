"""Dispatch: what an SM group issues for a token chunk, and how tokens arrive at their experts' GPUs."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import take
from dysharp_env.simulator.kernel.gates import count_towards, part_of
from dysharp_env.simulator.kernel.gemm import close_tile
from dysharp_env.simulator.kernel.groups import begin_trip, end_segment, list_sm, mark
from dysharp_env.simulator.kernel.links import ask_down, ask_up, charge_down, charge_up, send_vector
from dysharp_env.simulator.kernel.memory import translate, use_hbm
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.pairs import is_in_turn, is_remote, is_target
from dysharp_env.simulator.kernel.staffing import leave_if_idle, share_done
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import GEMM1, NO_TIME, NOTHING
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, GEMM


@compiled
def next_token(s: Root, gpu: int) -> int:
    """Returns the token of a GPU's chunk whose turn it is; the chunk is over with the last one."""
    g = s.gpus[gpu]
    token = s.order[g.chunk_pos]
    g.chunk_pos += 1
    if g.chunk_pos == s.chunks[g.chunk].last:
        g.chunk = NOTHING
    return token


@compiled
def issue_local(s: Root, token: int) -> None:
    """Hands a token to the experts on its own GPU: a copy through memory, no link."""
    pair = s.tokens[token].pair0
    end = s.tokens[token + 1].pair0
    # The home GPU's own pairs come first.
    while pair < end and not is_remote(s, pair):
        if s.pairs[pair].num_experts > 0:
            push(s, s.now_ps + s.memory_ps, codes.EV_ARRIVE, pair, 0, 0)
        pair += 1


@compiled
def issue_dispatch(s: Root, gpu: int, sm: int, node: int) -> None:
    """Stores a token to one GPU (unicast) or to all its targets (multicast, broadcast), or asks for it (pull).

    ``node`` is the first segment of its vector.
    """
    s.gpus[gpu].groups[DISPATCH].in_flight += 1
    begin_trip(s, sm, node, s.dispatch.segments)
    if s.dispatch.reads:
        crossed_ps = ask_up(s, gpu, node, s.dispatch_ask_flits, codes.DISPATCH_REQUEST)
        push(s, crossed_ps + 2 * s.hop_ps, codes.EV_REQUEST, node, 0, 0)
    else:
        send_vector(s, gpu, node)


@compiled
def issue_copies(s: Root, gpu: int, sm: int) -> None:
    """Issues what is left of an SM's token as far as its window allows; with nothing left it may take another."""
    g = s.gpus[gpu]
    m = s.sms[sm]
    token = m.token
    end = s.tokens[token + 1].pair0
    while m.pair < end:
        if is_target(s, m.pair) and is_in_turn(s, gpu, g.part, m.pair):
            if m.in_flight == s.dispatch.slots:
                return
            if s.dispatch.in_switch:
                issue_dispatch(s, gpu, sm, s.store0 + token * s.dispatch.segments)
                break
            issue_dispatch(s, gpu, sm, m.pair * s.dispatch.segments)
        m.pair += 1
    m.token = NOTHING
    g.tokens_sent += 1
    share_done(s, gpu, g.tokens_sent - 1, g.tokens_sent, s.sends_per_gpu)
    part_of(s, gpu, g.part).sends_left -= 1
    if m.duty != codes.ON_DUTY:
        leave_if_idle(s, DISPATCH, gpu, sm)
    elif m.in_flight < s.dispatch.slots:
        list_sm(s, DISPATCH, gpu, sm)


@compiled
def take_token(s: Root, gpu: int, token: int) -> None:
    """Gives a token to the first SM that may take one; its home GPU's own experts get it at once."""
    g = s.gpus[gpu]
    tok = s.tokens[token]
    sm = take(g.groups[DISPATCH].able, s.sms)
    s.sms[sm].token = token
    s.sms[sm].pair = tok.pair0
    if tok.dispatch_start == NO_TIME:
        tok.dispatch_start = s.now_ps
    if s.dispatch_first == NO_TIME:
        s.dispatch_first = s.now_ps
    if gpu == token // s.tokens_per_gpu and (s.by_peers == 0 or g.part == 0):
        issue_local(s, token)
    issue_copies(s, gpu, sm)


@compiled
def asked_for_token(s: Root, pair: int) -> None:
    """Reads a token that an expert GPU has asked its home GPU for."""
    home = s.pairs[pair].home
    first = pair * s.dispatch.segments
    ask_down(s, home, first, s.dispatch_ask_flits, codes.DISPATCH_REQUEST)
    push(s, s.now_ps + s.memory_ps, codes.EV_RESPOND, first, home, 0)


@compiled
def arrive(s: Root, pair: int) -> None:
    """Makes a token visible to its experts on one GPU, filling their tiles."""
    p = s.pairs[pair]
    gpu = p.gpu
    g = s.gpus[gpu]
    count = p.num_experts
    s.tokens[p.token].dispatch_end = s.now_ps
    s.dispatch_last = s.now_ps
    g.arrivals_left -= count
    use_hbm(s, gpu, count * s.gemms[GEMM1].token_in_bytes)
    # A row whose only missing result of a token (pull) or of a pair (push) is its own would finish that.
    done = s.tokens[p.token].experts_done if s.combine.reads else p.experts_done
    needed = s.top_k if s.combine.reads else count
    for slot in range(p.slot0, p.slot0 + count):
        join_tile(s, slot, pair, done == needed - 1)
    if s.partial_tiles:
        mark(s, GEMM, gpu)
    count_towards(s, gpu, p.part, codes.OPENS_GEMM1, count)
    if s.exclusive and g.arrivals_left == 0:
        mark(s, COMBINE, gpu)


@compiled_in_place
def join_tile(s: Root, slot: int, pair: int, finishes: bool) -> None:
    """Puts a token that has arrived into the open tile of one of its experts, which it may fill."""
    expert = s.slot_expert[slot]
    x = s.experts[expert]
    s.arrived_pair[x.slot0 + x.arrived] = pair
    if x.open_count == 0:
        tile = s.tiles[x.tile0 + x.tiles_open]
        tile.first = x.slot0 + x.arrived
        tile.expert = expert
        x.tiles_open += 1
        s.gpus[x.gpu].tiles_live += 1
    x.arrived += 1
    x.open_count += 1
    s.slot_tile[slot] = x.tile0 + x.tiles_open - 1
    if finishes:
        s.tiles[x.tile0 + x.tiles_open - 1].finishes += 1
    s.shown[expert].fill = x.open_count / s.tile_tokens
    s.shown[expert].progress = x.arrived / x.total
    if x.open_count == s.tile_tokens or x.arrived == x.total:
        close_tile(s, expert)


@compiled
def reach_dispatch(s: Root, node: int) -> None:
    """Stores a segment in an expert GPU's memory and acknowledges it; the token has come with the last one.

    The first segment to come has the token's place translated, which the others wait for.
    """
    pair = s.nodes[node].owner
    p = s.pairs[pair]
    is_first = p.segments_left == s.dispatch.segments
    p.segments_left -= 1
    if s.dispatch.reads:
        # The reader has what it asked for; nobody is told.
        if p.segments_left == 0:
            arrive(s, pair)
        end_dispatch_segment(s, p.gpu, pair * s.dispatch.segments)
        return
    charge_up(s, p.gpu, s.nodes[node].plane, s.dispatch.segment_packets * s.ack_flits, codes.DISPATCH_ACK)
    if not s.dispatch.in_switch:
        push(s, s.now_ps + 2 * s.hop_ps, codes.EV_ACK, node, 0, 0)
    else:
        # The switch merges the acknowledgements of a multicast store: the last one counts.
        store = p.token * s.dispatch.segments + node - pair * s.dispatch.segments
        s.stores[store].acks_left -= 1
        if s.stores[store].acks_left == 0:
            push(s, s.now_ps + 2 * s.hop_ps, codes.EV_ACK, s.store0 + store, 0, 0)
    if is_first and s.dispatch.names_targets:
        p.translated_ps = s.now_ps + translate(s, pair)
    if p.segments_left > 0:
        return
    if p.num_experts == 0:
        use_hbm(s, p.gpu, s.gemms[GEMM1].token_in_bytes)
    elif s.dispatch.names_targets:
        push(s, max(s.now_ps, p.translated_ps), codes.EV_ARRIVE, pair, 0, 0)
    else:
        arrive(s, pair)


@compiled
def end_part(s: Root, gpu: int) -> bool:
    """Gives the next part its turn if all of the present one is stored; False if not."""
    g = s.gpus[gpu]
    if g.part == s.num_parts or part_of(s, gpu, g.part).sends_left > 0 or g.groups[DISPATCH].in_flight > 0:
        return False
    g.part += 1
    count_towards(s, gpu, g.part - 1, codes.OPENS_GEMM2, 1)
    if s.exclusive and g.part == s.num_parts:
        mark(s, COMBINE, gpu)
    return True


@compiled
def end_dispatch_segment(s: Root, gpu: int, first: int) -> None:
    """Counts a segment that is stored or read; the last one ends the round trip of its vector."""
    if end_segment(s, DISPATCH, gpu, first):
        # With the last vector a part may be over.
        mark(s, DISPATCH, gpu)


@compiled
def store_acknowledged(s: Root, node: int) -> None:
    """Counts a segment of a dispatched vector that is stored, as its sender learns it."""
    owner = s.nodes[node].owner
    is_copy = node < s.partial0
    token = s.pairs[owner].token if is_copy else owner
    gpu = token // s.tokens_per_gpu
    charge_down(s, gpu, s.nodes[node].plane, s.dispatch.segment_packets * s.ack_flits, codes.DISPATCH_ACK)
    end_dispatch_segment(s, gpu, (0 if is_copy else s.store0) + owner * s.dispatch.segments)
