"""The engine's slow, readable twin: the same model in plain Python, to be read as its specification and tested against.

Nothing here is shared with the compiled kernel but the names of codes and the integer costs. Objects stand for what the
engine keeps in arrays, an SM group is a generator that runs until it has to wait, and the event queue is ``heapq``.
Events carry ``(time, kind, sequence)`` as in the engine and are pushed in the same order, so both agree to the
picosecond, ties included. About a thousand times slower than the engine; it keeps a log of every resource's use.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.simulator.costs import PS_PER_S, UNLIMITED, Costs
from dysharp_env.simulator.layout import (
    BROADCAST,
    COMBINE,
    COMBINE_ACK,
    COMBINE_DATA,
    COMBINE_REQUEST,
    CONTEXT,
    DECISION_KINDS,
    DISPATCH,
    DISPATCH_ACK,
    DISPATCH_DATA,
    DOWN,
    EV_ACK,
    EV_ARRIVE,
    EV_BLOCKS,
    EV_CREDIT,
    EV_GATE,
    EV_INPUT_NEXT,
    EV_NOTIFY,
    EV_PORT,
    EV_REACH,
    EV_READY,
    EV_REQUEST,
    EV_RESPOND,
    EV_SWITCH,
    EV_TILE,
    EV_UPLINK,
    EVICTION,
    FEATURES,
    GATE_FINE,
    GATE_PHASE,
    GEMM,
    LOG_DOWN,
    LOG_REDUCE,
    LOG_SM,
    LOG_UP,
    MULTICAST,
    NO_TIME,
    NOTIFY,
    NUM_PURPOSES,
    PULL_REDUCE,
    PUSH_REDUCE,
    PUSH_UNICAST,
    REDUCE_SCATTER,
    REQUEST,
    RESPONSE,
    SPLIT,
    UNICAST,
    UP,
)
from dysharp_env.simulator.program import Program
from dysharp_env.workload.workload import Workload

NOTIFY_FLITS = 2  # one counter update: a header and a flit of data

Name = tuple[str | int, ...]  # what logs and decisions call a thing: ("copy", token, GPU), ("tile", expert, place), ...


@dataclass(eq=False)
class Token:
    """One token of a home GPU, and how far it has come."""

    number: int
    home: int
    place: int  # of its chunk among the home GPU's
    pairs: list[Pair] = field(default_factory=list)  # by distance of the expert GPU from the home GPU
    experts_done: int = 0  # as its home GPU knows
    contributions_left: int = 0  # to its sum in the switch
    pieces_left: int = 0  # partial or reduced sums that its home GPU waits for
    dispatch_start: int = NO_TIME
    dispatch_end: int = NO_TIME
    combine_start: int = NO_TIME
    combine_end: int = NO_TIME


@dataclass(eq=False)
class Pair:
    """One token at one GPU: the experts it has there, none where a static primitive sends it all the same."""

    token: Token
    gpu: int
    experts: list[int] = field(default_factory=list)
    experts_done: int = 0

    @property
    def is_remote(self) -> bool:
        """Whether the vector crosses links."""
        return self.gpu != self.token.home


@dataclass(eq=False)
class Chunk:
    """Tokens of one home GPU that are dispatched together."""

    home: int
    place: int
    tokens: list[Token]

    @property
    def name(self) -> Name:
        """What decisions call it."""
        return "chunk", self.home, self.place


@dataclass(eq=False)
class Unit:
    """What a combine decision takes: ready tokens of a chunk (pull), or a GPU's ready partial sums of one (push)."""

    gpu: int
    home: int
    place: int
    items: list[Token | Pair] = field(default_factory=list)
    ready_ps: int = NO_TIME

    @property
    def name(self) -> Name:
        """What decisions call it."""
        return "unit", self.gpu, self.home, self.place


@dataclass(eq=False)
class Tile:
    """Tokens of one expert that go through the GEMMs together; two-element fields are of GEMM-1 and GEMM-2."""

    expert: Expert
    place: int
    pairs: list[Pair] = field(default_factory=list)
    blocks_left: int = 0
    blocks_running: int = 0
    inputs_ps: int = 0
    ready_ps: list[int] = field(default_factory=lambda: [NO_TIME, NO_TIME])
    ready_order: list[int] = field(default_factory=lambda: [0, 0])
    start_ps: list[int] = field(default_factory=lambda: [NO_TIME, NO_TIME])
    end_ps: list[int] = field(default_factory=lambda: [NO_TIME, NO_TIME])


@dataclass(eq=False)
class Expert:
    """One expert: its arrivals, its open tile, and its rows ready for each GEMM in their order."""

    number: int
    total: int
    arrived: int = 0
    tiles: list[Tile] = field(default_factory=list)
    open: Tile | None = None
    rows: tuple[list[Tile], list[Tile]] = field(default_factory=lambda: ([], []))
    ready_ps: int = 0

    @property
    def open_count(self) -> int:
        """Tokens in the open tile."""
        return len(self.open.pairs) if self.open else 0


class Row(NamedTuple):
    """A GEMM candidate: one tile in one GEMM; ``is_open`` if it would be closed early."""

    tile: Tile
    stage: int
    is_open: bool = False

    @property
    def name(self) -> Name:
        """What decisions call it."""
        return ("open" if self.is_open else "row"), self.tile.expert.number, self.tile.place, self.stage


class Split(NamedTuple):
    """A candidate of the split decision."""

    dispatch_sms: int
    combine_sms: int

    @property
    def name(self) -> Name:
        """What decisions call it."""
        return "split", self.dispatch_sms, self.combine_sms


class Hold(NamedTuple):
    """The candidate that does nothing until something new concerns the group."""

    name: Name = ("hold",)


Candidate = Chunk | Row | Unit | Split | Hold


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
class Decision:
    """A decision that waits for an answer; as the engine's, with the candidates themselves."""

    kind: int
    gpu: int
    num_candidates: int
    features: np.ndarray  # (max_candidates, feature) float32
    context: np.ndarray  # (context,) float32
    mask: np.ndarray  # (max_candidates,) bool
    candidates: list[Candidate]


# An SM group's life: yields a decision to have it answered with a row, or None when it has to wait.
Process = Generator[Decision | None, int, None]


@dataclass(eq=False)
class Segment:
    """One vector on its way through links and switch."""

    name: Name
    purpose: int
    token: Token
    pair: Pair | None
    origin: int  # the GPU whose uplink carries it
    flits_up: int
    flits_down: int
    vc: int = REQUEST
    tail_ps: int = 0  # when its last flit is at the switch
    pieces: int = 1  # partial sums it stands for
    replicas: list[Segment] = field(default_factory=list)  # of a multicast store
    carrier: Segment | None = None  # of a replica: the store whose input buffer it leaves
    replicas_left: int = 1
    release_ps: int = 0
    acks_left: int = 1


@dataclass(eq=False)
class Lane:
    """One virtual-channel class of an uplink."""

    waiting: deque[Segment] = field(default_factory=deque)
    used_flits: int = 0  # of the input buffer at the switch
    fifo: deque[Segment] = field(default_factory=deque)  # in the switch, where inputs are FIFOs


