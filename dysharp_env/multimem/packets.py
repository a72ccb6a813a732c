"""What a packet of NVLink with static and dynamic multimem says; wire.py writes it as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Stage(IntEnum):
    """Which of a region's two virtual regions a packet means: the stage bit."""

    DISPATCH = 0
    COMBINE = 1


class Kind(IntEnum):
    """What a packet does."""

    WRITE = 0
    """Store to one GPU's plain memory."""
    LOAD = 1
    """Load from plain memory."""
    MULTIMEM_STORE = 2
    """``multimem.st``: store at one offset in a fixed team."""
    MULTIMEM_LOAD = 3
    """``multimem.ld_reduce``: sum over a fixed team."""
    MULTIMEM_RED = 4
    """``multimem.red``: add to every replica of a fixed team."""
    DYNAMIC_STORE = 5
    """``dymultimem.st``: store to the experts listed."""
    DYNAMIC_LOAD = 6
    """``dymultimem.ld_reduce``: sum over the experts listed."""
    ACK = 7
    """A write is stored."""
    RESPONSE = 8
    """Data of a read; the count says how many contributions it sums."""
    PARTIAL = 9
    """A partial sum that the switch gave up before it was complete."""
    PUSH = 10
    """One GPU's partial sum on its way home, for the switch to merge; the count says how many GPUs push."""


LISTS_TARGETS = frozenset({Kind.DYNAMIC_STORE, Kind.DYNAMIC_LOAD})
WITH_DATA = frozenset(
    {
        Kind.WRITE,
        Kind.MULTIMEM_STORE,
        Kind.MULTIMEM_RED,
        Kind.DYNAMIC_STORE,
        Kind.RESPONSE,
        Kind.PARTIAL,
        Kind.PUSH,
    }
)


@dataclass(frozen=True)
class Packet:
    """One packet.

    Attributes:
        kind: What it does.
        stage: Dispatch or combine.
        address: 48-bit address; replies repeat that of what they answer.
        source: GPU that issued the transaction (to which replies go).
        length: Payload bytes it carries or, without payload of its own, asks for or acknowledges.
        count: Target experts; of a response or partial sum, contributions summed in it; of a push, all to come.
        targets: Expert ids of a dynamic packet, else empty.
        payload: Data, else empty.
        tag: Tells transactions of one source apart.
    """

    kind: Kind
    stage: Stage
    address: int
    source: int
    length: int
    count: int = 0
    targets: tuple[int, ...] = ()
    payload: bytes = b""
    tag: int = 0

    def describe(self) -> str:
        """Returns the packet in one line, for people."""
        listed = f" targets={list(self.targets)}" if self.kind in LISTS_TARGETS else ""
        return (
            f"{self.kind.name} stage={self.stage.name} address={self.address:#x} source=GPU {self.source}"
            f" length={self.length} count={self.count}{listed}"
        )
