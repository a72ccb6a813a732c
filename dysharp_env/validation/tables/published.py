"""Single rows that others published, beside the engine: table ``published``.

Each is a figure with its parameters, in the unit in which it was published. GB/s of all-to-alls are logical: the bytes
of the vectors that a rank receives, its own included, over the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from dysharp_env.validation.kernels import nvls_all_reduce_gbps
from dysharp_env.validation.layers import expected_remote_gpus
from dysharp_env.validation.tables.deepep import DeepEPNormal, uniform_ids
from dysharp_env.validation.tables.megamoe import MegaMoE
from dysharp_env.validation.tables.readings import Experiment, Reading
from dysharp_env.validation.tables.runs import layer_result, machine, phases, transfers_us, vectors
from dysharp_env.validation.tables.trtllm import AllToAll
from dysharp_env.workload import LayerSpec

TOKENS = 4096
BF16_BYTES, FP8_BYTES = 2 * 7168, 7168 + 7168 // 128 * 4
# NCCL runs NVLS with as many channels on Blackwell (src/graph/tuning.cc and its logs); half of their SMs are at either
# direction.
NVLS_CHANNELS = 32


@dataclass(frozen=True)
class HybridEP:
    """DeepEP's hybrid kernels, which move vectors by bulk copies; ``figures`` are GB/s of dispatch and combine.

    Attributes:
        gpus, experts: The machine, of GB200, and the experts of which every token takes 8.
        sms: SMs of either kernel.
        tokens: Of each GPU.
        seed: Of the routing.
    """

    line_through: ClassVar[tuple[int, int] | None] = None

    gpus: int
    experts: int
    sms: int
    tokens: int
    seed: int = 0

    def at(self, tokens: int) -> Self:
        """Returns the same kernels with other tokens on each GPU."""
        return replace(self, tokens=tokens)

    def figures(self) -> tuple[float, ...]:
        """Returns the logical GB/s of dispatch and combine; only the kernels are timed, so nothing is paid before."""
        layer = vectors(7168, self.experts, 8)
        schedule = phases("hybrid-ep", "unicast", "unicast", (self.sms, self.sms), {})
        system = machine("gb200-nvl72", self.gpus).with_changes({"overheads.launch_us": 0})
        topk_ids = uniform_ids(layer, self.gpus, self.tokens, self.seed)
        copies = copies_received(self.experts, self.gpus)
        return tuple(
            self.tokens * copies * BF16_BYTES / us / 1e3 for us in transfers_us(system, layer, topk_ids, schedule)
        )


@dataclass(frozen=True)
class DeepEPRate:
    """DeepEP's normal kernels; ``figures`` are GB/s of dispatch and combine.

    Attributes:
        kernel: What is run.
    """

    line_through: ClassVar[tuple[int, int] | None] = None

    kernel: DeepEPNormal

    @property
    def tokens(self) -> int:
        """Tokens of each GPU."""
        return self.kernel.tokens

    def at(self, tokens: int) -> Self:
        """Returns the same kernels with other tokens on each GPU."""
        return replace(self, kernel=self.kernel.at(tokens))

    def figures(self) -> tuple[float, ...]:
        """Returns the logical GB/s of dispatch and combine."""
        copies = copies_received(self.kernel.experts, self.kernel.gpus)
        moved = (FP8_BYTES if self.kernel.dtype == "fp8" else BF16_BYTES), BF16_BYTES
        return tuple(
            self.tokens * copies * num_bytes / us / 1e3
            for num_bytes, us in zip(moved, self.kernel.figures(), strict=True)
        )


@dataclass(frozen=True)
class AllReduce:
    """NCCL's all-reduce through the switch over a whole rack; ``figures`` are GB/s of bus bandwidth."""

    line_through: ClassVar[tuple[int, int] | None] = None

    preset: str
    gpus: int
    tokens: int = 0

    def at(self, tokens: int) -> Self:
        """Returns the same: it has no tokens."""
        return self

    def figures(self) -> tuple[float, ...]:
        """Returns the bus bandwidth, GB/s."""
        return (nvls_all_reduce_gbps(machine(self.preset, self.gpus), NVLS_CHANNELS),)


@dataclass(frozen=True)
class Barrier:
    """A barrier among the GPUs of a board, which an all-reduce of 8 bytes costs at least; ``figures`` are us."""

    line_through: ClassVar[tuple[int, int] | None] = None

    preset: str
    gpus: int
    tokens: int = 0

    def at(self, tokens: int) -> Self:
        """Returns the same: it has no tokens."""
        return self

    def figures(self) -> tuple[float, ...]:
        """Returns the time of a barrier, microseconds."""
        return (machine(self.preset, self.gpus).overheads.barrier_us,)


