"""Kernels between phases: what each takes of a GPU's time, from the layer's sizes and what passes through the GPU.

A fused kernel does these things in passing; phases run a kernel for each, which reads and writes HBM while nothing else
runs. A schedule says which it runs, and a stage waits for those of the busiest GPU where it waits for all GPUs, for its
own where it waits for one. Times are closed forms: launch, then the longer of arithmetic at all SMs and traffic at
HBM's rate, with nothing in L2. Left out: what such kernels do to L2, and how few blocks short ones have. No constant is
set for traffic: DeepGEMM's own account of Mega MoE's last sum is the same bytes at 6.5 TB/s on B200
(tests/test_mega_moe.py at 057ca59).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dysharp_env.system import SystemSpec
from dysharp_env.workload.layer import LayerSpec

STAGES = ("dispatch", "gemm1", "gemm2", "combine", "end")
# Where a schedule may name them; the shared experts and gradients of weights follow from other keys.
KERNEL_STAGES = {
    "quantise": ("dispatch",),
    "layout": ("dispatch",),
    "permute": ("dispatch", "gemm1", "combine", "end"),
    "activation": ("gemm2",),
    "final_sum": ("end",),
}
SHARED, WEIGHT_GRADIENTS = "shared", "weight_gradients"
# What a backward pass of a layer with copies ends with, whatever the schedule.
COPY_GRADIENTS = "copy_gradients"
# What communication kernels take besides their vectors (families.py); every schedule pays it.
START = "start"
BF16_BYTES, FP32_BYTES = 2, 4


class Load(NamedTuple):
    """What a kernel of one GPU has to do with.

    Stages behind gates have only what a part sends to the GPU, ``received`` and ``rows``; dispatch and the end have
    all, of all parts together.
    """

    tokens: int = 0  # that live here
    sent: int = 0  # copies of them, or sums of them that come back, this GPU's own included
    received: int = 0  # copies that come here, or sums that leave
    rows: int = 0  # (token, expert)s with the expert here
    experts: int = 0  # here, that any token chose
    copies: int = 0  # here, whose gradients leave
    gradients: int = 0  # of copies elsewhere, that come here to be added, each by itself or summed by the switch


class PhaseKernel(NamedTuple):
    """One kernel: picoseconds and bytes of HBM, whatever there is to do and for each thing in a ``Load``.

    ``link_ps`` is what a copy's gradients take of a GPU's links, each way.
    """

    launch_ps: int = 0
    token_ps: int = 0
    row_ps: int = 0
    link_ps: int = 0
    fixed_bytes: int = 0
    token_bytes: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    row_bytes: int = 0
    expert_bytes: int = 0
    copy_bytes: int = 0
    gradient_bytes: int = 0

    def ps(self, load: Load, hbm_ps: Callable[[int], int], sms: tuple[int, int] = (1, 1)) -> int:
        """Returns its time on a GPU, with ``sms`` (those it has, those there are); all of them unless told."""
        has, there_are = sms
        work_ps = (self.token_ps * load.tokens + self.row_ps * load.rows) * there_are // has
        num_bytes = self.fixed_bytes + sum(each * number for each, number in zip(self[5:], load, strict=True))
        return self.launch_ps + max(work_ps, self.link_ps * max(load.copies, load.gradients), hbm_ps(num_bytes))


def phase_kernels(
    system: SystemSpec, layer: LayerSpec, token_bytes: tuple[int, int, int, int], compute_scale: float
) -> tuple[tuple[int, str, PhaseKernel], ...]:
    """Returns the kernels as (stage, name, what it takes); one that the layer or machine does without takes nothing.

    Args:
        system: The machine.
        layer: The MoE layer.
        token_bytes: What a row is charged for in HBM without these kernels: into GEMM-1, out of it, into GEMM-2, out.
        compute_scale: Multiplies arithmetic.
    """
    gap_ps = round(system.overheads.launch_gap_us * 1e6)
    dispatch, home = layer.dispatch_bytes, layer.combine_bytes
    columns = layer.gemms[0][0]
    found: dict[tuple[str, str], dict[str, int]] = {
        # Two kernels' worth of traffic for SwiGLU: GEMM-1 writes BF16, where fused it writes what it is charged for.
        ("gemm2", "activation"): {
            "row_bytes": max(0, columns * BF16_BYTES - token_bytes[1]) + columns * BF16_BYTES + token_bytes[2]
        },
        ("dispatch", "layout"): {"token_ps": round(system.overheads.layout_ns_per_token * 1000)},
        ("dispatch", "permute"): {"token_bytes": dispatch, "sent_bytes": dispatch},
        ("gemm1", "permute"): {"received_bytes": dispatch, "row_bytes": dispatch},
        ("combine", "permute"): {"row_bytes": home, "received_bytes": home},
        # Back into the order of tokens, each the sum of its results.
        ("end", "permute"): {"sent_bytes": home, "token_bytes": home},
    }
    if layer.dispatch_dtype != "bf16":
        found["dispatch", "quantise"] = {"token_bytes": layer.hidden * BF16_BYTES * layer.dispatched_vectors + dispatch}
    kernels = {key: PhaseKernel(gap_ps, **takes) for key, takes in found.items()}
    # The last part of a kernel that is there already, so without a launch.
    kernels["end", "final_sum"] = PhaseKernel(token_bytes=home, sent_bytes=home)
    if not system.overheads.phase_kernels:
        kernels = {}
    shared, gradients = _shared(system, layer, gap_ps, compute_scale), _gradients(system, layer, gap_ps, compute_scale)
    kernels |= {("dispatch", SHARED): shared, ("end", SHARED): shared, ("end", WEIGHT_GRADIENTS): gradients}
    kernels["end", COPY_GRADIENTS] = _copy_gradients(layer, gap_ps)
    keys = [(stage, name) for name, stages in KERNEL_STAGES.items() for stage in stages]
    keys += [("dispatch", SHARED), ("end", SHARED), ("end", WEIGHT_GRADIENTS), ("end", COPY_GRADIENTS)]
    return tuple((STAGES.index(key[0]), key[1], kernels.get(key, PhaseKernel())) for key in keys)


def _shared(system: SystemSpec, layer: LayerSpec, gap_ps: int, compute_scale: float) -> PhaseKernel:
    """Returns the two GEMMs of the shared experts, of the routed ones' width, over a GPU's own tokens."""
    count = layer.shared_experts * layer.work_factor
    if count == 0:
        return PhaseKernel()
    weights = sum(layer.weight_format.matrix_bytes(columns * depth) for columns, depth in layer.forward_gemms)
    vectors = sum(layer.compute_format.vector_bytes(columns + depth) for columns, depth in layer.forward_gemms)
    flop_ps = _flop_ps(system, layer, compute_scale)
    return PhaseKernel(
        launch_ps=2 * gap_ps,
        token_ps=round(count * sum(layer.gemm_flops) * flop_ps),
        fixed_bytes=count * weights,
        token_bytes=count * vectors,
    )


def _gradients(system: SystemSpec, layer: LayerSpec, gap_ps: int, compute_scale: float) -> PhaseKernel:
    """Returns the two grouped GEMMs of deferred weight gradients: each reads its inputs and their outputs' gradients.

    As many FLOPs as the forward GEMMs; every expert that has tokens gets all its gradients written.
    """
    if not layer.is_deferred:
        return PhaseKernel()
    weights = sum(columns * depth for columns, depth in layer.forward_gemms)
    vectors = sum(columns + depth for columns, depth in layer.forward_gemms)
    flop_ps = _flop_ps(system, layer, compute_scale)
    return PhaseKernel(
        launch_ps=2 * gap_ps,
        row_ps=round(sum(layer.gemm_flops) * flop_ps),
        row_bytes=layer.compute_format.vector_bytes(vectors),
        expert_bytes=weights * FP32_BYTES,
    )


def _copy_gradients(layer: LayerSpec, gap_ps: int) -> PhaseKernel:
    """Returns the adding up of copies' weight gradients in FP32, where the experts are that they are copies of.

    A copy's are read where it is; there, others are read, added to and written. FP32 is what weight gradients are
    summed in over micro-batches as well (Megatron's ``main_grad``), and what ``multimem.red`` adds in the switch among
    other formats (PTX ISA). What the links take depends on how copies move; see weights.py. Acknowledgements, and that
    a relay sends on what it has summed, are left out: all of it streams.
    """
    if layer.direction == "forward":
        return PhaseKernel()
    gradients = sum(columns * depth for columns, depth in layer.forward_gemms) * FP32_BYTES
    return PhaseKernel(gap_ps, copy_bytes=gradients, gradient_bytes=2 * gradients)


def _flop_ps(system: SystemSpec, layer: LayerSpec, compute_scale: float) -> float:
    """Returns the time of one FLOP at all SMs of the slowest GPU, picoseconds."""
    return compute_scale * system.slow_gpu / system.gpu.gemm_tflops(layer.compute_dtype)
