"""The SMs of one of the twin's GPUs: who is in which group, what they put in flight, and how they change over.

An SM of a communication group is at a *place*. Its group may have fewer SMs than places, and SMs that are to leave once
they have nothing to do; all others compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import AWAY, COMING, EV_DEPART, EV_ROLE, LEAVING, ON_DUTY
from dysharp_env.simulator.state.observation import DISPATCH
from dysharp_env.simulator.twin.parts import (
    Candidate,
    CommunicationSm,
    Load,
    Mover,
    Pair,
    Split,
    Token,
    TokenSegment,
    Trip,
    Vector,
)
from dysharp_env.simulator.twin.switch import Switch
from dysharp_env.simulator.twin.world import Memory, Progress, World
from dysharp_env.system.primitives import Primitive


class Site:
    """One GPU's links, memory, progress and SMs."""

    crews: tuple[Crew, Crew]  # dispatch first, in the order in which they get SMs
    gemm: Group
    mover: Mover

    def __init__(self, world: World, number: int, switch: Switch, everywhere: list[Progress]) -> None:
        self.world, self.number, program = world, number, world.program
        self.uplinks, self.downlinks = switch.uplinks[number], switch.downlinks[number]
        self.memory, self.progress = Memory(world, number), Progress(world, everywhere)
        self.gemm_sms = program.gemm_sms
        self.free_sms = self.gemm_sms  # that run no thread block
        self.debt_ps = 0  # SM time that communication took from thread blocks and none of them has lost yet
        self.split = Split(-1, program.dispatch_sms, program.combine_sms, program.min_partial_tokens)

    def start(self, split: Split | None) -> None:
        """Gives every group its SMs: as the program says, or as was chosen."""
        if split:
            self.split = split
            self.gemm_sms = self.free_sms = self.world.num_sms - split.dispatch_sms - split.combine_sms
        self.mover.start()
        for crew in self.crews:
            for sm in crew.places[: crew.size]:
                sm.duty = ON_DUTY
                crew.free.append(sm)

    def resize(self, split: Split) -> None:
        """Gives the groups other sizes; SMs change over as they get free."""
        self.split = split
        self.gemm.wake()
        for crew in self.crews:
            crew.call_back()
        for crew in self.crews:
            crew.send_off()
        self.fill_crews()

    def fill_crews(self) -> None:
        """Gives communication groups that lack SMs free ones of the GEMM group, in the first places that are free."""
        for crew in self.crews:
            while self.free_sms > 0 and crew.lacking() > 0:
                self.gemm_sms -= 1
                self.free_sms -= 1
                crew.expect(next(sm for sm in crew.places if sm.duty == AWAY))

    def go_to_gemm(self) -> None:
        """Has an SM that has nothing left to do elsewhere join the GEMM group, once it has changed over."""
        if self.world.costs.role_change_ps > 0:
            self.world.clock.at(self.world.clock.now_ps + self.world.costs.role_change_ps, EV_ROLE, self.join_gemm)
        else:
            self.join_gemm()

    def join_gemm(self) -> None:
        """Adds an SM to the GEMM group."""
        self.gemm_sms += 1
        self.free_sms += 1
        self.gemm.wake()
        self.fill_crews()
        self.mover.offer()


class Group:
    """What takes decisions of one kind on one GPU: an SM group, or the choice of the groups' sizes."""

    def __init__(self, site: Site, kind: int) -> None:
        self.site, self.kind, self.gpu = site, kind, site.number
        self.world, self.clock, self.costs = site.world, site.world.clock, site.world.costs
        self.uplinks, self.downlinks = site.uplinks, site.downlinks
        self.memory, self.progress = site.memory, site.progress
        self.is_marked = False
        self.holds = False  # until something new concerns it

    def mark(self) -> None:
        """Asks for the group to act, once, when all events of the instant are served."""
        if not self.is_marked:
            self.is_marked = True
            self.world.marked.append(self)

    def wake(self) -> None:
        """Marks the group because of something new, so that it no longer holds."""
        self.holds = False
        self.mark()

    def act(self) -> Sequence[Candidate]:
        """Does all that needs no choice; returns what to choose from next, nothing if the group has to wait."""
        raise NotImplementedError

    def may_hold(self) -> bool:
        """Returns whether the group may hold now, if its kind may at all: something must still concern it."""
        return False

    def take(self, candidate: Any) -> None:
        """Does what was chosen of what it offered."""
        raise NotImplementedError


