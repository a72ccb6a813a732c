"""Statistics of routing: how uneven the loads are, how much neighbouring tokens agree, how far tokens fan out.

Loads count (token, expert) pairs of one layer. Numbers over GPUs count a token once for every GPU that holds one or
more of its experts, as de-duplicating dispatch does, with consecutive experts on a GPU, on the first GPUs one more if
they do not divide. Source GPUs take equal consecutive parts of the trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import comb
from typing import TypeVar

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.choices import NO_EXPERT, count_loads
from dysharp_env.workload.placement import contiguous_placement
from dysharp_env.workload.traces import RoutingTrace

HOT_SHARE = 0.125  # share of experts that count as the hottest: 8 of 64, 32 of 256


@dataclass(frozen=True)
class LoadStatistics:
    """Statistics of the loads of one layer, or their means over layers."""

    load_cv: float
    """Standard deviation of expert loads over their mean."""
    load_max_over_mean: float
    """Load of the most popular expert over the mean."""
    hottest_share: float
    """Share of all (token, expert) pairs that go to the hottest eighth of the experts."""

    @classmethod
    def of(cls, load: np.ndarray) -> LoadStatistics:
        """Returns the statistics of one layer's loads, (expert,); all are 0 if those are."""
        hottest = max(1, round(HOT_SHARE * len(load)))
        total = float(load.sum()) or 1.0
        return cls(
            load_cv=float(load.std()) * len(load) / total,
            load_max_over_mean=float(load.max()) * len(load) / total,
            hottest_share=float(np.sort(load)[-hottest:].sum() / total),
        )


@dataclass(frozen=True)
class LayerStatistics(LoadStatistics):
    """Statistics of one layer of a trace, or their means over layers."""

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
class RoutingStatistics:
    """All statistics of a trace, or of loads, which have no tokens and hence fewer."""

    layers: Mapping[int, LoadStatistics]
    """By the model's number of the layer; of traces ``LayerStatistics``."""
    mean: LoadStatistics
    fan_out: list[FanOutStatistics] = field(default_factory=list)
    """By number of GPUs; none of loads."""
    gate_weights: list[float] | None = None
    """Mean share of a token's gate weight that its first, second, ... expert has; none if there are no weights."""


def trace_statistics(trace: RoutingTrace, gpu_counts: Sequence[int] = (8,)) -> RoutingStatistics:
    """Returns the statistics of a trace, fan-out for each number of GPUs.

    Raises:
        ConfigError: A number of GPUs is not positive or exceeds the tokens.
    """
    starts_document = np.zeros(trace.num_tokens, dtype=bool)
    starts_document[trace.doc_offsets[:-1]] = True
    layers = {
        int(number): _layer_statistics(ids, trace.experts, starts_document)
        for number, ids in zip(trace.layer_index, trace.topk_ids, strict=True)
    }
    weights = None
    if trace.topk_weights is not None:
        ordered = -np.sort(-trace.topk_weights.astype(np.float64), axis=-1)
        # Some models leave the weights of the chosen experts below a sum of one; weights that are all zero stay zero.
        total = np.maximum(ordered.sum(axis=-1, keepdims=True), np.finfo(np.float16).tiny)
        weights = (ordered / total).mean(axis=(0, 1)).tolist()
    fan_out = [_fan_out(trace, count) for count in gpu_counts]
    return RoutingStatistics(layers, _mean(LayerStatistics, [*layers.values()]), fan_out, weights)


def loads_statistics(loads: Mapping[int, np.ndarray]) -> RoutingStatistics:
    """Returns the statistics of loads, (expert,) by layer."""
    layers = {layer: LoadStatistics.of(each) for layer, each in loads.items()}
    return RoutingStatistics(layers, _mean(LoadStatistics, [*layers.values()]))


_StatisticsT = TypeVar("_StatisticsT", bound=LoadStatistics)


def _mean(kind: type[_StatisticsT], layers: Sequence[_StatisticsT]) -> _StatisticsT:
    """Returns the mean of every statistic over layers."""
    names = kind.__dataclass_fields__
    return kind(**{name: float(np.mean([getattr(row, name) for row in layers])) for name in names})


def uniform_fan_out(experts: int, top_k: int, num_gpus: int) -> float:
    """Returns the expected number of distinct GPUs of ``top_k`` distinct experts chosen uniformly."""
    missed = [comb(experts - held, top_k) for held in contiguous_placement(experts, num_gpus).held.tolist()]
    return num_gpus - sum(missed) / comb(experts, top_k)


