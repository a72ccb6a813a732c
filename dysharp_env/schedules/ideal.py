"""What binds a layer: the same layer under the same schedule or agent on machines of which one thing is made ideal.

``IDEALISATIONS`` is the whole of what can be made ideal: a line each, with the settings of a system that it changes.
What a line saves is what the layer loses to that thing under this schedule; the savings of several lines do not add up,
for what one of them hides another shows. A rule decides anew on every machine, so that making something ideal may even
cost time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, get_args

from dysharp_env.config import flat_keys
from dysharp_env.schedules.opponent import Opponent, ScheduleOpponent
from dysharp_env.schedules.run import Problem
from dysharp_env.schedules.spec import ScheduleSpec
from dysharp_env.system import SystemSpec
from dysharp_env.workload.suite import Resource

RESOURCES: tuple[Resource, ...] = get_args(Resource)
ALL = "everything"
# The most that a setting of a system may be.
_MOST = 1_000_000_000


@dataclass(frozen=True)
class Times:
    """A setting that is multiplied."""

    factor: int


@dataclass(frozen=True)
class Idealisation:
    """One thing made ideal.

    Attributes:
        name: What results call it.
        resource: One of ``RESOURCES``, of which it is a part.
        meaning: What is changed, for people.
        changes: Values or factors by settings of a system; ``*`` in a setting stands for anything.
    """

    name: str
    resource: str
    meaning: str
    changes: Mapping[str, Any]


IDEALISATIONS = (
    Idealisation(
        "link bandwidth",
        "links",
        "100 times as much, no link or plane slow, no packet replayed",
        {"link.gbps": Times(100), "faults.slow_link": 1, "faults.slow_plane": 1, "faults.replay_every": 0},
    ),
    Idealisation(
        "latencies",
        "links",
        "hops, accesses for packets and the reduction's cycle take no time",
        {"link.latency_ns": 0, "gpu.memory_latency_ns": 0, "switch.reduction_cycle_ps": 0},
    ),
    Idealisation(
        "communication SMs",
        "links",
        "move any number of vectors and change over at no cost",
        {
            **{"gpu.families.*_ns": 0, "gpu.families.*.byte_ps": 0, "gpu.families.*.vectors": 1_000_000},
            **{"gpu.multimem_queue_entries": 0, "gpu.in_gemm_share": 0, "overheads.role_change_us": 0},
        },
    ),
    Idealisation(
        "switch",
        "links",
        "queues at outputs, buffers without end, copies and adds up packets like any others",
        {
            **{"switch.queueing": "output_queued", "switch.vc_depth_flits": Times(1000)},
            **{"switch.reduction_buffer_bytes": Times(1000), "switch.reduction_rate": 1, "link.multimem_flits": 0},
            "faults.taken_slots": 0,
        },
    ),
    Idealisation("HBM", "memory", "100 times the bandwidth", {"gpu.hbm_gbps": Times(100)}),
    Idealisation(
        "L2",
        "memory",
        "holds all that has been read or written",
        {"gpu.l2_mb": Times(1000), "gpu.l2_copies": 1},
    ),
    Idealisation(
        "GEMMs",
        "compute",
        "100 times the arithmetic, thread blocks cost nothing besides, all GPUs equally fast",
        {"gpu.*_tflops": Times(100), "gpu.block_overhead_ns": 0, "gpu.cold_exposure": 0, "slow_gpu": 1},
    ),
    Idealisation(
        "launches",
        "software",
        "take no time, no GPU starts late",
        {"overheads.*launch*_us": 0, "overheads.fused_start_us": 0, "faults.late_us": 0},
    ),
    Idealisation("barriers", "software", "take no time", {"overheads.*barrier*_us": 0}),
    Idealisation("count exchange", "software", "takes no time", {"overheads.*exchange*_us": 0}),
    Idealisation("planning", "software", "of copies takes no time", {"overheads.plan*_us": 0}),
    Idealisation(
        "kernels between phases",
        "software",
        "take no time, with their launches",
        {"overheads.phase_kernels": False, "overheads.layout_ns_per_token": 0},
    ),
)


@dataclass(frozen=True)
class IdealRun:
    """How long a layer takes on a machine of which something is ideal.

    Attributes:
        what: Name of an idealisation, of a resource (all of its idealisations together), or ``ALL``.
        resource: One of ``RESOURCES``, or ``ALL``.
        is_group: Whether several idealisations are in it.
        makespan_ps: Until the layer is done.
    """

    what: str
    resource: str
    is_group: bool
    makespan_ps: int


def ideal_system(system: SystemSpec, idealisations: Sequence[Idealisation]) -> SystemSpec:
    """Returns the system with some things made ideal; settings that a system does not have are passed over."""
    values: dict[str, Any] = {}
    settings = system.model_dump()
    for key in flat_keys(system):
        value: Any = settings
        for name in key.split("."):
            value = value[name]
        for each in idealisations:
            for pattern, change in each.changes.items():
                if fnmatchcase(key, pattern):
                    values[key] = min(value * change.factor, _MOST) if isinstance(change, Times) else change
    return system.with_changes(values)


def ideal_runs(problem: Problem, opponent: Opponent) -> list[IdealRun]:
    """Returns the layer on machines with one thing ideal, with all of a resource ideal, and with everything ideal.

    Whoever plays plays anew on each of them.

    Raises:
        ConfigError: The schedule does not fit the system.
    """
    runs = []
    for resource in RESOURCES:
        members = [each for each in IDEALISATIONS if each.resource == resource]
        if len(members) > 1:
            runs += [IdealRun(each.name, resource, False, _makespan_ps(problem, opponent, [each])) for each in members]
        runs.append(_resource_run(problem, opponent, resource))
    return [*runs, IdealRun(ALL, ALL, True, _makespan_ps(problem, opponent, IDEALISATIONS))]


def binds(problem: Problem, schedule: ScheduleSpec) -> str:
    """Returns the one of ``RESOURCES`` that a layer would gain most from under a schedule if it were ideal.

    Raises:
        ConfigError: The schedule does not fit the system.
    """
    return binding(resource_runs(problem, schedule))


def resource_runs(problem: Problem, schedule: ScheduleSpec) -> list[IdealRun]:
    """Returns those of ``ideal_runs`` in which all of one resource is ideal, in the order of ``RESOURCES``.

    Raises:
        ConfigError: The schedule does not fit the system.
    """
    opponent = ScheduleOpponent(schedule).on(problem)
    return [_resource_run(problem, opponent, resource) for resource in RESOURCES]


def binding(runs: Iterable[IdealRun]) -> str:
    """Returns the resource of the fastest of ``ideal_runs`` in which all of one resource is ideal."""
    return min((run for run in runs if run.what in RESOURCES), key=lambda run: run.makespan_ps).resource


def _resource_run(problem: Problem, opponent: Opponent, resource: str) -> IdealRun:
    members = [each for each in IDEALISATIONS if each.resource == resource]
    return IdealRun(resource, resource, True, _makespan_ps(problem, opponent, members))


def _makespan_ps(problem: Problem, opponent: Opponent, idealisations: Sequence[Idealisation]) -> int:
    costs = problem.costs
    system = ideal_system(problem.system, idealisations)
    scale, resolution = costs.compute_scale, costs.resolution
    ideal = Problem.of(system, problem.workload, compute_scale=scale, resolution=resolution)
    return opponent.run(ideal).engine.now_ps
