"""``python -m agents.search``: tunes a linear rule and settings on a suite by CMA-ES, and writes a schedule."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dysharp_env.commands.options import MOST_MINUTES, open_workers
from dysharp_env.commands.output import results_console
from dysharp_env.commands.progress import track
from dysharp_env.config import ConfigError
from dysharp_env.files import write_text
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.schedules.writing import as_yaml
from dysharp_env.workload.suite import load_suite

from .kit import Command, check_options, entry
from .training.cma_search import Budget, Found, search

_STARTS = ("dysharp-l2", "dysharp-waves")


def build() -> Command:
    """Returns the options of the command."""
    command = Command("search", __doc__, run).add_suite()
    command.add("--out", required=True, metavar="FILE.yaml", help="the schedule that is written")
    command.add("--name", default="dysharp-order", metavar="NAME", help="its name")
    command.add(
        "--start",
        action="append",
        metavar="NAME",
        help="a schedule to begin at; each gets an equal share of the budget and the best end is written;"
        f" repeatable (default: {' and '.join(_STARTS)})",
    )
    command.add("--against", default="dysharp", metavar="NAME", help="what ratios are relative to")
    command.add("--episodes", type=int, default=40_000, metavar="N", help="layers to play in all")
    command.add("--cpu-seconds", type=float, default=3600.0, metavar="S", help="end earlier after these")
    command.add("--batch", type=int, default=12, metavar="N", help="workloads that compare a generation")
    command.add_workers()
    return command.add_seed("the search").add_quiet("no line at each measurement")


def run(args: argparse.Namespace) -> int:
    """Searches as the options say and writes the schedule."""
    check_options(args, ("out", args.out, ".yaml"))
    most_s = 60 * MOST_MINUTES
    if not 0 < args.cpu_seconds <= most_s:
        raise ConfigError(f"cpu-seconds={args.cpu_seconds:g} must be above 0 and at most {most_s:g}, 30 days")
    workers = open_workers(args)
    starts = [load_schedule(name) for name in args.start or _STARTS]
    reference = load_schedule(args.against)
    problems = Problem.of_suite(load_suite(args.suite).draw())
    budget = Budget(max(1, args.episodes // len(starts)), args.cpu_seconds / len(starts))
    ends = []
    with workers, track("searches", len(starts), quiet=args.quiet) as shown:
        for place, start in enumerate(starts):

            def tell(part: float, line: str, place: int = place, start: str = start.name) -> None:
                shown.at(place + part, line, f"from {start}, {line}")

            how = {"name": args.name, "seed": args.seed, "batch": args.batch}
            ends.append(search(start, problems, reference, budget, **how, workers=workers, tell=tell))
    best = min(ends, key=lambda found: found.ratio)
    write_text(args.out, _document(args, best, ends))
    results_console().print(
        f"{args.name}: {best.ratio:.4f} times {reference.name} on suite {args.suite}, from {best.start_ratio:.4f};"
        f" {sum(found.episodes for found in ends)} episodes, {sum(found.cpu_s for found in ends):.0f} CPU s",
        highlight=False,
    )
    return 0


def _document(args: argparse.Namespace, best: Found, ends: Sequence[Found]) -> str:
    """Returns the schedule's YAML with a header that says what made it."""
    starts = " ".join(f"--start {name}" for name in args.start or _STARTS)
    episodes = sum(found.episodes for found in ends)
    lines = [
        "A rule tuned by CMA-ES: its weights, SM groups, chunk size and early closing of tiles. Made by",
        f"  python -m agents.search --suite {args.suite} --name {args.name} {starts} --episodes {args.episodes}"
        f" --batch {args.batch} --seed {args.seed} --out FILE",
        f"in {episodes} episodes and {sum(found.cpu_s for found in ends):.0f} CPU seconds: geometric mean of makespan"
        f" over {args.against} {best.ratio:.4f}",
        f"on that suite, {best.start_ratio:.4f} where it began.",
    ]
    found = f"DySHARP with the order of tokens, tiles and sums, and settings, found by search on suite {args.suite}."
    return as_yaml(best.schedule.with_changes({"description": found}), lines)


main = entry(build, __name__)
