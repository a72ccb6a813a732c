"""Arrival: what comes to an expert GPU, how tokens fill the tiles of their experts, and who learns of it."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.dispatch import free_copy_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.gates import count_towards, part_of
from dysharp_env.simulator.kernel.gemm import close_tile
from dysharp_env.simulator.kernel.groups import end_segment, mark
from dysharp_env.simulator.kernel.links import charge_down, charge_up
from dysharp_env.simulator.kernel.memory import tile_block, translate, use_hbm, write
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.pairs import store_of, token_of_store
from dysharp_env.simulator.kernel.prefetch import consider
from dysharp_env.simulator.kernel.sources import is_source
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import GEMM1, NOTHING
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, GEMM


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
        store = store_of(s, pair) * s.dispatch.segments + node - pair * s.dispatch.segments
        s.stores[store].acks_left -= 1
        if s.stores[store].acks_left == 0:
            push(s, s.now_ps + 2 * s.hop_ps, codes.EV_ACK, s.store0 + store, 0, 0)
    if is_first and s.dispatch.names_targets:
        p.translated_ps = s.now_ps + translate(s, pair)
    if p.segments_left > 0:
        return
    if p.num_experts == 0:
        # Nobody here will read it.
        use_hbm(s, p.gpu, s.gemms[GEMM1].token_in_bytes, codes.HBM_WRITE, NOTHING)
    elif s.dispatch.names_targets:
        push(s, max(s.now_ps, p.translated_ps), codes.EV_ARRIVE, pair, 0, 0)
    else:
        arrive(s, pair)


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
    # A row whose only missing result of a token (pull) or of a pair (push) is its own would finish that.
    done = s.tokens[p.token].experts_done if s.combine.reads else p.experts_done
    needed = s.tokens[p.token].num_experts if s.combine.reads else count
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
        t = s.tiles[x.tile0 + x.tiles_open]
        t.first = x.slot0 + x.arrived
        t.expert = expert
        x.tiles_open += 1
        s.gpus[x.gpu].tiles_live += 1
    x.arrived += 1
    x.open_count += 1
    if x.arrived == 1 and not s.counted:
        consider(s, x.gpu)
    tile = x.tile0 + x.tiles_open - 1
    s.slot_tile[slot] = tile
    if finishes:
        s.tiles[tile].finishes += 1
    write(s, x.gpu, tile_block(s, tile, codes.TILE_IN), s.gemms[GEMM1].token_in_bytes)
    s.shown[expert].fill = x.open_count / s.tile_tokens
    if s.counted:
        s.shown[expert].progress = x.arrived / x.total
    if x.open_count == s.tile_tokens or is_last(s, expert):
        close_tile(s, expert)


@compiled
def is_last(s: Root, expert: int) -> bool:
    """Returns whether nothing more comes for an expert, as far as its GPU knows."""
    x = s.experts[expert]
    return x.arrived == x.total and part_of(s, x.gpu, x.part).sources_left == 0


@compiled
def hear_done(s: Root, source: int, part: int, is_own: int) -> None:
    """Has GPUs learn that all that one of them dispatches of a part is stored."""
    first = 0 if s.parts_by == codes.BY_EXPERTS else part
    for gpu in range(s.num_gpus):
        if (gpu == source) != (is_own == 1) or not is_source(s, source, part, gpu):
            continue
        if gpu != source:
            charge_down(s, gpu, gpu % s.planes, codes.DONE_FLITS, codes.DISPATCH_DONE)
        for each in range(first, part + 1):
            count_source(s, gpu, each)


@compiled
def count_source(s: Root, gpu: int, part: int) -> None:
    """Counts a source that has stored all it dispatches to a GPU in a part; the last closes tiles of whole experts."""
    g = s.gpus[gpu]
    g.sources_left -= 1
    p = part_of(s, gpu, part)
    p.sources_left -= 1
    if p.sources_left == 0:
        for i in range(g.first_expert, g.first_expert + g.num_experts):
            first = s.gpu_experts[i] * s.parts_per_expert
            for expert in range(first, first + s.parts_per_expert):
                x = s.experts[expert]
                if x.part == part and x.open_count > 0 and is_last(s, expert):
                    close_tile(s, expert)
        # Who waits for more to come may have waited for this.
        for kind in (GEMM, COMBINE):
            g.groups[kind].holding = 0
            mark(s, kind, gpu)
        consider(s, gpu)
    count_towards(s, gpu, part, codes.OPENS_GEMM2, 1)
    count_towards(s, gpu, part, codes.OPENS_COMBINE, 1)


@compiled
def store_acknowledged(s: Root, node: int) -> None:
    """Counts a segment of a dispatched vector that is stored, as its sender learns it."""
    owner = s.nodes[node].owner
    is_copy = node < s.partial0
    gpu = s.pairs[owner].home if is_copy else s.tokens[token_of_store(s, owner)].home
    charge_down(s, gpu, s.nodes[node].plane, s.dispatch.segment_packets * s.ack_flits, codes.DISPATCH_ACK)
    end_dispatch_segment(s, gpu, (0 if is_copy else s.store0) + owner * s.dispatch.segments)


@compiled
def end_dispatch_segment(s: Root, gpu: int, first: int) -> None:
    """Counts a segment that is stored or read; the last one ends the round trip of its vector."""
    sm = end_segment(s, DISPATCH, gpu, first)
    if sm != NOTHING:
        free_copy_place(s, gpu, sm)
        # With the last vector a part may be over.
        mark(s, DISPATCH, gpu)
