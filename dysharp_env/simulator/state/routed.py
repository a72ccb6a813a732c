"""The part of a layer's initial state that follows its routing, written in one compiled pass over the tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NOTHING

# A token's expert and, above it, how far its GPU is from the token's home.
_EXPERT_BITS = 32
_EXPERT_MASK = (1 << _EXPERT_BITS) - 1


class Paths(NamedTuple):
    """What decides which records a token has; bools as they come from a program and its costs."""

    num_gpus: int
    tokens_per_gpu: int
    chunk_tokens: int
    chunks_per_gpu: int
    parts: int
    by_peers: bool
    static: bool  # a token has a pair with every GPU
    copies_per_expert: bool
    loopback: bool
    broadcasts: bool
    scatters: bool  # sums come from every GPU
    pulls: bool
    smallest_tile: int


class Vectors(NamedTuple):
    """Segments of the vectors of one direction."""

    planes: np.ndarray  # (token, segment) int64
    payload_flits: np.ndarray  # (segment,) int64
    head_flits: np.ndarray  # (top_k + 1,) int64 header and target flits of a segment to so many experts


class Routed(NamedTuple):
    """The arrays of the state that are filled in, by the names they have there."""

    pairs: np.ndarray
    tokens: np.ndarray
    stores: np.ndarray
    sums: np.ndarray
    nodes: np.ndarray
    slot_expert: np.ndarray
    gpu_experts: np.ndarray
    experts: np.ndarray
    gpus: np.ndarray
    parts: np.ndarray
    gates: np.ndarray


@njit(cache=True, error_model="numpy")
def follow_routing(
    topk_ids: np.ndarray,
    gpu_of_expert: np.ndarray,
    positions: np.ndarray,
    paths: Paths,
    dispatch: Vectors,
    combine: Vectors,
    out: Routed,
) -> None:
    """Writes pairs, slots, tokens, sums, every segment there can be, experts, and what each GPU and gate has before it.

    Args:
        topk_ids: (token, k) experts.
        gpu_of_expert: (expert,) where they are.
        positions: (token,) places of tokens in the order in which chunks hold them.
        paths: What decides which records there are.
        dispatch: Dispatched vectors.
        combine: Partial and reduced sums.
        out: What is filled in.
    """
    tokens_per_gpu = paths.tokens_per_gpu
    num_segments, num_sum_segments = len(dispatch.payload_flits), len(combine.payload_flits)
    # Tables, because divisions are slow. Parts are of peers, by their distance from the home GPU, or of chunks.
    part_of_offset = np.arange(paths.num_gpus) * paths.parts // paths.num_gpus
    chunk_of_place = np.arange(tokens_per_gpu) // paths.chunk_tokens
    part_of_chunk = np.arange(paths.chunks_per_gpu) * paths.parts // paths.chunks_per_gpu
    keys = np.empty(topk_ids.shape[1], np.int64)
    pair = 0
    for home in range(paths.num_gpus):
        for token in range(home * tokens_per_gpu, (home + 1) * tokens_per_gpu):
            chunk = chunk_of_place[positions[token] - home * tokens_per_gpu]
            _sort_by_gpu(topk_ids[token], gpu_of_expert, home, paths.num_gpus, keys)
            own: Any = out.tokens[token]
            own.pair0 = pair
            own.chunk = home * paths.chunks_per_gpu + chunk
            own.sums_left = num_sum_segments
            _never(own)
            pair, own.remote_targets, used, stored = _write_pairs(
                token, home, pair, part_of_chunk[chunk], keys, part_of_offset, paths, num_segments, out
            )
            everywhere = paths.num_gpus - 1 + paths.loopback
            summed = everywhere if paths.scatters else stored
            stored = everywhere if paths.broadcasts else stored
            for segment in range(token * num_segments, (token + 1) * num_segments):
                out.stores[segment].acks_left = stored
                out.stores[segment].replicas_left = stored
            for segment in range(token * num_sum_segments, (token + 1) * num_sum_segments):
                total = out.sums[segment]
                total.contributions_left = summed
                # A pull adds the local partial sum while it waits; a push counts it like the others.
                total.pieces_left = summed if paths.pulls else used
    own = out.tokens[len(topk_ids)]
    own.pair0 = pair
    _never(own)
    _write_nodes(dispatch, combine, out)
    _group_experts(gpu_of_expert, out.gpu_experts, paths.num_gpus)
    _count_work(gpu_of_expert, out.experts, out.gpus, out.parts, out.gates, paths)


@compiled_in_place
def _write_pairs(
    token: int,
    home: int,
    pair: int,
    part: int,
    keys: np.ndarray,
    part_of_offset: np.ndarray,
    paths: Paths,
    num_segments: int,
    out: Routed,
) -> tuple[int, int, int, int]:
    """Writes a token's pairs and slots from ``pair`` on, and counts them for its experts.

    Returns:
        Where the next token's pairs begin; its experts on other GPUs; its pairs; and those of other GPUs.
    """
    if paths.static:
        for offset in range(paths.num_gpus):
            _write_pair(
                out.pairs[pair + offset], token, home, offset, token * len(keys), 0, part, paths.num_gpus, num_segments
            )
    # Without branches: how many experts of a token share a GPU is what a processor cannot predict.
    targets = used = stored = count = 0
    slot = slot0 = token * len(keys)
    before, at = -1, pair - 1
    for index in range(len(keys)):
        offset = keys[index] >> _EXPERT_BITS
        begins = (offset != before) | paths.copies_per_expert
        before = offset
        at = pair + offset if paths.static else at + begins
        count = 1 if begins else count + 1
        slot0 = slot if begins else slot0
        part = part_of_offset[offset] if paths.by_peers else part
        _write_pair(out.pairs[at], token, home, offset, slot0, count, part, paths.num_gpus, num_segments)
        crosses = (offset > 0) | paths.loopback
        used += begins
        targets += crosses
        stored += begins & crosses
        if not paths.pulls:
            out.gpus[out.pairs[at].gpu].items_waiting += begins & (offset > 0)
        expert = (keys[index] & _EXPERT_MASK) * paths.parts + part
        out.slot_expert[slot] = expert
        out.experts[expert].total += 1
        slot += 1
    return pair + paths.num_gpus if paths.static else at + 1, targets, used, stored


@compiled
def _write_nodes(dispatch: Vectors, combine: Vectors, out: Routed) -> None:
    """Writes every segment there can be: copies, partial sums, stores and reduced sums."""
    num_copies = len(out.pairs) * len(dispatch.payload_flits)
    store0 = num_copies + len(out.pairs) * len(combine.payload_flits)
    sum0 = store0 + len(out.stores)
    _write_for_pairs(out.nodes[:num_copies], out.pairs, dispatch)
    _write_for_pairs(out.nodes[num_copies:store0], out.pairs, combine)
    _write_for_tokens(out.nodes[store0:sum0], out.tokens, dispatch)
    _write_for_tokens(out.nodes[sum0:], out.tokens, combine)


@compiled_in_place
def _sort_by_gpu(ids: np.ndarray, gpu_of_expert: np.ndarray, home: int, num_gpus: int, keys: np.ndarray) -> None:
    """Sorts a token's experts by their GPU's distance from home, then by number; a key is the one and the other.

    Copies start at the neighbour after the home GPU, so that all GPUs do not address the same one first. Every key goes
    past all before it, without a branch, which nobody could predict.
    """
    for count in range(len(ids)):
        offset = gpu_of_expert[ids[count]] - home
        key = (offset + num_gpus * (offset < 0)) << _EXPERT_BITS | ids[count]
        for place in range(count):
            keys[place], key = min(keys[place], key), max(keys[place], key)
        keys[count] = key


@compiled_in_place
def _write_pair(
    pair: Any, token: int, home: int, offset: int, slot0: int, count: int, part: int, num_gpus: int, segments: int
) -> None:
    """Writes all of a pair, a record that holds anything before: of a token and a GPU so far from its home."""
    pair.translated_ps = 0
    pair.token = token
    pair.home = home
    pair.gpu = home + offset if home + offset < num_gpus else home + offset - num_gpus
    pair.slot0 = slot0
    pair.num_experts = count
    pair.experts_done = 0
    pair.part = part
    pair.segments_left = segments


@compiled
def _never(token: Any) -> None:
    """Notes that nothing of a token, a record, has started or ended."""
    token.dispatch_start = token.dispatch_end = token.combine_start = token.combine_end = NOTHING


@compiled
def _write_for_pairs(nodes: np.ndarray, pairs: np.ndarray, vectors: Vectors) -> None:
    """Writes the segments of a vector for each pair."""
    for pair in range(len(pairs)):
        _write_vector(nodes, pair, pairs[pair].token, pairs[pair].num_experts, vectors)


@compiled
def _write_for_tokens(nodes: np.ndarray, tokens: np.ndarray, vectors: Vectors) -> None:
    """Writes the segments of a vector for each token: one that the switch copies to, or sums from, several GPUs."""
    for token in range(len(tokens) - 1):
        _write_vector(nodes, token, token, tokens[token].remote_targets, vectors)


@compiled_in_place
def _write_vector(nodes: np.ndarray, owner: int, token: int, named: int, vectors: Vectors) -> None:
    """Writes the segments of a vector, which names so many experts: all of every record, which holds anything before.

    Args:
        nodes: Where vectors of the kind lie.
        owner: Its pair or token, which is its place among them.
        token: Its token.
        named: Experts.
        vectors: What vectors of the kind are.
    """
    planes, payload_flits, head_flits = vectors
    for segment in range(len(payload_flits)):
        node = nodes[owner * len(payload_flits) + segment]
        node.tail_ps = 0
        node.owner = owner
        node.plane = planes[token, segment]
        node.flits = payload_flits[segment] + head_flits[named]
        node.next = 0
        node.payload_flits = payload_flits[segment]
        node.pieces = 0


@compiled
def _group_experts(gpu_of_expert: np.ndarray, gpu_experts: np.ndarray, num_gpus: int) -> None:
    """Writes the experts of the first GPU, then those of the next, and so on."""
    experts_per_gpu = len(gpu_of_expert) // num_gpus
    held = np.zeros(num_gpus, np.int64)
    for expert in range(len(gpu_of_expert)):
        gpu = gpu_of_expert[expert]
        gpu_experts[gpu * experts_per_gpu + held[gpu]] = expert
        held[gpu] += 1


@compiled
def _count_work(
    gpu_of_expert: np.ndarray,
    experts: np.ndarray,
    gpus: np.ndarray,
    parts: np.ndarray,
    gates: np.ndarray,
    paths: Paths,
) -> None:
    """Writes where experts, their slots and tiles are, and how many slots each GPU has and each gate waits for."""
    slot0 = tile0 = 0
    for index in range(len(experts)):
        x = experts[index]
        x.number = index // paths.parts
        x.part = index % paths.parts
        x.gpu = gpu_of_expert[x.number]
        x.slot0, x.tile0 = slot0, tile0
        slot0 += x.total
        tile0 += x.total // paths.smallest_tile + 1
        own = gpus[x.gpu]
        own.slots += x.total
        own.arrivals_left += x.total
        own.slots_left[GEMM1] += x.total
        own.slots_left[GEMM2] += x.total
        stages = parts[x.gpu * paths.parts + x.part].stages
        for stage in range(len(stages)):
            gate = stages[stage].gate
            if gate != NOTHING:
                gates[gate].left += x.total
