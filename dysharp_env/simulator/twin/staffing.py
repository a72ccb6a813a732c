"""The SMs of one of the twin's GPUs: who is in which group, and how they change over.

An SM of a communication group is at a *place*. Its group may have fewer SMs than places, and SMs that are to leave once
they have nothing to do; all others compute.
"""

from __future__ import annotations

from collections import deque

from dysharp_env.simulator.state.codes import AWAY, EV_SLOT, LEAVING, ON_DUTY
from dysharp_env.simulator.state.observation import SPLIT
from dysharp_env.simulator.twin.gates import Gates
from dysharp_env.simulator.twin.memory import Memory
from dysharp_env.simulator.twin.parts import CommunicationSm, Load, Segment, Split, Trip
from dysharp_env.simulator.twin.switch import Switch
from dysharp_env.simulator.twin.world import Group, World


class Site:
    """One GPU's links, memory, SMs and progress."""

    def __init__(self, world: World, number: int, switch: Switch, gates: Gates) -> None:
        self.world, self.number, self.gates = world, number, gates
        self.uplinks, self.downlinks = switch.uplinks[number], switch.downlinks[number]
        self.memory, self.staff, self.progress = Memory(world), Staff(world), gates.progress[number]


class SmGroup(Group):
    """A group of SMs that works on a GPU's site."""

    def __init__(self, site: Site, kind: int) -> None:
        super().__init__(site.world, kind, site.number)
        self.clock, self.costs = site.world.clock, site.world.costs
        self.uplinks, self.downlinks, self.memory = site.uplinks, site.downlinks, site.memory
        self.staff, self.gates, self.progress = site.staff, site.gates, site.progress


class Crew(SmGroup):
    """A communication group: its SMs and what they have in flight.

    Attributes:
        size: How many SMs it is to have.
        free: SMs that may take something, first come first served.
        in_flight: Round trips that are not over.
    """

    def __init__(self, site: Site, kind: int) -> None:
        super().__init__(site, kind)
        self.way = self.world.ways[kind]
        self.size, self.in_flight = self.way.sms, 0
        self.places = [CommunicationSm() for _ in range(self.world.num_sms)]
        self.free: deque[CommunicationSm] = deque()

    def launch(self, load: Load, trip: Trip) -> None:
        """Puts vectors in flight that make one round trip."""
        raise NotImplementedError

    def end_token(self) -> None:
        """Notes that nothing is left to issue of a token."""

    def start(self) -> None:
        """Fills as many places as the group is to have SMs."""
        for sm in self.places[: self.size]:
            sm.duty = ON_DUTY
            self.free.append(sm)

    def enlist(self, sm: CommunicationSm) -> None:
        """Puts an SM behind the others that may take something."""
        self.free.append(sm)
        self.mark()

    def give(self, loads: list[Load]) -> None:
        """Gives what there is of one token to the first SM that may take something."""
        sm = self.free.popleft()
        sm.left = loads
        self._issue(sm)

    def _issue(self, sm: CommunicationSm) -> None:
        """Puts what is left of an SM's token in flight as far as its window allows.

        With nothing left it leaves if it is to, or may take another if its window has room.
        """
        while sm.left:
            if sm.in_flight == self.way.window.slots:
                return
            self.in_flight += 1
            sm.in_flight += 1
            self.launch(sm.left.pop(0), Trip(sm, self.clock.now_ps, self.way.segments))
        sm.left = None
        self.end_token()
        if sm.duty != ON_DUTY:
            self._leave_if_idle(sm)
        elif sm.in_flight < self.way.window.slots:
            self.enlist(sm)

    def end_segment(self, segment: Segment) -> bool:
        """Counts a segment that has made the round trip, and returns whether it is the last of its vector.

        Then the SM's slot falls free when its window has moved past the vector's bytes.
        """
        trip = segment.trip
        assert trip is not None
        trip.segments_left -= 1
        if trip.segments_left > 0:
            return False
        self.in_flight -= 1
        held_ps = (self.clock.now_ps - trip.issued_ps) // 1000 * self.way.window.linger_permille
        self.clock.at(self.clock.now_ps + held_ps, EV_SLOT, self._free_slot, trip.sm)
        return True

    def _free_slot(self, sm: CommunicationSm) -> None:
        """Lets an SM put another vector in flight: of the token it is at, or else of a new one."""
        sm.in_flight -= 1
        if sm.left is not None:
            self._issue(sm)
        elif sm.duty != ON_DUTY:
            self._leave_if_idle(sm)
        elif sm.in_flight == self.way.window.slots - 1:
            self.enlist(sm)

    def lacking(self) -> int:
        """Returns how many SMs the group lacks beside those that stay, or how many are too many as a negative."""
        return self.size - sum(sm.duty == ON_DUTY for sm in self.places)

    def call_back(self) -> None:
        """Keeps as many SMs that were to leave as the group lacks, the first first."""
        leaving = [sm for sm in self.places if sm.duty == LEAVING]
        for sm in leaving[: max(self.lacking(), 0)]:
            sm.duty = ON_DUTY
            if sm.left is None and sm.in_flight < self.way.window.slots:
                self.enlist(sm)

    def send_off(self) -> None:
        """Has as many SMs leave as are too many: idle ones, then others, the last first; idle ones go at once."""
        excess = -self.lacking()
        if excess <= 0:
            return
        on_duty = [sm for sm in reversed(self.places) if sm.duty == ON_DUTY]
        for sm in sorted(on_duty, key=lambda sm: not sm.is_idle)[:excess]:
            sm.duty = LEAVING
        listed = list(self.free)
        self.free.clear()
        for sm in listed:
            if sm.duty == ON_DUTY:
                self.enlist(sm)
        for sm in self.places:
            self._leave_if_idle(sm)

    def _leave_if_idle(self, sm: CommunicationSm) -> None:
        """Lets an SM that is to leave go, if it has nothing left to do."""
        if sm.duty == LEAVING and sm.is_idle:
            sm.duty = AWAY
            self.staff.join_gemm()

    def come(self) -> None:
        """Puts an SM that has come in the first place that is free."""
        sm = next(sm for sm in self.places if sm.duty == AWAY)
        sm.duty = ON_DUTY
        self.enlist(sm)


