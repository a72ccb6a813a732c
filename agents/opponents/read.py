"""Reads what ``--policy`` names: schedules, look-ahead, random and first choices, distilled rules, trained runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from agents.opponents.lookahead import LookAhead
from agents.opponents.opponent import Contender
from agents.opponents.players import Chooser, Learned, LookAheadOpponent, ScheduleOpponent
from agents.policies.card import FIRST, RANDOM, PolicyCard, read_card, run_path
from agents.policies.files import load_policy
from agents.policies.rule import read_rule
from dysharp_env.config import ConfigError, did_you_mean
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import is_schedule_name, load_schedule, schedule_names

LOOK_AHEAD = "look-ahead:"  # before a schedule's name


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
    learned = (policy for contender in read.values() for policy in learned_of(contender))
    env = next((policy.env for policy in learned), EnvSpec())
    return [read.get(name) or choices(name, env, seeds) for name in given]


def read_contender(given: str, rollouts: int = LookAhead.rollouts) -> Contender:
    """Returns the contender of ``random``, ``first``, a schedule's name or file, a rule's file, or run folders.

    Run folders are joined by commas. ``look-ahead:`` before a schedule stands for that schedule with look-ahead of so
    many rollouts a workload.

    Raises:
        ConfigError: It is none of these, or a run has no policy.
    """
    if given in (RANDOM, FIRST):
        return choices(given, EnvSpec(), range(3))
    if given.startswith(LOOK_AHEAD):
        ahead = LookAhead(load_schedule(given.removeprefix(LOOK_AHEAD)), rollouts)
        name = f"{LOOK_AHEAD}{ahead.schedule.name}"
        return Contender(given, name, "schedule", ahead, (LookAheadOpponent(ahead),))
    if is_schedule_name(given):
        schedule = load_schedule(given)
        return Contender(given, schedule.name, "schedule", schedule, (ScheduleOpponent(schedule),))
    if given.endswith(".json"):
        rule = read_rule(Path(given))
        return Contender(given, rule.name, "rule", rule, (Learned(None, rule.env(), rule.network()),))
    if any("/" in part or Path(part).exists() for part in given.split(",")):
        return read_runs(given)
    known = [RANDOM, FIRST, *schedule_names()]
    raise ConfigError(
        f"policy='{given}' is unknown; choose from {known}, a schedule's .yaml, 'look-ahead:' and a schedule,"
        f" a rule's .json, or a run folder{did_you_mean(given, known)}"
    )


def choices(name: str, env: EnvSpec, seeds: Sequence[int]) -> Contender:
    """Returns ``random`` or ``first`` choices in an environment."""
    taken = [Chooser(env, seed) for seed in seeds] if name == RANDOM else [Chooser(env)]
    return Contender(name, name, "choices", name, tuple(taken))


def learned_of(contender: Contender) -> list[Learned]:
    """Returns the learned policies of a contender by training seed; none if it has not learned."""
    return [opponent for opponent in contender.opponents if isinstance(opponent, Learned)]


def run_folders(contender: Contender) -> list[Path]:
    """Returns the run folders of a contender; none if it is no trained policy."""
    return [Path(part) for part in contender.given.split(",")] if contender.sort == "runs" else []


def best_of(given: str) -> tuple[Path, PolicyCard]:
    """Returns where the best policy of a run folder lies, and its card.

    Raises:
        ConfigError: There is no such folder, it has no policy yet, or the card is damaged.
    """
    path = run_path(given)
    if not (path / "best" / "policy.json").is_file():
        raise ConfigError(f"run folder '{path}' has no policy yet: best/ is empty")
    return path / "best", read_card(path / "best")


def _learned(best: Path, card: PolicyCard) -> Learned:
    policy = load_policy(best, card.env)
    return Learned(card.seed, card.env, policy.scoring_network(), policy.opening_network())


def read_runs(given: str) -> Contender:
    """Returns the contender of run folders joined by commas.

    Raises:
        ConfigError: There is no such folder, a run has no policy yet, or two have one seed.
    """
    found = [best_of(part) for part in given.split(",")]
    seeds = [card.seed for _, card in found]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"policy='{given}': the runs of one policy must differ in their seed, but have seeds {seeds}")
    learned = [_learned(best, card) for best, card in found]
    name = "+".join(sorted({card.name for _, card in found}))
    folders = frozenset(best.resolve() for best, _ in found)
    return Contender(given, name, "runs", folders, tuple(learned))
