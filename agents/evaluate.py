"""``python -m agents.evaluate``: compares schedules, trained runs and random choices on one suite of workloads."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from agents.evaluation.breakdown import GROUPINGS, break_down, breakdown_content, breakdown_table, read_groupings
from agents.evaluation.charging import MOST_DECISION_US, charge, charged_rows
from agents.evaluation.recording import check_folder, write_rows
from agents.evaluation.report import plot_summary, summary_table
from agents.evaluation.table import evaluate, json_content, summarise, with_references
from agents.opponents.contender import POLICY_HELP, Contender, add_rollouts_option, read_contender
from dysharp_env.commands import CommandParser, run_main
from dysharp_env.commands.options import add_json_option
from dysharp_env.commands.output import STANDARD_OUTPUT, check_targets, json_document, results_console, write_json
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.report.files import write_bytes
from dysharp_env.simulator.layout import DECISION_KINDS
from dysharp_env.workload.suite import load_suite

AGAINST = "dysharp"


def build_parser() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    parser = CommandParser(prog="python -m agents.evaluate", description=__doc__)
    suites = ", ".join(preset_names("suites"))
    parser.add_argument(
        "--suite", default="demo-heldout", metavar="NAME", help=f"a preset ({suites}) or a .yaml (default: %(default)s)"
    )
    parser.add_argument("--policy", action="append", required=True, metavar="NAME", help=POLICY_HELP)
    add_rollouts_option(parser)
    parser.add_argument(
        "--against",
        action="append",
        metavar="NAME",
        help=f"what ratios are relative to; repeatable, with a table each (default: {AGAINST})",
    )
    parser.add_argument(
        "--by",
        action="append",
        default=[],
        metavar="NAME",
        help=f"also show groups of workloads: {', '.join(GROUPINGS)} (machine and model occur in suite wide);"
        " repeatable, or joined by commas",
    )
    parser.add_argument(
        "--decision-us",
        type=float,
        metavar="X",
        help="also show makespans with X microseconds for every decision of the GPU that is asked most, as if the whole"
        " machine waited for each (python -m agents.latency estimates X); a schedule's own rule is not charged",
    )
    parser.add_argument(
        "--charged",
        default=",".join(DECISION_KINDS),
        metavar="KIND,...",
        help="kinds of decision that take that time; leave out those that the schedule beneath decides by a rule of its"
        " own that costs as much (default: %(default)s)",
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
    started = time.process_time()
    if args.seed < 0:
        raise ConfigError(f"seed={args.seed} must not be negative")
    if args.seeds_of_random < 1:
        raise ConfigError(f"seeds-of-random={args.seeds_of_random} must be at least 1")
    if args.rollouts < 1:
        raise ConfigError(f"rollouts={args.rollouts} must be at least 1")
    check_targets(("json", args.json, None), ("plot", args.plot, ".png"))
    check_folder("decisions", args.decisions)
    if args.decision_us is not None and not 0 < args.decision_us <= MOST_DECISION_US:
        raise ConfigError(f"decision-us={args.decision_us:g} must be above 0 and at most {MOST_DECISION_US:g}")
    kinds = args.charged.split(",")
    if unknown := [kind for kind in kinds if kind not in DECISION_KINDS]:
        raise ConfigError(f"charged={unknown[0]} is no kind of decision; choose from {', '.join(DECISION_KINDS)}")
    groupings = read_groupings(args.by)
    suite = load_suite(args.suite)
    contenders = [read_contender(given, args.rollouts) for given in args.policy]
    given_references = list(dict.fromkeys(args.against or [AGAINST]))
    references = [read_contender(given, args.rollouts) for given in given_references]
    rows = evaluate(suite, contenders, *references, random_seeds=args.seeds_of_random, seed=args.seed)
    workloads, everyone = suite.draw(), with_references(contenders, references)
    if args.decision_us is not None:
        rows = charge(rows, everyone, workloads, args.decision_us, kinds)
    names = list(dict.fromkeys(reference.name for reference in references))
    summaries = [summarise(rows, name, args.seed) for name in names]
    charged = [summarise(charged_rows(rows), name, args.seed) for name in names if args.decision_us is not None]
    groups = [break_down(rows, name, by, workloads, args.seed) for name in names for by in groupings]
    if args.json:
        config = {
            "suite": suite.model_dump(mode="json"),
            "policies": [_described(contender) for contender in contenders],
            "against": given_references,
            "seeds_of_random": args.seeds_of_random,
            "rollouts": args.rollouts,
            "decision_us": args.decision_us,
            "charged": kinds,
        }
        content = json_content(rows, sum(summaries, []), sum(charged, []), breakdown_content(sum(groups, [])))
        write_json(args.json, json_document("evaluate", args.seed, config, **content))
    if args.plot:
        write_bytes(args.plot, plot_summary(rows, names[0], suite.name))
    if args.decisions:
        write_rows(args.decisions, rows, everyone, workloads)
    if args.json != STANDARD_OUTPUT:
        console = results_console()
        for summary in summaries:
            console.print(summary_table(summary, suite.name))
        for summary in charged:
            console.print(summary_table(summary, suite.name, f", {args.decision_us:g} us for {args.charged}"))
        for group in filter(None, groups):
            console.print(breakdown_table(group))
        console.print(f"{time.process_time() - started:.0f} CPU seconds")
    return 0


def _described(contender: Contender) -> dict[str, object]:
    return {
        "name": contender.name,
        "schedule": contender.given if contender.schedule or contender.ahead else None,
        "rule": contender.given if contender.rule else None,
        "runs": [str(run.path) for run in contender.runs],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_main(build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
