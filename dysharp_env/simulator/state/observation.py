"""What an agent can be asked and what it is shown: one table of decision kinds, one of features, one of context values.

Records, indices, spaces, rules, the guide's tables and the twin's check are made from these. Every value lies in
[0, 1]; the "root" of a time is sqrt(time / lower bound), cut at 1, so that small backlogs stay visible.

``kernel/choices/`` has a file a kind: what its SM group does without a choice, its candidates, what is shown of them,
and what comes of one. What is not asked follows a rule: the weights of a schedule, and with none the first candidate.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import numpy as np

DecisionKind = Literal["plan", "replicate", "split", "dispatch", "prefetch", "gemm", "combine"]
DECISION_KINDS: tuple[DecisionKind, ...] = get_args(DecisionKind)
# Codes of the kinds, and of the SM groups that take them.
PLAN, REPLICATE, SPLIT, DISPATCH, PREFETCH, GEMM, COMBINE = range(len(DECISION_KINDS))
NUM_KINDS = len(DECISION_KINDS)
# Those before the layer begins, which decide what the engine runs, and those that the engine asks.
OPENING_KINDS, ENGINE_KINDS = DECISION_KINDS[:SPLIT], DECISION_KINDS[SPLIT:]


class Kind(NamedTuple):
    """One kind of decision.

    Attributes:
        candidates: What they are, and when somebody is asked.
        shown: What the context value ``is_KIND`` says.
        may_wait: Whether one candidate may be hold: to wait for the next event that concerns the group.
    """

    candidates: str
    shown: str
    may_wait: bool = False


KINDS: dict[DecisionKind, Kind] = {
    "plan": Kind(
        "ways to run the layer, from ``plans``, those that the machine can: once, before counts are known",
        "1 if the way to run the layer is chosen",
    ),
    "replicate": Kind(
        "(expert, GPU) pairs that relieve a GPU with more than its share: copy the expert's weights there, if they are "
        "not, with as many of its tokens as bring both closest to their shares; or hold: enough",
        "1 if copies of experts are chosen",
        may_wait=True,
    ),
    "split": Kind(
        "SM-group sizes, from ``splits``: at the start for all GPUs; with ``split_moments``, as a GPU's tokens "
        "are sent and its sums get ready, for that GPU, the present ones first",
        "1 if SM-group sizes are chosen: for all GPUs at the start, then for this one",
    ),
    "dispatch": Kind(
        "which unsent token chunk a GPU's dispatch group takes next",
        "1 if a token chunk to dispatch is chosen",
    ),
    "prefetch": Kind(
        "which expert matrix a GPU's HBM, which has nothing to do, brings into L2 ahead of its use; or hold",
        "1 if weights to fetch ahead are chosen",
        may_wait=True,
    ),
    "gemm": Kind(
        "which ready row (GEMM-1, GEMM-2, or an open tile closed early) a GPU's free GEMM SMs take next; or hold",
        "1 if a row is chosen",
        may_wait=True,
    ),
    "combine": Kind(
        "which chunk with ready tokens a GPU's combine group takes next; or hold",
        "1 if a chunk to combine is chosen",
        may_wait=True,
    ),
}


class Feature(NamedTuple):
    """What a decision shows of one candidate.

    Attributes:
        name: In rules, records and policies.
        meaning: For people.
        kinds: Kinds of decision that show it; it is 0 in others.
        walks: Whether working it out walks tokens or GPUs; a rule that gives such features no weight does not pay.
    """

    name: str
    meaning: str
    kinds: tuple[DecisionKind, ...]
    walks: bool = False


GROUPS: tuple[DecisionKind, ...] = ("dispatch", "gemm", "combine")
WAITING: tuple[DecisionKind, ...] = tuple(kind for kind in DECISION_KINDS if KINDS[kind].may_wait)
ROWS: tuple[DecisionKind, ...] = ("gemm", "combine")
MATRICES: tuple[DecisionKind, ...] = ("prefetch", "gemm")
SIZES: tuple[DecisionKind, ...] = ("plan", "split")
FEATURE_TABLE = (
    Feature("is_hold", "1 for hold, whose other features but ``ruled`` are 0", WAITING),
    Feature(
        "order",
        "place in the list over max_candidates (first unsent; first ready; fullest open tile last; most tokens first)",
        DECISION_KINDS,
    ),
    Feature(
        "size",
        "tokens over chunk_tokens (dispatch) or tile_tokens (GEMM; prefetch: those known of its expert, cut at 1); "
        "combine: sums over the most a chunk can have there; plan: chunk_tokens over the tokens of a GPU, cut at 1",
        ("plan", *GROUPS[:1], "prefetch", *GROUPS[1:]),
    ),
    Feature("is_gemm2", "1 for a GEMM-2 row or matrix", MATRICES),
    Feature("is_partial", "1 for an open tile that would be closed early; plan: 1 if tiles may be", ("plan", "gemm")),
    Feature("weights_in_l2", "1 if the row's expert matrix is in L2", ("gemm",)),
    Feature("waiting", "root of the time since it became ready", ROWS),
    Feature("expert_left", "fraction of the expert's tokens still to arrive", MATRICES),
    Feature("finishes", "fraction of the row's tokens whose other experts are all done", ("gemm",), walks=True),
    Feature(
        "tile_fill", "dispatch: mean fill of the open tiles the chunk's tokens would join", ("dispatch",), walks=True
    ),
    Feature(
        "expert_progress",
        "dispatch: mean fraction of their tokens that the chunk's experts have received",
        ("dispatch",),
        walks=True,
    ),
    Feature(
        "fan_out",
        "dispatch, combine: mean remote GPUs per token over GPUs - 1; plan: mean copies of a token over that, cut at 1",
        ("plan", "dispatch", "combine"),
        walks=True,
    ),
    Feature(
        "backlog", "root of the longest queue it meets: target downlinks, expert uplinks, or HBM", GROUPS, walks=True
    ),
    Feature(
        "cost",
        "root of the time it takes on its GPU's link, or on the GEMM group or HBM; replicate: of all weights chosen so "
        "far on the busier of the links that it takes; plan: of the SMs that move tokens, or sums",
        ("plan", "replicate", "dispatch", "prefetch", "gemm", "combine"),
        walks=True,
    ),
    Feature("wanted", "prefetch: 1 if a row that is ready needs it", ("prefetch",)),
    Feature(
        "drops",
        "prefetch: bytes that would give way in L2, dead weights aside, over those that it lacks of the matrix",
        ("prefetch",),
    ),
    Feature("split_dispatch", "dispatch SMs over all SMs", SIZES),
    Feature("split_combine", "combine SMs over all SMs", SIZES),
    Feature(
        "split_early",
        "1 less the fewest tokens of an open tile that may be closed early over tile_tokens",
        SIZES,
    ),
    Feature("relief", "replicate: share of all work beyond the mean of GPUs that goes away", ("replicate",)),
    Feature("gain", "replicate: root of the time that its tokens take of the GPU that they leave", ("replicate",)),
    Feature("adds", "replicate: the same of the GPU that is to compute them", ("replicate",)),
    Feature("room", "replicate: share that this is of what that GPU has less than the mean", ("replicate",)),
    Feature(
        "beyond", "replicate: root of the time that the GPU that they leave has more than the mean", ("replicate",)
    ),
    Feature(
        "late",
        "replicate: time for all weights that the ``cost`` is of over the work of the GPU they relieve",
        ("replicate",),
    ),
    Feature("stays", "replicate: share of its tokens that live where they are to be computed", ("replicate",)),
    Feature("holders", "replicate: share of GPUs that hold the expert already", ("replicate",)),
    Feature("links", "plan: root of the time that its tokens and sums take of a link, evenly routed", ("plan",)),
    Feature("paid", "plan: root of what it pays for launches, barriers, counts and planning", ("plan",)),
    Feature("counts", "plan: 1 if counts are exchanged", ("plan",)),
    Feature("multicasts", "plan: 1 if the switch replicates tokens", ("plan",)),
    Feature("pulls", "plan: 1 if experts' GPUs read tokens", ("plan",)),
    Feature("switch_sums", "plan: 1 if the switch adds results", ("plan",)),
    Feature("pushes", "plan: 1 if results are sent, not read", ("plan",)),
    Feature("per_expert", "plan: 1 if each of a token's experts gets a copy of its own", ("plan",)),
    Feature("in_gemm", "plan: 1 if GEMMs' thread blocks communicate", ("plan",)),
    Feature("waves", "plan: 1 if tokens go in waves of experts", ("plan",)),
    Feature("phases", "plan: fraction of GEMM-1, GEMM-2 and combine that wait for the stage before to end", ("plan",)),
    Feature("prefetches", "plan: 1 if weights are fetched ahead", ("plan",)),
    Feature(
        "copies_experts",
        "plan: if it may copy experts, 1 less the mean load of GPUs over that of the busiest in an earlier batch",
        ("plan",),
    ),
    Feature("ruled", "1 for what the schedule's own rule would take", DECISION_KINDS),
)


class Value(NamedTuple):
    """What a decision shows of the GPU that decides, or of the whole layer."""

    name: str
    meaning: str


CONTEXT_TABLE = (
    *(Value(f"is_{kind}", KINDS[kind].shown) for kind in DECISION_KINDS),
    Value("elapsed", "time so far over 4 lower bounds, cut at 1"),
    Value("sent", "fraction of this GPU's tokens dispatched"),
    Value("received", "fraction of this GPU's (token, expert) pairs that have arrived"),
    Value("gemm_done", "fraction of this GPU's GEMM work finished, by tokens"),
    Value("combined", "fraction of this GPU's own tokens combined"),
    Value("uplink_backlog", "root of what waits on this GPU's uplink"),
    Value("downlink_backlog", "root of what waits at the switch for this GPU"),
    Value("hbm_backlog", "root of what waits for this GPU's HBM"),
    Value("free_sms", "free fraction of the GEMM group"),
    Value("dispatch_in_flight", "fraction of the vectors that the dispatch group may keep in flight"),
    Value("combine_in_flight", "the same for the combine group"),
    Value("all_combined", "fraction of all tokens combined"),
    Value("link_share", "what the busiest link alone needs over the lower bound: near 1 if links bind"),
    Value("gemm_share", "the same for the SMs of the GPU with the most GEMM work"),
    Value("hbm_share", "the same for the HBM that expert weights keep busiest"),
    Value(
        "tokens_per_expert", "(token, expert) pairs an expert of this GPU has on average, over themselves and a tile"
    ),
    Value("l2_room", "L2 over itself and the matrices of this GPU's experts"),
    Value("ready", "fraction of the sums that this GPU combines that it may combine, or has"),
    Value("any_ready", "1 if there is one"),
    Value("all_sent", "1 if this GPU has dispatched all its tokens"),
    Value(
        "imbalance",
        "1 less the mean load of GPUs over that of the busiest; of an earlier batch, or 0, until counts are known",
    ),
)

FEATURE_MEANINGS = {feature.name: feature.meaning for feature in FEATURE_TABLE}
CONTEXT_MEANINGS = {value.name: value.meaning for value in CONTEXT_TABLE}
CANDIDATE_MEANINGS = {kind: KINDS[kind].candidates for kind in DECISION_KINDS}
FEATURES, CONTEXT = tuple(FEATURE_MEANINGS), tuple(CONTEXT_MEANINGS)
NUM_FEATURES, NUM_CONTEXT = len(FEATURES), len(CONTEXT)
# What a rule may weigh: all but what it takes itself.
RULE_FEATURES = tuple(name for name in FEATURES if name != "ruled")
# One row of what compiled code fills in, by name.
FEATURE_ROW = np.dtype([(name, np.float32) for name in FEATURES])
CONTEXT_ROW = np.dtype([(name, np.float32) for name in CONTEXT])
WALKS = np.array([feature.walks for feature in FEATURE_TABLE])


class ShownByName:
    """What a decision shows, by names; for decisions of the engine and of the twin."""

    kind: int
    features: np.ndarray
    context: np.ndarray
    mask: np.ndarray

    @property
    def kind_name(self) -> str:
        """One of ``DECISION_KINDS``, such as ``gemm``."""
        return DECISION_KINDS[self.kind]

    def feature(self, name: str) -> np.ndarray:
        """Returns the (max_candidates,) values of one of ``FEATURES``, such as ``weights_in_l2``."""
        return self.features[:, FEATURES.index(name)]

    def context_value(self, name: str) -> float:
        """Returns one of ``CONTEXT``, such as ``sent``."""
        return float(self.context[CONTEXT.index(name)])

    def best(self, scores: np.ndarray) -> int:
        """Returns the legal row with the highest of (max_candidates,) scores, the first of equals."""
        return int(np.where(self.mask, scores, -np.inf).argmax())
