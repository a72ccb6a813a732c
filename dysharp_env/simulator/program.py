"""What the simulator needs to know of a schedule: numbers, never a name."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dysharp_env.simulator.layout import (
    COMBINE,
    COMBINE_PRIMITIVES,
    CONTEXT,
    DECISION_KINDS,
    DISPATCH_PRIMITIVES,
    FEATURES,
    GATE_FINE,
    GATE_GPU,
)
from dysharp_env.simulator.network import Network


@dataclass(frozen=True)
class Program:
    """How one layer is run: primitives, readiness gates, costs paid, SM groups, rules and what is asked.

    Attributes:
        dispatch_primitive: Index into ``DISPATCH_PRIMITIVES``.
        combine_primitive: Index into ``COMBINE_PRIMITIVES``.
        copies_per_expert: Whether every (token, expert) is a copy and a partial sum of its own, rather than every
            (token, expert GPU); for unicast and pull only.
        parts: Shares that every stage is cut into, each with gates of its own and dispatched one after the other. Tiles
            do not mix parts. At most one per token chunk, or per GPU if ``by_peers``.
        by_peers: Whether a part is a share of the peers that a GPU exchanges tokens with, by distance, rather than of
            its own tokens; for unicast only.
        exclusive: Whether a GPU combines only when all it dispatches is stored and all it is sent has arrived.
        loopback: Whether a home GPU's own copy and contribution cross the switch as well; for static primitives only.
        gates: Of GEMM-1, GEMM-2, combine: ``GATE_FINE``, ``GATE_PHASE`` or ``GATE_GPU`` (not GEMM-2, nor pulled sums).
        pays_ps: What is paid before dispatch, GEMM-1, GEMM-2 and combine may start; the last three need a phase gate.
        pay_end_ps: What is paid after the last token is home.
        dispatch_sms, gemm_sms, combine_sms: SM groups of every GPU.
        chunk_tokens: Tokens of one home GPU that a dispatch or combine decision takes together.
        waves: Whether chunks hold tokens in expert waves rather than in their natural order; see ordering.py.
        allow_partial: Whether an open tile may be closed early.
        min_partial_tokens: The fewest tokens such a tile has.
        hold_gemm, hold_combine: Whether those groups may wait although they have something to do.
        weights: (kind, feature) rule; a candidate's score is weights . features, the highest is taken.
        splits: (dispatch SMs, combine SMs, fewest tokens of an open tile that may be closed early) offered by the split
            decision; empty: no such decision.
        split_moments: How often the split is decided again on each GPU: after every such share of the tokens it
            dispatches, and of the sums that it may combine, and at the first of them. 0: only before the layer starts.
        exposed: Decision kinds that are asked; the others follow ``weights``, or the network.
        network: A network that scores candidates; the highest is taken.
        networked: Decision kinds it answers.
        max_candidates: Most candidates one decision shows.
    """

    dispatch_primitive: int
    combine_primitive: int
    gates: tuple[int, int, int]
    pays_ps: tuple[int, int, int, int]
    dispatch_sms: int
    gemm_sms: int
    combine_sms: int
    copies_per_expert: bool = False
    loopback: bool = False
    parts: int = 1
    by_peers: bool = False
    exclusive: bool = False
    pay_end_ps: int = 0
    chunk_tokens: int = 8
    waves: bool = False
    allow_partial: bool = False
    min_partial_tokens: int = 16
    hold_gemm: bool = False
    hold_combine: bool = False
    weights: np.ndarray = field(default_factory=lambda: np.zeros((len(DECISION_KINDS), len(FEATURES))))
    splits: tuple[tuple[int, int, int], ...] = ()
    split_moments: int = 0
    exposed: frozenset[int] = frozenset()
    network: Network | None = None
    networked: frozenset[int] = frozenset()
    max_candidates: int = 32

    def __post_init__(self) -> None:
        dispatch = DISPATCH_PRIMITIVES[self.dispatch_primitive]
        combine = COMBINE_PRIMITIVES[self.combine_primitive]
        if self.copies_per_expert and not ({dispatch, combine} <= {"unicast", "pull"}):
            raise ValueError(f"copies_per_expert needs unicast or pull both ways, not {dispatch} and {combine}")
        if self.loopback and (dispatch, combine) != ("broadcast", "reduce_scatter"):
            raise ValueError(f"loopback needs broadcast and reduce_scatter, not {dispatch} and {combine}")
        if self.by_peers and (dispatch, combine) != ("unicast", "unicast"):
            raise ValueError(f"parts by peers need unicast both ways, not {dispatch} and {combine}")
        if (self.network is None) != (not self.networked) or self.networked & self.exposed:
            raise ValueError("a network answers some kinds of decisions, and none that is asked")
        if self.gates[1] == GATE_GPU or (self.gates[2] == GATE_GPU and self.pulls):
            raise ValueError("gates of one GPU are for GEMM-1 and pushed sums")

    @property
    def pulls(self) -> bool:
        """Whether home GPUs pull sums rather than expert GPUs pushing them."""
        return COMBINE_PRIMITIVES[self.combine_primitive] in ("pull_reduce", "reduce_scatter", "pull")

    @property
    def asks_for_sums(self) -> bool:
        """Whether a home GPU asks for the sum of a token, rather than for every partial sum."""
        return COMBINE_PRIMITIVES[self.combine_primitive] in ("pull_reduce", "reduce_scatter")

    @property
    def stores_once(self) -> bool:
        """Whether a token leaves its home GPU once and the switch makes the copies."""
        return DISPATCH_PRIMITIVES[self.dispatch_primitive] in ("multicast", "broadcast")

    @property
    def static(self) -> bool:
        """Whether a primitive addresses all GPUs, so that a token has a pair with every one of them."""
        return (
            DISPATCH_PRIMITIVES[self.dispatch_primitive] == "broadcast"
            or COMBINE_PRIMITIVES[self.combine_primitive] == "reduce_scatter"
        )

    @property
    def reads_tokens(self) -> bool:
        """Whether expert GPUs read the tokens they need rather than home GPUs storing them."""
        return DISPATCH_PRIMITIVES[self.dispatch_primitive] == "pull"

    @property
    def notifies(self) -> bool:
        """Whether expert GPUs tell home GPUs of finished rows; a phase boundary makes that unnecessary."""
        return self.pulls and self.gates[COMBINE - 1] == GATE_FINE


# Sizes of what decisions show, for those who build spaces and networks.
NUM_FEATURES = len(FEATURES)
NUM_CONTEXT = len(CONTEXT)
