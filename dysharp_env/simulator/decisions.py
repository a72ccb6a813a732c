"""Decision points: which candidates an SM group has, what is shown of them, and how a rule scores them.

A candidate is stored as one number: a chunk (dispatch), ``tile * 2 + stage - 1`` or ``(tiles + expert) * 2`` for an
open tile closed early (GEMM), a unit (combine), a row of ``splits`` (split), or -1 for hold. Building the list twice
for one state gives the same list, so a decision that had to be asked is simply built again when the answer is there.
"""

from __future__ import annotations

import math

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.fabric import spread_ps, wire_ps
from dysharp_env.simulator.groups import block_ps, part_of
from dysharp_env.simulator.layout import (
    COMBINE,
    DISPATCH,
    GEMM,
    NOTHING,
    NUM_FEATURES,
    NUM_KINDS,
)
from dysharp_env.simulator.network import best_scored
from dysharp_env.simulator.primitives import is_pull
from dysharp_env.simulator.views import Root, context_numbers, feature_table, rule_table

# Open tiles are listed behind all ready rows, the fullest first.
PARTIAL_KEY = 1 << 60


@compiled
def root(s: Root, ps: int) -> float:
    """Returns the square root of a time over the lower bound, cut to [0, 1]: small backlogs stay visible."""
    return min(1.0, math.sqrt(max(ps, 0) / s.scale_ps))


@compiled
def uplink_backlog_ps(s: Root, gpu: int) -> int:
    """Returns how long what is queued and being sent will keep a GPU's busiest uplink busy."""
    longest_ps = 0
    for link in range(gpu * s.planes, (gpu + 1) * s.planes):
        q = s.uplinks[link]
        longest_ps = max(longest_ps, max(q.free_ps - s.now_ps, 0) + wire_ps(s, q.queued_flits))
    return longest_ps


@compiled
def downlink_backlog_ps(s: Root, gpu: int) -> int:
    """Returns how long what waits at the switch and is being sent will keep a GPU's busiest downlink busy."""
    longest_ps = 0
    for link in range(gpu * s.planes, (gpu + 1) * s.planes):
        q = s.ports[link]
        longest_ps = max(longest_ps, max(q.free_ps - s.now_ps, 0) + wire_ps(s, q.queued_flits))
    return longest_ps


@compiled
def hbm_backlog_ps(s: Root, gpu: int) -> int:
    """Returns how long a GPU's HBM is booked."""
    return max(s.gpus[gpu].hbm_free_ps - s.now_ps, 0)


# Candidate lists.


@compiled
def add_sorted(s: Root, count: int, limit: int, key: int, candidate: int) -> int:
    """Inserts a GEMM candidate by key, keeping the ``limit`` smallest; returns the new count."""
    if count == limit:
        if limit == 0 or key >= s.keys[count - 1]:
            return count
        count -= 1
    i = count
    while i > 0 and s.keys[i - 1] > key:
        s.keys[i] = s.keys[i - 1]
        s.candidates[i] = s.candidates[i - 1]
        i -= 1
    s.keys[i] = key
    s.candidates[i] = candidate
    return count + 1


@compiled
def list_rows(s: Root, gpu: int, limit: int) -> int:
    """Lists a GPU's ready rows, one per expert and GEMM, first ready first, then tiles that may be closed early."""
    g = s.gpus[gpu]
    count = 0
    for i in range(gpu * s.experts_per_gpu, (gpu + 1) * s.experts_per_gpu):
        for part in range(s.num_parts):
            expert = s.gpu_experts[i] * s.num_parts + part
            x = s.experts[expert]
            p = part_of(s, gpu, part)
            if p.gate2_open and x.row2_head != NOTHING:
                count = add_sorted(s, count, limit, s.tiles[x.row2_head].ready2_seq, x.row2_head * 2 + 1)
            if p.gate1_open:
                if x.started1 < x.ready1:
                    tile = x.tile0 + x.started1
                    count = add_sorted(s, count, limit, s.tiles[tile].ready1_seq, tile * 2)
                elif s.allow_partial and x.open_count >= g.min_partial and x.started1 == x.tiles_open - 1:
                    key = PARTIAL_KEY - x.open_count
                    count = add_sorted(s, count, limit, key, (s.num_tiles + expert) * 2)
    return count


