"""A workload: one MoE layer, its tokens and where they go.

A ``Workload`` is all that the simulator knows of routing: for every token the physical experts that serve it, and for
every physical expert the GPU that holds it. Everything that counts or moves tokens means physical experts by
``topk_ids``; which logical expert a physical one is of matters to whoever computes, plans or draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.choices import NO_EXPERT as NO_EXPERT
from dysharp_env.workload.demand import Demand, count_demand, is_sound
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.placement import Placement


@dataclass(frozen=True, eq=False)
class Workload:
    """One MoE layer with the routing of its tokens. The arrays are read-only copies.

    Tokens are numbered GPU by GPU: those that live on GPU ``g`` are ``first_token[g]`` to ``first_token[g + 1]``.

    Attributes:
        layer: The layer's shape.
        tokens_of_gpu: (gpu,) int64 tokens that live on each GPU; any of them may be 0, not all.
        topk_ids: (token, top_k) int32 the distinct physical experts that serve a token, of logical experts that are
            distinct too; ``NO_EXPERT`` behind the last where it has fewer: slots that were dropped, or experts that
            compute nothing. A token without any needs nothing of the machine.
        placement: The physical experts.
        name: For people: routing, seed.
        history: Counts what an earlier batch of the same kind sent to each logical expert; None where nobody knows.
        layer_index: The model's number of the layer; None where routing is of no layer in particular.
        seed: What it was drawn with from a scenario; None where it was not.

    Raises:
        ConfigError: An array has the wrong shape, an id is out of range or an expert twice in a row.
    """

    layer: LayerSpec
    tokens_of_gpu: np.ndarray
    topk_ids: np.ndarray
    placement: Placement
    name: str
    history: Callable[[], np.ndarray] | None = None
    layer_index: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        tokens, ids, num_gpus = np.asarray(self.tokens_of_gpu), np.asarray(self.topk_ids), self.placement.num_gpus
        if tokens.dtype.kind not in "iu" or tokens.shape != (num_gpus,):
            raise ConfigError(f"tokens_of_gpu must hold a whole number for each of {num_gpus} GPUs, not {tokens}")
        total = int(tokens.sum())
        if tokens.min() < 0 or total < 1:
            raise ConfigError(f"tokens={tokens.tolist()} must not be negative, and at least 1 together")
        if ids.dtype.kind not in "iu":
            raise ConfigError(f"topk_ids must hold whole numbers, not {ids.dtype}")
        expected = (total, self.layer.top_k)
        if ids.shape != expected:
            raise ConfigError(f"topk_ids is {ids.shape}, but '{self.layer.name}' on {num_gpus} GPUs: {expected}")
        if self.placement.num_logical != self.layer.experts:
            raise ConfigError(
                f"the placement holds {self.placement.num_logical} experts; '{self.layer.name}' has"
                f" {self.layer.experts}"
            )
        # Copies: the caller may change theirs.
        narrow = np.array(ids, np.int32, order="C")
        is_exact = ids.dtype.itemsize < 4 or ids.dtype == np.int32
        if not (is_exact and is_sound(narrow, self.placement.logical_of_expert)):
            self._refuse_mistakes(ids)
        counts = np.array(tokens, np.int64)
        narrow.flags.writeable = counts.flags.writeable = False
        object.__setattr__(self, "topk_ids", narrow)
        object.__setattr__(self, "tokens_of_gpu", counts)

    def __deepcopy__(self, memo: dict[int, object]) -> Workload:
        # Nothing about it ever changes, so that copies of a layer may share it.
        return self

    def _refuse_mistakes(self, ids: np.ndarray) -> None:
        """Says what is wrong with ids of any type of whole numbers, if anything is."""
        count = self.num_experts
        wrong = (ids < NO_EXPERT) | (ids >= count)
        if wrong.any():
            raise ConfigError(f"topk_ids holds {ids[wrong][0]}; {self.layer.name} has experts 0 to {count - 1}")
        gaps = np.flatnonzero(((ids[:, 1:] != NO_EXPERT) & (ids[:, :-1] == NO_EXPERT)).any(axis=1))
        if gaps.size:
            raise ConfigError(f"topk_ids: token {gaps[0]} has {NO_EXPERT} before an expert: {ids[gaps[0]].tolist()}")
        logical = np.where(ids == NO_EXPERT, NO_EXPERT, self.placement.logical_of_expert[ids])
        ordered = np.sort(logical, axis=1)
        repeated = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != NO_EXPERT)).any(axis=1)
        if repeated.any():
            token = np.flatnonzero(repeated)[0]
            raise ConfigError(f"topk_ids: token {token} chose an expert twice: {logical[token].tolist()}")

    @classmethod
    def even(
        cls, layer: LayerSpec, num_gpus: int, topk_ids: np.ndarray, gpu_of_expert: Sequence[int] | np.ndarray, name: str
    ) -> Workload:
        """Returns the workload of as many tokens on every GPU and experts that are there once.

        Args:
            layer: The layer's shape.
            num_gpus: GPUs.
            topk_ids: (token, top_k) experts, of ``num_gpus`` times as many tokens.
            gpu_of_expert: (expert,) where they are.
            name: For people.

        Raises:
            ConfigError: See the class; or the tokens cannot be spread evenly.
        """
        if num_gpus < 1 or len(topk_ids) % num_gpus:
            raise ConfigError(f"gpus={num_gpus} cannot have {len(topk_ids)} tokens evenly")
        tokens = np.full(num_gpus, len(topk_ids) // num_gpus)
        return cls(layer, tokens, topk_ids, Placement(num_gpus, np.asarray(gpu_of_expert)), name)

    def served_by(self, topk_ids: np.ndarray, placement: Placement) -> Workload:
        """Returns the same tokens with other physical experts, which must be of the same logical ones.

        Raises:
            ConfigError: See the class; or a token's logical experts differ.
        """
        other = replace(self, topk_ids=topk_ids, placement=placement)
        before, after = np.sort(self.logical_ids, axis=1), np.sort(other.logical_ids, axis=1)
        if not np.array_equal(before, after):
            token = np.flatnonzero((before != after).any(axis=1))[0]
            raise ConfigError(f"token {token} chose {before[token].tolist()} and would get {after[token].tolist()}")
        return other

    def renamed(self, order: Sequence[int] | np.ndarray) -> Workload:
        """Returns the same workload with other numbers for GPUs: GPU ``order[g]`` of this one is GPU ``g`` of it.

        Tokens stay with their homes, and experts, which keep their numbers, on their GPUs.

        Raises:
            ConfigError: The order does not hold every GPU once.
        """
        old = np.asarray(order)
        if not np.array_equal(np.sort(old), np.arange(self.num_gpus)):
            raise ConfigError(f"order={old.tolist()} must hold each of GPUs 0 to {self.num_gpus - 1} once")
        new = np.argsort(old)
        of_gpu = np.split(self.topk_ids, self.first_token[1:-1])
        return replace(
            self,
            tokens_of_gpu=self.tokens_of_gpu[old],
            topk_ids=np.concatenate([of_gpu[gpu] for gpu in old]),
            placement=replace(self.placement, gpu_of_expert=new[self.gpu_of_expert]),
        )

    @cached_property
    def demand(self) -> Demand:
        """What the tokens ask of every GPU."""
        return count_demand(self.topk_ids, self.gpu_of_expert, self.first_token)

    @cached_property
    def loads(self) -> np.ndarray:
        """(gpu,) the (token, expert)s that each GPU computes."""
        return np.bincount(self.gpu_of_expert, self.demand.expert_tokens, minlength=self.num_gpus)

    @cached_property
    def imbalance_ppm(self) -> int:
        """1 less the mean load of GPUs over that of the busiest, in parts per million; 0 without any load."""
        return int(1_000_000 * (1 - self.loads.mean() / self.loads.max())) if self.loads.any() else 0

    @cached_property
    def past_loads(self) -> np.ndarray | None:
        """(experts,) tokens that each logical expert had in an earlier batch: what a static placement is made from."""
        return self.history() if self.history else None

    @cached_property
    def first_token(self) -> np.ndarray:
        """(gpu + 1,) int64 the first token of each GPU, and the end."""
        return np.concatenate([[0], np.cumsum(self.tokens_of_gpu)])

    @cached_property
    def home_of_token(self) -> np.ndarray:
        """(token,) int32 the GPU that each token lives on."""
        return np.repeat(np.arange(self.num_gpus, dtype=np.int32), self.tokens_of_gpu)

    @cached_property
    def experts_of_token(self) -> np.ndarray:
        """(token,) int64 experts of each token: ``top_k``, or fewer."""
        return np.count_nonzero(self.topk_ids != NO_EXPERT, axis=1)

    @property
    def logical_ids(self) -> np.ndarray:
        """(token, top_k) int32 the logical experts of each token, in the order of ``topk_ids``."""
        if self.placement.is_plain:
            return self.topk_ids
        logical = self.placement.logical_of_expert[self.topk_ids]
        logical[self.topk_ids == NO_EXPERT] = NO_EXPERT
        return logical

    @property
    def num_gpus(self) -> int:
        """GPUs."""
        return self.placement.num_gpus

    @cached_property
    def num_tokens(self) -> int:
        """Tokens of all GPUs together."""
        return int(self.tokens_of_gpu.sum())

    @cached_property
    def most_tokens(self) -> int:
        """Tokens of the GPU that has most."""
        return int(self.tokens_of_gpu.max())

    @property
    def num_experts(self) -> int:
        """Physical experts, copies with them."""
        return len(self.placement)

    @cached_property
    def most_experts(self) -> int:
        """Physical experts of the GPU that holds most."""
        return int(self.placement.held.max())

    @property
    def gpu_of_expert(self) -> np.ndarray:
        """(physical,) int32 where each physical expert is."""
        return self.placement.gpu_of_expert
