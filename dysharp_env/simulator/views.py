"""Typed views of the engine's arrays for compiled code.

The kernel passes one record, the *root*, by reference: parameters, counters, and the address of every array. A view is
made from an address where it is needed, which costs a load; passing the arrays themselves would cost a hundred machine
words a call. ``State`` in layout.py owns the memory and must outlive every use of its root.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import intrinsic

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.layout import NETWORK_ROWS, NUM_CONTEXT, NUM_FEATURES, NUM_KINDS, ROOT
from dysharp_env.simulator.rows import rows

# Rows of dtype ROOT and PART, and one or all rows of dtype EVENT: pointers to compiled code.
Root = Any
PartView = Any
Event = Any
Events = Any


@intrinsic
def _as_pointer(typing_context: Any, address: Any) -> Any:
    """Types and builds the conversion of an integer address to a pointer."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(address), codegen


# For type checkers: an intrinsic is called without its typing context.
pointer: Any = _as_pointer


@compiled
def root_of(roots: np.ndarray, layer: int) -> Root:
    """Returns the root of one of several layers."""
    return rows(roots.ctypes.data, ROOT)[layer]


@compiled
def trip_of(s: Root, node: int) -> Any:
    """Returns the one of ``State.trips`` that is of the vector whose first segment is ``node``."""
    return s.trips[node - s.trip0]


@compiled
def feature_table(s: Root) -> np.ndarray:
    """Returns (max_candidates, feature) ``State.features``."""
    return carray(pointer(s.features_at), (s.max_candidates, NUM_FEATURES), np.float32)


@compiled
def context_numbers(s: Root) -> np.ndarray:
    """Returns (context,) ``State.context``."""
    return carray(pointer(s.context_at), (NUM_CONTEXT,), np.float32)


@compiled
def rule_table(s: Root) -> np.ndarray:
    """Returns (kind, feature) ``State.weights``."""
    return carray(pointer(s.weights_at), (NUM_KINDS, NUM_FEATURES), np.float64)


@compiled
def network_numbers(s: Root, first: int, count: int) -> np.ndarray:
    """Returns some of ``State.network``."""
    return carray(pointer(s.network_at + 4 * first), (count,), np.float32)


@compiled
def scratch_rows(s: Root) -> np.ndarray:
    """Returns the rows that a network works in, one for each candidate and ``NETWORK_ROWS``."""
    return carray(pointer(s.scratch_at), (s.max_candidates + NETWORK_ROWS, s.network_width), np.float32)


@compiled
def rule_numbers(s: Root) -> np.ndarray:
    """Returns the (feature,) weights of a network's rule in the present decision; they lie behind its rows."""
    rows = (s.max_candidates + NETWORK_ROWS) * s.network_width
    return carray(pointer(s.scratch_at + 4 * rows), (NUM_FEATURES,), np.float32)
