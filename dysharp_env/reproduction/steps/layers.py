"""The MoE layers of steps: which cases are simulated, and the few numbers that steps and claims need of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.simulator.result import LayerResult
from dysharp_env.system import SystemSpec
from dysharp_env.workers import Workers
from dysharp_env.workload import LayerSpec, Workload, WorkloadSource

PS_PER_US = 10**6


@dataclass(frozen=True)
class LayerCase:
    """One simulation: a machine, a layer and its pass, a routing, and a schedule. Equal cases give equal results.

    Attributes:
        system: The machine.
        layer: The layer; its ``direction`` says which pass.
        tokens: Tokens per GPU.
        routing: A generator's name or ``recorded``.
        seed: Seed of the routing.
        schedule: A preset's name.
        compute_scale: Multiplies GEMM and HBM time.
        schedule_changes: Settings of the schedule that differ from the preset's, as items of dotted keys and values.
    """

    system: SystemSpec
    layer: LayerSpec
    tokens: int
    routing: str
    seed: int
    schedule: str
    compute_scale: float = 1.0
    schedule_changes: tuple[tuple[str, Any], ...] = ()

    @property
    def size(self) -> int:
        """Roughly how much there is to simulate: (token, expert) pairs."""
        return self.system.num_gpus * self.tokens * self.layer.top_k

    def workload(self) -> Workload:
        """Returns the tokens and their experts; both passes and all schedules of a case share them."""
        forward = self.layer.with_changes({"direction": "forward"})
        drawn = _draw(forward, self.system.num_gpus, self.tokens, self.routing, self.seed)
        return drawn if forward == self.layer else replace(drawn, layer=self.layer)


# Cases come in the order of their workloads, so remembering the last one saves most of the drawing.
@lru_cache(maxsize=1)
def _draw(layer: LayerSpec, num_gpus: int, tokens: int, routing: str, seed: int) -> Workload:
    return WorkloadSource(layer, num_gpus, tokens, routing).draw(seed)


@dataclass(frozen=True)
class LayerTimes:
    """What one simulated layer took.

    Attributes:
        makespan_ps: Until the last token is combined.
        lower_bound_ps: What no schedule can beat.
        phases_ps: First start and last end of ``dispatch``, ``gemm1``, ``gemm2`` and ``combine``.
        payload_bytes: Over all GPUs, both directions of their links.
        busy: Mean over GPUs of the busy fraction of ``uplink``, ``downlink``, ``sm`` and ``hbm``.
    """

    makespan_ps: int
    lower_bound_ps: int
    phases_ps: dict[str, tuple[int, int]]
    payload_bytes: int
    busy: dict[str, float]

    @classmethod
    def of(cls, result: LayerResult) -> LayerTimes:
        """Returns the numbers of a finished layer."""
        return cls(
            makespan_ps=round(result.makespan_us * PS_PER_US),
            lower_bound_ps=round(result.lower_bound_us * PS_PER_US),
            phases_ps={
                stage: (round(start * PS_PER_US), round(end * PS_PER_US))
                for stage, (start, end) in result.phases_us.items()
            },
            payload_bytes=result.payload_bytes["up"] + result.payload_bytes["down"],
            busy={name: use["mean"] for name, use in result.utilisation.items()},
        )

    @property
    def is_phased(self) -> bool:
        """Whether dispatch, GEMMs and combine followed each other without overlap."""
        phases = self.phases_ps
        return phases["dispatch"][1] <= phases["gemm1"][0] and phases["gemm2"][1] <= phases["combine"][0]

    def cut(self) -> tuple[int, int, int]:
        """Returns the times of dispatch, GEMMs and combine, ps; each includes what is paid before it starts.

        Raises:
            ValueError: The stages overlapped, so that the layer cannot be cut.
        """
        if not self.is_phased:
            raise ValueError("only a layer run in phases can be cut into dispatch, GEMMs and combine")
        dispatch_end, gemms_end = self.phases_ps["dispatch"][1], self.phases_ps["gemm2"][1]
        return dispatch_end, gemms_end - dispatch_end, self.makespan_ps - gemms_end


def simulate_case(case: LayerCase) -> LayerTimes:
    """Returns the times of one simulated layer.

    Raises:
        ConfigError: A name is unknown, or the schedule or routing does not fit.
    """
    schedule = load_schedule(case.schedule)
    if case.schedule_changes:
        schedule = schedule.with_changes(dict(case.schedule_changes))
    run = simulate(case.system, case.workload(), schedule, compute_scale=case.compute_scale)
    return LayerTimes.of(run.result())


def simulate_cases(
    cases: Iterable[LayerCase], workers: Workers, progress: Callable[[int, int, LayerCase], None]
) -> dict[LayerCase, LayerTimes]:
    """Returns the times of every case, each simulated once.

    ``progress`` is told after each how many are done, how many there are, and which it was.

    Raises:
        ConfigError: A case names what does not exist or does not fit, or a worker was lost.
    """
    ordered = _in_order(cases)

    def tell(done: int, place: int, _: LayerTimes) -> None:
        progress(done, len(ordered), ordered[place])

    return dict(zip(ordered, workers.map(simulate_case, ordered, tell=tell), strict=True))


def _in_order(cases: Iterable[LayerCase]) -> list[LayerCase]:
    """Returns distinct cases, large workloads first so that no process ends alone, cases of one workload together."""

    def place(case: LayerCase) -> tuple[int, str, int, str, int]:
        return (-case.size, case.layer.name, case.layer.tile_tokens, case.routing, case.seed)

    return sorted(dict.fromkeys(cases), key=place)
