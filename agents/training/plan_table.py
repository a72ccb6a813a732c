"""What every plan takes on every workload, and networks that choose by it.

The engine is deterministic, so what a plan is worth on a layer need not be estimated: each is played to the end, once.
A network then learns to choose with the lowest expected loss, by exact gradients. Beside what it loses on average it
is to lose much nowhere: losses beyond ``TOLERATED`` count more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cma
import numpy as np
import torch

from dysharp_env.schedules import Exposure, Problem, ScheduleSpec
from dysharp_env.simulator.engine import Decision
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES
from dysharp_env.workers import Workers

from ..opponents.rollouts import play, size_of
from ..policies.candidate_policy import CandidateScorer, Decisions
from ..policies.linear import FEATURES_OF_KIND

ARRAYS = ("features", "context", "makespans_ps")  # of a table, beside its names
TOLERATED, WEIGHED = 0.03, 4.0  # of a log makespan above the best plan's; what each beyond that counts
_SPREAD = 0.03  # of a log makespan, by which a plan's chance falls to 1/e
_STEEP = 10.0  # what a rule's weights are multiplied with to be logs of chances, and what these lose counts
_MOST_ENGINES = 16  # in memory at a time


@dataclass(frozen=True)
class PlanTable:
    """Plans on workloads; machines that cannot run all of them have empty rows behind the last.

    Attributes:
        names: (workload,) names.
        features: (workload, plan, feature) float32 what the decision shows, and ``context``, (workload, context).
        makespans_ps: (workload, plan) int64; 0 where there is no plan, or nobody has played it.
    """

    names: tuple[str, ...]
    features: np.ndarray
    context: np.ndarray
    makespans_ps: np.ndarray

    def joined(self, other: PlanTable) -> PlanTable:
        """Returns both, one behind the other."""
        return PlanTable(
            (*self.names, *other.names),
            *(np.concatenate([getattr(self, name), getattr(other, name)]) for name in ARRAYS),
        )

    @property
    def legal(self) -> np.ndarray:
        """(workload, plan) bool, whether there is such a plan and it was played."""
        return self.makespans_ps > 0

    @property
    def losses(self) -> np.ndarray:
        """(workload, plan) log makespan less that of the best plan; 0 where there is none."""
        logs = np.log(np.where(self.legal, self.makespans_ps, 1))
        return np.where(self.legal, logs - np.where(self.legal, logs, np.inf).min(axis=1, keepdims=True), 0.0)


@dataclass(frozen=True)
class Promising:
    """The plans of a layer that are worth playing: those that a network scores highest, and some others.

    Attributes:
        network: It.
        best: How many of the highest.
        others: How many of the rest, at random.
        seed: Of that draw.
    """

    network: Network
    best: int
    others: int
    seed: tuple[int, ...]

    def places(self, waiting: Decision, layer: int) -> list[int]:
        """Returns the places of plans to play on the layer of some number, in order."""
        count = waiting.num_candidates
        scores = self.network.scores(waiting.features[:count], waiting.context)
        order = np.argsort(-np.where(waiting.mask[:count], scores, -np.inf), kind="stable")[: waiting.mask.sum()]
        rest = np.random.default_rng([*self.seed, layer]).permutation(order[self.best :])
        return sorted([*order[: self.best].tolist(), *rest[: self.others].tolist()])


def play_plans(
    problems: Sequence[Problem],
    schedule: ScheduleSpec,
    exposure: Exposure,
    workers: Workers | None = None,
    promising: Promising | None = None,
) -> PlanTable:
    """Plays every plan of a schedule on every problem, or those alone that are promising.

    What is decided besides, networks of the exposure decide.

    Raises:
        ConfigError: The schedule does not fit a system.
    """
    play_one = partial(_play_problem, schedule, exposure, promising)
    played = (workers or Workers()).map(play_one, [*enumerate(problems)], size=_size_of, constants=problems)
    features, context, makespans_ps = (np.array(arrays) for arrays in zip(*played, strict=True))
    return PlanTable(tuple(problem.name for problem in problems), features, context, makespans_ps)


def _size_of(item: tuple[int, Problem]) -> int:
    return size_of(item[1])


def _play_problem(
    schedule: ScheduleSpec, exposure: Exposure, promising: Promising | None, item: tuple[int, Problem]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a row of each array of a table."""
    layer, problem = item
    size = exposure.max_candidates
    waiting = problem.start(schedule, Exposure(("plan",), max_candidates=size)).waiting
    makespans_ps = np.zeros(size, np.int64)
    if waiting is None:  # one plan
        (only,) = problem.under_each_plan(schedule, exposure)
        makespans_ps[0] = play([only.engine], size)[0]
        return np.zeros((size, len(FEATURES)), np.float32), np.zeros(len(CONTEXT), np.float32), makespans_ps
    places = promising.places(waiting, layer) if promising else np.flatnonzero(waiting.mask).tolist()
    for first in range(0, len(places), _MOST_ENGINES):
        batch = places[first : first + _MOST_ENGINES]
        makespans_ps[batch] = play([run.engine for run in problem.under_each_plan(schedule, exposure, batch)], size)
    return waiting.features, waiting.context, makespans_ps


