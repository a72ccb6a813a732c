"""What tokens choose, before anything is said of where experts are: drawn from a generator, a trace or loads.

Each of the three is read once and draws any number of batches. A batch is the choices of the tokens that GPUs have at
one time, in one layer or, for traces and loads, in several.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from dysharp_env.config import ConfigError, Notice
from dysharp_env.workload.choices import count_loads
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.loads import load_loads, popularity_of, sampling_model
from dysharp_env.workload.routing import draw_past_loads, draw_popularity, draw_tokens, routing_candidates
from dysharp_env.workload.traces import RECORDED, load_trace, split_range

_NOTICED_REPEATS = 0.25  # of a batch's tokens; below, windows of GPUs overlap too little to matter
_SAMPLED = 2  # tells the streams of sampled batches from that of an earlier batch
# A number of a layer, several, all, or none: any of them.
LayerIndex = int | tuple[int, ...] | Literal["all"] | None


@dataclass(frozen=True)
class Batch:
    """What tokens choose in one layer.

    Attributes:
        ids: (token, top_k) logical experts, tokens GPU by GPU.
        label: For people: routing and layer.
        layer: The model's number of the layer; None where routing is of no layer in particular.
        history: Counts what an earlier batch of the same kind sent to each logical expert.
    """

    ids: np.ndarray
    label: str
    layer: int | None
    history: Callable[[], np.ndarray]


class Drawing(Protocol):
    """Draws batches."""

    tokens_of_gpu: np.ndarray
    """(gpu,) tokens of each GPU, the same in every batch."""
    layers: Sequence[int]
    """Numbers of all layers that there is routing of, in order; none for generators."""
    chosen: Sequence[int]
    """Those that batches may be of."""

    def draw(self, seed: int, is_all: bool = False) -> list[Batch]:
        """Returns the batches of a seed: one, of a layer that is drawn, or with ``is_all`` one of every chosen layer.

        The one is among the others.
        """
        ...


class Generated:
    """Draws from a generator: new popular experts and new documents for every batch.

    An earlier batch has the same popularity and other tokens.

    Raises:
        ConfigError: There is no such generator.
    """

    layers: Sequence[int] = ()
    chosen: Sequence[int] = ()

    def __init__(self, routing: str, layer: LayerSpec, tokens_of_gpu: np.ndarray) -> None:
        self._routing, self._layer, self.tokens_of_gpu = routing, layer, tokens_of_gpu
        self._models = routing_candidates(routing)

    def draw(self, seed: int, is_all: bool = False) -> list[Batch]:
        """Returns the one batch of a seed."""
        rng = np.random.default_rng(seed)
        model = self._models[int(rng.integers(len(self._models)))] if len(self._models) > 1 else self._models[0]
        popularity = draw_popularity(model, self._layer, rng, self.tokens_of_gpu)
        ids = draw_tokens(model, self._layer, popularity, self.tokens_of_gpu, rng)
        label = self._routing if self._routing == model.name else f"{self._routing}/{model.name}"
        history = partial(draw_past_loads, model, self._layer, popularity, self.tokens_of_gpu, seed)
        return [Batch(ids, label, None, history)]


class Traced:
    """Draws from a trace: each GPU has a window of its own, consecutive tokens that start anywhere in the split.

    Windows are the same in every layer. Where the trace itself says which tokens each GPU has, they may be those. The
    loads of an earlier batch are those of all other tokens of the trace, from other splits too; of all tokens, where
    the windows leave none.

    Args:
        routing: A trace's name or path.
        layer: The layer's shape.
        tokens_of_gpu: (gpu,) tokens of each GPU; None takes what the trace says.
        num_gpus: GPUs.
        layer_index: Which layers.
        split: Which part of the trace.

    Raises:
        ConfigError: The trace is missing or damaged, does not fit the layer, lacks a layer that is asked for, or has
            too few tokens; or it does not say which tokens each GPU has.
    """

    def __init__(
        self,
        routing: str,
        layer: LayerSpec,
        tokens_of_gpu: np.ndarray | None,
        num_gpus: int,
        layer_index: LayerIndex,
        split: str,
    ) -> None:
        self._routing, self._split, self._experts = routing, split, layer.experts
        trace = load_trace(routing, layer.choices)
        try:
            self._trace = trace.for_layer(layer)
            self.layers: Sequence[int] = trace.layer_index.tolist()
            self.chosen: Sequence[int] = _chosen(layer_index, self.layers)
        except ConfigError as error:
            raise ConfigError(f"trace '{routing}': {error}") from None
        self._start, self._stop = split_range(self._trace, split)
        self._is_whole = tokens_of_gpu is None
        self.tokens_of_gpu = self._own_tokens(num_gpus) if tokens_of_gpu is None else tokens_of_gpu
        size, most = self._stop - self._start, int(self.tokens_of_gpu.max())
        if size < most:
            raise ConfigError(
                f"tokens={most} is more than split '{split}' of '{routing}' holds"
                f" ({size} of {self._trace.num_tokens} tokens)"
            )
        ends = self._stop - self.tokens_of_gpu + 1
        # Even counts draw what they always drew: from one end for all.
        self._ends = ends if np.ptp(ends) else int(ends[0])
        if not self._is_whole:
            self._notice_overlap(size)

    def _notice_overlap(self, size: int) -> None:
        """Says once where many tokens of a batch come several times, as windows of GPUs overlap."""
        batch = int(self.tokens_of_gpu.sum())
        missed = np.prod(1.0 - self.tokens_of_gpu / size)
        repeated = 1.0 - size * (1.0 - missed) / batch
        if repeated < _NOTICED_REPEATS:
            return
        # The same text for the same numbers, so that one line is shown for many sources in a process.
        warnings.warn(
            f"{len(self.tokens_of_gpu)} GPUs draw {batch} tokens from {size} of '{self._routing}' (split"
            f" '{self._split}'): windows overlap, and about {repeated:.0%} of a batch's tokens repeat others of it",
            Notice,
            stacklevel=2,
        )

    def _own_tokens(self, num_gpus: int) -> np.ndarray:
        counts = self._trace.tokens_of_gpu
        if counts is None:
            raise ConfigError(f"tokens='trace' needs tokens_of_gpu in the trace; '{self._routing}' has none")
        if len(counts) != num_gpus:
            raise ConfigError(f"tokens='trace': '{self._routing}' is of {len(counts)} GPUs, not gpus={num_gpus}")
        if self._split != "all":
            raise ConfigError(f"tokens='trace' takes the whole trace and needs split='all', not '{self._split}'")
        return counts.astype(np.int64)

    def draw(self, seed: int, is_all: bool = False) -> list[Batch]:
        """Returns the batches of a seed, one or all."""
        rng, counts = np.random.default_rng(seed), self.tokens_of_gpu
        drawn = self.chosen[int(rng.integers(len(self.chosen)))]
        if self._is_whole:
            starts = np.cumsum(counts) - counts
        else:
            starts = rng.integers(self._start, self._ends, size=len(counts))
        windows = [*zip(starts.tolist(), counts.tolist(), strict=True)]
        return [self._batch(number, windows) for number in (self.chosen if is_all else [drawn])]

    def _batch(self, number: int, windows: list[tuple[int, int]]) -> Batch:
        ids = self._trace.topk_ids[self.layers.index(number)]
        routing = self._routing if self._routing == RECORDED else Path(self._routing).stem
        return Batch(
            np.concatenate([ids[start : start + count] for start, count in windows]),
            f"{routing} layer={number} split={self._split}",
            number,
            partial(_loads_of_others, ids, windows, self._experts),
        )


def _loads_of_others(ids: np.ndarray, windows: list[tuple[int, int]], experts: int) -> np.ndarray:
    """Returns the loads, (experts,), of ids, (token, k), outside of (start, count) windows, or of all if none are."""
    is_other = np.ones(len(ids), bool)
    for start, count in windows:
        is_other[start : start + count] = False
    return count_loads(ids[is_other] if is_other.any() else ids, experts)


class Sampled:
    """Samples tokens from loads, in every layer others; an earlier batch is another sample.

    Raises:
        ConfigError: The loads are missing or damaged, do not fit the layer, or lack a layer that is asked for.
    """

    def __init__(self, routing: str, layer: LayerSpec, tokens_of_gpu: np.ndarray, layer_index: LayerIndex) -> None:
        self._layer, self._model, self.tokens_of_gpu = layer, sampling_model(routing), tokens_of_gpu
        loads = load_loads(routing)
        try:
            self._counts = loads.for_layer(layer).counts
            self.layers: Sequence[int] = loads.layer_index.tolist()
            self.chosen: Sequence[int] = _chosen(layer_index, self.layers)
        except ConfigError as error:
            raise ConfigError(f"loads '{routing}': {error}") from None
        self._label = Path(routing).name.replace(".npz:", ":")
        self._popularity: dict[int, np.ndarray] = {}

    def draw(self, seed: int, is_all: bool = False) -> list[Batch]:
        """Returns the batches of a seed, one or all."""
        drawn = self.chosen[int(np.random.default_rng(seed).integers(len(self.chosen)))]
        return [self._batch(number, seed) for number in (self.chosen if is_all else [drawn])]

    def _batch(self, number: int, seed: int) -> Batch:
        # Each layer has a stream of its own, so that its tokens are the same alone and among others.
        rng, popularity = np.random.default_rng([seed, number, _SAMPLED]), self._fitted(number)
        return Batch(
            draw_tokens(self._model, self._layer, popularity, self.tokens_of_gpu, rng),
            f"{self._label} layer={number}",
            number,
            partial(draw_past_loads, self._model, self._layer, popularity, self.tokens_of_gpu, seed),
        )

    def _fitted(self, number: int) -> np.ndarray:
        # Fitting takes a second under a limit of groups, so a layer is fitted when it is first drawn.
        if number not in self._popularity:
            self._popularity[number] = popularity_of(self._counts[self.layers.index(number)], self._layer)
        return self._popularity[number]


def _chosen(layer_index: LayerIndex, layers: Sequence[int]) -> list[int]:
    """Returns the numbers that a choice of layers stands for.

    Raises:
        ConfigError: One of them is not there.
    """
    if layer_index is None or layer_index == "all":
        return list(layers)
    given = [layer_index] if isinstance(layer_index, int) else list(layer_index)
    for number in given:
        if number not in layers:
            raise ConfigError(f"layer_index={number} is not in it; choose from {list(layers)}")
    return given