@compiled
def list_candidates(s: Root, kind: int, gpu: int) -> int:
    """Fills ``candidates`` and ``mask`` for one SM group and returns how many are legal."""
    g = s.gpus[gpu]
    limit = s.max_candidates
    count = 0
    hold_shown = False
    hold_legal = False
    if kind == DISPATCH:
        chunk = g.unsent_head
        # Parts go one after the other.
        while chunk != NOTHING and count < limit and s.chunks[chunk].part == g.part:
            s.candidates[count] = chunk
            count += 1
            chunk = s.chunks[chunk].next
    elif kind == GEMM:
        hold_shown = s.hold_gemm == 1
        # Something must still come to this GPU, or hold would wait for ever.
        hold_legal = g.arrivals_left > 0 or g.free_sms < g.gemm_sms
        count = list_rows(s, gpu, limit - 1 if hold_shown else limit)
    elif kind == COMBINE:
        hold_shown = s.hold_combine == 1
        hold_legal = g.items_waiting > 0
        unit = g.ready_head
        while unit != NOTHING and count < (limit - 1 if hold_shown else limit):
            s.candidates[count] = unit
            count += 1
            unit = s.units[unit].next
    else:
        # What a GPU has comes first, so that a rule with no weights keeps it.
        present = g.split if s.split_done else 0
        count = min(s.num_splits, limit)
        for i in range(count):
            s.candidates[i] = present if i == 0 else i - 1 if i <= present else i
    legal = count
    for i in range(limit):
        s.mask[i] = i < count
    if hold_shown and count > 0:
        s.candidates[count] = NOTHING
        s.mask[count] = hold_legal
        legal += 1 if hold_legal else 0
        count += 1
    s.num_candidates = count
    s.num_legal = legal
    return legal


# Features.


@compiled
def dispatch_features(s: Root, chunk: int, row: int, look: bool) -> None:
    """Describes an unsent token chunk: all copies of its tokens, or those that a reader asks for (pull)."""
    f = s.features[row]
    ch = s.chunks[chunk]
    num_tokens = ch.last - ch.first
    f.size = num_tokens / s.chunk_tokens
    if not look:
        return
    fill = 0.0
    progress = 0.0
    for slot in range(ch.slot0, ch.slot0 + ch.num_slots):
        expert = s.chunk_experts[slot]
        fill += s.shown[expert].fill
        progress += s.shown[expert].progress
    if ch.num_slots > 0:
        f.tile_fill = fill / ch.num_slots
        f.expert_progress = progress / ch.num_slots
    backlog_ps = 0
    for gpu in range(s.num_gpus):
        if s.chunk_targets[chunk * s.num_gpus + gpu]:
            backlog_ps = max(backlog_ps, s.backlogs[gpu])
    f.fan_out = min(1.0, ch.copies / (num_tokens * (s.num_gpus - 1)))
    f.backlog = root(s, backlog_ps)
    f.cost = root(s, spread_ps(s, ch.flits))


