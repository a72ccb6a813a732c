"""Combine: when a token or partial sum is ready, what an SM group issues for it, and how it comes home.

A pull is issued by the token's home GPU once all experts are done, and the sum comes back through the switch. A push is
issued by an expert GPU once its own part is done, and home counts what has come.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append, append_both_ways, take
from dysharp_env.simulator.kernel.gates import part_of
from dysharp_env.simulator.kernel.groups import end_segment, list_sm, mark, take_vector
from dysharp_env.simulator.kernel.links import ask_down, ask_up, charge_down, charge_up, is_partial, send_vector
from dysharp_env.simulator.kernel.memory import read_partial, translate, write_result
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.pairs import is_remote, is_summed
from dysharp_env.simulator.kernel.slots import count_slot
from dysharp_env.simulator.kernel.staffing import leave_if_idle, offer_place, sum_ready
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NO_TIME, NOTHING
from dysharp_env.simulator.state.observation import COMBINE


@compiled
def expert_done(s: Root, token: int, tile: int) -> None:
    """Counts a finished row of a token at its home GPU; with the last one the token may be combined."""
    tok = s.tokens[token]
    g = s.gpus[tok.home]
    tok.experts_done += 1
    count_slot(s, token * s.top_k, tok.num_experts, tile, tok.num_experts - tok.experts_done)
    if tok.experts_done == 1 and s.notifies:
        g.outputs_live += 1
    if tok.experts_done == tok.num_experts:
        if s.notifies and g.outputs_live > s.output_readiness_entries:
            push(s, s.now_ps + s.memory_ps, codes.EV_READY, token, 0, 0)
        else:
            item_ready(s, tok.chunk, token, tok.home)


@compiled
def partial_ready(s: Root, pair: int) -> None:
    """Makes one GPU's partial sum of a token ready to be pushed, or adds it at once if it is home already."""
    token = s.pairs[pair].token
    gpu = s.pairs[pair].gpu
    if gpu == s.pairs[pair].home:
        if s.tokens[token].combine_start == NO_TIME:
            s.tokens[token].combine_start = s.now_ps
        for segment in range(s.combine.segments):
            deliver(s, token, segment, 1)
    else:
        item_ready(s, gpu * s.home_chunks + s.tokens[token].chunk, pair, gpu)


@compiled
def list_unit(s: Root, gpu: int, unit: int) -> None:
    """Puts a unit at the end of its GPU's list of ready units."""
    s.units[unit].listed = 1
    append_both_ways(s.gpus[gpu].ready, s.units, unit)


@compiled
def list_part(s: Root, gpu: int, part: int) -> None:
    """Lists the ready units of a part in the order in which a combine kernel that starts late walks its buffer.

    Chunk after chunk; pushed partial sums go to one home GPU after the other, from the neighbour on, so that senders
    do not meet at one downlink.
    """
    g = s.gpus[gpu]
    g.groups[COMBINE].holding = 0
    if s.combine.reads:
        for chunk in range(g.first_chunk, g.first_chunk + g.num_chunks):
            list_late(s, gpu, chunk, part)
        return
    for place in range(s.most_chunks):
        for offset in range(1, s.num_gpus):
            home = s.gpus[(gpu + offset) % s.num_gpus]
            if place < home.num_chunks:
                list_late(s, gpu, gpu * s.home_chunks + home.first_chunk + place, part)


@compiled
def list_late(s: Root, gpu: int, unit: int, part: int) -> None:
    """Lists a unit of a part whose combine has just opened, if something in it is ready."""
    if s.units[unit].part == part and s.units[unit].count > 0:
        list_unit(s, gpu, unit)


@compiled
def item_ready(s: Root, unit: int, item: int, gpu: int) -> None:
    """Adds a token or partial sum to the unit it is combined with, and lists the unit if it was empty."""
    u = s.units[unit]
    append(u.items, s.item_links, item)
    u.count += 1
    if s.combine.reads:
        add_targets(s, unit, item)
    if u.count == 1:
        u.ready_ps = s.now_ps
    if u.listed == 0 and part_of(s, gpu, u.part).stages[codes.OPENS_COMBINE].open:
        list_unit(s, gpu, unit)
    sum_ready(s, gpu)
    s.gpus[gpu].groups[COMBINE].holding = 0
    mark(s, COMBINE, gpu)


