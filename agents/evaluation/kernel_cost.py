"""What one decision of a network would take a GPU: an estimate for one warp that hides no latency.

The kernel is written for one kind of decision. One lane works out each unit of what comes of the context, and each
weight of a rule, then each candidate's score; the best is found by shuffles. Every multiply-add waits for the one
before it; left out are weights that are 0 or of features that the kind does not show, and layers that tell no two
candidates apart. Weights lie on chip. What the context and the candidates' features are made of is read from L2 once,
all values at the same time. Left out: how long counters take to become visible, and the work of keeping them. Features
of plans depend on the machine, the layer and the tokens of each GPU, not on routing, so they are taken to lie ready,
as is what the schedule's own rule would take, where that is a feature (``ruled``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import DECISION_KINDS, FEATURES

from ..policies.linear import SHOWN_OF_KIND

CLOCK_GHZ = 1.7  # below the boost clock of an H100 SXM, 1.98 GHz (data sheet)
LANES = 32
MULTIPLY_ADD_CYCLES = 4  # dependent FP32 operations on an A100 (arXiv 2208.11174); Hopper's are taken to be no slower
SHUFFLE_CYCLES = 30  # taken as long as an access to shared memory, about 29 cycles on an H100 (arXiv 2402.13499)
L2_CYCLES = 270  # one read that hits L2, about 263 cycles on an H100 (arXiv 2402.13499)
_SHUFFLES = 5  # steps in which 32 lanes find their best


@dataclass(frozen=True)
class _Kernel:
    """What a kernel for one kind of decision has to compute.

    Attributes:
        width: Units of a layer; 0 where layers tell no two candidates apart.
        context: (unit,) multiply-adds of each unit with the context, and ``pool`` with the pool of embeddings.
        slopes: (feature,) multiply-adds of a rule's weight with the context.
        candidate: Multiply-adds of one candidate.
    """

    width: int
    context: np.ndarray
    pool: np.ndarray
    slopes: np.ndarray
    candidate: int

    @classmethod
    def of(cls, network: Network, kind: str) -> _Kernel:
        """Returns the kernel of a network for a kind; which kind it is only chooses where sums begin."""
        shown, kinds = [FEATURES.index(name) for name in SHOWN_OF_KIND[kind]], len(DECISION_KINDS)
        constants, of_context = network.linear[DECISION_KINDS.index(kind), shown], network.linear[kinds:, shown]
        weighed = int(np.count_nonzero(constants.astype(bool) | of_context.any(axis=0)))
        layers = (network.row[shown], network.embed, network.score_row, network.score)
        slopes = np.count_nonzero(of_context, axis=0)
        if not layers[0].any():
            nothing = np.zeros(0, int)
            return cls(0, nothing, nothing, slopes, weighed)
        return cls(
            network.width,
            np.count_nonzero(network.context[kinds:], axis=0),
            np.count_nonzero(network.score_pool, axis=0),
            slopes,
            sum(int(np.count_nonzero(layer)) for layer in layers) + weighed,
        )


def multiply_adds(network: Network, kind: str, candidates: int) -> int:
    """Returns the multiply-adds of one decision of a kind among so many candidates."""
    kernel = _Kernel.of(network, kind)
    shared = kernel.context.sum() + kernel.pool.sum() + kernel.slopes.sum()
    return int(shared) + candidates * kernel.candidate


def decision_us(network: Network, kind: str, candidates: int) -> float:
    """Returns what one decision of a kind among so many candidates takes one warp, microseconds."""
    kernel = _Kernel.of(network, kind)
    # Lanes take turns: every lane is as slow as the one with most to add.
    turns, turns_of_rule = (-(-count // LANES) for count in (kernel.width, np.count_nonzero(kernel.slopes)))
    deepest, deepest_of_rule = (int(counts.max(initial=0)) for counts in (kernel.context, kernel.slopes))
    pooled = int(kernel.pool.max(initial=0))
    shared = turns * (deepest + pooled) + turns_of_rule * deepest_of_rule
    arithmetic = MULTIPLY_ADD_CYCLES * (shared + -(-candidates // LANES) * kernel.candidate)
    # What lanes have worked out for each other goes through shuffles: units of the context, the pool, a rule's weights.
    exchanged = turns * (1 + (pooled > 0)) + turns_of_rule
    return float((L2_CYCLES + arithmetic + SHUFFLE_CYCLES * (exchanged + _SHUFFLES)) / CLOCK_GHZ / 1e3)
