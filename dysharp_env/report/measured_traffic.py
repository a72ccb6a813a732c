"""Published communication kernels as programs of the engine: DeepEP, TensorRT-LLM's one-sided kernels, NCCL.

Each program moves what the kernel moves, with the primitives and the communication SMs it uses, and pays for its kernel
launches and barriers. GEMMs are made so short that they cannot be seen. Left out: receiving SMs and their copy from a
queue to its place, the flow control of such queues, and every cost of the host.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from dysharp_env.schedules import ScheduleSpec, simulate
from dysharp_env.simulator.result import LayerResult
from dysharp_env.system import SystemSpec
from dysharp_env.workload import LayerSpec, Workload, load_model
from dysharp_env.workload.routing import ROUTING_MODELS, draw_routing
from dysharp_env.workload.workload import contiguous_placement

# GEMMs a hundred thousand times too fast: communication is all that is looked at.
COMPUTE_SCALE = 1e-5
PHASES = {"gemm1": "phase", "gemm2": "phase", "combine": "phase"}
# What DeepEP sends with a vector in stores of their own, hence in packets of their own: FP8 scales (56 x 4 B), index
# (4 B), expert ids (8 x 8 B) and weights (8 x 4 B) of a dispatch, index and weights of a combine, and pointers of its
# queues, two stores of 4 B for every 6 vectors of a dispatch and 4 of a combine (csrc/kernels/legacy/intranode.cu).
# With headers and acknowledgements that is 592 and 1128 flits; one vector of 7328 FP8 or 7216 BF16 values is 593 and
# 1128.
DEEPEP_HIDDEN = {"dispatch": 7328, "combine": 7216}


def deepep_us(system: SystemSpec, tokens: int, sms: int, seed: int, **changes: float) -> tuple[float, float]:
    """Returns the times of a dispatch (FP8) and a combine (BF16) of DeepEP, normal mode, of 7168 values top-8 of 256.

    One copy per token and destination GPU goes out, one partial sum per token and expert GPU comes back, both by plain
    stores. Each is two kernels, of which the first ends in a barrier (``cached_notify_dispatch`` and its like).

    Args:
        system: Eight GPUs.
        tokens: Tokens of each GPU, routed uniformly.
        sms: SMs that send.
        seed: Of the routing.
        **changes: Fields of the GPU to replace.
    """
    system = _changed(system, changes)
    layer = load_model("large").with_changes({"dispatch_dtype": "fp8"})
    topk_ids = draw_routing(
        ROUTING_MODELS["uniform"], layer, system.num_gpus, tokens, np.random.default_rng(seed)
    ).reshape(-1, layer.top_k)
    pays = ["launch", "barrier", "launch"]
    program = _schedule("unicast", "unicast", sms, pays={"dispatch": pays, "combine": pays}, readiness=PHASES)
    dispatch, combine = (
        _run(system, layer.with_changes({"hidden": hidden}), topk_ids, program) for hidden in DEEPEP_HIDDEN.values()
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
    system = _changed(system, changes)
    layer = load_model("large")
    ranks, per_rank = system.num_gpus, layer.experts // system.num_gpus
    rng = np.random.default_rng(seed)
    token = np.concatenate([rng.permutation(tokens) for _ in range(ranks)])
    slot = layer.top_k * token[:, None] + np.arange(layer.top_k) + np.repeat(np.arange(ranks), tokens)[:, None]
    topk_ids = slot % ranks * per_rank + slot // ranks % per_rank
    pays = {"dispatch": ["launch", "launch"], "gemm1": ["barrier"], "combine": ["launch", "barrier", "launch"]}
    program = _schedule("unicast", "pull", system.gpu.num_sms, pays=pays, readiness=PHASES)
    result = _run(system, layer, topk_ids, program)
    # GEMM-1 starts when the barrier that ends dispatch is over.
    return result.phases_us["gemm1"][0], _combine_us(result)


def ring_all_reduce_gbps(system: SystemSpec, channels: int = 24) -> float:
    """Returns the bus bandwidth of NCCL's ring all-reduce: each GPU's stream of plain stores to its neighbour.

    Every step of the ring is such a stream, and NCCL's bus bandwidth is what one link carries: GB/s of payload.
    """
    num_gpus, tokens = system.num_gpus, 8192
    layer = _one_expert_each(num_gpus)
    topk_ids = (np.repeat(np.arange(num_gpus), tokens)[:, None] + 1) % num_gpus
    result = _run(system, layer, topk_ids, _schedule("unicast", "unicast", channels, readiness=PHASES))
    start_us, end_us = result.phases_us["dispatch"]
    return tokens * layer.dispatch_bytes / (end_us - start_us) / 1e3


def nvls_all_reduce_gbps(system: SystemSpec, channels: int = 16) -> float:
    """Returns the bus bandwidth of NCCL's NVLS all-reduce: static multimem over all GPUs, own replica included.

    Every GPU sums its share of the data through the switch (``multimem.ld_reduce``) and stores the sums to all
    (``multimem.st``), both in flight together; half of the channels' SMs are at either (NCCL has 16 on Hopper). With N
    GPUs the bus bandwidth is 2 (N - 1) / N of the data over the time.
    """
    num_gpus, tokens = system.num_gpus, 1024
    layer = _one_expert_each(num_gpus)
    topk_ids = np.repeat(np.arange(num_gpus), tokens)[:, None]
    program = _schedule("broadcast", "reduce_scatter", channels // 2, loopback=True)
    result = _run(system, layer, topk_ids, program)
    busy_us = result.makespan_us - result.phases_us["dispatch"][0]
    return 2 * (num_gpus - 1) / num_gpus * num_gpus * tokens * layer.combine_bytes / busy_us / 1e3


def _changed(system: SystemSpec, changes: dict[str, float]) -> SystemSpec:
    return system.with_changes({f"gpu.{name}": value for name, value in changes.items()})


def _one_expert_each(num_gpus: int) -> LayerSpec:
    return load_model("large").with_changes({"experts": num_gpus, "top_k": 1})


def _schedule(
    dispatch: Literal["unicast", "broadcast"],
    combine: Literal["unicast", "pull", "reduce_scatter"],
    sms: int,
    **more: Any,
) -> ScheduleSpec:
    spec = {"name": "measured", "dispatch": dispatch, "combine": combine, "sms": {"dispatch": sms, "combine": sms}}
    return ScheduleSpec.model_validate({**spec, **more})


def _run(system: SystemSpec, layer: LayerSpec, topk_ids: np.ndarray, program: ScheduleSpec) -> LayerResult:
    num_gpus = system.num_gpus
    placement = contiguous_placement(layer.experts, num_gpus)
    workload = Workload(layer, num_gpus, len(topk_ids) // num_gpus, topk_ids, placement, "measured")
    return simulate(system, workload, program, compute_scale=COMPUTE_SCALE).result()


def _combine_us(result: LayerResult) -> float:
    """Returns the time from the end of the GEMMs, when combine's first kernel is launched, to its end."""
    return result.phases_us["combine"][1] - result.phases_us["gemm2"][1]
