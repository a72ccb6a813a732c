"""What hardware a schedule needs, and what it pays on a machine whatever the layer: read off its spec."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from dysharp_env.schedules.spec import ScheduleSpec
from dysharp_env.simulator.phases import STAGES
from dysharp_env.system import SystemSpec
from dysharp_env.system.overheads import OVERHEADS
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES, Primitive

Need = Literal["today", "dynamic-multimem", "hub"]
NEEDS: tuple[str, ...] = get_args(Need)
# What each need is, for people.
NEED_MEANINGS: dict[str, str] = {
    "today": "what can be bought: plain stores and loads, and static multimem (NVLS)",
    "dynamic-multimem": "in-switch operations that papers propose: `dymultimem` (DySHARP, arXiv 2605.05607), or pushed"
    " sums merged in the switch (CAIS, arXiv 2605.05628)",
    "hub": "GPUs whose Hub gives tokens their places as they come (MoE-Hub, arXiv 2605.05888)",
}


def primitives_of(schedule: ScheduleSpec) -> list[Primitive]:
    """Returns what moves vectors, and weights if they travel, in any of the schedule's variants."""
    found = []
    for variant in schedule.variants():
        found += [DISPATCH_PRIMITIVES[variant.dispatch], COMBINE_PRIMITIVES[variant.combine]]
        if variant.replicate.makes_copies:
            found.append(variant.replicate.primitive)
    return found


def needed_hardware(schedule: ScheduleSpec) -> Need:
    """Returns the hardware that a schedule needs as it stands, whatever else its plans are."""
    if schedule.hub:
        return "hub"
    return "dynamic-multimem" if any(each.is_proposed for each in primitives_of(schedule)) else "today"


def hardware_needs(schedule: ScheduleSpec) -> list[str]:
    """Returns on which hardware a schedule runs: one need, or of a schedule with plans each that some of them has."""
    needs = {needed_hardware(option) for option in schedule.options}
    return [need for need in NEEDS if need in needs]


def is_of_another_proposal(schedule: ScheduleSpec) -> bool:
    """Returns whether a schedule needs what is proposed, but not by the paper whose dynamic multimem is modelled."""
    proposed = [each for each in primitives_of(schedule) if each.is_proposed]
    return schedule.hub or not all(each.names_targets for each in proposed)


@dataclass(frozen=True)
class FixedCosts:
    """What a schedule pays on a machine whatever the layer; stages in parts pay it for each part.

    Attributes:
        launches_us: Starts of kernels: the first, those right behind another, and what a fused one takes besides.
        exchanges_us: Exchanges of counts, and planning copies from them.
        barriers_us: Barriers.
        kernels: Kernels between phases, by name, whose time follows the layer.
        kernels_us: What starting those takes.
    """

    launches_us: float
    exchanges_us: float
    barriers_us: float
    kernels: tuple[str, ...]
    kernels_us: float

    @property
    def total_us(self) -> float:
        """All of them together."""
        return self.launches_us + self.exchanges_us + self.barriers_us + self.kernels_us

    def record(self) -> dict[str, Any]:
        """Returns them for JSON."""
        return {**asdict(self), "total_us": self.total_us}


def fixed_costs(schedule: ScheduleSpec, system: SystemSpec) -> FixedCosts:
    """Returns what a schedule pays on a machine whatever the layer."""
    paid = [cost for stage in STAGES for cost in getattr(schedule.pays, stage)]

    def together_us(*costs: str) -> float:
        return sum(system.overhead_us(cost) for cost in paid if cost in costs)

    kernels = tuple(cost for cost in paid if cost not in OVERHEADS)
    launched = [name for name in kernels if name != "final_sum"] if system.overheads.phase_kernels else []
    return FixedCosts(
        launches_us=together_us("launch", "gap", "fused_start"),
        exchanges_us=together_us("count_exchange", "plan"),
        barriers_us=together_us("barrier"),
        kernels=kernels,
        kernels_us=len(launched) * system.overhead_us("gap"),
    )
