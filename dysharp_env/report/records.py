"""Results of runs as plain records: what JSON files hold and tables show."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dysharp_env.schedules import LayerRun, Problem
from dysharp_env.schedules.hardware import needed_hardware
from dysharp_env.schedules.opponent import Contender
from dysharp_env.schedules.variants import described
from dysharp_env.simulator.result import LayerResult
from dysharp_env.workload import Scenario, Workload
from dysharp_env.workload.suite import Resource

_MOST_NAMES = 4  # that a title lists


@dataclass(frozen=True)
class TimedRun:
    """One layer simulated under one schedule or agent, and how long the simulation took.

    ``binds`` is what the layer's lower bound needs longest.
    """

    schedule: str
    run: LayerRun
    result: LayerResult
    wall_s: float
    binds: Resource

    def record(self) -> dict[str, Any]:
        """Returns the run as one item of ``runs`` in a JSON result."""
        bounds = ("lower_bound_us", "family_bound_us", "ratio")
        fields = ("makespan_us", *bounds, "phases_us", "wire_bytes", "payload_bytes", "utilisation")
        numbers = {name: getattr(self.result, name) for name in (*fields, "events", "decisions")}
        played = {"variant": self.run.variant, "layer": self.layer_index}
        head = {"schedule": self.schedule, "hardware": self.hardware, **played}
        return {**head, **numbers, "wall_s": self.wall_s}

    @property
    def hardware(self) -> str:
        """The hardware that was needed to run it so."""
        return needed_hardware(self.run.schedule)

    @property
    def layer_index(self) -> int | None:
        """The model's number of the layer; None where routing is of no layer in particular."""
        return self.run.engine.workload.layer_index


@dataclass(frozen=True)
class Total:
    """All layers of one schedule, one after the other."""

    schedule: str
    layers: int
    makespan_us: float
    lower_bound_us: float

    @property
    def ratio(self) -> float:
        """Makespans over lower bounds."""
        return self.makespan_us / self.lower_bound_us

    def record(self) -> dict[str, Any]:
        """Returns the total as one item of ``totals`` in a JSON result."""
        return {**asdict(self), "ratio": self.ratio}


def totals_of(runs: Sequence[TimedRun]) -> list[Total]:
    """Returns the total of every schedule, in order."""
    results: dict[str, list[LayerResult]] = {}
    for run in runs:
        results.setdefault(run.schedule, []).append(run.result)
    return [
        Total(schedule, len(each), sum(one.makespan_us for one in each), sum(one.lower_bound_us for one in each))
        for schedule, each in results.items()
    ]


def hardware_of(runs: Iterable[TimedRun]) -> dict[str, str]:
    """Returns the hardware that each schedule needed; of several layers that take different plans, any of them."""
    found: dict[str, set[str]] = {}
    for run in runs:
        found.setdefault(run.schedule, set()).add(run.hardware)
    return {schedule: ", ".join(sorted(needs)) for schedule, needs in found.items()}


def run_timed(
    scenario: Scenario, workload: Workload, contender: Contender, *, resolution: str = "token", logging: bool = False
) -> TimedRun:
    """Returns ``workload`` as the first of a name plays it; ``logging`` keeps what timelines and pictures are made of.

    Raises:
        ConfigError: The schedule beneath does not fit the scenario's system.
    """
    start_s, scale = time.perf_counter(), scenario.spec.compute_scale
    problem = Problem.of(scenario.system, workload, compute_scale=scale, resolution=resolution)
    run = contender.first.run(problem, logging=logging)
    wall_s = time.perf_counter() - start_s
    return TimedRun(contender.name, run, run.result(family=True), wall_s, problem.binds)


def notes(contenders: Sequence[Contender], runs: Iterable[tuple[str, LayerRun]]) -> list[str]:
    """Returns lines on who played, of several seeds or variants, under the names of contenders and of runs."""
    found = []
    for contender in contenders:
        if len(contender.opponents) > 1:
            seeds = ", ".join(str(opponent.seed) for opponent in contender.opponents)
            found.append(f"{contender.name}: seed {contender.first.seed}, the first of {seeds}")
    return found + [
        f"{name}: {described(run.variant)}, the fastest of its variants" for name, run in runs if run.variant
    ]


def picture_title(names: Sequence[str], run: LayerRun) -> str:
    """Returns the title of a picture or page of layers on one machine: who runs what, and where."""
    who = " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
    if len(names) > _MOST_NAMES:
        who = f"{len(names)} schedules"
    workload = run.routed
    tokens = _tokens(workload)
    return f"{who} on {workload.layer.name}, {workload.num_gpus} GPUs of {run.system.name}, {tokens} tokens per GPU"


def layer_title(workload: Workload, system: str) -> str:
    """Returns the machine and the layer of a workload in one line for people."""
    return f"{_size(workload, system)}, {workload.name}"


def layers_title(workloads: Sequence[Workload], system: str) -> str:
    """Returns the same of one workload, or of several layers of one model."""
    first = workloads[0]
    if len(workloads) == 1:
        return layer_title(first, system)
    numbers = ",".join(str(workload.layer_index) for workload in workloads)
    return f"{_size(first, system)}, {first.name.replace(f'layer={first.layer_index} ', f'layers={numbers} ')}"


def scenario_title(scenario: Scenario, *left_out: str) -> str:
    """Returns the machine, the layer and the routing of a scenario, which may be drawn several times, in one line.

    Args:
        scenario: What is described.
        left_out: ``tokens``, ``gpus`` or ``model``: what differs and is told elsewhere.
    """
    layer, spec = scenario.layer, scenario.spec
    model = [] if "model" in left_out else [f"{layer.name}, top-{layer.top_k} of {layer.experts} experts"]
    tokens = [] if "tokens" in left_out else [f"{spec.tokens} tokens per GPU"]
    gpus = "GPUs" if "gpus" in left_out else f"{scenario.system.num_gpus} GPUs"
    return f"{gpus} of {scenario.system.name}: {', '.join([*model, *tokens, spec.routing])}"


def sweep_title(scenarios: Sequence[Scenario], key: str) -> str:
    """Returns what the scenarios of a sweep have in common, in one line."""
    return scenario_title(scenarios[0], key)


def _size(workload: Workload, system: str) -> str:
    layer = workload.layer
    what = f"{layer.name}, top-{layer.top_k} of {layer.experts} experts, {_tokens(workload)} tokens per GPU"
    return f"{workload.num_gpus} GPUs of {system}: {what}"


def _tokens(workload: Workload) -> str:
    """Returns how many tokens GPUs have, from the fewest to the most."""
    least, most = int(workload.tokens_of_gpu.min()), workload.most_tokens
    return f"{most}" if least == most else f"{least} to {most}"
