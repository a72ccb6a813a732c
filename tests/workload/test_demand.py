"""What tokens ask of GPUs, counted again token by token with sets and counters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dysharp_env.workload.choices import NO_EXPERT, in_front
from dysharp_env.workload.demand import count_demand, is_sound


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns ids, GPUs of experts and first tokens: uneven tokens with fewer experts from seed 15 on."""
    rng = np.random.default_rng(seed)
    num_gpus = int(rng.integers(1, 7))
    experts = num_gpus * int(rng.integers(1, 6))
    top_k = int(rng.integers(1, min(experts, 9) + 1))
    tokens_of_gpu = np.full(num_gpus, rng.integers(1, 30))
    if seed >= 15:
        tokens_of_gpu = rng.integers(0, 30, num_gpus)
    ids = np.argsort(rng.random((tokens_of_gpu.sum(), experts)), axis=1)[:, :top_k]
    if seed >= 15:
        ids = in_front(np.where(rng.random(ids.shape) < 0.3, NO_EXPERT, ids))
    gpu_of_expert = rng.permutation(np.arange(experts) % num_gpus).astype(np.int32)
    return ids.astype(np.int32), gpu_of_expert, np.concatenate([[0], np.cumsum(tokens_of_gpu)])


@pytest.mark.parametrize("seed", range(40))
def test_it_counts_tokens_pairs_and_targets(seed: int) -> None:
    ids, gpu_of_expert, first_token = draw(seed)
    demand = count_demand(ids, gpu_of_expert, first_token)
    num_gpus = len(first_token) - 1
    homes = np.repeat(np.arange(num_gpus), np.diff(first_token)).tolist()
    local, remote, pair_targets, token_targets = Counter(), Counter(), Counter(), Counter()
    for home, row in zip(homes, ids, strict=True):
        chosen = row[row != NO_EXPERT]
        named = Counter(gpu_of_expert[chosen].tolist())
        local[home] += home in named
        remote[home] += len(named.keys() - {home})
        pair_targets.update((gpu, count) for gpu, count in named.items() if gpu != home)
        token_targets[home, len(chosen) - named[home]] += 1
    expert_tokens = np.bincount(ids[ids != NO_EXPERT], minlength=len(gpu_of_expert))
    assert demand.expert_tokens.tolist() == expert_tokens.tolist()
    assert demand.local_pairs.tolist() == [local[gpu] for gpu in range(num_gpus)]
    assert demand.remote_pairs.tolist() == [remote[gpu] for gpu in range(num_gpus)]
    for counted, expected in ((demand.pair_targets, pair_targets), (demand.token_targets, token_targets)):
        # A token's (gpu, 0) counts those that ask for nothing elsewhere.
        assert {key: count for key, count in np.ndenumerate(counted) if count} == dict(expected)
    assert demand.num_pairs == sum(local.values()) + sum(remote.values())


@pytest.mark.parametrize(
    ("ids", "logical", "sound"),
    [
        ([[0, 1, 2], [2, 1, 0]], [0, 1, 2, 3], True),
        ([[0, 1, 2], [3, 0, 3]], [0, 1, 2, 3], False),
        ([[0, 1, 2], [3, 0, 4]], [0, 1, 2, 3], False),
        ([[0, 1, -1], [-1, -1, -1]], [0, 1, 2, 3], True),
        ([[0, 1, 2], [-1, 0, 3]], [0, 1, 2, 3], False),
        ([[0, 1, 2], [-2, 0, 3]], [0, 1, 2, 3], False),
        ([[0, 1, 2], [3, 1, 0]], [0, 1, 2, 2], True),
        ([[0, 1, 2], [3, 2, 0]], [0, 1, 2, 2], False),
    ],
)
def test_experts_exist_once_and_none_stands_before_one(ids: list[list[int]], logical: list[int], sound: bool) -> None:
    assert is_sound(np.array(ids, np.int32), np.array(logical, np.int32)) == sound
