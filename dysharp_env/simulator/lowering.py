"""Turns a workload, the costs of a system and a program into the engine's initial state, vectorised."""

from __future__ import annotations

import math

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.simulator import layout
from dysharp_env.simulator.costs import PS_PER_S, Costs
from dysharp_env.simulator.layout import NO_TIME, NOTHING, State
from dysharp_env.simulator.planes import vector_planes
from dysharp_env.simulator.program import NUM_CONTEXT, NUM_FEATURES, Program
from dysharp_env.workload.workload import Workload

# Entries of the table of wire times; more flits are worked out when they are needed.
MOST_WIRE_TIMES = 4096
# The wheel of pending events turns once in this time: a round trip through the switch and a memory access are less.
WHEEL_SPAN_PS = 1 << 21
# About as many events wait for each link, so that a slot mostly holds one or none.
WHEEL_SLOTS_PER_LINK = 128
MOST_WHEEL_SLOTS = 1 << 16


def lower(
    workload: Workload, costs: Costs, program: Program, num_sms: int, scale_ps: int, logging: bool = False
) -> State:
    """Returns the state in which nothing has happened yet.

    Args:
        workload: Routing of one layer.
        costs: Its costs on a system.
        program: How it is run.
        num_sms: SMs of one GPU.
        scale_ps: What times are compared with in features; the workload's lower bound.
        logging: Whether every use of a link, reduction unit and SM group is recorded.

    Raises:
        ConfigError: The workload is too large for exact integer time.
    """
    costs.require_exact(workload)
    num_gpus, tokens_per_gpu = workload.num_gpus, workload.tokens_per_gpu
    num_tokens = num_gpus * tokens_per_gpu
    chunks_per_gpu = -(-tokens_per_gpu // program.chunk_tokens)
    home = np.arange(num_tokens) // tokens_per_gpu
    pairs, slot_expert, pair0 = _pairs(workload, home, program)
    num_pairs = len(pairs)
    pairs["segments_left"] = costs.dispatch_segments
    tokens, stores, sums = _tokens(pairs, pair0, home, program, costs, chunks_per_gpu, tokens_per_gpu)
    _require_narrow(workload, costs, program, num_pairs, chunks_per_gpu)
    nodes = _nodes(pairs, tokens["remote_targets"][:-1], costs, program)
    pairs["part"] = _parts_of_pairs(pairs, tokens, workload, program, chunks_per_gpu)
    slot_expert = slot_expert * program.parts + np.repeat(pairs["part"], pairs["num_experts"])
    experts, tiles = _experts(workload, slot_expert, program)
    gpus = _gpus(workload, pairs, experts, program)
    root = _root(workload, costs, program, num_sms, scale_ps, num_pairs, chunks_per_gpu, logging)
    num_units = num_gpus * chunks_per_gpu * (1 if program.pulls else num_gpus)
    root["num_units"] = num_units
    wire_times = _wire_times(costs, int(nodes["flits"].max()))
    root["wire_entries"] = len(wire_times)
    chunks = _chunks(num_gpus, tokens_per_gpu, program)
    root["num_chunks"] = len(chunks)
    gpus["unsent_head"] = np.arange(num_gpus) * (len(chunks) // num_gpus)
    parts, phases = _parts(num_gpus, experts, chunks, program)

    root["status"] = layout.RUN
    for name in ("pending_kind", "pending_gpu", "choice"):
        root[name] = NOTHING
    for name in ("dispatch", "gemm1", "gemm2", "combine"):
        root[f"{name}_first"] = root[f"{name}_last"] = NO_TIME
    root["tokens_left"] = num_tokens
    num_links = num_gpus * costs.planes
    ports = np.zeros(2 * num_links, layout.PORT)
    for name in ("open_head", "open_tail", "stalled_node"):
        ports[name] = NOTHING
    lanes = np.zeros(2 * num_links, layout.LANE)
    for name in ("head", "tail", "fifo_head", "fifo_tail"):
        lanes[name] = NOTHING
    sms = np.zeros(num_gpus * sum(_most_sms(program)), layout.SM)
    sms["token"] = NOTHING
    units = np.zeros(num_units, layout.UNIT)
    for name in ("head", "tail", "prev", "next"):
        units[name] = NOTHING
    units["part"] = _parts_of_units(num_gpus, chunks_per_gpu, program)
    limit = program.max_candidates
    wheel_slots = min(1 << max(6, (WHEEL_SLOTS_PER_LINK * num_links - 1).bit_length()), MOST_WHEEL_SLOTS)
    root["wheel_slots"] = wheel_slots
    root["wheel_shift"] = WHEEL_SPAN_PS.bit_length() - wheel_slots.bit_length()
    root["pool_free"] = NOTHING
    state = State(
        root=root,
        gpus=gpus,
        sms=sms,
        uplinks=np.zeros(num_links, layout.UPLINK),
        lanes=lanes,
        ports=ports,
        turns=_filled(4 * num_links, layout.TURN),
        tokens=tokens,
        pairs=pairs,
        stores=stores,
        sums=sums,
        nodes=nodes,
        fifo_next=_nothing(len(nodes)),
        experts=experts,
        matrices=np.zeros(workload.layer.experts, layout.MATRICES),
        parts=parts,
        phases=phases,
        tiles=tiles,
        chunks=chunks,
        units=units,
        wire_times=wire_times,
        store_flits=np.array([costs.dispatch_flits(targets) for targets in range(workload.layer.top_k + 1)]),
        ask_flits=np.array(
            [costs.request_flits(targets) // costs.combine_segments for targets in range(workload.layer.top_k + 1)]
        ),
        gpu_experts=np.argsort(workload.gpu_of_expert, kind="stable").astype(np.int32),
        slot_expert=slot_expert.astype(np.int32),
        slot_tlb=_nothing(len(slot_expert)),
        slot_tile=_nothing(len(slot_expert)),
        arrived_pair=_nothing(len(slot_expert)),
        order=np.arange(num_tokens, dtype=np.int32),
        chunk_experts=np.zeros(len(slot_expert), np.int32),
        chunk_targets=np.zeros(len(chunks) * num_gpus, np.bool_),
        unit_targets=np.zeros(num_units * num_gpus, np.bool_),
        backlogs=np.zeros(num_gpus, np.int64),
        expert_shown=np.zeros((len(experts), 2)),
        item_next=_nothing(num_pairs),
        queues=_filled(4 * num_links * (num_gpus + 1), layout.QUEUE),
        traffic=np.zeros(num_gpus * 2 * layout.NUM_PURPOSES, np.int64),
        payload=np.zeros(num_gpus * 2 * layout.NUM_PURPOSES, np.int64),
        heap=_event_rows(root),
        pool=_event_rows(root),
        wheel=_filled(wheel_slots, layout.WHEEL_SLOT),
        slots_filled=np.zeros(wheel_slots // 64, np.int64),
        dirty=np.zeros(3 * num_gpus, np.int64),
        splits=np.array(program.splits, np.int64).reshape(-1, 2),
        weights=np.ascontiguousarray(program.weights, np.float64),
        network=program.network.numbers if program.network else np.zeros(0, np.float32),
        scratch=np.zeros((limit + layout.NETWORK_ROWS, int(root["network_width"][0])), np.float32),
        candidates=np.full(limit, NOTHING),
        keys=np.zeros(limit, np.int64),
        features=np.zeros((limit, NUM_FEATURES), np.float32),
        context=np.zeros(NUM_CONTEXT, np.float32),
        mask=np.zeros(limit, np.bool_),
        log=np.zeros((int(root["log_margin"][0]) + 1024 if logging else 0, len(layout.LOG_FIELDS)), np.int64),
    )
    state.heap.view(layout.EVENT)[0] = (program.pays_ps[0], layout.EV_GATE << 48, NOTHING, 0, NOTHING)
    root["heap_size"] = root["sequence"] = 1
    return layout.bind(state)


def _event_rows(root: np.ndarray) -> np.ndarray:
    """Returns room for the events that one step can add, and some more."""
    return np.zeros((int(root["heap_margin"][0]) + 1024, layout.EVENT.itemsize // 8), np.int64)


def _nothing(count: int) -> np.ndarray:
    """Returns int32 ids that are all NOTHING."""
    return np.full(count, NOTHING, np.int32)


def _filled(count: int, dtype: np.dtype) -> np.ndarray:
    """Returns records whose every field is NOTHING."""
    records = np.zeros(count, dtype)
    for name in dtype.names or ():
        records[name] = NOTHING
    return records


def _require_narrow(workload: Workload, costs: Costs, program: Program, num_pairs: int, chunks_per_gpu: int) -> None:
    """Checks that what records and events hold as int32 fits.

    Raises:
        ConfigError: It does not.
    """
    slots = workload.num_tokens * workload.layer.top_k
    largest = max(
        # Nodes; no other id is larger, but a slot's and a unit's.
        (num_pairs + workload.num_tokens) * (costs.dispatch_segments + costs.combine_segments),
        # A slot may enter the TLB when its token comes and when its sum is asked for.
        2 * slots,
        workload.num_gpus**2 * chunks_per_gpu,
        # An event holds twice a segment's flits, or a row's blocks, and one bit.
        2 * max(costs.dispatch_flits(workload.layer.top_k), costs.combine_flits(), *costs.blocks) + 1,
        # Every expert and part has at least one tile.
        slots + workload.layer.experts * program.parts,
    )
    if largest >= layout.NARROW_LIMIT:
        raise ConfigError(
            f"tokens={workload.tokens_per_gpu} of '{workload.layer.name}' make {largest} segments, units or flits at"
            f" resolution={costs.resolution}; the engine numbers up to {layout.NARROW_LIMIT - 1}"
        )


def _wire_times(costs: Costs, most_flits: int) -> np.ndarray:
    """Returns how long a link is busy with any number of flits up to that of the largest segment."""
    return costs.wire_ps(np.arange(min(most_flits, MOST_WIRE_TIMES) + 1))


def _pairs(workload: Workload, home: np.ndarray, program: Program) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns pair records, the expert of each slot, and each token's first pair (one more entry than tokens)."""
    num_gpus = workload.num_gpus
    ids = np.asarray(workload.topk_ids, np.int64)
    num_tokens, top_k = ids.shape
    # Copies start at the neighbour after the home GPU, so that all GPUs do not address the same one first.
    offset = (np.asarray(workload.gpu_of_expert, np.int64)[ids] - home[:, None]) % num_gpus
    by_gpu = np.argsort(offset * len(workload.gpu_of_expert) + ids, axis=1)
    slot_offset = np.take_along_axis(offset, by_gpu, axis=1)
    slot_expert = np.take_along_axis(ids, by_gpu, axis=1).reshape(-1)
    if program.static:
        counts = (slot_offset[:, :, None] == np.arange(num_gpus)).sum(axis=1)
        num_experts = counts.reshape(-1)
        pairs = np.zeros(num_tokens * num_gpus, layout.PAIR)
        pairs["token"] = np.repeat(np.arange(num_tokens), num_gpus)
        pairs["gpu"] = (home[:, None] + np.arange(num_gpus)).reshape(-1) % num_gpus
        pair0 = np.arange(num_tokens + 1) * num_gpus
    else:
        is_first = np.ones((num_tokens, top_k), bool)
        if not program.copies_per_expert:
            is_first[:, 1:] = slot_offset[:, 1:] != slot_offset[:, :-1]
        first_slot = np.flatnonzero(is_first.reshape(-1))
        num_experts = np.diff(np.append(first_slot, num_tokens * top_k))
        pairs = np.zeros(len(first_slot), layout.PAIR)
        pairs["token"] = first_slot // top_k
        pairs["gpu"] = (slot_offset.reshape(-1)[first_slot] + home[pairs["token"]]) % num_gpus
        pair0 = np.concatenate([[0], np.cumsum(is_first.sum(axis=1))])
    pairs["home"] = home[pairs["token"]]
    pairs["num_experts"] = num_experts
    pairs["slot0"] = np.cumsum(num_experts) - num_experts
    return pairs, np.ascontiguousarray(slot_expert), pair0


def _tokens(
    pairs: np.ndarray,
    pair0: np.ndarray,
    home: np.ndarray,
    program: Program,
    costs: Costs,
    chunks_per_gpu: int,
    tokens_per_gpu: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens (one more, which ends the last one's pairs), and the segments of their stores and sums."""
    num_tokens = len(home)
    tokens = np.zeros(num_tokens + 1, layout.TOKEN)
    tokens["pair0"] = pair0
    remote = (pairs["gpu"] != pairs["home"]) | program.loopback
    used = pairs["num_experts"] > 0
    stored = remote & (used | (program.dispatch_primitive == layout.BROADCAST))
    summed = remote & (used | (program.combine_primitive == layout.REDUCE_SCATTER))

    def per_token(weights: np.ndarray) -> np.ndarray:
        return np.bincount(pairs["token"], weights=weights, minlength=num_tokens).astype(np.int64)

    tokens["remote_targets"][:-1] = per_token(remote * pairs["num_experts"])
    tokens["sums_left"][:-1] = costs.combine_segments
    tokens["chunk"][:-1] = home * chunks_per_gpu + np.arange(num_tokens) % tokens_per_gpu // program.chunk_tokens
    for name in ("dispatch_start", "dispatch_end", "combine_start", "combine_end"):
        tokens[name] = NOTHING
    stores = np.zeros(num_tokens * costs.dispatch_segments, layout.STORE)
    stores["acks_left"] = stores["replicas_left"] = np.repeat(per_token(stored), costs.dispatch_segments)
    sums = np.zeros(num_tokens * costs.combine_segments, layout.SUM)
    sums["contributions_left"] = np.repeat(per_token(summed), costs.combine_segments)
    # A pull adds the local partial sum while it waits; a push counts it like the others.
    sums["pieces_left"] = np.repeat(per_token(summed if program.pulls else used), costs.combine_segments)
    for name in ("open_prev", "open_next", "open_pair"):
        sums[name] = NOTHING
    return tokens, stores, sums


def _nodes(pairs: np.ndarray, remote_targets: np.ndarray, costs: Costs, program: Program) -> np.ndarray:
    """Returns every segment there can be: copies, partial sums, multicast stores, reduced sums."""
    is_named = program.dispatch_primitive == layout.MULTICAST
    dispatch_planes, combine_planes = vector_planes(costs, len(remote_targets))
    dispatch, combine = costs.dispatch_payload_flits, costs.combine_payload_flits
    no_targets = np.zeros(1, np.int64)
    parts = [
        _vectors(
            dispatch_planes[pairs["token"]], dispatch, pairs["num_experts"] * is_named, costs.dispatch_packets, costs
        ),
        _vectors(combine_planes[pairs["token"]], combine, no_targets, costs.combine_packets, costs),
        _vectors(dispatch_planes, dispatch, remote_targets * is_named, costs.dispatch_packets, costs),
        _vectors(combine_planes, combine, no_targets, costs.combine_packets, costs),
    ]
    return np.concatenate([part.reshape(-1) for part in parts])


def _vectors(
    planes: np.ndarray, payload_flits: np.ndarray, targets: np.ndarray, packets: int, costs: Costs
) -> np.ndarray:
    """Returns the (vector, segment) nodes of vectors that name ``targets`` experts in each packet."""
    nodes = np.zeros(planes.shape, layout.NODE)
    nodes["owner"] = np.arange(len(planes))[:, None]
    nodes["plane"] = planes
    nodes["payload_flits"] = payload_flits
    target_flits = -(-targets // costs.packet.targets_per_flit)
    heads = packets // len(payload_flits) * (costs.packet.header_flits + target_flits)
    nodes["flits"] = payload_flits + heads[:, None]
    return nodes


def _experts(workload: Workload, slot_expert: np.ndarray, program: Program) -> tuple[np.ndarray, np.ndarray]:
    num_experts = len(workload.gpu_of_expert) * program.parts
    total = np.bincount(slot_expert, minlength=num_experts)
    smallest = workload.layer.tile_tokens
    if program.allow_partial:
        smallest = min(smallest, program.min_partial_tokens)
    num_tiles = total // smallest + 1
    experts = np.zeros(num_experts, layout.EXPERT)
    experts["number"], experts["part"] = np.divmod(np.arange(num_experts), program.parts)
    experts["gpu"] = workload.gpu_of_expert[experts["number"]]
    experts["total"] = total
    experts["slot0"] = np.cumsum(total) - total
    experts["tile0"] = np.cumsum(num_tiles) - num_tiles
    experts["row2_head"] = experts["row2_tail"] = NOTHING
    tiles = np.zeros(int(num_tiles.sum()), layout.TILE)
    for name in ("next", "start1", "end1", "start2", "end2"):
        tiles[name] = NOTHING
    return experts, tiles


def _parts_of_pairs(
    pairs: np.ndarray, tokens: np.ndarray, workload: Workload, program: Program, chunks_per_gpu: int
) -> np.ndarray:
    """Returns the part of each pair: its token's share of its home GPU's chunks, or the expert GPU's share of peers."""
    if program.by_peers:
        return (pairs["gpu"] - pairs["home"]) % workload.num_gpus * program.parts // workload.num_gpus
    return tokens["chunk"].astype(np.int64)[pairs["token"]] % chunks_per_gpu * program.parts // chunks_per_gpu


def _parts_of_units(num_gpus: int, chunks_per_gpu: int, program: Program) -> np.ndarray:
    """Returns the part of each unit, as ``_parts_of_pairs`` of the pairs that its tokens or partial sums belong to."""
    if not program.by_peers:
        places = np.arange(chunks_per_gpu) * program.parts // chunks_per_gpu
        return np.tile(places, num_gpus * (1 if program.pulls else num_gpus))
    gpu, home = np.divmod(np.arange(num_gpus * num_gpus), num_gpus)
    return np.repeat((gpu - home) % num_gpus * program.parts // num_gpus, chunks_per_gpu)


def _parts(num_gpus: int, experts: np.ndarray, chunks: np.ndarray, program: Program) -> tuple[np.ndarray, np.ndarray]:
    """Returns what each part has before it on each GPU, and on all of them."""
    parts = np.zeros(num_gpus * program.parts, layout.PART)
    place = experts["gpu"] * program.parts + experts["part"]
    for name in ("arrivals_left", "slots1_left", "slots2_left"):
        parts[name] = np.bincount(place, weights=experts["total"], minlength=len(parts)).astype(np.int64)
    owner = np.arange(len(chunks)) // (len(chunks) // num_gpus)
    place = owner * program.parts + chunks["part"]
    sizes = chunks["last"] - chunks["first"]
    parts["sends_left"] = np.bincount(place, weights=sizes, minlength=len(parts)).astype(np.int64)
    for stage, gate in enumerate(program.gates, start=1):
        parts[f"gate{stage}_open"] = gate == layout.GATE_FINE
    phases = np.zeros(program.parts, layout.PHASE)
    for name in ("arrivals_left", "slots2_left"):
        phases[name] = parts[name].reshape(num_gpus, program.parts).sum(axis=0)
    return parts, phases


def _gpus(workload: Workload, pairs: np.ndarray, experts: np.ndarray, program: Program) -> np.ndarray:
    num_gpus = workload.num_gpus
    gpus = np.zeros(num_gpus, layout.GPU)
    for name in ("chunk", "row_tile", "ready_head", "ready_tail", "issue_head", "issue_tail"):
        gpus[name] = NOTHING
    for name in ("send_head", "send_tail", "take_head", "take_tail"):
        gpus[name] = NOTHING
    slots = np.bincount(experts["gpu"], weights=experts["total"], minlength=num_gpus).astype(np.int64)
    for name in ("slots", "arrivals_left", "slots1_left", "slots2_left"):
        gpus[name] = slots
    gpus["free_sms"] = program.gemm_sms
    if program.pulls:
        gpus["items_waiting"] = workload.tokens_per_gpu
    else:
        pushed = (pairs["gpu"] != pairs["home"]) & (pairs["num_experts"] > 0)
        gpus["items_waiting"] = np.bincount(pairs["gpu"][pushed], minlength=num_gpus)
    return gpus


def _chunks(num_gpus: int, tokens_per_gpu: int, program: Program) -> np.ndarray:
    """Returns the chunks that each GPU dispatches, in natural order.

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
    most_dispatch = max([program.dispatch_sms, *(dispatch for dispatch, _ in program.splits)])
    most_combine = max([program.combine_sms, *(combine for _, combine in program.splits)])
    return most_dispatch, most_combine


def _root(
    workload: Workload,
    costs: Costs,
    program: Program,
    num_sms: int,
    scale_ps: int,
    num_pairs: int,
    chunks_per_gpu: int,
    logging: bool,
) -> np.ndarray:
    layer, num_gpus, tokens_per_gpu = workload.layer, workload.num_gpus, workload.tokens_per_gpu
    ps_mult, ps_div = costs.flit_ps
    num_tokens, num_links = num_gpus * tokens_per_gpu, num_gpus * costs.planes
    dispatch_segments, combine_segments = costs.dispatch_segments, costs.combine_segments
    partial0 = num_pairs * dispatch_segments
    store0 = partial0 + num_pairs * combine_segments
    sum0 = store0 + num_tokens * dispatch_segments
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
        "num_pairs": num_pairs,
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
        "dispatch_packets": costs.dispatch_packets,
        "combine_packets": costs.combine_packets,
        "sum_flits": costs.combine_flits(),
        "dispatch_segments": dispatch_segments,
        "combine_segments": combine_segments,
        "dispatch_segment_packets": costs.dispatch_packets // dispatch_segments,
        "combine_segment_packets": costs.combine_packets // combine_segments,
        "partial0": partial0,
        "store0": store0,
        "sum0": sum0,
        "num_nodes": sum0 + num_tokens * combine_segments,
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
        "dispatch_ask_flits": costs.packet.ask_flits(costs.dispatch_bytes) // dispatch_segments,
        "gate1": program.gates[0],
        "gate2": program.gates[1],
        "gate3": program.gates[2],
        "pay1_ps": program.pays_ps[1],
        "pay2_ps": program.pays_ps[2],
        "pay3_ps": program.pays_ps[3],
        "notify": program.notifies,
        "tile_tokens": layer.tile_tokens,
        "min_partial": program.min_partial_tokens,
        "allow_partial": program.allow_partial,
        "hold_gemm": program.hold_gemm,
        "hold_combine": program.hold_combine,
        "exposed": sum(1 << kind for kind in program.exposed),
        "max_candidates": program.max_candidates,
        "num_splits": len(program.splits),
        "ruled": ruled,
        "looks": looks,
        "networked": sum(1 << kind for kind in program.networked),
        "network_width": program.network.width if program.network else 0,
        "scale_ps": max(1, scale_ps),
        # The most events one step can add: a GPU's local copies and the stores it may have in flight; all the sums it
        # may have in flight, requested from every GPU or sent; or the tokens of one tile becoming ready; and a few for
        # whatever wakes.
        "heap_margin": max(
            tokens_per_gpu * (layer.top_k if program.copies_per_expert else 1) + 2 * dispatch_burst * dispatch_segments,
            combine_burst * max(num_gpus, layer.top_k, 2 * combine_segments),
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
    return root