class Fit(NamedTuple):
    """A network that chooses plans, and what it loses.

    Attributes:
        network: It.
        loss: Mean of the log makespan above the best plan's, where it was fitted.
        worst: The largest.
    """

    network: Network
    loss: float
    worst: float


def fit_plans(
    table: PlanTable, width: int, seed: int, *, steps: int = 800, rate: float = 0.01, decay: float = 0.1
) -> Fit:
    """Returns a network of some width that was fitted to a table by Adam with weight decay.

    Args:
        table: What plans are worth.
        width: Of its layers.
        seed: Of its first weights.
        steps: Gradient steps on the whole table.
        rate: Of the first step; it falls to 0 along a half cosine.
        decay: Of weights, as of AdamW.
    """
    torch.manual_seed(seed)
    scorer = CandidateScorer(width, np.zeros((len(CONTEXT), len(FEATURES))))
    torch.nn.init.orthogonal_(scorer.score.weight, 1.0)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    features, context = torch.from_numpy(table.features), torch.from_numpy(table.context)
    legal, wanted = torch.from_numpy(table.legal), torch.from_numpy(_wanted(table)).float()
    decisions = Decisions.of({"candidates": features, "context": context})
    for _ in range(steps):
        logs = torch.log_softmax(scorer(decisions).masked_fill(~legal, -torch.inf), dim=1)
        loss = -(wanted * logs.masked_fill(~legal, 0)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network = scorer.network()
    lost = losses_of(table, lambda row: choose(network, table, row))
    return Fit(network, float(lost.mean()), float(lost.max()))


def _wanted(table: PlanTable) -> np.ndarray:
    """Returns the (workload, plan) chances with which plans should be chosen: the less they lose, the more."""
    chances = np.where(table.legal, np.exp(-_weighed(table.losses) / _SPREAD), 0.0)
    return chances / chances.sum(axis=1, keepdims=True)


def _weighed(losses: np.ndarray) -> np.ndarray:
    return losses + WEIGHED * np.maximum(losses - TOLERATED, 0)


def choose(network: Network, table: PlanTable, row: int) -> int:
    """Returns the plan, of those played, that a network chooses on a workload of a table."""
    count = int(np.flatnonzero(table.legal[row] | table.features[row].any(axis=1))[-1]) + 1
    return network.best(table.features[row, :count], table.context[row], table.legal[row, :count])


def losses_of(table: PlanTable, choice: Callable[[int], int]) -> np.ndarray:
    """Returns (workload,) what is lost by a choice for each row of a table."""
    return table.losses[np.arange(len(table.names)), [choice(row) for row in range(len(table.names))]]


def fit_rule(table: PlanTable, seed: int, *, restarts: int = 4, generations: int = 300) -> tuple[dict[str, float], Fit]:
    """Returns the linear rule for plans that loses least on a table, by gradients and CMA-ES, as weights by feature.

    A rule sees the same features as a network and the same layers, and is judged alike; it does not see the context.

    Args:
        table: What plans are worth.
        seed: Of the search.
        restarts: Searches, the best of which is kept; each begins at another place, one where gradients led.
        generations: Of each.
    """
    names = FEATURES_OF_KIND["plan"]
    columns = [FEATURES.index(name) for name in names]
    features, legal, losses = table.features[:, :, columns].astype(np.float64), table.legal, _weighed(table.losses)
    rows = np.arange(len(losses))

    def loss(weights: np.ndarray) -> float:
        scores = np.where(legal, features @ weights, -np.inf)
        return float(losses[rows, scores.argmax(axis=1)].mean())

    rng = np.random.default_rng(seed)
    found = []
    for restart in range(restarts):
        start = rng.normal(0, 0.5, len(names)) if restart else _descended(table, columns)
        options = {"seed": int(rng.integers(1, 2**31)), "verbose": -9, "maxiter": generations}
        found.append(cma.fmin2(loss, start, 0.5, options)[0])
    best = min([*found, np.zeros(len(names))], key=loss)
    scaled = np.round(best / max(np.abs(best).max(), 1e-9), 4)
    rule = {name: float(weight) for name, weight in zip(names, scaled, strict=True) if weight}
    lost = table.losses[rows, np.where(legal, features @ scaled, -np.inf).argmax(axis=1)]
    return rule, Fit(Network.nothing(), float(lost.mean()), float(lost.max()))


def _descended(table: PlanTable, columns: list[int], steps: int = 1500, rate: float = 0.02) -> np.ndarray:
    """Returns the (feature,) weights to which gradients of what chances lose, and of what should be chosen, lead."""
    features, legal = torch.from_numpy(table.features[:, :, columns]), torch.from_numpy(table.legal)
    wanted, losses = (torch.from_numpy(each).float() for each in (_wanted(table), _weighed(table.losses)))
    weights = torch.zeros(len(columns), requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=rate)
    for _ in range(steps):
        logs = torch.log_softmax((_STEEP * features @ weights).masked_fill(~legal, -torch.inf), dim=1)
        lost = (logs.exp() * losses).sum(dim=1) * _STEEP - (wanted * logs.masked_fill(~legal, 0)).sum(dim=1)
        optimizer.zero_grad()
        lost.mean().backward()
        optimizer.step()
    return weights.detach().numpy().astype(np.float64)
