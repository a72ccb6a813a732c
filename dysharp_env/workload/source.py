"""The sources that workloads are drawn from: generators and traces.

A ``WorkloadSource`` is built once and draws any number of workloads, each of them from a seed of its own that is part
of the workload's name.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.placement import load_placement
from dysharp_env.workload.routing import RoutingModel, draw_routing, routing_candidates
from dysharp_env.workload.traces import RoutingTrace, is_trace_name, load_trace, split_range
from dysharp_env.workload.workload import Workload


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
        self.placement = load_placement(placement, layer.experts, num_gpus)
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
            tokens_of_gpu=np.full(self.num_gpus, self.tokens),
            topk_ids=topk_ids.reshape(-1, self.layer.top_k),
            placement=self.placement,
            name=f"{label} seed={seed}",
        )

    def _window(self, trace: RoutingTrace, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        """Returns (gpu * token, k) ids of one window per GPU, and a label that names layer and split."""
        row = self._rows[int(rng.integers(len(self._rows)))]
        starts = rng.integers(self._start, self._stop - self.tokens + 1, size=self.num_gpus)
        ids = np.concatenate([trace.topk_ids[row, start : start + self.tokens] for start in starts.tolist()])
        routing = self.routing if self.routing == "recorded" else Path(self.routing).stem
        return ids, f"{routing} layer={trace.layer_index[row]} split={self.split}"
