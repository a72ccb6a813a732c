"""Numpy arrays over the engine's memory, for loops over many numbers; single records are read through rows.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from dysharp_env.simulator.jit.compiled import compiled


@intrinsic
def _as_pointer(typing_context: Any, address: Any) -> Any:
    """Types and builds the conversion of an integer address to a pointer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), codegen


# For type checkers: an intrinsic is called without its typing context.
pointer: Any = _as_pointer


@compiled
def floats(address: int, count: int) -> np.ndarray:
    """Returns (count,) float32 numbers at an address."""
    return carray(pointer(address), (count,), np.float32)


@compiled
def float_rows(address: int, count: int, width: int) -> np.ndarray:
    """Returns (count, width) float32 numbers at an address."""
    return carray(pointer(address), (count, width), np.float32)


@compiled
def doubles(address: int, count: int) -> np.ndarray:
    """Returns (count,) float64 numbers at an address."""
    return carray(pointer(address), (count,), np.float64)


@compiled
def longs(address: int, count: int) -> np.ndarray:
    """Returns (count,) int64 numbers at an address."""
    return carray(pointer(address), (count,), np.int64)


@compiled
def bytes_at(address: int, count: int) -> np.ndarray:
    """Returns (count,) uint8 numbers, or flags, at an address."""
    return carray(pointer(address), (count,), np.uint8)
