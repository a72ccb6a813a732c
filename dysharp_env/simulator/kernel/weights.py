"""Weights of copies that are made in the layer: tiles that SMs move, and rows that wait for them.

Each tile of a copy's matrices comes from the expert that it is a copy of. By plain loads the copy's GPU asks for it; by
plain stores the other GPU sends it, and a copy that is itself copied from sends it on as soon as it has come (a relay);
in-switch stores reach several copies with one tile. Whoever issues tiles gives some of its GEMM group's SMs for it (see
movers.py), until it has no more to do: together they issue one after each share of an SM's work on a tile, as long as
not too many are under way. A tile is read where it comes from, once for all that it is sent to one after the other,
and written where it goes. A matrix may be used as soon as its last tile is there.

What HBM has to do for it is booked there, but a tile does not wait for its turn: a matrix that a row reads is booked as
a whole, and HBM would not serve it in one go before a tile that is asked for meanwhile.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append, take
from dysharp_env.simulator.kernel.gates import count_towards
from dysharp_env.simulator.kernel.gemm import tile_ready
from dysharp_env.simulator.kernel.groups import mark
from dysharp_env.simulator.kernel.links import charge_down, charge_up, packets_of, tile_of_node
from dysharp_env.simulator.kernel.memory import is_here, read_part, write
from dysharp_env.simulator.kernel.movers import issue_soon
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.prefetch import consider
from dysharp_env.simulator.kernel.staffing import go_to_gemm
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NO_TIME, NOTHING
from dysharp_env.simulator.state.observation import GEMM


@compiled
def issue_tile(s: Root, gpu: int) -> None:
    """Sends the next tile of a GPU, as soon as it is read, or asks for it."""
    m = s.movers[gpu]
    m.issuing = 0
    node = take(m.queue, s.nodes)
    m.left -= 1
    m.in_flight += 1
    m.next_ps = s.now_ps + m.pace_ps
    note_start(s, node)
    if s.copying.reads:
        plane = s.nodes[node].plane
        charge_up(s, gpu, plane, s.weight_tiles[tile_of_node(s, node)].ask_flits, codes.WEIGHT_REQUEST)
        crossed_ps = s.uplinks[gpu * s.planes + plane].free_ps
        push(s, crossed_ps + 2 * s.hop_ps, codes.EV_REQUEST, node, 0, 0)
    else:
        read_tile(s, node)
    issue_soon(s, gpu)


@compiled
def note_start(s: Root, node: int) -> None:
    """Notes that a tile is issued, for every copy that it is for."""
    if s.weights_first == NO_TIME:
        s.weights_first = s.now_ps
    first = s.nodes[node].owner
    count = s.copies[first].replicas if node >= s.weight_store0 else 1
    gemm = s.weight_tiles[tile_of_node(s, node)].gemm
    for copy in range(first, first + count):
        matrix = s.matrices[s.copies[copy].expert * 2 + gemm]
        if matrix.start_ps == NO_TIME:
            matrix.start_ps = s.now_ps


@compiled
def asked_for_tile(s: Root, node: int) -> None:
    """Reads a tile that a copy's GPU has asked for."""
    c = s.copies[s.nodes[node].owner]
    ask_flits = s.weight_tiles[tile_of_node(s, node)].ask_flits
    charge_down(s, c.source_gpu, s.nodes[node].plane, ask_flits, codes.WEIGHT_REQUEST)
    read_tile(s, node)


@compiled
def read_tile(s: Root, node: int) -> None:
    """Reads a tile where it comes from, unless it was just read for another copy, and has it sent then."""
    c = s.copies[s.nodes[node].owner]
    tile = s.weight_tiles[tile_of_node(s, node)]
    if s.copying.reads or c.is_first:
        block = c.source * 2 + tile.gemm
        read_part(s, c.source_gpu, block, tile.num_bytes, s.matrices[block].here_bytes)
    push(s, s.now_ps + s.memory_ps, codes.EV_RESPOND, node, c.source_gpu, 0)


@compiled
def reach_tile(s: Root, node: int) -> None:
    """Writes a tile into the memory of a copy's GPU, acknowledges it and has it sent on; the last makes the matrix."""
    copy = s.nodes[node].owner
    c = s.copies[copy]
    index = tile_of_node(s, node)
    tile = s.weight_tiles[index]
    block = c.expert * 2 + tile.gemm
    s.weights_last = s.now_ps
    write(s, c.gpu, block, tile.num_bytes)
    matrix = s.matrices[block]
    matrix.here_bytes += tile.num_bytes
    matrix.tiles_left -= 1
    if s.copying.reads:
        end_tile(s, c.gpu)
    else:
        charge_up(s, c.gpu, s.nodes[node].plane, tile.packets * s.ack_flits, codes.WEIGHT_ACK)
        acknowledge_tile(s, node, c.store * s.num_weight_tiles + index)
    for child in range(c.child0, c.child0 + c.children):
        append(s.movers[c.gpu].queue, s.nodes, s.weights0 + child * s.num_weight_tiles + index)
    issue_soon(s, c.gpu)
    if matrix.tiles_left == 0:
        matrix_comes(s, c.gpu, c.expert, tile.gemm)


@compiled
def acknowledge_tile(s: Root, node: int, store: int) -> None:
    """Has the sender learn that a tile is stored; the switch merges what comes back for ``store``: the last counts."""
    if not s.copying.in_switch:
        push(s, s.now_ps + 2 * s.hop_ps, codes.EV_ACK, node, 0, 0)
        return
    s.weight_stores[store].acks_left -= 1
    if s.weight_stores[store].acks_left == 0:
        push(s, s.now_ps + 2 * s.hop_ps, codes.EV_ACK, s.weight_store0 + store, 0, 0)


@compiled
def tile_acknowledged(s: Root, node: int) -> None:
    """Counts a tile that is stored, as its sender learns it."""
    gpu = s.copies[s.nodes[node].owner].source_gpu
    charge_down(s, gpu, s.nodes[node].plane, packets_of(s, node) * s.ack_flits, codes.WEIGHT_ACK)
    end_tile(s, gpu)


@compiled
def end_tile(s: Root, gpu: int) -> None:
    """Lets a GPU issue another tile for one that is over; with nothing left its SMs go back to the GEMM group."""
    m = s.movers[gpu]
    m.in_flight -= 1
    issue_soon(s, gpu)
    if m.left == 0 and m.in_flight == 0:
        m.wanted_sms = 0
        while m.sms > 0:
            m.sms -= 1
            go_to_gemm(s, gpu)


@compiled
def matrix_comes(s: Root, gpu: int, expert: int, gemm: int) -> None:
    """Makes the rows ready that waited for a matrix, in their order; with both matrices a copy may open gates."""
    g = s.gpus[gpu]
    matrix = s.matrices[expert * 2 + gemm]
    matrix.end_ps = s.now_ps
    g.weights_left -= 1
    s.weights_left -= 1
    while matrix.held.head != NOTHING:
        tile_ready(s, take(matrix.held, s.tiles), gemm)
    consider(s, gpu)
    # A tile may be closed early from now on.
    g.groups[GEMM].holding = 0
    mark(s, GEMM, gpu)
    if is_here(s, expert, GEMM1) and is_here(s, expert, GEMM2):
        for part in range(s.num_parts):
            count_towards(s, gpu, part, codes.OPENS_GEMM1, 1)
