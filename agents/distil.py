"""``python -m agents.distil``: turns a trained policy of splits, and of rows, into a rule that a kernel could hold.

The policy plays a suite; small rules are fitted to what it chose: wishes that are linear in a few context values. What
it weighs rows with is fitted likewise. Of all runs given and numbers of values, the rule is kept that plays the
validation suite fastest. It is written as rule.json, which ``agents.evaluate --policy`` plays, and as rule.h for C.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from agents.distillation.fitting import MOST_VALUES, choose_names, explained, fit, fit_rows, row_weights
from agents.distillation.header import header
from agents.evaluation.contexts import Decisions, record_decisions
from agents.evaluation.report import plain_table
from agents.kit import Command, check_folder, check_options, deliver, entry
from agents.opponents.players import Learned
from agents.opponents.read import best_of, learned_of, read_runs, run_folders
from agents.opponents.rollouts import makespans_ps
from agents.policies.rule import RowRule, Rule, definition
from agents.policies.steering import INPUTS
from dysharp_env.config import ConfigError
from dysharp_env.report.files import write_text
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.simulator.state.observation import FEATURE_MEANINGS, GEMM, SPLIT
from dysharp_env.workload.suite import load_suite

REFERENCE = "dysharp"  # the gain that a rule keeps is that over the paper's schedule


@dataclass(frozen=True)
class Distilled:
    """A rule and how it plays the validation suite.

    Attributes:
        seed: Training seed of the run it comes from.
        names: The context values it looks at.
        explained: Part of the variance of the run's choices that a linear rule over them explains.
        policy_ratio, rule_ratio: Geometric mean of makespan over ``REFERENCE``'s, of the run and of the rule.
        policy_base_ratio, rule_base_ratio: The same over that of the schedule beneath, whose splits are fixed.
    """

    seed: int | None
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
    policy: Learned, watched: Sequence[Problem], validation: Sequence[Problem], count: int, name: str
) -> list[tuple[Distilled, Rule]]:
    """Returns a rule over one context value, over two and so on up to ``count``, first those that explain most choices.

    The policy plays ``watched`` while it is watched; rules are compared on ``validation``.
    """
    recorded = record_decisions(policy, watched)
    decisions = recorded.of_kind(SPLIT)
    names = choose_names(decisions, count)
    rows = row_weights(policy.network, recorded.of_kind(GEMM)) if "gemm" in policy.env.exposed else None
    row_names = choose_names(rows, count) if rows else []
    opponents = [load_schedule(REFERENCE), load_schedule(policy.env.schedule)]
    reference_ps = makespans_ps(opponents, validation)
    policy_ratio, policy_base_ratio = _ratios(policy, validation, reference_ps)
    found = []
    for number in range(1, len(names) + 1):
        wishes = fit(decisions, names[:number])
        row_rule = _row_rule(policy, rows, row_names[:number]) if rows else None
        parts = [*wishes.values(), *(row_rule.weights.values() if row_rule else ())]
        used = [value for value in INPUTS[:-1] if any(value in part.weights for part in parts)]
        rule = Rule(
            name=name,
            description=f"linear, fitted to what a policy of training seed {policy.seed} chose",
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
    """Returns the weights of a GEMM row's features, linear in a few context values."""
    weights = fit_rows(rows, names)
    return RowRule(
        hold=policy.env.hold,
        partial_tiles=policy.env.partial_tiles,
        features={name: FEATURE_MEANINGS[name] for name in weights},
        weights=weights,
    )


def _ratios(policy: Learned, problems: Sequence[Problem], reference_ps: np.ndarray) -> list[float]:
    """Returns for each reference the geometric mean of makespan over its (reference, problem) ones."""
    times_ps = np.array([policy.run(problem, place).engine.now_ps for place, problem in enumerate(problems)])
    return np.exp(np.log(times_ps / reference_ps).mean(axis=1)).tolist()


def results_table(results: Sequence[Distilled], kept: Distilled, suite: str) -> Table:
    """Returns a line for each rule; the one that is kept is marked."""
    table = plain_table(
        f"Suite {suite}: time / {REFERENCE}, and / the schedule beneath, geometric means",
        "explained: of the variance of the run's choices; kept: of the gain; *: written",
    )
    columns = ("values", "explained", "policy", "rule", "kept", "policy / base", "rule / base", "kept")
    for column in ("seed", *columns):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            f"{result.seed} *" if result is kept else f"{result.seed}",
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


def build() -> Command:
    """Returns the options of the command."""
    command = Command("distil", __doc__, run)
    command.add("runs", metavar="RUN[,RUN...]", help="run folders of one policy of splits, or of splits and rows")
    command.add_suite("training:dynamic-multimem", what="what the policy plays while it is watched")
    command.add(
        "--validation",
        default="validation:dynamic-multimem",
        metavar="NAME",
        help="the suite on which rules are compared",
    )
    command.add("--values", type=int, default=6, metavar="N", help="most context values of a rule")
    command.add("--name", metavar="NAME", help="name of the rule in results (default: the run's and '-rule')")
    return command.add("--out", required=True, metavar="DIR", help="where rule.json and rule.h are written").add_json()


def run(args: argparse.Namespace) -> int:
    """Distils as the options say, writes the rule and prints the table."""
    if not 1 <= args.values <= MOST_VALUES:
        raise ConfigError(f"values={args.values} must be 1 to {MOST_VALUES}")
    check_options(args)
    contender = read_runs(args.runs)
    policies, folders = learned_of(contender), [str(path) for path in run_folders(contender)]
    for policy, folder in zip(policies, folders, strict=True):
        if (exposed := policy.env.exposed) not in (("split",), ("split", "gemm")):
            raise ConfigError(
                f"run folder '{folder}' decides on {list(exposed)}; what is distilled is [split] and [split, gemm]"
            )
    suite, validation = load_suite(args.suite), load_suite(args.validation)
    check_folder("out", args.out)
    name = args.name or f"{best_of(folders[0])[1].name}-rule"
    watched, compared = (Problem.of_suite(each.draw()) for each in (suite, validation))
    found = [pair for policy in policies for pair in distil(policy, watched, compared, args.values, name)]
    kept, rule = min(found, key=lambda pair: pair[0].rule_ratio)
    out = Path(args.out)
    write_text(out / "rule.json", json.dumps(rule.model_dump(mode="json"), indent=2) + "\n")
    write_text(out / "rule.h", header(rule))
    config = {"runs": folders, "suite": args.suite, "validation": args.validation, "values": args.values}
    rows = [_record(result, result is kept) for result, _ in found]
    text = f"{out}/rule.json and {out}/rule.h: over {', '.join(rule.context)}"
    shown = results_table([result for result, _ in found], kept, validation.name), text
    deliver(args, config, {"rows": rows}, *shown, timed=True)
    return 0


def _record(result: Distilled, chosen: bool) -> dict[str, object]:
    return {**asdict(result), "kept": result.kept, "kept_beyond_base": result.kept_beyond_base, "chosen": chosen}


main = entry(build, __name__)
