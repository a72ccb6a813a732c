"""Dispatch: what an SM group issues for the tokens of a chunk, and what asks for them; arrival.py takes them in."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import take
from dysharp_env.simulator.kernel.gates import count_towards, part_of
from dysharp_env.simulator.kernel.groups import list_sm, mark, prepare_token, take_vector
from dysharp_env.simulator.kernel.links import ask_down, ask_up, send_vector
from dysharp_env.simulator.kernel.memory import read_input
from dysharp_env.simulator.kernel.movers import staff_late
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.pairs import is_in_turn, is_remote, is_target
from dysharp_env.simulator.kernel.sources import say_done
from dysharp_env.simulator.kernel.staffing import leave_if_idle, offer_place, share_done
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NO_TIME, NOTHING
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH


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
def issue_local(s: Root, token: int, part: int) -> int:
    """Hands a token to the experts on its own GPU that are in a part: copies through memory, no link. Returns them."""
    copies = 0
    pair = s.tokens[token].pair0
    end = s.tokens[token + 1].pair0
    # The home GPU's own pairs come first.
    while pair < end and not is_remote(s, pair):
        if s.pairs[pair].num_experts > 0 and s.pairs[pair].part == part:
            read_input(s, token)
            push(s, s.now_ps + s.memory_ps, codes.EV_ARRIVE, pair, 0, 0)
            copies += 1
        pair += 1
    return copies


@compiled
def issue_dispatch(s: Root, gpu: int, node: int) -> None:
    """Stores a token to one GPU (unicast) or to several (multicast, broadcast, team), or asks for it (pull).

    ``node`` is the first segment of its vector.
    """
    if s.dispatch.reads:
        crossed_ps = ask_up(s, gpu, node, s.dispatch_ask_flits, codes.DISPATCH_REQUEST)
        push(s, crossed_ps + 2 * s.hop_ps, codes.EV_REQUEST, node, 0, 0)
    else:
        send_vector(s, gpu, node)


@compiled
def issue_pairs(s: Root, gpu: int, sm: int, token_ps: int) -> bool:
    """Takes copies that an SM's token still lacks; False if it has no place before the last."""
    m = s.sms[sm]
    part = s.gpus[gpu].part
    end = s.tokens[m.token + 1].pair0
    while m.pair < end:
        if is_target(s, m.pair) and is_in_turn(s, gpu, part, m.pair):
            if m.in_flight == s.dispatch.slots:
                return False
            copy = m.pair * s.dispatch.segments
            if take_vector(s, DISPATCH, gpu, sm, copy, token_ps):
                issue_dispatch(s, gpu, copy)
            token_ps = 0
        m.pair += 1
    return True


@compiled
def issue_stores(s: Root, gpu: int, sm: int, token_ps: int) -> bool:
    """Takes stores that an SM's token still lacks, its own group's first; False if it has no place before the last.

    Nothing of a store that is not issued is acknowledged, so what is left of that says whether it has targets.
    """
    m = s.sms[sm]
    groups = s.stores_per_token
    while m.pair < groups:
        group = 0 if groups == 1 else (gpu // s.team_gpus + m.pair) % groups
        store = (m.token * groups + group) * s.dispatch.segments
        if s.stores[store].acks_left > 0:
            if m.in_flight == s.dispatch.slots:
                return False
            if take_vector(s, DISPATCH, gpu, sm, s.store0 + store, token_ps):
                issue_dispatch(s, gpu, s.store0 + store)
            token_ps = 0
        m.pair += 1
    return True


@compiled
def issue_copies(s: Root, gpu: int, sm: int, token_ps: int) -> None:
    """Takes what is left of an SM's token as far as it has places; with nothing left it may take another token.

    The first vector bears ``token_ps``, work on the token itself.
    """
    g = s.gpus[gpu]
    m = s.sms[sm]
    in_switch = s.dispatch.in_switch
    if not (issue_stores(s, gpu, sm, token_ps) if in_switch else issue_pairs(s, gpu, sm, token_ps)):
        return
    m.token = NOTHING
    g.tokens_sent += 1
    share_done(s, gpu, g.tokens_sent - 1, g.tokens_sent, g.sends)
    part = part_of(s, gpu, g.part)
    part.sends_left -= 1
    if part.sends_left == 0 and s.parts_by == codes.BY_EXPERTS:
        mark(s, DISPATCH, gpu)  # the next part may begin, with whoever is free
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
    s.sms[sm].pair = 0 if s.dispatch.in_switch else tok.pair0
    if tok.dispatch_start == NO_TIME:
        tok.dispatch_start = s.now_ps
    if s.dispatch_first == NO_TIME:
        s.dispatch_first = s.now_ps
    if not s.dispatch.reads:
        read_input(s, token)
    if s.dispatch.prepare_ps > 0 and not s.dispatch.reads:
        prepare_token(s, DISPATCH, gpu, sm)
    token_ps = s.dispatch.token_ps
    if gpu == tok.home:
        token_ps += s.dispatch.own_ps * issue_local(s, token, g.part)
    issue_copies(s, gpu, sm, token_ps)


@compiled
def free_copy_place(s: Root, gpu: int, sm: int) -> None:
    """Lets a dispatch SM take another vector: of the token it is at, or else of a new one."""
    m = s.sms[sm]
    if m.token != NOTHING:
        issue_copies(s, gpu, sm, 0)
    else:
        offer_place(s, DISPATCH, gpu, sm)


@compiled
def asked_for_token(s: Root, pair: int) -> None:
    """Reads a token that an expert GPU has asked its home GPU for."""
    home = s.pairs[pair].home
    first = pair * s.dispatch.segments
    ask_down(s, home, first, s.dispatch_ask_flits, codes.DISPATCH_REQUEST)
    read_input(s, s.pairs[pair].token)
    push(s, s.now_ps + s.memory_ps, codes.EV_RESPOND, first, home, 0)


@compiled
def end_part(s: Root, gpu: int) -> bool:
    """Gives the next part its turn if all of the present one is stored; False if not.

    Of parts of experts only the last waits for what is in flight: the others follow each other without a pause.
    """
    g = s.gpus[gpu]
    if g.part == s.num_parts or part_of(s, gpu, g.part).sends_left > 0:
        return False
    is_wave = s.parts_by == codes.BY_EXPERTS and g.part < s.num_parts - 1
    if g.groups[DISPATCH].in_flight > 0 and not is_wave:
        return False
    g.part += 1
    count_towards(s, gpu, g.part - 1, codes.OPENS_GEMM2, 1)
    say_done(s, gpu, g.part - 1)
    if g.part == s.num_parts:
        if s.exclusive:
            mark(s, COMBINE, gpu)
        if s.copies_behind:
            staff_late(s, gpu)
    return True
