"""Workloads: what they hold, what follows from it, and what is refused."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.placement import Placement, contiguous_placement
from dysharp_env.workload.workload import NO_EXPERT, Workload

LAYER = LayerSpec(
    name="test", hidden=64, moe_ff=64, experts=8, top_k=2, ffn_matrices=2, compute_dtype="bf16", source="test"
)
IDS = np.array([[0, 1], [2, 3], [4, 5], [7, 0]])
# Expert 7 is on both GPUs.
REPLICATED = Placement(2, np.array([0, 0, 0, 0, 1, 1, 1, 1, 0]), np.array([0, 1, 2, 3, 4, 5, 6, 7, 7]))


def workload(**changes: Any) -> Workload:
    values = {
        "layer": LAYER,
        "tokens_of_gpu": np.array([3, 1]),
        "topk_ids": IDS,
        "placement": contiguous_placement(8, 2),
        "name": "by hand",
    }
    return Workload(**{**values, **changes})


def test_arrays_are_read_only_copies_of_the_right_type() -> None:
    ids, counts = IDS.copy(), np.array([3, 1])
    made = workload(topk_ids=ids, tokens_of_gpu=counts)
    ids[:], counts[:] = 0, 0
    assert made.topk_ids.tolist()[3] == [7, 0] and made.topk_ids.dtype == np.int32
    assert made.tokens_of_gpu.tolist() == [3, 1]
    for array in (made.topk_ids, made.gpu_of_expert, made.tokens_of_gpu):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_tokens_live_gpu_by_gpu_and_any_gpu_may_have_none() -> None:
    made = workload(tokens_of_gpu=np.array([0, 3, 0, 1]), placement=contiguous_placement(8, 4))
    assert made.first_token.tolist() == [0, 0, 3, 3, 4] and made.home_of_token.tolist() == [1, 1, 1, 3]
    assert (made.num_tokens, made.most_tokens, made.num_gpus, made.num_experts) == (4, 3, 4, 8)


def test_a_token_may_have_fewer_experts_or_none() -> None:
    made = workload(topk_ids=np.array([[0, 1], [2, NO_EXPERT], [NO_EXPERT, NO_EXPERT], [7, 0]]))
    assert made.experts_of_token.tolist() == [2, 1, 0, 2]
    assert made.demand.expert_tokens.tolist() == [2, 1, 1, 0, 0, 0, 0, 1]


def test_physical_experts_stand_for_logical_ones() -> None:
    made = workload(topk_ids=np.array([[0, 8], [2, 7], [8, NO_EXPERT], [7, 0]]), placement=REPLICATED)
    assert made.num_experts == 9
    assert made.logical_ids.tolist() == [[0, 7], [2, 7], [7, NO_EXPERT], [7, 0]]
    other = made.served_by(np.array([[0, 7], [2, 8], [7, NO_EXPERT], [8, 0]]), REPLICATED)
    assert np.array_equal(other.logical_ids, made.logical_ids)
    with pytest.raises(ConfigError, match=r"token 1 chose \[2, 7\] and would get \[3, 7\]"):
        made.served_by(np.array([[0, 7], [3, 8], [7, NO_EXPERT], [8, 0]]), REPLICATED)


def test_an_even_workload_spreads_its_tokens() -> None:
    made = Workload.even(LAYER, 2, IDS, np.arange(8) // 4, "even")
    assert made.tokens_of_gpu.tolist() == [2, 2]
    with pytest.raises(ConfigError, match="gpus=3 cannot have 4 tokens evenly"):
        Workload.even(LAYER, 3, IDS, np.arange(8) % 3, "even")


def test_history_is_asked_for_once_and_survives_pickling() -> None:
    assert workload().past_loads is None
    made = pickle.loads(pickle.dumps(workload(history=partial(np.arange, 8))))
    assert made.past_loads.tolist() == [*range(8)] and made.past_loads is made.past_loads


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topk_ids": IDS[:3]}, r"topk_ids is \(3, 2\), but 'test' on 2 GPUs: \(4, 2\)"),
        ({"topk_ids": np.array([[0, 1], [2, 3], [4, 5], [8, 0]])}, "topk_ids holds 8; test has experts 0 to 7"),
        ({"topk_ids": np.array([[0, 1], [2, 3], [4, -2], [7, 0]])}, "topk_ids holds -2"),
        ({"topk_ids": np.array([[0, 1], [2, 3], [-1, 4], [7, 0]])}, r"token 2 has -1 before an expert: \[-1, 4\]"),
        ({"topk_ids": np.array([[0, 1], [2, 3], [4, 5], [7, 7]])}, r"token 3 chose an expert twice: \[7, 7\]"),
        (
            {"topk_ids": np.array([[0, 1], [2, 3], [4, 5], [7, 8]]), "placement": REPLICATED},
            r"token 3 chose an expert twice: \[7, 7\]",
        ),
        ({"topk_ids": IDS.astype(float)}, "topk_ids must hold whole numbers, not float64"),
        ({"topk_ids": IDS + 2**40}, "topk_ids holds 1099511627776"),
        ({"tokens_of_gpu": np.array([2, 3])}, r"topk_ids is \(4, 2\), but 'test' on 2 GPUs: \(5, 2\)"),
        ({"tokens_of_gpu": np.array([0, 0])}, r"tokens=\[0, 0\] must not be negative, and at least 1 together"),
        ({"tokens_of_gpu": np.array([5, -1])}, r"tokens=\[5, -1\] must not be negative"),
        ({"tokens_of_gpu": np.array([4])}, "a whole number for each of 2 GPUs"),
        ({"tokens_of_gpu": np.array([2.0, 2.0])}, "a whole number for each of 2 GPUs"),
        ({"placement": contiguous_placement(7, 2)}, "the placement holds 7 experts; 'test' has 8"),
    ],
)
def test_wrong_workloads_give_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        workload(**changes)
    assert "\n" not in str(raised.value)
