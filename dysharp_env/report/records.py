"""Results of runs as plain records: what JSON files hold and tables show."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from dysharp_env.schedules import LayerRun, ScheduleSpec, simulate
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
        result = self.result
        return {
            "schedule": self.schedule,
            "makespan_us": result.makespan_us,
            "lower_bound_us": result.lower_bound_us,
            "ratio": result.ratio,
            "phases_us": {stage: list(span) for stage, span in result.phases_us.items()},
            "wire_bytes": result.wire_bytes,
            "payload_bytes": result.payload_bytes,
            "utilisation": result.utilisation,
            "events": result.events,
            "decisions": result.decisions,
            "wall_s": self.wall_s,
        }


def run_timed(
    scenario: Scenario,
    workload: Workload,
    schedule: ScheduleSpec,
    *,
    resolution: str = "token",
    logging: bool = False,
) -> TimedRun:
    """Returns ``workload`` run under ``schedule``; ``logging`` keeps what timelines and pictures are made of.

    Raises:
        ConfigError: The schedule does not fit the scenario's system.
    """
    start_s = time.perf_counter()
    run = simulate(
        scenario.system,
        workload,
        schedule,
        compute_scale=scenario.spec.compute_scale,
        resolution=resolution,
        logging=logging,
    )
    return TimedRun(schedule.name, run, run.result(), time.perf_counter() - start_s)
