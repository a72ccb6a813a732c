"""Whole layers of DeepGEMM's Mega MoE: the schedule ``mega-moe``, with the routing that the collector draws.

In the collector's time are a kernel before the fused one, which quantises tokens into the symmetric buffer, and one
after it, which scales the output, replayed from a graph on every rank. Besides what the schedule pays for quantising,
which is traffic, they take ``AROUND_US``, casting, at what a cast costs an SM, and the scaling's traffic.

Routing follows the collector (``collector/helper.py`` of AIConfigurator): over the tokens of all ranks, dealt to home
ranks at random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Self

import numpy as np

from dysharp_env.schedules import load_schedule
from dysharp_env.system import GpuSpec
from dysharp_env.validation.tables.deepep import uniform_ids
from dysharp_env.validation.tables.runs import layer_result, machine
from dysharp_env.workload import LayerSpec

POWER_LAW = "power_law_"
# What the kernels around the fused one take: set on rows of few tokens, which are so much longer than DeepGEMM's own
# times, in which these kernels are not (table ``published``).
AROUND_US = 20.0
BF16_BYTES = 2


@dataclass(frozen=True)
class MegaMoE:
    """One layer; ``figures`` are its time in microseconds.

    Attributes:
        preset, ranks: The machine.
        hidden, inter, top_k, experts: The layer.
        distribution: ``balanced``, ``random`` or ``power_law_A``.
        tokens: Of each GPU.
        seed: Of the order of tokens, and of the choice between equals.
        is_served: Whether the kernels before and after the fused one are in the time.
    """

    line_through: ClassVar[tuple[int, int] | None] = None

    preset: str
    ranks: int
    hidden: int
    inter: int
    top_k: int
    experts: int
    distribution: str
    tokens: int
    seed: int = 0
    is_served: bool = True

    def at(self, tokens: int) -> Self:
        """Returns the same layer with other tokens on each GPU."""
        return replace(self, tokens=tokens)

    def figures(self) -> tuple[float, ...]:
        """Returns the time of the layer, microseconds."""
        layer = layer_of(self.hidden, self.inter, self.top_k, self.experts)
        ids = self._topk_ids(layer)
        system = machine(self.preset, self.ranks)
        result = layer_result(system, layer, ids, load_schedule("mega-moe"))
        return (result.makespan_us + (self._around_us(system.gpu) if self.is_served else 0.0),)

    def _around_us(self, gpu: GpuSpec) -> float:
        """Returns what the kernels around the fused one take, but for what the schedule pays."""
        cast_ps = gpu.families["warp_low_latency"].prepare_byte_ps / gpu.num_sms
        scaling_ps = 2 * BF16_BYTES / (gpu.hbm_gbps * gpu.hbm_efficiency) * 1000
        return AROUND_US + self.tokens * self.hidden * (cast_ps + scaling_ps) / 1e6

    def _topk_ids(self, layer: LayerSpec) -> np.ndarray:
        tokens = self.ranks * self.tokens
        if self.distribution == "random":
            return uniform_ids(layer, self.ranks, self.tokens, self.seed)
        rng = np.random.default_rng(self.seed)
        if self.distribution == "balanced":
            ids = balanced_ids(tokens, self.top_k, self.experts)
        else:
            exponent = float(self.distribution.removeprefix(POWER_LAW))
            counts = power_law_counts(tokens, self.top_k, self.experts, self.ranks, exponent, rng)
            ids = dealt_ids(counts, tokens, self.top_k)
        return ids[rng.permutation(tokens)]


@cache
def layer_of(hidden: int, inter: int, top_k: int, experts: int) -> LayerSpec:
    """Returns the layer with MXFP4 weights and MXFP8 activations."""
    return LayerSpec(
        name="mega-moe",
        hidden=hidden,
        moe_ff=inter,
        experts=experts,
        top_k=top_k,
        ffn_matrices=3,
        dispatch_dtype="mxfp8",
        compute_dtype="fp8",
        weight_dtype="mxfp4",
        source="AIConfigurator, collector/sglang/collect_dsv4_megamoe.py",
    )


def balanced_ids(tokens: int, top_k: int, experts: int) -> np.ndarray:
    """Returns (tokens, top_k) experts in turn: token ``t`` takes ``t``, ``t + stride``, ...; few tokens are spread."""
    stride = -(-experts // top_k)
    first = np.arange(tokens) if tokens >= stride else np.arange(tokens) * stride // tokens
    return (first[:, None] + np.arange(top_k) * stride) % experts


def power_law_counts(
    tokens: int, top_k: int, experts: int, ranks: int, exponent: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns how many tokens each expert gets, (experts,), the busiest rank's experts being those of rank 0.

    The weights are the collector's own: it seeds PyTorch with 0, whose uniform numbers are the low 24 bits of a
    Mersenne twister. What rounding leaves goes to the largest, or is taken from the smallest; ``rng`` chooses between
    equals, whose order there is not defined.

    Args:
        tokens: Tokens that are dealt.
        top_k: Experts of a token.
        experts: Experts.
        ranks: Ranks, each with as many experts.
        exponent: Of the law; not 1.
        rng: Chooses between equals.
    """
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2.0)
    twister = np.random.MT19937()
    twister._legacy_seeding(0)
    uniform = (twister.random_raw(experts) & 0xFFFFFF) / 2**24
    power = 1 - exponent
    weights = ((high**power - low**power) * uniform + low**power) ** (1 / power)
    counts = np.minimum(np.round(weights / weights.sum() * tokens * top_k).astype(np.int64), tokens)
    order = np.lexsort((rng.random(experts), -counts))
    missing = tokens * top_k - int(counts.sum())
    counts = _evened(counts, order, missing, tokens)
    by_rank = counts.reshape(ranks, -1)
    busiest = int(by_rank.sum(axis=1).argmax())
    by_rank[[0, busiest]] = by_rank[[busiest, 0]]
    return by_rank.ravel()


def _evened(counts: np.ndarray, order: np.ndarray, missing: int, most: int) -> np.ndarray:
    """Returns counts with ``missing`` more in all, one after the other from the largest, or fewer from the smallest."""
    counts = counts.copy()
    place = 0
    while missing > 0:
        expert = order[place % len(order)]
        place += 1
        if counts[expert] < most:
            counts[expert] += 1
            missing -= 1
    while missing < 0:
        expert = order[-1 - place % len(order)]
        place += 1
        if counts[expert] == 0:
            expert = counts.argmax()
        counts[expert] -= 1
        missing += 1
    return counts


def dealt_ids(counts: np.ndarray, tokens: int, top_k: int) -> np.ndarray:
    """Returns (tokens, top_k) experts, each as often as ``counts`` says: the busiest dealt first, slot after slot."""
    order = np.argsort(-counts, kind="stable")
    return np.repeat(order, counts[order]).reshape(top_k, tokens).T
