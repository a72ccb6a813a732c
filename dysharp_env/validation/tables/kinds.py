"""The kinds of tables: which columns tell a kind, and what a row of each becomes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from dysharp_env.validation.tables.deepep import DeepEPLowLatency, DeepEPNormal
from dysharp_env.validation.tables.machines import machine_of
from dysharp_env.validation.tables.megamoe import MegaMoE
from dysharp_env.validation.tables.readings import CannotExpressError, Reading, Row
from dysharp_env.validation.tables.trtllm import PAYS, VECTOR_BYTES, AllToAll

_MOST_POWER = 100.0  # of a power law
_KERNELS = sorted({kernels for kernels, _ in PAYS})
_PHASES = sorted({phase for _, phase in PAYS})


class Kind(NamedTuple):
    """A kind of table.

    Attributes:
        columns: Columns that it must have; others are not read.
        read: Yields the readings of a row, with the seed of what is drawn.

    ``read`` raises ConfigError for a bad cell and CannotExpressError for what the engine has no program for.
    """

    columns: tuple[str, ...]
    read: Callable[[Row, int], Iterator[Reading]]


def _deepep_normal(row: Row, seed: int) -> Iterator[Reading]:
    preset, gpus = _node(row)
    hidden, top_k, experts = _layer(row, gpus, "hidden_size", "num_topk", "num_experts")
    sms = row.count("dispatch_sms", least=2), row.count("combine_sms", least=2)
    kernel = DeepEPNormal(preset, gpus, hidden, top_k, experts, *sms, row.count("num_token"), seed)
    for place, stage in enumerate(("dispatch", "combine")):
        shape = f"{hidden} values, top-{top_k} of {experts}, {sms[place]} SMs"
        yield Reading(row.line, stage, shape, row.micros(f"{stage}_transmit_us"), kernel, place)


def _deepep_ll(row: Row, seed: int) -> Iterator[Reading]:
    preset, gpus = _node(row)
    hidden, top_k, experts = _layer(row, gpus, "hidden_size", "num_topk", "num_experts")
    kernel = DeepEPLowLatency(preset, gpus, hidden, top_k, experts, row.count("num_token"), seed)
    for place, stage in enumerate(("dispatch", "combine")):
        shape = f"{hidden} values, top-{top_k} of {experts}"
        yield Reading(row.line, stage, shape, row.micros(f"{stage}_avg_t_us"), kernel, place)


def _alltoall(row: Row, seed: int) -> Iterator[Reading]:
    preset, _ = machine_of(row.word("device"))
    kernels, phase = row.word("kernel_source", _KERNELS), row.word("op_name", _PHASES)
    dtype, distribution = row.word("moe_dtype", VECTOR_BYTES), row.word("distribution")
    ranks = row.count("moe_ep_size", least=2)
    hidden, top_k, experts = _layer(row, ranks, "hidden_size", "topk", "num_experts")
    if (kernels, phase) not in PAYS:
        raise CannotExpressError(f"{kernels} has no {phase}")
    if distribution != "balanced":
        raise CannotExpressError(f"distribution '{distribution}'")
    tokens, measured_us = row.count("num_tokens"), row.micros("latency_us")
    # What is combined is BF16, or NVFP4 in low precision, whatever was dispatched.
    moved = dtype if phase == "alltoall_dispatch" else "bfloat16"
    kernel = AllToAll(preset, ranks, kernels, phase, moved, hidden, top_k, experts, tokens, seed)
    name = f"{kernels.removeprefix('NVLink')} {phase.removeprefix('alltoall_')}"
    yield Reading(row.line, name, f"{dtype}, EP{ranks}", measured_us, kernel)


def _megamoe(row: Row, seed: int) -> Iterator[Reading]:
    preset, _ = machine_of(row.word("device"))
    ranks = row.count("moe_ep_size", least=2)
    hidden, top_k, experts = _layer(row, ranks, "hidden_size", "topk", "num_experts")
    inter, tokens = row.count("inter_size"), row.count("num_tokens")
    distribution, measured_us = row.word("distribution"), row.micros("latency_us")
    if row.word("kernel_dtype") != "fp8_fp4":
        raise CannotExpressError(f"kernel_dtype '{row.cells['kernel_dtype']}'")
    if row.count("num_fused_shared_experts", least=0):
        raise CannotExpressError("fused shared experts")
    law = re.fullmatch(r"power_law_(\d+(?:\.\d+)?)", distribution)
    if distribution != "balanced" and (law is None or not 0 < float(law[1]) < _MOST_POWER or float(law[1]) == 1):
        raise CannotExpressError(f"distribution '{distribution}'")
    kernel = MegaMoE(preset, ranks, hidden, inter, top_k, experts, distribution, tokens, seed=seed)
    yield Reading(row.line, distribution, f"EP{ranks}", measured_us, kernel)


def _node(row: Row) -> tuple[str, int]:
    """Returns the preset and GPUs of a row that stays in one node."""
    machine = machine_of(row.word("device"))
    if row.count("node_num") > 1:
        raise CannotExpressError("more than one node")
    return machine


def _layer(row: Row, gpus: int, hidden: str, top_k: str, experts: str) -> tuple[int, int, int]:
    """Returns the sizes of a layer from three columns."""
    sizes = row.count(hidden), row.count(top_k), row.count(experts)
    if sizes[1] > sizes[2]:
        raise row.error(top_k, f"must be at most {experts}={sizes[2]}")
    if sizes[2] % gpus:
        raise CannotExpressError(f"experts that do not divide by {gpus} GPUs")
    return sizes


_DEEPEP = ("device", "node_num", "hidden_size", "num_token", "num_topk", "num_experts")
_SERVING = ("device", "num_tokens", "hidden_size", "topk", "num_experts", "moe_ep_size", "distribution", "latency_us")
KINDS = {
    "DeepEP normal": Kind(
        (*_DEEPEP, "dispatch_sms", "combine_sms", "dispatch_transmit_us", "combine_transmit_us"), _deepep_normal
    ),
    "DeepEP low latency": Kind((*_DEEPEP, "dispatch_avg_t_us", "combine_avg_t_us"), _deepep_ll),
    "TensorRT-LLM all-to-all": Kind((*_SERVING, "op_name", "kernel_source", "moe_dtype"), _alltoall),
    "Mega MoE": Kind((*_SERVING, "kernel_dtype", "inter_size", "num_fused_shared_experts"), _megamoe),
}
