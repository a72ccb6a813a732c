"""Chunk against token resolution: the same layers with a chunk's vectors for one destination together as segments.

Chunk resolution is for training, token resolution for results, so token resolution is the expectation. A workload is
simulated under every schedule of ``SCHEDULES``; its row is that of the schedule that is furthest off. Training compares
schedules, so their order has to be the same too, wherever two of them differ by more than ``TIE``.

Makespans are means over ``ROUTINGS`` routings. Where expert weights do not fit in L2 and rows run as they become ready,
a little change in the order of arrivals decides how often weights are read again, and a single makespan jumps by a few
percent either way: ``fused-unicast`` on 8 GPUs of dgx-h100 (olmoe, 256 tokens) takes 146 us by token, 137 us by packet
and 135 us by chunk for one routing, and by chunk -0.1 % in the mean over eight.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

from dysharp_env.report.comparison import ValidationRow
from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.workload import ScenarioSpec

SCHEDULES = ("deepep", "comet", "dysharp-basic", "dysharp", "dysharp-l2", "fused-unicast", "nvls")
# Of the makespan at token resolution.
TOLERANCE = 0.03
# Schedules whose makespans differ by less have no order that training could use.
TIE = 0.01
ROUTINGS = 4


class Layer(NamedTuple):
    """One workload."""

    system: str
    gpus: int
    model: str
    top_k: int
    tokens: int

    @property
    def name(self) -> str:
        """What rows call it."""
        return f"{self.gpus} GPUs of {self.system}: {self.model}, top-{self.top_k}, {self.tokens} tokens"


LAYERS = (
    Layer("gh200-nvl32", 8, "small", 4, 64),
    Layer("gh200-nvl32", 8, "small", 8, 256),
    Layer("gh200-nvl32", 8, "small", 16, 128),
    Layer("gh200-nvl32", 8, "small", 8, 1024),
    Layer("gh200-nvl32", 8, "medium", 8, 64),
    Layer("gh200-nvl32", 8, "medium", 4, 256),
    Layer("gh200-nvl32", 8, "medium", 8, 512),
    Layer("gh200-nvl32", 8, "large", 8, 64),
    Layer("gh200-nvl32", 8, "large", 8, 256),
    Layer("gh200-nvl32", 8, "large", 16, 128),
    Layer("gh200-nvl32", 8, "large", 2, 512),
    Layer("gh200-nvl32", 8, "deepseek-v3", 8, 64),
    Layer("gh200-nvl32", 8, "qwen3-30b", 8, 256),
    Layer("gh200-nvl32", 8, "olmoe", 8, 128),
    Layer("dgx-h100", 8, "deepseek-v3", 8, 128),
    Layer("dgx-h100", 8, "qwen3-30b", 8, 128),
    Layer("dgx-h100", 8, "gpt-oss-120b", 4, 256),
    Layer("dgx-h100", 8, "large", 4, 256),
    Layer("dgx-h100", 8, "medium", 16, 64),
    Layer("dgx-h100", 8, "olmoe", 8, 256),
    Layer("gb200-nvl72", 8, "large", 8, 128),
    Layer("gb200-nvl72", 8, "gpt-oss-120b", 4, 256),
    Layer("gh200-nvl32", 32, "small", 8, 64),
    Layer("gh200-nvl32", 32, "small", 4, 128),
    Layer("gh200-nvl32", 32, "medium", 8, 64),
    Layer("gh200-nvl32", 32, "large", 8, 64),
    Layer("gh200-nvl32", 32, "deepseek-v3", 8, 64),
    Layer("gh200-nvl32", 32, "qwen3-30b", 8, 64),
    Layer("gb200-nvl72", 32, "large", 8, 64),
    Layer("gb200-nvl72", 32, "gpt-oss-120b", 4, 64),
)


def chunk_rows(seed: int = 0) -> Iterator[ValidationRow]:
    """Yields the makespan of every layer, and how many pairs of schedules keep their order; ``seed`` draws routings."""
    kept = compared = 0
    for layer in LAYERS:
        makespans_us = _makespans_us(layer, seed)
        worst = max(makespans_us, key=lambda name: abs(makespans_us[name][1] / makespans_us[name][0] - 1))
        token_us, chunk_us = makespans_us[worst]
        name = f"makespan by chunk of {worst} on {layer.name}, us"
        yield ValidationRow("resolution", name, token_us, chunk_us, "predicted", TOLERANCE * token_us)
        for first, second in combinations(makespans_us.values(), 2):
            if abs(first[0] / second[0] - 1) > TIE:
                compared += 1
                kept += (first[0] < second[0]) == (first[1] < second[1])
    name = f"pairs of schedules in the same order by chunk, where they differ by more than {TIE:.0%}"
    yield ValidationRow("resolution", name, compared, kept, "exact", 0)


def _makespans_us(layer: Layer, seed: int) -> dict[str, tuple[float, float]]:
    """Returns the mean makespan of each schedule at token and at chunk resolution."""
    scenario = ScenarioSpec(
        system=layer.system,
        gpus=layer.gpus,
        model=layer.model,
        top_k=layer.top_k,
        tokens=layer.tokens,
        routing="uniform",
    ).build()
    workloads = [scenario.draw(ROUTINGS * seed + index) for index in range(ROUTINGS)]

    def run_us(schedule: str, resolution: str) -> float:
        spec = load_schedule(schedule)
        runs = [simulate(scenario.system, workload, spec, resolution=resolution) for workload in workloads]
        return fmean(run.engine.now_ps for run in runs) / 1e6

    return {name: (run_us(name, "token"), run_us(name, "chunk")) for name in SCHEDULES}
