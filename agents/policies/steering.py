"""A policy with few weights for the split decision: what split it wants, as a function of the context.

For each number of a split (dispatch SMs, combine SMs and, where splits say it, how early tiles close) it says what it
wants from the context alone, linearly: how far this GPU is, what waits for it, and what shapes the layer (what binds
it, how much an expert has to do). The split on offer that is nearest, by the sum of weighted distances, is taken. So a
decision costs some forty multiplications, what the policy does can be read off, and evolution finds the weights.

The whole is a ``Network`` of the engine like any other, so everything that plays, stores or refines networks takes it.
Wishes come in the order of ``STEERED``; those at its end may be left out.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES

SPLIT_DISPATCH, SPLIT_COMBINE, SPLIT_EARLY = map(FEATURES.index, ("split_dispatch", "split_combine", "split_early"))
# What of a split is wanted, and what a distance weighs: 1 for a change of 8 dispatch SMs or of 12 combine SMs of 132,
# or between no early closing and all.
STEERED = {SPLIT_DISPATCH: 16.0, SPLIT_COMBINE: 11.0, SPLIT_EARLY: 1.0}
# What wishes are linear in; the last is a constant. Left out: which kind of decision it is.
INPUTS = (*CONTEXT[len(DECISION_KINDS) :], "1")
# Hand-written wishes that a search may begin at: many SMs dispatch until all tokens are sent, and many combine from the
# first sum on; everybody else computes. SMs of 132.
_SENDING, _TAKING, _FEWEST = 16 / 132, 16 / 132, 1 / 132


def hand_written() -> np.ndarray:
    """Returns (wish, input) weights that lend SMs to the GEMMs before and after communication needs them."""
    wishes = np.zeros((len(STEERED), len(INPUTS)))
    dispatch, combine = list(STEERED).index(SPLIT_DISPATCH), list(STEERED).index(SPLIT_COMBINE)
    wishes[dispatch, -1], wishes[combine, -1] = _SENDING, _FEWEST
    wishes[dispatch, INPUTS.index("all_sent")] = _FEWEST - _SENDING
    wishes[combine, INPUTS.index("any_ready")] = _TAKING - _FEWEST
    return wishes * np.array(list(STEERED.values()))[:, None]


def constant(wanted: dict[int, float]) -> np.ndarray:
    """Returns (wish, input) weights that always want one value of each feature of ``STEERED``."""
    wishes = np.zeros((len(STEERED), len(INPUTS)))
    wishes[:, -1] = [weight * wanted[feature] for feature, weight in STEERED.items()]
    return wishes


def network_of(wishes: np.ndarray) -> Network:
    """Returns the network that takes the split nearest to the wishes of (wish, input) weights."""
    width = 2 * len(wishes)
    row, context, row_bias = np.zeros((len(FEATURES), width)), np.zeros((len(CONTEXT), width)), np.zeros(width)
    score = np.zeros(width)
    kinds = len(DECISION_KINDS)
    for i, (feature, weight) in enumerate([*STEERED.items()][: len(wishes)]):
        # What is offered less what is wanted, both ways: together the distance.
        for sign, unit in ((1.0, 2 * i), (-1.0, 2 * i + 1)):
            row[feature, unit] = sign * weight
            context[kinds:, unit], row_bias[unit] = -sign * wishes[i, :-1], -sign * wishes[i, -1]
        score[2 * i : 2 * i + 2] = -1.0
    numbers = {
        "row": row,
        "row_bias": row_bias,
        "context": context,
        "embed": np.eye(width),
        "embed_bias": np.zeros(width),
        "score_row": np.eye(width),
        "score_bias": np.zeros(width),
        "score_pool": np.zeros((2 * width, width)),
        "score": score,
        "linear": np.zeros((len(CONTEXT), len(FEATURES))),
    }
    return Network(**{name: np.ascontiguousarray(array, np.float32) for name, array in numbers.items()})
