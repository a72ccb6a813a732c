"""DeepEP's kernels in one node, normal and low latency, as programs of the engine.

Normal mode sends one copy per token and GPU, its own too, and returns one partial sum per token and GPU. Half of the
SMs send, half receive; the engine knows the senders. Low-latency mode sends a copy per token and expert and returns
each expert's result. It starts as many SMs as there are groups of experts: ceil(E / ceil(E / SMs of the GPU)), so that
8 experts have 8 SMs (csrc/kernels/internode_ll.cu). Routing is uniform: the collector draws scores at random.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np

from dysharp_env.validation.tables.runs import machine, phases, transfers_us, vectors
from dysharp_env.workload import LayerSpec
from dysharp_env.workload.routing import ROUTING_MODELS, draw_routing

# Index, weight and pointers of the queues beside a partial sum, in packets of their own: with headers and
# acknowledgements as much as 48 more BF16 values (csrc/kernels/legacy/intranode.cu).
QUEUE_VALUES = 48
# The 16 bytes of index before every low-latency message, as values of BF16.
MESSAGE_VALUES = 8


def uniform_ids(layer: LayerSpec, gpus: int, tokens: int, seed: int) -> np.ndarray:
    """Returns (gpus * tokens, top_k) experts, every set of top-k as likely as any other."""
    drawn = draw_routing(ROUTING_MODELS["uniform"], layer, gpus, tokens, np.random.default_rng(seed))
    return drawn.reshape(-1, layer.top_k)


@dataclass(frozen=True)
class DeepEPNormal:
    """A dispatch and a combine in normal mode; ``figures`` are their times in microseconds.

    Each is two kernels, of which the first ends in a barrier (``cached_notify_dispatch`` and its like).

    Attributes:
        preset, gpus: The machine.
        hidden, top_k, experts: The layer.
        dispatch_sms, combine_sms: SMs of the two kernels, senders and receivers together.
        tokens: Of each GPU.
        seed: Of the routing.
        dtype: Format of dispatched vectors.
    """

    line_through: ClassVar[tuple[int, int] | None] = (1024, 4096)

    preset: str
    gpus: int
    hidden: int
    top_k: int
    experts: int
    dispatch_sms: int
    combine_sms: int
    tokens: int
    seed: int = 0
    dtype: Literal["bf16", "fp8"] = "fp8"

    def at(self, tokens: int) -> Self:
        """Returns the same kernels with other tokens on each GPU."""
        return replace(self, tokens=tokens)

    def figures(self) -> tuple[float, ...]:
        """Returns the times of dispatch and combine, microseconds."""
        layer = vectors(self.hidden + QUEUE_VALUES, self.experts, self.top_k, self.dtype)
        senders = max(1, self.dispatch_sms // 2), max(1, self.combine_sms // 2)
        pays = ("launch", "barrier", "launch")
        families = {"dispatch": "warp_queue", "combine": "warp_queue"}
        schedule = phases(
            "deepep", "unicast", "unicast", senders, {"dispatch": pays, "combine": pays}, families=families
        )
        topk_ids = uniform_ids(layer, self.gpus, self.tokens, self.seed)
        return transfers_us(machine(self.preset, self.gpus), layer, topk_ids, schedule)


@dataclass(frozen=True)
class DeepEPLowLatency:
    """A dispatch and a combine in low-latency mode; attributes and ``figures`` as of ``DeepEPNormal``."""

    line_through: ClassVar[tuple[int, int] | None] = None

    preset: str
    gpus: int
    hidden: int
    top_k: int
    experts: int
    tokens: int
    seed: int = 0

    def at(self, tokens: int) -> Self:
        """Returns the same kernels with other tokens on each GPU."""
        return replace(self, tokens=tokens)

    def figures(self) -> tuple[float, ...]:
        """Returns the times of dispatch and combine, microseconds."""
        system = machine(self.preset, self.gpus)
        layer = vectors(self.hidden + MESSAGE_VALUES, self.experts, self.top_k, "fp8")
        sms = low_latency_sms(self.experts, system.gpu.num_sms)
        pays: dict[str, tuple[str, ...]] = {"dispatch": ("launch",), "combine": ("launch",)}
        families = {"dispatch": "warp_low_latency", "combine": "warp_low_latency"}
        schedule = phases("deepep-ll", "unicast", "unicast", (sms, sms), pays, copies="expert", families=families)
        return transfers_us(system, layer, uniform_ids(layer, self.gpus, self.tokens, self.seed), schedule)


def low_latency_sms(experts: int, num_sms: int) -> int:
    """Returns the SMs that a low-latency kernel starts: one for every group of experts, equal groups but the last."""
    group = -(-experts // num_sms)
    return -(-experts // group)
