"""Number formats: bits of a value, and the scales that go with a block of values.

A vector is scaled in blocks along its length. Only FP8 scales weights otherwise, in squares of 128 x 128.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

FormatName = Literal["bf16", "fp8", "mxfp8", "nvfp4", "mxfp4"]
ComputeName = Literal["bf16", "fp8", "fp4"]


@dataclass(frozen=True)
class Format:
    """How values are stored.

    Attributes:
        bits: Of a value.
        scale_bytes: Of the scale that a block of values shares; 0 means none.
        block: Values of a vector that share a scale.
        weight_block: Values of a matrix that do.
    """

    bits: int
    scale_bytes: int = 0
    block: int = 1
    weight_block: int = 1

    def vector_bytes(self, values: int) -> int:
        """Returns the bytes of a vector, scales included; the last block of a vector has a scale of its own."""
        return -(-values * self.bits // 8) + -(-values // self.block) * self.scale_bytes

    def matrix_bytes(self, values: int) -> int:
        """Returns the bytes of a matrix of weights, scales included."""
        return -(-values * self.bits // 8) + -(-values // self.weight_block) * self.scale_bytes


FORMATS: dict[str, Format] = {
    "bf16": Format(16),
    # An FP32 scale for 128 values of a vector or 128 x 128 weights: DeepSeek-V3 report, arXiv 2412.19437, section 3.3.
    "fp8": Format(8, 4, 128, 128 * 128),
    # One power of two in 8 bits for 32 values: OCP Microscaling Formats (MX) specification, version 1.0.
    "mxfp8": Format(8, 1, 32, 32),
    "mxfp4": Format(4, 1, 32, 32),
    # One FP8 scale for 16 values: NVIDIA's description of NVFP4. The one FP32 scale of a whole tensor is left out.
    "nvfp4": Format(4, 1, 16, 16),
}
assert set(FORMATS) == set(get_args(FormatName))

# What tensor cores of each rate read if nothing else is said.
NATIVE_FORMAT: dict[str, FormatName] = {"bf16": "bf16", "fp8": "fp8", "fp4": "nvfp4"}
