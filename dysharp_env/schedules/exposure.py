"""Which decisions are asked from outside, and what they show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from dysharp_env.simulator.network import Network

# Dispatch SMs, combine SMs and, where it is named, the fewest tokens of an open tile that may be closed early.
SplitRow = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=2, max_length=3)]


@dataclass(frozen=True)
class Exposure:
    """Which decisions are asked from outside, and how many candidates each shows.

    Attributes:
        kinds: Decision kinds that are asked; the others follow the schedule's rule.
        hold: Whether an asked GEMM or combine decision also offers to wait; of several plans each says so itself.
        partial_tiles: Whether an asked GEMM decision also offers open tiles; likewise.
        splits: (dispatch SMs, combine SMs), and where tiles may be closed early the fewest tokens of one, that an asked
            split decision offers; the schedule's own fewest where there is none.
        split_moments: How often each GPU decides again: after every such share of its dispatches and of its sums that
            may be combined, and at the first of these; 0: the split is decided once, for all GPUs.
        max_candidates: Most candidates one decision shows.
        network: Answers these decisions inside the engine, so that none is asked.
        opening: Answers those of them that come before the layer, ``plan`` and ``replicate``, in place of ``network``.
    """

    kinds: tuple[str, ...] = ()
    hold: bool = False
    partial_tiles: bool = False
    splits: tuple[tuple[int, ...], ...] = ()
    split_moments: int = 0
    max_candidates: int = 32
    network: Network | None = None
    opening: Network | None = None

    @property
    def is_answered(self) -> bool:
        """Whether networks answer, so that nothing is asked."""
        return self.network is not None or self.opening is not None
