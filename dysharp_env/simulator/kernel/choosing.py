"""Decision points: the candidates of an SM group, what is shown of them, who chooses, and who acts when.

What each kind of decision lists, shows and does is in ``choices/``. Building a list twice for one state gives the same
list, so a decision that had to be asked is simply built again when the answer is there.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.jit.pointers import doubles, float_rows, floats
from dysharp_env.simulator.kernel.kinds import act, describe_of_kind, list_of_kind, may_hold, measure_backlogs, take
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.network import best_scored
from dysharp_env.simulator.kernel.shares import backlog_ps, fraction, hbm_backlog_ps, rooted
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NOTHING
from dysharp_env.simulator.state.observation import (
    COMBINE,
    DISPATCH,
    GEMM,
    NUM_FEATURES,
    NUM_KINDS,
)

# ``decide`` returns this when the answer has to come from outside.
WAIT = -2


@compiled
def list_candidates(s: Root, kind: int, gpu: int) -> int:
    """Fills ``candidates`` and ``mask`` for one SM group and returns how many are legal."""
    offers_hold = s.answerers[kind].may_hold
    count = list_of_kind(s, kind, gpu, s.max_candidates - offers_hold)
    legal = count
    for i in range(s.max_candidates):
        s.mask[i] = i < count
    if offers_hold and count > 0:
        holds = may_hold(s, kind, gpu)
        s.candidates[count].item = NOTHING
        s.mask[count] = holds
        legal += 1 if holds else 0
        count += 1
    s.num_candidates = count
    s.num_legal = legal
    return legal


@compiled
def describe(s: Root, kind: int, gpu: int, walks: bool) -> None:
    """Fills ``features`` for the listed candidates; rows beyond them are 0."""
    float_rows(s.features_at, s.max_candidates, NUM_FEATURES)[:, :] = 0.0
    if walks:
        measure_backlogs(s, kind)
    for row in range(s.num_candidates):
        if s.candidates[row].item == NOTHING:
            s.features[row].is_hold = 1.0
            continue
        s.features[row].order = row / s.max_candidates
        describe_of_kind(s, kind, gpu, row, walks)


@compiled
def describe_context(s: Root, kind: int, gpu: int) -> None:
    """Fills ``context`` for the GPU that decides."""
    kinds = floats(s.context_at, NUM_KINDS)
    for i in range(NUM_KINDS):
        kinds[i] = 1.0 if i == kind else 0.0
    g = s.gpus[gpu]
    gemm, dispatch, combine = g.groups[GEMM], g.groups[DISPATCH], g.groups[COMBINE]
    x = s.context[0]
    x.elapsed = min(1.0, s.now_ps / (4.0 * s.scale_ps))
    x.sent = fraction(g.tokens_sent, g.sends)
    # Until all sources are done nobody knows how much there is: what has arrived counts, and an even share is expected.
    is_told = g.start_open == 1 and g.sources_left == 0
    arrived = g.slots - g.arrivals_left
    slots = g.slots if is_told else s.num_tokens * s.top_k // s.num_gpus
    x.received = fraction(arrived, slots) if is_told else fraction(g.sources - g.sources_left, max(g.sources, 1))
    done = 2 * g.slots - g.slots_left[GEMM1] - g.slots_left[GEMM2]
    x.gemm_done = fraction(done, 2 * (slots if is_told else arrived))
    x.combined = fraction(g.combined, g.num_tokens)
    x.uplink_backlog = rooted(s, backlog_ps(s, s.uplinks, gpu))
    x.downlink_backlog = rooted(s, backlog_ps(s, s.ports, gpu))
    x.hbm_backlog = rooted(s, hbm_backlog_ps(s, gpu))
    x.free_sms = g.free_sms / max(gemm.sms, 1)
    x.dispatch_in_flight = fraction(dispatch.in_flight, dispatch.wanted_sms * s.dispatch.slots)
    x.combine_in_flight = fraction(combine.in_flight, combine.wanted_sms * s.combine.slots)
    x.all_combined = fraction(s.num_tokens - s.tokens_left, s.num_tokens)
    x.link_share = fraction(s.links_ps, s.scale_ps)
    x.gemm_share = fraction(s.gemms_ps, s.scale_ps)
    x.hbm_share = fraction(s.hbm_ps, s.scale_ps)
    x.tokens_per_expert = slots / (slots + g.num_experts * s.tile_tokens) if g.num_experts > 0 else 0.0
    expert_bytes = s.gemms[GEMM1].matrix_bytes + s.gemms[GEMM2].matrix_bytes
    x.l2_room = s.l2_bytes / (s.l2_bytes + g.num_experts * expert_bytes)
    ready = g.items - g.items_waiting if s.split_done else 0
    x.ready = ready / max(g.items, 1) if is_told or s.combine.reads else 0.0
    x.any_ready = 1.0 if ready > 0 else 0.0
    x.all_sent = 1.0 if g.tokens_sent == g.sends else 0.0
    x.imbalance = s.imbalance_ppm / 1e6 if g.start_open else 0.0


@compiled
def ruled_choice(s: Root, kind: int, gpu: int) -> int:
    """Returns the legal candidate that the network or the rule scores highest, the first of equals."""
    answerer = s.answerers[kind]
    if answerer.networked:
        show(s, kind, gpu)
        s.asked += 1
        return best_scored(s)
    if not answerer.ruled:
        return 0
    describe(s, kind, gpu, answerer.walks == 1)
    return best_by_rule(s, kind)


@compiled
def show(s: Root, kind: int, gpu: int) -> None:
    """Fills in all that is shown of a decision to whoever answers in place of the rule."""
    describe(s, kind, gpu, True)
    describe_context(s, kind, gpu)
    s.features[best_by_rule(s, kind)].ruled = 1.0


@compiled
def best_by_rule(s: Root, kind: int) -> int:
    """Returns the legal candidate that the rule scores highest by its features, the first of equals."""
    weights = doubles(s.weights_at + 8 * kind * NUM_FEATURES, NUM_FEATURES)
    rows = float_rows(s.features_at, s.max_candidates, NUM_FEATURES)
    best = NOTHING
    best_score = 0.0
    for row in range(s.num_candidates):
        if not s.mask[row]:
            continue
        score = 0.0
        for i in range(NUM_FEATURES):
            score += weights[i] * rows[row, i]
        if best == NOTHING or score > best_score:
            best = row
            best_score = score
    return best


@compiled
def decide(s: Root, kind: int, gpu: int) -> int:
    """Returns the chosen candidate's row, NOTHING if there is none, or WAIT if the answer has to be asked for.

    A decision with one legal answer is taken without asking.
    """
    legal = list_candidates(s, kind, gpu)
    if s.num_candidates == 0:
        return NOTHING
    if legal == 1:
        return 0
    if not s.answerers[kind].exposed:
        s.decisions += 1
        return ruled_choice(s, kind, gpu)
    if s.choice == NOTHING:
        s.pending_kind = kind
        s.pending_gpu = gpu
        show(s, kind, gpu)
        return WAIT
    choice = s.choice
    s.choice = NOTHING
    s.asked += 1
    s.decisions += 1
    return choice


@compiled
def pump(s: Root, kind: int, gpu: int) -> bool:
    """Lets one SM group act, or a GPU choose the sizes of its groups, as long as it can; True if it has to ask."""
    while act(s, kind, gpu):
        row = decide(s, kind, gpu)
        if row == WAIT:
            return True
        if row == NOTHING or not take(s, kind, gpu, row):
            return False
    return False
