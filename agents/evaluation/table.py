"""Evaluation: any mix of schedules and policies on one suite, paired workload by workload.

Ratios are of makespan over the reference's makespan on the same workload. Intervals are 95 % percentile bootstraps over
workloads and, where a policy has several training seeds, over seeds as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from agents.evaluation.statistics import EQUAL, geometric_mean, improvement, interquartile_mean
from agents.opponents.contender import Contender, Learned
from agents.opponents.lookahead import LookAhead, look_ahead
from agents.opponents.play import (
    FIRST,
    RANDOM,
    Played,
    choose_first,
    environments,
    play,
    play_network,
    play_schedule,
    played,
    random_chooser,
)
from agents.opponents.rollouts import prepare
from dysharp_env.config import ConfigError
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.workload.suite import SuiteSpec, SuiteWorkload


@dataclass(frozen=True)
class EvaluationRow:
    """One workload under one policy.

    Attributes:
        policy: Its name.
        seed: Training seed of a run, seed of random choices, or None.
        workload: The workload's name in its suite.
        makespan_us: Until its last token was combined; decisions take no time.
        lower_bound_us: What no schedule can beat.
        decisions: Decisions with more than one legal answer, of all GPUs.
        busiest_decisions: Decisions asked of the GPU that was asked most; None unless decisions are charged.
        charged_us: The makespan with the time of decisions; None unless they are charged. See charging.py.
    """

    policy: str
    seed: int | None
    workload: str
    makespan_us: float
    lower_bound_us: float
    decisions: int
    busiest_decisions: int | None = None
    charged_us: float | None = None


@dataclass(frozen=True)
class Summary:
    """A policy over a suite.

    Attributes:
        policy: Its name.
        against: The policy its makespans are divided by.
        geomean_ratio: Geometric mean of makespan over that of ``against``.
        ci_low, ci_high: 95 % bootstrap interval of ``geomean_ratio``.
        mean_ratio_to_bound: Mean makespan over lower bound.
        iqm_ratio: Mean of the middle half of all ratios, seeds and workloads together.
        iqm_low, iqm_high: Its interval.
        improvement: Fraction of (seed, workload) on which the policy is faster, as fast counting half.
        improvement_low, improvement_high: Its interval.
        wins: Workloads on which the policy (geometric mean of its seeds) is faster than ``against``.
        workloads: Workloads compared.
        seeds: Training seeds, or seeds of random choices.
    """

    policy: str
    against: str
    geomean_ratio: float
    ci_low: float
    ci_high: float
    iqm_ratio: float
    iqm_low: float
    iqm_high: float
    improvement: float
    improvement_low: float
    improvement_high: float
    mean_ratio_to_bound: float
    wins: int
    workloads: int
    seeds: int


def evaluate(
    suite: SuiteSpec, contenders: Sequence[Contender], *references: Contender, random_seeds: int = 3, seed: int = 0
) -> list[EvaluationRow]:
    """Returns a row for every contender, workload and seed, of the references as well.

    ``random`` and ``first`` choose in the environment of the first trained run among the contenders, or in the default
    one, so that they face the same decisions as the policy they are compared with.

    Raises:
        ConfigError: Two contenders have one name, the suite names something unknown, or a policy does not fit.
    """
    return evaluate_on(suite.draw(), contenders, *references, random_seeds=random_seeds, seed=seed)


def evaluate_on(
    workloads: Sequence[SuiteWorkload],
    contenders: Sequence[Contender],
    *references: Contender,
    random_seeds: int = 3,
    seed: int = 0,
) -> list[EvaluationRow]:
    """Returns what ``evaluate`` does, on workloads that need not be those of a suite.

    ``random`` and ``first`` play machines as their entries name them, the others those of the scenarios.

    Raises:
        ConfigError: Two contenders have one name, or a policy does not fit.
    """
    contenders = with_references(contenders, references)
    default_env = env_of_random(contenders)
    rows: list[EvaluationRow] = []
    for contender in contenders:
        learned = contender.learned()
        if contender.schedule is not None:
            rows += as_rows(contender.name, None, play_schedule(contender.schedule, workloads))
        elif contender.ahead is not None:
            rows += as_rows(contender.name, None, _play_ahead(contender.ahead, workloads))
        elif contender.name == FIRST:
            rows += as_rows(FIRST, None, play(environments(default_env, workloads), workloads, choose_first))
        elif not learned:
            for index in range(random_seeds):
                stream = seed + index
                rows += as_rows(RANDOM, stream, _play_random(default_env, workloads, stream))
        for policy in learned:
            rows += as_rows(contender.name, policy.seed, play_learned(policy, workloads))
    return rows


def env_of_random(contenders: Sequence[Contender]) -> EnvSpec:
    """Returns the environment in which ``random`` and ``first`` choose beside these contenders."""
    return next((policy.env for contender in contenders for policy in contender.learned()), EnvSpec())


def as_rows(policy: str, seed: int | None, played: Sequence[Played]) -> list[EvaluationRow]:
    """Returns the rows of a policy and seed from what became of the workloads."""
    return [EvaluationRow(policy, seed, *asdict(item).values()) for item in played]


def with_references(contenders: Sequence[Contender], references: Sequence[Contender]) -> list[Contender]:
    """Returns the contenders and those references that are not among them.

    Raises:
        ConfigError: Two of them have one name, by which their rows would be confused.
    """
    chosen: dict[str, Contender] = {}
    for contender in contenders:
        if contender.name in chosen:
            raise _same_name(contender, "policy", chosen[contender.name])
        chosen[contender.name] = contender
    for against in references:
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


def play_learned(policy: Learned, workloads: Sequence[SuiteWorkload]) -> list[Played]:
    """Returns what becomes of workloads under a learned policy.

    Raises:
        ConfigError: The schedule beneath does not fit a scenario.
    """
    return played(play_network(policy.network, policy.env, workloads), workloads)


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
        mean, middle = geometric_mean(relative, seed), interquartile_mean(relative, seed)
        faster = improvement(relative, seed)
        seeds, workloads = relative.shape
        summaries.append(
            Summary(
                policy=policy,
                against=against,
                geomean_ratio=mean.value,
                ci_low=mean.low,
                ci_high=mean.high,
                iqm_ratio=middle.value,
                iqm_low=middle.low,
                iqm_high=middle.high,
                improvement=faster.value,
                improvement_low=faster.low,
                improvement_high=faster.high,
                mean_ratio_to_bound=float((tables[policy] / bound_us).mean()),
                wins=int((relative.mean(axis=0) < -EQUAL).sum()),
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


def beats_on_every_workload(rows: Sequence[EvaluationRow], policy: str, other: str) -> tuple[int, int]:
    """Returns on how many workloads ``policy`` is faster than the mean of ``other``'s seeds, and how many there are."""
    mine, theirs = makespans(rows, policy).mean(axis=0), makespans(rows, other).mean(axis=0)
    return int((mine < theirs).sum()), len(mine)


def json_content(
    rows: Sequence[EvaluationRow],
    summaries: Sequence[Summary],
    charged: Sequence[Summary] = (),
    breakdown: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Returns what the evaluate command's JSON holds: rows, summaries, those of charged makespans, and groups."""
    return {
        "rows": [asdict(row) for row in rows],
        "summary": [asdict(summary) for summary in summaries],
        "charged": [asdict(summary) for summary in charged],
        "breakdown": list(breakdown),
    }
