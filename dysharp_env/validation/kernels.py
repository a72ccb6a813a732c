"""Published kernels as programs of the engine: DeepEP, TensorRT-LLM's one-sided kernels, NCCL, DeepGEMM, cuBLASLt.

A communication program moves what the kernel moves, with the primitives and the communication SMs it uses, and pays for
its kernel launches and barriers. GEMMs are made so short that they cannot be seen. Left out: receiving SMs and their
copy from a queue to its place, the flow control of such queues, and every cost of the host.

DeepGEMM's grouped FP8 GEMMs are a layer whose tokens are all at home, its two GEMMs apart. Published: TFLOP/s of H800
SXM, README of deepseek-ai/DeepGEMM at commit 327ec92. A layer of 7168 x 2048 experts with gate and up has both
published shapes: GEMM-1 is N = 4096, K = 7168 and GEMM-2 is N = 7168, K = 2048. A group is an expert with so many rows;
*contiguous* and *masked* differ in how the library finds a group's rows, which the engine does not model. Compared is
2 M N K over the time from a GEMM's first thread block to its last.

cuBLASLt's dense FP8 GEMM is such a layer too, GEMM-1 of the one expert of a GPU, with gate and up side by side.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from dysharp_env.schedules import ScheduleSpec, simulate
from dysharp_env.simulator.result import LayerResult
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.validation.layers import laid_out, one_expert_each
from dysharp_env.workload import LayerSpec, load_model
from dysharp_env.workload.routing import ROUTING_MODELS, draw_routing

# GEMMs a hundred thousand times too fast: communication is all that is looked at.
COMMUNICATION_ALONE = 1e-5
PHASES = {"gemm1": "phase", "gemm2": "phase", "combine": "phase"}
# What DeepEP sends with a vector in stores of their own, hence in packets of their own: FP8 scales (56 x 4 B), index
# (4 B), expert ids (8 x 8 B) and weights (8 x 4 B) of a dispatch, index and weights of a combine, and pointers of its
# queues, two stores of 4 B for every 6 vectors of a dispatch and 4 of a combine (csrc/kernels/legacy/intranode.cu).
# With headers and acknowledgements that is 592 and 1128 flits; one vector of 7328 FP8 or 7216 BF16 values is 593 and
# 1128.
DEEPEP_HIDDEN = {"dispatch": 7328, "combine": 7216}
# (kind, groups, rows of each): TFLOP/s at N = 4096, K = 7168 and at N = 7168, K = 2048.
GROUPED_TFLOPS = {
    ("contiguous", 4, 8192): (1346, 1214),
    ("contiguous", 8, 4096): (1346, 1214),
    ("masked", 1, 1024): (1233, 925),
    ("masked", 2, 512): (1040, 916),
    ("masked", 4, 256): (932, 815),
}
# Edge of a square FP8 GEMM of cuBLASLt on GB200: TFLOP/s (Azure/AI-benchmarking-guide, ND_GB200_v6).
DENSE_TFLOPS = {8192: 2877, 16384: 2907}
SHAPES = ("N 4096 K 7168", "N 7168 K 2048")


def deepep_us(
    system: SystemSpec, tokens: int, sms: int, seed: int, family: str = "warp_queue", **changes: float
) -> tuple[float, float]:
    """Returns the times of a dispatch (FP8) and a combine (BF16) of DeepEP, normal mode, of 7168 values top-8 of 256.

    One copy per token and destination GPU goes out, one partial sum per token and expert GPU comes back, both by plain
    stores. Each is two kernels, of which the first ends in a barrier (``cached_notify_dispatch`` and its like).

    Args:
        system: Eight GPUs.
        tokens: Tokens of each GPU, routed uniformly.
        sms: SMs that send.
        seed: Of the routing.
        family: Of the kernels: V1's copy through queues, V2's in bulk.
        **changes: Fields of the GPU to replace.
    """
    layer = load_model("large").with_changes({"dispatch_dtype": "fp8"})
    rng = np.random.default_rng(seed)
    topk_ids = draw_routing(ROUTING_MODELS["uniform"], layer, system.num_gpus, tokens, rng).reshape(-1, layer.top_k)
    pays = ["launch", "barrier", "launch"]
    families = {"dispatch": family, "combine": family}
    pays_for = {"dispatch": pays, "combine": pays}
    program = _program("unicast", "unicast", sms, families=families, pays=pays_for, readiness=PHASES)
    dispatch, combine = (
        _run(system, layer.with_changes({"hidden": hidden}), topk_ids, program, changes)
        for hidden in DEEPEP_HIDDEN.values()
    )
    return dispatch.phases_us["dispatch"][1], _combine_us(combine)


def one_sided_us(system: SystemSpec, tokens: int, seed: int, **changes: float) -> tuple[float, float]:
    """Returns the times of TensorRT-LLM's NVLinkOneSided dispatch and combine, BF16, 7168 values, top-8 of 256.

    Dispatch is two kernels: the second gives every token a thread block, which stores it to each of its 8 ranks, and
    ends in a barrier of epoch flags. Combine is two kernels as well: after a barrier every token's block loads its 8
    partial sums and adds them. The blog routes by ``perfect_router``: slot ``8 t + j`` of rank ``r`` goes to rank
    ``(8 t + j + r) mod ranks`` (tensorrt_llm/_torch/modules/fused_moe/routing.py). Thread blocks of different GPUs do
    not run in step, so here every GPU takes its tokens in a random order of its own.

    Args:
        system: As many GPUs as there are ranks.
        tokens: Tokens of each rank.
        seed: Of the order of tokens.
        **changes: Fields of the GPU to replace.
    """
    layer = load_model("large")
    ranks, per_rank = system.num_gpus, layer.experts // system.num_gpus
    rng = np.random.default_rng(seed)
    token = np.concatenate([rng.permutation(tokens) for _ in range(ranks)])
    slot = layer.top_k * token[:, None] + np.arange(layer.top_k) + np.repeat(np.arange(ranks), tokens)[:, None]
    topk_ids = slot % ranks * per_rank + slot // ranks % per_rank
    pays = {"dispatch": ["launch", "gap"], "gemm1": ["barrier"], "combine": ["launch", "gap", "barrier"]}
    program = _program("unicast", "pull", system.gpu.num_sms, pays=pays, readiness=PHASES)
    result = _run(system, layer, topk_ids, program, changes)
    # GEMM-1 starts when the barrier that ends dispatch is over.
    return result.phases_us["gemm1"][0], _combine_us(result)


def ring_all_reduce_gbps(system: SystemSpec, channels: int = 24) -> float:
    """Returns the bus bandwidth of NCCL's ring all-reduce: each GPU's stream of plain stores to its neighbour.

    Every step of the ring is such a stream, and NCCL's bus bandwidth is what one link carries: GB/s of payload.
    """
    num_gpus, tokens = system.num_gpus, 8192
    layer = one_expert_each(num_gpus)
    topk_ids = (np.repeat(np.arange(num_gpus), tokens)[:, None] + 1) % num_gpus
    result = _run(system, layer, topk_ids, _program("unicast", "unicast", channels, readiness=PHASES))
    start_us, end_us = result.phases_us["dispatch"]
    return tokens * layer.dispatch_bytes / (end_us - start_us) / 1e3


def nvls_all_reduce_gbps(system: SystemSpec, channels: int = 16) -> float:
    """Returns the bus bandwidth of NCCL's NVLS all-reduce: static multimem over all GPUs, own replica included.

    Every GPU sums its share of the data through the switch (``multimem.ld_reduce``) and stores the sums to all
    (``multimem.st``), both in flight together; half of the channels' SMs are at either (NCCL has 16 on Hopper). With N
    GPUs the bus bandwidth is 2 (N - 1) / N of the data over the time.
    """
    num_gpus, tokens = system.num_gpus, 1024
    layer = one_expert_each(num_gpus)
    topk_ids = np.repeat(np.arange(num_gpus), tokens)[:, None]
    result = _run(system, layer, topk_ids, _program("broadcast", "reduce_scatter", channels // 2, loopback=True))
    busy_us = result.makespan_us - result.phases_us["dispatch"][0]
    return 2 * (num_gpus - 1) / num_gpus * num_gpus * tokens * layer.combine_bytes / busy_us / 1e3


def grouped_gemm_tflops(groups: int, rows: int, **changes: float) -> tuple[float, float]:
    """Returns the simulated TFLOP/s of DeepGEMM's GEMM-1 and GEMM-2 of ``groups`` experts with ``rows`` rows each.

    Args:
        groups: Experts on a GPU.
        rows: Rows of each.
        **changes: Fields of the GPU to replace.
    """
    num_gpus = 2  # the engine knows no machine of one GPU; the second does the same
    layer = load_model("large").with_changes(
        {"experts": num_gpus * groups, "top_k": 1, "ffn_matrices": 3, "compute_dtype": "fp8", "dispatch_dtype": "fp8"}
    )
    topk_ids = np.repeat(np.arange(layer.experts), rows)[:, None]
    return _gemm_tflops(load_system("dgx-h800", num_gpus), layer, topk_ids, changes)


def dense_gemm_tflops(edge: int, **changes: float) -> float:
    """Returns the simulated TFLOP/s of cuBLASLt's FP8 GEMM of square matrices on GB200.

    Args:
        edge: Of every matrix.
        **changes: Fields of the GPU to replace.
    """
    num_gpus = 2
    layer = load_model("large").with_changes(
        {
            **{"hidden": edge, "moe_ff": edge // 2, "experts": num_gpus, "top_k": 1, "ffn_matrices": 3},
            **{"compute_dtype": "fp8", "dispatch_dtype": "fp8"},
        }
    )
    topk_ids = np.repeat(np.arange(num_gpus), edge)[:, None]
    return _gemm_tflops(load_system("gb200-nvl72", num_gpus), layer, topk_ids, changes)[0]


def _gemm_tflops(
    system: SystemSpec, layer: LayerSpec, topk_ids: np.ndarray, changes: dict[str, float]
) -> tuple[float, float]:
    """Returns the simulated TFLOP/s of both GEMMs of a layer whose tokens are all at home, one GEMM after the other."""
    # A long pause before each GEMM lets HBM finish what arrivals and the GEMM before have queued there.
    system = system.with_changes({"overheads.barrier_us": 10_000})
    pays = {"gemm1": ["barrier"], "gemm2": ["barrier"]}
    # Group after group, as libraries walk them.
    rule = {"gemm": {"weights_in_l2": 1.0}}
    program = _program("unicast", "unicast", 1, pays=pays, readiness=PHASES, rule=rule)
    phases_us = _run(system, layer, topk_ids, program, changes, compute_scale=1.0).phases_us
    slots_per_gpu = topk_ids.size // system.num_gpus
    flops = dict(zip(("gemm1", "gemm2"), (slots_per_gpu * each for each in layer.gemm_flops), strict=True))
    gemm1, gemm2 = (flops[gemm] / ((phases_us[gemm][1] - phases_us[gemm][0]) * 1e-6) / 1e12 for gemm in flops)
    return gemm1, gemm2


def _program(
    dispatch: Literal["unicast", "broadcast"],
    combine: Literal["unicast", "pull", "reduce_scatter"],
    sms: int,
    **more: Any,
) -> ScheduleSpec:
    """Returns a schedule with these primitives and ``sms`` SMs at either of them."""
    spec = {"name": "measured", "dispatch": dispatch, "combine": combine, "sms": {"dispatch": sms, "combine": sms}}
    return ScheduleSpec.model_validate({**spec, **more})


def _run(
    system: SystemSpec,
    layer: LayerSpec,
    topk_ids: np.ndarray,
    program: ScheduleSpec,
    gpu_changes: dict[str, float] | None = None,
    compute_scale: float = COMMUNICATION_ALONE,
) -> LayerResult:
    """Returns a layer run on a system, some fields of its GPUs replaced."""
    system = system.with_changes({f"gpu.{name}": value for name, value in (gpu_changes or {}).items()})
    workload = laid_out(layer, system.num_gpus, topk_ids)
    return simulate(system, workload, program, compute_scale=compute_scale).result()


def _combine_us(result: LayerResult) -> float:
    """Returns the time from the end of the GEMMs, when combine's first kernel is launched, to its end."""
    return result.phases_us["combine"][1] - result.phases_us["gemm2"][1]