@compiled
def add_targets(s: Root, unit: int, token: int) -> None:
    """Notes for what a decision shows which uplinks a token's sum would cross."""
    for pair in range(s.tokens[token].pair0, s.tokens[token + 1].pair0):
        if is_remote(s, pair) and s.pairs[pair].num_experts > 0:
            s.units[unit].copies += 1
            s.unit_targets[unit * s.num_gpus + s.pairs[pair].gpu] = True


@compiled
def give_sum(s: Root, gpu: int, first: int, token_ps: int) -> None:
    """Gives a sum, whose first segment is ``first``, to the first combine SM that may take one."""
    sm = take(s.gpus[gpu].groups[COMBINE].able, s.sms)
    if take_vector(s, COMBINE, gpu, sm, first, token_ps):
        depart(s, gpu, first)
    if s.sms[sm].in_flight < s.combine.slots:
        list_sm(s, COMBINE, gpu, sm)


@compiled
def depart(s: Root, gpu: int, first: int) -> None:
    """Stores a partial sum, or asks for one (plain loads) or for those of all GPUs at once (in-switch reduction)."""
    if not s.combine.reads:
        send_vector(s, gpu, first)
    elif not s.combine.in_switch:
        crossed_ps = ask_up(s, gpu, first, s.ask_flits[0], codes.COMBINE_REQUEST)
        push(s, crossed_ps + 2 * s.hop_ps, codes.EV_REQUEST, first, 0, 0)
    else:
        ask_for_sum(s, gpu, s.nodes[first].owner)


@compiled
def issue_loads(s: Root, gpu: int, sm: int, token_ps: int) -> None:
    """Takes what an SM's token still lacks as far as it has places; with nothing left it may take another token.

    The first vector bears ``token_ps``, work on the token itself.
    """
    m = s.sms[sm]
    end = s.tokens[m.token + 1].pair0
    while m.pair < end:
        if is_summed(s, m.pair):
            if m.in_flight == s.combine.slots:
                return
            first = s.partial0 + m.pair * s.combine.segments
            if take_vector(s, COMBINE, gpu, sm, first, token_ps):
                depart(s, gpu, first)
            token_ps = 0
        m.pair += 1
    m.token = NOTHING
    if m.duty != codes.ON_DUTY:
        leave_if_idle(s, COMBINE, gpu, sm)
    elif m.in_flight < s.combine.slots:
        list_sm(s, COMBINE, gpu, sm)


@compiled
def own_partials(s: Root, token: int) -> int:
    """Returns how many partial sums a token's home GPU has of it."""
    count = 0
    pair = s.tokens[token].pair0
    # The home GPU's own pairs come first.
    while pair < s.tokens[token + 1].pair0 and not is_remote(s, pair):
        count += s.pairs[pair].num_experts > 0
        pair += 1
    return count


@compiled
def issue_combine(s: Root, gpu: int, item: int) -> None:
    """Asks the experts' GPUs for a token's sum (pull), or pushes one partial sum home."""
    token = item if s.combine.reads else s.pairs[item].token
    tok = s.tokens[token]
    if s.combine_first == NO_TIME:
        s.combine_first = s.now_ps
    if tok.combine_start == NO_TIME:
        tok.combine_start = s.now_ps
    if not s.combine.reads:
        read_partial(s, item)
        # Partial sums are taken one by one, so each bears a share of the token, and of those that are home already.
        token_ps = s.combine.token_ps
        if s.combine.own_ps > 0:
            token_ps += s.combine.own_ps * own_partials(s, token)
        if token_ps > 0:
            token_ps //= tok.partials
        give_sum(s, gpu, s.partial0 + item * s.combine.segments, token_ps)
    elif s.sums[token * s.combine.segments].pieces_left == 0:
        complete(s, token)
    elif s.combine.in_switch:
        give_sum(s, gpu, s.sum0 + token * s.combine.segments, s.combine.token_ps)
    else:
        sm = take(s.gpus[gpu].groups[COMBINE].able, s.sms)
        s.sms[sm].token = token
        s.sms[sm].pair = tok.pair0
        issue_loads(s, gpu, sm, s.combine.token_ps)


