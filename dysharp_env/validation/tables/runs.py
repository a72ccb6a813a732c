"""Runs of the engine that experiments are made of: machines, layers of plain vectors, phases timed apart."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np

from dysharp_env.schedules import ScheduleSpec, simulate
from dysharp_env.simulator.result import LayerResult
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.validation.kernels import COMMUNICATION_ALONE, PHASES
from dysharp_env.validation.layers import laid_out
from dysharp_env.workload import LayerSpec

Launched = tuple[str, ...]


@cache
def machine(preset: str, gpus: int) -> SystemSpec:
    """Returns so many GPUs of a preset."""
    return load_system(preset, gpus)


@cache
def vectors(hidden: int, experts: int, top_k: int, dispatch_dtype: Literal["bf16", "fp8"] = "bf16") -> LayerSpec:
    """Returns a layer of which only the vectors matter: BF16 results, and tokens in BF16 or FP8."""
    return LayerSpec(
        name="vectors",
        hidden=hidden,
        moe_ff=128,
        experts=experts,
        top_k=top_k,
        ffn_matrices=2,
        dispatch_dtype=dispatch_dtype,
        compute_dtype="bf16",
        source="a measured transfer; its GEMMs are made so short that they cannot be seen",
    )


def phases(
    name: str, dispatch: str, combine: str, sms: tuple[int, int], pays: dict[str, Launched], **more: Any
) -> ScheduleSpec:
    """Returns a schedule of phases with these primitives and SMs, and what each phase pays."""
    spec = {
        "name": name,
        "dispatch": dispatch,
        "combine": combine,
        "sms": {"dispatch": sms[0], "combine": sms[1]},
        "readiness": PHASES,
        "pays": {stage: list(costs) for stage, costs in pays.items()},
    }
    return ScheduleSpec.model_validate({**spec, **more})


def transfers_us(
    system: SystemSpec, layer: LayerSpec, topk_ids: np.ndarray, schedule: ScheduleSpec
) -> tuple[float, float]:
    """Returns the times of a dispatch and a combine, each with what it pays before and, for dispatch, after it.

    Args:
        system: The machine.
        layer: The vectors.
        topk_ids: (gpu * token, top_k) experts.
        schedule: A schedule of phases. What GEMM-1 pays ends dispatch.
    """
    result = layer_result(system, layer, topk_ids, schedule, compute_scale=COMMUNICATION_ALONE)
    paid = schedule.pays.gemm1
    dispatch_us = result.phases_us["gemm1"][0] if paid else result.phases_us["dispatch"][1]
    return dispatch_us, result.phases_us["combine"][1] - result.phases_us["gemm2"][1]


def layer_result(
    system: SystemSpec, layer: LayerSpec, topk_ids: np.ndarray, schedule: ScheduleSpec, compute_scale: float = 1.0
) -> LayerResult:
    """Returns the result of a layer run to its end."""
    return simulate(system, laid_out(layer, system.num_gpus, topk_ids), schedule, compute_scale=compute_scale).result()
