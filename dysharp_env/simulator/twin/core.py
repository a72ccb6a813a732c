"""What the SM groups of one of the twin's GPUs share: links, memory, Hub tables, experts, communication SMs."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dysharp_env.simulator.layout import (
    COMBINE,
    DISPATCH,
    EV_SLOT,
    GATE_FINE,
)
from dysharp_env.simulator.twin.fabric import Downlink, Reducer, Uplink
from dysharp_env.simulator.twin.parts import (
    Chunk,
    CommunicationSm,
    Decision,
    Expert,
    Pair,
    Process,
    Row,
    Segment,
    Split,
    Token,
    Trip,
    Unit,
)

if TYPE_CHECKING:
    from dysharp_env.simulator.twin.twin import Twin


@dataclass(eq=False)
class Group:
    """One SM group of one GPU, run whenever something that concerns it has happened."""

    process: Process
    answer: Decision | None = None
    is_marked: bool = False


@dataclass(eq=False)
class Weights:
    """One expert matrix in L2."""

    size_bytes: int
    loaded_ps: int


class Core:
    """What the SM groups of one GPU share."""

    def __init__(self, twin: Twin, number: int) -> None:
        self.twin, self.number = twin, number
        planes = range(twin.costs.planes)
        self.uplinks = [Uplink(twin, number, plane) for plane in planes]
        self.downlinks = [Downlink(twin, number, plane) for plane in planes]
        self.reducers = [Reducer(twin, number, plane) for plane in planes]
        self.hbm_free_ps = 0
        self.l2: OrderedDict[tuple[int, int], Weights] = OrderedDict()  # by (expert, stage), least recently used first
        self.al_tlb: OrderedDict[tuple[int, int], None] = OrderedDict()  # of (token, expert), first in first out
        self.tiles_live = 0
        self.outputs_live = 0
        self.experts: list[Expert] = []
        # dispatch
        self.unsent: list[Chunk] = []
        self.in_chunk: list[Token] = []  # of the chunk that is being sent
        self.free_communication_sms: dict[int, deque[CommunicationSm]] = {DISPATCH: deque(), COMBINE: deque()}
        self.dispatch_in_flight = 0
        self.part = 0  # whose turn it is
        self.sends_left = [0] * twin.program.parts
        self.tokens_sent = self.tokens_to_send = 0
        # GEMM
        self.least_tokens = twin.program.min_partial_tokens
        self.row: Row | None = None  # whose blocks are being started
        self.hold_gemm = False
        self.sm_busy_ps = 0
        self.slots = 0
        # Sizes in force, and the SMs that the groups have meanwhile.
        self.split: Split | None = None
        self.sizes = {DISPATCH: twin.program.dispatch_sms, COMBINE: twin.program.combine_sms}
        self.here = dict(self.sizes)
        self.gemm_sms = self.free_sms = twin.program.gemm_sms
        self.places: dict[int, list[CommunicationSm]] = {DISPATCH: [], COMBINE: []}
        # By part: (token, expert)s yet to arrive, and those that have GEMM-1, GEMM-2 before them.
        parts = range(twin.program.parts)
        self.arrivals_left = [0 for _ in parts]
        self.slots_left = ([0 for _ in parts], [0 for _ in parts])
        gates = twin.program.gates
        self.is_open = {(stage, part): gates[stage - 1] == GATE_FINE for stage in (1, 2, 3) for part in parts}
        self.is_boundary_paid = [False for _ in parts]
        # combine
        self.units: dict[tuple[int, int], Unit] = {}
        self.ready: list[Unit] = []
        self.issuing: deque[Token | Pair] = deque()
        self.combine_in_flight = 0
        self.items_waiting = self.items = 0
        self.hold_combine = False
        self.combined = 0
        self.groups: dict[int, Group] = {}

    def mark(self, kind: int) -> None:
        """Asks for an SM group to act, once, when all events of the instant are served."""
        group = self.groups[kind]
        if not group.is_marked:
            group.is_marked = True
            self.twin.marked.append(group)

    def use_hbm(self, num_bytes: int) -> int:
        """Puts an access behind all earlier ones and returns when it is over."""
        self.hbm_free_ps = max(self.hbm_free_ps, self.twin.now_ps) + self.twin.costs.hbm_ps(num_bytes)
        return self.hbm_free_ps

    def translate(self, pair: Pair) -> int:
        """Returns the delay of looking up a token's experts in the AL TLB: one memory latency if any misses."""
        delay_ps = 0
        for expert in pair.experts:
            key = (pair.token.number, expert)
            if key not in self.al_tlb:
                delay_ps = self.twin.costs.memory_ps
                self.al_tlb[key] = None
                if len(self.al_tlb) > self.twin.costs.al_tlb_entries:
                    self.al_tlb.popitem(last=False)
        return delay_ps

    def send(self, vector: list[Segment]) -> None:
        """Puts the segments of a vector at the uplinks."""
        for segment in vector:
            self.uplinks[segment.plane].enqueue(segment)

    def ask(self, planes: list[int], flits: int, purpose: int) -> int:
        """Sends read requests, one for each segment's plane, and returns when the last one has crossed its uplink."""
        crossed_ps = self.twin.now_ps
        for plane in planes:
            self.uplinks[plane].charge(flits, purpose)
            crossed_ps = max(crossed_ps, self.uplinks[plane].free_ps)
        return crossed_ps

    def list_sm(self, sm: CommunicationSm) -> None:
        """Puts an SM behind the others of its group that may take something."""
        self.free_communication_sms[sm.kind].append(sm)
        self.mark(sm.kind)

    def slots_of(self, kind: int) -> int:
        """Returns the vectors that one SM of a communication group may have in flight."""
        return (self.twin.dispatch_window if kind == DISPATCH else self.twin.combine_window).slots

    def begin_trip(self, sm: CommunicationSm, segments: int) -> Trip:
        """Counts a vector of so many segments that an SM puts in flight."""
        sm.in_flight += 1
        return Trip(sm, self.twin.now_ps, segments)

    def end_segment(self, trip: Trip | None) -> bool:
        """Counts a segment that has made the round trip, and returns whether it is the last of its vector.

        Then the SM's slot falls free when its window has moved past the vector's bytes.
        """
        twin = self.twin
        assert trip is not None
        trip.segments_left -= 1
        if trip.segments_left > 0:
            return False
        window = twin.dispatch_window if trip.sm.kind == DISPATCH else twin.combine_window
        held_ps = (twin.now_ps - trip.issued_ps) // 1000 * window.hold_permille
        twin.at(twin.now_ps + held_ps, EV_SLOT, self.free_slot, trip.sm, window.slots)
        return True

    def free_slot(self, sm: CommunicationSm, slots: int) -> None:
        """Lets an SM put another vector in flight."""
        raise NotImplementedError

    # What only groups with windows of their own, by chunk, have to be told.

    def free_read(self, segment: Segment, home_ps: int, serial_ps: int) -> None:
        """Notes that a segment is on its way down to this GPU, which may have asked for it."""

    def free_pushed(self, segment: Segment, acked_ps: int) -> None:
        """Notes when this GPU will learn that a pushed segment is in the switch."""

    def head_is_here(self, carrier: Token) -> None:
        """Notes that the head of a contribution to a sum of this GPU is at the switch."""

    def sum_begins(self, carrier: Token) -> None:
        """Notes that the first contribution to a sum of this GPU is let into the reduction unit."""
