"""Turns a workload, the costs of a system and a program into the engine's initial state."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.simulator import layout
from dysharp_env.simulator.block import Block
from dysharp_env.simulator.costs import PS_PER_S, Bound, Costs
from dysharp_env.simulator.layout import NO_TIME, NOTHING, State
from dysharp_env.simulator.ordering import token_order
from dysharp_env.simulator.planes import vector_planes
from dysharp_env.simulator.program import NUM_CONTEXT, NUM_FEATURES, Program
from dysharp_env.simulator.routed import Paths, Routed, Vectors, follow_routing
from dysharp_env.workload.layer import LayerSpec
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

    layer: LayerSpec
    num_gpus: int
    tokens_per_gpu: int
    block: Block
    paths: Paths
    dispatch: Vectors
    combine: Vectors


class Lowering:
    """Lowers workloads that run by one program at one set of costs; what they share is worked out once."""

    def __init__(self, costs: Costs, program: Program, num_sms: int, logging: bool = False):
        """Notes how layers are run.

        Args:
            costs: Of the workloads' layer on a system.
            program: How it is run.
            num_sms: SMs of one GPU.
            logging: Whether every use of a link, reduction unit and SM group is recorded.
        """
        self.costs, self.program = costs, program
        self._num_sms, self._logging = num_sms, logging
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
        frame, costs = self._frame(workload), self.costs
        num_tokens, num_pairs = workload.num_tokens, _num_pairs(workload, self.program)
        partial0 = num_pairs * costs.dispatch_segments
        store0 = partial0 + num_pairs * costs.combine_segments
        sum0 = store0 + num_tokens * costs.dispatch_segments
        num_nodes = sum0 + num_tokens * costs.combine_segments
        # No other id is larger, but those that _require_narrow knows.
        _require_numbers(num_nodes, workload, costs)
        # What is dispatched and combined: copies or stores, and partial sums or sums.
        stores_once, asks_for_sums = self.program.stores_once, self.program.asks_for_sums
        trip0 = (store0 if asks_for_sums else partial0) if stores_once else 0
        trips_end = num_nodes if asks_for_sums else (sum0 if stores_once else store0)
        state = frame.block.build(
            num_pairs,
            num_nodes,
            num_trips=trips_end - trip0,
            num_links=num_pairs if costs.resolution == "chunk" else 0,
            num_fifo_links=num_nodes if costs.queueing == "input_fifo" else 0,
        )
        root = state.root
        root["partial0"], root["store0"], root["sum0"], root["trip0"] = partial0, store0, sum0, trip0
        root["scale_ps"] = max(1, bound.total_ps)
        root["links_ps"], root["gemms_ps"], root["hbm_ps"] = bound.links_ps, bound.gemms_ps, bound.hbm_ps
        routed = Routed(*(getattr(state, name) for name in Routed._fields))
        ids, placement = workload.topk_ids, workload.gpu_of_expert
        follow_routing(
            ids, placement, self._positions(workload, state), frame.paths, frame.dispatch, frame.combine, routed
        )
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
        size = (workload.layer, workload.num_gpus, workload.tokens_per_gpu)
        if self._last is None or self._last[:3] != size:
            self._last = self._build_frame(workload)
        return self._last

    def _build_frame(self, workload: Workload) -> _Frame:
        costs, program, layer = self.costs, self.program, workload.layer
        num_gpus, tokens_per_gpu = workload.num_gpus, workload.tokens_per_gpu
        costs.require_exact(workload)
        chunks_per_gpu = -(-tokens_per_gpu // program.chunk_tokens)
        _require_narrow(workload, costs, program, chunks_per_gpu)
        dispatch, combine = _vectors(workload, costs, program)
        smallest_tile = min(
            layer.tile_tokens,
            program.min_partial_tokens if program.allow_partial else layer.tile_tokens,
            *(early for _, _, early in program.splits),
        )
        paths = Paths(
            num_gpus,
            tokens_per_gpu,
            program.chunk_tokens,
            chunks_per_gpu,
            program.parts,
            program.by_peers,
            program.static,
            program.copies_per_expert,
            program.loopback,
            program.dispatch_primitive == layout.BROADCAST,
            program.combine_primitive == layout.REDUCE_SCATTER,
            program.pulls,
            smallest_tile,
        )
        root = _root(workload, costs, program, self._num_sms, chunks_per_gpu, self._logging)
        block = _block(
            workload, costs, program, root, _wire_times(costs, dispatch, combine), smallest_tile, self._logging
        )
        return _Frame(layer, num_gpus, tokens_per_gpu, block, paths, dispatch, combine)


def _num_pairs(workload: Workload, program: Program) -> int:
    """Returns how many (token, expert GPU), or (token, expert), there are records for."""
    if program.static:
        return workload.num_tokens * workload.num_gpus
    if program.copies_per_expert:
        return workload.num_tokens * workload.layer.top_k
    return workload.demand.num_pairs


def _block(
    workload: Workload,
    costs: Costs,
    program: Program,
    root: np.ndarray,
    wire_times: np.ndarray,
    smallest_tile: int,
    logging: bool,
) -> Block:
    """Returns what makes states of a workload's size; completes the root."""
    num_gpus, tokens_per_gpu, num_tokens = workload.num_gpus, workload.tokens_per_gpu, workload.num_tokens
    top_k, num_slots = workload.layer.top_k, num_tokens * workload.layer.top_k
    num_experts, num_links = workload.layer.experts, num_gpus * costs.planes
    chunks, units = _chunks(num_gpus, tokens_per_gpu, program), _units(workload, program)
    limit, width = program.max_candidates, int(root["network_width"][0])
    matches = limit * (width + 1) if root["network_attends"][0] else 0
    # Room for the events that one step can add, and some more.
    events = (int(root["heap_margin"][0]) + 1024, layout.EVENT.itemsize // 8)
    heap = np.zeros(events, np.int64)
    heap.view(layout.EVENT)[0] = (program.pays_ps[0], layout.EV_GATE << 48, NOTHING, 0, NOTHING)
    wheel_slots = min(1 << max(6, (WHEEL_SLOTS_PER_LINK * num_links - 1).bit_length()), MOST_WHEEL_SLOTS)
    # Every expert and part has an open tile beside those that its tokens fill.
    num_tiles = num_slots // smallest_tile + num_experts * program.parts
    num_bundles = 2 * num_gpus * (num_gpus + 1) if costs.resolution == "chunk" else 0
    log_rows = int(root["log_margin"][0]) + 1024 if logging else 0
    root["wire_entries"], root["num_chunks"] = len(wire_times), len(chunks)
    root["num_tiles"], root["heap_capacity"], root["log_capacity"] = num_tiles, len(heap), log_rows
    root["pool_capacity"], root["dirty_capacity"] = len(heap), 4 * num_gpus
    root["wheel_slots"] = wheel_slots
    root["wheel_shift"] = WHEEL_SPAN_PS.bit_length() - wheel_slots.bit_length()
    root["pool_free"] = NOTHING
    int32, int64, float32, flag = (np.dtype(kind) for kind in (np.int32, np.int64, np.float32, np.bool_))
    return Block(
        given={
            "root": root,
            "gpus": _gpus(workload, len(chunks) // num_gpus, program),
            "sms": _blank(num_gpus * sum(_most_sms(program)), layout.SM, "token"),
            "lanes": _blank(2 * num_links, layout.LANE, "head tail fifo_head fifo_tail"),
            "ports": _blank(2 * num_links, layout.PORT, "open_head open_tail stalled_node"),
            "turns": _blank(4 * num_links, layout.TURN, "head tail"),
            "queues": _blank(4 * num_links * (num_gpus + 1), layout.QUEUE, "head tail next"),
            "experts": _blank(num_experts * program.parts, layout.EXPERT, "row2_head row2_tail"),
            "parts": _parts(num_gpus, chunks, program),
            "chunks": chunks,
            "units": units,
            "order": np.arange(num_tokens, dtype=np.int32),
            "candidates": np.full(limit, NOTHING),
            "heap": heap,
            "bundles": _blank(num_bundles, layout.BUNDLE, "head tail"),
            "wheel": _blank(wheel_slots, layout.WHEEL_SLOT, "head tail"),
        },
        nothing={"slot_tlb": num_slots, "slot_tile": num_slots, "arrived_pair": num_slots},
        zeros={
            "uplinks": ((num_links,), layout.UPLINK),
            "tokens": ((num_tokens + 1,), layout.TOKEN),
            "stores": ((num_tokens * costs.dispatch_segments,), layout.STORE),
            "sums": ((num_tokens * costs.combine_segments,), layout.SUM),
            "matrices": ((num_experts,), layout.MATRICES),
            "phases": ((program.parts,), layout.PHASE),
            "tiles": ((num_tiles,), layout.TILE),
            "gpu_experts": ((num_experts,), int32),
            "slot_expert": ((num_slots,), int32),
            "chunk_experts": ((num_slots,), int32),
            "chunk_targets": ((len(chunks) * num_gpus,), flag),
            "unit_targets": ((len(units) * num_gpus,), flag),
            "backlogs": ((num_gpus,), int64),
            "expert_shown": ((num_experts * program.parts, 2), np.dtype(np.float64)),
            "traffic": ((num_gpus * 2 * layout.NUM_PURPOSES,), int64),
            "payload": ((num_gpus * 2 * layout.NUM_PURPOSES,), int64),
            "pool": (events, int64),
            "slots_filled": ((wheel_slots // 64,), int64),
            "dirty": ((4 * num_gpus,), int64),
            "scratch": (((limit + layout.NETWORK_ROWS) * width + NUM_FEATURES + matches,), float32),
            "keys": ((limit,), int64),
            "features": ((limit, NUM_FEATURES), float32),
            "context": ((NUM_CONTEXT,), float32),
            "mask": ((limit,), flag),
            "log": ((log_rows, len(layout.LOG_FIELDS)), int64),
        },
        shared={
            "wire_times": wire_times,
            "store_flits": np.array([costs.dispatch_flits(targets) for targets in range(top_k + 1)]),
            "ask_flits": np.array(
                [costs.request_flits(targets) // costs.combine_segments for targets in range(top_k + 1)]
            ),
            "splits": np.array(program.splits, np.int64).reshape(-1, 3),
            "weights": np.ascontiguousarray(program.weights, np.float64),
            "network": program.network.numbers if program.network else np.zeros(0, np.float32),
        },
    )


def _blank(count: int, dtype: np.dtype, nothing: str) -> np.ndarray:
    """Returns records of zeros, NOTHING in the fields whose names ``nothing`` holds."""
    records = np.zeros(count, dtype)
    for name in nothing.split():
        records[name] = NOTHING
    return records


def _require_narrow(workload: Workload, costs: Costs, program: Program, chunks_per_gpu: int) -> None:
    """Checks that what records and events hold as int32 fits, but for nodes, whose number follows the routing.

    Raises:
        ConfigError: It does not.
    """
    top_k = workload.layer.top_k
    slots = workload.num_tokens * top_k
    # A segment may be a bundle of a chunk's copies, several for each token where every expert gets its own.
    vectors = program.chunk_tokens * top_k if costs.resolution == "chunk" else 1
    largest = max(
        # A slot may enter the TLB when its token comes and when its sum is asked for.
        2 * slots,
        workload.num_gpus**2 * chunks_per_gpu,
        # An event holds twice a segment's flits, or a row's blocks, and one bit.
        2 * max(vectors * max(costs.dispatch_flits(top_k), costs.combine_flits()), *costs.blocks) + 1,
        # Every expert and part has at least one tile.
        slots + workload.layer.experts * program.parts,
    )
    _require_numbers(largest, workload, costs)


def _require_numbers(largest: int, workload: Workload, costs: Costs) -> None:
    if largest >= layout.NARROW_LIMIT:
        raise ConfigError(
            f"tokens={workload.tokens_per_gpu} of '{workload.layer.name}' make {largest} segments, units or flits at"
            f" resolution={costs.resolution}; the engine numbers up to {layout.NARROW_LIMIT - 1}"
        )


def _vectors(workload: Workload, costs: Costs, program: Program) -> tuple[Vectors, Vectors]:
    """Returns the segments of dispatched vectors, and of partial and reduced sums."""
    is_named = program.dispatch_primitive == layout.MULTICAST
    dispatch_planes, combine_planes = vector_planes(costs, workload.num_tokens)
    packet, named = costs.packet, np.arange(workload.layer.top_k + 1)
    heads = packet.header_flits + -(-named * is_named // packet.targets_per_flit)
    return (
        Vectors(
            dispatch_planes, costs.dispatch_payload_flits, costs.dispatch_packets // costs.dispatch_segments * heads
        ),
        Vectors(
            combine_planes,
            costs.combine_payload_flits,
            costs.combine_packets // costs.combine_segments * np.full_like(named, packet.header_flits),
        ),
    )


def _wire_times(costs: Costs, *vectors: Vectors) -> np.ndarray:
    """Returns how long a link is busy with any number of flits up to that of the largest segment there can be."""
    most_flits = max(int(some.payload_flits.max() + some.head_flits.max()) for some in vectors)
    return costs.wire_ps(np.arange(min(most_flits, MOST_WIRE_TIMES) + 1))


def _units(workload: Workload, program: Program) -> np.ndarray:
    """Returns the units; the part of each is that of the pairs that its tokens or partial sums belong to."""
    num_gpus, chunks_per_gpu = workload.num_gpus, -(-workload.tokens_per_gpu // program.chunk_tokens)
    units = _blank(num_gpus * chunks_per_gpu * (1 if program.pulls else num_gpus), layout.UNIT, "head tail prev next")
    if program.by_peers:
        gpu, home = np.divmod(np.arange(num_gpus * num_gpus), num_gpus)
        units["part"] = np.repeat((gpu - home) % num_gpus * program.parts // num_gpus, chunks_per_gpu)
    else:
        places = np.arange(chunks_per_gpu) * program.parts // chunks_per_gpu
        units["part"] = np.tile(places, len(units) // chunks_per_gpu)
    return units


def _parts(num_gpus: int, chunks: np.ndarray, program: Program) -> np.ndarray:
    """Returns what each part has to send from each GPU, and which of its stages may run."""
    parts = np.zeros(num_gpus * program.parts, layout.PART)
    owner = np.arange(len(chunks)) // (len(chunks) // num_gpus)
    place = owner * program.parts + chunks["part"]
    sizes = chunks["last"] - chunks["first"]
    parts["sends_left"] = np.bincount(place, weights=sizes, minlength=len(parts)).astype(np.int64)
    for stage, gate in enumerate(program.gates, start=1):
        parts[f"gate{stage}_open"] = gate == layout.GATE_FINE
    return parts


def _gpus(workload: Workload, chunks_of_each: int, program: Program) -> np.ndarray:
    """Returns the GPUs before any work is counted."""
    gpus = _blank(
        workload.num_gpus,
        layout.GPU,
        "chunk row_tile ready_head ready_tail issue_head issue_tail send_head send_tail take_head take_tail",
    )
    gpus["gemm_sms"] = gpus["free_sms"] = program.gemm_sms
    gpus["dispatch_sms"], gpus["combine_sms"] = program.dispatch_sms, program.combine_sms
    gpus["min_partial"] = program.min_partial_tokens
    gpus["split"] = NOTHING
    gpus["take_offset"] = workload.num_gpus  # nothing is left to be read
    gpus["items_waiting"] = workload.tokens_per_gpu if program.pulls else 0
    gpus["unsent_head"] = np.arange(workload.num_gpus) * chunks_of_each
    return gpus


def _chunks(num_gpus: int, tokens_per_gpu: int, program: Program) -> np.ndarray:
    """Returns the chunks that each GPU dispatches, in the order of its tokens.

    A GPU that stores has its own tokens' chunks. One that reads has every GPU's, itself first and then its neighbours
    round, a chunk of each in turn, so that readers do not meet at one home GPU. Where parts are of peers, every part
    goes through all chunks.
    """
    chunk_tokens = program.chunk_tokens
    places = -(-tokens_per_gpu // chunk_tokens)
    homes = num_gpus if program.reads_tokens else 1
    rounds = program.parts if program.by_peers else 1
    per_gpu = places * homes * rounds
    chunks = np.zeros(num_gpus * per_gpu, layout.CHUNK)
    index = np.arange(num_gpus * per_gpu)
    turn = index % per_gpu
    place = turn // homes % places
    chunks["part"] = turn // places if program.by_peers else place * program.parts // places
    base = (index // per_gpu + turn % homes) % num_gpus * tokens_per_gpu
    chunks["first"] = base + place * chunk_tokens
    chunks["last"] = base + np.minimum((place + 1) * chunk_tokens, tokens_per_gpu)
    chunks["prev"] = np.where(turn == 0, NOTHING, index - 1)
    chunks["next"] = np.where(turn == per_gpu - 1, NOTHING, index + 1)
    return chunks


def _most_sms(program: Program) -> tuple[int, int]:
    """Returns the most SMs that dispatch and that combine on one GPU, under any split."""
    most_dispatch = max([program.dispatch_sms, *(dispatch for dispatch, _, _ in program.splits)])
    most_combine = max([program.combine_sms, *(combine for _, combine, _ in program.splits)])
    return most_dispatch, most_combine


def _root(
    workload: Workload,
    costs: Costs,
    program: Program,
    num_sms: int,
    chunks_per_gpu: int,
    logging: bool,
) -> np.ndarray:
    """Returns the root at time zero, without what follows the routing."""
    layer, num_gpus, tokens_per_gpu = workload.layer, workload.num_gpus, workload.tokens_per_gpu
    ps_mult, ps_div = costs.flit_ps
    num_tokens, num_links = num_gpus * tokens_per_gpu, num_gpus * costs.planes
    dispatch_segments, combine_segments = costs.dispatch_segments, costs.combine_segments
    hbm_shared = math.gcd(PS_PER_S, costs.hbm_bytes_per_s)
    dispatch = costs.dispatch_window(layout.DISPATCH_PRIMITIVES[program.dispatch_primitive])
    combine = costs.combine_window(layout.COMBINE_PRIMITIVES[program.combine_primitive])
    # The most vectors one group may put in flight at once, under the most generous split.
    most_dispatch, most_combine = _most_sms(program)
    copies = tokens_per_gpu * max(num_gpus, layer.top_k)
    dispatch_burst = min(copies, most_dispatch * dispatch.slots)
    combine_burst = min(copies, most_combine * combine.slots)
    ruled = sum(1 << kind for kind in range(4) if program.weights[kind].any())
    looks = sum(1 << kind for kind in range(4) if program.weights[kind, list(layout.LOOKED_UP)].any())
    values = {
        "num_gpus": num_gpus,
        "num_tokens": num_tokens,
        "tokens_per_gpu": tokens_per_gpu,
        "top_k": layer.top_k,
        "num_experts": layer.experts,
        "experts_per_gpu": layer.experts // num_gpus,
        "chunk_tokens": program.chunk_tokens,
        "chunks_per_gpu": chunks_per_gpu,
        "ps_mult": ps_mult,
        "ps_div": ps_div,
        "quantum_ps": costs.quantum_ps,
        "hop_ps": costs.hop_ps,
        "store_and_forward": costs.store_and_forward,
        "planes": costs.planes,
        "num_links": num_links,
        "sum_flits": costs.combine_flits(),
        "dispatch_segments": dispatch_segments,
        "combine_segments": combine_segments,
        "dispatch_segment_packets": costs.dispatch_packets // dispatch_segments,
        "combine_segment_packets": costs.combine_packets // combine_segments,
        "ack_flits": costs.packet.ack_flits,
        "credit_flits": costs.credit_flits,
        "queueing": layout.QUEUEING.index(costs.queueing),
        "reduction_slots": costs.reduction_slots,
        "reduction_ppm": costs.reduction_ppm,
        "cycle_ps": costs.cycle_ps,
        "memory_ps": costs.memory_ps,
        "dispatch_slots": dispatch.slots,
        "combine_slots": combine.slots,
        "dispatch_hold": dispatch.hold_permille,
        "combine_hold": combine.hold_permille,
        "most_dispatch_sms": most_dispatch,
        "most_combine_sms": most_combine,
        "total_sms": num_sms,
        "gemm_sms": program.gemm_sms,
        "dispatch_sms": program.dispatch_sms,
        "combine_sms": program.combine_sms,
        "blocks1": costs.blocks[0],
        "blocks2": costs.blocks[1],
        "granule1_ps": costs.granule_ps[0],
        "granule2_ps": costs.granule_ps[1],
        "block_ps": costs.block_overhead_ps,
        "slow_permille": costs.slow_permille,
        "cold_exposure": costs.cold_exposure_permille,
        "row_granularity": costs.row_granularity,
        "hbm_mult": PS_PER_S // hbm_shared,
        "hbm_div": costs.hbm_bytes_per_s // hbm_shared,
        "l2_bytes": costs.l2_bytes,
        "matrix1_bytes": costs.matrix_bytes[0],
        "matrix2_bytes": costs.matrix_bytes[1],
        "weight1_bytes": costs.weight_bytes[0],
        "weight2_bytes": costs.weight_bytes[1],
        "token_in_bytes": costs.token_bytes[0],
        "token_mid_bytes": costs.token_bytes[1],
        "token_mid_in_bytes": costs.token_bytes[2],
        "token_out_bytes": costs.token_bytes[3],
        "al_entries": costs.al_tlb_entries,
        "ts_entries": costs.tile_status_entries,
        "or_entries": costs.output_readiness_entries,
        "dispatch_primitive": program.dispatch_primitive,
        "combine_primitive": program.combine_primitive,
        "loopback": program.loopback,
        "sends_per_gpu": tokens_per_gpu
        * (num_gpus if program.reads_tokens else 1)
        * (program.parts if program.by_peers else 1),
        "num_parts": program.parts,
        "by_peers": program.by_peers,
        "exclusive": program.exclusive,
        "pay_end_ps": program.pay_end_ps,
        "by_chunk": costs.resolution == "chunk",
        "dispatch_vector_flits": costs.packet.payload_flits(costs.dispatch_bytes),
        "combine_vector_flits": costs.packet.payload_flits(costs.combine_bytes),
        "dispatch_ask_flits": costs.packet.ask_flits(costs.dispatch_bytes) // dispatch_segments,
        "gate1": program.gates[0],
        "gate2": program.gates[1],
        "gate3": program.gates[2],
        "pay1_ps": program.pays_ps[1],
        "pay2_ps": program.pays_ps[2],
        "pay3_ps": program.pays_ps[3],
        "notify": program.notifies,
        "tile_tokens": layer.tile_tokens,
        "allow_partial": program.allow_partial or any(early < layer.tile_tokens for _, _, early in program.splits),
        "hold_gemm": program.hold_gemm,
        "hold_combine": program.hold_combine,
        "exposed": sum(1 << kind for kind in program.exposed),
        "max_candidates": program.max_candidates,
        "num_splits": len(program.splits),
        "split_moments": program.split_moments,
        "ruled": ruled,
        "looks": looks,
        "networked": sum(1 << kind for kind in program.networked),
        "network_width": program.network.width if program.network else 0,
        "network_attends": program.network is not None and program.network.attends,
        # The most events one step can add: a GPU's local copies and the stores it may have in flight; all the sums it
        # may have in flight, requested from every GPU or sent; or the tokens of one tile becoming ready; and a few for
        # whatever wakes.
        "heap_margin": max(
            tokens_per_gpu * (layer.top_k if program.copies_per_expert else 1) + 2 * dispatch_burst * dispatch_segments,
            (combine_burst + 1) * max(num_gpus, layer.top_k, 2 * combine_segments),
            layer.tile_tokens,
        )
        + 4 * num_links
        + 2 * layer.top_k
        + num_sms
        + 64,
        "log_margin": 2 * (dispatch_burst * dispatch_segments + combine_burst * combine_segments)
        + 4 * num_links
        + num_sms
        + 64,
        "logging": logging,
    }
    root = np.zeros(1, layout.ROOT)
    for name, value in values.items():
        root[name] = value
    root["status"] = layout.RUN
    for name in ("pending_kind", "pending_gpu", "choice"):
        root[name] = NOTHING
    for name in ("dispatch", "gemm1", "gemm2", "combine"):
        root[f"{name}_first"] = root[f"{name}_last"] = NO_TIME
    root["tokens_left"] = num_tokens
    root["heap_size"] = root["sequence"] = 1
    return root
