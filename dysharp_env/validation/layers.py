"""Layers laid out token by token, for comparisons in which it is known exactly who sends what to whom."""

from __future__ import annotations

from math import comb

import numpy as np

from dysharp_env.workload import LayerSpec, Workload, load_model
from dysharp_env.workload.placement import contiguous_placement


def laid_out(layer: LayerSpec, num_gpus: int, topk_ids: np.ndarray, name: str = "laid out") -> Workload:
    """Returns the workload of tokens with the experts ``topk_ids`` (token, top_k), experts placed contiguously."""
    placement = contiguous_placement(layer.experts, num_gpus)
    tokens = np.full(num_gpus, len(topk_ids) // num_gpus)
    return Workload(layer, tokens, topk_ids, placement, name)


def one_expert_each(num_gpus: int, top_k: int = 1) -> LayerSpec:
    """Returns a large layer with one expert on every GPU, so that an expert's number is its GPU's."""
    return load_model("large").with_changes({"experts": num_gpus, "top_k": top_k})


def expected_remote_gpus(experts: int, top_k: int, num_gpus: int) -> float:
    """Returns the mean R of tokens that choose ``top_k`` experts uniformly, experts spread evenly over the GPUs."""
    others = experts - experts // num_gpus
    return (num_gpus - 1) * (1 - comb(others, top_k) / comb(experts, top_k))
