"""``python -m agents.distil``: turns a trained policy into a rule that a kernel could hold.

Small rules are fitted to what the policy decides, linear in a few context values. Plans, and copies of experts, it is
asked on layers that are drawn as in training and not played. If it decides on more, it plays a suite: wishes for splits
are fitted to what it chose, weights of other candidates to what it weighs them with. Of all runs given and numbers of
values, the rule is kept that plays the validation suite fastest. It is written as rule.json, which
``agents.evaluate --policy`` plays, and as rule.h for C.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.table import Table

from dysharp_env.commands.output import check_folder
from dysharp_env.config import ConfigError
from dysharp_env.files import write_text
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.simulator.state.observation import ENGINE_KINDS, FEATURE_MEANINGS, OPENING_KINDS, SPLIT
from dysharp_env.workload.suite import load_suite

from .distillation.fitting import MOST_VALUES, Weighing, choose_names, explained, fit, is_linear
from .distillation.header import header
from .distillation.opening import Openings, drawn_layers
from .evaluation.contexts import Decisions, record_decisions
from .evaluation.report import plain_table
from .kit import Command, check_options, deliver, entry
from .opponents.players import Learned
from .opponents.read import best_of, learned_of, learned_rule, read_runs, run_folders
from .opponents.rollouts import makespans_ps
from .policies.rule import Linear, Rule, SplitRule, definition
from .policies.steering import INPUTS

REFERENCE = "dysharp"  # the gain that a rule keeps is that over the paper's schedule


@dataclass(frozen=True)
class Distilled:
    """A rule and how it plays the validation suite.

    Attributes:
        seed: Training seed of the run it comes from.
        names: The context values it looks at.
        explained: Part of the variance of the run's choices of splits that its wishes explain; None without splits.
        agrees: Part of the decisions before layers in which it takes what the run takes; None if it takes none.
        policy_ratio, rule_ratio: Geometric mean of makespan over ``REFERENCE``'s, of the run and of the rule.
        policy_base_ratio, rule_base_ratio: The same over that of the schedule beneath under its own rule.
    """

    seed: int | None
    names: list[str]
    explained: float | None
    agrees: float | None
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
        """The same of the gain over the schedule beneath: what learning to decide has brought."""
        return _kept(self.policy_base_ratio, self.rule_base_ratio)


def _kept(policy_ratio: float, rule_ratio: float) -> float | None:
    return float(np.log(rule_ratio) / np.log(policy_ratio)) if policy_ratio < 1 else None


class Teacher:
    """A policy that was watched, and the context values that explain each sort of its decisions, in order."""

    def __init__(self, policy: Learned, drawn: Iterable[Problem], played: Sequence[Problem], count: int) -> None:
        """Watches a policy before layers that are ``drawn``, and in layers that it plays; ``count`` values at most.

        Raises:
            ConfigError: The schedule beneath does not fit a system, or nobody asks what a rule would be fitted to.
        """
        env = policy.env
        self.policy = policy
        self.opening: Openings | None = None
        self.splits: Decisions | None = None
        self.weighing: Weighing | None = None
        if {*env.exposed} & {*OPENING_KINDS}:
            self.opening = Openings.watch(policy, drawn)
        kinds = [kind for kind in ENGINE_KINDS if kind in env.exposed]
        recorded = record_decisions(policy, played) if kinds else None
        if recorded and "split" in kinds:
            if not recorded.contexts[:, SPLIT].any():
                raise ConfigError(f"over '{policy.base.name}' the policy is asked for no split in the layers it plays")
            self.splits = recorded.of_kind(SPLIT)
        if recorded and kinds != ["split"]:
            self.weighing = Weighing.of(policy.network, kinds, recorded)
        self._of_opening = self.opening.choose_names(count) if self.opening else []
        self._of_splits = choose_names(self.splits, count) if self.splits else []
        self._of_weighing = self.weighing.choose_names(count) if self.weighing else []

    @property
    def most(self) -> int:
        """The most context values that a sort of decision can be told by."""
        return max(map(len, (self._of_opening, self._of_splits, self._of_weighing)))

    def rule(self, number: int, name: str) -> Rule:
        """Returns the rule in which each sort of decision depends on so many context values."""
        env, weights = self.policy.env, {}
        split = None
        if self.splits:
            wishes = fit(self.splits, self._of_splits[:number])
            split = SplitRule(offered=env.splits, moments=env.split_moments, wishes=wishes)
        if self.opening:
            weights.update(self.opening.fit(self._of_opening[:number]))
        if self.weighing:
            weights.update(self.weighing.fit(self._of_weighing[:number]))
        parts: list[Linear] = [part for each in weights.values() for part in each.values()]
        parts += split.wishes.values() if split else ()
        return Rule(
            name=name,
            description=f"linear, fitted to what a policy of training seed {self.policy.seed} decides",
            schedule=env.schedule,
            hold=env.hold,
            partial_tiles=env.partial_tiles,
            max_candidates=env.max_candidates,
            context={value: definition(value) for value in INPUTS[:-1] if any(value in each.weights for each in parts)},
            features={
                feature: meaning
                for feature, meaning in FEATURE_MEANINGS.items()
                if any(feature in each for each in weights.values())
            },
            weights=weights,
            split=split,
        )

    def explained(self, number: int) -> float | None:
        """Returns the part of the variance of splits that so many values explain; None without splits."""
        return explained(self.splits, self._of_splits[:number]) if self.splits else None

    def agrees(self, rule: Rule) -> float | None:
        """Returns the part of the decisions before layers in which a rule takes what the policy takes."""
        network = rule.opening()
        return self.opening.agreement(network) if self.opening and network else None


def distil(teacher: Teacher, validation: Sequence[Problem], name: str) -> list[tuple[Distilled, Rule]]:
    """Returns a rule over no context value, over one, over two and so on, and how each plays a suite."""
    policy = teacher.policy
    opponents = [load_schedule(REFERENCE), load_schedule(policy.env.schedule)]
    reference_ps = makespans_ps(opponents, validation)
    policy_ratio, policy_base_ratio = _ratios(policy, validation, reference_ps)
    found = []
    for number in range(teacher.most + 1):
        rule = teacher.rule(number, name)
        rule_ratio, rule_base_ratio = _ratios(learned_rule(rule), validation, reference_ps)
        result = Distilled(
            seed=policy.seed,
            names=[*rule.context],
            explained=teacher.explained(number),
            agrees=teacher.agrees(rule),
            policy_ratio=policy_ratio,
            rule_ratio=rule_ratio,
            policy_base_ratio=policy_base_ratio,
            rule_base_ratio=rule_base_ratio,
        )
        found.append((result, rule))
    return found


def _ratios(policy: Learned, problems: Sequence[Problem], reference_ps: np.ndarray) -> list[float]:
    """Returns for each reference the geometric mean of makespan over its (reference, problem) ones."""
    times_ps = np.array([policy.run(problem, place).engine.now_ps for place, problem in enumerate(problems)])
    return np.exp(np.log(times_ps / reference_ps).mean(axis=1)).tolist()


def results_table(results: Sequence[Distilled], kept: Distilled, suite: str) -> Table:
    """Returns a line for each rule; the one that is kept is marked."""
    table = plain_table(
        f"Suite {suite}: time / {REFERENCE}, and / the schedule beneath, geometric means",
        "explained: of the variance of the run's splits; agrees: on plans and copies; kept: of the gain; *: written",
    )
    columns = ("values", "explained", "agrees", "policy", "rule", "kept", "policy / base", "rule / base", "kept")
    for column in ("seed", *columns):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            f"{result.seed} *" if result is kept else f"{result.seed}",
            str(len(result.names)),
            "-" if result.explained is None else f"{result.explained:.3f}",
            _share(result.agrees),
            f"{result.policy_ratio:.4f}",
            f"{result.rule_ratio:.4f}",
            _share(result.kept),
            f"{result.policy_base_ratio:.4f}",
            f"{result.rule_base_ratio:.4f}",
            _share(result.kept_beyond_base),
        )
    return table


def _share(part: float | None) -> str:
    return "-" if part is None else f"{part:.1%}"


def build() -> Command:
    """Returns the options of the command."""
    command = Command("distil", __doc__, run)
    command.add("runs", metavar="RUN[,RUN...]", help="run folders of one policy")
    command.add_suite("training:dynamic-multimem", what="what the policy plays while it is watched")
    what = "the suite whose layers are drawn anew, for its decisions before a layer"
    command.add_suite("training", "--layers-of", what)
    command.add("--layers", type=int, default=600, metavar="N", help="layers that are drawn")
    command.add_suite("validation:dynamic-multimem", "--validation", "the suite on which rules are compared")
    command.add("--values", type=int, default=6, metavar="N", help="most context values of a rule")
    command.add("--name", metavar="NAME", help="name of the rule in results (default: the run's and '-rule')")
    command.add("--out", required=True, metavar="DIR", help="where rule.json and rule.h are written")
    return command.add_seed("the layers that are drawn").add_json()


def run(args: argparse.Namespace) -> int:
    """Distils as the options say, writes the rule and prints the table."""
    if not 0 <= args.values <= MOST_VALUES:
        raise ConfigError(f"values={args.values} must be 0 to {MOST_VALUES}")
    check_options(args)
    contender = read_runs(args.runs)
    policies, folders = learned_of(contender), [str(path) for path in run_folders(contender)]
    for policy, folder in zip(policies, folders, strict=True):
        if {*policy.env.exposed} - {"split", *OPENING_KINDS} and not is_linear(policy.network):
            raise ConfigError(f"run folder '{folder}' weighs rows or chunks by a network; a rule holds linear weights")
    suite, validation, layers_of = map(load_suite, (args.suite, args.validation, args.layers_of))
    check_folder("out", args.out)
    name = args.name or f"{best_of(folders[0])[1].name}-rule"
    plays = any({*policy.env.exposed} & {*ENGINE_KINDS} for policy in policies)
    played, compared = Problem.of_suite(suite.draw()) if plays else [], Problem.of_suite(validation.draw())
    found = []
    for policy in policies:
        teacher = Teacher(policy, drawn_layers(layers_of, args.layers, args.seed), played, args.values)
        found += distil(teacher, compared, name)
    kept, rule = min(found, key=lambda pair: pair[0].rule_ratio)
    out = Path(args.out)
    write_text(out / "rule.json", json.dumps(rule.model_dump(mode="json"), indent=2) + "\n")
    write_text(out / "rule.h", header(rule))
    options = ("suite", "layers_of", "layers", "validation", "values")
    config = {"runs": folders, **{option: getattr(args, option) for option in options}}
    rows = [_record(result, result is kept) for result, _ in found]
    text = f"{out}/rule.json and {out}/rule.h: over {', '.join(rule.context) or 'no context value'}"
    shown = results_table([result for result, _ in found], kept, validation.name), text
    deliver(args, config, {"rows": rows}, *shown, timed=True)
    return 0


def _record(result: Distilled, chosen: bool) -> dict[str, object]:
    return {**asdict(result), "kept": result.kept, "kept_beyond_base": result.kept_beyond_base, "chosen": chosen}


main = entry(build, __name__)
