"""Reads who plays under a name that a command takes: schedules, look-ahead, choices, rules, runs, functions."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dysharp_env.config import ConfigError, did_you_mean, preset_names
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import ScheduleSpec, is_schedule_name, load_schedule, schedule_names
from dysharp_env.schedules.opponent import Contender

from ..policies.card import FIRST, RANDOM, REFERENCE, PolicyCard, read_card, reference_runs, run_path
from ..policies.files import load_policy
from ..policies.rule import Rule, read_rule
from .lookahead import LookAhead
from .players import (
    Chooser,
    FunctionOpponent,
    InEnvironment,
    Learned,
    LookAheadOpponent,
    VirtualBest,
    read_function,
)

LOOK_AHEAD = "look-ahead:"  # before a schedule's name
VIRTUAL_BEST = "virtual-best"
PLANS = "schedule.yaml"  # in a folder of agents.tune
_WITH_REPLICAS = tuple(f"{base}+eplb" for base in ("dysharp", "dysharp-team", "mega-moe"))
_FUNCTION = re.compile(r"[\w.]+:\w+")


def read_contenders(
    given: Sequence[str], *, rollouts: int = LookAhead.rollouts, seeds: Sequence[int] = range(3)
) -> list[Contender]:
    """Returns what names stand for, in order.

    ``random`` and ``first`` choose in the environment of the first policy that is named, or in the default one, so that
    they face the same decisions as the policy they are compared with.

    Args:
        given: See ``read_contender``.
        rollouts: Simulations that look-ahead may spend on a workload.
        seeds: Of random choices.

    Raises:
        ConfigError: A name stands for nothing, or a run has no policy.
    """
    read = {name: read_contender(name, rollouts) for name in given if name not in (RANDOM, FIRST)}
    everyone = (opponent for contender in read.values() for opponent in contender.opponents)
    env = next((opponent.env for opponent in everyone if isinstance(opponent, InEnvironment)), EnvSpec())
    return [read.get(name) or choices(name, env, seeds) for name in given]


def read_contender(given: str, rollouts: int = LookAhead.rollouts) -> Contender:
    """Returns the contender of one name.

    It is ``random`` or ``first``, ``virtual-best`` for the fastest of all schedules that are designed by hand on each
    workload, in hindsight, a schedule's name or file, ``look-ahead:`` and a schedule, for that schedule with
    look-ahead of so many rollouts a workload, ``reference`` for the shipped agent, run folders joined by commas, a
    folder of ``agents.tune``, a rule's file, or ``package.module:function`` for whatever a function answers; see
    ``FunctionOpponent``.

    Raises:
        ConfigError: It is none of these, or a run has no policy.
    """
    if given in (RANDOM, FIRST):
        return choices(given, EnvSpec(), range(3))
    if given == VIRTUAL_BEST:
        designed = VirtualBest(designed_by_hand())
        return Contender(given, given, "schedule", designed, (designed,))
    if given.startswith(LOOK_AHEAD):
        ahead = LookAhead(load_schedule(given.removeprefix(LOOK_AHEAD)), rollouts)
        name = f"{LOOK_AHEAD}{ahead.schedule.name}"
        return Contender(given, name, "schedule", ahead, (LookAheadOpponent(ahead),))
    if is_schedule_name(given):
        return Contender.of_schedule(load_schedule(given), given)
    if given == REFERENCE:
        return read_runs(given)
    if given.endswith(".json"):
        rule = read_rule(Path(given))
        return Contender(given, rule.name, "rule", rule, (learned_rule(rule),))
    if is_only_plans(Path(given)):
        return Contender.of_schedule(load_schedule(str(Path(given) / PLANS)), given)
    if any("/" in part or os.path.exists(part) for part in given.split(",")):
        return read_runs(given)
    if _FUNCTION.fullmatch(given):
        return Contender(given, given, "function", given, (FunctionOpponent.of(read_function(given), given),))
    known = [RANDOM, FIRST, REFERENCE, VIRTUAL_BEST, *schedule_names()]
    raise ConfigError(
        f"schedule='{given}' is unknown; choose from {known}, a schedule's .yaml, 'look-ahead:' and a schedule, a run"
        f" folder, a rule's .json, or package.module:function{did_you_mean(given, known)}"
    )


def is_only_plans(folder: Path) -> bool:
    """Returns whether a folder is what ``agents.tune`` leaves where one plan is best for all numbers of tokens."""
    return os.path.isfile(folder / PLANS) and not os.path.exists(folder / "config.yaml")


def designed_by_hand() -> tuple[ScheduleSpec, ...]:
    """Returns the shipped schedules that somebody designed, some with replicas; of those that a search found none."""
    shipped = [load_schedule(name) for name in (*preset_names("schedules"), *_WITH_REPLICAS)]
    return tuple(schedule for schedule in shipped if schedule.found_by == "hand")


def choices(name: str, env: EnvSpec, seeds: Sequence[int]) -> Contender:
    """Returns ``random`` or ``first`` choices in an environment."""
    taken = [Chooser(env, seed) for seed in seeds] if name == RANDOM else [Chooser(env)]
    return Contender(name, name, "choices", name, tuple(taken))


def learned_rule(rule: Rule) -> Learned:
    """Returns who plays by a distilled rule."""
    return Learned(None, rule.env(), rule.network(), rule.opening())


def learned_of(contender: Contender) -> list[Learned]:
    """Returns the learned policies of a contender by training seed; none if it has not learned."""
    return [opponent for opponent in contender.opponents if isinstance(opponent, Learned)]


def run_folders(contender: Contender) -> list[Path]:
    """Returns the run folders of a contender; none if it is no trained policy."""
    return _folders(contender.given) if contender.sort == "runs" else []


def _folders(given: str) -> list[Path]:
    return reference_runs() if given == REFERENCE else [*map(Path, given.split(","))]


def best_of(given: str | Path) -> tuple[Path, PolicyCard]:
    """Returns where the best policy of a run folder lies, and its card.

    Raises:
        ConfigError: There is no such folder, it has no policy yet, or the card is damaged.
    """
    path = run_path(given)
    if not os.path.isfile(path / "best" / "policy.json"):
        raise ConfigError(f"run folder '{path}' has no policy yet: best/ is empty")
    return path / "best", read_card(path / "best")


def _learned(best: Path, card: PolicyCard) -> Learned:
    policy = load_policy(best, card.env)
    return Learned(card.seed, card.env, policy.scoring_network(), policy.opening_network())


def read_runs(given: str) -> Contender:
    """Returns the contender of run folders joined by commas, or of ``reference``.

    Raises:
        ConfigError: There is no such folder, a run has no policy yet, or two have one seed.
    """
    found = [best_of(folder) for folder in _folders(given)]
    seeds = [card.seed for _, card in found]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"policy='{given}': the runs of one policy must differ in their seed, but have seeds {seeds}")
    learned = [_learned(best, card) for best, card in found]
    name = "+".join(sorted({card.name for _, card in found}))
    folders = frozenset(best.resolve() for best, _ in found)
    return Contender(given, name, "runs", folders, tuple(learned))
