"""Decisions on what is dispatched next: unsent token chunks, and what each of them moves."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.dispatch import end_part, next_token, take_token
from dysharp_env.simulator.kernel.fifo import remove
from dysharp_env.simulator.kernel.links import spread_ps
from dysharp_env.simulator.kernel.names import Flags, Root
from dysharp_env.simulator.kernel.pairs import is_in_turn, is_remote
from dysharp_env.simulator.kernel.shares import backlog_ps, rooted
from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.simulator.state.observation import DISPATCH


@compiled
def act_dispatch(s: Root, gpu: int) -> bool:
    """Gives tokens of the chunk at hand to SMs that may take one; True if a chunk has to be chosen for them."""
    g = s.gpus[gpu]
    if not g.start_open:
        return False
    while True:
        if g.chunk == NOTHING:
            while end_part(s, gpu):
                pass
        if g.groups[DISPATCH].able.head == NOTHING:
            return False
        if g.chunk == NOTHING:
            return True
        take_token(s, gpu, next_token(s, gpu))


@compiled
def list_chunks(s: Root, gpu: int, limit: int) -> int:
    """Lists a GPU's unsent chunks, the first first; parts go one after the other."""
    g = s.gpus[gpu]
    count = 0
    chunk = g.unsent.head
    while chunk != NOTHING and count < limit and s.chunks[chunk].part == g.part:
        s.candidates[count].item = chunk
        count += 1
        chunk = s.chunks[chunk].next
    return count


@compiled
def measure_downlinks(s: Root) -> None:
    """Fills ``backlogs`` with those of downlinks, which stores and pushed sums meet."""
    for gpu in range(s.num_gpus):
        s.backlogs[gpu] = backlog_ps(s, s.ports, gpu)


@compiled
def longest_backlog_ps(s: Root, targets: Flags, first: int) -> int:
    """Returns the longest of ``backlogs`` among the GPUs that are flagged in ``targets`` from ``first`` on."""
    longest_ps = 0
    for gpu in range(s.num_gpus):
        if targets[first + gpu]:
            longest_ps = max(longest_ps, s.backlogs[gpu])
    return longest_ps


@compiled
def describe_chunk(s: Root, chunk: int, row: int, walks: bool) -> None:
    """Describes an unsent token chunk: all copies of its tokens, or those that a reader asks for (pull)."""
    f = s.features[row]
    ch = s.chunks[chunk]
    num_tokens = ch.last - ch.first
    f.size = num_tokens / s.chunk_tokens
    if not walks:
        return
    fill = 0.0
    progress = 0.0
    for slot in range(ch.slot0, ch.slot0 + ch.num_slots):
        shown = s.shown[s.chunk_experts[slot]]
        fill += shown.fill
        progress += shown.progress
    if ch.num_slots > 0:
        f.tile_fill = fill / ch.num_slots
        f.expert_progress = progress / ch.num_slots
    f.fan_out = min(1.0, ch.copies / (num_tokens * (s.num_gpus - 1)))
    f.backlog = rooted(s, longest_backlog_ps(s, s.chunk_targets, chunk * s.num_gpus))
    f.cost = rooted(s, spread_ps(s, ch.flits))


@compiled
def take_chunk(s: Root, gpu: int, row: int) -> bool:
    """Makes a chunk the one that its GPU dispatches and takes it off the unsent list."""
    g = s.gpus[gpu]
    g.chunk = s.candidates[row].item
    g.chunk_pos = s.chunks[g.chunk].first
    remove(g.unsent, s.chunks, g.chunk)
    return True


@compiled
def weigh_chunk(s: Root, gpu: int, chunk: int, slots: int) -> int:
    """Fills in what a chunk moves, its slots from ``slots`` on, and returns where the next chunk's begin."""
    ch = s.chunks[chunk]
    ch.slot0 = slots
    for position in range(ch.first, ch.last):
        token = s.order[position]
        if s.dispatch.in_switch:
            stores = 0
            for store in range(token * s.stores_per_token, (token + 1) * s.stores_per_token):
                stores += s.stores[store * s.dispatch.segments].acks_left > 0
            # A token without targets is shown as one store too.
            named = s.tokens[token].remote_targets if s.dispatch.names_targets else 0
            ch.flits += max(stores, 1) * s.store_flits[named]
        for pair in range(s.tokens[token].pair0, s.tokens[token + 1].pair0):
            q = s.pairs[pair]
            if q.num_experts == 0 or not is_in_turn(s, gpu, ch.part, pair):
                continue
            for slot in range(q.slot0, q.slot0 + q.num_experts):
                s.chunk_experts[slots] = s.slot_expert[slot]
                slots += 1
            if is_remote(s, pair):
                ch.copies += 1
                s.chunk_targets[chunk * s.num_gpus + q.gpu] = True
                if not s.dispatch.in_switch:
                    ch.flits += s.store_flits[0]
    ch.num_slots = slots - ch.slot0
    return slots


@compiled
def weigh_chunks(s: Root) -> None:
    """Fills in what every chunk moves, once, so that a decision need not walk tokens; every slot is in one of them."""
    slots = 0
    for chunk in range(s.num_chunks):
        slots = weigh_chunk(s, s.chunks[chunk].gpu, chunk, slots)
