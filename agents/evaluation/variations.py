"""Other values of what the model is unsure of, each changed alone on every machine of a suite.

The first ones are those of the sensitivity table of ``python -m dysharp_env reproduce``: the ratio of compute to
communication, packets, and the queueing discipline. The others are constants that ``configs/systems`` takes from one
measurement or assumes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dysharp_env.config import ConfigError, did_you_mean
from dysharp_env.system import FamilySpec, SystemSpec
from dysharp_env.workload.suite import SuiteWorkload

Change = Callable[[Any], Any]


@dataclass(frozen=True)
class Variation:
    """One change of the model.

    Attributes:
        name: What people call it.
        changes: What becomes of settings of a system, by dotted key.
        compute_scale: Multiplies GEMM and HBM time.
    """

    name: str
    changes: dict[str, Change] = field(default_factory=dict)
    compute_scale: float = 1.0

    def system(self, system: SystemSpec) -> SystemSpec:
        """Returns a machine as the variation has it."""
        changes = {}
        for key, change in self.changes.items():
            part, setting = key.split(".")
            changes[key] = change(getattr(getattr(system, part), setting))
        return system.with_changes(changes)

    def apply(self, workloads: Sequence[SuiteWorkload]) -> list[SuiteWorkload]:
        """Returns the same workloads on machines as the variation has them."""
        return [
            replace(
                item,
                scenario=replace(item.scenario, system=self.system(item.scenario.system)),
                entry=item.entry.model_copy(update={"compute_scale": item.entry.compute_scale * self.compute_scale}),
            )
            for item in workloads
        ]


def _times(factor: float, most: float = float("inf")) -> Change:
    """Returns a function that multiplies a number and cuts it; whole numbers stay whole."""
    return lambda value: type(value)(min(value * factor, most))


def _to(value: Any) -> Change:
    return lambda _: value


def _sm_rate(factor: float) -> dict[str, Change]:
    """Returns what makes communication SMs so much faster: the costs of every family of kernels, and MultimemQ."""

    def change(families: Mapping[str, FamilySpec]) -> dict[str, dict[str, Any]]:
        costs = ("token_ns", "copy_ns", "byte_ps")
        return {
            name: family.model_dump() | {cost: getattr(family, cost) / factor for cost in costs}
            for name, family in families.items()
        }

    return {"gpu.families": change, "gpu.multimem_queue_entries": _times(factor)}


def _software(factor: float) -> dict[str, Change]:
    return {f"overheads.{key}": _times(factor) for key in ("launch_us", "launch_gap_us", "count_exchange_us")}


BASE = Variation("as configured")
VARIATIONS = (
    *(Variation(f"compute time x {scale:g}", compute_scale=scale) for scale in (0.25, 0.5, 2.0, 4.0)),
    Variation("packets of 256 B", {"link.payload_bytes": _to(256)}),
    Variation("no control flits", {f"link.{name}_flits": _to(0) for name in ("header", "ack", "request")}),
    Variation("queueing output_queued", {"switch.queueing": _to("output_queued")}),
    Variation("queueing input_fifo", {"switch.queueing": _to("input_fifo")}),
    # Half and twice what was measured or assumed, or as far as the constant can go.
    Variation("HBM efficiency 0.65", {"gpu.hbm_efficiency": _to(0.65)}),
    Variation("HBM efficiency 0.95", {"gpu.hbm_efficiency": _to(0.95)}),
    Variation("cold exposure 0", {"gpu.cold_exposure": _to(0.0)}),
    Variation("cold exposure 1", {"gpu.cold_exposure": _to(1.0)}),
    Variation("block overhead x 0.5", {"gpu.block_overhead_ns": _times(0.5)}),
    Variation("block overhead x 2", {"gpu.block_overhead_ns": _times(2)}),
    Variation("launch and exchange x 0.5", _software(0.5)),
    Variation("launch and exchange x 2", _software(2)),
    Variation("link latency x 0.5", {"link.latency_ns": _times(0.5)}),
    Variation("link latency x 2", {"link.latency_ns": _times(2)}),
    Variation("communication SMs x 0.5", _sm_rate(0.5)),
    Variation("communication SMs x 2", _sm_rate(2)),
    Variation("in GEMM for free", {"gpu.in_gemm_share": _to(0.0)}),
    Variation("no flits for multimem", {"link.multimem_flits": _to(0)}),
    Variation("reduction rate 0.7", {"switch.reduction_rate": _to(0.7)}),
)


def read_variations(given: Sequence[str]) -> list[Variation]:
    """Returns the variations of these names, or all if there are none; ``BASE`` comes first.

    Raises:
        ConfigError: There is no such variation.
    """
    by_name = {variation.name: variation for variation in VARIATIONS}
    for name in given:
        if name not in by_name:
            raise ConfigError(f"vary='{name}' is unknown; choose from {[*by_name]}{did_you_mean(name, [*by_name])}")
    return [BASE, *(by_name[name] for name in dict.fromkeys(given or by_name))]
