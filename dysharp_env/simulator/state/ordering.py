"""The order in which a home GPU's tokens are put into its chunks: as they come, or in expert waves.

In waves, tokens of the busiest experts come first on every home GPU, so all GPUs fill the same tiles at the same time:
the first tiles are full, and their experts finished, long before the last token is sent. A home GPU needs nothing for
it that it lacks: its own tokens' experts, and the tokens per expert that the count exchange gives every GPU.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.workload.workload import Workload


def token_order(workload: Workload, waves: bool) -> np.ndarray:
    """Returns (token,) int64 tokens in the order in which chunks hold them; a home GPU's stay together.

    In waves, an expert's rank is how many experts of its GPU receive more tokens, and a home GPU sorts its tokens by
    their experts' ranks: the lowest first, then the second lowest, and so on. An expert that a token lacks ranks behind
    all. Equal tokens keep their natural order.
    """
    if not waves:
        return np.arange(workload.num_tokens)
    # NO_EXPERT finds the last rank.
    ranks = np.append(_ranks(workload), workload.num_experts)
    ranks = np.sort(ranks[workload.topk_ids], axis=1)  # (token, k)
    return np.lexsort((*ranks.T[::-1], workload.home_of_token))


def _ranks(workload: Workload) -> np.ndarray:
    """Returns (expert,) the place of each expert among its GPU's, the one with the most tokens first."""
    by_gpu = np.lexsort((-workload.demand.expert_tokens, workload.gpu_of_expert))
    held = workload.placement.held
    ranks = np.empty(workload.num_experts, np.int64)
    ranks[by_gpu] = np.arange(workload.num_experts) - np.repeat(np.cumsum(held) - held, held)
    return ranks
