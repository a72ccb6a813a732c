"""Dispatch on one of the twin's GPUs."""

from __future__ import annotations

from dysharp_env.simulator.layout import (
    BROADCAST,
    COMBINE,
    DISPATCH,
    DISPATCH_ACK,
    DISPATCH_REQUEST,
    EV_ACK,
    EV_ARRIVE,
    EV_GATE,
    EV_REQUEST,
    EV_RESPOND,
    GATE_GPU,
    GATE_PHASE,
    GEMM,
    MULTICAST,
    NO_TIME,
    ON_DUTY,
)
from dysharp_env.simulator.twin.computing import Computing
from dysharp_env.simulator.twin.parts import (
    Chunk,
    CommunicationSm,
    Pair,
    Process,
    Segment,
    Tile,
    Token,
)


class Dispatching(Computing):
    """The dispatch group of one GPU, and how tokens arrive."""

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
        self.share_done(self.tokens_sent - 1, self.tokens_sent, self.tokens_to_send)
        self.sends_left[self.part] -= 1
        if sm.duty != ON_DUTY:
            self.leave_if_idle(sm)
        elif sm.in_flight < twin.dispatch_window.slots:
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
        if twin.may_close_early:
            self.mark(GEMM)
        gate, pay_ps = twin.program.gates[0], twin.program.pays_ps[1]
        if gate == GATE_PHASE and all(gpu.arrivals_left[pair.part] == 0 for gpu in twin.gpus):
            twin.at(twin.now_ps + pay_ps, EV_GATE, twin.open_gate, 1, pair.part, twin.gpus)
        if gate == GATE_GPU and self.arrivals_left[pair.part] == 0:
            twin.at(twin.now_ps + pay_ps, EV_GATE, twin.open_gate, 1, pair.part, [self])
        if twin.program.exclusive and not any(self.arrivals_left):
            self.mark(COMBINE)
