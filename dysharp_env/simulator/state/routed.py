"""The part of a layer's initial state that follows its routing, written in one compiled pass over the tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dysharp_env.native import native
from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.jit.rows import rows
from dysharp_env.simulator.state.codes import BY_EXPERTS, BY_PEERS, GEMM1, GEMM2, NOTHING, OPENS_COMBINE, OPENS_GEMM2
from dysharp_env.simulator.state.records import ROOT
from dysharp_env.workload.workload import NO_EXPERT

# A token's expert and, above it, how far its GPU is from the token's home.
_EXPERT_BITS = 32
_EXPERT_MASK = (1 << _EXPERT_BITS) - 1

Root = Any  # the record of ROOT


class Vectors(NamedTuple):
    """Segments of the vectors of one direction."""

    planes: np.ndarray  # (token, segment) int64
    payload_flits: np.ndarray  # (segment,) int64
    head_flits: np.ndarray  # (top_k + 1,) int64 header and target flits of a segment to so many experts


class Parts(NamedTuple):
    """Tables of parts, because divisions are slow."""

    of_chunk: np.ndarray  # (home chunk,) where they are of tokens
    of_offset: np.ndarray  # (gpu,) of peers, by their distance from the home GPU
    of_expert: np.ndarray  # (expert,) of experts, by their place on their GPU


@native(error_model="numpy")
def follow_routing(
    root: np.ndarray,
    pairs: np.ndarray,
    nodes: np.ndarray,
    topk_ids: np.ndarray,
    gpu_of_expert: np.ndarray,
    positions: np.ndarray,
    dispatch: Vectors,
    combine: Vectors,
) -> None:
    """Writes pairs, slots, tokens, sums, every segment there can be, experts, and what each GPU and gate has before it.

    Args:
        root: (1,) ROOT, complete.
        pairs: (pair,) PAIR of its state, written whole: here fields change that are constant ever after.
        nodes: (node,) NODE of its state, likewise.
        topk_ids: (token, k) experts, NO_EXPERT behind the last of a token.
        gpu_of_expert: (expert,) where they are.
        positions: (token,) places of tokens in the order in which chunks hold them.
        dispatch: Dispatched vectors.
        combine: Partial and reduced sums.
    """
    s = rows(root.ctypes.data, ROOT)[0]
    chunk_of_place = np.arange(s.most_chunks * s.chunk_tokens) // s.chunk_tokens
    parts = Parts(
        _parts_of_chunks(s),
        np.arange(s.num_gpus) * s.num_parts // s.num_gpus,
        _group_experts(s, gpu_of_expert),
    )
    keys = np.empty(s.top_k, np.int64)
    pair = 0
    for home in range(s.num_gpus):
        g = s.gpus[home]
        first = g.first_token
        for token in range(first, first + g.num_tokens):
            count = _sort_by_gpu(topk_ids[token], gpu_of_expert, home, s.num_gpus, keys)
            chunk = g.first_chunk + chunk_of_place[positions[token] - first]
            own = s.tokens[token]
            own.home = home
            own.num_experts = count
            own.pair0 = pair
            own.chunk = chunk
            if count == 0:
                _skip_token(s, home)
            pair = _write_token(s, pairs, token, home, pair, chunk, keys, count, parts)
    s.tokens[s.num_tokens].pair0 = pair
    _write_nodes(s, pairs, nodes, dispatch, combine)
    _count_work(s, gpu_of_expert, parts)


@compiled
def _parts_of_chunks(s: Root) -> np.ndarray:
    """Returns (home chunk,) the part of each where they are of tokens."""
    parts = np.empty(s.home_chunks, np.int64)
    for home in range(s.num_gpus):
        g = s.gpus[home]
        for place in range(g.num_chunks):
            parts[g.first_chunk + place] = place * s.num_parts // g.num_chunks
    return parts


@compiled
def _skip_token(s: Root, home: int) -> None:
    """Counts a token without experts as combined: it is over from the start."""
    g = s.gpus[home]
    g.combined += 1
    s.tokens_left -= 1
    if s.combine.reads:
        g.items_waiting -= 1


@compiled_in_place
def _sort_by_gpu(ids: np.ndarray, gpu_of_expert: np.ndarray, home: int, num_gpus: int, keys: np.ndarray) -> int:
    """Sorts a token's experts by their GPU's distance from home, then by number; returns how many it has.

    A key is the one and the other.

    Copies start at the neighbour after the home GPU, so that all GPUs do not address the same one first. Every key goes
    past all before it, without a branch, which nobody could predict.
    """
    count = 0
    while count < len(ids) and ids[count] != NO_EXPERT:
        offset = gpu_of_expert[ids[count]] - home
        key = (offset + num_gpus * (offset < 0)) << _EXPERT_BITS | ids[count]
        for place in range(count):
            keys[place], key = min(keys[place], key), max(keys[place], key)
        keys[count] = key
        count += 1
    return count


@compiled_in_place
def _write_token(
    s: Root,
    pairs: np.ndarray,
    token: int,
    home: int,
    pair: int,
    chunk: int,
    keys: np.ndarray,
    num_experts: int,
    parts: Parts,
) -> int:
    """Writes a token's pairs from ``pair`` on, its slots and what is counted of it; returns where the next's begin."""
    is_static = s.dispatch.to_all | s.combine.to_all
    part = parts.of_chunk[chunk]
    if is_static:
        for offset in range(s.num_gpus):
            _write_pair(s, pairs[pair + offset], token, home, offset, token * s.top_k, 0, part)
    # Without branches: how many experts of a token share a GPU is what a processor cannot predict.
    targets = used = stored = count = 0
    slot = slot0 = token * s.top_k
    before, at = -1, pair - 1
    for index in range(num_experts):
        offset, expert = keys[index] >> _EXPERT_BITS, keys[index] & _EXPERT_MASK
        begins = (offset != before) | s.copies_per_expert
        before = offset
        at = pair + offset if is_static else at + begins
        count = 1 if begins else count + 1
        slot0 = slot if begins else slot0
        if s.parts_by == BY_PEERS:
            part = parts.of_offset[offset]
        elif s.parts_by == BY_EXPERTS:
            part = parts.of_expert[expert]
        _write_pair(s, pairs[at], token, home, offset, slot0, count, part)
        crosses = (offset > 0) | s.loopback
        used += begins
        targets += crosses
        stored += begins & crosses
        if not s.combine.reads:
            s.gpus[pairs[at].gpu].items_waiting += begins & (offset > 0)
        expert = expert * s.parts_per_expert + part * (s.parts_per_expert > 1)
        s.slot_expert[slot] = expert
        s.experts[expert].total += 1
        slot += 1
    everywhere = s.num_gpus - 1 + s.loopback
    summed = everywhere if s.combine.to_all else stored
    stored = everywhere if s.dispatch.to_all else stored
    own = s.tokens[token]
    own.remote_targets = targets
    own.partials = summed
    own.sums_left = s.combine.segments
    if s.stores_per_token > 1:
        _add_team_targets(s, pairs, token, at + 1)
    else:
        _add_targets(s, token, stored)
    for segment in range(token * s.combine.segments, (token + 1) * s.combine.segments):
        s.sums[segment].contributions_left = summed
        # A pull adds the local partial sum while it waits; a push counts it like the others.
        s.sums[segment].pieces_left = summed if s.combine.reads else used
    return pair + s.num_gpus if is_static else at + 1


@compiled_in_place
def _add_team_targets(s: Root, pairs: np.ndarray, token: int, end: int) -> None:
    """Notes the GPUs that each of a token's stores goes to; its pairs end before ``end``."""
    for pair in range(s.tokens[token].pair0, end):
        if pairs[pair].num_experts > 0 and pairs[pair].gpu != pairs[pair].home:
            _add_targets(s, token * s.stores_per_token + pairs[pair].gpu // s.team_gpus, 1)


@compiled_in_place
def _add_targets(s: Root, store: int, targets: int) -> None:
    """Notes so many more GPUs that a store goes to, for each of its segments."""
    for segment in range(store * s.dispatch.segments, (store + 1) * s.dispatch.segments):
        s.stores[segment].acks_left += targets
        s.stores[segment].replicas_left += targets


@compiled_in_place
def _write_pair(s: Root, pair: Any, token: int, home: int, offset: int, slot0: int, count: int, part: int) -> None:
    """Writes all of a pair, a record that holds anything before: of a token and a GPU so far from its home."""
    pair.translated_ps = 0
    pair.token = token
    pair.home = home
    pair.gpu = home + offset if home + offset < s.num_gpus else home + offset - s.num_gpus
    pair.slot0 = slot0
    pair.num_experts = count
    pair.experts_done = 0
    pair.part = part
    pair.segments_left = s.dispatch.segments


@compiled
def _write_nodes(s: Root, pairs: np.ndarray, nodes: np.ndarray, dispatch: Vectors, combine: Vectors) -> None:
    """Writes every segment there can be: copies and partial sums of pairs, stores and reduced sums of tokens."""
    for pair in range(len(pairs)):
        token, named = pairs[pair].token, pairs[pair].num_experts
        _write_vector(nodes, 0, pair, token, named, dispatch)
        _write_vector(nodes, s.partial0, pair, token, named, combine)
    for token in range(s.num_tokens):
        for store in range(token * s.stores_per_token, (token + 1) * s.stores_per_token):
            _write_vector(nodes, s.store0, store, token, s.tokens[token].remote_targets, dispatch)
        _write_vector(nodes, s.sum0, token, token, s.tokens[token].remote_targets, combine)


@compiled_in_place
def _write_vector(nodes: np.ndarray, first: int, owner: int, token: int, named: int, vectors: Vectors) -> None:
    """Writes the segments of a vector, which names so many experts: all of every record, which holds anything before.

    Args:
        nodes: All nodes.
        first: Where vectors of the kind begin.
        owner: Its pair, store or token, which is its place among them.
        token: Its token.
        named: Experts.
        vectors: What vectors of the kind are.
    """
    planes, payload_flits, head_flits = vectors
    for segment in range(len(payload_flits)):
        node = nodes[first + owner * len(payload_flits) + segment]
        node.tail_ps = 0
        node.owner = owner
        node.plane = planes[token, segment]
        node.flits = payload_flits[segment] + head_flits[named]
        node.next = 0
        node.payload_flits = payload_flits[segment]
        node.pieces = 0


@compiled
def _group_experts(s: Root, gpu_of_expert: np.ndarray) -> np.ndarray:
    """Writes the experts of the first GPU, then those of the next, and so on; returns (expert,) parts of experts."""
    held = np.zeros(s.num_gpus, np.int64)
    for expert in range(len(gpu_of_expert)):
        held[gpu_of_expert[expert]] += 1
    first = 0
    for gpu in range(s.num_gpus):
        g = s.gpus[gpu]
        g.first_expert = first
        first += held[gpu]
    parts = np.empty(len(gpu_of_expert), np.int64)
    for expert in range(len(gpu_of_expert)):
        gpu = gpu_of_expert[expert]
        g = s.gpus[gpu]
        s.gpu_experts[g.first_expert + g.num_experts] = expert
        parts[expert] = g.num_experts * s.num_parts // held[gpu]
        g.num_experts += 1
    return parts


@compiled
def _count_sources(s: Root, parts: Parts) -> None:
    """Writes how many GPUs are to say to each that they have stored all they dispatch there, and has gates wait."""
    for gpu in range(s.num_gpus):
        g = s.gpus[gpu]
        if g.num_experts == 0:
            continue
        for part in range(s.num_parts):
            p = s.parts[gpu * s.num_parts + part]
            p.sources = np.sum(parts.of_offset == part) if s.parts_by == BY_PEERS else s.num_gpus
            p.sources_left = p.sources
            g.sources += p.sources
            for stage in (OPENS_GEMM2, OPENS_COMBINE):
                gate = p.stages[stage].gate
                if gate != NOTHING:
                    s.gates[gate].left += p.sources
        g.sources_left = g.sources


@compiled
def _count_work(s: Root, gpu_of_expert: np.ndarray, parts: Parts) -> None:
    """Writes where experts, their slots and tiles are, how many slots GPUs have, and what they and gates wait for."""
    if s.in_band:
        _count_sources(s, parts)
    slot0 = tile0 = 0
    for index in range(len(gpu_of_expert) * s.parts_per_expert):
        x = s.experts[index]
        x.number = index // s.parts_per_expert
        x.part = parts.of_expert[x.number] if s.parts_by == BY_EXPERTS else index % s.parts_per_expert
        x.gpu = gpu_of_expert[x.number]
        x.slot0 = slot0
        x.tile0 = tile0
        slot0 += x.total
        tile0 += x.total // s.smallest_tile + 1
        x.unstarted[GEMM1] = x.total
        x.unstarted[GEMM2] = x.total
        own = s.gpus[x.gpu]
        own.slots += x.total
        own.arrivals_left += x.total
        own.slots_left[GEMM1] += x.total
        own.slots_left[GEMM2] += x.total
        stages = s.parts[x.gpu * s.num_parts + x.part].stages
        for stage in range(3):
            gate = stages[stage].gate
            if gate != NOTHING:
                s.gates[gate].left += x.total
