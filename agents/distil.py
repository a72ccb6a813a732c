"""``python -m agents.distil``: turns a trained policy of splits, and of rows, into a rule that a kernel could hold.

The policy plays a suite; small rules are fitted to what it chose: wishes that are linear in a few context values, and
shallow trees over the same ones. What it weighs rows with is fitted likewise. Of all runs given, numbers of values and
both forms, the rule is kept that plays the validation suite fastest. It is written as rule.json, which
``agents.evaluate --policy`` plays, and as rule.h for C.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from agents.distillation.fitting import FORMS, MOST_VALUES, choose_names, explained, fit, fit_rows, row_weights
from agents.distillation.header import header
from agents.evaluation.contexts import Decisions, record_decisions
from agents.evaluation.recording import check_folder
from agents.opponents.contender import Learned, read_runs
from agents.opponents.play import play_network
from agents.opponents.rollouts import makespans_ps, prepare
from agents.policies.rule import RowRule, Rule, definition
from agents.policies.steering import INPUTS
from agents.training.spec import read_spec
from dysharp_env.commands import CommandParser, run_main
from dysharp_env.commands.options import add_json_option
from dysharp_env.commands.output import STANDARD_OUTPUT, check_targets, json_document, results_console, write_json
from dysharp_env.config import ConfigError, preset_names
from dysharp_env.report.files import write_text
from dysharp_env.schedules import load_schedule
from dysharp_env.simulator.layout import FEATURE_MEANINGS, GEMM, SPLIT
from dysharp_env.workload.suite import SuiteWorkload, load_suite

REFERENCE = "dysharp"  # the gain that a rule keeps is that over the paper's schedule


@dataclass(frozen=True)
class Distilled:
    """A rule and how it plays the validation suite.

    Attributes:
        seed: Training seed of the run it comes from.
        form: ``linear`` or ``tree``.
        names: The context values it looks at.
        explained: Part of the variance of the run's choices that a linear rule over them explains.
        policy_ratio, rule_ratio: Geometric mean of makespan over ``REFERENCE``'s, of the run and of the rule.
        policy_base_ratio, rule_base_ratio: The same over that of the schedule beneath, whose splits are fixed.
    """

    seed: int | None
    form: str
    names: list[str]
    explained: float
    policy_ratio: float
    rule_ratio: float
    policy_base_ratio: float
    rule_base_ratio: float

    @property
    def kept(self) -> float | None:
        """Part of the run's gain over ``REFERENCE`` that the rule keeps, in logarithms; None if there is none."""
        return _kept(self.policy_ratio, self.rule_ratio)

    @property
    def kept_beyond_base(self) -> float | None:
        """The same of the gain over the schedule beneath: what deciding on splits has brought."""
        return _kept(self.policy_base_ratio, self.rule_base_ratio)


def _kept(policy_ratio: float, rule_ratio: float) -> float | None:
    return float(np.log(rule_ratio) / np.log(policy_ratio)) if policy_ratio < 1 else None


def distil(
    policy: Learned, workloads: Sequence[SuiteWorkload], validation: Sequence[SuiteWorkload], count: int, name: str
) -> list[tuple[Distilled, Rule]]:
    """Returns the rules of each form for one policy, over one context value and more, those first that explain most.

    Args:
        policy: What is imitated.
        workloads: What it plays while it is watched.
        validation: What rules are compared on.
        count: Most context values of a rule.
        name: Name of the rule.
    """
    recorded = record_decisions(policy, workloads)
    decisions = recorded.of_kind(SPLIT)
    names = choose_names(decisions, count)
    rows = row_weights(policy.network, recorded.of_kind(GEMM)) if "gemm" in policy.env.exposed else None
    row_names = choose_names(rows, count) if rows else []
    opponents = [load_schedule(REFERENCE), load_schedule(policy.env.schedule)]
    reference_ps = makespans_ps(opponents, prepare(validation))
    policy_ratio, policy_base_ratio = _ratios(policy, validation, reference_ps)
    found = []
    for number, form in product(range(1, len(names) + 1), FORMS):
        wishes = fit(decisions, names[:number], form)
        row_rule = _row_rule(policy, rows, row_names[:number]) if rows else None
        parts = [*wishes.values(), *(row_rule.weights.values() if row_rule else ())]
        used = [value for value in INPUTS[:-1] if any(value in part.names() for part in parts)]
        rule = Rule(
            name=name,
            description=f"{form}, fitted to what a policy of training seed {policy.seed} chose",
            schedule=policy.env.schedule,
            splits=policy.env.splits,
            split_moments=policy.env.split_moments,
            context={value: definition(value) for value in used},
            wishes=wishes,
            rows=row_rule,
        )
        played = Learned(None, rule.env(), rule.network())
        rule_ratio, rule_base_ratio = _ratios(played, validation, reference_ps)
        result = Distilled(
            seed=policy.seed,
            form=form,
            names=used,
            explained=explained(decisions, names[:number]),
            policy_ratio=policy_ratio,
            rule_ratio=rule_ratio,
            policy_base_ratio=policy_base_ratio,
            rule_base_ratio=rule_base_ratio,
        )
        found.append((result, rule))
    return found


