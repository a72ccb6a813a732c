"""``python -m agents.evaluate``: compares schedules, trained runs and random choices on one suite of workloads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from dysharp_env.commands.options import open_workers
from dysharp_env.commands.output import PICTURES, check_folder, json_document
from dysharp_env.commands.progress import track
from dysharp_env.config import ConfigError
from dysharp_env.report.drawing import write_figure
from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender, Played
from dysharp_env.simulator.state.observation import DECISION_KINDS
from dysharp_env.workload.suite import SuiteWorkload, load_suite

from .evaluation.breakdown import GROUPINGS, GroupResult, break_down, breakdown_table, read_groupings
from .evaluation.charging import MOST_DECISION_US, charge, charged_rows
from .evaluation.recording import write_rows
from .evaluation.report import plot_summary, summary_table
from .evaluation.table import Summary, evaluate, json_content, summarise, with_references, with_renamings
from .kit import Command, check_options, command_words, deliver, entry
from .opponents.read import read_contenders, run_folders

AGAINST = "dysharp"


def build() -> Command:
    """Returns the options of the command."""
    command = Command("evaluate", __doc__, run).add_suite("demo-heldout").add_policies(required=True)
    command.add(
        "--against",
        action="append",
        metavar="NAME",
        help=f"what ratios are relative to; repeatable, with a table each (default: {AGAINST})",
    )
    command.add(
        "--by",
        action="append",
        default=[],
        metavar="NAME",
        help=f"also show groups of workloads: {', '.join(GROUPINGS)} (machine and model occur in suite training);"
        " repeatable, or joined by commas",
    )
    command.add(
        "--decision-us",
        type=float,
        metavar="X",
        help="also show makespans with X microseconds for every decision of the GPU that is asked most, as if the whole"
        " machine waited for each (python -m agents.latency estimates X); a schedule's own rule is not charged",
    )
    command.add(
        "--charged",
        default=",".join(DECISION_KINDS),
        metavar="KIND,...",
        help="kinds of decision that take that time; leave out those that the schedule beneath decides by a rule of its"
        " own that costs as much",
    )
    text = "play every workload under so many numberings of its GPUs, the first its own; ratios are means over them"
    command.add("--renamings", type=int, default=4, metavar="N", help=text)
    command.add("--seeds-of-random", type=int, default=3, metavar="N", help="times random is played")
    command.add_seed("random and intervals").add_json()
    command.add("--plot", metavar="FILE.png", help="draw the ratios of every workload; or .svg, .pdf")
    text = "store the decisions of every row, for python -m agents.check"
    command.add_workers().add_report()
    return command.add("--decisions", metavar="DIR", help=text)


def run(args: argparse.Namespace) -> int:
    """Evaluates as the options say and prints the table."""
    check_options(args, ("plot", args.plot, PICTURES))
    check_folder("decisions", args.decisions)
    workers = open_workers(args)
    kinds, groupings = _charged_kinds(args), read_groupings(args.by)
    suite = load_suite(args.suite)
    against = list(dict.fromkeys(args.against or [AGAINST]))
    seeds = range(args.seed, args.seed + args.seeds_of_random)
    everyone = read_contenders([*args.policy, *against], rollouts=args.rollouts, seeds=seeds)
    contenders, references = everyone[: len(args.policy)], everyone[len(args.policy) :]
    items = suite.draw()
    problems = with_renamings(Problem.of_suite(items), args.renamings)
    with workers, track("evaluates", 1.0) as shown:
        rows = evaluate(problems, contenders, *references, workers=workers, tell=shown.at)
    played = with_references(contenders, references)
    if args.decision_us is not None:
        rows = charge(rows, played, problems, args.decision_us, kinds)
    names = list(dict.fromkeys(reference.name for reference in references))
    summaries = [summarise(rows, name, args.seed) for name in names]
    charged = [summarise(charged_rows(rows), name, args.seed) for name in names if args.decision_us is not None]
    groups = [break_down(rows, name, by, items, args.seed) for name in names for by in groupings]
    if args.plot:
        write_figure(args.plot, plot_summary(rows, names[0], suite.name))
    if args.decisions:
        write_rows(args.decisions, rows, played, items, problems)
    config = {
        "suite": suite.model_dump(mode="json"),
        "policies": [_described(contender) for contender in contenders],
        "against": against,
        "seeds_of_random": args.seeds_of_random,
        "rollouts": args.rollouts,
        "renamings": args.renamings,
        "decision_us": args.decision_us,
        "charged": kinds,
    }
    note = f", {args.decision_us:g} us for {args.charged}" if charged else ""
    tables = [summary_table(summary, suite.name) for summary in summaries]
    tables += [summary_table(summary, suite.name, note) for summary in charged]
    tables += [breakdown_table(group) for group in groups if group]
    content = json_content(rows, sum(summaries, []), sum(charged, []), sum(groups, []))
    if args.report:
        _write_page(args, config, content, rows, summaries, charged, groups, items)
    deliver(args, config, content, *tables, timed=True, elsewhere_s=workers.elsewhere_s)
    return 0


def _write_page(
    args: argparse.Namespace,
    config: dict[str, Any],
    content: dict[str, Any],
    rows: Sequence[Played],
    summaries: Sequence[Sequence[Summary]],
    charged: Sequence[Sequence[Summary]],
    groups: Sequence[Sequence[GroupResult]],
    items: Sequence[SuiteWorkload],
) -> None:
    """Writes the page, which shows workloads by what binds them whatever groups were asked for."""
    from dysharp_env.report.page.write import write_page

    from .evaluation.page import BINDS, evaluation_page

    shown = [group for group in groups if group]
    if not any(group[0].by == BINDS for group in shown):
        by_name = {
            summary[0].against: break_down(rows, summary[0].against, BINDS, items, args.seed) for summary in summaries
        }
        shown = [*(group for group in by_name.values() if group), *shown]
    document = json_document("evaluate", args.seed, config, **content)
    write_page(args.report, evaluation_page(command_words(args), document, rows, summaries, charged, shown))


def _charged_kinds(args: argparse.Namespace) -> list[str]:
    """Returns the kinds of decision that ``--decision-us`` is charged for.

    Raises:
        ConfigError: There is no such kind, or they take no time that a decision could take.
    """
    if args.decision_us is not None and not 0 < args.decision_us <= MOST_DECISION_US:
        raise ConfigError(f"decision-us={args.decision_us:g} must be above 0 and at most {MOST_DECISION_US:g}")
    kinds: list[str] = args.charged.split(",")
    if unknown := [kind for kind in kinds if kind not in DECISION_KINDS]:
        raise ConfigError(f"charged={unknown[0]} is no kind of decision; choose from {', '.join(DECISION_KINDS)}")
    return kinds


def _described(contender: Contender) -> dict[str, object]:
    """Returns a contender's entry in the JSON: its name, and under its sort how it was given."""
    by_sort = {sort: contender.given if contender.sort == sort else None for sort in ("schedule", "rule")}
    return {"name": contender.name, **by_sort, "runs": [str(path) for path in run_folders(contender)]}


main = entry(build, __name__)
