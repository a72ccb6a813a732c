"""Evaluation: any mix of schedules and policies on one suite, paired workload by workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender, Opponent, Played
from dysharp_env.simulator.warmup import notice
from dysharp_env.workers import Workers
from dysharp_env.workload.suite import MOST_WORKLOADS

from .statistics import EQUAL, geometric_mean, improvement, interquartile_mean


@dataclass(frozen=True)
class Summary:
    """A policy over a suite.

    Attributes:
        policy: Its name.
        against: The policy its makespans are divided by.
        geomean_ratio: Geometric mean of makespan over that of ``against``.
        ci_low, ci_high: 95 % bootstrap interval of ``geomean_ratio``.
        iqm_ratio: Mean of the middle half of all ratios, seeds and workloads together.
        iqm_low, iqm_high: Its interval.
        improvement: Fraction of (seed, workload) on which the policy is faster, as fast counting half.
        improvement_low, improvement_high: Its interval.
        mean_ratio_to_bound: Mean makespan over lower bound.
        wins: Workloads on which the policy (geometric mean of its seeds) is faster than ``against``.
        workloads: Workloads compared.
        seeds: Training seeds, or seeds of random choices.
        mean_ratio_to_family_bound: Mean makespan over the bound of all that runs by the policy's program; None where
            that is not known.
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
    mean_ratio_to_family_bound: float | None = None


@dataclass(frozen=True)
class _Play:
    """One row to be."""

    opponent: Opponent
    problem: Problem
    place: int
    policy: str

    def played(self) -> Played | ConfigError:
        try:
            return self.opponent.play_one(self.problem, self.place, self.policy)
        except ConfigError as error:
            return error

    def size(self) -> int:
        return self.problem.size


def evaluate(
    problems: Sequence[Problem],
    contenders: Sequence[Contender],
    *references: Contender,
    workers: Workers | None = None,
    tell: Callable[[float], object] = lambda part: None,
) -> list[Played]:
    """Returns a row for every contender, seed and problem, those of the references as well.

    ``workers`` play them; None: this process. ``tell`` is called with what part is done, 0 to 1. Of problems that a
    contender cannot run, as the machine lacks what it needs, it has no row, and a line says so.

    Raises:
        ConfigError: Two contenders have one name, or one can run none of the problems.
    """
    plays = [
        _Play(opponent, problem, place, contender.name)
        for contender in with_references(contenders, references)
        for opponent in contender.opponents
        for place, problem in enumerate(problems)
    ]
    constants = [*problems, *{id(play.opponent): play.opponent for play in plays}.values()]
    total, done = sum(play.size() for play in plays), 0

    def note(count: int, place: int, row: Played | ConfigError) -> None:
        nonlocal done
        done += plays[place].size()
        tell(done / total)

    played = (workers or Workers()).map(_Play.played, plays, size=_Play.size, constants=constants, tell=note)
    _tell_of_missing(plays, played)
    return [row for row in played if isinstance(row, Played)]


def _tell_of_missing(plays: Sequence[_Play], played: Sequence[Played | ConfigError]) -> None:
    """Says which policies cannot run how many problems, and raises the reason of one that can run none."""
    for policy in dict.fromkeys(play.policy for play in plays):
        rows = [row for play, row in zip(plays, played, strict=True) if play.policy == policy]
        missing = [row for row in rows if isinstance(row, ConfigError)]
        if missing and len(missing) == len(rows):
            raise missing[0]
        if missing:
            notice(f"{policy} has no row for {len(missing)} of {len(rows)} layers, such as: {missing[0]}")


def with_renamings(problems: Sequence[Problem], renamings: int) -> list[Problem]:
    """Returns problems under so many numberings of their GPUs, the first as they are.

    What a number is about is then a mean over them, as ties that are broken by a GPU's number move a makespan by a few
    per cent.

    Raises:
        ConfigError: They are more than can be held.
    """
    if (count := renamings * len(problems)) > MOST_WORKLOADS:
        raise ConfigError(f"renamings={renamings} of {len(problems)} workloads are {count}; at most {MOST_WORKLOADS}")
    return [problem.renamed(renaming) for renaming in range(renamings) for problem in problems]


