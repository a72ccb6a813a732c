"""Results taken apart: one policy's ratio on each group of a suite's workloads, by size, skew, model and the like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from rich.table import Table
from rich.text import Text

from dysharp_env.config import ConfigError, did_you_mean
from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Played
from dysharp_env.workload import Scenario
from dysharp_env.workload.suite import SuiteWorkload, load_suite

from .report import plain_table
from .statistics import EQUAL, geometric_mean
from .table import log_ratios

TRAINING = "training"  # the suite whose machines and models count as seen
_BANDS = ((64, "<=64"), (256, "65..256"))  # most tokens per GPU of a band, and its name
_LARGE = ">256"


@dataclass(frozen=True)
class GroupResult:
    """One policy on one group of workloads.

    Attributes:
        against: The policy its makespans are divided by.
        by: What the workloads are grouped by.
        group: Which group.
        policy: The policy's name.
        geomean_ratio: Geometric mean of makespan over that of ``against``.
        ci_low, ci_high: 95 % bootstrap interval of it.
        wins: Workloads on which the policy (geometric mean of its seeds) is faster.
        workloads: Workloads of the group.
    """

    against: str
    by: str
    group: str
    policy: str
    geomean_ratio: float
    ci_low: float
    ci_high: float
    wins: int
    workloads: int


def _tokens(item: SuiteWorkload) -> str:
    return next((name for most, name in _BANDS if item.workload.most_tokens <= most), _LARGE)


def _machine(scenario: Scenario) -> tuple[str, int]:
    return scenario.system.name, scenario.system.num_gpus


@cache
def _trained_on() -> tuple[frozenset[tuple[str, int]], frozenset[str]]:
    """Returns machines, by name and GPUs, and models of the training suite."""
    suite = load_suite(TRAINING)
    scenarios = [suite.build(entry) for entry in suite.workloads]
    return frozenset(map(_machine, scenarios)), frozenset(scenario.layer.name for scenario in scenarios)


def _seen(item: SuiteWorkload) -> str:
    machines, models = _trained_on()
    is_new = {"machine": _machine(item.scenario) not in machines, "model": item.scenario.layer.name not in models}
    unseen = [name for name, holds in is_new.items() if holds]
    return f"new {' and '.join(unseen)}" if unseen else "both seen"


def _binds(item: SuiteWorkload) -> str:
    return item.entry.binds or Problem.of_suite([item])[0].binds


GROUPINGS: dict[str, Callable[[SuiteWorkload], str]] = {
    "gpus": lambda item: f"{item.scenario.system.num_gpus} GPUs",
    "model": lambda item: item.scenario.layer.name,
    "tokens": lambda item: f"{_tokens(item)} tokens per GPU",
    "skew": lambda item: item.entry.routing,
    "direction": lambda item: item.entry.direction,
    "dtype": lambda item: f"{item.scenario.layer.dispatch_dtype} dispatch",
    "machine": lambda item: item.scenario.system.name + (", one slow GPU" if item.entry.slow_gpu > 1 else ""),
    "hardware": lambda item: item.entry.hardware,
    "seen": _seen,
    "binds": _binds,
    "group": lambda item: item.entry.group or "no group",
}


# Groups of these are shown by size, others in the order of the suite.
_SIZES: dict[str, Callable[[SuiteWorkload], int]] = {
    "gpus": lambda item: item.scenario.system.num_gpus,
    "tokens": lambda item: item.workload.most_tokens,
}


def read_groupings(given: Sequence[str]) -> list[str]:
    """Returns the names in ``--by`` options, each a name or several joined by commas, each name once.

    Raises:
        ConfigError: One of them is unknown.
    """
    names = list(dict.fromkeys(name for option in given for name in option.split(",")))
    for name in names:
        if name not in GROUPINGS:
            raise ConfigError(f"by='{name}' is unknown; choose from {[*GROUPINGS]}{did_you_mean(name, [*GROUPINGS])}")
    return names


def break_down(
    rows: Sequence[Played], against: str, by: str, workloads: Sequence[SuiteWorkload], seed: int = 0
) -> list[GroupResult]:
    """Returns every policy but ``against`` on every group of workloads."""
    group_of = GROUPINGS[by]
    group: dict[str, str] = {}
    size: Callable[[SuiteWorkload], int] = _SIZES.get(by, lambda _: 0)
    for item in sorted(workloads, key=size):
        group[item.name] = group_of(item)
    results = []
    for policy in dict.fromkeys(row.policy for row in rows if row.policy != against):
        shared, relative = log_ratios(rows, policy, against)
        for name in dict.fromkeys(group.values()):
            places = [place for place, workload in enumerate(shared) if group[workload] == name]
            if not places:
                continue
            part = relative[:, places]
            wins = int((part.mean(axis=0) < -EQUAL).sum())
            results.append(GroupResult(against, by, name, policy, *geometric_mean(part, seed), wins, len(places)))
    return results


def breakdown_table(results: Sequence[GroupResult]) -> Table:
    """Returns a line for each group and policy of one grouping; the groups follow each other."""
    first = results[0]
    table = plain_table(f"By {first.by}: time / {first.against} on the same workload")
    table.add_column("group", overflow="fold")
    table.add_column("policy", overflow="fold")
    for column in ("ratio", "95 %", "wins"):
        table.add_column(column, justify="right", no_wrap=True)
    for group in dict.fromkeys(result.group for result in results):
        inside = [result for result in results if result.group == group]
        for line, result in enumerate(sorted(inside, key=lambda result: result.geomean_ratio)):
            interval = f"{result.ci_low:.3f}-{result.ci_high:.3f}" if result.workloads > 1 else "-"
            table.add_row(
                Text(group if line == 0 else ""),
                Text(result.policy),
                f"{result.geomean_ratio:.3f}",
                interval,
                f"{result.wins}/{result.workloads}",
            )
        table.add_section()
    return table
