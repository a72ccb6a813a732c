"""Statistics of routing: how uneven the loads are, how much neighbouring tokens agree, how far tokens fan out.

Loads count (token, expert) pairs of one layer. Numbers over GPUs count a token once for every GPU that holds one or
more of its experts, as de-duplicating dispatch does, with consecutive experts on a GPU. Source GPUs take equal
consecutive parts of the trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.traces import RoutingTrace

HOT_SHARE = 0.125  # share of experts that count as the hottest: 8 of 64, 32 of 256


@dataclass(frozen=True)
class LayerStatistics:
    """Statistics of one layer of a trace, or their means over layers."""

    load_cv: float
    """Standard deviation of expert loads over their mean."""
    load_max_over_mean: float
    """Load of the most popular expert over the mean."""
    hottest_share: float
    """Share of all (token, expert) pairs that go to the hottest eighth of the experts."""
    adjacent_share: float
    """Share of a token's experts that the token before it in the document chose too."""
    adjacent_share_independent: float
    """The same if tokens chose independently with the same expert loads."""


@dataclass(frozen=True)
class FanOutStatistics:
    """Where tokens go on a given number of GPUs; means over layers."""

    num_gpus: int
    fan_out: float
    """Distinct expert GPUs of a token, its home GPU included where it holds one."""
    fan_out_uniform: float
    """The same if all sets of experts were equally likely."""
    gpu_max_over_mean: float
    """Tokens received by the busiest GPU over the mean."""
    pair_max_over_mean: float
    """Tokens of the busiest (source, destination) pair over the mean."""


@dataclass(frozen=True)
class TraceStatistics:
    """All statistics of a trace."""

    layers: dict[int, LayerStatistics]
    """By the model's number of the layer."""
    mean: LayerStatistics
    fan_out: list[FanOutStatistics]
    gate_weights: list[float] | None
    """Mean share of a token's gate weight that its first, second, ... expert has; none if the trace has no weights."""


def trace_statistics(trace: RoutingTrace, gpu_counts: Sequence[int] = (8,)) -> TraceStatistics:
    """Returns the statistics of a trace, fan-out for each number of GPUs.

    Raises:
        ConfigError: A number of GPUs does not divide the experts or exceeds the tokens.
    """
    starts_document = np.zeros(trace.num_tokens, dtype=bool)
    starts_document[trace.doc_offsets[:-1]] = True
    layers = {
        int(number): _layer_statistics(ids, trace.experts, starts_document)
        for number, ids in zip(trace.layer_index, trace.topk_ids, strict=True)
    }
    fields = LayerStatistics.__dataclass_fields__
    mean = LayerStatistics(**{name: float(np.mean([getattr(row, name) for row in layers.values()])) for name in fields})
    weights = None
    if trace.topk_weights is not None:
        ordered = -np.sort(-trace.topk_weights.astype(np.float64), axis=-1)
        # Some models leave the weights of the chosen experts below a sum of one; weights that are all zero stay zero.
        total = np.maximum(ordered.sum(axis=-1, keepdims=True), np.finfo(np.float16).tiny)
        weights = (ordered / total).mean(axis=(0, 1)).tolist()
    return TraceStatistics(layers, mean, [_fan_out(trace, count) for count in gpu_counts], weights)


def uniform_fan_out(experts: int, top_k: int, num_gpus: int) -> float:
    """Returns the expected number of distinct GPUs of ``top_k`` distinct experts chosen uniformly."""
    missed = comb(experts - experts // num_gpus, top_k) / comb(experts, top_k)
    return num_gpus * (1.0 - missed)


def _layer_statistics(ids: np.ndarray, experts: int, starts_document: np.ndarray) -> LayerStatistics:
    """Returns the statistics of one layer's (token, k) ids."""
    load = np.bincount(ids.ravel(), minlength=experts).astype(np.float64)
    chosen_share = load / len(ids)  # of tokens that chose the expert
    hottest = max(1, round(HOT_SHARE * experts))
    repeated = (ids[1:, :, None] == ids[:-1, None, :]).any(axis=-1).mean(axis=-1)[~starts_document[1:]]
    return LayerStatistics(
        load_cv=float(load.std() / load.mean()),
        load_max_over_mean=float(load.max() / load.mean()),
        hottest_share=float(np.sort(load)[-hottest:].sum() / load.sum()),
        adjacent_share=float(repeated.mean()) if repeated.size else 0.0,
        adjacent_share_independent=float((chosen_share**2).sum() / ids.shape[1]),
    )


def _fan_out(trace: RoutingTrace, num_gpus: int) -> FanOutStatistics:
    if num_gpus < 1 or trace.experts % num_gpus:
        raise ConfigError(f"gpus={num_gpus} does not divide the trace's {trace.experts} experts evenly")
    if num_gpus > trace.num_tokens:
        raise ConfigError(f"gpus={num_gpus} is more than the trace's {trace.num_tokens} tokens")
    source = np.arange(trace.num_tokens) * num_gpus // trace.num_tokens
    fan_out, busiest_gpu, busiest_pair = [], [], []
    for ids in trace.topk_ids:
        visited = np.zeros((trace.num_tokens, num_gpus), dtype=bool)  # (token, expert GPU)
        np.put_along_axis(visited, ids.astype(np.int64) // (trace.experts // num_gpus), True, axis=1)
        pairs = np.zeros((num_gpus, num_gpus))  # (source, destination)
        np.add.at(pairs, source, visited)
        fan_out.append(visited.sum() / trace.num_tokens)
        busiest_gpu.append(pairs.sum(axis=0).max() / pairs.sum(axis=0).mean())
        busiest_pair.append(pairs.max() / pairs.mean())
    return FanOutStatistics(
        num_gpus=num_gpus,
        fan_out=float(np.mean(fan_out)),
        fan_out_uniform=uniform_fan_out(trace.experts, trace.top_k, num_gpus),
        gpu_max_over_mean=float(np.mean(busiest_gpu)),
        pair_max_over_mean=float(np.mean(busiest_pair)),
    )