class Crew(Group):
    """A communication group: its SMs, and the vectors that it and its peers, those of all GPUs, send each other."""

    def __init__(self, site: Site, kind: int, peers: Sequence[Crew], sizes: Sizes, primitive: Primitive) -> None:
        super().__init__(site, kind)
        self.peers, self.sizes, self.primitive = peers, sizes, primitive
        costs = self.costs
        if kind == DISPATCH:
            self.data, self.request, self.ack = codes.DISPATCH_DATA, codes.DISPATCH_REQUEST, codes.DISPATCH_ACK
            self.work, self.packet, self.vector_bytes = costs.dispatch_sm, costs.dispatch_packet, costs.dispatch_bytes
            self.segments = costs.dispatch_segments
        else:
            self.data, self.request, self.ack = codes.COMBINE_DATA, codes.COMBINE_REQUEST, codes.COMBINE_ACK
            self.work, self.packet, self.vector_bytes = costs.combine_sm, costs.combine_packet, costs.combine_bytes
            self.segments = costs.combine_segments
        self.places = [CommunicationSm() for _ in range(self.world.num_sms)]
        self.free: deque[CommunicationSm] = deque()  # may take something, first come first served
        self.in_flight = 0  # round trips that are not over

    @property
    def size(self) -> int:
        """How many SMs it is to have."""
        split = self.site.split
        return split.dispatch_sms if self.kind == DISPATCH else split.combine_sms

    def end_token(self) -> None:
        """Notes that nothing is left to issue of a token."""

    def enlist(self, sm: CommunicationSm) -> None:
        """Puts an SM behind the others that may take something."""
        self.free.append(sm)
        self.mark()

    def give(self, loads: list[Load], token_ps: int) -> None:
        """Gives what there is of one token to the first SM that may take something, and its work on the token."""
        sm = self.free.popleft()
        sm.left = loads
        if self.kind == DISPATCH and not self.primitive.reads:
            self._prepare(sm)
        self._issue(sm, token_ps)

    def _prepare(self, sm: CommunicationSm) -> None:
        """Has an SM prepare its token, behind those that it prepared before."""
        sm.ready_ps = max(sm.ready_ps, self.clock.now_ps) + self.work.prepare_ps
        if self.world.program.in_gemm and self.site.free_sms < self.site.gemm_sms:
            self.site.debt_ps += self.work.prepare_ps * self.costs.in_gemm_permille // 1000

    def _issue(self, sm: CommunicationSm, token_ps: int = 0) -> None:
        """Takes what is left of an SM's token as far as it has places; the first vector bears work on the token.

        With nothing left it leaves if it is to, or may take another token if it has a place.
        """
        while sm.left:
            if sm.in_flight == self.work.slots:
                return
            self._take(sm, sm.left.pop(0), token_ps)
            token_ps = 0
        sm.left = None
        self.end_token()
        if sm.duty != ON_DUTY:
            self._leave_if_idle(sm)
        elif sm.in_flight < self.work.slots:
            self.enlist(sm)

    def _take(self, sm: CommunicationSm, load: Load, token_ps: int) -> None:
        """Gives an SM one vector, or what one instruction asks for, to work on until it departs."""
        self.in_flight += 1
        sm.in_flight += 1
        trip = Trip(sm, self.segments)
        for vector in load:
            for segment in vector:
                segment.trip = trip
            if not self.primitive.reads:
                self.read_ps(vector)
        # Thread blocks that do an SM's work lose the time if any run.
        if self.world.program.in_gemm and self.site.free_sms < self.site.gemm_sms:
            self.site.debt_ps += (self.work.vector_ps + token_ps) * self.costs.in_gemm_permille // 1000
        delay_ps = self.work.delay_ps(token_ps) + max(0, sm.ready_ps - self.clock.now_ps)
        if delay_ps == 0:
            self._depart(load)
        else:
            self.clock.at(self.clock.now_ps + delay_ps, EV_DEPART, self._depart, load)

    def end_segment(self, segment: TokenSegment) -> bool:
        """Counts a segment that has made the round trip, and returns whether it is the last of its vector.

        Then its place is free for another vector: of the token its SM is at, or else of a new one.
        """
        trip = segment.trip
        assert trip is not None
        trip.segments_left -= 1
        if trip.segments_left > 0:
            return False
        sm = trip.sm
        self.in_flight -= 1
        sm.in_flight -= 1
        if sm.left is not None:
            self._issue(sm)
        elif sm.duty != ON_DUTY:
            self._leave_if_idle(sm)
        elif sm.in_flight == self.work.slots - 1:
            self.enlist(sm)
        return True

    def expect(self, sm: CommunicationSm) -> None:
        """Takes an SM of the GEMM group in, once it has changed over."""
        change_ps = self.costs.role_change_ps
        sm.duty = COMING
        if change_ps > 0:
            self.clock.at(self.clock.now_ps + change_ps, EV_ROLE, self._come, sm)
        else:
            self._come(sm)

    def _come(self, sm: CommunicationSm) -> None:
        """Lets an SM that has changed over take something, unless it is one too many by now."""
        if self.lacking() >= 0:
            sm.duty = ON_DUTY
            self.enlist(sm)
        else:
            sm.duty = LEAVING
            self._leave_if_idle(sm)

    def lacking(self) -> int:
        """Returns how many SMs the group lacks beside those that stay, or how many are too many as a negative."""
        return self.size - sum(sm.duty in (ON_DUTY, COMING) for sm in self.places)

    def call_back(self) -> None:
        """Keeps as many SMs that were to leave as the group lacks, the first first."""
        leaving = [sm for sm in self.places if sm.duty == LEAVING]
        for sm in leaving[: max(self.lacking(), 0)]:
            sm.duty = ON_DUTY
            if sm.left is None and sm.in_flight < self.work.slots:
                self.enlist(sm)

    def send_off(self) -> None:
        """Has as many SMs leave as are too many: idle ones, then others, the last first; idle ones go at once."""
        excess = -self.lacking()
        if excess <= 0:
            return
        on_duty = [sm for sm in reversed(self.places) if sm.duty == ON_DUTY]
        for sm in sorted(on_duty, key=lambda sm: not sm.is_idle)[:excess]:
            sm.duty = LEAVING
        self.free = deque(sm for sm in self.free if sm.duty == ON_DUTY)
        if self.free:
            self.mark()
        for sm in self.places:
            self._leave_if_idle(sm)

    def _leave_if_idle(self, sm: CommunicationSm) -> None:
        """Lets an SM that is to leave go to the GEMM group, if it has nothing left to do."""
        if sm.duty == LEAVING and sm.is_idle:
            sm.duty = AWAY
            self.site.go_to_gemm()

    def vector_of(self, token: Token, pair: Pair | None) -> Vector:
        """Returns a token's vector for one GPU, or that GPU's partial sum; without a pair, one store for all targets.

        A multicast replica names only the experts behind its port.
        """
        is_dispatched, names_targets = self.kind == DISPATCH, self.primitive.names_targets
        experts = len(pair.experts) if pair else token.remote_experts
        gpu = pair.gpu if pair else token.home
        origin, target = (token.home, gpu) if is_dispatched else (gpu, token.home)
        what = "partial" if not is_dispatched else "copy" if pair else "store"
        return [
            TokenSegment(
                name=(what, token.number, gpu, place),
                purpose=self.data,
                token=token,
                pair=pair,
                place=place,
                plane=token.planes[self.kind][place],
                origin=origin,
                target=target,
                flits=flits,
                packets=self.packet.packets(self.vector_bytes) // self.segments,
                vc=codes.RESPONSE if self.primitive.reads else codes.REQUEST,
                reach=self.peers[target].reach,
                acknowledged=self.peers[origin].acknowledged,
            )
            for place, flits in enumerate(self._flits(experts if is_dispatched and names_targets else 0))
        ]

    def _flits(self, targets: int) -> list[int]:
        """Returns the flits of a vector's segments, so many experts named in each packet."""
        packet, total = self.packet, self.vector_bytes
        if self.costs.resolution != "packet":
            return [packet.data_flits(total, targets)]
        size = packet.payload_bytes
        return [packet.data_flits(min(size, total - at), targets) for at in range(0, total, size)]

    def _depart(self, load: Load) -> None:
        """Stores vectors, or asks for them together: with one request for each segment."""
        if not self.primitive.reads:
            for vector in load:
                self._send(vector)
            return
        asked_ps, flits = self.clock.now_ps, self._request_flits(load)
        for segment in load[0]:
            uplink = self.uplinks[segment.plane]
            uplink.charge(flits, self.request)
            asked_ps = max(asked_ps, uplink.free_ps)
        for vector in load:
            asked = self.peers[vector[0].origin]
            self.clock.at(asked_ps + 2 * self.costs.hop_ps, codes.EV_REQUEST, asked._requested, vector)

    def _request_flits(self, load: Load) -> int:
        """Returns the flits that ask for a segment of vectors, naming the experts unless the primitive is static."""
        experts = sum(len(vector[0].pair.experts) for vector in load if vector[0].pair)
        named = experts if self.primitive.names_targets else 0
        return self.packet.ask_flits(self.vector_bytes, named) // self.segments

    def _requested(self, vector: Vector) -> None:
        """Reads a vector that another GPU asks for, and responds with it."""
        flits = self._request_flits([vector])
        for segment in vector:
            self.downlinks[segment.plane].charge(flits, self.request)
        self.clock.at(self.clock.now_ps + self.read_ps(vector), codes.EV_RESPOND, self._send, vector)

    def read_ps(self, vector: Vector) -> int:
        """Reads a vector of this GPU; returns the delay with which it responds with it."""
        return self.costs.memory_ps

    def _send(self, vector: Vector) -> None:
        for segment in vector:
            self.uplinks[segment.plane].enqueue(segment)

    def reach(self, segment: TokenSegment) -> None:
        """Takes a segment in."""
        raise NotImplementedError

    def acknowledge(self, segment: TokenSegment) -> None:
        """Acknowledges a segment; the switch merges what comes back for a store: the last one counts."""
        self.uplinks[segment.plane].charge(segment.packets * self.packet.ack_flits, self.ack)
        whole = segment.carrier or segment
        whole.acks_left -= 1
        # What went into a reduced sum is acknowledged by the switch.
        if whole.acks_left == 0 and not segment.is_sum:
            self.clock.at(self.clock.now_ps + 2 * self.costs.hop_ps, codes.EV_ACK, whole.acknowledged, whole)

    def acknowledged(self, segment: TokenSegment) -> None:
        """Counts a segment that is stored, or in the switch."""
        self.downlinks[segment.plane].charge(segment.packets * self.packet.ack_flits, self.ack)
        self.end_segment(segment)


class Sizes(Group):
    """Who decides on the sizes of one GPU's groups again, whenever another share of what it does is done."""

    def count(self, before: int, after: int, total: int) -> None:
        """Asks for the sizes again if another share of so many tokens or sums is done."""
        moments = self.world.program.split_moments
        if after * moments // total > before * moments // total:
            self.wake()

    def act(self) -> list[Split]:
        """Offers the present split first, so that a rule without weights keeps it; holds once it is answered."""
        return [] if self.holds else sorted(self.world.splits, key=lambda split: split != self.site.split)

    def take(self, split: Split) -> None:
        """Changes the sizes."""
        self.holds = True
        if split != self.site.split:
            self.site.resize(split)
