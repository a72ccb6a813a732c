"""Perfect balance, forced: what a layer would be if every expert got as many tokens as any other.

Published gains of balancing are shares of this (UltraEP, arXiv 2606.04101: a share of the force-balanced throughput).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dysharp_env.workload.placement import contiguous_placement
from dysharp_env.workload.workload import NO_EXPERT, Workload


def force_balanced(workload: Workload, seed: int = 0) -> Workload:
    """Returns as many tokens, with as many experts each, spread over all experts alike, which are placed contiguously.

    Experts are dealt from shuffled packs that hold each of them once, so that their loads differ by one at most; how
    many GPUs a token goes to stays what unrelated choices make it.
    """
    layer = workload.layer
    rng = np.random.default_rng(seed)
    ids = np.full(workload.topk_ids.shape, NO_EXPERT)
    takes = np.arange(layer.top_k) < workload.experts_of_token[:, None]
    ids[takes] = _dealt(workload.experts_of_token, layer.experts, rng)
    placement = contiguous_placement(layer.experts, workload.num_gpus)
    return replace(workload, topk_ids=ids, placement=placement, name=f"{workload.name}, balanced", history=None)


def _dealt(counts: np.ndarray, experts: int, rng: np.random.Generator) -> np.ndarray:
    """Returns ids for tokens that take ``counts`` of them one after the other, distinct within each token."""
    total = int(counts.sum())
    starts = np.cumsum(counts) - counts
    dealt = np.empty(total + experts, np.int64)
    for first in range(0, total, experts):
        pack = rng.permutation(experts)
        # The token that is still taking when a pack ends must not meet its experts again at the head of the next.
        token = np.searchsorted(starts, first, side="right") - 1
        missing = starts[token] + counts[token] - first
        taken = np.isin(pack, dealt[starts[token] : first])
        pack = np.concatenate([pack[~taken][:missing], pack[taken], pack[~taken][missing:]]) if missing > 0 else pack
        dealt[first : first + experts] = pack
    return dealt[:total]