@compiled
def gemm_features(s: Root, gpu: int, candidate: int, row: int, look: bool) -> None:
    """Describes a ready row or an open tile."""
    f = s.features[row]
    now = s.now_ps
    tile = candidate // 2
    stage = candidate % 2 + 1
    if tile >= s.num_tiles:
        x = s.experts[tile - s.num_tiles]
        tile = x.tile0 + x.tiles_open - 1
        count = x.open_count
        ready_ps = now
        f.is_partial = 1.0
    else:
        t = s.tiles[tile]
        x = s.experts[t.expert]
        count = t.count
        ready_ps = t.ready1_ps if stage == 1 else t.ready2_ps
    held = s.matrices[x.number]
    resident = held.resident1 if stage == 1 else held.resident2
    f.size = count / s.tile_tokens
    f.is_gemm2 = stage - 1
    f.weights_in_l2 = 1.0 if resident > 0 else 0.0
    f.waiting = root(s, now - ready_ps)
    f.expert_left = (x.total - x.arrived) / x.total
    if not look:
        return
    f.finishes = s.tiles[tile].finishes / count
    work_ps = block_ps(s, gpu, stage, count) * (s.blocks1 if stage == 1 else s.blocks2) // max(s.gpus[gpu].gemm_sms, 1)
    weight_bytes = s.weight1_bytes if stage == 1 else s.weight2_bytes
    fetch_ps = 0 if resident > 0 else weight_bytes * s.hbm_mult // s.hbm_div
    f.backlog = root(s, hbm_backlog_ps(s, gpu))
    f.cost = root(s, max(work_ps, fetch_ps))


@compiled
def combine_features(s: Root, unit: int, row: int, look: bool) -> None:
    """Describes a chunk's ready tokens, or one GPU's ready partial sums of a chunk."""
    f = s.features[row]
    u = s.units[unit]
    f.size = u.count / s.chunk_tokens
    f.waiting = root(s, s.now_ps - u.ready_ps)
    if not look:
        return
    copies = u.count
    backlog_ps = 0
    if is_pull(s):
        copies = u.copies
        for gpu in range(s.num_gpus):
            if s.unit_targets[unit * s.num_gpus + gpu]:
                backlog_ps = max(backlog_ps, s.backlogs[gpu])
    else:
        backlog_ps = s.backlogs[s.pairs[u.head].home]
    f.fan_out = min(1.0, copies / (u.count * (s.num_gpus - 1)))
    f.backlog = root(s, backlog_ps)
    f.cost = root(s, spread_ps(s, u.count * s.sum_flits))


@compiled
def measure_backlogs(s: Root, kind: int) -> None:
    """Fills ``backlogs``: downlinks, which stores and pushes meet, or uplinks, which pulled sums meet."""
    for gpu in range(s.num_gpus):
        if kind == COMBINE and is_pull(s):
            s.backlogs[gpu] = uplink_backlog_ps(s, gpu)
        else:
            s.backlogs[gpu] = downlink_backlog_ps(s, gpu)


@compiled
def describe(s: Root, kind: int, gpu: int, look: bool) -> None:
    """Fills ``features`` for the listed candidates; rows beyond them are 0."""
    feature_table(s)[:, :] = 0.0
    if look and (kind == DISPATCH or kind == COMBINE):
        measure_backlogs(s, kind)
    for row in range(s.num_candidates):
        candidate = s.candidates[row]
        if candidate == NOTHING:
            s.features[row].is_hold = 1.0
            continue
        s.features[row].order = row / s.max_candidates
        if kind == DISPATCH:
            dispatch_features(s, candidate, row, look)
        elif kind == GEMM:
            gemm_features(s, gpu, candidate, row, look)
        elif kind == COMBINE:
            combine_features(s, candidate, row, look)
        else:
            s.features[row].split_dispatch = s.splits[candidate].dispatch_sms / s.total_sms
            s.features[row].split_combine = s.splits[candidate].combine_sms / s.total_sms
            s.features[row].split_early = max(0.0, 1.0 - s.splits[candidate].early_tokens / s.tile_tokens)


@compiled
def fraction(part: int, whole: int) -> float:
    """Returns part over whole cut to [0, 1]; nothing to do counts as done."""
    return min(1.0, part / whole) if whole > 0 else 1.0


