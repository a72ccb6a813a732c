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
from dysharp_env.simulator.layout import (
    BUNDLE,
    CHUNK,
    CONTEXT,
    EVENT,
    EXPERT,
    FEATURES,
    GPU,
    LANE,
    LOG_FIELDS,
    MATRICES,
    NETWORK_ROWS,
    NODE,
    PAIR,
    PART,
    PHASE,
    PORT,
    QUEUE,
    ROOT,
    SM,
    STORE,
    SUM,
    TILE,
    TOKEN,
    TRIP,
    TURN,
    UNIT,
    UPLINK,
    WHEEL_SLOT,
)
from dysharp_env.simulator.rows import rows

# Rows of dtype ROOT and PART, and one or all rows of dtype EVENT: pointers to compiled code.
Root = Any
PartView = Any
Event = Any
Events = Any
NUM_LOG_FIELDS = len(LOG_FIELDS)
NUM_FEATURES = len(FEATURES)
NUM_CONTEXT = len(CONTEXT)


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
def gpus(s: Root) -> Any:
    """Returns ``State.gpus``."""
    return rows(s.gpus_at, GPU)


@compiled
def sms(s: Root) -> Any:
    """Returns ``State.sms``."""
    return rows(s.sms_at, SM)


@compiled
def uplinks(s: Root) -> Any:
    """Returns ``State.uplinks``."""
    return rows(s.uplinks_at, UPLINK)


@compiled
def lanes(s: Root) -> Any:
    """Returns ``State.lanes``."""
    return rows(s.lanes_at, LANE)


@compiled
def ports(s: Root) -> Any:
    """Returns ``State.ports``."""
    return rows(s.ports_at, PORT)


@compiled
def turns(s: Root) -> Any:
    """Returns ``State.turns``."""
    return rows(s.turns_at, TURN)


@compiled
def tokens(s: Root) -> Any:
    """Returns ``State.tokens``."""
    return rows(s.tokens_at, TOKEN)


@compiled
def pairs(s: Root) -> Any:
    """Returns ``State.pairs``."""
    return rows(s.pairs_at, PAIR)


@compiled
def stores(s: Root) -> Any:
    """Returns ``State.stores``."""
    return rows(s.stores_at, STORE)


@compiled
def sums(s: Root) -> Any:
    """Returns ``State.sums``."""
    return rows(s.sums_at, SUM)


@compiled
def nodes(s: Root) -> Any:
    """Returns ``State.nodes``."""
    return rows(s.nodes_at, NODE)


@compiled
def trip_of(s: Root, node: int) -> Any:
    """Returns the one of ``State.trips`` that is of the vector whose first segment is ``node``."""
    return rows(s.trips_at, TRIP)[node - s.trip0]


@compiled
def fifo_next(s: Root) -> Any:
    """Returns ``State.fifo_next``."""
    return rows(s.fifo_next_at, np.int32)


@compiled
def experts(s: Root) -> Any:
    """Returns ``State.experts``."""
    return rows(s.experts_at, EXPERT)


@compiled
def tiles(s: Root) -> Any:
    """Returns ``State.tiles``."""
    return rows(s.tiles_at, TILE)


@compiled
def matrices(s: Root) -> Any:
    """Returns ``State.matrices``."""
    return rows(s.matrices_at, MATRICES)


@compiled
def parts(s: Root) -> Any:
    """Returns ``State.parts``."""
    return rows(s.parts_at, PART)


@compiled
def phases(s: Root) -> Any:
    """Returns ``State.phases``."""
    return rows(s.phases_at, PHASE)


@compiled
def chunks(s: Root) -> Any:
    """Returns ``State.chunks``."""
    return rows(s.chunks_at, CHUNK)


@compiled
def units(s: Root) -> Any:
    """Returns ``State.units``."""
    return rows(s.units_at, UNIT)


@compiled
def wire_times(s: Root) -> Any:
    """Returns ``State.wire_times``."""
    return rows(s.wire_times_at, np.int64)


@compiled
def store_flits(s: Root) -> Any:
    """Returns ``State.store_flits``."""
    return rows(s.store_flits_at, np.int64)


@compiled
def ask_flits(s: Root) -> Any:
    """Returns ``State.ask_flits``."""
    return rows(s.ask_flits_at, np.int64)


@compiled
def gpu_experts(s: Root) -> Any:
    """Returns ``State.gpu_experts``."""
    return rows(s.gpu_experts_at, np.int32)


@compiled
def slot_expert(s: Root) -> Any:
    """Returns ``State.slot_expert``."""
    return rows(s.slot_expert_at, np.int32)


@compiled
def slot_tlb(s: Root) -> Any:
    """Returns ``State.slot_tlb``."""
    return rows(s.slot_tlb_at, np.int32)


@compiled
def slot_tile(s: Root) -> Any:
    """Returns ``State.slot_tile``."""
    return rows(s.slot_tile_at, np.int32)


