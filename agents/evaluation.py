"""Evaluation: any mix of schedules and policies on one suite, paired workload by workload.

Ratios are geometric means of makespan over the reference's makespan on the same workload. Intervals are 95 % percentile
bootstraps over workloads and, where a policy has several training seeds, over seeds as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.lookahead import LookAhead, look_ahead
from agents.play import (
    FIRST,
    RANDOM,
    Played,
    choose_first,
    environments,
    play,
    play_policy,
    play_schedule,
    played,
    random_chooser,
)
from agents.rollouts import prepare
from agents.run_folder import RunFolder
from agents.train_spec import read_spec
from agents.weights import load_policy
from dysharp_env.config import ConfigError, did_you_mean, preset_names
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import ScheduleSpec, load_schedule
from dysharp_env.workload.suite import SuiteSpec, SuiteWorkload

LOOK_AHEAD = "look-ahead:"  # before a schedule's name
RESAMPLES = 10_000
_EQUAL = 1e-9  # log ratios nearer to 0 than this are rounding, not a win


@dataclass(frozen=True)
class EvaluationRow:
    """One workload under one policy; ``seed`` is the training seed of a run, the seed of random choices, or None."""

    policy: str
    seed: int | None
    workload: str
    makespan_us: float
    lower_bound_us: float
    decisions: int


@dataclass(frozen=True)
class Summary:
    """A policy over a suite.

    Attributes:
        policy: Its name.
        against: The policy its makespans are divided by.
        geomean_ratio: Geometric mean of makespan over that of ``against``.
        ci_low, ci_high: 95 % bootstrap interval of ``geomean_ratio``.
        mean_ratio_to_bound: Mean makespan over lower bound.
        wins: Workloads on which the policy (geometric mean of its seeds) is faster than ``against``.
        workloads: Workloads compared.
        seeds: Training seeds, or seeds of random choices.
    """

    policy: str
    against: str
    geomean_ratio: float
    ci_low: float
    ci_high: float
    mean_ratio_to_bound: float
    wins: int
    workloads: int
    seeds: int


@dataclass(frozen=True)
class Contender:
    """What ``--policy`` names: a schedule, one with look-ahead, random or first choices, or runs of different seeds.

    Attributes:
        given: How it was named.
        name: What rows call it.
        schedule: The schedule, if it is one.
        ahead: The schedule with look-ahead, if it is one.
        runs: The trained runs, if it is some.
    """

    given: str
    name: str
    schedule: ScheduleSpec | None = None
    ahead: LookAhead | None = None
    runs: tuple[RunFolder, ...] = ()

    def is_same_as(self, other: Contender) -> bool:
        """Returns whether both are one thing, perhaps named in two ways."""
        mine, theirs = ({run.path.resolve() for run in contender.runs} for contender in (self, other))
        return (self.name, self.schedule, self.ahead, mine) == (other.name, other.schedule, other.ahead, theirs)


def read_contender(given: str, rollouts: int = LookAhead.rollouts) -> Contender:
    """Returns the contender of ``random``, ``first``, a schedule's name or file, or run folders joined by commas.

    ``look-ahead:`` before a schedule stands for that schedule with look-ahead of so many rollouts a workload.

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
    if not any("/" in part or Path(part).exists() for part in given.split(",")):
        known = [RANDOM, FIRST, *preset_names("schedules")]
        raise ConfigError(
            f"policy='{given}' is unknown; choose from {known}, a schedule's .yaml, 'look-ahead:' and a schedule,"
            " or a run folder"
            f"{did_you_mean(given, known)}"
        )
    runs = tuple(RunFolder.open(part) for part in given.split(","))
    for run in runs:
        if not (run.best / "policy.json").is_file():
            raise ConfigError(f"run folder '{run.path}' has no policy yet: best/ is empty")
    specs = [read_spec(run) for run in runs]
    seeds = [spec.seed for spec in specs]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"policy='{given}': the runs of one policy must differ in their seed, but have seeds {seeds}")
    return Contender(given, "+".join(sorted({spec.name for spec in specs})), runs=runs)


def evaluate(
    suite: SuiteSpec, contenders: Sequence[Contender], against: Contender, *, random_seeds: int = 3, seed: int = 0
) -> list[EvaluationRow]:
    """Returns a row for every contender, workload and seed, of ``against`` as well.

    ``random`` and ``first`` choose in the environment of the first trained run among the contenders, or in the default
    one, so that they face the same decisions as the policy they are compared with.

    Raises:
        ConfigError: Two contenders have one name, the suite names something unknown, or a policy does not fit.
    """
    contenders = _with_reference(contenders, against)
    workloads = suite.draw()
    default_env = env_of_random(contenders)
    rows: list[EvaluationRow] = []
    for contender in contenders:
        if contender.schedule is not None:
            rows += _rows(contender.name, None, play_schedule(contender.schedule, workloads))
        elif contender.ahead is not None:
            rows += _rows(contender.name, None, _play_ahead(contender.ahead, workloads))
        elif contender.runs:
            for run in contender.runs:
                rows += _rows(contender.name, read_spec(run).seed, _play_run(run, workloads))
        elif contender.name == FIRST:
            rows += _rows(FIRST, None, play(environments(default_env, workloads), workloads, choose_first))
        else:
            for index in range(random_seeds):
                stream = seed + index
                rows += _rows(RANDOM, stream, _play_random(default_env, workloads, stream))
    return rows


