"""Runs one workload under one schedule."""

from __future__ import annotations

from dataclasses import dataclass

from dysharp_env.schedules.bound import lower_bound_ps
from dysharp_env.schedules.spec import Exposure, ScheduleSpec
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import LayerResult, summarise
from dysharp_env.system import SystemSpec
from dysharp_env.workload import Workload


@dataclass(frozen=True)
class LayerRun:
    """An engine set up for one workload and schedule, and the workload's lower bound."""

    engine: Engine
    lower_bound_ps: int

    def result(self) -> LayerResult:
        """Returns the result; the engine must be done."""
        return summarise(self.engine, self.lower_bound_ps)


def start(
    system: SystemSpec,
    workload: Workload,
    schedule: ScheduleSpec,
    *,
    exposure: Exposure = Exposure(),  # noqa: B008 (frozen)
    compute_scale: float = 1.0,
    resolution: str = "token",
    logging: bool = False,
) -> LayerRun:
    """Returns a layer at time zero.

    Args:
        system: The machine.
        workload: The layer and its routing.
        schedule: How it is run.
        exposure: Which decisions are asked rather than ruled.
        compute_scale: Multiplies GEMM and HBM time.
        resolution: What moves as one segment: ``token``, a vector on all planes together; ``packet``, a packet on the
            plane its address hashes to, some hundred times slower. The lower bound is the same for both.
        logging: Whether every use of a link, reduction unit and SM group is recorded (``engine.state.log``).

    Raises:
        ConfigError: The schedule does not fit the system, there is no such resolution, or the workload is too large for
            exact integer time.
    """
    costs = Costs.of(system, workload.layer, compute_scale, resolution)
    costs.require_exact(workload)
    bound_ps = lower_bound_ps(system, workload, Costs.of(system, workload.layer, compute_scale))
    program = schedule.program(system, exposure)
    return LayerRun(Engine(workload, costs, program, system.gpu.num_sms, bound_ps, logging), bound_ps)


def simulate(
    system: SystemSpec,
    workload: Workload,
    schedule: ScheduleSpec,
    *,
    compute_scale: float = 1.0,
    resolution: str = "token",
    logging: bool = False,
) -> LayerRun:
    """Returns a layer run to its end under the schedule's own rule; see ``start``."""
    run = start(system, workload, schedule, compute_scale=compute_scale, resolution=resolution, logging=logging)
    run.engine.run()
    return run