@compiled
def chunk_experts(s: Root) -> Any:
    """Returns ``State.chunk_experts``."""
    return rows(s.chunk_experts_at, np.int32)


@compiled
def chunk_targets(s: Root) -> Any:
    """Returns ``State.chunk_targets``."""
    return rows(s.chunk_targets_at, np.uint8)


@compiled
def unit_targets(s: Root) -> Any:
    """Returns ``State.unit_targets``."""
    return rows(s.unit_targets_at, np.uint8)


@compiled
def backlogs(s: Root) -> Any:
    """Returns ``State.backlogs``."""
    return rows(s.backlogs_at, np.int64)


@compiled
def expert_shown(s: Root) -> np.ndarray:
    """Returns ``State.expert_shown``."""
    return carray(pointer(s.expert_shown_at), (s.num_experts * s.num_parts, 2), np.float64)


@compiled
def arrived_pair(s: Root) -> Any:
    """Returns ``State.arrived_pair``."""
    return rows(s.arrived_pair_at, np.int32)


@compiled
def token_order(s: Root) -> Any:
    """Returns ``State.order``."""
    return rows(s.order_at, np.int32)


@compiled
def item_next(s: Root) -> Any:
    """Returns ``State.item_next``."""
    return rows(s.item_next_at, np.int32)


@compiled
def copy_next(s: Root) -> Any:
    """Returns ``State.copy_next``."""
    return rows(s.copy_next_at, np.int32)


@compiled
def partial_next(s: Root) -> Any:
    """Returns ``State.partial_next``."""
    return rows(s.partial_next_at, np.int32)


@compiled
def bundles(s: Root) -> Any:
    """Returns ``State.bundles``."""
    return rows(s.bundles_at, BUNDLE)


@compiled
def queues(s: Root) -> Any:
    """Returns ``State.queues``."""
    return rows(s.queues_at, QUEUE)


@compiled
def traffic(s: Root) -> Any:
    """Returns ``State.traffic``."""
    return rows(s.traffic_at, np.int64)


@compiled
def payload(s: Root) -> Any:
    """Returns ``State.payload``."""
    return rows(s.payload_at, np.int64)


@compiled
def event_heap(s: Root) -> Events:
    """Returns ``State.heap``."""
    return rows(s.heap_at, EVENT)


@compiled
def event_pool(s: Root) -> Events:
    """Returns ``State.pool``."""
    return rows(s.pool_at, EVENT)


@compiled
def wheel(s: Root) -> Any:
    """Returns ``State.wheel``."""
    return rows(s.wheel_at, WHEEL_SLOT)


@compiled
def slots_filled(s: Root) -> Any:
    """Returns ``State.slots_filled``."""
    return rows(s.slots_filled_at, np.int64)


@compiled
def dirty_ring(s: Root) -> Any:
    """Returns ``State.dirty``."""
    return rows(s.dirty_at, np.int64)


@compiled
def splits(s: Root) -> np.ndarray:
    """Returns ``State.splits``."""
    return carray(pointer(s.splits_at), (s.num_splits, 3), np.int64)


@compiled
def rule_weights(s: Root) -> np.ndarray:
    """Returns ``State.weights``."""
    return carray(pointer(s.weights_at), (4, NUM_FEATURES), np.float64)


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


@compiled
def match_columns(s: Root) -> np.ndarray:
    """Returns the (width, max_candidates) embeddings by unit that attention works with, behind a network's rule."""
    first = (s.max_candidates + NETWORK_ROWS) * s.network_width + NUM_FEATURES
    return carray(pointer(s.scratch_at + 4 * first), (s.network_width, s.max_candidates), np.float32)


@compiled
def match_numbers(s: Root) -> np.ndarray:
    """Returns the (max_candidates,) matches of one candidate with all, behind those columns."""
    first = (2 * s.max_candidates + NETWORK_ROWS) * s.network_width + NUM_FEATURES
    return carray(pointer(s.scratch_at + 4 * first), (s.max_candidates,), np.float32)


@compiled
def candidates(s: Root) -> Any:
    """Returns ``State.candidates``."""
    return rows(s.candidates_at, np.int64)


@compiled
def sort_keys(s: Root) -> Any:
    """Returns ``State.keys``."""
    return rows(s.keys_at, np.int64)


@compiled
def feature_rows(s: Root) -> np.ndarray:
    """Returns ``State.features``."""
    return carray(pointer(s.features_at), (s.max_candidates, NUM_FEATURES), np.float32)


@compiled
def context_row(s: Root) -> np.ndarray:
    """Returns ``State.context``."""
    return carray(pointer(s.context_at), (NUM_CONTEXT,), np.float32)


@compiled
def legal_mask(s: Root) -> Any:
    """Returns ``State.mask``."""
    return rows(s.mask_at, np.uint8)


@compiled
def log_rows(s: Root) -> np.ndarray:
    """Returns ``State.log``."""
    return carray(pointer(s.log_at), (s.log_capacity, NUM_LOG_FIELDS), np.int64)
