"""Expert choices as arrays: ids of experts along the last axis, and what stands where a token has fewer."""

from __future__ import annotations

import numpy as np

NO_EXPERT = -1  # in ids of experts, behind those of a token that has fewer than it has places for


def is_none(ids: np.ndarray) -> np.ndarray:
    """Returns where there is no expert, bool.

    Unsigned ids hold none, and are never compared with the number itself: numpy before 2.2.2 may then end the process.
    """
    return ids < 0


def front_order(ids: np.ndarray) -> np.ndarray:
    """Returns the order along the last axis that puts ``NO_EXPERT`` behind and keeps the order of experts."""
    return np.argsort(is_none(ids), axis=-1, kind="stable")


def in_front(ids: np.ndarray) -> np.ndarray:
    """Returns ids of experts, (..., k), with every ``NO_EXPERT`` moved behind, the others in order."""
    return np.take_along_axis(ids, front_order(ids), axis=-1)


def count_loads(ids: np.ndarray, experts: int) -> np.ndarray:
    """Returns how many tokens chose each expert, (experts,) int64, for ids of any shape."""
    flat = ids.ravel()
    return np.bincount(flat[flat >= 0] if flat.dtype.kind == "i" else flat, minlength=experts)