class Link:
    """A wire of one GPU and direction, used by one segment at a time; control flits slip in and delay what follows."""

    def __init__(self, twin: Twin, gpu: int, direction: int) -> None:
        self.twin, self.gpu, self.direction = twin, gpu, direction
        self.free_ps = 0
        self.busy_ps = 0
        self.last_vc = 0
        self.is_woken = False

    def charge(self, flits: int, purpose: int) -> None:
        """Lets control flits cross now."""
        ps = self.twin.costs.wire_ps(flits)
        self.free_ps = max(self.free_ps, self.twin.now_ps) + ps
        self.count(flits, purpose)

    def count(self, flits: int, purpose: int) -> None:
        """Counts flits on the wire."""
        self.busy_ps += self.twin.costs.wire_ps(flits)
        self.twin.traffic[self.gpu, self.direction, purpose] += flits

    def backlog_ps(self) -> int:
        """Returns how long what is queued and being sent keeps the wire busy."""
        return max(self.free_ps - self.twin.now_ps, 0) + self.twin.costs.wire_ps(self.queued_flits())

    def queued_flits(self) -> int:
        """Returns the flits of all segments that wait."""
        raise NotImplementedError


class Uplink(Link):
    """A GPU's uplink and the switch input behind it, with credited buffers unless the switch queues at outputs."""

    def __init__(self, twin: Twin, gpu: int) -> None:
        super().__init__(twin, gpu, UP)
        self.lanes = (Lane(), Lane())

    def queued_flits(self) -> int:
        """Returns the flits of all segments that wait at the GPU."""
        return sum(segment.flits_up for lane in self.lanes for segment in lane.waiting)

    def enqueue(self, segment: Segment) -> None:
        """Puts a segment behind the others of its class."""
        self.lanes[segment.vc].waiting.append(segment)
        self.pump()

    def pump(self) -> None:
        """Sends the next segment if the wire is free and the switch has room, classes taking turns."""
        twin = self.twin
        if self.free_ps > twin.now_ps:
            self.wake()
            return
        for vc in (1 - self.last_vc, self.last_vc):
            lane = self.lanes[vc]
            if not lane.waiting:
                continue
            flits = lane.waiting[0].flits_up
            if twin.costs.queueing != "output_queued":
                # A segment larger than the buffer passes alone: its packets stream through.
                if lane.used_flits > 0 and lane.used_flits + flits > twin.costs.credit_flits:
                    continue
                lane.used_flits += flits
            self.last_vc = vc
            self.send(lane.waiting.popleft())
            return

    def send(self, segment: Segment) -> None:
        """Puts a segment on the wire; its head, or with store-and-forward its tail, comes to the switch."""
        twin, now_ps = self.twin, self.twin.now_ps
        segment.tail_ps = now_ps + twin.delivery_ps(segment.flits_up)
        head_ps = segment.tail_ps if twin.costs.store_and_forward else now_ps + twin.costs.hop_ps
        twin.at(head_ps, EV_SWITCH, self.reach_switch, segment)
        self.free_ps = now_ps + twin.costs.wire_ps(segment.flits_up)
        self.count(segment.flits_up, segment.purpose)
        twin.use(LOG_UP, self.gpu, segment.purpose, segment.name, segment.flits_up, self.free_ps)
        self.wake()

    def wake(self) -> None:
        """Makes sure the uplink looks again when the wire falls free, if anything waits."""
        if not self.is_woken and any(lane.waiting for lane in self.lanes):
            self.is_woken = True
            self.twin.at(self.free_ps, EV_UPLINK, self.fall_free)

    def fall_free(self) -> None:
        """Looks again."""
        self.is_woken = False
        self.pump()

    def credit(self, vc: int, flits: int) -> None:
        """Takes input buffer space back."""
        self.lanes[vc].used_flits -= flits
        self.pump()

    def reach_switch(self, segment: Segment) -> None:
        """Offers a segment to its outputs, or puts it behind the others of an input FIFO."""
        if self.twin.costs.queueing == "input_fifo":
            fifo = self.lanes[segment.vc].fifo
            fifo.append(segment)
            if len(fifo) > 1:
                return
        self.expose(segment)

    def expose(self, segment: Segment) -> None:
        """Queues a segment, or each replica of a store by itself, at the output it goes to."""
        for replica in segment.replicas or [segment]:
            replica.tail_ps = segment.tail_ps
            self.twin.output(replica).enqueue(replica, self.gpu)

    def input_next(self, vc: int) -> None:
        """Moves an input FIFO on: its head has left the switch."""
        fifo = self.lanes[vc].fifo
        fifo.popleft()
        if fifo:
            self.expose(fifo[0])

    def leave_input(self, segment: Segment, end_ps: int) -> None:
        """Gives the input buffer of a segment back, once the last of its replicas leaves it."""
        twin = self.twin
        if twin.costs.queueing == "output_queued":
            return
        whole = segment.carrier or segment
        whole.replicas_left -= 1
        whole.release_ps = max(whole.release_ps, end_ps)
        if whole.replicas_left > 0:
            return
        twin.at(whole.release_ps + twin.costs.hop_ps, EV_CREDIT, self.credit, whole.vc, whole.flits_up)
        if twin.costs.queueing == "input_fifo":
            twin.at(whole.release_ps, EV_INPUT_NEXT, self.input_next, whole.vc)


class Port(Link):
    """An output of the switch: a queue for each class and input; classes take turns, then inputs."""

    def __init__(self, twin: Twin, gpu: int) -> None:
        super().__init__(twin, gpu, DOWN)
        # The first input is the next one served; one that still has segments goes to the end.
        self.queues: tuple[OrderedDict[int, deque[Segment]], ...] = (OrderedDict(), OrderedDict())
        self.stalled: Segment | None = None  # taken from its queue, but has to wait for accumulator slots

    def queued_flits(self) -> int:
        """Returns the flits of all segments that wait at the switch for this output."""
        return sum(s.flits_down for inputs in self.queues for queue in inputs.values() for s in queue)

    def append(self, segment: Segment, source: int) -> None:
        """Queues a segment without looking at the output yet."""
        if self.twin.costs.queueing == "output_queued":
            source = 0
        self.queues[segment.vc].setdefault(source, deque()).append(segment)

    def enqueue(self, segment: Segment, source: int) -> None:
        """Queues a segment; the output takes it at once if it can."""
        self.append(segment, source)
        self.pump()

    def pump(self) -> None:
        """Starts the next segment if the output is free."""
        if self.stalled is None and not any(self.queues):
            return
        if self.free_ps > self.twin.now_ps:
            self.wake(self.free_ps)
            return
        self.start(self.stalled or self.take())
        if self.stalled is None and any(self.queues):
            self.wake(self.free_ps)

    def take(self) -> Segment:
        """Removes and returns the segment whose turn it is."""
        if self.queues[1 - self.last_vc]:
            self.last_vc = 1 - self.last_vc
        inputs = self.queues[self.last_vc]
        source, queue = inputs.popitem(last=False)
        segment = queue.popleft()
        if queue:
            inputs[source] = queue
        return segment

    def wake(self, time_ps: int) -> None:
        """Makes sure the output looks again, at the given time unless it was going to already."""
        if not self.is_woken:
            self.is_woken = True
            self.twin.at(time_ps, EV_PORT, self.fall_free)

    def fall_free(self) -> None:
        """Looks again."""
        self.is_woken = False
        self.pump()

    def start(self, segment: Segment) -> None:
        """Serves one segment."""
        raise NotImplementedError


