"""Turns a workload, the costs of a system and a program into the engine's initial state."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import records
from dysharp_env.simulator.state.block import Block
from dysharp_env.simulator.state.codes import BLOCKS_PER_CHUNK, BLOCKS_PER_TILE, EV_GATE, NOTHING, NUM_PURPOSES
from dysharp_env.simulator.state.copies import NO_COPIES, WeightMoves, gradients_ps
from dysharp_env.simulator.state.late import start_late
from dysharp_env.simulator.state.observation import NUM_CONTEXT, NUM_FEATURES, NUM_KINDS
from dysharp_env.simulator.state.ordering import token_order
from dysharp_env.simulator.state.parameters import fill, root_of
from dysharp_env.simulator.state.pays import KernelPays
from dysharp_env.simulator.state.planes import vector_planes
from dysharp_env.simulator.state.records import NARROW_LIMIT, PARAMETERS, SHORT_LIMIT, blank
from dysharp_env.simulator.state.routed import Vectors, follow_routing
from dysharp_env.simulator.state.state import State
from dysharp_env.simulator.state.work import chunks_of, gpus_of, links_of, parts_and_gates, units_of
from dysharp_env.simulator.weights import WeightCosts
from dysharp_env.workload.workload import Workload

# Entries of the table of wire times; more flits are worked out when they are needed.
MOST_WIRE_TIMES = 4096
# The wheel of pending events turns once in this time: a round trip through the switch and a memory access are less.
WHEEL_SPAN_PS = 1 << 21
# About as many events wait for each link, so that a slot mostly holds one or none.
WHEEL_SLOTS_PER_LINK = 128
MOST_WHEEL_SLOTS = 1 << 16


class _Frame(NamedTuple):
    """What layers of one size start from, whatever their routing."""

    size: tuple[Any, ...]
    block: Block
    dispatch: Vectors
    combine: Vectors


class Lowering:
    """Lowers workloads that run by one program at one set of costs; what they share is worked out once."""

    def __init__(self, costs: Costs, program: Program, num_sms: int, logging: bool = False) -> None:
        """Notes how layers are run.

        Args:
            costs: Of the workloads' layer on a system.
            program: How it is run.
            num_sms: SMs of one GPU.
            logging: Whether every use of a link, reduction unit and SM group is recorded.
        """
        self.costs = costs.under(program.dispatch, program.combine, program.families)
        self.program = program
        self._num_sms, self._logging = num_sms, logging
        self._kernel_pays = KernelPays(self.costs, program, num_sms)
        self._last: _Frame | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A frame knows addresses; a copy builds its own.
        return {**self.__dict__, "_last": None}

    def lower(self, workload: Workload, bound: Bound) -> State:
        """Returns the state in which nothing has happened yet.

        Args:
            workload: Routing of one layer.
            bound: The workload's lower bound, which times are compared with in what decisions show.

        Raises:
            ConfigError: The workload is too large for exact integer time.
        """
        frame, costs, program = self._frame(workload), self.costs, self.program
        num_tokens, num_pairs = workload.num_tokens, _num_pairs(workload, program)
        partial0 = num_pairs * costs.dispatch_segments
        store0 = partial0 + num_pairs * costs.combine_segments
        stores_per_token = costs.store_groups(program.dispatch.by_team, workload.num_gpus)
        sum0 = store0 + num_tokens * stores_per_token * costs.dispatch_segments
        weights0 = sum0 + num_tokens * costs.combine_segments
        weights = WeightCosts.of(costs, program, workload)
        moves = WeightMoves(workload.placement, costs, weights) if weights else None
        num_nodes = weights0 + (moves.num_nodes if moves else 0)
        # No other id is larger, but those that _require_narrow knows.
        _require_numbers(num_nodes, workload, costs)
        # What is dispatched and combined: copies or stores, and partial sums or sums.
        asks_for_sums = program.combine.reads and program.combine.in_switch
        trip0 = (store0 if asks_for_sums else partial0) if program.dispatch.in_switch else 0
        trips_end = weights0 if asks_for_sums else (sum0 if program.dispatch.in_switch else store0)
        num_input_links = num_nodes if costs.queueing == "input_fifo" else 0
        # Tokens may be more than pairs, where some have no expert.
        num_items = num_tokens if program.combine.reads else num_pairs
        zeros = {"trips": trips_end - trip0, "item_links": num_items, "input_links": num_input_links}
        unwritten = {"pairs": num_pairs, "nodes": num_nodes, **(moves.sizes if moves else NO_COPIES)}
        state = frame.block.build(zeros, unwritten)
        firsts = {"partial0": partial0, "store0": store0, "sum0": sum0, "trip0": trip0}
        fill(state.root, {**firsts, "weights0": weights0, "weight_store0": weights0})
        times = {"links_ps": bound.links_ps, "gemms_ps": bound.gemms_ps, "hbm_ps": bound.hbm_ps}
        imbalance_ppm = workload.imbalance_ppm if program.counted else 0
        fill(state.root, {"scale_ps": max(1, bound.total_ps), **times, "imbalance_ppm": imbalance_ppm})
        follow_routing(
            state.root,
            state.pairs,
            state.nodes,
            workload.topk_ids,
            workload.gpu_of_expert,
            self._positions(workload, state),
            frame.dispatch,
            frame.combine,
        )
        self._kernel_pays.add_to(state, workload)
        start_late(state, costs.faults.late_ps, program.meets)
        if weights and moves:
            vectors = costs.dispatch_segments + costs.combine_segments
            moves.write(state, weights0, num_tokens * vectors)
            state.root["pay_end_ps"] += gradients_ps(costs, weights, workload.placement)
        return state

    def _positions(self, workload: Workload, state: State) -> np.ndarray:
        """Returns (token,) int32 places of tokens in the state's order, which it writes where it is not natural."""
        if not self.program.waves:
            return state.order
        state.order[...] = token_order(workload, waves=True)
        positions = np.empty_like(state.order)
        positions[state.order] = np.arange(len(positions), dtype=np.int32)
        return positions

    def _frame(self, workload: Workload) -> _Frame:
        """Returns the frame of a workload's size; the last one is kept.

        Raises:
            ConfigError: Workloads of that size are too large.
        """
        # Parts of experts are fitted to the most that a GPU holds; where each is follows the routing.
        size = (workload.layer, workload.tokens_of_gpu.tobytes(), workload.num_experts, workload.most_experts)
        if self._last is None or self._last.size != size:
            self._last = self._build_frame(workload, size)
        return self._last

    def _build_frame(self, workload: Workload, size: tuple[Any, ...]) -> _Frame:
        costs, program = self.costs, self.program.fitted(workload.most_experts)
        costs.require_exact(workload)
        root = root_of(workload, costs, program, self._num_sms, self._logging)
        _require_narrow(workload, costs, program, int(root["home_chunks"][0]))
        dispatch, combine = _vectors(workload, costs, program)
        block = _block(workload, costs, program, root, _wire_times(costs, dispatch, combine))
        return _Frame(size, block, dispatch, combine)


