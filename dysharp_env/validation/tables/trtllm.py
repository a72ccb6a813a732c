"""TensorRT-LLM's all-to-all over NVLink, one-sided and two-sided, as programs of the engine.

One-sided: dispatch is two kernels, the second of which gives every token a thread block that stores it to each of its
GPUs, and ends in a barrier; combine is two kernels and a barrier before the thread blocks that load partial sums and
add them. Two-sided: prepare exchanges counts and lays tokens out; dispatch and combine move vectors through queues,
without a barrier, and combine is followed by a kernel that sums. Low-precision combine moves results in NVFP4.

The collector's routing is balanced (``perfect_router``): slot ``8 t + j`` of rank ``r`` goes to rank ``(8 t + j + r)
mod ranks``. Thread blocks of different GPUs do not run in step, so here every GPU takes its tokens in its own order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from dysharp_env.system import SystemSpec
from dysharp_env.validation.tables.runs import machine, phases, transfers_us, vectors

# Bytes of a vector of so many values, scales included: NVFP4 has one byte for 16 values, FP8 four for 128.
VECTOR_BYTES = {
    "bfloat16": lambda values: 2 * values,
    "fp8": lambda values: values + -(-values // 128) * 4,
    "nvfp4": lambda values: -(-values // 2) + -(-values // 16),
}
BF16_BYTES = 2
# Primitives both ways, and families of kernels.
ONE_SIDED = ("unicast", "pull"), ("warp_direct", "warp_load")
TWO_SIDED = ("unicast", "unicast"), ("warp_two_sided", "warp_two_sided")
# (kernels, phase): what is paid before the phase. What ends dispatch stands under gemm1.
PAYS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("NVLinkOneSided", "alltoall_dispatch"): {"dispatch": ("launch", "gap"), "gemm1": ("barrier",)},
    ("NVLinkOneSided", "alltoall_combine"): {"combine": ("launch", "gap", "barrier")},
    ("NVLinkTwoSided", "alltoall_prepare"): {"dispatch": ("launch", "count_exchange")},
    ("NVLinkTwoSided", "alltoall_dispatch"): {"dispatch": ("launch",)},
    ("NVLinkTwoSided", "alltoall_combine"): {"combine": ("launch", "gap")},
    ("NVLinkTwoSided", "alltoall_combine_low_precision"): {"combine": ("launch", "gap", "gap")},
}


@dataclass(frozen=True)
class AllToAll:
    """One phase of one all-to-all; ``figures`` are its time in microseconds.

    Attributes:
        preset, ranks: The machine.
        kernels, phase: As the table has them.
        dtype: Format of dispatched vectors; of no account in other phases.
        hidden, top_k, experts: The layer.
        tokens: Of each GPU.
        seed: Of the order of tokens.
    """

    line_through: ClassVar[tuple[int, int] | None] = (1024, 2048)

    preset: str
    ranks: int
    kernels: str
    phase: str
    dtype: str
    hidden: int
    top_k: int
    experts: int
    tokens: int
    seed: int = 0

    def at(self, tokens: int) -> Self:
        """Returns the same phase with other tokens on each GPU."""
        return replace(self, tokens=tokens)

    def figures(self) -> tuple[float, ...]:
        """Returns the time of the phase, microseconds."""
        system = machine(self.preset, self.ranks)
        pays = {"dispatch": ("launch",), **PAYS[self.kernels, self.phase]}
        if self.phase == "alltoall_prepare":
            layout_us = self.tokens * system.overheads.layout_ns_per_token / 1000
            return (sum(system.overhead_us(cost) for cost in pays["dispatch"]) + layout_us,)
        kernels = ONE_SIDED if self.kernels == "NVLinkOneSided" else TWO_SIDED
        (dispatch, combine), families = kernels
        sms = system.gpu.num_sms
        named = {"dispatch": families[0], "combine": families[1]}
        schedule = phases("trtllm", dispatch, combine, (sms, sms), pays, families=named)
        layer = vectors(self._vector_bytes() // 2, self.experts, self.top_k)
        times_us = transfers_us(system, layer, balanced_ids(self), schedule)
        if self.phase == "alltoall_dispatch":
            return (times_us[0],)
        return (times_us[1] + (self._sum_us(system) if kernels == TWO_SIDED else 0.0),)

    def _sum_us(self, system: SystemSpec) -> float:
        """Returns what the kernels around a two-sided combine take.

        A place for every expert's result of every token is cleared, read and summed, at HBM's rate. In low precision
        every value is cast on its way into a FIFO, which costs an SM what it does in low-latency kernels.
        """
        gpu, values = system.gpu, self.tokens * self.top_k * self.hidden
        moved = BF16_BYTES * (2 * values + self.tokens * self.hidden)
        cast_ps = values * gpu.families["warp_low_latency"].prepare_byte_ps / gpu.num_sms
        is_cast = self.phase == "alltoall_combine_low_precision"
        return moved / (gpu.hbm_gbps * gpu.hbm_efficiency) / 1e3 + is_cast * cast_ps / 1e6

    def _vector_bytes(self) -> int:
        of_phase = {"alltoall_combine": "bfloat16", "alltoall_combine_low_precision": "nvfp4"}
        return VECTOR_BYTES[of_phase.get(self.phase, self.dtype)](self.hidden)


def balanced_ids(kernel: AllToAll) -> np.ndarray:
    """Returns (ranks * tokens, top_k) experts that are chosen in turn, a random order of tokens on every rank."""
    ranks, per_rank, tokens = kernel.ranks, kernel.experts // kernel.ranks, kernel.tokens
    rng = np.random.default_rng(kernel.seed)
    token = np.concatenate([rng.permutation(tokens) for _ in range(ranks)])
    slot = kernel.top_k * token[:, None] + np.arange(kernel.top_k) + np.repeat(np.arange(ranks), tokens)[:, None]
    return slot % ranks * per_rank + slot // ranks % per_rank