class Downlink(Port):
    """The output that leads to a GPU."""

    def start(self, segment: Segment) -> None:
        """Sends a segment down; one that cuts through cannot leave before its own tail has come."""
        twin, flits = self.twin, segment.flits_down
        serial_ps = twin.costs.wire_ps(flits)
        self.free_ps = max(twin.now_ps + serial_ps, segment.tail_ps)
        self.count(flits, segment.purpose)
        twin.use(LOG_DOWN, self.gpu, segment.purpose, segment.name, flits, self.free_ps)
        reach_ps = self.free_ps - serial_ps + twin.delivery_ps(flits)
        twin.at(reach_ps, EV_REACH, twin.gpus[self.gpu].reach, segment)
        if segment.name[0] == "sum" or segment.purpose == EVICTION:
            twin.gpus[self.gpu].reducer.drain()
        else:
            twin.gpus[segment.origin].uplink.leave_input(segment, self.free_ps)


@dataclass(eq=False)
class Accumulator:
    """The open sum of one token in a reduction unit."""

    pieces: int = 0
    last: Pair | None = None  # whose contribution came last
    ready_ps: int = 0


class Reducer(Port):
    """The reduction unit before a downlink: sums contributions in a bounded number of accumulator slots."""

    def __init__(self, twin: Twin, gpu: int) -> None:
        super().__init__(twin, gpu)
        self.open: dict[Token, Accumulator] = {}  # the oldest first
        self.slots_used = 0
        self.slots_draining = 0  # of those used, the ones whose sum waits for the downlink

    def start(self, segment: Segment) -> None:
        """Adds a contribution to its token's sum; the last one sends the result down."""
        twin, token, pair = self.twin, segment.token, segment.pair
        assert pair is not None
        self.stalled = None
        if token not in self.open and not self.make_room():
            self.stalled = segment
            return
        accumulator = self.open.setdefault(token, Accumulator())
        self.free_ps = max(twin.now_ps + twin.costs.reduce_ps(segment.flits_down), segment.tail_ps)
        twin.use(LOG_REDUCE, self.gpu, COMBINE_DATA, segment.name, segment.flits_down, self.free_ps)
        sender = twin.gpus[segment.origin]
        sender.uplink.leave_input(segment, self.free_ps)
        if twin.program.combine_primitive == PUSH_REDUCE:
            # The switch holds the contribution now, so it acknowledges the store itself.
            twin.at(self.free_ps + twin.costs.hop_ps, EV_ACK, sender.combine_acknowledged)
        accumulator.pieces += 1
        accumulator.last = pair
        accumulator.ready_ps = self.free_ps + twin.costs.cycle_ps
        token.contributions_left -= 1
        if token.contributions_left == 0:
            self.close(token, ("sum", token.number, self.gpu), COMBINE_DATA)

    def make_room(self) -> bool:
        """Claims slots for one more sum, evicting the oldest if it must; False if slots must drain first."""
        need, slots = self.twin.costs.combine_packets, self.twin.costs.reduction_slots
        while self.open and self.slots_used - self.slots_draining + need > slots:
            oldest = next(iter(self.open))
            last = self.open[oldest].last
            assert last is not None
            self.twin.evictions += 1
            self.close(oldest, ("partial", oldest.number, last.gpu), EVICTION)
        # A sum larger than the whole buffer passes alone: its packets stream through.
        if self.slots_used > 0 and self.slots_used + need > slots:
            return False
        self.slots_used += need
        return True

    def close(self, token: Token, name: Name, purpose: int) -> None:
        """Sends a token's sum, complete or not, to the downlink; its slots drain with it."""
        twin, accumulator = self.twin, self.open.pop(token)
        flits = twin.costs.combine_flits()
        segment = Segment(name, purpose, token, None, self.gpu, 0, flits, RESPONSE)
        segment.pieces, segment.tail_ps = accumulator.pieces, accumulator.ready_ps
        self.slots_draining += twin.costs.combine_packets
        downlink = twin.gpus[self.gpu].downlink
        downlink.append(segment, twin.num_gpus)
        downlink.wake(max(twin.now_ps, downlink.free_ps))

    def drain(self) -> None:
        """Gets the slots of one sum back, which the downlink has begun to send."""
        self.slots_used -= self.twin.costs.combine_packets
        self.slots_draining -= self.twin.costs.combine_packets
        if self.stalled is not None:
            self.wake(max(self.twin.now_ps, self.free_ps))


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


