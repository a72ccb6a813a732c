"""What the twin is made of: tokens, tiles, segments, candidates, and the log of what was used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from dysharp_env.simulator.state.codes import AWAY, NO_TIME
from dysharp_env.simulator.state.observation import ShownByName

Name = tuple[str | int, ...]  # what logs call a thing: ("copy", token, GPU, place), ("tile", expert, part, place), ...


@dataclass(eq=False)
class CommunicationSm:
    """A place for one SM of a communication group: what its token still lacks, and how much it has at hand."""

    left: list[Load] | None = None  # None if it is at no token
    in_flight: int = 0  # vectors taken whose round trip is not over
    duty: int = AWAY
    ready_ps: int = 0  # until when it prepares its token

    @property
    def is_idle(self) -> bool:
        """Whether it is at no token and waits for no vector."""
        return self.left is None and self.in_flight == 0


@dataclass(eq=False)
class Trip:
    """The round trip of one vector, or of all that one instruction asks for."""

    sm: CommunicationSm
    segments_left: int  # that have not made it yet


@dataclass(eq=False)
class Token:
    """One token of a home GPU, and how far it has come; lists have an element for each segment of a vector."""

    number: int
    home: int
    place: int  # of its chunk among the home GPU's
    planes: dict[int, list[int]]  # of its vector, and of its sum and the partial sums that go into it, by kind of group
    pairs: list[Pair] = field(default_factory=list)  # by distance of the expert GPU from the home GPU
    experts_done: int = 0  # as its home GPU knows
    contributions_left: list[int] = field(default_factory=list)  # to its sum in the switch
    pieces_left: list[int] = field(default_factory=list)  # partial or reduced sums that its home GPU waits for
    dispatch_start: int = NO_TIME
    dispatch_end: int = NO_TIME
    combine_start: int = NO_TIME
    combine_end: int = NO_TIME
    is_read: bool = False  # at its home GPU, to be dispatched

    @property
    def num_experts(self) -> int:
        """How many experts it has; one without any is never combined."""
        return sum(len(pair.experts) for pair in self.pairs)

    @property
    def remote_experts(self) -> int:
        """How many experts packets name that are for all of its GPUs."""
        return sum(len(pair.experts) for pair in self.pairs if pair.is_remote)


@dataclass(eq=False)
class Pair:
    """One token at one GPU: the experts it has there, none where a static primitive sends it all the same."""

    token: Token
    gpu: int
    experts: list[int]
    part: int
    is_remote: bool  # whether vectors between home and this GPU cross links
    is_sent: bool  # whether dispatch has one
    is_summed: bool  # whether combine has one
    segments_left: int  # of its dispatched vector, still to come
    tiles: list[Tile] = field(default_factory=list)  # that it has joined, one for each expert
    experts_done: int = 0
    translated_ps: int = 0


@dataclass(eq=False, kw_only=True)
class Segment:
    """What moves as one through links and switch."""

    name: Name
    purpose: int
    place: int  # in its vector, or tile of its expert's weights
    plane: int
    origin: int  # the GPU whose uplink carries it
    target: int  # the GPU that it is for; of what the switch makes replicas of, any
    flits: int
    packets: int
    vc: int
    reach: Callable[[Any], None]  # who takes it in
    acknowledged: Callable[[Any], None]  # who learns that it is stored, or in the switch
    tail_ps: int = 0  # when its last flit is at the switch
    is_sum: bool = False  # made in the switch, of contributions that are acknowledged
    replicas: list[Any] = field(default_factory=list)  # that the switch makes of it
    carrier: Segment | None = None  # of a replica: whose input buffer it leaves
    # What counts replicas is 1 where there are none, and the times are of the last that has left.
    replicas_left: int = 1  # in the switch
    acks_left: int = 1
    end_ps: int = 0
    free_ps: int = 0  # when its share of the input buffer is free

    def split(self, replicas: Sequence[Segment]) -> None:
        """Has the switch make replicas of it; it is acknowledged, and leaves its input, with the last of them."""
        self.replicas = list(replicas)
        self.replicas_left = self.acks_left = len(replicas)
        for replica in replicas:
            replica.carrier = self


@dataclass(eq=False, kw_only=True)
class TokenSegment(Segment):
    """One vector of a token on its way, or one packet of it."""

    token: Token
    pair: Pair | None
    pieces: int = 1  # partial sums it stands for
    trip: Trip | None = None


Vector = list[TokenSegment]
Load = list[Vector]  # what an SM puts in flight at once


@dataclass(eq=False)
class Tile:
    """Tokens of one expert that go through the GEMMs together; two-element fields are of GEMM-1 and GEMM-2."""

    expert: Expert
    place: int
    pairs: list[Pair] = field(default_factory=list)
    blocks_left: int = 0
    blocks_running: int = 0
    weights_ps: int = 0
    inputs_ps: int = 0
    ready_ps: list[int] = field(default_factory=lambda: [NO_TIME, NO_TIME])
    ready_order: list[int] = field(default_factory=lambda: [0, 0])
    start_ps: list[int] = field(default_factory=lambda: [NO_TIME, NO_TIME])
    end_ps: list[int] = field(default_factory=lambda: [NO_TIME, NO_TIME])

    def block(self, what: str) -> Name:
        """Returns what memory calls its ``in``, ``mid`` or ``out``."""
        return what, self.expert.number, self.expert.part, self.place


@dataclass(eq=False)
class Expert:
    """One part of an expert: its arrivals, its open tile, and its rows ready for each GEMM in their order."""

    number: int
    part: int
    total: int = 0
    arrived: int = 0
    tiles: list[Tile] = field(default_factory=list)
    open: Tile | None = None
    rows: tuple[list[Tile], list[Tile]] = field(default_factory=lambda: ([], []))
    ready_ps: int = 0

    @property
    def open_count(self) -> int:
        """Tokens in the open tile."""
        return len(self.open.pairs) if self.open else 0


@dataclass(eq=False)
class Chunk:
    """A dispatch candidate: tokens of one home GPU that it, or a reader of them, dispatches together."""

    home: int
    place: int
    part: int
    tokens: list[Token]


@dataclass(eq=False)
class Unit:
    """A combine candidate: ready tokens of a chunk (pull), or a GPU's ready partial sums of one (push)."""

    home: int
    place: int
    part: int
    items: list[Token | Pair] = field(default_factory=list)
    ready_ps: int = NO_TIME


