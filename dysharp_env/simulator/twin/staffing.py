"""The SMs of one of the twin's GPUs: who is in which group, and how they change over.

An SM of a communication group is at a *place*. Its group may have fewer SMs than places, and SMs that are to leave once
they have nothing to do; all others compute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from dysharp_env.simulator.costs import Window
from dysharp_env.simulator.state.codes import AWAY, EV_SLOT, LEAVING, ON_DUTY
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, SPLIT
from dysharp_env.simulator.twin.parts import CommunicationSm, Split, Trip, Vector
from dysharp_env.simulator.twin.world import Group, World


class Crew:
    """The SMs of one communication group and what they have in flight.

    Attributes:
        group: The group, set by itself.
        on_issued: What is to be done when nothing is left to issue of a token.
        size, here: How many SMs it is to have, and how many it has.
        free: SMs that may take something, first come first served.
        in_flight: Vectors whose round trip is not over.
    """

    group: Group

    def __init__(self, staff: Staff, window: Window, segments: int, size: int, most: int) -> None:
        self.staff, self.clock, self.window, self.segments = staff, staff.world.clock, window, segments
        self.size = self.here = size
        self.places = [CommunicationSm(duty=AWAY) for _ in range(most)]
        self.free: deque[CommunicationSm] = deque()
        self.in_flight = 0
        self.on_issued: Callable[[], None] = lambda: None

    def start(self) -> None:
        """Fills as many places as the group is to have SMs."""
        self.here = self.size
        for sm in self.places[: self.size]:
            sm.duty = ON_DUTY
            self.free.append(sm)

    def enlist(self, sm: CommunicationSm) -> None:
        """Puts an SM behind the others that may take something."""
        self.free.append(sm)
        self.group.mark()

    def give(self, vectors: list[Vector]) -> None:
        """Gives vectors of one token to the first SM that may take something."""
        sm = self.free.popleft()
        sm.left = vectors
        self._issue(sm)

    def _issue(self, sm: CommunicationSm) -> None:
        """Puts what is left of an SM's token in flight as far as its window allows.

        With nothing left it leaves if it is to, or may take another if its window has room.
        """
        while sm.left:
            if sm.in_flight == self.window.slots:
                return
            self.in_flight += 1
            sm.in_flight += 1
            sm.left.pop(0)(Trip(sm, self.clock.now_ps, self.segments))
        sm.left = None
        self.on_issued()
        if sm.duty != ON_DUTY:
            self._leave_if_idle(sm)
        elif sm.in_flight < self.window.slots:
            self.enlist(sm)

    def end_segment(self, trip: Trip | None) -> bool:
        """Counts a segment that has made the round trip, and returns whether it is the last of its vector.

        Then the SM's slot falls free when its window has moved past the vector's bytes.
        """
        assert trip is not None
        trip.segments_left -= 1
        if trip.segments_left > 0:
            return False
        self.in_flight -= 1
        held_ps = (self.clock.now_ps - trip.issued_ps) // 1000 * self.window.linger_permille
        self.clock.at(self.clock.now_ps + held_ps, EV_SLOT, self._free_slot, trip.sm)
        return True

    def _free_slot(self, sm: CommunicationSm) -> None:
        """Lets an SM put another vector in flight: of the token it is at, or else of a new one."""
        sm.in_flight -= 1
        if sm.left is not None:
            self._issue(sm)
        elif sm.duty != ON_DUTY:
            self._leave_if_idle(sm)
        elif sm.in_flight == self.window.slots - 1:
            self.enlist(sm)

    def lacking(self) -> int:
        """Returns how many SMs the group lacks beside those that stay, or how many are too many as a negative."""
        return self.size - (self.here - sum(sm.duty == LEAVING for sm in self.places))

    def call_back(self) -> None:
        """Keeps as many SMs that were to leave as the group lacks, the first first."""
        leaving = [sm for sm in self.places if sm.duty == LEAVING]
        for sm in leaving[: max(self.lacking(), 0)]:
            sm.duty = ON_DUTY
            if sm.left is None and sm.in_flight < self.window.slots:
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
            self.here -= 1
            self.staff.join_gemm()

    def come(self) -> None:
        """Puts an SM that has come in the first place that is free."""
        sm = next(sm for sm in self.places if sm.duty == AWAY)
        sm.duty = ON_DUTY
        self.here += 1
        self.enlist(sm)


class Staff:
    """All SMs of one GPU.

    Attributes:
        crews: Of the communication groups, in the order in which they get SMs.
        gemm: The GEMM group, set by itself.
        gemm_sms, free_sms: SMs that the GEMM group has, and those of them that run no thread block.
        split: The split in force, if any was chosen.
        early_tokens: The fewest tokens of an open tile that may be closed early.
    """

    gemm: Group

    def __init__(self, world: World) -> None:
        self.world = world
        program, costs = world.program, world.costs
        dispatch, combine = costs.dispatch_window(world.dispatch.name), costs.combine_window(world.combine.name)
        most_dispatch = max([program.dispatch_sms, *(split.dispatch_sms for split in world.splits)])
        most_combine = max([program.combine_sms, *(split.combine_sms for split in world.splits)])
        self.crews = {
            DISPATCH: Crew(self, dispatch, costs.dispatch_segments, program.dispatch_sms, most_dispatch),
            COMBINE: Crew(self, combine, costs.combine_segments, program.combine_sms, most_combine),
        }
        self.gemm_sms = self.free_sms = program.gemm_sms
        self.split: Split | None = None
        self.early_tokens = program.min_partial_tokens

    def adopt(self, split: Split) -> None:
        """Makes a split the one in force."""
        self.split = split
        self.crews[DISPATCH].size, self.crews[COMBINE].size = split.dispatch_sms, split.combine_sms
        self.early_tokens = split.early_tokens

    def start(self) -> None:
        """Gives every group its SMs, once the sizes are known."""
        if self.split:
            self.gemm_sms = self.free_sms = self.world.num_sms - self.split.dispatch_sms - self.split.combine_sms
        for crew in self.crews.values():
            crew.start()

    def resize(self, split: Split) -> None:
        """Gives the groups other sizes; SMs change over as they get free."""
        self.adopt(split)
        self.gemm.wake()
        for crew in self.crews.values():
            crew.call_back()
        for crew in self.crews.values():
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
        for crew in self.crews.values():
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