def _num_pairs(workload: Workload, program: Program) -> int:
    """Returns how many (token, expert GPU), or (token, expert), there are records for."""
    if program.static:
        return workload.num_tokens * workload.num_gpus
    if program.copies_per_expert:
        return int(workload.demand.expert_tokens.sum())
    return workload.demand.num_pairs


def _block(workload: Workload, costs: Costs, program: Program, root: np.ndarray, wire_times: np.ndarray) -> Block:
    """Returns what makes states of a workload's size; completes the root."""
    num_experts = workload.num_experts * program.parts_per_expert
    chunks = chunks_of(workload, program)
    parts, gates = parts_and_gates(workload.num_gpus, chunks, program)
    # Room for the events that one step can add, and some more.
    heap = blank(int(root["heap_margin"][0]) + 1024, records.EVENT)
    heap[0] = (program.pays_ps[0], EV_GATE << 48, NOTHING, 0, 0, 0)
    # Every expert and part has an open tile beside those that its tokens fill.
    num_tiles = workload.num_tokens * workload.layer.top_k // int(root["smallest_tile"][0]) + num_experts
    num_links = workload.num_gpus * costs.planes
    wheel_slots = min(1 << max(6, (WHEEL_SLOTS_PER_LINK * num_links - 1).bit_length()), MOST_WHEEL_SLOTS)
    given = {
        "gpus": gpus_of(workload, chunks, program),
        "sms": blank(workload.num_gpus * sum(program.most_sms), records.SM),
        "matrices": blank(2 * workload.num_experts, records.MATRIX),
        "movers": blank(workload.num_gpus, records.MOVER),
        "uplinks": links_of(workload, costs, records.UPLINK, 1),
        "lanes": blank(2 * num_links, records.LANE),
        "ports": links_of(workload, costs, records.PORT, 2),
        "queues": blank(4 * num_links * (workload.num_gpus + 1), records.QUEUE),
        "tokens": blank(workload.num_tokens + 1, records.TOKEN),
        "sums": blank(workload.num_tokens * costs.combine_segments, records.SUM),
        "experts": blank(num_experts, records.EXPERT),
        "parts": parts,
        "gates": gates,
        "tiles": blank(num_tiles, records.TILE),
        "chunks": chunks,
        "units": units_of(workload, program),
        "order": np.arange(workload.num_tokens, dtype=np.int32),
        "candidates": blank(program.max_candidates, records.CANDIDATE),
        "heap": heap,
        "wheel": blank(wheel_slots, records.FIFO),
    }
    tile_blocks = 2 * workload.num_experts
    sizes = {
        "num_chunks": len(chunks),
        "num_tiles": num_tiles,
        "tile_blocks": tile_blocks,
        "chunk_blocks": tile_blocks + BLOCKS_PER_TILE * num_tiles,
        "wire_entries": len(wire_times),
    }
    room = {
        "heap_capacity": len(heap),
        "pool_capacity": len(heap),
        "marks_capacity": NUM_KINDS * workload.num_gpus,
        "log_capacity": int(root["log_margin"][0]) + 1024 if root["logging"][0] else 0,
        "wheel_slots": wheel_slots,
        "wheel_shift": WHEEL_SPAN_PS.bit_length() - wheel_slots.bit_length(),
    }
    fill(root, sizes | room | {"heap_size": 1, "sequence": 1})
    num_slots = workload.num_tokens * workload.layer.top_k
    return Block(
        given={"root": root, **given},
        nothing={"slot_tlb": num_slots, "slot_tile": num_slots, "arrived_pair": num_slots},
        zeros=_zeros(workload, costs, program, root, len(given["units"])),
        shared=_shared(costs, program, workload.layer.top_k, wire_times),
    )