class Gpu:
    """One GPU: its links, memory, Hub tables, experts, and SM groups."""

    def __init__(self, twin: Twin, number: int) -> None:
        self.twin, self.number = twin, number
        self.uplink, self.downlink, self.reducer = Uplink(twin, number), Downlink(twin, number), Reducer(twin, number)
        self.hbm_free_ps = 0
        self.l2: OrderedDict[tuple[int, int], Weights] = OrderedDict()  # by (expert, stage), least recently used first
        self.al_tlb: OrderedDict[tuple[int, int], None] = OrderedDict()  # of (token, expert), first in first out
        self.tiles_live = 0
        self.outputs_live = 0
        self.experts: list[Expert] = []
        # dispatch
        self.unsent: list[Chunk] = []
        self.dispatch_in_flight = 0
        self.tokens_sent = 0
        # GEMM
        self.free_sms = twin.gemm_sms
        self.row: Row | None = None  # whose blocks are being started
        self.hold_gemm = False
        self.sm_busy_ps = 0
        self.slots = self.arrivals_left = 0
        self.slots_left = [0, 0]  # (token, expert)s that have GEMM-1, GEMM-2 before them
        gates = twin.program.gates
        self.is_open = {stage: gates[stage - 1] == GATE_FINE for stage in (1, 2, 3)}
        self.gate2_asked = False
        # combine
        self.units: dict[tuple[int, int], Unit] = {}
        self.ready: list[Unit] = []
        self.issuing: deque[Token | Pair] = deque()
        self.combine_in_flight = 0
        self.items_waiting = 0
        self.hold_combine = False
        self.combined = 0
        self.groups = {
            DISPATCH: Group(self.dispatch_group()),
            GEMM: Group(self.gemm_group()),
            COMBINE: Group(self.combine_group()),
        }

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

    # Dispatch.

    def dispatch_group(self) -> Process:
        """Sends chunk after chunk, each vector as packets in flight allow."""
        twin = self.twin
        while self.unsent:
            chunk = yield from twin.choose(DISPATCH, self, self.unsent)
            assert isinstance(chunk, Chunk)
            self.unsent.remove(chunk)
            for token in chunk.tokens:
                copies = [twin.copy(pair) for pair in token.pairs if twin.is_target(pair)]
                if copies and twin.program.dispatch_primitive != UNICAST:
                    copies = [twin.store(token, copies)]
                    while not self.has_dispatch_room():
                        yield None
                token.dispatch_start = twin.now_ps
                local = token.pairs[0]
                if not local.is_remote and local.experts:
                    twin.at(twin.now_ps + twin.costs.memory_ps, EV_ARRIVE, self.arrive, local)
                for segment in copies:
                    while not self.has_dispatch_room():
                        yield None
                    self.dispatch_in_flight += twin.costs.dispatch_packets
                    self.uplink.enqueue(segment)
                self.tokens_sent += 1
        while True:
            yield None

    def has_dispatch_room(self) -> bool:
        """Returns whether one more vector may be in flight; one larger than the limit goes alone."""
        after = self.dispatch_in_flight + self.twin.costs.dispatch_packets
        return self.dispatch_in_flight == 0 or after <= self.twin.dispatch_window

    def reach(self, segment: Segment) -> None:
        """Takes a segment in."""
        if segment.purpose == DISPATCH_DATA:
            self.reach_dispatch(segment)
        else:
            self.reach_combine(segment)

    def reach_dispatch(self, copy: Segment) -> None:
        """Stores a token's vector, acknowledges it, and finds its place by algebraic index."""
        twin, pair = self.twin, copy.pair
        assert pair is not None
        self.uplink.charge(twin.costs.dispatch_packets * twin.costs.packet.ack_flits, DISPATCH_ACK)
        # The switch merges the acknowledgements of a multicast store: the last one counts.
        whole = copy.carrier or copy
        whole.acks_left -= 1
        if whole.acks_left == 0:
            home = twin.gpus[copy.token.home]
            twin.at(twin.now_ps + 2 * twin.costs.hop_ps, EV_ACK, home.dispatch_acknowledged)
        if not pair.experts:
            self.use_hbm(twin.costs.token_bytes[0])
        elif twin.program.dispatch_primitive == MULTICAST:
            twin.at(twin.now_ps + self.translate(pair), EV_ARRIVE, self.arrive, pair)
        else:
            self.arrive(pair)

    def dispatch_acknowledged(self) -> None:
        """Gets the packets of a stored vector back."""
        costs = self.twin.costs
        self.downlink.charge(costs.dispatch_packets * costs.packet.ack_flits, DISPATCH_ACK)
        self.dispatch_in_flight -= costs.dispatch_packets
        self.mark(DISPATCH)
        self.end_first_kernel()

    def arrive(self, pair: Pair) -> None:
        """Makes a token visible to its experts here, filling their tiles."""
        twin, count = self.twin, len(pair.experts)
        pair.token.dispatch_end = twin.now_ps
        twin.arrivals_left -= count
        self.arrivals_left -= count
        self.use_hbm(count * twin.costs.token_bytes[0])
        for number in pair.experts:
            expert = twin.experts[number]
            if expert.open is None:
                expert.open = Tile(expert, len(expert.tiles))
                expert.tiles.append(expert.open)
                self.tiles_live += 1
            expert.open.pairs.append(pair)
            expert.arrived += 1
            if expert.open_count == twin.workload.layer.tile_tokens or expert.arrived == expert.total:
                self.close_tile(expert)
        if twin.program.allow_partial:
            self.mark(GEMM)
        if twin.arrivals_left == 0 and twin.program.gates[0] == GATE_PHASE:
            twin.at(twin.now_ps + twin.program.pays_ps[1], EV_GATE, twin.open_gate, 1, twin.gpus)

    def close_tile(self, expert: Expert) -> None:
        """Ends an expert's open tile; it is ready a memory latency later if its status entry has spilled."""
        twin, tile = self.twin, expert.open
        assert tile is not None
        expert.open = None
        is_spilled = self.tiles_live > twin.costs.tile_status_entries
        # Tiles of one expert become ready in the order in which they closed.
        expert.ready_ps = max(expert.ready_ps, twin.now_ps + (twin.costs.memory_ps if is_spilled else 0))
        if expert.ready_ps == twin.now_ps:
            self.tile_ready(tile)
        else:
            twin.at(expert.ready_ps, EV_TILE, self.tile_ready, tile)

    def tile_ready(self, tile: Tile) -> None:
        """Makes a tile's GEMM-1 row ready, unless it was closed early and runs already."""
        if tile.start_ps[0] == NO_TIME:
            tile.expert.rows[0].append(tile)
        self.row_ready(tile, 1)

    # GEMM.

    def row_ready(self, tile: Tile, stage: int) -> None:
        """Notes that a row is ready, and when in the order of all rows."""
        self.twin.rows_ready += 1
        tile.ready_order[stage - 1] = self.twin.rows_ready
        tile.ready_ps[stage - 1] = self.twin.now_ps
        self.hold_gemm = False
        self.mark(GEMM)

    def gemm_group(self) -> Process:
        """Keeps free SMs on thread blocks, row after row."""
        twin = self.twin
        while True:
            if self.free_sms == 0 or (self.row is None and self.hold_gemm):
                yield None
                continue
            if self.row is None:
                # Something must still come to this GPU, or hold would wait for ever.
                may_hold = self.arrivals_left > 0 or self.free_sms < twin.gemm_sms
                row = yield from twin.choose(GEMM, self, self.list_rows(), twin.program.hold_gemm, may_hold)
                if row is None:
                    yield None
                    continue
                if isinstance(row, Hold):
                    self.hold_gemm = True
                    continue
                assert isinstance(row, Row)
                if row.is_open:
                    self.close_tile(row.tile.expert)
                self.start_row(row)
            self.start_blocks()

    def list_rows(self) -> list[Row]:
        """Returns ready rows, one per expert and GEMM, first ready first; then tiles to close early, fullest first."""
        ready, early = [], []
        least_tokens = self.twin.program.min_partial_tokens
        for expert in self.experts:
            for stage in (2, 1):
                if self.is_open[stage] and expert.rows[stage - 1]:
                    ready.append(Row(expert.rows[stage - 1][0], stage))
            is_next = expert.open is not None and all(tile.start_ps[0] != NO_TIME for tile in expert.tiles[:-1])
            if self.twin.program.allow_partial and self.is_open[1] and is_next and expert.open_count >= least_tokens:
                early.append(Row(expert.tiles[-1], 1, is_open=True))
        ready.sort(key=lambda row: row.tile.ready_order[row.stage - 1])
        early.sort(key=lambda row: -len(row.tile.pairs))
        return ready + early

    def start_row(self, row: Row) -> None:
        """Makes a row the current one; its inputs are read from HBM now, behind its weights."""
        twin, tile, stage, count = self.twin, row.tile, row.stage, len(row.tile.pairs)
        self.row = row
        if tile in tile.expert.rows[stage - 1]:
            tile.expert.rows[stage - 1].remove(tile)
        tile.start_ps[stage - 1] = twin.now_ps
        tile.blocks_left = twin.costs.blocks[stage - 1]
        read_bytes, write_bytes = twin.costs.token_bytes[:2] if stage == 1 else twin.costs.token_bytes[2:]
        tile.inputs_ps = max(self.fetch_weights(tile.expert, stage), self.use_hbm(count * read_bytes))
        self.use_hbm(count * write_bytes)

    def fetch_weights(self, expert: Expert, stage: int) -> int:
        """Returns when an expert's matrix is in L2, read from HBM if it was not; one larger than L2 fills it."""
        costs, key = self.twin.costs, (expert.number, stage)
        if key not in self.l2:
            size_bytes = min(costs.weight_bytes[stage - 1], costs.l2_bytes)
            while self.l2 and sum(held.size_bytes for held in self.l2.values()) + size_bytes > costs.l2_bytes:
                self.l2.popitem(last=False)
            self.l2[key] = Weights(size_bytes, self.use_hbm(costs.weight_bytes[stage - 1]))
        self.l2.move_to_end(key)
        return self.l2[key].loaded_ps

    def start_blocks(self) -> None:
        """Puts thread blocks of the current row on all free SMs; none ends before the row's inputs are there."""
        assert self.row is not None
        twin, tile, stage = self.twin, self.row.tile, self.row.stage
        count = min(self.free_sms, tile.blocks_left)
        end_ps = max(twin.now_ps + twin.costs.block_ps(stage, len(tile.pairs)), tile.inputs_ps)
        self.free_sms -= count
        self.sm_busy_ps += count * (end_ps - twin.now_ps)
        tile.blocks_left -= count
        tile.blocks_running += count
        twin.use(LOG_SM, self.number, stage, ("tile", tile.expert.number, tile.place), count, end_ps)
        twin.at(end_ps, EV_BLOCKS, self.blocks_end, tile, stage, count)
        if tile.blocks_left == 0:
            self.row = None

    def blocks_end(self, tile: Tile, stage: int, count: int) -> None:
        """Frees the SMs of finished thread blocks; the last ones of a row finish it."""
        self.free_sms += count
        self.hold_gemm = False
        tile.blocks_running -= count
        self.mark(GEMM)
        if tile.blocks_running == 0 and tile.blocks_left == 0:
            tile.end_ps[stage - 1] = self.twin.now_ps
            self.slots_left[stage - 1] -= len(tile.pairs)
            if stage == 1:
                tile.expert.rows[1].append(tile)
                self.row_ready(tile, 2)
                self.end_first_kernel()
            else:
                self.finish_gemm2(tile)

    def end_first_kernel(self) -> None:
        """Opens GEMM-2 behind a kernel boundary: GEMM-1 is over here, and all that was dispatched is stored."""
        twin = self.twin
        if twin.program.gates[1] != GATE_PHASE or self.gate2_asked or self.slots_left[0] > 0:
            return
        if self.tokens_sent == twin.workload.tokens_per_gpu and self.dispatch_in_flight == 0:
            self.gate2_asked = True
            twin.at(twin.now_ps + twin.program.pays_ps[2], EV_GATE, twin.open_gate, 2, [self])

    def finish_gemm2(self, tile: Tile) -> None:
        """Makes a tile's results known: to this GPU's combine group (push) or to the home GPUs (pull)."""
        twin = self.twin
        self.tiles_live -= 1
        num_remote = 0
        for pair in tile.pairs:
            pair.experts_done += 1
            if not twin.program.pulls:
                if pair.experts_done == len(pair.experts):
                    self.partial_ready(pair)
            elif twin.program.notifies and pair.is_remote:
                num_remote += 1
            else:
                twin.gpus[pair.token.home].expert_done(pair.token)
        if num_remote > 0:
            self.uplink.charge(NOTIFY_FLITS * num_remote, NOTIFY)
            twin.at(twin.now_ps + 2 * twin.costs.hop_ps, EV_NOTIFY, self.notified, tile)
        if twin.program.gates[2] == GATE_PHASE and all(gpu.slots_left[1] == 0 for gpu in twin.gpus):
            twin.at(twin.now_ps + twin.program.pays_ps[3], EV_GATE, twin.open_gate, 3, twin.gpus)

    def notified(self, tile: Tile) -> None:
        """Lets the home GPUs of a tile's tokens count its finished GEMM-2 row and acknowledge that."""
        ack_flits = self.twin.costs.packet.ack_flits
        remote = [pair for pair in tile.pairs if pair.is_remote]
        for pair in remote:
            home = self.twin.gpus[pair.token.home]
            home.downlink.charge(NOTIFY_FLITS, NOTIFY)
            home.uplink.charge(ack_flits, NOTIFY)
            home.expert_done(pair.token)
        self.downlink.charge(len(remote) * ack_flits, NOTIFY)

    # Combine.

    def expert_done(self, token: Token) -> None:
        """Counts one finished expert of a token of this GPU; after the last one it may be combined."""
        twin = self.twin
        token.experts_done += 1
        self.outputs_live += twin.program.notifies and token.experts_done == 1
        if token.experts_done == twin.workload.layer.top_k:
            if twin.program.notifies and self.outputs_live > twin.costs.output_readiness_entries:
                twin.at(twin.now_ps + twin.costs.memory_ps, EV_READY, self.item_ready, token, token)
            else:
                self.item_ready(token, token)

    def partial_ready(self, pair: Pair) -> None:
        """Makes this GPU's partial sum of a token ready to be pushed, or adds it at once if it is home already."""
        if pair.is_remote:
            self.item_ready(pair, pair.token)
            return
        if pair.token.combine_start == NO_TIME:
            pair.token.combine_start = self.twin.now_ps
        self.deliver(pair.token, 1)

    def item_ready(self, item: Token | Pair, token: Token) -> None:
        """Adds a token or partial sum to the unit it is combined with."""
        unit = self.units.setdefault((token.home, token.place), Unit(self.number, token.home, token.place))
        if not unit.items:
            unit.ready_ps = self.twin.now_ps
            self.ready.append(unit)
        unit.items.append(item)
        self.items_waiting -= 1
        self.hold_combine = False
        self.mark(COMBINE)

    def relist_units(self) -> None:
        """Orders ready units as a combine kernel that starts late walks its buffer: chunk by chunk, neighbour first."""
        self.ready.sort(key=lambda unit: (unit.place, (unit.home - self.number) % self.twin.num_gpus))

    def combine_group(self) -> Process:
        """Issues what is ready as packets in flight allow, unit after unit."""
        twin = self.twin
        while True:
            has_room = (
                self.combine_in_flight == 0
                or self.combine_in_flight + twin.costs.combine_packets <= twin.combine_window
            )
            if not self.is_open[3] or (self.issuing and not has_room) or (not self.issuing and self.hold_combine):
                yield None
                continue
            if self.issuing:
                self.issue(self.issuing.popleft())
                continue
            unit = yield from twin.choose(COMBINE, self, self.ready, twin.program.hold_combine, self.items_waiting > 0)
            if unit is None:
                yield None
            elif isinstance(unit, Hold):
                self.hold_combine = True
            else:
                assert isinstance(unit, Unit)
                self.ready.remove(unit)
                self.issuing.extend(unit.items)
                unit.items = []

    def issue(self, item: Token | Pair) -> None:
        """Asks the experts' GPUs for a token's sum (pull), or pushes one partial sum home."""
        twin = self.twin
        token = item.token if isinstance(item, Pair) else item
        if token.combine_start == NO_TIME:
            token.combine_start = twin.now_ps
        if isinstance(item, Pair):
            self.combine_in_flight += twin.costs.combine_packets
            self.use_hbm(len(item.experts) * twin.costs.token_bytes[3])
            self.uplink.enqueue(twin.partial(item))
            return
        sources = [pair for pair in token.pairs if twin.is_summed(pair)]
        if not sources:
            self.complete(token)
            return
        self.combine_in_flight += twin.costs.combine_packets
        self.uplink.charge(twin.request_flits([pair for pair in token.pairs if pair.is_remote]), COMBINE_REQUEST)
        for pair in sources:
            twin.at(twin.now_ps + 2 * twin.costs.hop_ps, EV_REQUEST, twin.gpus[pair.gpu].requested, pair)

    def requested(self, pair: Pair) -> None:
        """Reads a partial sum that its home GPU has asked for, and responds with it."""
        twin = self.twin
        delay_ps = twin.costs.memory_ps
        if twin.program.combine_primitive == PULL_REDUCE:
            delay_ps += self.translate(pair)
        self.downlink.charge(twin.request_flits([pair]), COMBINE_REQUEST)
        # A static reduce-scatter reads one vector from every GPU, whether it holds a result or not.
        self.use_hbm(max(len(pair.experts), 1) * twin.costs.token_bytes[3])
        twin.at(twin.now_ps + delay_ps, EV_RESPOND, self.uplink.enqueue, twin.partial(pair))

    def reach_combine(self, segment: Segment) -> None:
        """Takes a partial or reduced sum in at its home GPU."""
        twin = self.twin
        if not twin.program.pulls:
            self.uplink.charge(twin.costs.combine_packets * twin.costs.packet.ack_flits, COMBINE_ACK)
        if twin.program.combine_primitive == PUSH_UNICAST:
            sender = twin.gpus[segment.origin]
            twin.at(twin.now_ps + 2 * twin.costs.hop_ps, EV_ACK, sender.combine_acknowledged)
        self.deliver(segment.token, segment.pieces)

    def combine_acknowledged(self) -> None:
        """Gets the packets of a pushed partial sum back."""
        costs = self.twin.costs
        self.downlink.charge(costs.combine_packets * costs.packet.ack_flits, COMBINE_ACK)
        self.combine_in_flight -= costs.combine_packets
        self.mark(COMBINE)

    def deliver(self, token: Token, pieces: int) -> None:
        """Adds partial sums to a token's result; with the last one the token is combined."""
        token.pieces_left -= pieces
        if token.pieces_left > 0:
            return
        if self.twin.program.pulls:
            self.combine_in_flight -= self.twin.costs.combine_packets
            self.mark(COMBINE)
        self.complete(token)

    def complete(self, token: Token) -> None:
        """Ends a token of this GPU."""
        token.combine_end = self.twin.now_ps
        self.twin.tokens_left -= 1
        self.combined += 1
        self.outputs_live -= self.twin.program.notifies

    # What decisions show.

    def describe(self, candidate: Candidate) -> dict[str, float]:
        """Returns the features of a candidate that are not 0, except its place in the list."""
        if isinstance(candidate, Chunk):
            return self.describe_chunk(candidate)
        if isinstance(candidate, Row):
            return self.describe_row(candidate)
        if isinstance(candidate, Unit):
            return self.describe_unit(candidate)
        if isinstance(candidate, Split):
            return {
                "split_dispatch": candidate.dispatch_sms / self.twin.num_sms,
                "split_combine": candidate.combine_sms / self.twin.num_sms,
            }
        return {"is_hold": 1.0}

    def describe_chunk(self, chunk: Chunk) -> dict[str, float]:
        """Describes an unsent token chunk."""
        twin, count = self.twin, len(chunk.tokens)
        experts = [twin.experts[number] for token in chunk.tokens for pair in token.pairs for number in pair.experts]
        sent = [[pair for pair in token.pairs if pair.is_remote and pair.experts] for token in chunk.tokens]
        remote = [pair for pairs in sent for pair in pairs]
        if twin.program.dispatch_primitive == UNICAST:
            flits = sum(twin.copy(pair).flits_up for pair in remote)
        else:
            flits = sum(twin.store(token, []).flits_up for token in chunk.tokens)
        tile_tokens = twin.workload.layer.tile_tokens
        return {
            "size": count / twin.program.chunk_tokens,
            "tile_fill": mean([expert.open_count / tile_tokens for expert in experts]),
            "expert_progress": mean([expert.arrived / expert.total for expert in experts]),
            "fan_out": len(remote) / (count * (twin.num_gpus - 1)),
            "backlog": twin.root(max((twin.gpus[pair.gpu].downlink.backlog_ps() for pair in remote), default=0)),
            "cost": twin.root(twin.costs.wire_ps(flits)),
        }

    def describe_row(self, row: Row) -> dict[str, float]:
        """Describes a ready row or an open tile."""
        twin, costs, expert, pairs = self.twin, self.twin.costs, row.tile.expert, row.tile.pairs
        if twin.program.pulls:
            finishes = sum(pair.token.experts_done == twin.workload.layer.top_k - 1 for pair in pairs)
        else:
            finishes = sum(pair.experts_done == len(pair.experts) - 1 for pair in pairs)
        is_resident = (expert.number, row.stage) in self.l2
        row_ps = costs.blocks[row.stage - 1] * costs.block_ps(row.stage, len(pairs)) // twin.gemm_sms
        fetch_ps = 0 if is_resident else costs.hbm_ps(costs.weight_bytes[row.stage - 1])
        waiting_ps = 0 if row.is_open else twin.now_ps - row.tile.ready_ps[row.stage - 1]
        return {
            "size": len(pairs) / twin.workload.layer.tile_tokens,
            "is_gemm2": float(row.stage == 2),
            "is_partial": float(row.is_open),
            "weights_in_l2": float(is_resident),
            "waiting": twin.root(waiting_ps),
            "expert_left": (expert.total - expert.arrived) / expert.total,
            "finishes": finishes / len(pairs),
            "backlog": twin.root(self.hbm_free_ps - twin.now_ps),
            "cost": twin.root(max(row_ps, fetch_ps)),
        }

    def describe_unit(self, unit: Unit) -> dict[str, float]:
        """Describes a chunk's ready tokens, or this GPU's ready partial sums of a chunk."""
        twin = self.twin
        backlogs_ps = []
        for item in unit.items:
            if isinstance(item, Pair):
                backlogs_ps.append(twin.gpus[unit.home].downlink.backlog_ps())
            else:
                sources = [pair for pair in item.pairs if pair.is_remote and pair.experts]
                backlogs_ps.extend(twin.gpus[pair.gpu].uplink.backlog_ps() for pair in sources)
        return {
            "size": len(unit.items) / twin.program.chunk_tokens,
            "waiting": twin.root(twin.now_ps - unit.ready_ps),
            "fan_out": len(backlogs_ps) / (len(unit.items) * (twin.num_gpus - 1)),
            "backlog": twin.root(max(backlogs_ps, default=0)),
            "cost": twin.root(twin.costs.wire_ps(len(unit.items) * twin.costs.combine_flits())),
        }

    def context(self, kind: int) -> dict[str, float]:
        """Returns what a decision shows of this GPU and of the layer."""
        twin, of_gpu, of_all = self.twin, self.twin.workload.tokens_per_gpu, len(self.twin.tokens)
        return {
            f"is_{DECISION_KINDS[kind]}": 1.0,
            "elapsed": min(1.0, twin.now_ps / (4 * twin.scale_ps)),
            "sent": self.tokens_sent / of_gpu,
            "received": fraction(self.slots - self.arrivals_left, self.slots),
            "gemm_done": fraction(2 * self.slots - sum(self.slots_left), 2 * self.slots),
            "combined": self.combined / of_gpu,
            "uplink_backlog": twin.root(self.uplink.backlog_ps()),
            "downlink_backlog": twin.root(self.downlink.backlog_ps()),
            "hbm_backlog": twin.root(self.hbm_free_ps - twin.now_ps),
            "free_sms": self.free_sms / twin.gemm_sms,
            "dispatch_in_flight": fraction(self.dispatch_in_flight, twin.dispatch_window),
            "combine_in_flight": fraction(self.combine_in_flight, twin.combine_window),
            "all_combined": (of_all - twin.tokens_left) / of_all,
        }


