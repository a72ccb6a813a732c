"""A GPU's memory: HBM that serves in turn, L2 over weights and activations, and the translation of algebraic indices.

L2 holds *blocks* in the order of their last use: an expert's matrix; of a tile the tokens stored for it, what GEMM-1
makes of them and what GEMM-2 makes of that; of a token chunk its home GPU's vectors and results. What is written stays,
dirty, until others need its room: blocks give way from the least recently used on, byte by byte, and what is dirty of
them is written to HBM then. What is read and not there comes from HBM. So the byte that is written last and read soon
costs HBM nothing, and what is still dirty when the layer ends costs nothing either: whatever comes next pays for it.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.fifo import append_both_ways, remove
from dysharp_env.simulator.kernel.links import log_row
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import BLOCKS_PER_CHUNK, BLOCKS_PER_TILE, COUNTED, GEMM1, GEMM2, NOTHING


@compiled_in_place
def hbm_ps(s: Root, num_bytes: int) -> int:
    """Returns how long HBM serves so many bytes."""
    return num_bytes * s.hbm_mult // s.hbm_div


@compiled
def wake_hbm(s: Root, gpu: int) -> None:
    """Makes sure that HBM is looked at again when it falls free."""
    g = s.gpus[gpu]
    if g.hbm_wake == 0:
        g.hbm_wake = 1
        push(s, g.hbm_free_ps, codes.EV_HBM, gpu, 0, 0)


@compiled
def use_hbm(s: Root, gpu: int, num_bytes: int, purpose: int, block: int) -> int:
    """Puts an access behind all earlier ones of this GPU's HBM and returns when it is over.

    ``block`` is what it is for in the log; NOTHING for a vector that is in none.
    """
    g = s.gpus[gpu]
    ps = hbm_ps(s, num_bytes)
    start_ps = max(g.hbm_free_ps, s.now_ps)
    g.hbm_free_ps = start_ps + ps
    g.hbm_busy_ps += ps
    log_row(s, codes.LOG_HBM, gpu, purpose, block, num_bytes, start_ps, start_ps + ps)
    if s.prefetches:
        wake_hbm(s, gpu)
    return start_ps + ps


@compiled_in_place
def tile_block(s: Root, tile: int, what: int) -> int:
    """Returns the block of a tile's TILE_IN, TILE_MID or TILE_OUT."""
    return s.tile_blocks + tile * BLOCKS_PER_TILE + what


@compiled_in_place
def chunk_block(s: Root, token: int, what: int) -> int:
    """Returns the block of the CHUNK_INPUT or CHUNK_RESULT that a token's is part of, at its home GPU."""
    return s.chunk_blocks + s.tokens[token].chunk * BLOCKS_PER_CHUNK + what


@compiled
def touch(s: Root, gpu: int, block: int) -> None:
    """Makes a block, if anything of it is in L2, the one used last."""
    l2 = s.gpus[gpu].l2
    if l2.tail != block and s.blocks[block].resident_bytes > 0:
        remove(l2, s.blocks, block)
        append_both_ways(l2, s.blocks, block)


@compiled
def give_way(s: Root, gpu: int, block: int, excess_bytes: int) -> int:
    """Drops bytes of the blocks before ``block``, which is the last, and returns how many more it would have taken.

    What of them is dirty is written back in one access.
    """
    g = s.gpus[gpu]
    dirty_bytes = 0
    while excess_bytes > 0 and g.l2.head != block:
        oldest = g.l2.head
        b = s.blocks[oldest]
        dropped = min(excess_bytes, b.resident_bytes)
        dirty = min(dropped, b.dirty_bytes)
        b.resident_bytes -= dropped
        b.dirty_bytes -= dirty
        if b.resident_bytes == 0:
            remove(g.l2, s.blocks, oldest)
        g.l2_used_bytes -= dropped
        excess_bytes -= dropped
        dirty_bytes += dirty
    if dirty_bytes > 0:
        use_hbm(s, gpu, dirty_bytes, codes.HBM_WRITE, block)
    return excess_bytes


@compiled
def bring(s: Root, gpu: int, block: int, num_bytes: int) -> int:
    """Puts bytes of a block into L2 as the last used and returns how many of them fit; a larger one fills it."""
    g = s.gpus[gpu]
    b = s.blocks[block]
    if g.l2.tail != block:
        if b.resident_bytes > 0:
            remove(g.l2, s.blocks, block)
        append_both_ways(g.l2, s.blocks, block)
    excess_bytes = g.l2_used_bytes + num_bytes - s.l2_bytes
    fitting_bytes = num_bytes
    if excess_bytes > 0:
        fitting_bytes -= give_way(s, gpu, block, excess_bytes)
    b.resident_bytes += fitting_bytes
    g.l2_used_bytes += fitting_bytes
    return fitting_bytes


@compiled
def write(s: Root, gpu: int, block: int, num_bytes: int) -> None:
    """Writes bytes of a block: into L2, and what does not fit there to HBM."""
    fitting_bytes = bring(s, gpu, block, num_bytes)
    s.blocks[block].dirty_bytes += fitting_bytes
    if fitting_bytes < num_bytes:
        use_hbm(s, gpu, num_bytes - fitting_bytes, codes.HBM_WRITE, block)


