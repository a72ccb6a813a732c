"""One of the twin's GPUs: memory, SMs and the groups they work in."""

from __future__ import annotations

from dysharp_env.simulator.layout import COMBINE, DISPATCH, DISPATCH_DATA, GEMM, SPLIT
from dysharp_env.simulator.twin.combine import CombineGroup
from dysharp_env.simulator.twin.dispatch import DispatchGroup
from dysharp_env.simulator.twin.gates import COMBINING, EVERYTHING, Gates
from dysharp_env.simulator.twin.gemm import GemmGroup
from dysharp_env.simulator.twin.memory import Memory
from dysharp_env.simulator.twin.parts import Expert, Segment
from dysharp_env.simulator.twin.ports import GpuPorts
from dysharp_env.simulator.twin.routing import Routing
from dysharp_env.simulator.twin.staffing import Sizes, Staff
from dysharp_env.simulator.twin.switch import Switch
from dysharp_env.simulator.twin.world import Group, World


class Gpu:
    """What one GPU is made of, and what switch and gates tell it.

    Attributes:
        number: Which one it is.
        ports, memory, staff: Its links, memory and SMs.
        sizes, dispatch, gemm, combine: Who takes its decisions.
        groups: The same by kind of decision.
    """

    def __init__(
        self,
        world: World,
        number: int,
        switch: Switch,
        gates: Gates,
        routing: Routing,
        dispatches: list[DispatchGroup],
        combines: list[CombineGroup],
    ) -> None:
        """Adds itself to the switch's and gates' GPUs, and its groups to those of all GPUs."""
        self.number = number
        self.ports, self.memory, self.staff = GpuPorts(switch, number), Memory(world), Staff(world)
        self.sizes = Sizes(world, number, self.staff)
        common = (world, number, self.ports, self.memory, self.staff)
        self.combine = CombineGroup(*common, self.sizes, gates.progress[number], combines)
        gpu_of = world.workload.gpu_of_expert
        experts = {key: expert for key, expert in routing.experts.items() if gpu_of[expert.number] == number}
        self.gemm = GemmGroup(*common, gates, self.combine, experts)
        self.dispatch = DispatchGroup(*common, self.sizes, gates, self.gemm, routing.chunks[number], dispatches)
        self.groups: dict[int, Group] = {
            SPLIT: self.sizes,
            DISPATCH: self.dispatch,
            GEMM: self.gemm,
            COMBINE: self.combine,
        }
        switch.receivers.append(self)
        gates.openers.append(self)
        dispatches.append(self.dispatch)
        combines.append(self.combine)

    @property
    def experts(self) -> list[Expert]:
        """The experts it holds, by number and part."""
        return list(self.gemm.experts.values())

    def reach(self, segment: Segment) -> None:
        """Takes a segment in."""
        (self.dispatch if segment.purpose == DISPATCH_DATA else self.combine).reach(segment)

    def acknowledged(self, segment: Segment) -> None:
        """Learns that the switch holds a contribution to a sum."""
        self.combine.acknowledged(segment)

    def opened(self, stage: int, part: int) -> None:
        """Goes on with a stage of a part."""
        if stage == EVERYTHING:
            for group in (self.dispatch, self.gemm, self.combine):
                group.mark()
        elif stage == COMBINING:
            self.combine.open_part(part)
        else:
            self.gemm.mark()
