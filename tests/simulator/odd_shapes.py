"""Random workloads of any shape for a given layer."""

from __future__ import annotations

import numpy as np

from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.placement import Placement
from dysharp_env.workload.workload import NO_EXPERT, Workload


def draw_shape(layer: LayerSpec, num_gpus: int, rng: np.random.Generator) -> Workload:
    """Returns a workload of any shape: some GPUs without tokens, some without experts, replicas, dropped slots."""
    tokens = rng.integers(0, rng.choice([4, 9, 25]), num_gpus) * (rng.random(num_gpus) < 0.7)
    tokens[rng.integers(num_gpus)] += 1
    logical = np.concatenate([np.arange(layer.experts), rng.integers(layer.experts, size=rng.integers(4))])
    gpus = rng.choice(rng.permutation(num_gpus)[: rng.integers(1, num_gpus + 1)], len(logical))
    of_logical = [np.flatnonzero(logical == expert) for expert in range(layer.experts)]
    liking = rng.random(layer.experts) * rng.integers(2) + rng.random((int(tokens.sum()), layer.experts))
    chosen = np.argsort(-liking, axis=1)[:, : layer.top_k].tolist()
    ids = np.array([[rng.choice(of_logical[expert]) for expert in experts] for experts in chosen], np.int64)
    few = np.where(rng.random(len(ids)) < rng.choice([0.0, 0.3, 0.8]), rng.integers(layer.top_k + 1, size=len(ids)), 99)
    few[rng.integers(len(ids))] = layer.top_k  # one at least has all
    ids[np.arange(layer.top_k) >= few[:, None]] = NO_EXPERT
    return Workload(layer, tokens, ids, Placement(num_gpus, gpus, logical), "drawn")