@compiled
def read(s: Root, gpu: int, block: int, num_bytes: int) -> int:
    """Reads a block of so many bytes and returns when all of it is there: what L2 has not comes from HBM, and stays."""
    missing_bytes = num_bytes - s.blocks[block].resident_bytes
    if missing_bytes <= 0:
        touch(s, gpu, block)
        return s.now_ps
    bring(s, gpu, block, missing_bytes)
    return use_hbm(s, gpu, missing_bytes, codes.HBM_READ, block)


@compiled_in_place
def read_part(s: Root, gpu: int, block: int, num_bytes: int, block_bytes: int) -> None:
    """Reads part of a block of ``block_bytes``, of which L2 lacks as much as of the whole.

    So are partial sums read, each once: nothing is kept for it, neither what comes from HBM nor what is there.
    """
    missing_bytes = block_bytes - s.blocks[block].resident_bytes
    if missing_bytes > 0:
        use_hbm(s, gpu, num_bytes * missing_bytes // block_bytes, codes.HBM_READ, block)


@compiled
def read_input(s: Root, token: int) -> None:
    """Reads a token's vector at its home GPU as it is dispatched, unless that was done before: nobody waits for it.

    It comes from HBM, where the kernel before the layer left it, in the format in which it goes out.
    """
    tok = s.tokens[token]
    if tok.is_read == 0:
        tok.is_read = 1
        block = chunk_block(s, token, codes.CHUNK_INPUT)
        num_bytes = s.blocks[block].resident_bytes + s.gemms[GEMM1].token_in_bytes
        read(s, tok.home, block, num_bytes)


@compiled
def write_result(s: Root, token: int) -> None:
    """Writes a token's sum at its home GPU."""
    block = chunk_block(s, token, codes.CHUNK_RESULT)
    write(s, s.tokens[token].home, block, s.gemms[GEMM2].token_out_bytes)


@compiled
def read_partial(s: Root, pair: int) -> None:
    """Reads the results of a token's experts on one GPU, which are done, as their sum is asked for or pushed."""
    p = s.pairs[pair]
    num_bytes = s.gemms[GEMM2].token_out_bytes
    for slot in range(p.slot0, p.slot0 + p.num_experts):
        tile = COUNTED - s.slot_tile[slot]
        read_part(s, p.gpu, tile_block(s, tile, codes.TILE_OUT), num_bytes, s.tiles[tile].count * num_bytes)
    if p.num_experts == 0:
        # A static reduce-scatter reads one vector from every GPU, whether it holds a result or not.
        use_hbm(s, p.gpu, num_bytes, codes.HBM_READ, NOTHING)


@compiled_in_place
def is_here(s: Root, expert: int, gemm: int) -> bool:
    """Returns whether an expert's matrix (without its part) is on its GPU: a copy's may be yet to come."""
    return s.matrices[expert * 2 + gemm].tiles_left == 0


@compiled
def missing_weights(s: Root, expert: int, gemm: int) -> int:
    """Returns how many bytes of an expert's matrix (without its part) L2 lacks."""
    return min(s.gemms[gemm].matrix_bytes, s.l2_bytes) - s.blocks[expert * 2 + gemm].resident_bytes


@compiled
def weights_to_read(s: Root, expert: int, gemm: int) -> int:
    """Returns how many bytes a row that uses an expert's matrix now reads of it from HBM; a backward pass twice."""
    cost = s.gemms[gemm]
    missing_bytes = missing_weights(s, expert, gemm)
    if s.blocks[expert * 2 + gemm].resident_bytes == 0:
        return cost.weight_bytes
    return missing_bytes * (cost.weight_bytes // cost.matrix_bytes)


@compiled
def fetch_weights(s: Root, gpu: int, expert: int, gemm: int) -> int:
    """Returns when the matrix of an expert (without its part) is in L2, reading from HBM what is not.

    A matrix larger than L2 counts as filling it: rows of one expert that follow each other walk its panels together.
    """
    block = expert * 2 + gemm
    missing_bytes = missing_weights(s, expert, gemm)
    if missing_bytes == 0:
        touch(s, gpu, block)
    else:
        num_bytes = weights_to_read(s, expert, gemm)
        bring(s, gpu, block, missing_bytes)
        s.matrices[block].fetched_ps = use_hbm(s, gpu, num_bytes, codes.HBM_WEIGHTS, block)
    return s.matrices[block].fetched_ps


@compiled
def translate(s: Root, pair: int) -> int:
    """Looks up a pair's algebraic indices in the AL TLB and returns the delay: one memory latency if any misses.

    The TLB is first-in first-out: an entry is present while fewer than ``al_tlb_entries`` have come after it. The
    packets of one segment follow each other, so only the first can miss.
    """
    g = s.gpus[s.pairs[pair].gpu]
    delay_ps = 0
    first = s.pairs[pair].slot0
    for slot in range(first, first + s.pairs[pair].num_experts):
        if s.slot_tlb[slot] == NOTHING or g.tlb_sequence - s.slot_tlb[slot] > s.al_tlb_entries:
            delay_ps = s.memory_ps
            s.slot_tlb[slot] = g.tlb_sequence
            g.tlb_sequence += 1
    return delay_ps