def _row_rule(policy: Learned, rows: Decisions, names: Sequence[str]) -> RowRule:
    """Returns what rows are weighed with, from a few context values."""
    weights = fit_rows(rows, names)
    return RowRule(
        hold=policy.env.hold,
        partial_tiles=policy.env.partial_tiles,
        features={name: FEATURE_MEANINGS[name] for name in weights},
        weights=weights,
    )


def _ratios(policy: Learned, workloads: Sequence[SuiteWorkload], reference_ps: np.ndarray) -> list[float]:
    """Returns the geometric mean of makespan over that of each of (reference, workload)."""
    times_ps = np.array([run.engine.now_ps for run in play_network(policy.network, policy.env, workloads)])
    return np.exp(np.log(times_ps / reference_ps).mean(axis=1)).tolist()


def results_table(results: Sequence[Distilled], kept: Distilled, suite: str) -> Table:
    """Returns a line for each run and form; the one that is kept is marked."""
    table = Table(
        title=Text(f"Suite {suite}: time / {REFERENCE}, and / the schedule beneath, geometric means", "bold"),
        title_justify="left",
        caption="explained: of the variance of the run's choices, by a linear rule; kept: of the gain; *: written",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("rule")
    for column in ("seed", "values", "explained", "policy", "rule", "kept", "policy / base", "rule / base", "kept"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            result.form + (" *" if result is kept else ""),
            str(result.seed),
            str(len(result.names)),
            f"{result.explained:.3f}",
            f"{result.policy_ratio:.4f}",
            f"{result.rule_ratio:.4f}",
            _share(result.kept),
            f"{result.policy_base_ratio:.4f}",
            f"{result.rule_base_ratio:.4f}",
            _share(result.kept_beyond_base),
        )
    return table


def _share(kept: float | None) -> str:
    return "-" if kept is None else f"{kept:.1%}"


def build_parser() -> argparse.ArgumentParser:
    """Returns the options of the command."""
    parser = CommandParser(prog="python -m agents.distil", description=__doc__)
    parser.add_argument(
        "runs", metavar="RUN[,RUN...]", help="run folders of one policy of splits, or of splits and rows"
    )
    suites = ", ".join(preset_names("suites"))
    parser.add_argument(
        "--suite",
        default="training",
        metavar="NAME",
        help=f"what the policy plays while it is watched: a preset ({suites}) or a .yaml (default: %(default)s)",
    )
    parser.add_argument(
        "--validation",
        default="validation",
        metavar="NAME",
        help="the suite on which rules are compared (default: %(default)s)",
    )
    parser.add_argument(
        "--values", type=int, default=6, metavar="N", help="most context values of a rule (default: %(default)s)"
    )
    parser.add_argument("--name", metavar="NAME", help="name of the rule in results (default: the run's and '-rule')")
    parser.add_argument("--out", required=True, metavar="DIR", help="where rule.json and rule.h are written")
    add_json_option(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Distils as the options say, writes the rule and prints the table."""
    started = time.process_time()
    if not 1 <= args.values <= MOST_VALUES:
        raise ConfigError(f"values={args.values} must be 1 to {MOST_VALUES}")
    check_targets(("json", args.json, None))
    runs = read_runs(args.runs)
    for folder in runs:
        if (exposed := read_spec(folder).env.exposed) not in (("split",), ("split", "gemm")):
            raise ConfigError(
                f"run folder '{folder.path}' decides on {list(exposed)}; what is distilled is [split] and [split, gemm]"
            )
    suite, validation = load_suite(args.suite), load_suite(args.validation)
    check_folder("out", args.out)
    name = args.name or f"{read_spec(runs[0]).name}-rule"
    watched, compared = suite.draw(), validation.draw()
    found = [pair for folder in runs for pair in distil(Learned.of(folder), watched, compared, args.values, name)]
    kept, rule = min(found, key=lambda pair: pair[0].rule_ratio)
    out = Path(args.out)
    write_text(out / "rule.json", json.dumps(rule.model_dump(mode="json"), indent=2) + "\n")
    write_text(out / "rule.h", header(rule))
    if args.json:
        config = {
            "runs": [str(folder.path) for folder in runs],
            "suite": args.suite,
            "validation": args.validation,
            "values": args.values,
        }
        lines = [_record(result, result is kept) for result, _ in found]
        write_json(args.json, json_document("distil", 0, config, rows=lines))
    if args.json != STANDARD_OUTPUT:
        console = results_console()
        console.print(results_table([result for result, _ in found], kept, validation.name))
        console.print(f"{out}/rule.json and {out}/rule.h: {kept.form} over {', '.join(rule.context)}")
        console.print(f"{time.process_time() - started:.0f} CPU seconds")
    return 0


def _record(result: Distilled, chosen: bool) -> dict[str, object]:
    return {**asdict(result), "kept": result.kept, "kept_beyond_base": result.kept_beyond_base, "chosen": chosen}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_main(build_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
