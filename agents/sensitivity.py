"""``python -m agents.sensitivity``: whether policies keep their order when what the model is unsure of is different.

Every constant is changed alone, on all machines of a suite; all policies play the same workloads there. A policy is not
trained again for a changed machine, nor a rule tuned: what is asked is how far results of one model can be trusted.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from rich.table import Table
from rich.text import Text

from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender
from dysharp_env.simulator.warmup import notice
from dysharp_env.workload.suite import SuiteWorkload, load_suite

from .evaluation.report import plain_table
from .evaluation.statistics import geometric_mean
from .evaluation.table import evaluate, log_ratios, summarise
from .evaluation.variations import VARIATIONS, Variation, read_variations
from .kit import Command, check_options, deliver, entry
from .opponents.read import read_contenders


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
    items: Sequence[SuiteWorkload],
    contenders: Sequence[Contender],
    against: Contender,
    seed: int,
) -> Ranking:
    """Returns how policies compare under a variation of a suite's workloads, which come on machines as configured."""
    rows = evaluate(Problem.of_suite(variation.apply(items)), contenders, against)
    summaries = sorted(summarise(rows, against.name, seed), key=lambda summary: summary.geomean_ratio)
    ratios = {summary.policy: (summary.geomean_ratio, summary.ci_low, summary.ci_high) for summary in summaries}
    clear = {
        (ahead, behind)
        for ahead, behind in combinations(ratios, 2)
        if geometric_mean(log_ratios(rows, ahead, behind)[1], seed).high < 1
    }
    return Ranking(variation.name, [*ratios], ratios, frozenset(clear))


def ranking_table(rankings: Sequence[Ranking], against: str, suite: str) -> Table:
    """Returns a line for each variation: every policy's ratio, and which pairs change places."""
    base = rankings[0]
    table = plain_table(
        f"Suite {suite}: time / {against} under other models, geometric means",
        "order: A < B: A has become faster than B; !: and neither now nor before is it a tie (95 %)",
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


def build() -> Command:
    """Returns the options of the command."""
    command = Command("sensitivity", __doc__, run).add_policies(required=True).add_suite("held-out:dynamic-multimem")
    command.add("--against", default="dysharp", metavar="NAME", help="what ratios are relative to")
    command.add(
        "--vary",
        action="append",
        default=[],
        metavar="NAME",
        help=f"only this, repeatable (default: all of {', '.join(variation.name for variation in VARIATIONS)})",
    )
    return command.add_seed("intervals").add_json()


def run(args: argparse.Namespace) -> int:
    """Compares as the options say and prints the table."""
    check_options(args)
    variations = read_variations(args.vary)
    suite = load_suite(args.suite)
    *contenders, against = read_contenders([*args.policy, args.against], rollouts=args.rollouts)
    items = suite.draw()
    rankings = []
    for variation in variations:
        rankings.append(rank(variation, items, contenders, against, args.seed))
        notice(f"{variation.name}: {' < '.join(rankings[-1].order)}")
    base = rankings[0]
    changed = sum(bool(ranking.swaps(base)) for ranking in rankings)
    clear = sum(bool(ranking.clear_swaps(base)) for ranking in rankings)
    cpu_s = time.process_time() - args.started
    config = {
        "suite": suite.model_dump(mode="json"),
        "policies": args.policy,
        "against": args.against,
        "rollouts": args.rollouts,
    }
    text = f"Of {len(rankings) - 1} variations {changed} change the order, {clear} by more than a tie."
    shown = ranking_table(rankings, against.name, suite.name), f"{text} {cpu_s:.0f} CPU seconds"
    deliver(args, config, {"rows": [_record(ranking, base) for ranking in rankings]}, *shown)
    return 0


def _record(ranking: Ranking, base: Ranking) -> dict[str, object]:
    found = {**asdict(ranking), "clear": sorted(ranking.clear)}
    return {**found, "swaps": ranking.swaps(base), "clear_swaps": ranking.clear_swaps(base)}


main = entry(build, __name__)