def env_of_random(contenders: Sequence[Contender]) -> EnvSpec:
    """Returns the environment in which ``random`` and ``first`` choose beside these contenders."""
    trained = [contender.runs[0] for contender in contenders if contender.runs]
    return read_spec(trained[0]).env if trained else EnvSpec()


def _rows(policy: str, seed: int | None, played: Sequence[Played]) -> list[EvaluationRow]:
    return [EvaluationRow(policy, seed, *asdict(item).values()) for item in played]


def _with_reference(contenders: Sequence[Contender], against: Contender) -> list[Contender]:
    """Returns the contenders and, unless it is one of them, the reference.

    Raises:
        ConfigError: Two of them have one name, by which their rows would be confused.
    """
    chosen: dict[str, Contender] = {}
    for contender in contenders:
        if contender.name in chosen:
            raise _same_name(contender, "policy", chosen[contender.name])
        chosen[contender.name] = contender
    if not chosen.setdefault(against.name, against).is_same_as(against):
        raise _same_name(chosen[against.name], "against", against)
    return list(chosen.values())


def _same_name(contender: Contender, option: str, other: Contender) -> ConfigError:
    if contender.is_same_as(other):
        return ConfigError(f"policy='{contender.given}' is given twice")
    joined = ", or join run folders of one policy with commas" if contender.runs and other.runs else ""
    return ConfigError(
        f"policy='{contender.given}' is named '{contender.name}' like {option}='{other.given}'; rename it{joined}"
    )


def _play_run(run: RunFolder, workloads: Sequence[SuiteWorkload]) -> list[Played]:
    env = read_spec(run).env
    return played(play_policy(load_policy(run.best, env), env, workloads), workloads)


def _play_ahead(ahead: LookAhead, workloads: Sequence[SuiteWorkload]) -> list[Played]:
    rows = []
    for workload in prepare(workloads):
        end = look_ahead(workload, ahead)
        rows.append(Played(workload.name, end.makespan_ps / 1e6, workload.bound.total_ps / 1e6, end.decisions))
    return rows


def _play_random(env_spec: EnvSpec, workloads: Sequence[SuiteWorkload], seed: int) -> list[Played]:
    envs = environments(env_spec, workloads)
    return play(envs, workloads, random_chooser(seed, len(envs)))


def summarise(rows: Sequence[EvaluationRow], against: str, seed: int = 0) -> list[Summary]:
    """Returns a summary of every policy in ``rows``, in their order.

    Raises:
        ConfigError: ``against`` is not among them.
    """
    policies = list(dict.fromkeys(row.policy for row in rows))
    if against not in policies:
        raise ConfigError(f"against='{against}' was not evaluated; choose from {policies}")
    tables = {policy: makespans(rows, policy) for policy in policies}
    reference = np.log(tables[against]).mean(axis=0)  # (workload,)
    bounds = {row.workload: row.lower_bound_us for row in rows}
    bound_us = np.array(list(bounds.values()))
    summaries = []
    for policy in policies:
        relative = np.log(tables[policy]) - reference  # (seed, workload)
        low, high = bootstrap_interval(relative, seed)
        seeds, workloads = relative.shape
        summaries.append(
            Summary(
                policy=policy,
                against=against,
                geomean_ratio=float(np.exp(relative.mean())),
                ci_low=low,
                ci_high=high,
                mean_ratio_to_bound=float((tables[policy] / bound_us).mean()),
                wins=int((relative.mean(axis=0) < -_EQUAL).sum()),
                workloads=workloads,
                seeds=seeds,
            )
        )
    return summaries


def makespans(rows: Sequence[EvaluationRow], policy: str) -> np.ndarray:
    """Returns the (seed, workload) makespans of a policy; every seed played the same workloads in the same order."""
    by_seed: dict[int | None, list[float]] = {}
    for row in rows:
        if row.policy == policy:
            by_seed.setdefault(row.seed, []).append(row.makespan_us)
    return np.array(list(by_seed.values()))


def bootstrap_interval(log_ratios: np.ndarray, seed: int, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Returns the 95 % interval of exp(mean) of (seed, workload) log ratios, resampled over both axes."""
    rng = np.random.default_rng(seed)
    num_seeds, num_workloads = log_ratios.shape
    # Drawing with replacement is drawing how often each is taken.
    seed_counts = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples)
    workload_counts = rng.multinomial(num_workloads, np.full(num_workloads, 1 / num_workloads), size=resamples)
    means = ((seed_counts @ log_ratios) * workload_counts).sum(axis=1) / (num_seeds * num_workloads)
    low, high = np.exp(np.percentile(means, [2.5, 97.5]))
    return float(low), float(high)


def beats_on_every_workload(rows: Sequence[EvaluationRow], policy: str, other: str) -> tuple[int, int]:
    """Returns on how many workloads ``policy`` is faster than the mean of ``other``'s seeds, and how many there are."""
    mine, theirs = makespans(rows, policy).mean(axis=0), makespans(rows, other).mean(axis=0)
    return int((mine < theirs).sum()), len(mine)


def json_content(rows: Sequence[EvaluationRow], summaries: Sequence[Summary]) -> dict[str, Any]:
    """Returns ``rows`` and ``summary`` as the evaluate command's JSON holds them."""
    return {"rows": [asdict(row) for row in rows], "summary": [asdict(summary) for summary in summaries]}
