"""What the simulator needs to know of a schedule: numbers, never a name."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.codes import GATE_FINE, GATE_GPU
from dysharp_env.simulator.state.observation import NUM_FEATURES, NUM_KINDS
from dysharp_env.system.primitives import Primitive


def require_fit(
    dispatch: Primitive, combine: Primitive, *, copies_per_expert: bool, loopback: bool, by_peers: bool, gpu_sums: bool
) -> None:
    """Checks that primitives can do what a schedule asks of them.

    Args:
        dispatch: Moves tokens.
        combine: Brings sums home.
        copies_per_expert: See ``Program``.
        loopback: See ``Program``.
        by_peers: See ``Program``.
        gpu_sums: Whether combine waits for a GPU's own GEMM-2.

    Raises:
        ValueError: They cannot; the message names the schedule's key.
    """
    given = f"not {dispatch.name} and {combine.name}"
    in_switch = dispatch.in_switch or combine.in_switch
    if copies_per_expert and in_switch:
        raise ValueError(f"copies=expert needs unicast or pull both ways, {given}")
    if gpu_sums and combine.reads:
        raise ValueError(f"readiness.combine=gpu needs pushed sums (unicast or push_reduce), not {combine.name}")
    if by_peers and (in_switch or dispatch.reads or combine.reads):
        raise ValueError(f"parts.by=peers needs unicast both ways, {given}")
    if loopback and not (dispatch.to_all and combine.to_all):
        raise ValueError(f"loopback needs dispatch broadcast and combine reduce_scatter, {given}")


@dataclass(frozen=True)
class Program:
    """How one layer is run: primitives, readiness gates, costs paid, SM groups, rules and what is asked.

    Attributes:
        dispatch, combine: Primitives that move tokens to their experts and sums home.
        kernels: Families of kernels that issue dispatches and combines; empty: those that usually issue the primitive.
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
        in_gemm: Whether the GEMMs' thread blocks issue dispatches and combines, and lose the time.
        chunk_tokens: Tokens of one home GPU that a dispatch or combine decision takes together.
        waves: Whether chunks hold tokens in expert waves rather than in their natural order; see ordering.py.
        partial_tiles: Whether an open tile may be closed early.
        min_partial_tokens: The fewest tokens such a tile has.
        may_hold: Decision kinds in which a group may wait although it has something to do.
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

    dispatch: Primitive
    combine: Primitive
    gates: tuple[int, int, int]
    pays_ps: tuple[int, int, int, int]
    dispatch_sms: int
    gemm_sms: int
    combine_sms: int
    kernels: tuple[str, str] = ("", "")
    copies_per_expert: bool = False
    loopback: bool = False
    parts: int = 1
    by_peers: bool = False
    exclusive: bool = False
    pay_end_ps: int = 0
    in_gemm: bool = False
    chunk_tokens: int = 8
    waves: bool = False
    partial_tiles: bool = False
    min_partial_tokens: int = 16
    may_hold: frozenset[int] = frozenset()
    weights: np.ndarray = field(default_factory=lambda: np.zeros((NUM_KINDS, NUM_FEATURES)))
    splits: tuple[tuple[int, int, int], ...] = ()
    split_moments: int = 0
    exposed: frozenset[int] = frozenset()
    network: Network | None = None
    networked: frozenset[int] = frozenset()
    max_candidates: int = 32

    def __post_init__(self) -> None:
        require_fit(
            self.dispatch,
            self.combine,
            copies_per_expert=self.copies_per_expert,
            loopback=self.loopback,
            by_peers=self.by_peers,
            gpu_sums=self.gates[2] == GATE_GPU,
        )
        for primitive, family in zip((self.dispatch, self.combine), self.kernels, strict=True):
            if family:
                primitive.require_family(family)
        if (self.network is None) != (not self.networked) or self.networked & self.exposed:
            raise ValueError("a network answers some kinds of decisions, and none that is asked")
        if self.gates[1] == GATE_GPU:
            raise ValueError("GEMM-2 waits for its GPU's GEMM-1 at most: GATE_PHASE")

    @property
    def static(self) -> bool:
        """Whether a primitive addresses all GPUs, so that a token has a pair with every one of them."""
        return self.dispatch.to_all or self.combine.to_all

    @property
    def notifies(self) -> bool:
        """Whether expert GPUs tell home GPUs of finished rows; a phase boundary makes that unnecessary."""
        return self.combine.reads and self.gates[2] == GATE_FINE

    @property
    def most_sms(self) -> tuple[int, int]:
        """The most SMs that dispatch and that combine on one GPU, under any split."""
        return (
            max([self.dispatch_sms, *(dispatch for dispatch, _, _ in self.splits)]),
            max([self.combine_sms, *(combine for _, combine, _ in self.splits)]),
        )

    def smallest_tile(self, tile_tokens: int) -> int:
        """Returns the fewest tokens of a tile of a layer, but for the last ones of an expert."""
        early = [self.min_partial_tokens] if self.partial_tiles else []
        return min([tile_tokens, *early, *(split[2] for split in self.splits)])

    def may_close_early(self, tile_tokens: int) -> bool:
        """Returns whether an open tile of a layer may be closed early, by any split."""
        return self.partial_tiles or any(early < tile_tokens for _, _, early in self.splits)
