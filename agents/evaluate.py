"""``python -m agents.evaluate``: compares schedules, trained runs and random choices on one suite of workloads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from agents.evaluation import Contender, evaluate, json_content, read_contender, summarise
from agents.lookahead import LookAhead
from agents.recording import check_folder, write_rows
from agents.report import plot_summary, summary_table
from dysharp_env.commands import CommandParser, run_main
from dysharp_env.commands.options import add_json_option
from dysharp_env.commands.output import STANDARD_OUTPUT, check_targets, json_document, results_console, write_json
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.report.files import write_bytes
from dysharp_env.workload.suite import load_suite


def build_parser() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    parser = CommandParser(prog="python -m agents.evaluate", description=__doc__)
    suites = ", ".join(preset_names("suites"))
    parser.add_argument(
        "--suite", default="demo-heldout", metavar="NAME", help=f"a preset ({suites}) or a .yaml (default: %(default)s)"
    )
    parser.add_argument(
        "--policy",
        action="append",
        required=True,
        metavar="NAME",
        help="random, first, a schedule's name or .yaml, look-ahead:SCHEDULE, or a run folder; RUN,RUN,... are training"
        " seeds of one policy; repeatable",
    )
    parser.add_argument(
        "--rollouts",
        type=int,
        default=LookAhead.rollouts,
        metavar="N",
        help="simulations that look-ahead may spend on a workload (default: %(default)s)",
    )
    parser.add_argument(
        "--against", default="dysharp", metavar="NAME", help="what ratios are relative to (default: %(default)s)"
    )
    parser.add_argument(
        "--seeds-of-random", type=int, default=3, metavar="N", help="times random is played (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random and intervals (default: %(default)s)")
    add_json_option(parser)
    parser.add_argument("--plot", metavar="FILE.png", help="draw the ratios of every workload")
    parser.add_argument(
        "--decisions", metavar="DIR", help="store the decisions of every row, for python -m agents.check"
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Evaluates as the options say and prints the table."""
    if args.seed < 0:
        raise ConfigError(f"seed={args.seed} must not be negative")
    if args.seeds_of_random < 1:
        raise ConfigError(f"seeds-of-random={args.seeds_of_random} must be at least 1")
    if args.rollouts < 1:
        raise ConfigError(f"rollouts={args.rollouts} must be at least 1")
    check_targets(("json", args.json, None), ("plot", args.plot, ".png"))
    check_folder("decisions", args.decisions)
    suite = load_suite(args.suite)
    contenders = [read_contender(given, args.rollouts) for given in args.policy]
    reference = read_contender(args.against, args.rollouts)
    rows = evaluate(suite, contenders, reference, random_seeds=args.seeds_of_random, seed=args.seed)
    summaries = summarise(rows, reference.name, args.seed)
    if args.json:
        config = {
            "suite": suite.model_dump(mode="json"),
            "policies": [_described(contender) for contender in contenders],
            "against": args.against,
            "seeds_of_random": args.seeds_of_random,
            "rollouts": args.rollouts,
        }
        write_json(args.json, json_document("evaluate", args.seed, config, **json_content(rows, summaries)))
    if args.plot:
        write_bytes(args.plot, plot_summary(rows, reference.name, suite.name))
    if args.decisions:
        write_rows(args.decisions, rows, [*contenders, reference], suite.draw())
    if args.json != STANDARD_OUTPUT:
        results_console().print(summary_table(summaries, suite.name))
    return 0


def _described(contender: Contender) -> dict[str, object]:
    return {
        "name": contender.name,
        "schedule": contender.given if contender.schedule or contender.ahead else None,
        "runs": [str(run.path) for run in contender.runs],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_main(build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
