"""What the simulator needs to know of a schedule: numbers, never a name."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.codes import BY_EXPERTS, BY_PEERS, BY_TOKENS, GATE_FINE, GATE_GPU
from dysharp_env.simulator.state.observation import NUM_FEATURES, NUM_KINDS
from dysharp_env.system.primitives import Primitive


def require_fit(
    dispatch: Primitive,
    combine: Primitive,
    *,
    copies_per_expert: bool,
    loopback: bool,
    parts_by: int,
    combine_gate: int,
    in_band: bool,
) -> None:
    """Checks that primitives can do what a schedule asks of them.

    Args:
        dispatch: Moves tokens.
        combine: Brings sums home.
        copies_per_expert: See ``Program``.
        loopback: See ``Program``.
        parts_by: See ``Program``.
        combine_gate: The last of ``Program.gates``.
        in_band: See ``Program``.

    Raises:
        ValueError: They cannot; the message names the schedule's key.
    """
    given = f"not {dispatch.name} and {combine.name}"
    in_switch = dispatch.in_switch or combine.in_switch
    if copies_per_expert and in_switch:
        raise ValueError(f"copies=expert needs unicast or pull both ways, {given}")
    if combine_gate == GATE_GPU and combine.reads:
        raise ValueError(f"readiness.combine=gpu needs pushed sums (unicast or push_reduce), not {combine.name}")
    if parts_by == BY_PEERS and (in_switch or dispatch.reads or combine.reads):
        raise ValueError(f"parts.by=peers needs unicast both ways, {given}")
    if parts_by == BY_EXPERTS and not copies_per_expert:
        raise ValueError("parts.by=experts needs copies=expert: a copy is then of one expert, and so of one part")
    if parts_by == BY_EXPERTS and combine_gate != GATE_FINE:
        raise ValueError("parts.by=experts needs readiness.combine=token: a token's experts are in several parts")
    if in_band and dispatch.reads:
        raise ValueError(
            "dispatch=pull with readiness.gemm1=tile needs 'count_exchange' in pays.dispatch: who reads must know what"
        )
    if loopback and not (dispatch.to_all and combine.to_all):
        raise ValueError(f"loopback needs dispatch broadcast and combine reduce_scatter, {given}")


def require_copying(primitive: Primitive, family: str) -> None:
    """Checks that copies of weights can be made by a primitive.

    Bulk copies also go to multimem addresses (``multimem.cp.async.bulk`` of the PTX ISA), which suits whole tiles.

    Args:
        primitive: Moves weights.
        family: Of the kernels that issue it; empty: those that usually do.

    Raises:
        ValueError: They cannot, or not by such kernels.
    """
    if primitive.to_all:
        raise ValueError(f"weights cannot go to all GPUs, as {primitive.name} does: copies are of some")
    if family and not (primitive.in_switch and family == "bulk"):
        primitive.require_family(family)


@dataclass(frozen=True)
class Program:
    """How one layer is run: primitives, readiness gates, costs paid, SM groups, rules and what is asked.

    Attributes:
        dispatch, combine: Primitives that move tokens to their experts and sums home.
        families: Of kernels that issue dispatches and combines; empty: those that usually issue the primitive.
        copies_per_expert: Whether every (token, expert) is a copy and a partial sum of its own, rather than every
            (token, expert GPU); for unicast and pull only.
        parts: Shares that every stage is cut into, each with gates of its own and dispatched one after the other. Tiles
            do not mix parts. At most one per token chunk, or per GPU, or (see ``fitted``) per expert of a GPU.
        parts_by: What a part is a share of: ``BY_TOKENS``, a home GPU's; ``BY_PEERS``, those that a GPU exchanges
            tokens with, by distance, for unicast only; ``BY_EXPERTS``, a GPU's own, by number, where every expert gets
            a copy of its own. Parts of experts follow each other as waves: the next is dispatched as soon as all of the
            one before is issued, where others wait until that is stored.
        exclusive: Whether a GPU combines only when all it dispatches is stored and all it is sent has arrived.
        prefetches: Whether an idle HBM fetches weights into L2 before rows need them; see kernel/prefetch.py.
        early_ps: How long before dispatch may begin that starts.
        meets: Whether all GPUs wait for each other before any of them dispatches: counts are exchanged, or a barrier.
        counted: Whether experts' tokens are known when the layer begins, because counts were exchanged (``in_band``).
        loopback: Whether a home GPU's own copy and contribution cross the switch as well; for static primitives only.
        gates: Of GEMM-1, GEMM-2, combine: ``GATE_FINE``, ``GATE_PHASE`` or ``GATE_GPU`` (not GEMM-2, nor pulled sums).
        pays_ps: What is paid before dispatch, GEMM-1, GEMM-2 and combine may start; the last three need a phase gate.
        pay_end_ps: What is paid after the last token is home.
        kernels: By name, kernels that are paid too, by stage as in ``pays_ps``, and at the end; see phases.py.
        hides_shared: Whether GEMM-1, which needs a gate then, also waits for the shared experts, which run from the
            opening of dispatch on with the SMs that it leaves.
        dispatch_sms, gemm_sms, combine_sms: SM groups of every GPU.
        in_gemm: Whether the GEMMs' thread blocks issue dispatches and combines, and lose the time.
        copying: Primitive by which copies made in the layer get their weights; see kernel/weights.py. None: none are.
        copying_family: Of the kernels that issue it; empty: those that usually do.
        copy_sms: SMs of every GPU that issues some, from its GEMM group, until it has no more to do with weights; as
            many as that group has if it has fewer.
        copies_behind: Whether a GPU issues weights only once all that it dispatches is stored.
        weight_tile_bytes: Weights move in tiles of so many bytes; the last of a matrix may be smaller.
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
    families: tuple[str, str] = ("", "")
    copies_per_expert: bool = False
    loopback: bool = False
    parts: int = 1
    parts_by: int = BY_TOKENS
    exclusive: bool = False
    prefetches: bool = False
    early_ps: int = 0
    meets: bool = False
    counted: bool = True
    pay_end_ps: int = 0
    kernels: tuple[tuple[str, ...], ...] = ((),) * 5
    hides_shared: bool = False
    in_gemm: bool = False
    copying: Primitive | None = None
    copying_family: str = ""
    copy_sms: int = 32
    copies_behind: bool = False
    weight_tile_bytes: int = 65536
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
            parts_by=self.parts_by,
            combine_gate=self.gates[2],
            in_band=self.in_band,
        )
        for primitive, family in zip((self.dispatch, self.combine), self.families, strict=True):
            if family:
                primitive.require_family(family)
        if self.copying:
            require_copying(self.copying, self.copying_family)
        if min(self.copy_sms, self.weight_tile_bytes) < 1:
            raise ValueError(f"copies need SMs and tiles: {self.copy_sms} of {self.weight_tile_bytes} B")
        if (self.network is None) != (not self.networked) or self.networked & self.exposed:
            raise ValueError("a network answers some kinds of decisions, and none that is asked")
        if self.gates[1] == GATE_GPU:
            raise ValueError("GEMM-2 waits for its GPU's GEMM-1 at most: GATE_PHASE")

    def fitted(self, most_experts: int) -> Program:
        """Returns the program for GPUs with so many experts at most: parts of experts have one of them on some GPU."""
        if self.parts_by != BY_EXPERTS:
            return self
        return replace(self, parts=min(self.parts, most_experts))

    @property
    def in_band(self) -> bool:
        """Whether expert GPUs learn from flags alone that all has come: no counts, and no gate that would say so.

        An expert's last tile, if not full, closes when every GPU has said that it has stored what it dispatches.
        """
        return not self.counted and self.gates[0] == GATE_FINE

    @property
    def parts_per_expert(self) -> int:
        """How many parts an expert's tokens are in."""
        return 1 if self.parts_by == BY_EXPERTS else self.parts

    @property
    def rounds(self) -> int:
        """How often all chunks are gone through: once, or once for each part where parts are not of tokens."""
        return 1 if self.parts_by == BY_TOKENS else self.parts

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
