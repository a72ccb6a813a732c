"""How the SM groups of one of the twin's GPUs change size; see ``simulator/staffing.py`` for the rules."""

from __future__ import annotations

from dysharp_env.simulator.layout import AWAY, COMBINE, DISPATCH, GEMM, LEAVING, ON_DUTY, SPLIT
from dysharp_env.simulator.twin.core import Core
from dysharp_env.simulator.twin.parts import CommunicationSm, Process, Split

GROUPS = (DISPATCH, COMBINE)  # in the order in which they get SMs


class Staffing(Core):
    """The group sizes of one GPU, and the SMs that change over."""

    def adopt(self, split: Split) -> None:
        """Makes a split the one in force."""
        self.split = split
        self.sizes = {DISPATCH: split.dispatch_sms, COMBINE: split.combine_sms}
        self.least_tokens = split.early_tokens

    def staff(self) -> None:
        """Gives every group its SMs, once the sizes are known."""
        self.here = dict(self.sizes)
        if self.split:
            self.gemm_sms = self.free_sms = self.twin.num_sms - sum(self.sizes.values())
        self.items = self.items_waiting
        for kind in GROUPS:
            self.places[kind] = [CommunicationSm(kind) for _ in range(self.twin.most_sms[kind])]
            for sm in self.places[kind][self.sizes[kind] :]:
                sm.duty = AWAY
            self.free_communication_sms[kind].extend(self.places[kind][: self.sizes[kind]])

    def split_group(self) -> Process:
        """Decides on the sizes again, whenever another share of what this GPU does is done."""
        while True:
            split = yield from self.twin.choose(SPLIT, self, self.twin.splits_for(self.split))
            if isinstance(split, Split) and split != self.split:
                self.resize(split)
            yield None

    def share_done(self, before: int, after: int, total: int) -> None:
        """Asks for the sizes again if another share of so many tokens is done."""
        moments = self.twin.program.split_moments
        if after * moments // total > before * moments // total:
            self.mark(SPLIT)

    def sum_ready(self) -> None:
        """Counts one more token or partial sum that may be combined here, and asks for the sizes at the first."""
        self.items_waiting -= 1
        done = self.items - self.items_waiting
        if done == 1 and self.twin.program.split_moments > 0:
            self.mark(SPLIT)
        self.share_done(done - 1, done, self.items)

    def resize(self, split: Split) -> None:
        """Gives the groups other sizes; SMs change over as they get free."""
        self.adopt(split)
        self.hold_gemm = False
        self.mark(GEMM)
        self.change_over()

    def change_over(self) -> None:
        """Calls back, sends off and fetches SMs as the sizes want it."""
        for kind in GROUPS:
            self.call_back(kind)
        for kind in GROUPS:
            self.send_off(kind)
        self.fill_groups()

    def lacking(self, kind: int) -> int:
        """Returns how many SMs a group lacks beside those that stay, or how many are too many as a negative number."""
        leaving = sum(sm.duty == LEAVING for sm in self.places[kind])
        return self.sizes[kind] - (self.here[kind] - leaving)

    def call_back(self, kind: int) -> None:
        """Keeps as many SMs that were to leave as the group lacks, the first first."""
        leaving = [sm for sm in self.places[kind] if sm.duty == LEAVING]
        for sm in leaving[: max(self.lacking(kind), 0)]:
            sm.duty = ON_DUTY
            if sm.left is None and sm.in_flight < self.slots_of(kind):
                self.list_sm(sm)

    def send_off(self, kind: int) -> None:
        """Has as many SMs leave as are too many: idle ones, then others, the last first; idle ones go at once."""
        excess = -self.lacking(kind)
        if excess <= 0:
            return
        on_duty = [sm for sm in reversed(self.places[kind]) if sm.duty == ON_DUTY]
        for sm in sorted(on_duty, key=lambda sm: not sm.is_idle)[:excess]:
            sm.duty = LEAVING
        listed = list(self.free_communication_sms[kind])
        self.free_communication_sms[kind].clear()
        for sm in listed:
            if sm.duty == ON_DUTY:
                self.list_sm(sm)
        for sm in self.places[kind]:
            self.leave_if_idle(sm)

    def leave_if_idle(self, sm: CommunicationSm) -> None:
        """Lets an SM that is to leave go, if it has nothing left to do."""
        if sm.duty == LEAVING and sm.is_idle:
            sm.duty = AWAY
            self.join_gemm(sm.kind)
            self.fill_groups()

    def join_gemm(self, kind: int) -> None:
        """Moves an SM from a communication group to the GEMM group."""
        self.here[kind] -= 1
        self.gemm_sms += 1
        self.free_sms += 1
        self.hold_gemm = False
        self.mark(GEMM)

    def fill_groups(self) -> None:
        """Gives communication groups that lack SMs free ones of the GEMM group."""
        for kind in GROUPS:
            while self.free_sms > 0 and self.lacking(kind) > 0:
                self.gemm_sms -= 1
                self.free_sms -= 1
                self.here[kind] += 1
                self.come(kind)

    def come(self, kind: int) -> None:
        """Puts an SM that has come to a communication group in the first place that is free."""
        sm = next(sm for sm in self.places[kind] if sm.duty == AWAY)
        sm.duty = ON_DUTY
        self.list_sm(sm)
