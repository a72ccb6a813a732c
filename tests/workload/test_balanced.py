from __future__ import annotations

import numpy as np
import pytest

from dysharp_env.workload import LayerSpec, Placement, Workload
from dysharp_env.workload.balanced import force_balanced


@pytest.mark.parametrize(("experts", "top_k"), [(8, 2), (7, 3), (5, 5), (6, 1), (64, 6), (60, 7)])
def test_every_expert_gets_as_many_tokens_and_no_token_one_twice(experts: int, top_k: int) -> None:
    layer = LayerSpec(
        name="t", hidden=64, moe_ff=64, experts=experts, top_k=top_k, ffn_matrices=2, compute_dtype="bf16", source="t"
    )
    rng = np.random.default_rng(experts)
    tokens = np.array([37, 0, 64])
    ids = np.argsort(rng.random((tokens.sum(), experts)), axis=1)[:, :top_k]
    ids[rng.random(len(ids)) < 0.2, 1:] = -1
    placement = Placement(3, rng.permutation(np.arange(experts) % 3))
    skewed = Workload(layer, tokens, ids, placement, "skewed")
    # A sound workload, or making it fails: no token has an expert twice.
    balanced = force_balanced(skewed)
    loads = balanced.demand.expert_tokens
    assert loads.sum() == (ids >= 0).sum() and loads.max() - loads.min() <= 1
    assert (balanced.experts_of_token == skewed.experts_of_token).all()
    assert balanced.tokens_of_gpu.tolist() == [37, 0, 64]


def test_tokens_go_to_as_many_gpus_as_unrelated_choices_take_them_to() -> None:
    layer = LayerSpec(
        name="t", hidden=64, moe_ff=64, experts=256, top_k=8, ffn_matrices=2, compute_dtype="bf16", source="t"
    )
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((8 * 512, 256)), axis=1)[:, :8]
    placement = np.arange(256) // 32
    uniform = Workload.even(layer, 8, ids, placement, "uniform")
    pairs = force_balanced(uniform).demand.num_pairs
    assert pairs == pytest.approx(uniform.demand.num_pairs, rel=0.01)
