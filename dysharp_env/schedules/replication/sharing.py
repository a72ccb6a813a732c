"""How the work of a layer is shared among GPUs: what a planner knows, what it may do, and what it has done.

All of it is counts, which GPUs have once they have exchanged them: tokens of each (home GPU, logical expert), and which
GPU holds which expert. A planner takes one candidate after another: an expert and a GPU that is to compute some of its
tokens, which costs a copy of its weights if the GPU does not hold it. Which tokens those are is settled afterwards
(serving.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dysharp_env.workload import Workload
from dysharp_env.workload.workload import NO_EXPERT


class Candidates(NamedTuple):
    """Ways to relieve GPUs that have more than their share, those that move most first; all are (candidate,) int64."""

    expert: np.ndarray  # the logical expert
    source: np.ndarray  # the GPU that it takes tokens away from
    gpu: np.ndarray  # the GPU that is to compute them
    tokens: np.ndarray  # how many: what the one has too many, and the other room for


class Sharing:
    """Tokens of each expert on each GPU, as planned so far."""

    def __init__(self, counts: np.ndarray, quota: np.ndarray, holds: np.ndarray, slots: np.ndarray) -> None:
        """Takes over how the work is shared without a plan.

        Args:
            counts: (gpu, expert) tokens of each home GPU that chose each logical expert.
            quota: (expert, gpu) tokens of each that each GPU computes; sums to those of ``counts``.
            holds: (expert, gpu) whether the GPU has the expert's weights before the layer.
            slots: (gpu,) experts that it has room for besides.
        """
        self.counts = counts
        self.quota, self.holds, self.slots = quota.copy(), holds.copy(), slots.copy()
        self.loads = quota.sum(axis=0)  # (gpu,) int64
        self.copies: list[tuple[int, int]] = []  # (expert, GPU), in the order in which they were planned

    @classmethod
    def of(cls, workload: Workload, slots: int) -> Sharing:
        """Returns the state before any plan: every token where the workload has it, and ``slots`` free on every GPU."""
        placement, experts = workload.placement, workload.layer.experts
        ids, first = workload.logical_ids, workload.first_token.tolist()
        # Counted from one on, as NO_EXPERT is one less than the first.
        counted = [
            np.bincount(ids[start:end].ravel() - NO_EXPERT, minlength=experts + 1)[1:]
            for start, end in zip(first[:-1], first[1:], strict=True)
        ]
        quota, holds = np.zeros((experts, workload.num_gpus), np.int64), np.zeros((experts, workload.num_gpus), bool)
        place = (placement.logical_of_expert, placement.gpu_of_expert)
        np.add.at(quota, place, workload.demand.expert_tokens)
        holds[place] = True
        return cls(np.array(counted, np.int64), quota, holds, np.full(workload.num_gpus, slots))

    @property
    def num_gpus(self) -> int:
        """GPUs."""
        return len(self.loads)

    @property
    def shares(self) -> np.ndarray:
        """(gpu,) int64 loads in perfect balance: equal, or one more on the first GPUs where that is not possible."""
        each, more = divmod(int(self.loads.sum()), self.num_gpus)
        return each + (np.arange(self.num_gpus) < more)

    @property
    def imbalance(self) -> float:
        """Load of the busiest GPU over the mean; 1 where there is no load."""
        return float(self.loads.max() / max(self.loads.mean(), 1e-9)) if self.loads.any() else 1.0

    def most(self, tolerance: float) -> np.ndarray:
        """Returns the loads that are balanced enough, (gpu,) int64: so many times the mean, or perfect balance."""
        return np.maximum(self.shares, int(tolerance * self.loads.mean()))

    def candidates(self, source: int | None = None) -> Candidates:
        """Returns what would relieve one GPU, or any that has more than its share; those that move most come first."""
        excess = self.loads - self.shares
        room = np.maximum(-excess, 0)
        sources = np.flatnonzero(excess > 0) if source is None else np.array([source])
        experts = np.flatnonzero((self.quota[:, sources] > 0).any(axis=1))
        # (expert, source, gpu)
        tokens = np.minimum(self.quota[np.ix_(experts, sources)], np.maximum(excess[sources], 0))[:, :, None]
        tokens = np.minimum(tokens, room) * (self.holds[experts] | (self.slots > 0))[:, None]
        expert, place, gpu = np.nonzero(tokens)
        moved = tokens[expert, place, gpu]
        order = np.argsort(-moved, kind="stable")
        expert, place, gpu, moved = experts[expert[order]], place[order], gpu[order], moved[order]
        return Candidates(expert, sources[place], gpu, moved)

    def may_take(self, gpu: int) -> np.ndarray:
        """Returns which experts a GPU could compute tokens of, (expert,) bool: all, or without free slots its own."""
        return self.holds[:, gpu] | (self.slots[gpu] > 0)

    def take(self, expert: int, source: int, gpu: int, tokens: int) -> None:
        """Lets another GPU compute some of an expert's tokens, and copies its weights there if they are not.

        Args:
            expert: A logical expert.
            source: The GPU that computes them so far.
            gpu: The one that is to, with a free slot or the expert's weights.
            tokens: How many, of those that ``source`` has.
        """
        if not self.holds[expert, gpu]:
            assert self.slots[gpu] > 0, (expert, gpu)
            self.holds[expert, gpu] = True
            self.slots[gpu] -= 1
            self.copies.append((expert, gpu))
        assert 0 < tokens <= self.quota[expert, source], (expert, source, gpu, tokens)
        self.quota[expert, source] -= tokens
        self.quota[expert, gpu] += tokens
        self.loads[source] -= tokens
        self.loads[gpu] += tokens
