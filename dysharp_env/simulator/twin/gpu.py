"""The twin's GPU: memory, Hub tables, experts, and SM groups as generators that run until they have to wait."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dysharp_env.simulator.layout import (
    BROADCAST,
    COMBINE,
    COMBINE_ACK,
    COMBINE_REQUEST,
    DISPATCH,
    DISPATCH_ACK,
    DISPATCH_DATA,
    DISPATCH_REQUEST,
    EV_ACK,
    EV_ARRIVE,
    EV_BLOCKS,
    EV_GATE,
    EV_NOTIFY,
    EV_READY,
    EV_REQUEST,
    EV_RESPOND,
    EV_SLOT,
    EV_TILE,
    GATE_FINE,
    GATE_GPU,
    GATE_PHASE,
    GEMM,
    LOG_SM,
    MULTICAST,
    NO_TIME,
    NOTIFY,
    NOTIFY_FLITS,
    PULL_REDUCE,
    PULL_UNICAST,
    PUSH_UNICAST,
)
from dysharp_env.simulator.twin.fabric import Downlink, Link, Reducer, Uplink
from dysharp_env.simulator.twin.parts import (
    Chunk,
    CommunicationSm,
    Decision,
    Expert,
    Hold,
    Pair,
    Process,
    Row,
    Segment,
    Tile,
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


class Gpu:
    """One GPU: its links, memory, Hub tables, experts, and SM groups."""

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
        self.free_sms = twin.gemm_sms
        self.row: Row | None = None  # whose blocks are being started
        self.hold_gemm = False
        self.sm_busy_ps = 0
        self.slots = 0
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

    # Dispatch.

    def dispatch_group(self) -> Process:
        """Gives token after token, chunk after chunk, to SMs that may take one."""
        twin, free = self.twin, self.free_communication_sms[DISPATCH]
        while True:
            if not self.in_chunk:
                self.end_parts()
            if not free:
                yield None
                continue
            if not self.in_chunk:
                in_turn = [chunk for chunk in self.unsent if chunk.part == self.part]
                chunk = yield from twin.choose(DISPATCH, self, in_turn)
                if chunk is None:
                    yield None
                    continue
                assert isinstance(chunk, Chunk)
                self.unsent.remove(chunk)
                self.in_chunk = list(chunk.tokens)
            self.take_token(free.popleft(), self.in_chunk.pop(0))

    def in_turn(self, token: Token) -> list[Pair]:
        """Returns the pairs of a token that this GPU dispatches now: its own if it reads, else the part's."""
        if self.twin.program.reads_tokens:
            return [pair for pair in token.pairs if pair.gpu == self.number]
        return [pair for pair in token.pairs if not self.twin.program.by_peers or pair.part == self.part]

    def end_parts(self) -> None:
        """Gives the next part its turn when all of the present one is stored."""
        twin = self.twin
        while self.part < twin.program.parts and self.sends_left[self.part] == 0 and self.dispatch_in_flight == 0:
            self.part += 1
            self.end_first_kernel(self.part - 1)
            if twin.program.exclusive and self.part == twin.program.parts:
                self.mark(COMBINE)

    def take_token(self, sm: CommunicationSm, token: Token) -> None:
        """Gives a token to an SM; its home GPU's own experts get it at once."""
        twin = self.twin
        if token.dispatch_start == NO_TIME:
            token.dispatch_start = twin.now_ps
        for pair in self.in_turn(token):
            if not pair.is_remote and pair.experts:
                twin.at(twin.now_ps + twin.costs.memory_ps, EV_ARRIVE, self.arrive, pair)
        copies = [twin.copy(pair) for pair in self.in_turn(token) if twin.is_target(pair)]
        if copies and twin.program.dispatch_primitive in (MULTICAST, BROADCAST):
            copies = [twin.store(token, copies)]
        sm.left = [*copies]
        self.issue_copies(sm)

    def issue_copies(self, sm: CommunicationSm) -> None:
        """Issues what is left of an SM's token as far as its window allows; with nothing left it may take another."""
        twin = self.twin
        while sm.left:
            if sm.in_flight == twin.dispatch_window.slots:
                return
            copy = sm.left.pop(0)
            assert isinstance(copy, list)
            self.dispatch_in_flight += 1
            trip = self.begin_trip(sm, twin.costs.dispatch_segments)
            for segment in copy:
                segment.trip = trip
            if twin.program.reads_tokens:
                self.ask_for_token(copy)
            else:
                self.send(copy)
        sm.left = None
        self.tokens_sent += 1
        self.sends_left[self.part] -= 1
        if sm.in_flight < twin.dispatch_window.slots:
            self.list_sm(sm)

    def list_sm(self, sm: CommunicationSm) -> None:
        """Puts an SM behind the others of its group that may take something."""
        self.free_communication_sms[sm.kind].append(sm)
        self.mark(sm.kind)

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
        """Lets an SM put another vector in flight: of the token it is at, or else of a new one."""
        sm.in_flight -= 1
        if sm.left is not None:
            if sm.kind == DISPATCH:
                self.issue_copies(sm)
            else:
                self.issue_loads(sm)
        elif sm.in_flight == slots - 1:
            self.list_sm(sm)

    def ask_for_token(self, copy: list[Segment]) -> None:
        """Reads a token's vector from its home GPU."""
        twin, home = self.twin, self.twin.gpus[copy[0].origin]
        planes = [segment.plane for segment in copy]
        crossed_ps = self.ask(planes, twin.dispatch_ask_flits, DISPATCH_REQUEST)
        twin.at(crossed_ps + 2 * twin.costs.hop_ps, EV_REQUEST, home.asked_for_token, copy)

    def asked_for_token(self, copy: list[Segment]) -> None:
        """Reads a token's vector of this GPU for another one, and responds with it."""
        twin = self.twin
        for segment in copy:
            self.downlinks[segment.plane].charge(twin.dispatch_ask_flits, DISPATCH_REQUEST)
        twin.at(twin.now_ps + twin.costs.memory_ps, EV_RESPOND, self.send, copy)

    def reach(self, segment: Segment) -> None:
        """Takes a segment in."""
        if segment.purpose == DISPATCH_DATA:
            self.reach_dispatch(segment)
        else:
            self.reach_combine(segment)

    def reach_dispatch(self, copy: Segment) -> None:
        """Stores a segment and acknowledges it; the first has the token's place found, the last completes it."""
        twin, pair = self.twin, copy.pair
        assert pair is not None
        costs, is_first = twin.costs, pair.segments_left == twin.costs.dispatch_segments
        pair.segments_left -= 1
        if twin.program.reads_tokens:
            # The reader has what it asked for; nobody is told.
            if pair.segments_left == 0:
                self.arrive(pair)
            self.end_dispatch_segment(copy)
            return
        packets = costs.dispatch_packets // costs.dispatch_segments
        self.uplinks[copy.plane].charge(packets * costs.packet.ack_flits, DISPATCH_ACK)
        # The switch merges the acknowledgements of a multicast store: the last one counts.
        whole = copy.carrier or copy
        whole.acks_left -= 1
        if whole.acks_left == 0:
            home = twin.gpus[copy.token.home]
            twin.at(twin.now_ps + 2 * twin.costs.hop_ps, EV_ACK, home.dispatch_acknowledged, whole)
        is_translated = twin.program.dispatch_primitive == MULTICAST
        if is_translated and is_first:
            pair.translated_ps = twin.now_ps + self.translate(pair)
        if pair.segments_left > 0:
            return
        if not pair.experts:
            self.use_hbm(twin.costs.token_bytes[0])
        elif is_translated:
            twin.at(max(twin.now_ps, pair.translated_ps), EV_ARRIVE, self.arrive, pair)
        else:
            self.arrive(pair)

    def dispatch_acknowledged(self, whole: Segment) -> None:
        """Counts a segment that is stored."""
        costs = self.twin.costs
        packets = costs.dispatch_packets // costs.dispatch_segments
        self.downlinks[whole.plane].charge(packets * costs.packet.ack_flits, DISPATCH_ACK)
        self.end_dispatch_segment(whole)

    def end_dispatch_segment(self, segment: Segment) -> None:
        """Counts a segment that is stored or read; the last one ends the round trip of its vector."""
        if not self.end_segment(segment.trip):
            return
        self.dispatch_in_flight -= 1
        self.mark(DISPATCH)

    def arrive(self, pair: Pair) -> None:
        """Makes a token visible to its experts here, filling their tiles."""
        twin, count = self.twin, len(pair.experts)
        pair.token.dispatch_end = twin.now_ps
        self.arrivals_left[pair.part] -= count
        self.use_hbm(count * twin.costs.token_bytes[0])
        for number in pair.experts:
            expert = twin.experts[number, pair.part]
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
        gate, pay_ps = twin.program.gates[0], twin.program.pays_ps[1]
        if gate == GATE_PHASE and all(gpu.arrivals_left[pair.part] == 0 for gpu in twin.gpus):
            twin.at(twin.now_ps + pay_ps, EV_GATE, twin.open_gate, 1, pair.part, twin.gpus)
        if gate == GATE_GPU and self.arrivals_left[pair.part] == 0:
            twin.at(twin.now_ps + pay_ps, EV_GATE, twin.open_gate, 1, pair.part, [self])
        if twin.program.exclusive and not any(self.arrivals_left):
            self.mark(COMBINE)

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
                may_hold = any(self.arrivals_left) or self.free_sms < twin.gemm_sms
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
                if self.is_open[stage, expert.part] and expert.rows[stage - 1]:
                    ready.append(Row(expert.rows[stage - 1][0], stage))
            is_next = expert.open is not None and all(tile.start_ps[0] != NO_TIME for tile in expert.tiles[:-1])
            may_close = self.twin.program.allow_partial and self.is_open[1, expert.part]
            if may_close and is_next and expert.open_count >= least_tokens:
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
        tile.weights_ps = self.fetch_weights(tile.expert, stage)
        tile.inputs_ps = max(tile.weights_ps, self.use_hbm(count * read_bytes))
        self.use_hbm(count * write_bytes)

    def fetch_weights(self, expert: Expert, stage: int) -> int:
        """Returns when an expert's matrix is in L2, read from HBM if it was not; one larger than L2 fills it."""
        costs, key = self.twin.costs, (expert.number, stage)
        if key not in self.l2:
            size_bytes = min(costs.matrix_bytes[stage - 1], costs.l2_bytes)
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
        cold_ps = max(tile.weights_ps - twin.now_ps, 0) // 1000 * twin.costs.cold_exposure_permille
        end_ps = max(twin.now_ps + twin.costs.block_ps(stage, len(tile.pairs)) + cold_ps, tile.inputs_ps)
        self.free_sms -= count
        self.sm_busy_ps += count * (end_ps - twin.now_ps)
        tile.blocks_left -= count
        tile.blocks_running += count
        twin.use(LOG_SM, self.number, stage, ("tile", tile.expert.number, tile.expert.part, tile.place), count, end_ps)
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
            self.slots_left[stage - 1][tile.expert.part] -= len(tile.pairs)
            if stage == 1:
                tile.expert.rows[1].append(tile)
                self.row_ready(tile, 2)
                self.end_first_kernel(tile.expert.part)
            else:
                self.finish_gemm2(tile)

    def end_first_kernel(self, part: int) -> None:
        """Opens a part's GEMM-2 behind a kernel boundary: its GEMM-1 is over here, what it dispatched is stored."""
        twin = self.twin
        is_over = self.slots_left[0][part] == 0 and self.part > part
        if twin.program.gates[1] == GATE_PHASE and is_over and not self.is_boundary_paid[part]:
            self.is_boundary_paid[part] = True
            twin.at(twin.now_ps + twin.program.pays_ps[2], EV_GATE, twin.open_gate, 2, part, [self])

    def finish_gemm2(self, tile: Tile) -> None:
        """Makes a tile's results known: to this GPU's combine group (push) or to the home GPUs (pull)."""
        twin = self.twin
        self.tiles_live -= 1
        remote = []
        for pair in tile.pairs:
            pair.experts_done += 1
            if not twin.program.pulls:
                if pair.experts_done == len(pair.experts):
                    self.partial_ready(pair)
            elif twin.program.notifies and pair.token.home != self.number:
                remote.append(pair)
            else:
                twin.gpus[pair.token.home].expert_done(pair.token)
        if remote:
            self.charge_updates(self.uplinks, remote, NOTIFY_FLITS)
            twin.at(twin.now_ps + 2 * twin.costs.hop_ps, EV_NOTIFY, self.notified, tile)
        part, gate, pay_ps = tile.expert.part, twin.program.gates[2], twin.program.pays_ps[3]
        if gate == GATE_PHASE and all(gpu.slots_left[1][part] == 0 for gpu in twin.gpus):
            twin.at(twin.now_ps + pay_ps, EV_GATE, twin.open_gate, 3, part, twin.gpus)
        if gate == GATE_GPU and self.slots_left[1][part] == 0:
            twin.at(twin.now_ps + pay_ps, EV_GATE, twin.open_gate, 3, part, [self])

    def charge_updates(self, links: Sequence[Link], pairs: list[Pair], flits: int) -> None:
        """Charges ``flits`` for each token's counter update, all those of a plane together."""
        for plane, link in enumerate(links):
            count = sum(self.twin.combine_planes[pair.token.number][0] == plane for pair in pairs)
            link.charge(count * flits, NOTIFY)

    def notified(self, tile: Tile) -> None:
        """Lets the home GPUs of a tile's tokens count its finished GEMM-2 row and acknowledge that."""
        ack_flits = self.twin.costs.packet.ack_flits
        remote = [pair for pair in tile.pairs if pair.token.home != self.number]
        for pair in remote:
            home, plane = self.twin.gpus[pair.token.home], self.twin.combine_planes[pair.token.number][0]
            home.downlinks[plane].charge(NOTIFY_FLITS, NOTIFY)
            home.uplinks[plane].charge(ack_flits, NOTIFY)
            home.expert_done(pair.token)
        self.charge_updates(self.downlinks, remote, ack_flits)

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
        for place in range(self.twin.costs.combine_segments):
            self.deliver(pair.token, place, 1)

    def item_ready(self, item: Token | Pair, token: Token) -> None:
        """Adds a token or partial sum to the unit it is combined with."""
        part = self.twin.part_of(token, self.number)
        unit = self.units.setdefault((token.home, token.place), Unit(self.number, token.home, token.place, part))
        if not unit.items:
            unit.ready_ps = self.twin.now_ps
            if self.is_open[3, part]:
                self.ready.append(unit)
        unit.items.append(item)
        self.items_waiting -= 1
        self.hold_combine = False
        self.mark(COMBINE)

    def list_part(self, part: int) -> None:
        """Lists ready units as a combine kernel that starts late walks its buffer: chunk by chunk, neighbour first."""
        self.hold_combine = False
        late = [unit for unit in self.units.values() if unit.part == part and unit.items]
        late.sort(key=lambda unit: (unit.place, (unit.home - self.number) % self.twin.num_gpus))
        self.ready.extend(late)

    def combine_group(self) -> Process:
        """Issues what is ready as SMs may take it, unit after unit."""
        twin, free = self.twin, self.free_communication_sms[COMBINE]
        while True:
            if self.must_dispatch_first() or not free or (not self.issuing and self.hold_combine):
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

    def must_dispatch_first(self) -> bool:
        """Returns whether combine has to wait for the end of dispatch here."""
        is_over = self.part == self.twin.program.parts and not any(self.arrivals_left)
        return self.twin.program.exclusive and not is_over

    def issue(self, item: Token | Pair) -> None:
        """Asks the experts' GPUs for a token's sum (pull), or pushes one partial sum home."""
        twin = self.twin
        token = item.token if isinstance(item, Pair) else item
        if token.combine_start == NO_TIME:
            token.combine_start = twin.now_ps
        if isinstance(item, Pair):
            partial = twin.partial(item)
            trip = self.take_slot()
            for segment in partial:
                segment.trip = trip
            self.use_hbm(len(item.experts) * twin.costs.token_bytes[3])
            self.send(partial)
            return
        sources = [pair for pair in token.pairs if twin.is_summed(pair)]
        if not sources:
            self.complete(token)
            return
        if twin.program.combine_primitive == PULL_UNICAST:
            # Plain loads ask every GPU for its part; one instruction asks the switch for a sum.
            sm = self.free_communication_sms[COMBINE].popleft()
            sm.left = list(sources)
            self.issue_loads(sm)
            return
        token.trip = self.take_slot()
        asked_flits = twin.request_flits([pair for pair in token.pairs if pair.is_remote])
        crossed_ps = self.ask(twin.combine_planes[token.number], asked_flits, COMBINE_REQUEST)
        for pair in sources:
            twin.at(crossed_ps + 2 * twin.costs.hop_ps, EV_REQUEST, twin.gpus[pair.gpu].requested, pair)

    def take_slot(self) -> Trip:
        """Puts a vector in flight at the first combine SM that may."""
        sm = self.free_communication_sms[COMBINE].popleft()
        self.combine_in_flight += 1
        trip = self.begin_trip(sm, self.twin.costs.combine_segments)
        if sm.in_flight < self.twin.combine_window.slots:
            self.list_sm(sm)
        return trip

    def issue_loads(self, sm: CommunicationSm) -> None:
        """Asks for what an SM's token still lacks as far as its window allows; then it may take another."""
        twin = self.twin
        while sm.left:
            if sm.in_flight == twin.combine_window.slots:
                return
            pair = sm.left.pop(0)
            assert isinstance(pair, Pair)
            self.combine_in_flight += 1
            pair.trip = self.begin_trip(sm, twin.costs.combine_segments)
            planes = twin.combine_planes[pair.token.number]
            crossed_ps = self.ask(planes, twin.request_flits([pair]), COMBINE_REQUEST)
            twin.at(crossed_ps + 2 * twin.costs.hop_ps, EV_REQUEST, twin.gpus[pair.gpu].requested, pair)
        sm.left = None
        if sm.in_flight < twin.combine_window.slots:
            self.list_sm(sm)

    def requested(self, pair: Pair) -> None:
        """Reads a partial sum that its home GPU has asked for, and responds with it."""
        twin = self.twin
        delay_ps = twin.costs.memory_ps
        if twin.program.combine_primitive == PULL_REDUCE:
            delay_ps += self.translate(pair)
        for plane in twin.combine_planes[pair.token.number]:
            self.downlinks[plane].charge(twin.request_flits([pair]), COMBINE_REQUEST)
        # A static reduce-scatter reads one vector from every GPU, whether it holds a result or not.
        self.use_hbm(max(len(pair.experts), 1) * twin.costs.token_bytes[3])
        twin.at(twin.now_ps + delay_ps, EV_RESPOND, self.send, twin.partial(pair))

    def reach_combine(self, segment: Segment) -> None:
        """Takes a segment of a partial or reduced sum in at its home GPU."""
        twin, costs = self.twin, self.twin.costs
        if not twin.program.pulls:
            packets = costs.combine_packets // costs.combine_segments
            self.uplinks[segment.plane].charge(packets * costs.packet.ack_flits, COMBINE_ACK)
        if twin.program.combine_primitive == PUSH_UNICAST:
            sender = twin.gpus[segment.origin]
            twin.at(twin.now_ps + 2 * costs.hop_ps, EV_ACK, sender.combine_acknowledged, segment)
        elif twin.program.combine_primitive == PULL_UNICAST:
            assert segment.pair is not None
            self.combine_in_flight -= self.end_segment(segment.pair.trip)
        self.deliver(segment.token, segment.place, segment.pieces)

    def combine_acknowledged(self, segment: Segment) -> None:
        """Counts a pushed segment that is stored, or in the switch."""
        costs = self.twin.costs
        packets = costs.combine_packets // costs.combine_segments
        self.downlinks[segment.plane].charge(packets * costs.packet.ack_flits, COMBINE_ACK)
        self.combine_in_flight -= self.end_segment(segment.trip)

    def deliver(self, token: Token, place: int, pieces: int) -> None:
        """Adds partial sums to a segment of a token's result; with the last one of all the token is combined."""
        token.pieces_left[place] -= pieces
        if token.pieces_left[place] > 0:
            return
        if self.twin.program.pulls and self.twin.program.combine_primitive != PULL_UNICAST:
            self.combine_in_flight -= self.end_segment(token.trip)
        if not any(token.pieces_left):
            self.complete(token)

    def complete(self, token: Token) -> None:
        """Ends a token of this GPU."""
        token.combine_end = self.twin.now_ps
        self.twin.tokens_left -= 1
        self.combined += 1
        self.outputs_live -= self.twin.program.notifies
