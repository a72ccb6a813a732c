"""Constants of the modelled machines that were set: chosen so that some measured rows come out right.

All others were read in a document, or are assumptions, as the comment on their line of ``configs/systems`` says. A
constant is physical or belongs to a family of kernels and holds for a generation of GPUs; none is for a row, a shape or
a number of GPUs. Rows that a constant was set on are no predictions.
"""

from __future__ import annotations

from dataclasses import dataclass

# Most constants that may be set, over all generations.
MOST_SET = 40
HOPPER = ("dgx-h100", "dgx-h200", "dgx-h800", "gh200-nvl32")
BLACKWELL = ("dgx-b200", "gb200-nvl72")


@dataclass(frozen=True)
class SetConstant:
    """One constant.

    Attributes:
        key: Its place in a system's preset.
        systems: Presets of the generation, all with this value.
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
        return {HOPPER: "Hopper", BLACKWELL: "Blackwell"}[self.systems]


SET_CONSTANTS = (
    SetConstant("gpu.store_in_flight_bytes", HOPPER, 26112, "DeepEP's dispatch on 8 H200, 500 us"),
    SetConstant("gpu.gemm_efficiency", HOPPER, 0.735, "DeepGEMM's contiguous grouped FP8 rates on H800"),
    SetConstant("gpu.block_overhead_ns", HOPPER, 1090, "DeepGEMM's contiguous grouped FP8 rates on H800"),
    SetConstant("gpu.cold_exposure", HOPPER, 0.63, "DeepGEMM's masked grouped FP8 rate of 4 x 256 rows on H800"),
    SetConstant("gpu.store_in_flight_bytes", BLACKWELL, 25600, "DeepEP V2's dispatch on 8 SM100 GPUs, 24 SMs"),
    SetConstant("gpu.load_in_flight_bytes", BLACKWELL, 8960, "TensorRT-LLM's one-sided combine of one token, EP8"),
    SetConstant("overheads.launch_us", BLACKWELL, 5.5, "TensorRT-LLM's one-sided dispatch of one token, EP8"),
)


def constants_set(table: str) -> int:
    """Returns how many constants were set on rows of a table."""
    return sum(table in constant.tables for constant in SET_CONSTANTS)
