"""Constants of the modelled machines that were set: chosen so that some measured rows come out right.

All others were read in a document, or are assumptions, as the comment on their line of ``configs/systems`` says. A
constant is physical or belongs to a family of kernels and holds for a generation of GPUs; none is for a row, a shape or
a number of GPUs. Rows of a table that constants were set on are no predictions: a few dozen numbers stand for some
11,000 measured ones, chosen by what one token takes and by least errors over samples of rows of up to 4096 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dysharp_env.system import SystemSpec

# Most constants that may be set, over all generations.
MOST_SET = 40
HOPPER = ("dgx-h100", "dgx-h200", "dgx-h800", "gh200-nvl32", "dgx-h20")
BLACKWELL = ("dgx-b200", "gb200-nvl72", "dgx-b300", "gb300-nvl72", "vera-rubin-nvl72", "hypothetical-nvl256")
NORMAL = ("deepep-normal-h100", "deepep-normal-gb200")
LOW_LATENCY = ("deepep-ll-h100", "deepep-ll-b200")
TRTLLM, MEGAMOE, SINGLE = ("trtllm-alltoall-gb200",), ("megamoe-gb200",), ("published",)


@dataclass(frozen=True)
class SetConstant:
    """One constant.

    Attributes:
        key: Its place in a system's preset, or a module's and its name where it is no property of a machine.
        systems: Presets with this value; none for what is no property of a machine.
        value: The value.
        rows: What it was set on.
        tables: Tables of which these rows are.
    """

    key: str
    systems: tuple[str, ...]
    value: float
    rows: str
    tables: tuple[str, ...] = ()

    @property
    def generation(self) -> str:
        """The GPUs it is for."""
        return {HOPPER: "Hopper", BLACKWELL: "Blackwell", HOPPER + BLACKWELL: "all", (): "all"}[self.systems]

    def value_in(self, system: SystemSpec) -> float:
        """Returns the value that a system has."""
        place: Any = system
        for part in self.key.split("."):
            place = place[part] if isinstance(place, dict) else getattr(place, part)
        return float(place)


def _families(
    systems: tuple[str, ...], family: str, rows: str, tables: tuple[str, ...], **values: float
) -> tuple[SetConstant, ...]:
    """Returns constants of one family of kernels."""
    return tuple(
        SetConstant(f"gpu.families.{family}.{name}", systems, value, rows, tables) for name, value in values.items()
    )


_NORMAL_ROWS, _LL_ROWS = "DeepEP's normal kernels, 4 to 24 SMs", "DeepEP's low-latency kernels"
SET_CONSTANTS = (
    SetConstant("gpu.gemm_efficiency", HOPPER, 0.735, "DeepGEMM's contiguous grouped FP8 rates on H800"),
    SetConstant("gpu.block_overhead_ns", HOPPER, 1090, "DeepGEMM's contiguous grouped FP8 rates on H800"),
    SetConstant("gpu.cold_exposure", HOPPER, 0.45, "DeepGEMM's masked grouped FP8 rate of 4 x 256 rows on H800"),
    SetConstant("link.multimem_flits", HOPPER, 1, "NVLS all-reduce of 4 to 8 H100"),
    *_families(HOPPER, "warp_queue", _NORMAL_ROWS, NORMAL[:1], copy_ns=18, byte_ps=22.5, start_us=11.5),
    *_families(
        HOPPER,
        "warp_low_latency",
        _LL_ROWS,
        LOW_LATENCY[:1],
        prepare_ns=1230,
        extra_flits=5,
        start_us=1.5,
        start_expert_ns=10,
    ),
    *_families(HOPPER + BLACKWELL, "warp_queue", _NORMAL_ROWS, NORMAL, token_ns=180, extra_flits=2, sum_byte_ps=1100),
    *_families(
        HOPPER + BLACKWELL,
        "warp_low_latency",
        f"{_LL_ROWS}, and two-sided combine in low precision",
        LOW_LATENCY + TRTLLM,
        prepare_byte_ps=200,
    ),
    SetConstant("gpu.gemm_efficiency", BLACKWELL, 0.594, "cuBLASLt's dense FP8 rates on GB200", SINGLE),
    SetConstant("gpu.hbm_efficiency", BLACKWELL, 0.745, "Mega MoE of few tokens, EP4", MEGAMOE),
    SetConstant("link.multimem_flits", BLACKWELL, 3, "NCCL's all-reduce over 72 GB200", SINGLE),
    SetConstant("link.efficiency", BLACKWELL, 0.945, "one-sided kernels of 65536 tokens, EP4 and EP8", TRTLLM),
    SetConstant("link.efficiency_per_doubling", BLACKWELL, 0.005, "one-sided kernels of 65536 tokens, EP32", TRTLLM),
    SetConstant("overheads.launch_us", BLACKWELL, 5.5, "TensorRT-LLM's kernels, one token", TRTLLM),
    SetConstant(
        "overheads.barrier_per_doubling_us", BLACKWELL, 1.3, "one-sided kernels, one token, EP 4 to 32", TRTLLM
    ),
    SetConstant("overheads.layout_ns_per_token", BLACKWELL, 7, "two-sided prepare, many tokens", TRTLLM),
    *_families(BLACKWELL, "warp_queue", _NORMAL_ROWS, NORMAL[1:], copy_ns=90, byte_ps=16, start_us=14.5),
    *_families(
        BLACKWELL,
        "warp_low_latency",
        _LL_ROWS,
        LOW_LATENCY[1:],
        prepare_ns=1770,
        extra_flits=2,
        start_us=6,
        start_expert_ns=19,
    ),
    *_families(BLACKWELL, "warp_direct", "one-sided kernels, one token", TRTLLM, start_us=4.8, vectors=2),
    *_families(BLACKWELL, "warp_load", "one-sided combine, one token", TRTLLM, byte_ps=145, vectors=1),
    *_families(BLACKWELL, "warp_two_sided", "two-sided dispatch of many tokens", TRTLLM, start_token_ns=16),
    *_families(BLACKWELL, "bulk", "HybridEP's dispatch with 16 SMs on GB200", byte_ps=21, tables=()),
    *_families(BLACKWELL, "bulk", "Mega MoE of few tokens", MEGAMOE + SINGLE, start_us=20),
    SetConstant("validation.tables.megamoe.AROUND_US", (), 20, "Mega MoE of few tokens", MEGAMOE),
)


def constants_set(table: str) -> int:
    """Returns how many constants were set on rows of a table."""
    return sum(table in constant.tables for constant in SET_CONSTANTS)
