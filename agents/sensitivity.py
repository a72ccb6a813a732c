"""``python -m agents.sensitivity``: whether policies keep their order when what the model is unsure of is different.

Every constant is changed alone, on all machines of a suite; all policies play the same workloads there. A policy is not
trained again for a changed machine, nor a rule tuned: what is asked is how far results of one model can be trusted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from agents.evaluation.statistics import geometric_mean
from agents.evaluation.table import evaluate_on, makespans, summarise, with_references
from agents.evaluation.variations import VARIATIONS, Variation, read_variations
from agents.opponents.contender import POLICY_HELP, Contender, add_rollouts_option, read_contender
from agents.opponents.play import FIRST, RANDOM
from dysharp_env.commands import CommandParser, run_main
from dysharp_env.commands.options import add_json_option
from dysharp_env.commands.output import STANDARD_OUTPUT, check_targets, json_document, results_console, write_json
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.simulator.warmup import notice
from dysharp_env.workload.suite import SuiteWorkload, load_suite


@dataclass(frozen=True)
class Ranking:
    """All policies under one variation.

    Attributes:
        variation: Its name.
        order: The policies, fastest first.
        ratios: Of each policy by name, geometric mean of makespan over the reference's, and its 95 % interval.
        clear: Pairs of which the first is faster than the second by more than the 95 % interval of their ratio.
    """

    variation: str
    order: list[str]
    ratios: dict[str, tuple[float, float, float]]
    clear: frozenset[tuple[str, str]]

    def swaps(self, base: Ranking) -> list[tuple[str, str]]:
        """Returns the pairs that change places, the one that is now faster first."""
        place = {policy: number for number, policy in enumerate(base.order)}
        return [pair for pair in combinations(self.order, 2) if place[pair[1]] < place[pair[0]]]

    def clear_swaps(self, base: Ranking) -> list[tuple[str, str]]:
        """Returns those of the pairs that change places which are no tie, neither here nor as it was."""
        return [pair for pair in self.swaps(base) if pair in self.clear and pair[::-1] in base.clear]


def rank(
    variation: Variation,
    workloads: Sequence[SuiteWorkload],
    contenders: Sequence[Contender],
    against: Contender,
    seed: int,
) -> Ranking:
    """Returns how policies compare under a variation.

    Args:
        variation: What is different.
        workloads: A suite's workloads, on machines as configured.
        contenders: Who is compared.
        against: What ratios are relative to.
        seed: Seed of intervals.
    """
    rows = evaluate_on(variation.apply(workloads), contenders, against)
    summaries = sorted(summarise(rows, against.name, seed), key=lambda summary: summary.geomean_ratio)
    ratios = {summary.policy: (summary.geomean_ratio, summary.ci_low, summary.ci_high) for summary in summaries}
    logs = {policy: np.log(makespans(rows, policy)) for policy in ratios}
    clear = {
        (ahead, behind)
        for ahead, behind in combinations(ratios, 2)
        if geometric_mean(logs[ahead] - logs[behind].mean(axis=0), seed).high < 1
    }
    return Ranking(variation.name, [*ratios], ratios, frozenset(clear))


def ranking_table(rankings: Sequence[Ranking], against: str, suite: str) -> Table:
    """Returns a line for each variation: every policy's ratio, and which pairs change places."""
    base = rankings[0]
    table = Table(
        title=Text(f"Suite {suite}: time / {against} under other models, geometric means", "bold"),
        title_justify="left",
        caption="order: A < B: A has become faster than B; !: and neither now nor before is it a tie (95 %)",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("variation")
    for policy in base.order:
        table.add_column(Text(policy), justify="right", overflow="fold")
    table.add_column("order", overflow="fold")
    for ranking in rankings:
        clear = ranking.clear_swaps(base)
        swaps = ", ".join(f"{pair[0]} < {pair[1]}" + " !" * (pair in clear) for pair in ranking.swaps(base))
        table.add_row(
            ranking.variation, *(f"{ranking.ratios[policy][0]:.3f}" for policy in base.order), Text(swaps or "same")
        )
    return table


def build_parser() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    parser = CommandParser(prog="python -m agents.sensitivity", description=__doc__)
    parser.add_argument("--policy", action="append", required=True, metavar="NAME", help=f"{POLICY_HELP}; no choosers")
    suites = ", ".join(preset_names("suites"))
    parser.add_argument(
        "--suite", default="held-out", metavar="NAME", help=f"a preset ({suites}) or a .yaml (default: %(default)s)"
    )
    parser.add_argument(
        "--against", default="dysharp", metavar="NAME", help="what ratios are relative to (default: %(default)s)"
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only this, repeatable (default: all of {', '.join(variation.name for variation in VARIATIONS)})",
    )
    add_rollouts_option(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of intervals (default: %(default)s)")
    add_json_option(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Compares as the options say and prints the table."""
    started = time.process_time()
    for option, least in (("rollouts", 1), ("seed", 0)):
        if (value := getattr(args, option)) < least:
            raise ConfigError(f"{option}={value} must be at least {least}")
    check_targets(("json", args.json, None))
    variations = read_variations(args.vary)
    suite = load_suite(args.suite)
    contenders = [read_contender(given, args.rollouts) for given in args.policy]
    against = read_contender(args.against, args.rollouts)
    for contender in with_references(contenders, [against]):
        if contender.name in (RANDOM, FIRST):
            raise ConfigError(f"policy='{contender.name}' plays machines as configured only; name another")
    workloads = suite.draw()
    rankings = []
    for variation in variations:
        rankings.append(rank(variation, workloads, contenders, against, args.seed))
        notice(f"{variation.name}: {' < '.join(rankings[-1].order)}")
    cpu_s = time.process_time() - started
    if args.json:
        config = {
            "suite": suite.model_dump(mode="json"),
            "policies": args.policy,
            "against": args.against,
            "rollouts": args.rollouts,
        }
        rows = [_record(ranking, rankings[0]) for ranking in rankings]
        write_json(args.json, json_document("sensitivity", args.seed, config, rows=rows))
    if args.json != STANDARD_OUTPUT:
        console = results_console()
        console.print(ranking_table(rankings, against.name, suite.name))
        changed, clear = (
            sum(bool(swaps(ranking, rankings[0])) for ranking in rankings)
            for swaps in (Ranking.swaps, Ranking.clear_swaps)
        )
        console.print(
            f"Of {len(rankings) - 1} variations {changed} change the order, {clear} by more than a tie."
            f" {cpu_s:.0f} CPU seconds"
        )
    return 0


def _record(ranking: Ranking, base: Ranking) -> dict[str, object]:
    found = {**asdict(ranking), "clear": sorted(ranking.clear)}
    return {**found, "swaps": ranking.swaps(base), "clear_swaps": ranking.clear_swaps(base)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_main(build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