class Mover(Protocol):
    """Who moves the weights of one GPU, as far as its other groups know."""

    def start(self) -> None:
        """Takes SMs of the GEMM group for it, if there is something to move."""

    def dispatched(self) -> None:
        """Learns that all that its GPU dispatches is stored."""

    def offer(self) -> None:
        """Takes free SMs of the GEMM group if it wants more."""


class Row(NamedTuple):
    """A GEMM candidate: one tile in one GEMM; ``is_open`` if it would be closed early."""

    tile: Tile
    stage: int
    is_open: bool = False


class Matrix(NamedTuple):
    """A prefetch candidate: an expert's matrix of one GEMM, and all parts of the expert."""

    expert: int
    stage: int
    parts: tuple[Expert, ...]


class Split(NamedTuple):
    """A candidate of the split decision: a row of the program's splits."""

    row: int
    dispatch_sms: int
    combine_sms: int
    early_tokens: int  # the fewest of an open tile that may be closed early


class Hold(NamedTuple):
    """The candidate that does nothing until something new concerns the group."""


Candidate = Chunk | Matrix | Row | Unit | Split | Hold


class Use(NamedTuple):
    """One use of a resource, with the engine's log fields."""

    resource: int
    gpu: int
    purpose: int
    item: Name
    amount: int
    start_ps: int
    end_ps: int


@dataclass(frozen=True)
class Decision(ShownByName):
    """A decision that waits for an answer; as the engine's, with the candidates themselves."""

    kind: int
    gpu: int
    features: np.ndarray  # (max_candidates, feature) float32
    context: np.ndarray  # (context,) float32
    mask: np.ndarray  # (max_candidates,) bool
    candidates: list[Candidate]

    @property
    def num_candidates(self) -> int:
        """How many rows are candidates, for opponents that answer the engine too."""
        return len(self.candidates)