@compiled
def describe_context(s: Root, kind: int, gpu: int) -> None:
    """Fills ``context`` for the GPU that decides."""
    g = s.gpus[gpu]
    numbers = context_numbers(s)
    for i in range(NUM_KINDS):
        numbers[i] = 1.0 if i == kind else 0.0
    x = s.context[0]
    x.elapsed = min(1.0, s.now_ps / (4.0 * s.scale_ps))
    x.sent = fraction(g.tokens_sent, s.sends_per_gpu)
    x.received = fraction(g.slots - g.arrivals_left, g.slots)
    x.gemm_done = fraction(2 * g.slots - g.slots1_left - g.slots2_left, 2 * g.slots)
    x.combined = fraction(g.combined, s.tokens_per_gpu)
    x.uplink_backlog = root(s, uplink_backlog_ps(s, gpu))
    x.downlink_backlog = root(s, downlink_backlog_ps(s, gpu))
    x.hbm_backlog = root(s, hbm_backlog_ps(s, gpu))
    x.free_sms = g.free_sms / max(g.gemm_sms, 1)
    x.dispatch_in_flight = fraction(g.dispatch_in_flight, g.dispatch_sms * s.dispatch_slots)
    x.combine_in_flight = fraction(g.combine_in_flight, g.combine_sms * s.combine_slots)
    x.all_combined = fraction(s.num_tokens - s.tokens_left, s.num_tokens)
    x.link_share = fraction(s.links_ps, s.scale_ps)
    x.gemm_share = fraction(s.gemms_ps, s.scale_ps)
    x.hbm_share = fraction(s.hbm_ps, s.scale_ps)
    x.tokens_per_expert = g.slots / (g.slots + s.experts_per_gpu * s.tile_tokens)
    x.l2_room = s.l2_bytes / (s.l2_bytes + s.experts_per_gpu * (s.matrix1_bytes + s.matrix2_bytes))
    ready = g.items - g.items_waiting if s.split_done else 0
    x.ready = ready / max(g.items, 1)
    x.any_ready = 1.0 if ready > 0 else 0.0
    x.all_sent = 1.0 if g.tokens_sent == s.sends_per_gpu else 0.0


@compiled
def rule_choice(s: Root, kind: int, gpu: int) -> int:
    """Returns the legal candidate with the highest score, the first of equals."""
    if (s.networked >> kind) & 1:
        describe(s, kind, gpu, True)
        describe_context(s, kind, gpu)
        s.asked += 1
        return best_scored(s)
    if not (s.ruled >> kind) & 1:
        return 0
    describe(s, kind, gpu, (s.looks >> kind) & 1 == 1)
    weights = rule_table(s)
    rows = feature_table(s)
    best = NOTHING
    best_score = 0.0
    for row in range(s.num_candidates):
        if not s.mask[row]:
            continue
        score = 0.0
        for i in range(NUM_FEATURES):
            score += weights[kind, i] * rows[row, i]
        if best == NOTHING or score > best_score:
            best = row
            best_score = score
    return best


@compiled
def is_exposed(s: Root, kind: int) -> bool:
    """Returns whether decisions of this kind are asked rather than ruled."""
    return (s.exposed >> kind) & 1 == 1


@compiled
def decide(s: Root, kind: int, gpu: int) -> int:
    """Returns the chosen candidate's row, NOTHING if there is none, or -2 if the answer has to be asked for.

    A decision with one legal answer is taken without asking.
    """
    legal = list_candidates(s, kind, gpu)
    if s.num_candidates == 0:
        return NOTHING
    if legal == 1:
        return 0
    if is_exposed(s, kind):
        if s.choice != NOTHING:
            choice = s.choice
            s.choice = NOTHING
            s.asked += 1
            s.decisions += 1
            return choice
        s.pending_kind = kind
        s.pending_gpu = gpu
        describe(s, kind, gpu, True)
        describe_context(s, kind, gpu)
        return -2
    s.decisions += 1
    return rule_choice(s, kind, gpu)
