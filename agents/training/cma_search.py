"""Evolution of linear rules by CMA-ES through the engine: every generation plays a batch of workloads under each rule.

The objective is the mean log of makespan over the reference's on the same workload, so its exponential is a geometric
mean of ratios. A generation is compared on a few workloads, drawn anew each time; every few generations the middle of
the distribution is measured on all of them, and the best so measured is what is returned. The start counts as measured,
so the result is never worse than it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cma
import numpy as np

from agents.opponents.rollouts import Prepared, makespans_ps
from agents.training.search_space import SearchSpace
from dysharp_env.schedules import ScheduleSpec

_SIGMA = 0.4  # first standard deviation: of weights whose largest starts at 1, and of octaves of settings


@dataclass(frozen=True)
class Budget:
    """What a search may spend; it ends with the generation that reaches one of them, and one more measurement.

    Attributes:
        episodes: Layers played, those of the reference and the measurements included.
        cpu_s: Processor seconds of this process.
    """

    episodes: int
    cpu_s: float


@dataclass(frozen=True)
class Found:
    """What a search came to.

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
    workloads: Sequence[Prepared],
    reference: ScheduleSpec,
    budget: Budget,
    *,
    name: str,
    seed: int = 0,
    batch: int = 8,
    measure_every: int = 8,
    tell: Callable[[str], None] = lambda _: None,
) -> Found:
    """Returns the best linear rule found from a schedule on.

    The same arguments give the same result unless the processor seconds end the search.

    Args:
        base: Where the search begins, and whatever is not searched.
        workloads: What makespans are measured on.
        reference: What they are relative to.
        budget: What may be spent.
        name: Name of the schedule that is returned.
        seed: Seeds rules and draws of workloads.
        batch: Workloads that one generation is compared on; all of them if there are no more.
        measure_every: Generations between measurements on all workloads.
        tell: Receives a line at every measurement.

    Raises:
        ConfigError: The schedule does not fit a system.
    """
    began = time.process_time()
    space = SearchSpace(base)
    rng = np.random.default_rng(seed)
    reference_ps = makespans_ps([reference], workloads)[0]
    strategy = cma.CMAEvolutionStrategy(space.start, _SIGMA, {"seed": seed + 1, "verbose": -9})
    best, episodes = (np.inf, base), len(workloads)
    start, generation = 0.0, 0
    while True:
        spent = time.process_time() - began
        is_over = episodes >= budget.episodes or spent >= budget.cpu_s
        if generation % measure_every == 0 or is_over:
            schedule = space.schedule(strategy.mean, name)
            value = float(np.log(makespans_ps([schedule], workloads)[0] / reference_ps).mean())
            episodes += len(workloads)
            best = min(best, (value, schedule), key=lambda measured: measured[0])
            start = start if generation else value
            tell(f"generation {generation}: {np.exp(value):.4f}, best {np.exp(best[0]):.4f}, {episodes} episodes")
        if is_over:
            return Found(best[1], float(np.exp(best[0])), float(np.exp(start)), episodes, spent, generation)
        points = strategy.ask()
        drawn = np.sort(rng.permutation(len(workloads))[:batch])
        rules = [space.schedule(point, name) for point in points]
        ratios = np.log(makespans_ps(rules, [workloads[i] for i in drawn]) / reference_ps[drawn])
        strategy.tell(points, ratios.mean(axis=1).tolist())
        episodes += ratios.size
        generation += 1
