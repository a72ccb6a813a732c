"""``python -m agents.search``: tunes a linear rule and settings on a suite by CMA-ES, and writes a schedule."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import yaml

from agents.opponents.rollouts import prepare
from agents.training.cma_search import Budget, Found, search
from dysharp_env.commands import CommandParser, run_main
from dysharp_env.commands.output import check_targets, results_console
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.report.files import write_text
from dysharp_env.schedules import load_schedule
from dysharp_env.simulator.warmup import notice
from dysharp_env.workload.suite import load_suite

_WIDTH = 120


def build_parser() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    parser = CommandParser(prog="python -m agents.search", description=__doc__)
    suites = ", ".join(preset_names("suites"))
    parser.add_argument("--suite", required=True, metavar="NAME", help=f"a preset ({suites}) or a .yaml")
    parser.add_argument("--out", required=True, metavar="FILE.yaml", help="the schedule that is written")
    parser.add_argument("--name", default="dysharp-tuned", metavar="NAME", help="its name (default: %(default)s)")
    parser.add_argument(
        "--start",
        action="append",
        metavar="NAME",
        help="a schedule to begin at; each gets an equal share of the budget and the best end is written;"
        " repeatable (default: dysharp-l2 and dysharp-waves)",
    )
    parser.add_argument(
        "--against", default="dysharp", metavar="NAME", help="what ratios are relative to (default: %(default)s)"
    )
    parser.add_argument(
        "--episodes", type=int, default=40_000, metavar="N", help="layers to play in all (default: %(default)s)"
    )
    parser.add_argument(
        "--cpu-seconds", type=float, default=3600.0, metavar="S", help="end earlier after these (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=12, metavar="N", help="workloads that compare a generation (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the search (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no line at each measurement")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Searches as the options say and writes the schedule."""
    for option, value, least in (("episodes", args.episodes, 1), ("batch", args.batch, 1), ("seed", args.seed, 0)):
        if value < least:
            raise ConfigError(f"{option}={value} must be at least {least}")
    if not args.cpu_seconds > 0:
        raise ConfigError(f"cpu-seconds={args.cpu_seconds} must be above 0")
    check_targets(("out", args.out, ".yaml"))
    starts = [load_schedule(name) for name in args.start or ("dysharp-l2", "dysharp-waves")]
    reference = load_schedule(args.against)
    workloads = prepare(load_suite(args.suite).draw())
    budget = Budget(max(1, args.episodes // len(starts)), args.cpu_seconds / len(starts))
    ends = []
    for start in starts:
        tell = _silent if args.quiet else partial(_tell, start.name)
        ends.append(
            search(start, workloads, reference, budget, name=args.name, seed=args.seed, batch=args.batch, tell=tell)
        )
    best = min(ends, key=lambda found: found.ratio)
    write_text(args.out, _document(args, best, ends))
    results_console().print(
        f"{args.name}: {best.ratio:.4f} times {reference.name} on suite {args.suite}, from {best.start_ratio:.4f};"
        f" {sum(found.episodes for found in ends)} episodes, {sum(found.cpu_s for found in ends):.0f} CPU s",
        highlight=False,
    )
    return 0


def _tell(start: str, line: str) -> None:
    notice(f"from {start}, {line}")


def _silent(line: str) -> None:
    """Says nothing."""


def _document(args: argparse.Namespace, best: Found, ends: Sequence[Found]) -> str:
    """Returns the schedule's YAML with a header that says what made it."""
    starts = " ".join(f"--start {name}" for name in args.start or ("dysharp-l2", "dysharp-waves"))
    episodes = sum(found.episodes for found in ends)
    lines = [
        "A rule tuned by CMA-ES: its weights, SM groups, chunk size and early closing of tiles. Made by",
        f"  python -m agents.search --suite {args.suite} --name {args.name} {starts} --episodes {args.episodes}"
        f" --batch {args.batch} --seed {args.seed} --out FILE",
        f"in {episodes} episodes and {sum(found.cpu_s for found in ends):.0f} CPU seconds: geometric mean of makespan"
        f" over {args.against} {best.ratio:.4f}",
        f"on that suite, {best.start_ratio:.4f} where it began.",
    ]
    written = best.schedule.model_dump(mode="json", exclude_defaults=True)
    written["description"] = f"DySHARP with a rule and settings tuned on suite {args.suite}."
    body = yaml.safe_dump(written, sort_keys=False, width=_WIDTH, default_flow_style=None)
    return "".join(f"# {line}\n" for line in lines) + body


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_main(build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