def opponents_of(contenders: Sequence[Contender]) -> dict[tuple[str, int | None], Opponent]:
    """Returns all opponents by the policy and seed of their rows."""
    return {(contender.name, opponent.seed): opponent for contender in contenders for opponent in contender.opponents}


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
    joined = ", or join run folders of one policy with commas" if contender.sort == other.sort == "runs" else ""
    return ConfigError(
        f"policy='{contender.given}' is named '{contender.name}' like {option}='{other.given}'; rename it{joined}"
    )


def summarise(rows: Sequence[Played], against: str, seed: int = 0) -> list[Summary]:
    """Returns a summary of every policy in ``rows`` that shares workloads with ``against``, in their order.

    Raises:
        ConfigError: ``against`` is not among them.
    """
    policies = list(dict.fromkeys(row.policy for row in rows))
    if against not in policies:
        raise ConfigError(f"against='{against}' was not evaluated; choose from {policies}")
    summaries = []
    for policy in policies:
        shared, relative = log_ratios(rows, policy, against)
        if not shared:
            continue
        # A schedule that copies experts has another bound than one that does not.
        to_bound = float(np.mean([row.ratio for row in rows if row.policy == policy and row.workload in shared]))
        wins = int((relative.mean(axis=0) < -EQUAL).sum())
        seeds, workloads = relative.shape
        means = (*geometric_mean(relative, seed), *interquartile_mean(relative, seed), *improvement(relative, seed))
        to_family = _mean_ratio_to_family_bound(rows, policy)
        summaries.append(Summary(policy, against, *means, to_bound, wins, workloads, seeds, to_family))
    return summaries


def _mean_ratio_to_family_bound(rows: Sequence[Played], policy: str) -> float | None:
    ratios = [
        row.makespan_us / row.family_bound_us
        for row in rows
        if row.policy == policy and row.family_bound_us is not None
    ]
    return float(np.mean(ratios)) if ratios else None


def log_ratios(rows: Sequence[Played], policy: str, against: str) -> tuple[list[str], np.ndarray]:
    """Returns the workloads that both have played, and (seed, workload) logs of the policy's makespan over the other's.

    Of several seeds of ``against`` their geometric mean counts.
    """
    theirs = {row.workload for row in rows if row.policy == against}
    shared = list(dict.fromkeys(row.workload for row in rows if row.policy == policy and row.workload in theirs))
    if not shared:
        return shared, np.zeros((1, 0))
    reference = np.log(makespans(rows, against, shared)).mean(axis=0)  # (workload,)
    return shared, np.log(makespans(rows, policy, shared)) - reference


def makespans(rows: Sequence[Played], policy: str, workloads: Sequence[str] | None = None) -> np.ndarray:
    """Returns the (seed, workload) makespans of a policy, each the geometric mean over renamings of the GPUs.

    Every seed played the same workloads in the same order; ``workloads`` chooses some of them.
    """
    by_seed: dict[int | None, dict[str, list[float]]] = {}
    for row in rows:
        if row.policy == policy:
            by_seed.setdefault(row.seed, {}).setdefault(row.workload, []).append(row.makespan_us)
    return np.array([[_geometric_mean(played[name]) for name in workloads or played] for played in by_seed.values()])


def _geometric_mean(values: Sequence[float]) -> float:
    return float(np.prod(np.power(values, 1 / len(values))))  # of one value that value, not a rounding of it


def beats_on_every_workload(rows: Sequence[Played], policy: str, other: str) -> tuple[int, int]:
    """Returns on how many workloads ``policy`` is faster than the mean of ``other``'s seeds, and how many there are."""
    shared, _ = log_ratios(rows, policy, other)
    mine, theirs = makespans(rows, policy, shared).mean(axis=0), makespans(rows, other, shared).mean(axis=0)
    return int((mine < theirs).sum()), len(mine)


def json_content(
    rows: Sequence[Played],
    summaries: Sequence[Summary],
    charged: Sequence[Summary] = (),
    groups: Sequence[Any] = (),
) -> dict[str, Any]:
    """Returns what the evaluate command's JSON holds: rows, summaries, those of charged makespans, and groups."""
    parts = {"rows": rows, "summary": summaries, "charged": charged, "breakdown": groups}
    return {key: [asdict(line) for line in lines] for key, lines in parts.items()}
