"""What the SM groups of one of the twin's GPUs share, and what they are as groups of that GPU."""

from __future__ import annotations

from dysharp_env.simulator.twin.gates import Gates
from dysharp_env.simulator.twin.memory import Memory
from dysharp_env.simulator.twin.staffing import Sizes, Staff
from dysharp_env.simulator.twin.switch import Ports, Switch
from dysharp_env.simulator.twin.world import Group, World


class Site:
    """One GPU's links, memory, SMs and progress."""

    def __init__(self, world: World, gpu: int, switch: Switch, gates: Gates) -> None:
        self.world, self.gpu, self.gates = world, gpu, gates
        self.ports, self.memory, self.staff = Ports(switch, gpu), Memory(world), Staff(world)
        self.sizes = Sizes(world, gpu, self.staff)
        self.progress = gates.progress[gpu]


class SmGroup(Group):
    """A group of SMs that works on a GPU's site."""

    def __init__(self, site: Site, kind: int) -> None:
        super().__init__(site.world, kind, site.gpu)
        self.clock, self.costs = site.world.clock, site.world.costs
        self.ports, self.memory, self.staff, self.sizes = site.ports, site.memory, site.staff, site.sizes
        self.gates, self.progress = site.gates, site.progress
