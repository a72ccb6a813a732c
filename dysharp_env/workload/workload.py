"""A workload: one MoE layer, its tokens and where they go; and the sources workloads are drawn from.

A ``Workload`` is all that the simulator knows of routing: for every token the experts it chose, and for every expert
the GPU that holds it. A ``WorkloadSource`` is built once and draws any number of workloads, each of them from a seed of
its own that is part of the workload's name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.demand import Demand, count_demand, is_sound
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.routing import RoutingModel, draw_routing, routing_candidates
from dysharp_env.workload.traces import RoutingTrace, is_trace_name, load_trace, read_arrays, split_range


@dataclass(frozen=True)
class Workload:
    """One MoE layer with the routing of its tokens. The arrays are read-only copies.

    Token ``t`` lives on its home GPU ``t // tokens_per_gpu``.

    Raises:
        ConfigError: An array has the wrong shape, an id is out of range or twice in a row, or the experts cannot be or
            are not spread evenly over the GPUs.
    """

    layer: LayerSpec
    num_gpus: int
    tokens_per_gpu: int
    topk_ids: np.ndarray  # (num_gpus * tokens_per_gpu, top_k) int32, the distinct experts of a token
    gpu_of_expert: np.ndarray  # (experts,) int32
    name: str  # for people: routing, seed

    def __post_init__(self) -> None:
        if self.tokens_per_gpu < 1:
            raise ConfigError(f"tokens={self.tokens_per_gpu} must be at least 1")
        ids = np.asarray(self.topk_ids)
        if ids.dtype.kind not in "iu":
            raise ConfigError(f"topk_ids must hold whole numbers, not {ids.dtype}")
        expected = (self.num_gpus * self.tokens_per_gpu, self.layer.top_k)
        if ids.shape != expected:
            raise ConfigError(f"topk_ids is {ids.shape}, but '{self.layer.name}' on {self.num_gpus} GPUs: {expected}")
        placement = np.asarray(self.gpu_of_expert)
        if placement.dtype.kind not in "iu":
            raise ConfigError(f"gpu_of_expert must hold whole numbers, not {placement.dtype}")
        # Copies: the caller may change theirs.
        narrow_ids, narrow_placement = np.array(ids, np.int32, order="C"), np.array(placement, np.int32)
        is_exact = all(given.dtype.itemsize < 4 or given.dtype == np.int32 for given in (ids, placement))
        fits = placement.shape == (self.layer.experts,) and self.num_gpus >= 1
        if not (is_exact and fits and is_sound(narrow_ids, narrow_placement, self.num_gpus)):
            self._refuse_mistakes(ids, placement)
        narrow_ids.flags.writeable = narrow_placement.flags.writeable = False
        object.__setattr__(self, "topk_ids", narrow_ids)
        object.__setattr__(self, "gpu_of_expert", narrow_placement)

    def _refuse_mistakes(self, ids: np.ndarray, placement: np.ndarray) -> None:
        """Says what is wrong with the arrays, of any type of whole numbers, if anything is."""
        if ids.min() < 0 or ids.max() >= self.layer.experts:
            bad = ids[(ids < 0) | (ids >= self.layer.experts)][0]
            raise ConfigError(f"topk_ids holds {bad}; {self.layer.name} has experts 0 to {self.layer.experts - 1}")
        ordered = np.sort(ids, axis=1)
        repeated = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
        if repeated.size:
            raise ConfigError(f"topk_ids: token {repeated[0]} chose an expert twice: {ids[repeated[0]].tolist()}")
        check_placement(placement, self.layer.experts, self.num_gpus, "gpu_of_expert")

    @cached_property
    def demand(self) -> Demand:
        """What the tokens ask of every GPU."""
        return count_demand(self.topk_ids, self.gpu_of_expert, self.num_gpus)

    @property
    def num_tokens(self) -> int:
        """Tokens of all GPUs together."""
        return self.num_gpus * self.tokens_per_gpu

    @property
    def experts_per_gpu(self) -> int:
        """Experts a GPU holds."""
        return self.layer.experts // self.num_gpus


class WorkloadSource:
    """Draws workloads for one layer and number of GPUs; see ``ScenarioSpec`` for what its other arguments mean.

    A generator makes new routing for every draw: new popular experts, new documents. A trace gives every GPU a window
    of its own, ``tokens`` consecutive tokens that start anywhere in the split, all in the same model layer: each GPU
    serves requests of its own. Building the source reads files and reports every mistake; drawing does not fail.

    Raises:
        ConfigError: The routing or placement is unknown or does not fit the layer, or the trace's split is shorter than
            ``tokens``.
    """

    def __init__(
        self,
        layer: LayerSpec,
        num_gpus: int,
        tokens: int,
        routing: str = "uniform",
        placement: str = "contiguous",
        layer_index: int | None = None,
        split: str = "all",
    ) -> None:
        self.layer, self.num_gpus, self.tokens, self.routing, self.split = layer, num_gpus, tokens, routing, split
        self.gpu_of_expert = load_placement(placement, layer.experts, num_gpus)
        self._models: list[RoutingModel] = []
        self._trace: RoutingTrace | None = None
        if is_trace_name(routing):
            trace = load_trace(routing)
            try:
                self._trace = trace.for_layer(layer)
                self._rows = [*range(len(trace.topk_ids))]
                if layer_index is not None:
                    self._rows = [trace.row_of_layer(layer_index)]
            except ConfigError as error:
                raise ConfigError(f"trace '{routing}': {error}") from None
            self._start, self._stop = split_range(self._trace, split)
            if self._stop - self._start < tokens:
                raise ConfigError(
                    f"tokens={tokens} is more than split '{split}' of '{routing}' holds"
                    f" ({self._stop - self._start} of {self._trace.num_tokens} tokens)"
                )
        elif layer_index is not None:
            raise ConfigError(f"layer_index={layer_index} needs a trace; routing='{routing}' is a generator")
        elif split != "all":
            raise ConfigError(f"split='{split}' needs a trace; routing='{routing}' is a generator")
        else:
            self._models = routing_candidates(routing)

    def draw(self, seed: int) -> Workload:
        """Returns the workload of one seed: the same seed gives the same workload, as its name records."""
        rng = np.random.default_rng(seed)
        if self._trace is not None:
            topk_ids, label = self._window(self._trace, rng)
        else:
            model = self._models[int(rng.integers(len(self._models)))] if len(self._models) > 1 else self._models[0]
            topk_ids = draw_routing(model, self.layer, self.num_gpus, self.tokens, rng)
            label = self.routing if self.routing == model.name else f"{self.routing}/{model.name}"
        return Workload(
            layer=self.layer,
            num_gpus=self.num_gpus,
            tokens_per_gpu=self.tokens,
            topk_ids=topk_ids.reshape(-1, self.layer.top_k),
            gpu_of_expert=self.gpu_of_expert,
            name=f"{label} seed={seed}",
        )

    def _window(self, trace: RoutingTrace, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """Returns (gpu * token, k) ids of one window per GPU, and a label that names layer and split."""
        row = self._rows[int(rng.integers(len(self._rows)))]
        starts = rng.integers(self._start, self._stop - self.tokens + 1, size=self.num_gpus)
        ids = np.concatenate([trace.topk_ids[row, start : start + self.tokens] for start in starts.tolist()])
        routing = self.routing if self.routing == "recorded" else Path(self.routing).stem
        return ids, f"{routing} layer={trace.layer_index[row]} split={self.split}"


def contiguous_placement(experts: int, num_gpus: int) -> np.ndarray:
    """Returns the GPU of every expert, (experts,) int32, when each GPU holds consecutive experts.

    Raises:
        ConfigError: ``experts`` is not a multiple of ``num_gpus``.
    """
    _require_even(experts, num_gpus)
    return np.repeat(np.arange(num_gpus, dtype=np.int32), experts // num_gpus)


def load_placement(placement: str, experts: int, num_gpus: int) -> np.ndarray:
    """Returns the GPU of every expert, (experts,) int32, for ``contiguous`` or a .json or .npz file.

    Raises:
        ConfigError: The name is neither, the file is unreadable, or its placement does not fit.
    """
    _require_even(experts, num_gpus)
    if placement == "contiguous":
        return contiguous_placement(experts, num_gpus)
    if placement.endswith(".npz"):
        listed = read_arrays(placement, required=("gpu_of_expert",))["gpu_of_expert"]
    elif placement.endswith(".json"):
        try:
            listed = np.array(json.loads(Path(placement).read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigError(f"cannot read placement '{placement}': {error.strerror}") from None
        except ValueError:  # not UTF-8, not JSON, or a ragged list
            raise ConfigError(f"placement '{placement}' must hold a JSON list with the GPU of every expert") from None
    else:
        raise ConfigError(f"placement='{placement}' is unknown; choose 'contiguous' or a .json or .npz file")
    if listed.dtype.kind not in "iu":
        raise ConfigError(f"placement '{placement}' must hold whole numbers, not {listed.dtype}")
    check_placement(listed, experts, num_gpus, f"placement '{placement}'")
    return listed.astype(np.int32)


def check_placement(gpu_of_expert: np.ndarray, experts: int, num_gpus: int, source: str) -> None:
    """Checks that every GPU holds the same number of experts; ``source`` names the placement in errors.

    Raises:
        ConfigError: It does not, or a GPU or the number of experts is wrong.
    """
    _require_even(experts, num_gpus)
    if gpu_of_expert.shape != (experts,):
        raise ConfigError(f"{source} has shape {gpu_of_expert.shape}; it must list a GPU for each of {experts} experts")
    if gpu_of_expert.min() < 0 or gpu_of_expert.max() >= num_gpus:
        bad = gpu_of_expert[(gpu_of_expert < 0) | (gpu_of_expert >= num_gpus)][0]
        raise ConfigError(f"{source} names GPU {bad}; there are GPUs 0 to {num_gpus - 1}")
    held = np.bincount(gpu_of_expert, minlength=num_gpus)
    uneven = np.flatnonzero(held != experts // num_gpus)
    if uneven.size:
        gpu = uneven[0]
        raise ConfigError(f"{source} gives GPU {gpu} {held[gpu]} experts; every GPU must hold {experts // num_gpus}")


def _require_even(experts: int, num_gpus: int) -> None:
    if num_gpus < 1:
        raise ConfigError(f"gpus={num_gpus} must be at least 1")
    if experts % num_gpus:
        fitting = [count for count in range(1, experts + 1) if experts % count == 0]
        raise ConfigError(f"gpus={num_gpus} does not divide {experts} experts evenly; choose from {fitting}")
