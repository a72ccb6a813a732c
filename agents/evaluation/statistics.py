"""Means of paired results and how sure they are: percentile bootstraps over workloads and over training seeds.

All take (seed, workload) tables of one policy relative to its reference on the same workload. Seeds and workloads are
resampled independently of each other, so a table with one seed has the interval of its workloads alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
EQUAL = 1e-9  # log ratios nearer to 0 than this are rounding, not a win
_LEVELS = [2.5, 97.5]  # percentiles between which 95 % lie
_BLOCK = 2**21  # numbers held at once while resampling


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


def geometric_mean(log_ratios: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Returns exp(mean) of (seed, workload) log ratios, resampled over both axes."""
    low, high = np.exp(_mean_interval(log_ratios, seed, resamples))
    return Estimate(float(np.exp(log_ratios.mean())), float(low), float(high))


def interquartile_mean(log_ratios: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Returns the mean of the middle half of (seed, workload) ratios, all seeds and workloads taken together.

    A few workloads on which much or nothing can be gained do not move it (Agarwal et al., arXiv 2108.13264). A ratio on
    the edge of the middle half counts as far as it lies inside.
    """
    order = np.argsort(log_ratios, axis=None)
    ratios = np.exp(log_ratios.ravel()[order])
    means = []
    for seeds, workloads in _counts(log_ratios.shape, seed, resamples):
        weights = (seeds[:, :, None] * workloads[:, None, :]).reshape(len(seeds), -1)[:, order]
        means.append(_middle_half(ratios, weights))
    low, high = np.percentile(np.concatenate(means), _LEVELS)
    return Estimate(float(_middle_half(ratios, np.ones((1, len(ratios))))[0]), float(low), float(high))


def _middle_half(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the (resample,) means of the middle half of sorted values that count (resample, value) times each."""
    total = weights[0].sum()
    ends = np.clip(np.cumsum(weights, axis=1), total / 4, total * 3 / 4)
    inside = np.diff(ends, axis=1, prepend=total / 4)
    return inside @ values / (total / 2)


def improvement(log_ratios: np.ndarray, seed: int, resamples: int = RESAMPLES) -> Estimate:
    """Returns the fraction of (seed, workload) log ratios that are below 0, one that is 0 counting half."""
    faster = (log_ratios < -EQUAL) + 0.5 * (np.abs(log_ratios) <= EQUAL)
    low, high = _mean_interval(faster, seed, resamples)
    return Estimate(float(faster.mean()), float(low), float(high))


def _mean_interval(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Returns the two ends of the 95 % interval of the mean of a (seed, workload) table."""
    means = [((seeds @ values) * workloads).sum(axis=1) for seeds, workloads in _counts(values.shape, seed, resamples)]
    return np.percentile(np.concatenate(means), _LEVELS) / values.size


def _counts(shape: tuple[int, ...], seed: int, resamples: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (resample, seed) and (resample, workload) counts, block by block.

    Drawing with replacement is drawing how often each is taken.
    """
    rng = np.random.default_rng(seed)
    num_seeds, num_workloads = shape
    seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples)
    workloads = rng.multinomial(num_workloads, np.full(num_workloads, 1 / num_workloads), size=resamples)
    step = max(1, _BLOCK // (num_seeds * num_workloads))
    for first in range(0, resamples, step):
        yield seeds[first : first + step], workloads[first : first + step]