def mean(values: list[float]) -> float:
    """Returns the mean, summed in order and rounded at each step as the engine does; ``sum`` may compensate."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def fraction(part: int, whole: int) -> float:
    """Returns part over whole cut to 1; nothing to do counts as done."""
    return min(1.0, part / whole) if whole else 1.0


class Twin:
    """One simulated layer, with the engine's interface. Time runs only inside ``advance``.

    Attributes:
        now_ps: The simulated time.
        tokens, experts, gpus: What the layer is made of; times are in tokens and in the experts' tiles.
        traffic: (GPU, direction, purpose) int64 flits on the wire.
        log: Every use of a link, reduction unit and SM group.
        decisions: Decisions between two or more legal candidates so far.
        evictions: Partial sums sent home for want of accumulator slots.
        served, sequence: Events served and events pushed so far.
    """

    def __init__(self, workload: Workload, costs: Costs, program: Program, num_sms: int, scale_ps: int) -> None:
        """Sets the layer up.

        Args:
            workload: Routing of one layer.
            costs: Its costs on a system.
            program: How it is run.
            num_sms: SMs of one GPU.
            scale_ps: What times are compared with in features; the workload's lower bound.
        """
        self.workload, self.costs, self.program = workload, costs, program
        self.num_gpus, self.num_sms, self.scale_ps = workload.num_gpus, num_sms, max(1, scale_ps)
        self.set_split(program.dispatch_sms, program.gemm_sms, program.combine_sms)
        self.now_ps = 0
        self.done = False
        self.sequence = self.served = self.rows_ready = self.decisions = self.evictions = 0
        self.traffic = np.zeros((self.num_gpus, 2, NUM_PURPOSES), np.int64)
        self.log: list[Use] = []
        self.marked: deque[Group] = deque()
        self.events: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.gpus = [Gpu(self, number) for number in range(self.num_gpus)]
        totals = np.bincount(workload.topk_ids.reshape(-1), minlength=workload.layer.experts).tolist()
        self.experts = [Expert(number, total) for number, total in enumerate(totals)]
        for expert in self.experts:
            gpu = self.gpus[int(workload.gpu_of_expert[expert.number])]
            gpu.experts.append(expert)
            gpu.slots += expert.total
        self.tokens = [self.make_token(number) for number in range(workload.num_tokens)]
        self.tokens_left = len(self.tokens)
        self.arrivals_left = sum(totals)
        for gpu in self.gpus:
            gpu.arrivals_left = gpu.slots
            gpu.slots_left = [gpu.slots, gpu.slots]
            own = self.tokens[gpu.number * workload.tokens_per_gpu :][: workload.tokens_per_gpu]
            for place, first in enumerate(range(0, len(own), program.chunk_tokens)):
                gpu.unsent.append(Chunk(gpu.number, place, own[first : first + program.chunk_tokens]))
        self.at(program.pays_ps[0], EV_GATE, self.open_gate, 0, self.gpus)
        self._story = self._tell()
        self._answer: int | None = None
        self._waiting: Decision | None = None

    def make_token(self, number: int) -> Token:
        """Returns a token with a pair for every GPU that any primitive of the program addresses for it."""
        home = number // self.workload.tokens_per_gpu
        token = Token(number, home, number % self.workload.tokens_per_gpu // self.program.chunk_tokens)
        ids = sorted(self.workload.topk_ids[number].tolist())
        # Copies start at the neighbour after the home GPU, so that all GPUs do not address the same one first.
        for offset in range(self.num_gpus):
            gpu = (home + offset) % self.num_gpus
            pair = Pair(token, gpu, [expert for expert in ids if self.workload.gpu_of_expert[expert] == gpu])
            if pair.experts or self.program.static:
                token.pairs.append(pair)
        token.contributions_left = sum(self.is_summed(pair) for pair in token.pairs)
        if self.program.pulls:
            # The local partial sum is added while the others are on their way.
            token.pieces_left = token.contributions_left
            self.gpus[home].items_waiting += 1
        else:
            token.pieces_left = sum(bool(pair.experts) for pair in token.pairs)
            for pair in token.pairs:
                self.gpus[pair.gpu].items_waiting += pair.is_remote and bool(pair.experts)
        return token

    def is_target(self, pair: Pair) -> bool:
        """Returns whether dispatch sends this pair over links."""
        return pair.is_remote and (bool(pair.experts) or self.program.dispatch_primitive == BROADCAST)

    def is_summed(self, pair: Pair) -> bool:
        """Returns whether combine sends this pair over links."""
        return pair.is_remote and (bool(pair.experts) or self.program.combine_primitive == REDUCE_SCATTER)

    def copy(self, pair: Pair) -> Segment:
        """Returns a dispatched vector for one GPU; a multicast replica names only the experts behind that port."""
        targets = len(pair.experts) if self.program.dispatch_primitive == MULTICAST else 0
        flits = self.costs.dispatch_flits(targets)
        return Segment(
            ("copy", pair.token.number, pair.gpu), DISPATCH_DATA, pair.token, pair, pair.token.home, flits, flits
        )

    def store(self, token: Token, replicas: list[Segment]) -> Segment:
        """Returns a vector dispatched to all its targets at once, of which the switch makes the replicas."""
        remote = sum(len(pair.experts) for pair in token.pairs if pair.is_remote)
        flits = self.costs.dispatch_flits(remote if self.program.dispatch_primitive == MULTICAST else 0)
        whole = Segment(("store", token.number, token.home), DISPATCH_DATA, token, None, token.home, flits, 0)
        whole.replicas, whole.replicas_left, whole.acks_left = replicas, len(replicas), len(replicas)
        for replica in replicas:
            replica.carrier = whole
        return whole

    def partial(self, pair: Pair) -> Segment:
        """Returns one GPU's partial sum of a token on its way home: a read response (pull) or a store (push)."""
        flits, vc = self.costs.combine_flits(), RESPONSE if self.program.pulls else REQUEST
        name = ("partial", pair.token.number, pair.gpu)
        return Segment(name, COMBINE_DATA, pair.token, pair, pair.gpu, flits, flits, vc)

    def output(self, segment: Segment) -> Port:
        """Returns the switch output a segment from an uplink goes to."""
        if segment.purpose == DISPATCH_DATA:
            assert segment.pair is not None
            return self.gpus[segment.pair.gpu].downlink
        home = self.gpus[segment.token.home]
        return home.downlink if self.program.combine_primitive == PUSH_UNICAST else home.reducer

    def request_flits(self, pairs: Sequence[Pair]) -> int:
        """Returns the flits that ask for a sum, naming the experts behind the pairs unless the sum is static."""
        is_named = self.program.combine_primitive == PULL_REDUCE
        return self.costs.request_flits(sum(len(pair.experts) for pair in pairs) if is_named else 0)

    def delivery_ps(self, flits: int) -> int:
        """Returns the time from the first flit entering a link to the last one leaving it at the other end."""
        exact_ps = flits * self.costs.packet.flit_bytes * PS_PER_S // self.costs.link_bytes_per_s
        return (self.costs.hop_ps + exact_ps) // self.costs.quantum_ps * self.costs.quantum_ps

    def root(self, ps: int) -> float:
        """Returns the square root of a time over the lower bound, cut to [0, 1]."""
        return min(1.0, math.sqrt(max(ps, 0) / self.scale_ps))

    def at(self, time_ps: int, kind: int, effect: Callable[..., None], *operands: object) -> None:
        """Pushes an event."""
        heapq.heappush(self.events, (time_ps, kind, self.sequence, effect, operands))
        self.sequence += 1

    def use(self, resource: int, gpu: int, purpose: int, item: Name, amount: int, end_ps: int) -> None:
        """Logs that a resource is in use from now on."""
        self.log.append(Use(resource, gpu, purpose, item, amount, self.now_ps, end_ps))

    def set_split(self, dispatch_sms: int, gemm_sms: int, combine_sms: int) -> None:
        """Sizes the SM groups of all GPUs; a communication SM keeps so many packets in flight."""
        per_sm = self.costs.in_flight_packets_per_sm
        self.gemm_sms = gemm_sms
        self.dispatch_window = min(dispatch_sms * per_sm, UNLIMITED)
        self.combine_window = min(combine_sms * per_sm, UNLIMITED)

    def open_gate(self, stage: int, gpus: list[Gpu]) -> None:
        """Lets a stage start on some GPUs: 0 everything, 1 GEMM-1, 2 GEMM-2, 3 combine."""
        for gpu in gpus:
            gpu.is_open[stage] = True
            if stage == 0:
                for kind in (DISPATCH, GEMM, COMBINE):
                    gpu.mark(kind)
            elif stage == 3:
                gpu.relist_units()
                gpu.mark(COMBINE)
            else:
                gpu.mark(GEMM)

    def choose(
        self, kind: int, gpu: Gpu, options: Sequence[Candidate], shows_hold: bool = False, may_hold: bool = False
    ) -> Generator[Decision | None, int, Candidate | None]:
        """Returns the chosen candidate, or None if there is none; one legal answer is taken without asking."""
        candidates = list(options[: self.program.max_candidates - shows_hold])
        if not candidates:
            return None
        num_legal = len(candidates) + (shows_hold and may_hold)
        if shows_hold:
            candidates.append(Hold())
        if num_legal == 1:
            return candidates[0]
        decision = self.describe(kind, gpu, candidates, num_legal)
        if kind in self.program.exposed:
            row = yield decision
            self.decisions += 1
            return candidates[row]
        self.decisions += 1
        # A rule takes the highest score, the first of equals. A rule without weights takes the first.
        scores = [0.0] * num_legal
        for row in range(num_legal):
            for weight, feature in zip(self.program.weights[kind], decision.features[row], strict=True):
                scores[row] += float(weight) * float(feature)
        return candidates[scores.index(max(scores))]

    def describe(self, kind: int, gpu: Gpu, candidates: list[Candidate], num_legal: int) -> Decision:
        """Returns a decision with all that it shows; hold comes last, so the legal rows are the first ones."""
        limit = self.program.max_candidates
        features = np.zeros((limit, len(FEATURES)), np.float32)
        for row, candidate in enumerate(candidates):
            values = gpu.describe(candidate)
            if not isinstance(candidate, Hold):
                values["order"] = row / limit
            features[row] = [values.get(name, 0.0) for name in FEATURES]
        values = gpu.context(kind)
        context = np.array([values.get(name, 0.0) for name in CONTEXT], np.float32)
        return Decision(kind, gpu.number, len(candidates), features, context, np.arange(limit) < num_legal, candidates)

    def _tell(self) -> Generator[Decision, int, None]:
        """Runs the layer: all events of an instant are served, then the SM groups they concern act."""
        yield from self._take_split()
        while True:
            while self.marked:
                group = self.marked.popleft()
                # The mark goes before the group acts: what it does may give it more to do.
                group.is_marked = False
                decision = next(group.process)
                while decision is not None:
                    decision = group.process.send((yield decision))
            if self.tokens_left == 0:
                return
            if not self.events:
                raise RuntimeError(
                    f"the schedule is stuck at {self.now_ps} ps with {self.tokens_left} tokens not combined"
                )
            self.now_ps = self.events[0][0]
            while self.events and self.events[0][0] == self.now_ps:
                _, _, _, effect, operands = heapq.heappop(self.events)
                self.served += 1
                effect(*operands)

    def _take_split(self) -> Generator[Decision, int, None]:
        options = [Split(*split) for split in self.program.splits]
        asking = self.choose(SPLIT, self.gpus[0], options)
        try:
            decision = next(asking)
            while decision is not None:
                decision = asking.send((yield decision))
        except StopIteration as end:
            if isinstance(end.value, Split):
                dispatch_sms, combine_sms = end.value
                self.set_split(dispatch_sms, self.num_sms - dispatch_sms - combine_sms, combine_sms)
                for gpu in self.gpus:
                    gpu.free_sms = self.gemm_sms

    def advance(self) -> Decision | None:
        """Runs to the next exposed decision and returns it, or None when the layer is done.

        Raises:
            RuntimeError: Nothing can happen any more although tokens are left; the program cannot be run.
        """
        if self._waiting is not None:
            raise RuntimeError("a decision waits for its answer; call decide first")
        try:
            self._waiting = next(self._story) if self._answer is None else self._story.send(self._answer)
        except StopIteration:
            self.done = True
        return self._waiting

    def decide(self, choice: int) -> None:
        """Answers the waiting decision with the row of a legal candidate; time does not move.

        Raises:
            ValueError: The row is masked.
            RuntimeError: No decision waits.
        """
        if self._waiting is None:
            raise RuntimeError("no decision waits")
        if not 0 <= choice < len(self._waiting.mask) or not self._waiting.mask[choice]:
            legal = np.flatnonzero(self._waiting.mask).tolist()
            raise ValueError(f"action {choice} is masked; legal actions are {legal}")
        self._answer, self._waiting = choice, None

    def run(self) -> Twin:
        """Runs to the end under the program's own rules and returns itself.

        Raises:
            RuntimeError: The program exposes a decision.
        """
        if self.advance() is not None:
            raise RuntimeError("the program exposes decisions; answer them, or run a program that exposes none")
        return self
