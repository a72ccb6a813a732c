"""What one decision of a network would take a GPU: an estimate for one warp that hides no latency.

One lane works out each unit of what comes of the context, then each candidate's score; the best is found by shuffles.
Every multiply-add waits for the one before it, weights that are 0 are left out as a kernel written for them would, and
weights lie on chip. What the context is made of is read from L2 once, all values at the same time. Left out: how long
counters take to become visible, and the work of keeping them.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import DECISION_KINDS

CLOCK_GHZ = 1.7  # below the boost clock of an H100 SXM, 1.98 GHz (data sheet)
LANES = 32
MULTIPLY_ADD_CYCLES = 4  # dependent FP32 operations on an A100 (arXiv 2208.11174); Hopper's are taken to be no slower
SHUFFLE_CYCLES = 30  # taken as long as an access to shared memory, about 29 cycles on an H100 (arXiv 2402.13499)
L2_CYCLES = 270  # one read that hits L2, about 263 cycles on an H100 (arXiv 2402.13499)
_SHUFFLES = 5  # steps in which 32 lanes find their best


def multiply_adds(network: Network, candidates: int) -> int:
    """Returns the multiply-adds of one decision among so many candidates, those with a weight of 0 left out."""
    # Of the rule what its weights take to fit the context; kinds only choose where they begin.
    layers = network.context, network.score_pool, network.linear[len(DECISION_KINDS) :]
    return int(sum(np.count_nonzero(layer) for layer in layers) + candidates * _per_candidate(network))


def decision_us(network: Network, candidates: int) -> float:
    """Returns what one decision among so many candidates takes one warp, microseconds."""
    # Lanes take turns: every lane is as slow as the one with most to add.
    turns = -(-network.width // LANES)
    deepest = np.count_nonzero(network.context, axis=0).max() + np.count_nonzero(network.score_pool, axis=0).max()
    scores = -(-candidates // LANES) * _per_candidate(network)
    # A rule's weights are worked out by a lane each, for all candidates.
    rule = np.count_nonzero(network.linear[len(DECISION_KINDS) :], axis=0).max()
    arithmetic = MULTIPLY_ADD_CYCLES * (turns * int(deepest) + int(rule) + scores)
    # What lanes have worked out for each other goes through shuffles: units of the context, then the pool, if any.
    exchanged = turns * (1 + bool(network.score_pool.any()))
    return (L2_CYCLES + arithmetic + SHUFFLE_CYCLES * (exchanged + _SHUFFLES)) / CLOCK_GHZ / 1e3


def _per_candidate(network: Network) -> int:
    """Returns the multiply-adds of one candidate; of the rule those of the kind with most weights."""
    layers = (network.row, network.embed, network.score_row, network.score)
    kinds, rest = network.linear[: len(DECISION_KINDS)], network.linear[len(DECISION_KINDS) :]
    weighed = np.count_nonzero(kinds.astype(bool) | rest.any(axis=0), axis=1).max()
    return int(sum(np.count_nonzero(layer) for layer in layers) + weighed)
