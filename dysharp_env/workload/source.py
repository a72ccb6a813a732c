"""The sources that workloads are drawn from: what tokens choose, how many each GPU has, and where experts are.

A ``WorkloadSource`` is built once and draws any number of workloads, each of them from a seed of its own that is part
of the workload's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from dysharp_env.config import ConfigError, whole_number
from dysharp_env.files import shown
from dysharp_env.workload.drawing import Batch, Drawing, Generated, LayerIndex, Sampled, Traced
from dysharp_env.workload.eplb import eplb_placement
from dysharp_env.workload.heat import Heated
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.loads import is_loads_name
from dysharp_env.workload.placement import Placement
from dysharp_env.workload.placement_files import CONTIGUOUS, LayerPlacements, load_placements
from dysharp_env.workload.replicas import ReplicaRule, serve
from dysharp_env.workload.room import require_room
from dysharp_env.workload.traces import is_trace_name
from dysharp_env.workload.workload import Workload


class WorkloadSource:
    """Draws workloads for one layer and number of GPUs; see ``ScenarioSpec`` for what the arguments mean.

    Building the source reads files and reports every mistake; drawing does not fail.

    Raises:
        ConfigError: The routing or placement is unknown or does not fit the layer, the tokens do not fit the GPUs, or
            a trace's split is shorter than a GPU's tokens.
    """

    def __init__(
        self,
        layer: LayerSpec,
        num_gpus: int,
        tokens: int | Sequence[int] | Literal["trace"],
        routing: str = "uniform",
        placement: str = "contiguous",
        layer_index: LayerIndex = None,
        split: str = "all",
        replicas: ReplicaRule = "nearest",
        hot_expert: float = 0.0,
        hot_from: float = 0.5,
    ) -> None:
        self._layer, self._replicas = layer, replicas
        counts = None if tokens == "trace" else _counted(tokens, num_gpus)
        require_room(layer, num_gpus, 0 if counts is None else int(counts.sum()))
        self._slots = _eplb_slots(placement, layer.experts, num_gpus)
        placements = load_placements(placement if self._slots is None else CONTIGUOUS, layer.experts, num_gpus)
        if is_trace_name(routing):
            self._drawing: Drawing = Traced(routing, layer, counts, num_gpus, layer_index, split)
        else:
            self._drawing = _without_trace(routing, layer, counts, layer_index, split, placements)
        if hot_expert > 0:
            self._drawing = Heated(self._drawing, layer.experts, hot_expert, hot_from)
        self._has_several = layer_index == "all" or isinstance(layer_index, tuple)
        layers, chosen = self._drawing.layers, self._drawing.chosen
        self._placements: dict[int | None, Placement] = {
            number: placements.of_layer(number, layers) for number in chosen
        }
        if not chosen:
            self._placements = {None: placements.of_named(layer_index if isinstance(layer_index, int) else None)}

    @property
    def num_slots(self) -> int:
        """(Token, expert)s of a workload."""
        return int(self._drawing.tokens_of_gpu.sum()) * self._layer.top_k

    @property
    def num_layers(self) -> int:
        """How many workloads ``draw_layers`` returns."""
        return len(self._drawing.chosen) if self._has_several else 1

    def __deepcopy__(self, memo: dict[int, object]) -> WorkloadSource:
        return self  # as drawing changes nothing about it

    def draw(self, seed: int) -> Workload:
        """Returns the workload of one seed: the same seed gives the same workload, as its name records."""
        (batch,) = self._drawing.draw(seed)
        return self._workload(batch, seed)

    def draw_layers(self, seed: int) -> list[Workload]:
        """Returns the workloads of one seed in every layer that is asked for, or the one of ``draw`` if none is.

        The tokens of a trace are the same in all; ``draw`` returns one of them.
        """
        return [self._workload(batch, seed) for batch in self._drawing.draw(seed, is_all=self._has_several)]

    def _workload(self, batch: Batch, seed: int) -> Workload:
        placement = self._placements[batch.layer]
        if self._slots is not None:
            placement = eplb_placement(batch.history(), placement.num_gpus, self._slots)
        ids, counts = batch.ids, self._drawing.tokens_of_gpu
        if not placement.is_plain:
            ids = serve(ids, np.concatenate([[0], np.cumsum(counts)]), placement, self._replicas)
        return Workload(
            layer=self._layer,
            tokens_of_gpu=counts,
            topk_ids=ids,
            placement=placement,
            name=f"{batch.label} seed={seed}",
            history=batch.history,
            layer_index=batch.layer,
            seed=seed,
        )


def _eplb_slots(placement: str, experts: int, num_gpus: int) -> int | None:
    """Returns M of a placement ``eplb:M``; None of any other.

    Raises:
        ConfigError: M is no number, or such a placement cannot be made.
    """
    name, _, given = placement.partition(":")
    if name != "eplb":
        return None
    slots = whole_number(given)
    if slots is None:
        raise ConfigError(f"placement='{shown(placement)}' must be eplb:M, with the M experts that each GPU holds")
    try:
        eplb_placement(np.zeros(experts), num_gpus, slots)
    except ConfigError as error:
        raise ConfigError(f"placement='{placement}': {error}") from None
    return slots


def _counted(tokens: int | Sequence[int], num_gpus: int) -> np.ndarray:
    """Returns the tokens of each GPU, (gpu,) int64, of one number for all or one for each."""
    if isinstance(tokens, int):
        return np.full(num_gpus, tokens)
    if len(tokens) != num_gpus:
        raise ConfigError(f"tokens={list(tokens)} lists {len(tokens)} numbers for gpus={num_gpus}")
    return np.array(tokens, np.int64)


def _without_trace(
    routing: str,
    layer: LayerSpec,
    tokens_of_gpu: np.ndarray | None,
    layer_index: LayerIndex,
    split: str,
    placements: LayerPlacements,
) -> Drawing:
    what = "is loads" if is_loads_name(routing) else "is a generator"
    if tokens_of_gpu is None:
        raise ConfigError(f"tokens='trace' needs a trace; routing='{routing}' {what}")
    if split != "all":
        raise ConfigError(f"split='{split}' needs a trace; routing='{routing}' {what}")
    if is_loads_name(routing):
        return Sampled(routing, layer, tokens_of_gpu, layer_index)
    # A generator has no layers, but a placement may have, and one of them may be chosen.
    if layer_index is not None and not (isinstance(layer_index, int) and len(placements.placements) > 1):
        shown = layer_index if isinstance(layer_index, int) else repr(layer_index)
        raise ConfigError(f"layer_index={shown} needs a trace; routing='{routing}' is a generator")
    return Generated(routing, layer, tokens_of_gpu)
