"""Results of runs as plain records: what JSON files hold and tables show."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from dysharp_env.schedules import LayerRun, ScheduleSpec, simulate
from dysharp_env.schedules.variants import described
from dysharp_env.simulator.result import LayerResult
from dysharp_env.workload import Scenario, Workload


@dataclass(frozen=True)
class TimedRun:
    """One layer simulated under one schedule, and how long the simulation took."""

    schedule: str
    run: LayerRun
    result: LayerResult
    wall_s: float

    def record(self) -> dict[str, Any]:
        """Returns the run as one item of ``runs`` in a JSON result."""
        bounds = ("lower_bound_us", "family_bound_us", "ratio")
        fields = ("makespan_us", *bounds, "phases_us", "wire_bytes", "payload_bytes", "utilisation")
        numbers = {name: getattr(self.result, name) for name in (*fields, "events", "decisions")}
        return {"schedule": self.schedule, "variant": self.run.variant, **numbers, "wall_s": self.wall_s}


def run_timed(
    scenario: Scenario, workload: Workload, schedule: ScheduleSpec, *, resolution: str = "token", logging: bool = False
) -> TimedRun:
    """Returns ``workload`` run under ``schedule``; ``logging`` keeps what timelines and pictures are made of.

    Raises:
        ConfigError: The schedule does not fit the scenario's system.
    """
    start_s, scale = time.perf_counter(), scenario.spec.compute_scale
    run = simulate(scenario.system, workload, schedule, compute_scale=scale, resolution=resolution, logging=logging)
    wall_s = time.perf_counter() - start_s
    return TimedRun(schedule.name, run, run.result(family=True), wall_s)


def variant_notes(runs: Iterable[tuple[str, LayerRun]]) -> list[str]:
    """Returns a line for each run, with its schedule's name, that was the fastest of several variants."""
    return [f"{name}: {described(run.variant)}, the fastest of its variants" for name, run in runs if run.variant]


def layer_title(workload: Workload, system: str) -> str:
    """Returns the machine and the layer of a workload in one line for people."""
    layer = workload.layer
    least, most = int(workload.tokens_of_gpu.min()), workload.most_tokens
    tokens = f"{most}" if least == most else f"{least} to {most}"
    what = f"{layer.name}, top-{layer.top_k} of {layer.experts} experts, {tokens} tokens per GPU"
    return f"{workload.num_gpus} GPUs of {system}: {what}, {workload.name}"
