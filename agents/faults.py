"""``python -m agents.faults``: what each fault of a machine costs every schedule and agent.

All play the same layers on machines of which one thing is wrong, and are compared with themselves on a sound one.
Nobody is trained or tuned for a fault, nor told of it; whoever chooses between plans or variants chooses anew.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from dysharp_env.commands.options import open_workers
from dysharp_env.commands.progress import track
from dysharp_env.config import ConfigError, parse_spec, preset_names
from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender
from dysharp_env.validation import symmetries
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.suite import load_suite

from .evaluation.report import plain_table
from .kit import Command, check_options, deliver, entry
from .opponents.read import read_contenders
from .policies.card import REFERENCE

BOUND = "lower bound"
NONE = "none"
# Memory, links and software bind the first, links and arithmetic the last two; all have 8 GPUs.
LAYERS = (
    *symmetries.LAYERS,
    ScenarioSpec(system="dgx-h800", model="small", tokens=384, routing="power-law:0.5"),
    ScenarioSpec(system="dgx-h20", model="olmoe", tokens=192, routing="power-law:1.0"),
)
# What is wrong, as options of a scenario; a fault that a machine's description can have is a preset of its own.
FAULTS: dict[str, dict[str, Any]] = {
    "slow-gpu": {"slow_gpu": 1.25},
    **{name: {"faults": name} for name in preset_names("faults")},
    "hot-expert": {"hot_expert": 0.5, "hot_from": 0.5},
    "no-dynamic-multimem": {"hardware": "today"},
}


@dataclass(frozen=True)
class Cost:
    """What faults cost one contender.

    Attributes:
        name: A schedule, an agent, or ``BOUND`` for what bounds everybody.
        ratios: By fault, makespan over its own on a sound machine, the geometric mean over layers and training seeds;
            None where a machine with the fault cannot run it.
    """

    name: str
    ratios: dict[str, float | None]


def problems_of(layers: Sequence[ScenarioSpec], seeds: int, changes: dict[str, Any]) -> list[Problem]:
    """Returns layers on machines with a fault, so many workloads of each.

    Raises:
        ConfigError: A machine cannot have the fault.
    """
    problems = []
    for layer in layers:
        scenario = parse_spec(ScenarioSpec, {**layer.model_dump(), **changes}, source="faults").build()
        drawn = map(scenario.draw, range(seeds))
        scale = scenario.spec.compute_scale
        problems += [Problem.of(scenario.system, workload, compute_scale=scale) for workload in drawn]
    return problems


def cost_of(contender: Contender, problems: dict[str, list[Problem]]) -> Cost:
    """Returns what faults cost a contender, by the problems with each and with ``NONE``."""
    sound = _makespans(contender, problems[NONE])
    assert sound is not None, "sound machines run every schedule that ships"
    ratios: dict[str, float | None] = {}
    for name in FAULTS:
        times = _makespans(contender, problems[name])
        ratios[name] = None if times is None else geometric_mean_of(times / sound)
    return Cost(contender.name, ratios)


def _makespans(contender: Contender, problems: Sequence[Problem]) -> np.ndarray | None:
    """Returns (seed, problem) makespans, or None if a machine lacks what the contender needs."""
    try:
        runs = [
            [opponent.run(problem, place) for place, problem in enumerate(problems)] for opponent in contender.opponents
        ]
    except ConfigError:
        return None
    return np.array([[run.engine.now_ps for run in each] for each in runs], float)


def geometric_mean_of(ratios: np.ndarray) -> float:
    """Returns the geometric mean of ratios of any shape."""
    return float(np.exp(np.mean(np.log(ratios))))


def cost_of_bound(problems: dict[str, list[Problem]]) -> Cost:
    """Returns how faults move the lower bounds."""
    bounds = {name: np.array([each.bound.total_ps for each in found]) for name, found in problems.items()}
    return Cost(BOUND, {name: geometric_mean_of(bounds[name] / bounds[NONE]) for name in FAULTS})


def table(costs: Sequence[Cost]) -> Table:
    """Returns a line for each contender, a column for each fault."""
    shown = plain_table("Makespan over its own on a sound machine, geometric means", "-: such a machine cannot run it")
    shown.add_column("schedule")
    for fault in costs[0].ratios:
        shown.add_column(fault, justify="right", overflow="fold")
    for cost in costs:
        shown.add_row(Text(cost.name), *map(cell, cost.ratios.values()))
    return shown


def cell(ratio: float | None) -> str:
    """Returns a ratio as tables show it."""
    return "-" if ratio is None else f"{ratio:.2f}"


def build() -> Command:
    """Returns the options of the command."""
    command = Command("faults", __doc__, run)
    command.add_policies(note=" (default: every shipped schedule, and reference)")
    command.add_suite(what="layers in place of those of the guide's table", required=False)
    command.add("--workloads", type=int, default=2, metavar="N", help="workloads drawn of each layer")
    return command.add_workers().add_json()


def run(args: argparse.Namespace) -> int:
    """Plays as the options say and prints the table."""
    check_options(args)
    workers = open_workers(args)
    given = args.policy or [*preset_names("schedules"), REFERENCE]
    contenders = read_contenders(given, rollouts=args.rollouts)
    layers: Sequence[ScenarioSpec] = LAYERS
    if args.suite:
        layers = [ScenarioSpec(**each.scenario_fields()) for each in load_suite(args.suite).workloads]
    problems = {name: problems_of(layers, args.workloads, FAULTS.get(name, {})) for name in (NONE, *FAULTS)}
    with workers, track("plays", len(contenders)) as shown:

        def tell(done: int, place: int, cost: Cost) -> None:
            shown.at(done, cost.name, f"{cost.name}: {', '.join(map(cell, cost.ratios.values()))}")

        costs = [cost_of_bound(problems), *workers.map(partial(cost_of, problems=problems), contenders, tell=tell)]
    config = {
        "layers": [layer.model_dump(mode="json") for layer in layers],
        "workloads": args.workloads,
        "policies": given,
        "faults": FAULTS,
    }
    deliver(args, config, {"rows": [asdict(cost) for cost in costs]}, table(costs), timed=True)
    return 0


main = entry(build, __name__)
