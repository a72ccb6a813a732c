"""One of the twin's GPUs: its site and the groups that take decisions there, made and marked here."""

from __future__ import annotations

from dysharp_env.simulator.state.observation import SPLIT
from dysharp_env.simulator.twin.combine import CombineGroup
from dysharp_env.simulator.twin.dispatch import DispatchGroup
from dysharp_env.simulator.twin.gemm import GemmGroup
from dysharp_env.simulator.twin.prefetch import PrefetchGroup
from dysharp_env.simulator.twin.routing import Routing
from dysharp_env.simulator.twin.staffing import Site, Sizes
from dysharp_env.simulator.twin.switch import Switch
from dysharp_env.simulator.twin.weights import Copy, Mover
from dysharp_env.simulator.twin.world import COMBINING, EVERYTHING, Progress, World


class Gpu(Site):
    """One GPU; its communication groups join those of all GPUs."""

    def __init__(
        self,
        world: World,
        number: int,
        switch: Switch,
        everywhere: list[Progress],
        routing: Routing,
        copies: list[Copy],
        movers: list[Mover],
        dispatches: list[DispatchGroup],
        combines: list[CombineGroup],
    ) -> None:
        super().__init__(world, number, switch, everywhere)
        gpu_of = world.workload.gpu_of_expert
        experts = {key: expert for key, expert in routing.experts.items() if gpu_of[expert.number] == number}
        self.experts = list(experts.values())
        sizes = Sizes(self, SPLIT)
        self.combine = CombineGroup(self, combines, sizes, routing.tokens)
        self.mover: Mover = Mover(self, movers, copies)
        self.prefetch = PrefetchGroup(self, self.experts, self.mover.is_here)
        self.gemm: GemmGroup = GemmGroup(self, combines, experts, self.mover, self.prefetch)
        self.dispatch = DispatchGroup(self, dispatches, sizes, self.gemm, routing.chunks[number])
        movers.append(self.mover)
        combines.append(self.combine)
        dispatches.append(self.dispatch)
        self.crews = self.dispatch, self.combine
        self.progress.opened = self._opened

    def _opened(self, stage: int, part: int) -> None:
        """Goes on with a stage of a part."""
        if stage == EVERYTHING:
            self.prefetch.wake()
            for group in (self.dispatch, self.gemm, self.combine):
                group.mark()
            self.mover.issue_soon()
        elif stage == COMBINING:
            self.combine.open_part(part)
        else:
            self.gemm.mark()
