"""What is shown of token chunks and never changes, worked out once so that a decision need not walk their tokens."""

from __future__ import annotations

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.layout import MULTICAST, PULL
from dysharp_env.simulator.primitives import is_remote, stores_once
from dysharp_env.simulator.views import Root


@compiled
def is_in_chunk(s: Root, gpu: int, chunk: int, pair: int) -> bool:
    """Returns whether a GPU that dispatches a chunk moves this pair of one of its tokens; see ``is_in_turn``."""
    if s.dispatch_primitive == PULL:
        return s.pairs[pair].gpu == gpu
    return s.by_peers == 0 or s.pairs[pair].part == s.chunks[chunk].part


@compiled
def weigh_chunk(s: Root, gpu: int, chunk: int, slots: int) -> int:
    """Fills in what a chunk moves, its slots from ``slots`` on, and returns where the next chunk's begin."""
    ch = s.chunks[chunk]
    ch.slot0 = slots
    for position in range(ch.first, ch.last):
        token = s.order[position]
        if stores_once(s):
            ch.flits += s.store_flits[s.tokens[token].remote_targets if s.dispatch_primitive == MULTICAST else 0]
        for pair in range(s.tokens[token].pair0, s.tokens[token + 1].pair0):
            q = s.pairs[pair]
            if q.num_experts == 0 or not is_in_chunk(s, gpu, chunk, pair):
                continue
            for slot in range(q.slot0, q.slot0 + q.num_experts):
                s.chunk_experts[slots] = s.slot_expert[slot]
                slots += 1
            if is_remote(s, pair):
                ch.copies += 1
                s.chunk_targets[chunk * s.num_gpus + q.gpu] = True
                if not stores_once(s):
                    ch.flits += s.store_flits[0]
    ch.num_slots = slots - ch.slot0
    return slots


@compiled
def weigh_chunks(s: Root) -> None:
    """Fills in what every chunk moves; every slot is in one of them."""
    slots = 0
    per_gpu = s.num_chunks // s.num_gpus
    for chunk in range(s.num_chunks):
        slots = weigh_chunk(s, chunk // per_gpu, chunk, slots)
