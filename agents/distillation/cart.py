"""Shallow regression trees by weighted least squares (CART, Breiman et al. 1984), grown greedily from the root."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.policies.rule import STEEPNESS, Branch, Leaf, Tree
from dysharp_env.simulator.layout import CONTEXT

_LEAST_WEIGHT = 0.005  # of all decisions that a leaf must hold: a threshold for less would be one workload's
_LEAST_GAIN = 1e-9  # of squared error; less is rounding


class _Cut(NamedTuple):
    error: float
    column: int
    threshold: float


def grow(contexts: np.ndarray, wanted: np.ndarray, weights: np.ndarray, names: Sequence[str], depth: int) -> Tree:
    """Returns the tree that explains a wish.

    Args:
        contexts: (decision, context) float32.
        wanted: (decision,) what the tree should say.
        weights: (decision,) how much each counts; those of all decisions of the first call sum up to 1.
        names: Context values that may be asked about.
        depth: Most questions before a leaf.
    """
    mean = float(weights @ wanted / weights.sum())
    error = float(weights @ (wanted - mean) ** 2)
    cuts = [_best_cut(contexts[:, CONTEXT.index(name)], CONTEXT.index(name), wanted, weights) for name in names]
    found = [cut for cut in cuts if cut is not None] if depth else []
    if not found or min(found).error > error - _LEAST_GAIN:
        return Leaf(value=round(mean, 6))
    best = min(found)
    above = contexts[:, best.column] > np.float32(best.threshold)
    at_most, over = (grow(contexts[side], wanted[side], weights[side], names, depth - 1) for side in (~above, above))
    return Branch(context=CONTEXT[best.column], threshold=best.threshold, at_most=at_most, above=over)


def _best_cut(values: np.ndarray, column: int, wanted: np.ndarray, weights: np.ndarray) -> _Cut | None:
    """Returns the threshold of one context value that leaves the least squared error on both its sides."""
    # Thresholds are multiples of 1 / STEEPNESS: what lies between two of them stays together.
    cells = np.ceil(values.astype(np.float64) * STEEPNESS).astype(np.int64)
    kinds, place = np.unique(cells, return_inverse=True)
    sums = np.array([np.bincount(place, weights * power) for power in (1.0, wanted, wanted**2)])
    left = np.cumsum(sums, axis=1)[:, :-1]
    right = sums.sum(axis=1)[:, None] - left
    allowed = (left[0] >= _LEAST_WEIGHT) & (right[0] >= _LEAST_WEIGHT)
    if not allowed.any():
        return None
    error = sum(side[2] - side[1] ** 2 / np.maximum(side[0], _LEAST_WEIGHT) for side in (left, right))
    best = int(np.where(allowed, error, np.inf).argmin())
    # In the middle between the two cells, where nothing was seen.
    threshold = (kinds[best] + (kinds[best + 1] - 1 - kinds[best]) // 2) / STEEPNESS
    return _Cut(float(np.asarray(error)[best]), column, float(threshold))
