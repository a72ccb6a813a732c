"""What a workload asks of every GPU, counted in one compiled pass over its routing."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dysharp_env.native import native


class Demand(NamedTuple):
    """Counts of tokens, experts and pairs; a pair is a token and a GPU that holds at least one of its experts."""

    expert_tokens: np.ndarray  # (expert,) int64 tokens that each physical expert serves
    local_pairs: np.ndarray  # (gpu,) int64 pairs of its own tokens with itself
    remote_pairs: np.ndarray  # (gpu,) int64 pairs of its own tokens with other GPUs
    pair_targets: np.ndarray  # (gpu, top_k + 1) int64 pairs of others' tokens with it, by the experts they name there
    token_targets: np.ndarray  # (gpu, top_k + 1) int64 its own tokens, by the experts they have on other GPUs
    served: np.ndarray  # (gpu,) int64 its own tokens that have an expert at all

    @property
    def num_pairs(self) -> int:
        """Pairs, local and remote."""
        return int(self.local_pairs.sum() + self.remote_pairs.sum())


def count_demand(topk_ids: np.ndarray, gpu_of_expert: np.ndarray, first_token: np.ndarray) -> Demand:
    """Returns what tokens ask for.

    Args:
        topk_ids: (token, k) distinct experts, -1 behind the last where a token has fewer.
        gpu_of_expert: (expert,) where they are.
        first_token: (gpu + 1,) the first token that lives on each GPU, and the end.
    """
    num_targets, num_gpus = topk_ids.shape[1] + 1, len(first_token) - 1
    demand = Demand(
        np.zeros(len(gpu_of_expert), np.int64),
        np.zeros(num_gpus, np.int64),
        np.zeros(num_gpus, np.int64),
        np.zeros((num_gpus, num_targets), np.int64),
        np.zeros((num_gpus, num_targets), np.int64),
        np.zeros(num_gpus, np.int64),
    )
    _count(topk_ids, gpu_of_expert, first_token, demand)
    return demand


@native(error_model="numpy")
def _count(topk_ids: np.ndarray, gpu_of_expert: np.ndarray, first_token: np.ndarray, demand: Demand) -> None:
    num_gpus, top_k = len(demand.local_pairs), topk_ids.shape[1]
    named = np.zeros(num_gpus, np.int64)  # experts of the token at hand
    for home in range(num_gpus):
        local_pairs = remote_pairs = served = 0
        for token in range(first_token[home], first_token[home + 1]):
            count = 0
            while count < top_k and topk_ids[token, count] >= 0:
                expert = topk_ids[token, count]
                demand.expert_tokens[expert] += 1
                named[gpu_of_expert[expert]] += 1
                count += 1
            served += count > 0
            local_pairs += named[home] > 0
            demand.token_targets[home, count - named[home]] += 1
            named[home] = 0
            # Without branches: routing is what a processor cannot predict. What is no remote pair has 0 targets.
            for place in range(count):
                gpu = gpu_of_expert[topk_ids[token, place]]
                remote_pairs += named[gpu] > 0
                demand.pair_targets[gpu, named[gpu]] += 1
                named[gpu] = 0  # counted: none of it is left for another of its experts
        demand.local_pairs[home], demand.remote_pairs[home], demand.served[home] = local_pairs, remote_pairs, served
    demand.pair_targets[:, 0] = 0


@native(error_model="numpy")
def is_sound(topk_ids: np.ndarray, logical_of_expert: np.ndarray) -> bool:
    """Returns whether every token has experts of distinct logical ones that exist, and -1 only behind the last."""
    experts, top_k = len(logical_of_expert), topk_ids.shape[1]
    last_token = np.full(experts, -1)
    for token in range(len(topk_ids)):
        count = 0
        while count < top_k and topk_ids[token, count] >= 0:
            expert = topk_ids[token, count]
            if expert >= experts:
                return False
            logical = logical_of_expert[expert]
            if last_token[logical] == token:
                return False
            last_token[logical] = token
            count += 1
        for place in range(count, top_k):
            if topk_ids[token, place] != -1:
                return False
    return True
