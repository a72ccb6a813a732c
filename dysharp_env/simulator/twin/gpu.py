"""The twin's GPU: SM groups as generators that run until they have to wait."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dysharp_env.simulator.layout import (
    COMBINE,
    DISPATCH,
    DISPATCH_DATA,
    GEMM,
    ON_DUTY,
    SPLIT,
)
from dysharp_env.simulator.twin.core import Group
from dysharp_env.simulator.twin.dispatching import Dispatching
from dysharp_env.simulator.twin.parts import CommunicationSm, Segment

if TYPE_CHECKING:
    from dysharp_env.simulator.twin.twin import Twin


class Gpu(Dispatching):
    """One GPU: its links, memory, Hub tables, experts, and SM groups."""

    def __init__(self, twin: Twin, number: int) -> None:
        super().__init__(twin, number)
        self.groups = {
            SPLIT: Group(self.split_group()),
            DISPATCH: Group(self.dispatch_group()),
            GEMM: Group(self.gemm_group()),
            COMBINE: Group(self.combine_group()),
        }

    def free_slot(self, sm: CommunicationSm, slots: int) -> None:
        """Lets an SM put another vector in flight: of the token it is at, or else of a new one."""
        sm.in_flight -= 1
        if sm.left is not None:
            if sm.kind == DISPATCH:
                self.issue_copies(sm)
            else:
                self.issue_loads(sm)
        elif sm.duty != ON_DUTY:
            self.leave_if_idle(sm)
        elif sm.in_flight == slots - 1:
            self.list_sm(sm)

    def reach(self, segment: Segment) -> None:
        """Takes a segment in."""
        if segment.purpose == DISPATCH_DATA:
            self.reach_dispatch(segment)
        else:
            self.reach_combine(segment)
