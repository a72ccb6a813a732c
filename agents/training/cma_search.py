"""Evolution of linear rules by CMA-ES through the engine: every generation plays a batch of workloads under each rule.

The objective is the mean log of makespan over the reference's on the same workload, so its exponential is a geometric
mean of ratios. A generation is compared on a few workloads, drawn anew each time; every few generations the middle of
the distribution is measured on all of them, and the best so measured is what is returned. The start counts as measured,
so the result is never worse than it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cma
import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem, ScheduleSpec
from dysharp_env.workers import Workers

from ..opponents.rollouts import makespans_ps
from ..policies.linear import FEATURES_OF_KIND, kinds_ruled, start_weights

_MEASURE_EVERY = 8  # generations
_SIGMA = 0.4  # first standard deviation: of weights whose largest starts at 1, and of octaves of settings


@dataclass(frozen=True)
class Budget:
    """What a search may spend; it ends with the generation that reaches one of them, and one more measurement.

    Attributes:
        episodes: Layers played, those of the reference and the measurements included.
        cpu_s: Processor seconds of this process and of workers.
    """

    episodes: int
    cpu_s: float


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        schedule: The best schedule measured.
        ratio: Geometric mean of its makespan over the reference's.
        start_ratio: That of the schedule the search began at.
        episodes, cpu_s: What was spent.
        generations: Generations of rules.
    """

    schedule: ScheduleSpec
    ratio: float
    start_ratio: float
    episodes: int
    cpu_s: float
    generations: int


def search(
    base: ScheduleSpec,
    problems: Sequence[Problem],
    reference: ScheduleSpec,
    budget: Budget,
    *,
    name: str,
    seed: int = 0,
    batch: int = 8,
    workers: Workers | None = None,
    tell: Callable[[float, str], object] = lambda part, line: None,
) -> Found:
    """Returns the best linear rule found from a schedule on.

    The same arguments give the same result unless the processor seconds end the search.

    Args:
        base: Where the search begins, and whatever is not searched.
        problems: What makespans are measured on.
        reference: What they are relative to.
        budget: What may be spent.
        name: Name of the schedule that is returned.
        seed: Seeds rules and draws of workloads.
        batch: Workloads that one generation is compared on; all of them if there are no more.
        workers: Who plays; None: this process. They change no result.
        tell: Receives at every measurement which part of the budget is spent, 0 to 1, and a line.

    Raises:
        ConfigError: The schedule does not fit a system.
    """
    workers = workers or Workers()
    began = workers.cpu_s
    space = SearchSpace(base)
    rng = np.random.default_rng(seed)
    reference_ps = makespans_ps([reference], problems, workers)[0]
    strategy = cma.CMAEvolutionStrategy(space.start, _SIGMA, {"seed": seed + 1, "verbose": -9})
    best, episodes = (np.inf, base), len(problems)
    start, generation = 0.0, 0
    while True:
        spent = workers.cpu_s - began
        is_over = episodes >= budget.episodes or spent >= budget.cpu_s
        if generation % _MEASURE_EVERY == 0 or is_over:
            schedule = space.schedule(strategy.mean, name)
            value = float(np.log(makespans_ps([schedule], problems, workers)[0] / reference_ps).mean())
            episodes += len(problems)
            best = min(best, (value, schedule), key=lambda measured: measured[0])
            start = start if generation else value
            part = max(episodes / budget.episodes, spent / budget.cpu_s)
            line = f"generation {generation}: {np.exp(value):.4f}, best {np.exp(best[0]):.4f}, {episodes} episodes"
            tell(min(part, 1.0), line)
        if is_over:
            return Found(best[1], float(np.exp(best[0])), float(np.exp(start)), episodes, spent, generation)
        points = strategy.ask()
        drawn = np.sort(rng.permutation(len(problems))[:batch])
        rules = [space.schedule(point, name) for point in points]
        makespans = makespans_ps(rules, [problems[i] for i in drawn], workers)
        ratios = _logs(makespans, reference_ps[drawn], [problems[i].name for i in drawn])
        strategy.tell(points, ratios.mean(axis=1).tolist())
        episodes += ratios.size
        generation += 1


def _logs(makespans_ps: np.ndarray, reference_ps: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Returns the logs of (rule, workload) makespans over the reference's on the workloads of these names.

    Raises:
        ConfigError: A makespan has none.
    """
    for rule, place in np.argwhere(makespans_ps <= 0)[:1].tolist():
        took = f"'{names[place]}' took {makespans_ps[rule, place]} ps under rule {rule}"
        raise ConfigError(f"{took}: the search stops, with nothing written")
    return np.log(makespans_ps / reference_ps)


# Whole numbers that are searched by their logarithms to base 2, and the most of each; the least is 1. A quarter of an
# H100's SMs for each communication group is the most that any shipped schedule takes and more than the links can use.
# Chunks end where a GPU of the smallest suites has only a few left to choose from.
_SETTINGS = {"dispatch_sms": 32, "combine_sms": 32, "chunk_tokens": 32, "min_partial_tokens": 128}
_DIGITS = 3  # of a weight relative to the largest of its kind
# Of an open tile, where the start closes none early: so far below hold that nothing else outweighs it. A search can
# then find which tiles to close.
_BELOW_HOLD = -2.0
_FEWEST_TOKENS = 32  # of a tile closed early, where the start closes none


class SearchSpace:
    """Every weight of the kinds a linear rule decides, and the settings that go with them.

    A point is a vector: weights by kind in the order of ``FEATURES_OF_KIND``, then settings. Everything else is the
    base schedule's. Weights are scaled and rounded before they are used, so what is tried is what is written.

    Attributes:
        start: (dimension,) float64, the base schedule.
    """

    def __init__(self, base: ScheduleSpec) -> None:
        """Begins at a schedule."""
        self._base = base
        partial = base.min_partial_tokens if base.partial_tiles else _FEWEST_TOKENS
        settings = (*base.sms.groups(_SETTINGS["dispatch_sms"]), base.chunk_tokens, partial)
        self._kinds = kinds_ruled(base)
        weights = [weight for kind in self._kinds for weight in start_weights(base, kind, _BELOW_HOLD)]
        self.start = np.array([*weights, *np.log2(settings)])

    def schedule(self, point: np.ndarray, name: str) -> ScheduleSpec:
        """Returns the schedule of a point."""
        rule, at = {}, 0
        for kind in self._kinds:
            features = FEATURES_OF_KIND[kind]
            weights = point[at : at + len(features)]
            at += len(features)
            scaled = np.round(weights / max(np.abs(weights).max(), 1e-9), _DIGITS)
            rule[kind] = {feature: float(weight) for feature, weight in zip(features, scaled, strict=True) if weight}
        values = {
            setting: int(np.clip(round(2.0 ** min(coordinate, 20.0)), 1, most))
            for (setting, most), coordinate in zip(_SETTINGS.items(), point[at:], strict=True)
        }
        changes = {
            "name": name,
            "sms.dispatch": values.pop("dispatch_sms"),
            "sms.combine": values.pop("combine_sms"),
            **values,
            "partial_tiles": True,
            "hold": True,
            "rule": rule,
            "best_of": (),
        }
        return self._base.with_changes(changes)