@dataclass(frozen=True)
class DenseGemm:
    """A dense FP8 GEMM of one GB200, square; ``figures`` are TFLOP/s.

    Attributes:
        tokens: Rows, columns and depth.
    """

    line_through: ClassVar[tuple[int, int] | None] = None

    tokens: int

    def at(self, tokens: int) -> Self:
        """Returns another size."""
        return replace(self, tokens=tokens)

    def figures(self) -> tuple[float, ...]:
        """Returns the rate from the GEMM's first thread block to its last: GEMM-1 of the one expert of a GPU."""
        gpus = 2  # the engine knows no machine of one GPU; the second does the same
        layer = LayerSpec(
            name="dense",
            hidden=self.tokens,
            moe_ff=self.tokens // 2,
            experts=gpus,
            top_k=1,
            ffn_matrices=3,
            dispatch_dtype="fp8",
            compute_dtype="fp8",
            source="gate and up side by side are as many columns as there are rows",
        )
        system = machine("gb200-nvl72", gpus).with_changes({"overheads.barrier_us": 10_000})
        pays = {"gemm1": ("barrier",), "gemm2": ("barrier",)}
        topk_ids = np.repeat(np.arange(gpus), self.tokens)[:, None]
        start_us, end_us = layer_result(
            system, layer, topk_ids, phases("dense", "unicast", "unicast", (1, 1), {"dispatch": ("launch",), **pays})
        ).phases_us["gemm1"]
        return (2 * self.tokens**3 / (end_us - start_us) / 1e6,)


def copies_received(experts: int, gpus: int) -> float:
    """Returns the mean number of GPUs, its own included, that a token with uniform top-8 goes to."""
    return expected_remote_gpus(experts, 8, gpus) * gpus / (gpus - 1)


def published_readings(seed: int = 0) -> Iterator[Reading]:
    """Yields the single rows, numbered as lines; ``seed`` draws random routing."""
    for line, (series, shape, measured, experiment, place) in enumerate(_rows(seed), start=1):
        yield Reading(line, series, shape, measured, experiment, place)


def _rows(seed: int) -> Iterator[tuple[str, str, float, Experiment, int]]:
    """Yields (what, parameters and unit, published, experiment, which of its figures)."""
    # DeepEP, docs/README_Hybrid-EP.md: GB200, 4096 tokens of 7168 values, top-8, BF16, only the kernels timed.
    for gpus, experts, published in ((8, 64, (764, 737)), (32, 256, (642, 605))):
        kernel = HybridEP(gpus, experts, 32, TOKENS, seed)
        for place, stage in enumerate(("dispatch", "combine")):
            yield f"HybridEP {stage}", f"GB200 EP{gpus}, GB/s", published[place], kernel, place
    # The same file: DeepEP V1 on 8 B200.
    for sms, (fp8, bf16, combine) in ((24, (349, 494, 420)), (48, (554, 646, 586))):
        size = (7168, 8, 64, sms, sms, TOKENS, seed)
        in_fp8, in_bf16 = (DeepEPRate(DeepEPNormal("dgx-b200", 8, *size, dtype)) for dtype in ("fp8", "bf16"))
        yield "DeepEP V1 dispatch", f"B200 EP8, FP8, {sms} SMs, GB/s", fp8, in_fp8, 0
        yield "DeepEP V1 dispatch", f"B200 EP8, BF16, {sms} SMs, GB/s", bf16, in_bf16, 0
        yield "DeepEP V1 combine", f"B200 EP8, {sms} SMs, GB/s", combine, in_bf16, 1
    # FlashInfer, pull request 3697: its one-sided kernels are TensorRT-LLM's.
    for tokens, published_us in ((128, 26.6), (512, 45.7), (2048, 125.1)):
        phase = ("NVLinkOneSided", "alltoall_dispatch", "nvfp4")
        one_sided = AllToAll("gb200-nvl72", 32, *phase, 7168, 8, 256, tokens, seed)
        yield "FlashInfer one-sided dispatch", "GB200 EP32, NVFP4, us", published_us, one_sided, 0
    # DeepGEMM, pull request 316: DeepSeek-V4-Flash, FP8 x FP4.
    for tokens, published_us in ((512, 146.5), (8192, 1283)):
        layer = MegaMoE("dgx-b200", 8, 4096, 2048, 6, 256, "random", tokens, seed=seed, is_served=False)
        yield "Mega MoE", "B200 EP8, V4-Flash, us", published_us, layer, 0
    # coreweave/nccl-tests, README: NCCL 2.26, 8 GiB.
    yield "NCCL all-reduce", "GB200 x72, GB/s of bus bandwidth", 847, AllReduce("gb200-nvl72", 72), 0
    # Azure/AI-benchmarking-guide, ND_GB200_v6.
    for size_, published_tflops in ((8192, 2877), (16384, 2907)):
        yield "cuBLASLt FP8", f"GB200, {size_} cubed, TFLOP/s", published_tflops, DenseGemm(size_), 0
    # NVIDIA/nccl, issue 1940: symmetric kernels.
    for preset, published_us in (("dgx-h200", 2.3), ("dgx-b200", 3.0)):
        yield "8 B all-reduce, a barrier at least", f"{preset}, us", published_us, Barrier(preset, 8), 0
