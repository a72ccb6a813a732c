"""Combine on one of the twin's GPUs: what becomes ready, what it asks for or pushes, and how sums come home."""

from __future__ import annotations

from collections import deque
from functools import partial

from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.codes import NO_TIME
from dysharp_env.simulator.twin.gates import COMBINING
from dysharp_env.simulator.twin.parts import Pair, Segment, Token, Trip, Unit
from dysharp_env.simulator.twin.routing import part_of
from dysharp_env.simulator.twin.site import Site, SmGroup
from dysharp_env.simulator.twin.vectors import partial_of, sum_request_flits


class CombineGroup(SmGroup):
    """The combine group of one GPU, and what it is asked for by others.

    Attributes:
        peers: The combine groups of all GPUs, which it joins.
        items, items_waiting: Tokens or partial sums that this GPU combines, and those of them not ready yet.
        ready: Units with something that may be combined.
        combined: Tokens of this GPU that are done.
    """

    def __init__(self, site: Site, peers: list[CombineGroup]) -> None:
        super().__init__(site, observation.COMBINE)
        self.peers = peers
        peers.append(self)
        self.crew = site.staff.crews[observation.COMBINE]
        self.crew.group = self
        self.units: dict[tuple[int, int], Unit] = {}
        self.ready: list[Unit] = []
        self.issuing: deque[Token | Pair] = deque()
        self.items = self.items_waiting = 0
        self.outputs_live = 0  # tokens of this GPU with results that it was told of and has not combined
        self.combined = 0

    def expect(self, items: int) -> None:
        """Counts tokens or partial sums that this GPU will combine."""
        self.items += items
        self.items_waiting += items

    def expert_done(self, token: Token) -> None:
        """Counts one finished expert of a token of this GPU; after the last one it may be combined."""
        token.experts_done += 1
        self.outputs_live += self.world.notifies and token.experts_done == 1
        if token.experts_done == self.world.workload.layer.top_k:
            if self.world.notifies and self.outputs_live > self.costs.output_readiness_entries:
                spilled_ps = self.clock.now_ps + self.costs.memory_ps
                self.clock.at(spilled_ps, codes.EV_READY, self._item_ready, token, token)
            else:
                self._item_ready(token, token)

    def partial_ready(self, pair: Pair) -> None:
        """Makes this GPU's partial sum of a token ready to be pushed, or adds it at once if it is home already."""
        if pair.is_remote:
            self._item_ready(pair, pair.token)
            return
        if pair.token.combine_start == NO_TIME:
            pair.token.combine_start = self.clock.now_ps
        for place in range(self.costs.combine_segments):
            self._deliver(pair.token, place, 1)

    def _item_ready(self, item: Token | Pair, token: Token) -> None:
        """Adds a token or partial sum to the unit it is combined with."""
        key, part = (token.home, token.place), part_of(self.world, token, self.gpu)
        unit = self.units.setdefault(key, Unit(self.gpu, token.home, token.place, part))
        if not unit.items:
            unit.ready_ps = self.clock.now_ps
            if self.progress.is_open[COMBINING, part]:
                self.ready.append(unit)
        unit.items.append(item)
        self.items_waiting -= 1
        done = self.items - self.items_waiting
        if done == 1 and self.world.program.split_moments > 0:
            self.sizes.wake()
        self.sizes.count(done - 1, done, self.items)
        self.wake()

    def open_part(self, part: int) -> None:
        """Lists ready units as a combine kernel that starts late walks its buffer: chunk by chunk, neighbour first."""
        late = [unit for unit in self.units.values() if unit.part == part and unit.items]
        late.sort(key=lambda unit: (unit.place, (unit.home - self.gpu) % self.world.num_gpus))
        self.ready.extend(late)
        self.wake()

    def act(self) -> list[Unit]:
        """Issues what was chosen as SMs may take it, then offers the ready units."""
        while not self._must_dispatch_first() and self.crew.free:
            if self.issuing:
                self._issue(self.issuing.popleft())
            else:
                return [] if self.holds else self.ready
        return []

    def may_hold(self) -> bool:
        """Returns whether tokens or partial sums are yet to become ready."""
        return self.items_waiting > 0

    def take(self, unit: Unit) -> None:
        """Begins a unit."""
        self.ready.remove(unit)
        self.issuing.extend(unit.items)
        unit.items = []

    def _must_dispatch_first(self) -> bool:
        return self.world.program.exclusive and not self.progress.is_dispatched

    def _issue(self, item: Token | Pair) -> None:
        """Asks the experts' GPUs for a token's sum (pull), or pushes one partial sum home."""
        token = item.token if isinstance(item, Pair) else item
        if token.combine_start == NO_TIME:
            token.combine_start = self.clock.now_ps
        sources = [pair for pair in token.pairs if pair.is_summed]
        if isinstance(item, Pair):
            self.crew.give([partial(self._push, item)])
        elif not sources:
            self._complete(token)
        elif self.world.combine.in_switch:
            # One instruction asks the switch for a sum; plain loads ask every GPU for its part.
            self.crew.give([partial(self._read_sum, token, sources)])
        else:
            self.crew.give([partial(self._read, pair) for pair in sources])

    def _push(self, pair: Pair, trip: Trip) -> None:
        """Stores a partial sum at home, or in the switch."""
        vector = self._partial(pair)
        for segment in vector:
            segment.trip = trip
        self.memory.use_hbm(len(pair.experts) * self.costs.token_bytes[3])
        self.ports.send(vector)

    def _read_sum(self, token: Token, sources: list[Pair], trip: Trip) -> None:
        token.trip = trip
        self._request(sources, token.remote_experts)

    def _read(self, pair: Pair, trip: Trip) -> None:
        pair.trip = trip
        self._request([pair], len(pair.experts))

    def _request(self, pairs: list[Pair], experts: int) -> None:
        """Asks for partial sums of a token, naming so many experts in a request for each segment."""
        flits = sum_request_flits(self.world, experts)
        asked_ps = self.ports.ask(pairs[0].token.combine_planes, flits, codes.COMBINE_REQUEST)
        for pair in pairs:
            self.clock.at(asked_ps, codes.EV_REQUEST, self.peers[pair.gpu]._requested, pair)

    def _requested(self, pair: Pair) -> None:
        """Reads a partial sum that its home GPU has asked for, and responds with it."""
        delay_ps = self.costs.memory_ps
        if self.world.combine.names_targets:
            delay_ps += self.memory.translate(pair)
        flits = sum_request_flits(self.world, len(pair.experts))
        self.ports.be_asked(pair.token.combine_planes, flits, codes.COMBINE_REQUEST)
        # A static reduce-scatter reads one vector from every GPU, whether it holds a result or not.
        self.memory.use_hbm(max(len(pair.experts), 1) * self.costs.token_bytes[3])
        self.clock.at(self.clock.now_ps + delay_ps, codes.EV_RESPOND, self.ports.send, self._partial(pair))

    def _partial(self, pair: Pair) -> list[Segment]:
        return partial_of(self.world, pair, self.peers[pair.token.home]._reach, self._acknowledged)

    def _reach(self, segment: Segment) -> None:
        """Takes a segment of a partial or reduced sum in at its home GPU."""
        combine = self.world.combine
        if not combine.reads:
            acked_ps = self.ports.acknowledge(segment, codes.COMBINE_ACK)
            if not combine.in_switch:
                self.clock.at(acked_ps, codes.EV_ACK, segment.acknowledged, segment)
        elif not combine.in_switch:
            assert segment.pair is not None
            self.crew.end_segment(segment.pair.trip)
        self._deliver(segment.token, segment.place, segment.pieces)

    def _acknowledged(self, segment: Segment) -> None:
        """Counts a pushed segment that is stored, or in the switch."""
        self.ports.be_acknowledged(segment, codes.COMBINE_ACK)
        self.crew.end_segment(segment.trip)

    def _deliver(self, token: Token, place: int, pieces: int) -> None:
        """Adds partial sums to a segment of a token's result; with the last one of all the token is combined."""
        token.pieces_left[place] -= pieces
        if token.pieces_left[place] > 0:
            return
        if self.world.combine.reads and self.world.combine.in_switch:
            self.crew.end_segment(token.trip)
        if not any(token.pieces_left):
            self._complete(token)

    def _complete(self, token: Token) -> None:
        """Ends a token of this GPU."""
        token.combine_end = self.clock.now_ps
        self.world.tokens_left -= 1
        self.combined += 1
        self.outputs_live -= self.world.notifies
