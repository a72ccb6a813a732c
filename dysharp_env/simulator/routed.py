"""The part of a layer's initial state that follows its routing, written in one compiled pass over the tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.layout import NOTHING


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
    tiles: np.ndarray
    gpus: np.ndarray
    parts: np.ndarray
    phases: np.ndarray


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
    """Writes pairs, slots, tokens, sums, every segment there can be, experts, and what each GPU and part has before it.

    Args:
        topk_ids: (token, k) experts.
        gpu_of_expert: (expert,) where they are.
        positions: (token,) places of tokens in the order in which chunks hold them.
        paths: What decides which records there are.
        dispatch: Dispatched vectors.
        combine: Partial and reduced sums.
        out: What is filled in.
    """
    num_tokens, top_k = topk_ids.shape
    num_segments, num_sum_segments = len(dispatch.payload_flits), len(combine.payload_flits)
    pairs, tokens, stores, sums, nodes, slot_expert, gpu_experts, expert_parts, tiles, gpus, parts, phases = out
    # By distance from the home GPU, where parts are of peers.
    part_of_offset = np.arange(paths.num_gpus) * paths.parts // paths.num_gpus
    offsets = np.empty(top_k, np.int64)
    experts = np.empty(top_k, np.int64)
    pair = slot = 0
    for token in range(num_tokens):
        home = token // paths.tokens_per_gpu
        chunk = positions[token] % paths.tokens_per_gpu // paths.chunk_tokens
        chunk_part = chunk * paths.parts // paths.chunks_per_gpu
        _sort_by_gpu(topk_ids, token, gpu_of_expert, home, paths.num_gpus, offsets, experts)
        own: Any = tokens[token]
        own.pair0 = pair
        targets = stored = summed = used = place = 0
        offset = -1
        while place < top_k or (paths.static and offset < paths.num_gpus - 1):
            offset = offset + 1 if paths.static else offsets[place]
            end = place
            while end < top_k and offsets[end] == offset and (end == place or not paths.copies_per_expert):
                end += 1
            count = end - place
            part = part_of_offset[offset] if paths.by_peers else chunk_part
            record = pairs[pair]
            record.token = token
            record.home = home
            record.gpu = home + offset if home + offset < paths.num_gpus else home + offset - paths.num_gpus
            record.slot0 = slot
            record.num_experts = count
            record.part = part
            record.segments_left = num_segments
            for index in range(place, end):
                expert = experts[index] * paths.parts + part
                slot_expert[slot] = expert
                expert_parts[expert].total += 1
                slot += 1
            used += count > 0
            if offset > 0 or paths.loopback:
                targets += count
                stored += count > 0 or paths.broadcasts
                summed += count > 0 or paths.scatters
            if offset > 0 and count > 0 and not paths.pulls:
                gpus[record.gpu].items_waiting += 1
            place = end
            pair += 1
        own.remote_targets = targets
        own.sums_left = num_sum_segments
        own.chunk = home * paths.chunks_per_gpu + chunk
        _never(own)
        for segment in range(token * num_segments, (token + 1) * num_segments):
            stores[segment].acks_left = stored
            stores[segment].replicas_left = stored
        for segment in range(token * num_sum_segments, (token + 1) * num_sum_segments):
            total = sums[segment]
            total.contributions_left = summed
            # A pull adds the local partial sum while it waits; a push counts it like the others.
            total.pieces_left = summed if paths.pulls else used
            total.open_prev = total.open_next = total.open_pair = NOTHING
            total.carrier = segment
    own = tokens[num_tokens]
    own.pair0 = pair
    _never(own)
    partial0 = len(pairs) * num_segments
    store0 = partial0 + len(pairs) * num_sum_segments
    sum0 = store0 + num_tokens * num_segments
    _write_for_pairs(nodes[:partial0], pairs, dispatch)
    _write_for_pairs(nodes[partial0:store0], pairs, combine)
    _write_for_tokens(nodes[store0:sum0], tokens, dispatch)
    _write_for_tokens(nodes[sum0:], tokens, combine)
    _group_experts(gpu_of_expert, gpu_experts, paths.num_gpus)
    _count_work(gpu_of_expert, expert_parts, gpus, parts, phases, paths)
    _lay_out_tiles(expert_parts, tiles, paths.smallest_tile)


@compiled
def _sort_by_gpu(
    topk_ids: np.ndarray,
    token: int,
    gpu_of_expert: np.ndarray,
    home: int,
    num_gpus: int,
    offsets: np.ndarray,
    experts: np.ndarray,
) -> None:
    """Sorts a token's experts by their GPU's distance from home, then by number.

    Copies start at the neighbour after the home GPU, so that all GPUs do not address the same one first.
    """
    for place in range(topk_ids.shape[1]):
        expert = np.int64(topk_ids[token, place])
        offset = gpu_of_expert[expert] - home
        if offset < 0:
            offset += num_gpus
        at = place
        while at > 0 and (offsets[at - 1] > offset or (offsets[at - 1] == offset and experts[at - 1] > expert)):
            offsets[at], experts[at] = offsets[at - 1], experts[at - 1]
            at -= 1
        offsets[at], experts[at] = offset, expert


@compiled
def _never(token: Any) -> None:
    """Notes that nothing of a token, a record, has started or ended."""
    token.dispatch_start = token.dispatch_end = token.combine_start = token.combine_end = NOTHING


@compiled
def _write_for_pairs(nodes: np.ndarray, pairs: np.ndarray, vectors: Vectors) -> None:
    """Writes the segments of a vector for each pair."""
    planes, payload_flits, head_flits = vectors
    at = 0
    for pair in range(len(pairs)):
        token, head = pairs[pair].token, head_flits[pairs[pair].num_experts]
        for segment in range(len(payload_flits)):
            node = nodes[at]
            node.owner = pair
            node.plane = planes[token, segment]
            node.payload_flits = payload_flits[segment]
            node.flits = payload_flits[segment] + head
            at += 1


@compiled
def _write_for_tokens(nodes: np.ndarray, tokens: np.ndarray, vectors: Vectors) -> None:
    """Writes the segments of a vector for each token: one that the switch copies to, or sums from, several GPUs."""
    planes, payload_flits, head_flits = vectors
    at = 0
    for token in range(len(tokens) - 1):
        head = head_flits[tokens[token].remote_targets]
        for segment in range(len(payload_flits)):
            node = nodes[at]
            node.owner = token
            node.plane = planes[token, segment]
            node.payload_flits = payload_flits[segment]
            node.flits = payload_flits[segment] + head
            at += 1


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
    phases: np.ndarray,
    paths: Paths,
) -> None:
    """Writes where experts are, and how many slots there are for each GPU, each part there, and each part."""
    for index in range(len(experts)):
        x = experts[index]
        x.number = index // paths.parts
        x.part = index % paths.parts
        x.gpu = gpu_of_expert[x.number]
        own, part, phase = gpus[x.gpu], parts[x.gpu * paths.parts + x.part], phases[x.part]
        own.slots += x.total
        own.arrivals_left += x.total
        own.slots1_left += x.total
        own.slots2_left += x.total
        part.arrivals_left += x.total
        part.slots1_left += x.total
        part.slots2_left += x.total
        phase.arrivals_left += x.total
        phase.slots2_left += x.total


@compiled
def _lay_out_tiles(experts: np.ndarray, tiles: np.ndarray, smallest_tile: int) -> None:
    """Writes where each expert's slots and tiles begin, and that no tile has started."""
    slot0 = tile0 = 0
    for index in range(len(experts)):
        x = experts[index]
        x.slot0, x.tile0 = slot0, tile0
        slot0 += x.total
        tile0 += x.total // smallest_tile + 1
    for index in range(len(tiles)):
        tile = tiles[index]
        tile.next = tile.start1 = tile.end1 = tile.start2 = tile.end2 = NOTHING
