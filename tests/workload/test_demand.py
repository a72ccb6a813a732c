"""What tokens ask of GPUs, counted again token by token with sets and counters."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dysharp_env.workload.demand import count_demand, is_sound


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, int]:
    rng = np.random.default_rng(seed)
    num_gpus = int(rng.integers(1, 7))
    experts = num_gpus * int(rng.integers(1, 6))
    top_k = int(rng.integers(1, min(experts, 9) + 1))
    ids = np.argsort(rng.random((num_gpus * int(rng.integers(1, 30)), experts)), axis=1)[:, :top_k]
    return ids.astype(np.int32), rng.permutation(np.arange(experts) % num_gpus).astype(np.int32), num_gpus


@pytest.mark.parametrize("seed", range(30))
def test_it_counts_tokens_pairs_and_targets(seed: int) -> None:
    ids, gpu_of_expert, num_gpus = draw(seed)
    demand = count_demand(ids, gpu_of_expert, num_gpus)
    local, remote, pair_targets, token_targets = Counter(), Counter(), Counter(), Counter()
    for token, chosen in enumerate(ids):
        home = token // (len(ids) // num_gpus)
        named = Counter(gpu_of_expert[chosen].tolist())
        local[home] += home in named
        remote[home] += len(named.keys() - {home})
        pair_targets.update((gpu, count) for gpu, count in named.items() if gpu != home)
        token_targets[home, len(chosen) - named[home]] += 1
    assert demand.expert_tokens.tolist() == np.bincount(ids.reshape(-1), minlength=len(gpu_of_expert)).tolist()
    assert demand.local_pairs.tolist() == [local[gpu] for gpu in range(num_gpus)]
    assert demand.remote_pairs.tolist() == [remote[gpu] for gpu in range(num_gpus)]
    for counted, expected in ((demand.pair_targets, pair_targets), (demand.token_targets, token_targets)):
        assert {key: count for key, count in np.ndenumerate(counted) if count} == dict(expected)
    assert demand.num_pairs == sum(local.values()) + sum(remote.values())


@pytest.mark.parametrize(
    ("ids", "placement", "sound"),
    [
        ([[0, 1, 2], [2, 1, 0]], [0, 1, 0, 1], True),
        ([[0, 1, 2], [3, 0, 3]], [0, 1, 0, 1], False),
        ([[0, 1, 2], [3, 0, 4]], [0, 1, 0, 1], False),
        ([[0, 1, 2], [-1, 0, 3]], [0, 1, 0, 1], False),
        ([[0, 1, 2], [2, 1, 0]], [0, 1, 0, 0], False),
        ([[0, 1, 2], [2, 1, 0]], [0, 1, 0, 2], False),
        ([[0, 1, 2], [2, 1, 0]], [0, 1, -1, 1], False),
    ],
)
def test_ids_must_exist_once_and_gpus_hold_as_many(ids: list[list[int]], placement: list[int], sound: bool) -> None:
    assert is_sound(np.array(ids, np.int32), np.array(placement, np.int32), 2) == sound
