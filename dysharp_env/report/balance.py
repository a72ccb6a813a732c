"""What balancing brings: schedules that copy experts beside one that does not, and beside balance that is forced.

Each number of tokens is a line: the time under every schedule, as a share of the time of the first schedule on the same
tokens spread evenly over all experts (workload/balanced.py), which no copies can be expected to beat by much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from dysharp_env.report.tables import add_groups, empty_table
from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender
from dysharp_env.workload import Scenario, Workload
from dysharp_env.workload.balanced import force_balanced


@dataclass(frozen=True)
class BalanceRow:
    """One workload under one schedule.

    Attributes:
        tokens: Of each GPU.
        seed: Of the workload.
        workload: Its name.
        schedule: Who ran it.
        makespan_us: What it took.
        lower_bound_us: What no schedule can beat, if it may do what this one may.
        balanced_us: The time of the first schedule where balance is forced.
        copies: Copies of an expert's weights that were made in the layer, or replicas that were there before.
        imbalance: Most (token, expert)s of a GPU over the mean, as shared out by the schedule.
    """

    tokens: int
    seed: int
    workload: str
    schedule: str
    makespan_us: float
    lower_bound_us: float
    balanced_us: float
    copies: int
    imbalance: float

    @property
    def share(self) -> float:
        """The share of the forced balance that is reached."""
        return self.balanced_us / self.makespan_us

    def record(self) -> dict[str, Any]:
        """Returns the row as one item of ``rows`` in a JSON result."""
        return {**asdict(self), "share": self.share}


def imbalance(workload: Workload) -> float:
    """Returns the (token, expert)s of the busiest GPU over the mean: what perfect balance would divide its work by."""
    loads = np.bincount(workload.gpu_of_expert, weights=workload.demand.expert_tokens, minlength=workload.num_gpus)
    return float(loads.max() / loads.mean())


def balance_rows(
    scenarios: Sequence[Scenario], contenders: Sequence[Contender], seeds: Sequence[int], resolution: str
) -> Iterator[BalanceRow]:
    """Yields every workload of the scenarios under every contender, the first of which also runs it balanced.

    Raises:
        ConfigError: A schedule does not fit.
    """
    for scenario in scenarios:
        settings: dict[str, Any] = {"compute_scale": scenario.spec.compute_scale, "resolution": resolution}
        for seed in seeds:
            workload = scenario.draw(seed)
            even = Problem.of(scenario.system, force_balanced(workload, seed), **settings)
            balanced_us = contenders[0].first.run(even).engine.now_ps / 1e6
            problem = Problem.of(scenario.system, workload, **settings)
            for contender in contenders:
                run = contender.first.run(problem)
                shared = run.engine.workload
                yield BalanceRow(
                    workload.most_tokens,
                    seed,
                    workload.name,
                    contender.name,
                    run.engine.now_ps / 1e6,
                    run.lower_bound_ps / 1e6,
                    balanced_us,
                    shared.num_experts - workload.num_experts,
                    imbalance(shared),
                )


def pays_from(rows: Sequence[BalanceRow], schedule: str) -> int | None:
    """Returns from how many tokens on a schedule beats the first one, on the mean, wherever it was tried; or None."""
    first = rows[0].schedule
    found = None
    for tokens in sorted({row.tokens for row in rows}, reverse=True):
        at = [row for row in rows if row.tokens == tokens]
        of_name = {name: [row.makespan_us for row in at if row.schedule == name] for name in (schedule, first)}
        if _mean(of_name[schedule]) >= _mean(of_name[first]):
            break
        found = tokens
    return found


def balance_table(rows: Sequence[BalanceRow], title: str) -> Table:
    """Returns a line for each number of tokens and schedule, means over seeds, below what forced balance takes."""
    names = list(dict.fromkeys(row.schedule for row in rows))
    table = empty_table(title, ("tokens", "schedule"), ("us", "of balanced", "busiest/mean", "copies", "x bound"))
    lines: list[tuple[str, Sequence[str]]] = []
    for tokens in dict.fromkeys(row.tokens for row in rows):
        at = [row for row in rows if row.tokens == tokens]
        lines.append((str(tokens), ("forced balance", f"{_mean([row.balanced_us for row in at]):.0f}")))
        for name in names:
            own = [row for row in at if row.schedule == name]
            bound = _mean([row.makespan_us / row.lower_bound_us for row in own])
            cells = (
                f"{_mean([row.makespan_us for row in own]):.0f}",
                f"{_mean([row.share for row in own]):.1%}",
                f"{_mean([row.imbalance for row in own]):.2f}",
                f"{sum(row.copies for row in own) / len(own):.1f}",
                f"{bound:.3f}",
            )
            lines.append((str(tokens), (escape(name), *cells)))
    add_groups(table, lines)
    return table


def pays_lines(rows: Sequence[BalanceRow]) -> list[str]:
    """Returns a line for each schedule but the first: from how many tokens on it pays, of those that were tried."""
    names = list(dict.fromkeys(row.schedule for row in rows))
    tried = sorted({row.tokens for row in rows})
    found = {name: pays_from(rows, name) for name in names[1:]}
    return [
        f"{name} beats {names[0]} "
        + (f"at none of up to {tried[-1]} tokens" if tokens is None else f"from {tokens} tokens per GPU on")
        for name, tokens in found.items()
    ]


def _mean(values: Sequence[float]) -> float:
    """Returns the geometric mean."""
    return float(np.exp(np.mean(np.log(values))))
