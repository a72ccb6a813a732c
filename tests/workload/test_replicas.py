"""Which replica serves a token: by hand, and against the rules written out token by token."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.choices import NO_EXPERT
from dysharp_env.workload.placement import Placement, contiguous_placement
from dysharp_env.workload.replicas import serve

# Expert 0 is on GPUs 1 and 3, expert 1 on GPU 0, expert 2 on GPUs 2, 0 and 3 (in this order).
GPUS = np.array([1, 0, 2, 3, 0, 3])
LOGICAL = np.array([0, 1, 2, 0, 2, 2])
PLACEMENT = Placement(4, GPUS, LOGICAL)
FIRST_TOKEN = np.array([0, 2, 2, 5, 6])  # GPU 1 has no tokens
IDS = np.array([[0, 2], [2, 0], [0, 1], [2, -1], [2, 0], [-1, -1]])


def test_nearest_by_hand() -> None:
    # From GPU 0 the next with expert 0 is GPU 1, and it has expert 2; from GPU 2 that is GPU 3, and it has expert 2.
    assert serve(IDS, FIRST_TOKEN, PLACEMENT, "nearest").tolist() == [
        [0, 4],
        [4, 0],
        [3, 1],
        [2, -1],
        [2, 3],
        [-1, -1],
    ]


def test_round_robin_by_hand() -> None:
    # Replicas of 0 are [0, 3], of 2 [2, 4, 5]. GPU 0 starts with the first, GPU 2 with place 2 of them.
    assert serve(IDS, FIRST_TOKEN, PLACEMENT, "round_robin").tolist() == [
        [0, 2],
        [4, 3],
        [0, 1],
        [5, -1],
        [2, 3],
        [-1, -1],
    ]


def test_least_loaded_by_hand() -> None:
    assert serve(IDS, FIRST_TOKEN, PLACEMENT, "least_loaded").tolist() == [
        [0, 2],  # GPUs 1 and 3 have none: the first replica; likewise GPU 2
        [4, 3],  # GPU 2 has one, GPU 0 none; GPU 1 has one, GPU 3 none
        [0, 1],  # all have one: the first; then the only one, on GPU 0
        [2, -1],  # GPUs 2, 0 and 3 have 1, 2 and 1
        [5, 0],  # GPUs 2, 0 and 3 have 2, 2 and 1; GPUs 1 and 3 have two each
        [-1, -1],
    ]


def by_rule(ids: np.ndarray, first_token: np.ndarray, placement: Placement, how: str) -> list[list[int]]:
    """The three rules, token by token."""
    replicas_of = {
        logical: np.flatnonzero(placement.logical_of_expert == logical).tolist()
        for logical in range(placement.num_logical)
    }
    gpu_of, given, served = placement.gpu_of_expert.tolist(), Counter(), []
    for home in range(placement.num_gpus):
        seen: Counter[int] = Counter()
        for token in range(first_token[home], first_token[home + 1]):
            row = []
            for expert in ids[token].tolist():
                if expert == NO_EXPERT:
                    row.append(NO_EXPERT)
                    continue
                replicas = replicas_of[expert]
                if how == "nearest":
                    chosen = min(replicas, key=lambda each: (gpu_of[each] - home) % placement.num_gpus)  # noqa: B023
                elif how == "round_robin":
                    chosen = replicas[(home + seen[expert]) % len(replicas)]
                    seen[expert] += 1
                else:
                    chosen = min(replicas, key=lambda each: given[gpu_of[each]])
                    given[gpu_of[chosen]] += 1
                row.append(chosen)
            served.append(row)
    return served


@pytest.mark.parametrize("how", ["nearest", "round_robin", "least_loaded"])
@pytest.mark.parametrize("seed", range(25))
def test_against_the_rules_written_out(seed: int, how: str) -> None:
    rng = np.random.default_rng(seed)
    num_gpus, experts = int(rng.integers(1, 7)), int(rng.integers(1, 9))
    logical = rng.permutation(np.concatenate([np.arange(experts), rng.integers(experts, size=rng.integers(0, 12))]))
    placement = Placement(num_gpus, rng.integers(num_gpus, size=len(logical)), logical)
    tokens = rng.integers(0, 12, size=num_gpus)
    first_token = np.concatenate([[0], np.cumsum(tokens)])
    top_k = int(rng.integers(1, min(experts, 4) + 1))
    ids = np.argsort(rng.random((tokens.sum(), experts)), axis=1)[:, :top_k]
    ids[np.arange(top_k) >= rng.integers(0, top_k + 1, size=len(ids))[:, None]] = NO_EXPERT
    served = serve(ids, first_token, placement, how)
    assert served.dtype == np.int32 and served.tolist() == by_rule(ids, first_token, placement, how)


def test_a_plain_placement_leaves_no_choice_and_the_ids_as_they_are() -> None:
    ids = np.array([[0, 5], [3, -1]], np.int16)
    served = serve(ids, np.array([0, 1, 2]), contiguous_placement(6, 2), "least_loaded")
    assert served.tolist() == ids.tolist() and served.dtype == np.int32


def test_mistakes_are_one_line() -> None:
    for ids, how, message in (
        (IDS, "nearst", r"replicas='nearst' is unknown; choose from .*did you mean 'nearest'"),
        (np.array([[3, 0]]), "nearest", "ids hold expert 3; the placement holds 0 to 2"),
        (np.array([[-2, 0]]), "nearest", "ids hold expert -2"),
    ):
        with pytest.raises(ConfigError, match=message):
            serve(ids, np.array([0, len(ids), len(ids), len(ids), len(ids)]), PLACEMENT, how)
