"""Runs one workload under one schedule."""

from __future__ import annotations

from dataclasses import dataclass

from dysharp_env.schedules.bound import LowerBound
from dysharp_env.schedules.spec import Exposure, ScheduleSpec
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import LayerResult, summarise
from dysharp_env.simulator.state.lowering import Lowering
from dysharp_env.system import SystemSpec
from dysharp_env.workload import Workload
from dysharp_env.workload.layer import LayerSpec


@dataclass(frozen=True)
class LayerRun:
    """An engine set up for one workload and schedule, and the workload's lower bound."""

    engine: Engine
    lower_bound_ps: int

    def result(self) -> LayerResult:
        """Returns the result; the engine must be done."""
        return summarise(self.engine, self.lower_bound_ps)


class Starter:
    """Starts layers of any routing under one schedule on one system; what they share is worked out once."""

    def __init__(
        self,
        system: SystemSpec,
        layer: LayerSpec,
        schedule: ScheduleSpec,
        *,
        exposure: Exposure = Exposure(),  # noqa: B008 (frozen)
        compute_scale: float = 1.0,
        resolution: str = "token",
        logging: bool = False,
    ):
        """Works out costs and program.

        Args:
            system: The machine.
            layer: The layer.
            schedule: How it is run.
            exposure: Which decisions are asked rather than ruled.
            compute_scale: Multiplies GEMM and HBM time.
            resolution: What moves as one segment: ``token``, a vector on all planes together; ``packet``, a packet on
                the plane its address hashes to, some hundred times slower; ``chunk``, a token chunk's vectors for one
                destination, which is for training. The lower bound is the same for all.
            logging: Whether every use of a link, reduction unit and SM group is recorded (``engine.state.log``).

        Raises:
            ConfigError: The schedule does not fit the system, or there is no such resolution.
        """
        costs = Costs.of(system, layer, compute_scale, resolution)
        self._bound = LowerBound(system, layer, Costs.of(system, layer, compute_scale))
        self._lowering = Lowering(costs, schedule.program(system, exposure), system.gpu.num_sms, logging)

    def start(self, workload: Workload) -> LayerRun:
        """Returns a layer at time zero.

        Raises:
            ConfigError: The workload is too large for exact integer time.
        """
        bound = self._bound.of(workload)
        return LayerRun(Engine(self._lowering, workload, bound), bound.total_ps)


def simulate(
    system: SystemSpec,
    workload: Workload,
    schedule: ScheduleSpec,
    *,
    compute_scale: float = 1.0,
    resolution: str = "token",
    logging: bool = False,
) -> LayerRun:
    """Returns a layer run to its end under the schedule's own rule; see ``Starter``."""
    starter = Starter(
        system, workload.layer, schedule, compute_scale=compute_scale, resolution=resolution, logging=logging
    )
    run = starter.start(workload)
    run.engine.run()
    return run