def _layer_statistics(ids: np.ndarray, experts: int, starts_document: np.ndarray) -> LayerStatistics:
    """Returns the statistics of one layer's (token, k) ids."""
    load = count_loads(ids, experts).astype(np.float64)
    chosen_share = load / len(ids)  # of tokens that chose the expert
    is_repeated = (ids[1:, :, None] == ids[:-1, None, :]).any(axis=-1)
    has = ids[1:].astype(np.int64) != NO_EXPERT
    # Tokens without any expert repeat none.
    repeated = ((is_repeated & has).sum(axis=-1) / np.maximum(has.sum(axis=-1), 1))[~starts_document[1:]]
    return LayerStatistics(
        **asdict(LoadStatistics.of(load)),
        adjacent_share=float(repeated.mean()) if repeated.size else 0.0,
        adjacent_share_independent=float((chosen_share**2).sum() / (chosen_share.sum() or 1.0)),
    )


def _fan_out(trace: RoutingTrace, num_gpus: int) -> FanOutStatistics:
    if num_gpus < 1:
        raise ConfigError(f"gpus={num_gpus} must be at least 1")
    if num_gpus > trace.num_tokens:
        raise ConfigError(f"gpus={num_gpus} is more than the trace's {trace.num_tokens} tokens")
    source = np.arange(trace.num_tokens) * num_gpus // trace.num_tokens
    fan_out, busiest_gpu, busiest_pair = [], [], []
    for ids in trace.topk_ids:
        visited = _visited(ids, trace.experts, num_gpus)
        pairs = np.zeros((num_gpus, num_gpus))  # (source, destination)
        np.add.at(pairs, source, visited)
        fan_out.append(visited.sum() / trace.num_tokens)
        total = pairs.sum() or 1.0
        busiest_gpu.append(pairs.sum(axis=0).max() * num_gpus / total)
        busiest_pair.append(pairs.max() * num_gpus**2 / total)
    return FanOutStatistics(
        num_gpus=num_gpus,
        fan_out=float(np.mean(fan_out)),
        fan_out_uniform=uniform_fan_out(trace.experts, trace.top_k, num_gpus),
        gpu_max_over_mean=float(np.mean(busiest_gpu)),
        pair_max_over_mean=float(np.mean(busiest_pair)),
    )


def _visited(ids: np.ndarray, experts: int, num_gpus: int) -> np.ndarray:
    """Returns which GPUs hold an expert of which token, (token, gpu) bool, for (token, k) ids."""
    # What stands behind a token's experts is on a GPU that is not counted.
    gpu_of = np.append(contiguous_placement(experts, num_gpus).gpu_of_expert, num_gpus)
    visited = np.zeros((len(ids), num_gpus + 1), dtype=bool)
    np.put_along_axis(visited, gpu_of[ids.astype(np.int64)], True, axis=1)
    return visited[:, :num_gpus]


@dataclass(frozen=True, eq=False)
class RemoteStatistics:
    """How far from home tokens go on a given number of GPUs.

    Attributes:
        num_gpus: GPUs.
        share_of_r: (num_gpus + 1,) share of tokens, over all layers, that go to 0, 1, ... distinct remote GPUs.
        at_home: (layer,) share of a token's experts that its home GPU holds.
    """

    num_gpus: int
    share_of_r: np.ndarray
    at_home: np.ndarray


def remote_statistics(trace: RoutingTrace, num_gpus: int) -> RemoteStatistics:
    """Returns how far from home tokens go, experts placed contiguously.

    Homes are the source GPUs of the trace, where it has as many; or else equal consecutive parts of it.
    """
    counts = trace.tokens_of_gpu
    if counts is not None and len(counts) == num_gpus:
        home = np.repeat(np.arange(num_gpus), counts)
    else:
        home = np.arange(trace.num_tokens) * num_gpus // trace.num_tokens
    gpu_of = np.append(contiguous_placement(trace.experts, num_gpus).gpu_of_expert, NO_EXPERT)
    reached, at_home = np.zeros(num_gpus + 1), []
    for ids in trace.topk_ids:
        visited = _visited(ids, trace.experts, num_gpus)
        visited[np.arange(len(ids)), home] = False
        reached += np.bincount(visited.sum(axis=1), minlength=num_gpus + 1)
        held = gpu_of[ids.astype(np.int64)]
        at_home.append((held == home[:, None]).sum() / max(1, (held != NO_EXPERT).sum()))
    return RemoteStatistics(num_gpus, reached / reached.sum(), np.array(at_home))
