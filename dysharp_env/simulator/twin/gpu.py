"""One of the twin's GPUs: its site and the groups that work there."""

from __future__ import annotations

from dysharp_env.simulator.twin.combine import CombineGroup
from dysharp_env.simulator.twin.dispatch import DispatchGroup
from dysharp_env.simulator.twin.gates import COMBINING, EVERYTHING, Gates
from dysharp_env.simulator.twin.gemm import GemmGroup
from dysharp_env.simulator.twin.parts import Expert
from dysharp_env.simulator.twin.routing import Routing
from dysharp_env.simulator.twin.site import Site
from dysharp_env.simulator.twin.switch import Switch
from dysharp_env.simulator.twin.world import World


class Gpu:
    """One GPU; its groups join those of all GPUs."""

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
        self.number = number
        self.site = site = Site(world, number, switch, gates)
        gpu_of = world.workload.gpu_of_expert
        experts = {key: expert for key, expert in routing.experts.items() if gpu_of[expert.number] == number}
        self.combine = CombineGroup(site, combines)
        self.gemm = GemmGroup(site, self.combine, experts)
        self.dispatch = DispatchGroup(site, self.gemm, routing.chunks[number], dispatches)
        gates.opened.append(self._opened)

    @property
    def experts(self) -> list[Expert]:
        """The experts it holds, by number and part."""
        return list(self.gemm.experts.values())

    def _opened(self, stage: int, part: int) -> None:
        """Goes on with a stage of a part."""
        if stage == EVERYTHING:
            for group in (self.dispatch, self.gemm, self.combine):
                group.mark()
        elif stage == COMBINING:
            self.combine.open_part(part)
        else:
            self.gemm.mark()
