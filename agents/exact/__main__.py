"""``python -m agents.exact``: proved optima of tiny layers beside the lower bound and what policies reach.

The layers run on the stripped machine of tiny.py, where OR-Tools' CP-SAT can state every timing rule exactly
(model.py). Every schedule played is checked to be a solution of the same model, to the picosecond, and the optimum is
played in the twin to see whether it can be reached.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
from rich.table import Table
from rich.text import Text

from dysharp_env.commands.progress import track
from dysharp_env.config import ConfigError

from ..kit import Command, check_options, deliver, entry
from ..opponents.read import read_contenders
from .model import require_solver
from .results import INSTANCES, ExactResult, result_of

POLICIES = ("dysharp", "dysharp-order", "look-ahead:dysharp-order")


def build() -> Command:
    """Returns the options of the command."""
    command = Command("exact", __doc__, run)
    command.add(
        "--policy",
        action="append",
        metavar="NAME",
        help="a schedule's name or .yaml, look-ahead:SCHEDULE, random, first, or a run folder; repeatable"
        f" (default: {', '.join(POLICIES)})",
    )
    text = "most work on one instance, in the solver's deterministic seconds"
    command.add("--effort", type=float, default=10.0, metavar="S", help=text)
    return command.add(
        "--instances", type=int, default=len(INSTANCES), metavar="N", help="solve the first N"
    ).add_json()


def run(args: argparse.Namespace) -> int:
    """Solves, plays, and prints the table."""
    if not 0 < args.effort <= 1e6:
        raise ConfigError(f"effort={args.effort:g} must be above 0 and at most 1e6")
    if not 1 <= args.instances <= len(INSTANCES):
        raise ConfigError(f"instances={args.instances} must be 1 to {len(INSTANCES)}")
    check_options(args)
    require_solver()
    given = args.policy or list(POLICIES)
    contenders = read_contenders(given, seeds=range(1))
    results: list[ExactResult] = []
    with track("solves", args.instances) as shown:
        for instance in INSTANCES[: args.instances]:
            results.append(result_of(instance, contenders, args.effort))
            shown.at(len(results), instance.name)
    config = {"policies": given, "effort": args.effort}
    deliver(args, config, {"rows": [asdict(result) for result in results]}, exact_table(results))
    return 0


def exact_table(results: Sequence[ExactResult]) -> Table:
    """Returns one line per instance, with the gap of every policy, and the mean gaps."""
    labels = [row.policy if row.seed is None else f"{row.policy} ({row.seed})" for row in results[0].rows]
    table = Table(
        title=Text(f"{len(results)} tiny layers on the stripped machine: makespans over the optimum", "bold"),
        title_justify="left",
        caption="proved: nothing is faster; played: the twin reaches the optimum to the picosecond",
        caption_justify="left",
    )
    table.add_column("layer")
    for column in ("optimum us", "proved", "played", "lower bound", *labels):
        table.add_column(Text(column), justify="right")
    for result in results:
        table.add_row(
            result.instance,
            f"{result.optimum_us:.3f}",
            "yes" if result.is_proved else f">= {result.proved_us:.3f}",
            "yes" if result.is_played else "no",
            f"{result.lower_bound_us / result.optimum_us - 1:+.1%}",
            *(f"{row.gap:+.1%}" for row in result.rows),
        )
    bounds = [result.lower_bound_us / result.optimum_us - 1 for result in results]
    gaps = np.array([[row.gap for row in result.rows] for result in results]).mean(axis=0)
    table.add_row("mean", "", "", "", f"{np.mean(bounds):+.1%}", *(f"{gap:+.1%}" for gap in gaps))
    return table


main = entry(build, __name__)
