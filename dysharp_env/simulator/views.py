"""Typed views of the engine's arrays for compiled code.

The kernel passes one record, the *root*, by reference: parameters, counters, and the address of every array. A view is
made from an address where it is needed, which costs a load; passing the arrays themselves would cost a hundred machine
words a call. ``State`` in layout.py owns the memory and must outlive every use of its root.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from dysharp_env.simulator.layout import (
    CHUNK,
    CONTEXT,
    EXPERT,
    FEATURES,
    GPU,
    LANE,
    LOG_FIELDS,
    MATRICES,
    NETWORK_ROWS,
    NODE,
    NUM_PURPOSES,
    PAIR,
    PART,
    PHASE,
    PORT,
    SM,
    STORE,
    SUM,
    TILE,
    TOKEN,
    TURN,
    UNIT,
    UPLINK,
)

# Records of dtype ROOT and PART, which numba passes as pointers.
Root = Any
PartView = Any
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


@njit(cache=True)
def gpus(s: Root) -> np.ndarray:
    """Returns ``State.gpus``."""
    return carray(pointer(s.gpus_at), (s.num_gpus,), GPU)


@njit(cache=True)
def sms(s: Root) -> np.ndarray:
    """Returns ``State.sms``."""
    return carray(pointer(s.sms_at), (s.num_gpus * (s.most_dispatch_sms + s.most_combine_sms),), SM)


@njit(cache=True)
def uplinks(s: Root) -> np.ndarray:
    """Returns ``State.uplinks``."""
    return carray(pointer(s.uplinks_at), (s.num_links,), UPLINK)


@njit(cache=True)
def lanes(s: Root) -> np.ndarray:
    """Returns ``State.lanes``."""
    return carray(pointer(s.lanes_at), (2 * s.num_links,), LANE)


@njit(cache=True)
def ports(s: Root) -> np.ndarray:
    """Returns ``State.ports``."""
    return carray(pointer(s.ports_at), (2 * s.num_links,), PORT)


@njit(cache=True)
def turns(s: Root) -> np.ndarray:
    """Returns ``State.turns``."""
    return carray(pointer(s.turns_at), (4 * s.num_links,), TURN)


@njit(cache=True)
def tokens(s: Root) -> np.ndarray:
    """Returns ``State.tokens``."""
    return carray(pointer(s.tokens_at), (s.num_tokens + 1,), TOKEN)


@njit(cache=True)
def pairs(s: Root) -> np.ndarray:
    """Returns ``State.pairs``."""
    return carray(pointer(s.pairs_at), (s.num_pairs,), PAIR)


@njit(cache=True)
def stores(s: Root) -> np.ndarray:
    """Returns ``State.stores``."""
    return carray(pointer(s.stores_at), (s.num_tokens * s.dispatch_segments,), STORE)


@njit(cache=True)
def sums(s: Root) -> np.ndarray:
    """Returns ``State.sums``."""
    return carray(pointer(s.sums_at), (s.num_tokens * s.combine_segments,), SUM)


@njit(cache=True)
def nodes(s: Root) -> np.ndarray:
    """Returns ``State.nodes``."""
    return carray(pointer(s.nodes_at), (s.num_nodes,), NODE)


@njit(cache=True)
def fifo_next(s: Root) -> np.ndarray:
    """Returns ``State.fifo_next``."""
    return carray(pointer(s.fifo_next_at), (s.num_nodes,), np.int64)


@njit(cache=True)
def experts(s: Root) -> np.ndarray:
    """Returns ``State.experts``."""
    return carray(pointer(s.experts_at), (s.num_experts * s.num_parts,), EXPERT)


@njit(cache=True)
def tiles(s: Root) -> np.ndarray:
    """Returns ``State.tiles``."""
    return carray(pointer(s.tiles_at), (s.num_tiles,), TILE)


@njit(cache=True)
def matrices(s: Root) -> np.ndarray:
    """Returns ``State.matrices``."""
    return carray(pointer(s.matrices_at), (s.num_experts,), MATRICES)


@njit(cache=True)
def parts(s: Root) -> np.ndarray:
    """Returns ``State.parts``."""
    return carray(pointer(s.parts_at), (s.num_gpus * s.num_parts,), PART)


@njit(cache=True)
def phases(s: Root) -> np.ndarray:
    """Returns ``State.phases``."""
    return carray(pointer(s.phases_at), (s.num_parts,), PHASE)


@njit(cache=True)
def chunks(s: Root) -> np.ndarray:
    """Returns ``State.chunks``."""
    return carray(pointer(s.chunks_at), (s.num_chunks,), CHUNK)


@njit(cache=True)
def units(s: Root) -> np.ndarray:
    """Returns ``State.units``."""
    return carray(pointer(s.units_at), (s.num_units,), UNIT)


@njit(cache=True)
def store_flits(s: Root) -> np.ndarray:
    """Returns ``State.store_flits``."""
    return carray(pointer(s.store_flits_at), (s.top_k + 1,), np.int64)


@njit(cache=True)
def ask_flits(s: Root) -> np.ndarray:
    """Returns ``State.ask_flits``."""
    return carray(pointer(s.ask_flits_at), (s.top_k + 1,), np.int64)


@njit(cache=True)
def gpu_experts(s: Root) -> np.ndarray:
    """Returns ``State.gpu_experts``."""
    return carray(pointer(s.gpu_experts_at), (s.num_experts,), np.int64)


@njit(cache=True)
def slot_expert(s: Root) -> np.ndarray:
    """Returns ``State.slot_expert``."""
    return carray(pointer(s.slot_expert_at), (s.num_tokens * s.top_k,), np.int64)


@njit(cache=True)
def slot_tlb(s: Root) -> np.ndarray:
    """Returns ``State.slot_tlb``."""
    return carray(pointer(s.slot_tlb_at), (s.num_tokens * s.top_k,), np.int64)


@njit(cache=True)
def slot_tile(s: Root) -> np.ndarray:
    """Returns ``State.slot_tile``."""
    return carray(pointer(s.slot_tile_at), (s.num_tokens * s.top_k,), np.int32)


@njit(cache=True)
def chunk_experts(s: Root) -> np.ndarray:
    """Returns ``State.chunk_experts``."""
    return carray(pointer(s.chunk_experts_at), (s.num_tokens * s.top_k,), np.int32)


@njit(cache=True)
def chunk_targets(s: Root) -> np.ndarray:
    """Returns ``State.chunk_targets``."""
    return carray(pointer(s.chunk_targets_at), (s.num_chunks * s.num_gpus,), np.bool_)


@njit(cache=True)
def unit_targets(s: Root) -> np.ndarray:
    """Returns ``State.unit_targets``."""
    return carray(pointer(s.unit_targets_at), (s.num_units * s.num_gpus,), np.bool_)


@njit(cache=True)
def backlogs(s: Root) -> np.ndarray:
    """Returns ``State.backlogs``."""
    return carray(pointer(s.backlogs_at), (s.num_gpus,), np.int64)


@njit(cache=True)
def expert_shown(s: Root) -> np.ndarray:
    """Returns ``State.expert_shown``."""
    return carray(pointer(s.expert_shown_at), (s.num_experts * s.num_parts, 2), np.float64)


@njit(cache=True)
def arrived_pair(s: Root) -> np.ndarray:
    """Returns ``State.arrived_pair``."""
    return carray(pointer(s.arrived_pair_at), (s.num_tokens * s.top_k,), np.int64)


@njit(cache=True)
def token_order(s: Root) -> np.ndarray:
    """Returns ``State.order``."""
    return carray(pointer(s.order_at), (s.num_tokens,), np.int64)


@njit(cache=True)
def item_next(s: Root) -> np.ndarray:
    """Returns ``State.item_next``."""
    return carray(pointer(s.item_next_at), (s.num_pairs,), np.int64)


@njit(cache=True)
def queue_head(s: Root) -> np.ndarray:
    """Returns ``State.queue_head``."""
    return carray(pointer(s.queue_head_at), (4 * s.num_links * (s.num_gpus + 1),), np.int64)


@njit(cache=True)
def queue_tail(s: Root) -> np.ndarray:
    """Returns ``State.queue_tail``."""
    return carray(pointer(s.queue_tail_at), (4 * s.num_links * (s.num_gpus + 1),), np.int64)


@njit(cache=True)
def active_next(s: Root) -> np.ndarray:
    """Returns ``State.active_next``."""
    return carray(pointer(s.active_next_at), (4 * s.num_links * (s.num_gpus + 1),), np.int64)


@njit(cache=True)
def traffic(s: Root) -> np.ndarray:
    """Returns ``State.traffic``."""
    return carray(pointer(s.traffic_at), (s.num_gpus * 2 * NUM_PURPOSES,), np.int64)


@njit(cache=True)
def payload(s: Root) -> np.ndarray:
    """Returns ``State.payload``."""
    return carray(pointer(s.payload_at), (s.num_gpus * 2 * NUM_PURPOSES,), np.int64)


@njit(cache=True)
def event_heap(s: Root) -> np.ndarray:
    """Returns ``State.heap``."""
    return carray(pointer(s.heap_at), (s.heap_capacity, 4), np.int64)


@njit(cache=True)
def dirty_ring(s: Root) -> np.ndarray:
    """Returns ``State.dirty``."""
    return carray(pointer(s.dirty_at), (s.dirty_capacity,), np.int64)


@njit(cache=True)
def splits(s: Root) -> np.ndarray:
    """Returns ``State.splits``."""
    return carray(pointer(s.splits_at), (s.num_splits, 2), np.int64)


@njit(cache=True)
def rule_weights(s: Root) -> np.ndarray:
    """Returns ``State.weights``."""
    return carray(pointer(s.weights_at), (4, NUM_FEATURES), np.float64)


@njit(cache=True)
def network_numbers(s: Root, first: int, count: int) -> np.ndarray:
    """Returns some of ``State.network``."""
    return carray(pointer(s.network_at + 4 * first), (count,), np.float32)


@njit(cache=True)
def scratch_rows(s: Root) -> np.ndarray:
    """Returns ``State.scratch``."""
    return carray(pointer(s.scratch_at), (s.max_candidates + NETWORK_ROWS, s.network_width), np.float32)


@njit(cache=True)
def candidates(s: Root) -> np.ndarray:
    """Returns ``State.candidates``."""
    return carray(pointer(s.candidates_at), (s.max_candidates,), np.int64)


@njit(cache=True)
def sort_keys(s: Root) -> np.ndarray:
    """Returns ``State.keys``."""
    return carray(pointer(s.keys_at), (s.max_candidates,), np.int64)


@njit(cache=True)
def feature_rows(s: Root) -> np.ndarray:
    """Returns ``State.features``."""
    return carray(pointer(s.features_at), (s.max_candidates, NUM_FEATURES), np.float32)


@njit(cache=True)
def context_row(s: Root) -> np.ndarray:
    """Returns ``State.context``."""
    return carray(pointer(s.context_at), (NUM_CONTEXT,), np.float32)


@njit(cache=True)
def legal_mask(s: Root) -> np.ndarray:
    """Returns ``State.mask``."""
    return carray(pointer(s.mask_at), (s.max_candidates,), np.bool_)


@njit(cache=True)
def log_rows(s: Root) -> np.ndarray:
    """Returns ``State.log``."""
    return carray(pointer(s.log_at), (s.log_capacity, NUM_LOG_FIELDS), np.int64)