def _zeros(
    workload: Workload, costs: Costs, program: Program, root: np.ndarray, num_units: int
) -> dict[str, int | tuple[int, ...]]:
    """Returns the lengths of arrays that begin as zeros, and the shapes of those of plain numbers."""
    num_gpus, limit = workload.num_gpus, program.max_candidates
    num_slots = workload.num_tokens * workload.layer.top_k
    num_flows = num_gpus * 2 * NUM_PURPOSES
    size = {name: int(root[name][0]) for name in PARAMETERS}
    return {
        "stores": workload.num_tokens * size["stores_per_token"] * costs.dispatch_segments,
        "blocks": size["chunk_blocks"] + BLOCKS_PER_CHUNK * size["home_chunks"],
        "gpu_experts": workload.num_experts,
        "slot_expert": num_slots,
        "chunk_experts": num_slots,
        "chunk_targets": size["num_chunks"] * num_gpus,
        "unit_targets": num_units * num_gpus,
        "backlogs": num_gpus,
        "shown": workload.num_experts * program.parts_per_expert,
        "traffic": num_flows,
        "payload": num_flows,
        "pool": size["pool_capacity"],
        "slots_filled": size["wheel_slots"] // 64,
        "marks": size["marks_capacity"],
        "scratch": (limit + records.NETWORK_ROWS) * size["network_width"] + NUM_FEATURES,
        "features": (limit, NUM_FEATURES),
        "context": (NUM_CONTEXT,),
        "mask": limit,
        "log": size["log_capacity"],
    }


