"""Combine on one of the twin's GPUs."""

from __future__ import annotations

from dysharp_env.simulator.layout import (
    COMBINE,
    COMBINE_ACK,
    COMBINE_REQUEST,
    EV_ACK,
    EV_READY,
    EV_REQUEST,
    EV_RESPOND,
    NO_TIME,
    ON_DUTY,
    PULL_REDUCE,
    PULL_UNICAST,
    PUSH_UNICAST,
)
from dysharp_env.simulator.twin.parts import (
    CommunicationSm,
    Hold,
    Pair,
    Process,
    Segment,
    Token,
    Trip,
    Unit,
)
from dysharp_env.simulator.twin.staffing import Staffing


class Combining(Staffing):
    """The combine group of one GPU, and what it is asked for by others."""

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
        self.sum_ready()
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
        if sm.duty != ON_DUTY:
            self.leave_if_idle(sm)
        elif sm.in_flight < twin.combine_window.slots:
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