class Staff:
    """All SMs of one GPU.

    Attributes:
        crews: The communication groups, dispatch first, in the order in which they get SMs; set when they are there.
        gemm: The GEMM group, set likewise.
        gemm_sms, free_sms: SMs that the GEMM group has, and those of them that run no thread block.
        split: The split in force, if any was chosen.
        early_tokens: The fewest tokens of an open tile that may be closed early.
    """

    crews: tuple[Crew, Crew]
    gemm: Group

    def __init__(self, world: World) -> None:
        self.world = world
        self.gemm_sms = self.free_sms = world.program.gemm_sms
        self.split: Split | None = None
        self.early_tokens = world.program.min_partial_tokens

    def adopt(self, split: Split) -> None:
        """Makes a split the one in force."""
        self.split = split
        self.crews[0].size, self.crews[1].size = split.dispatch_sms, split.combine_sms
        self.early_tokens = split.early_tokens

    def start(self) -> None:
        """Gives every group its SMs, once the sizes are known."""
        if self.split:
            self.gemm_sms = self.free_sms = self.world.num_sms - self.split.dispatch_sms - self.split.combine_sms
        for crew in self.crews:
            crew.start()

    def resize(self, split: Split) -> None:
        """Gives the groups other sizes; SMs change over as they get free."""
        self.adopt(split)
        self.gemm.wake()
        for crew in self.crews:
            crew.call_back()
        for crew in self.crews:
            crew.send_off()
        self.fill_crews()

    def join_gemm(self) -> None:
        """Takes an SM that has left a communication group into the GEMM group."""
        self.gemm_sms += 1
        self.free_sms += 1
        self.gemm.wake()
        self.fill_crews()

    def fill_crews(self) -> None:
        """Gives communication groups that lack SMs free ones of the GEMM group."""
        for crew in self.crews:
            while self.free_sms > 0 and crew.lacking() > 0:
                self.gemm_sms -= 1
                self.free_sms -= 1
                crew.come()


class Sizes(Group):
    """Who decides on the sizes of one GPU's groups again, whenever another share of what it does is done."""

    def __init__(self, world: World, gpu: int, staff: Staff) -> None:
        super().__init__(world, SPLIT, gpu)
        self.staff = staff

    def count(self, before: int, after: int, total: int) -> None:
        """Asks for the sizes again if another share of so many tokens or sums is done."""
        moments = self.world.program.split_moments
        if after * moments // total > before * moments // total:
            self.wake()

    def act(self) -> list[Split]:
        """Offers the present split first, so that a rule without weights keeps it; holds once it is answered."""
        return [] if self.holds else sorted(self.world.splits, key=lambda split: split != self.staff.split)

    def take(self, split: Split) -> None:
        """Changes the sizes."""
        self.holds = True
        if split != self.staff.split:
            self.staff.resize(split)