@compiled
def free_sum_place(s: Root, gpu: int, sm: int) -> None:
    """Lets a combine SM take another vector: of the token it is at, or else of a new one."""
    m = s.sms[sm]
    if m.token != NOTHING:
        issue_loads(s, gpu, sm, 0)
    else:
        offer_place(s, COMBINE, gpu, sm)


@compiled
def end_sum_segment(s: Root, gpu: int, first: int) -> None:
    """Counts a segment that is stored or here; the last one ends the round trip of its vector."""
    sm = end_segment(s, COMBINE, gpu, first)
    if sm != NOTHING:
        free_sum_place(s, gpu, sm)


@compiled
def ask_for_sum(s: Root, gpu: int, token: int) -> None:
    """Asks all GPUs that have a partial sum of a token for it, in one request that the switch spreads."""
    first = s.sum0 + token * s.combine.segments
    targets = s.tokens[token].remote_targets if s.combine.names_targets else 0
    crossed_ps = ask_up(s, gpu, first, s.ask_flits[targets], codes.COMBINE_REQUEST)
    for pair in range(s.tokens[token].pair0, s.tokens[token + 1].pair0):
        if is_summed(s, pair):
            push(s, crossed_ps + 2 * s.hop_ps, codes.EV_REQUEST, s.partial0 + pair * s.combine.segments, 0, 0)


@compiled
def requested(s: Root, pair: int) -> None:
    """Reads a partial sum that the home GPU has asked for."""
    gpu = s.pairs[pair].gpu
    delay_ps = s.memory_ps
    targets = 0
    if s.combine.names_targets:
        targets = s.pairs[pair].num_experts
        delay_ps += translate(s, pair)
    first = s.partial0 + pair * s.combine.segments
    ask_down(s, gpu, first, s.ask_flits[targets], codes.COMBINE_REQUEST)
    read_partial(s, pair)
    push(s, s.now_ps + delay_ps, codes.EV_RESPOND, first, gpu, 0)


@compiled
def deliver(s: Root, token: int, segment: int, pieces: int) -> None:
    """Adds partial sums to a segment of a token's result; with the last one of all the token is combined."""
    total = s.sums[token * s.combine.segments + segment]
    total.pieces_left -= pieces
    if total.pieces_left > 0:
        return
    if s.combine.reads and s.combine.in_switch:
        end_sum_segment(s, s.tokens[token].home, s.sum0 + token * s.combine.segments)
    s.tokens[token].sums_left -= 1
    if s.tokens[token].sums_left == 0:
        complete(s, token)


@compiled
def complete(s: Root, token: int) -> None:
    """Ends a token: its result is at home."""
    g = s.gpus[s.tokens[token].home]
    s.tokens[token].combine_end = s.now_ps
    s.combine_last = s.now_ps
    s.tokens_left -= 1
    write_result(s, token)
    g.combined += 1
    if s.notifies:
        g.outputs_live -= 1


@compiled
def reach_combine(s: Root, node: int) -> None:
    """Takes a segment of a partial or reduced sum in at its home GPU."""
    owner = s.nodes[node].owner
    if is_partial(s, node):
        token = s.pairs[owner].token
        segment = node - s.partial0 - owner * s.combine.segments
    else:
        token = owner
        segment = node - s.sum0 - owner * s.combine.segments
    home = s.tokens[token].home
    if not s.combine.reads:
        charge_up(s, home, s.nodes[node].plane, s.combine.segment_packets * s.ack_flits, codes.COMBINE_ACK)
        if not s.combine.in_switch:
            push(s, s.now_ps + 2 * s.hop_ps, codes.EV_ACK, node, 0, 0)
    elif not s.combine.in_switch:
        end_sum_segment(s, home, s.partial0 + owner * s.combine.segments)
    deliver(s, token, segment, s.nodes[node].pieces)


@compiled
def push_acknowledged(s: Root, node: int) -> None:
    """Counts a segment of a partial sum that is stored, or in the switch, as its sender learns it."""
    owner = s.nodes[node].owner
    gpu = s.pairs[owner].gpu
    charge_down(s, gpu, s.nodes[node].plane, s.combine.segment_packets * s.ack_flits, codes.COMBINE_ACK)
    end_sum_segment(s, gpu, s.partial0 + owner * s.combine.segments)
