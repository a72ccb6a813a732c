"""What takes part in a comparison: schedules, trained runs, distilled rules, and choices without a policy."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from agents.opponents.lookahead import LookAhead
from agents.opponents.play import FIRST, RANDOM
from agents.policies.files import load_policy
from agents.policies.rule import Rule, read_rule
from agents.training.run_folder import RunFolder
from agents.training.spec import read_spec
from dysharp_env.config import ConfigError, did_you_mean, preset_names
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import ScheduleSpec, load_schedule
from dysharp_env.simulator.network import Network

LOOK_AHEAD = "look-ahead:"  # before a schedule's name
POLICY_HELP = (
    "random, first, a schedule's name or .yaml, look-ahead:SCHEDULE, a distilled rule's .json, or a run folder;"
    " RUN,RUN,... are training seeds of one policy; repeatable"
)


@dataclass(frozen=True)
class Learned:
    """A learned policy as the engine plays it.

    Attributes:
        seed: Training seed of its run; None for a distilled rule.
        env: The schedule beneath and what is asked.
        network: What answers.
    """

    seed: int | None
    env: EnvSpec
    network: Network

    @classmethod
    def of(cls, run: RunFolder) -> Learned:
        """Returns the best policy of a run.

        Raises:
            ConfigError: A file is missing or damaged.
        """
        spec = read_spec(run)
        return cls(spec.seed, spec.env, load_policy(run.best, spec.env).scoring_network())


@dataclass(frozen=True)
class Contender:
    """What ``--policy`` names: a schedule, one with look-ahead, random or first choices, a rule, or runs of some seeds.

    Attributes:
        given: How it was named.
        name: What rows call it.
        schedule: The schedule, if it is one.
        ahead: The schedule with look-ahead, if it is one.
        rule: The distilled rule, if it is one.
        runs: The trained runs, if it is some.
    """

    given: str
    name: str
    schedule: ScheduleSpec | None = None
    ahead: LookAhead | None = None
    rule: Rule | None = None
    runs: tuple[RunFolder, ...] = ()

    def is_same_as(self, other: Contender) -> bool:
        """Returns whether both are one thing, perhaps named in two ways."""
        mine, theirs = ({run.path.resolve() for run in contender.runs} for contender in (self, other))
        alike = (self.name, self.schedule, self.ahead, self.rule) == (
            other.name,
            other.schedule,
            other.ahead,
            other.rule,
        )
        return alike and mine == theirs

    def learned(self) -> list[Learned]:
        """Returns its policies by training seed; none if it has not learned.

        Raises:
            ConfigError: A file of a run is missing or damaged.
        """
        if self.rule is not None:
            return [Learned(None, self.rule.env(), self.rule.network())]
        return [Learned.of(run) for run in self.runs]


def add_rollouts_option(parser: argparse.ArgumentParser) -> None:
    """Adds ``--rollouts``, which ``read_contender`` takes."""
    parser.add_argument(
        "--rollouts",
        type=int,
        default=LookAhead.rollouts,
        metavar="N",
        help="simulations that look-ahead may spend on a workload (default: %(default)s)",
    )


def read_contender(given: str, rollouts: int = LookAhead.rollouts) -> Contender:
    """Returns the contender of ``random``, ``first``, a schedule's name or file, a rule's file, or run folders.

    Run folders are joined by commas. ``look-ahead:`` before a schedule stands for that schedule with look-ahead of so
    many rollouts a workload.

    Raises:
        ConfigError: It is none of these, or a run has no policy.
    """
    if given in (RANDOM, FIRST):
        return Contender(given, given)
    if given.startswith(LOOK_AHEAD):
        ahead = LookAhead(load_schedule(given.removeprefix(LOOK_AHEAD)), rollouts)
        return Contender(given, f"{LOOK_AHEAD}{ahead.schedule.name}", ahead=ahead)
    if given in preset_names("schedules") or given.endswith((".yaml", ".yml")):
        schedule = load_schedule(given)
        return Contender(given, schedule.name, schedule=schedule)
    if given.endswith(".json"):
        rule = read_rule(Path(given))
        return Contender(given, rule.name, rule=rule)
    if not any("/" in part or Path(part).exists() for part in given.split(",")):
        known = [RANDOM, FIRST, *preset_names("schedules")]
        raise ConfigError(
            f"policy='{given}' is unknown; choose from {known}, a schedule's .yaml, 'look-ahead:' and a schedule,"
            " a rule's .json, or a run folder"
            f"{did_you_mean(given, known)}"
        )
    runs = read_runs(given)
    return Contender(given, "+".join(sorted({read_spec(run).name for run in runs})), runs=runs)


def read_runs(given: str) -> tuple[RunFolder, ...]:
    """Returns run folders joined by commas, each with a policy.

    Raises:
        ConfigError: There is no such folder, a run has no policy yet, or two have one seed.
    """
    runs = tuple(RunFolder.open(part) for part in given.split(","))
    for run in runs:
        if not (run.best / "policy.json").is_file():
            raise ConfigError(f"run folder '{run.path}' has no policy yet: best/ is empty")
    seeds = [read_spec(run).seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"policy='{given}': the runs of one policy must differ in their seed, but have seeds {seeds}")
    return runs