def _shared(costs: Costs, program: Program, top_k: int, wire_times: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the arrays that nothing changes."""
    named = range(top_k + 1)
    return {
        "wire_times": wire_times,
        "store_flits": np.array([costs.dispatch_flits(targets) for targets in named]),
        "ask_flits": np.array([costs.request_flits(targets) // costs.combine_segments for targets in named]),
        "splits": np.array(list(program.splits), records.SPLIT_ROW),
        "weights": np.ascontiguousarray(program.weights, np.float64),
        "network": program.network.numbers if program.network else np.zeros(0, np.float32),
    }


def _require_narrow(workload: Workload, costs: Costs, program: Program, home_chunks: int) -> None:
    """Checks that what records and events hold as int32 or int16 fits, but for nodes, whose number follows the routing.

    Raises:
        ConfigError: It does not.
    """
    top_k = workload.layer.top_k
    if top_k >= SHORT_LIMIT:
        raise ConfigError(
            f"top_k={top_k} of '{workload.layer.name}' is too much; the engine counts to {SHORT_LIMIT - 1}"
        )
    slots = workload.num_tokens * top_k
    largest = max(
        # A slot may enter the TLB when its token comes and when its sum is asked for.
        2 * slots,
        workload.num_gpus * home_chunks,
        # An event holds a segment's flits, or a row's blocks.
        costs.dispatch_flits(top_k),
        costs.combine_flits(),
        *costs.blocks,
        # Blocks: every expert and part has at least one tile.
        2 * workload.num_experts
        + BLOCKS_PER_TILE * (slots + workload.num_experts * program.parts_per_expert)
        + BLOCKS_PER_CHUNK * home_chunks,
    )
    _require_numbers(largest, workload, costs)


def _require_numbers(largest: int, workload: Workload, costs: Costs) -> None:
    if largest >= NARROW_LIMIT:
        raise ConfigError(
            f"tokens={workload.most_tokens} of '{workload.layer.name}' make {largest} segments, units or flits at"
            f" resolution={costs.resolution}; the engine numbers up to {NARROW_LIMIT - 1}"
        )


def _vectors(workload: Workload, costs: Costs, program: Program) -> tuple[Vectors, Vectors]:
    """Returns the segments of dispatched vectors, and of partial and reduced sums."""
    dispatch_planes, combine_planes = vector_planes(costs, workload.num_tokens)
    packet, named = costs.dispatch_packet, np.arange(workload.layer.top_k + 1)
    heads = packet.header_flits + -(-named * program.dispatch.names_targets // packet.targets_per_flit)
    return (
        Vectors(
            dispatch_planes, costs.dispatch_payload_flits, costs.dispatch_packets // costs.dispatch_segments * heads
        ),
        Vectors(
            combine_planes,
            costs.combine_payload_flits,
            costs.combine_packets // costs.combine_segments * np.full_like(named, costs.combine_packet.header_flits),
        ),
    )


def _wire_times(costs: Costs, *vectors: Vectors) -> np.ndarray:
    """Returns how long a link is busy with any number of flits up to that of the largest segment there can be."""
    most_flits = max(int(some.payload_flits.max() + some.head_flits.max()) for some in vectors)
    return costs.wire_ps(np.arange(min(most_flits, MOST_WIRE_TIMES) + 1))
