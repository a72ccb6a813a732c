"""What the compiled engine remembers: record types, the state that holds them, and the names of codes.

All times are int64 picoseconds. Ids, counts and flits of what there is much of are int32, which lowering checks to be
enough, and come out as int64 in compiled code (rows.py). Arrays are flat and preallocated (event heap and log grow
between calls), so the compiled code has one type signature for every workload.

Ids used throughout:
    token  global token, home GPU = token // tokens_per_gpu
    pair   one (token, expert GPU), or one (token, expert) where each expert gets its own copy; a token's pairs are
           consecutive, in order of (expert GPU - home GPU) mod GPUs
    slot   one (token, expert), grouped by pair
    part   a share of each stage with gates of its own: of every home GPU's tokens, or of every expert GPU's peers
    expert where there are parts, one (expert, part) = expert * parts + part: a part's tokens fill tiles of their own
    segment  place of a segment in its vector: always 0 at token resolution, the packet's number at packet resolution
    node   a segment in a link or switch queue; S of a dispatched vector and C of a sum, P pairs, T tokens:
           [0, partial0) copies, pair * S + segment; from partial0 partial sums, pair * C + segment;
           from store0 multicast stores, token * S + segment; from sum0 reduced sums, token * C + segment
    link   gpu * planes + plane
    unit   what a combine decision takes: a token chunk at its home GPU (pull), a GPU's partial sums of a chunk (push)
    port   [0, links) downlinks, [links, 2 links) the reduction units in front of them
    sm     a communication SM; a GPU's are consecutive, those that dispatch before those that combine
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

# Event kinds, in the order in which equal times are served: what frees a resource comes before what asks for it.
(
    EV_CREDIT,  # input buffer space comes back to an uplink: link, flits * 2 + class
    EV_INPUT_NEXT,  # the head of an input FIFO has left: link, class
    EV_UPLINK,  # an uplink with something queued falls free: link
    EV_PORT,  # a port with something queued falls free: port
    EV_BLOCKS,  # thread blocks of a row end together: tile, count * 2 + stage - 1
    EV_ACK,  # the sender learns that its segment is stored: node
    EV_SLOT,  # a communication SM may put another vector in flight: sm; a group, so many: gpu * 2 + combines, vectors
    EV_SWITCH,  # the head of a segment reaches the switch: node, gpu it came from
    EV_REACH,  # the tail of a segment reaches a GPU: node
    EV_ARRIVE,  # a token becomes visible to the experts of one GPU: pair
    EV_TILE,  # a tile whose status entry had spilled becomes ready: tile
    EV_REQUEST,  # a read request reaches the GPU that has the vector: its first node
    EV_RESPOND,  # what was asked for has been read: its first node, gpu that has it
    EV_NOTIFY,  # home GPUs learn that a GEMM-2 row is finished: tile
    EV_READY,  # a token whose readiness entry had spilled becomes ready: token
    EV_GATE,  # a stage opens after what it pays: stage + 4 * part, gpu (or -1 for all)
) = range(16)

# Decision kinds (also the SM groups that take them).
SPLIT, DISPATCH, GEMM, COMBINE = range(4)
DECISION_KINDS = ("split", "dispatch", "gemm", "combine")
NUM_KINDS = len(DECISION_KINDS)

# Primitives.
UNICAST, MULTICAST, BROADCAST, PULL = range(4)
DISPATCH_PRIMITIVES = ("unicast", "multicast", "broadcast", "pull")
PUSH_UNICAST, PULL_REDUCE, PUSH_REDUCE, REDUCE_SCATTER, PULL_UNICAST = range(5)
COMBINE_PRIMITIVES = ("unicast", "pull_reduce", "push_reduce", "reduce_scatter", "pull")

# When a stage may start on a part: as its inputs arrive; when the stage before it is over on all GPUs (for GEMM-2: on
# this GPU); or when that is so on this GPU.
GATE_FINE, GATE_PHASE, GATE_GPU = range(3)
QUEUEING = ("output_queued", "voq", "input_fifo")
OUTPUT_QUEUED, VOQ, INPUT_FIFO = range(3)

# What a flit on the wire is for.
PURPOSES = (
    "dispatch_request",
    "dispatch_data",
    "dispatch_ack",
    "combine_request",
    "combine_data",
    "combine_ack",
    "notify",
    "eviction",
)
(
    DISPATCH_REQUEST, DISPATCH_DATA, DISPATCH_ACK, COMBINE_REQUEST, COMBINE_DATA, COMBINE_ACK, NOTIFY, EVICTION,
) = range(len(PURPOSES))  # fmt: skip
NUM_PURPOSES = len(PURPOSES)
UP, DOWN = range(2)
REQUEST, RESPONSE = range(2)

# What a log row describes.
LOG_UP, LOG_DOWN, LOG_REDUCE, LOG_SM = range(4)
LOG_FIELDS = ("resource", "gpu", "purpose", "item", "amount", "start_ps", "end_ps")

# What a layer is at: no layer; may run; a decision waits; done; the heap or log wants room; nothing can happen.
EMPTY, RUN, ASK, DONE, GROW, STUCK = range(6)

# A counter update at a home GPU: a header flit and a flit of data.
NOTIFY_FLITS = 2

# A communication SM: in its group, to leave it when it has nothing to do, or in the GEMM group.
ON_DUTY, LEAVING, AWAY = range(3)

NO_TIME = -1
NOTHING = -1
# In ``slot_tile``: the row is done, as far as the GPU that waits for it knows.
COUNTED = -2


# Ids, counts and flits in records and operands of events stay below this.
NARROW_LIMIT = 2**31


def _record(wide: str, narrow: str = "") -> np.dtype:
    """Returns a record of int64 and then int32 fields, their names separated by spaces."""
    return np.dtype([*((name, np.int64) for name in wide.split()), *((name, np.int32) for name in narrow.split())])


_PARAMETERS = (
    # workload
    "num_gpus num_tokens tokens_per_gpu top_k num_experts experts_per_gpu chunk_tokens chunks_per_gpu "
    # links and packets
    "ps_mult ps_div quantum_ps hop_ps store_and_forward planes num_links sum_flits "
    "dispatch_segments combine_segments dispatch_segment_packets combine_segment_packets "
    "partial0 store0 sum0 trip0 ack_flits credit_flits queueing reduction_slots reduction_ppm cycle_ps "
    # GPU
    "memory_ps dispatch_slots combine_slots dispatch_hold combine_hold most_dispatch_sms most_combine_sms "
    "total_sms gemm_sms dispatch_sms combine_sms blocks1 blocks2 "
    "granule1_ps granule2_ps block_ps slow_permille cold_exposure row_granularity hbm_mult hbm_div l2_bytes "
    "matrix1_bytes matrix2_bytes weight1_bytes weight2_bytes token_in_bytes "
    "token_mid_bytes token_mid_in_bytes token_out_bytes al_entries ts_entries or_entries "
    # schedule
    "dispatch_primitive combine_primitive gate1 gate2 gate3 pay1_ps pay2_ps pay3_ps notify tile_tokens "
    "allow_partial hold_gemm hold_combine exposed max_candidates num_splits split_moments ruled looks scale_ps "
    "links_ps gemms_ps hbm_ps "
    "heap_margin log_margin logging num_tiles heap_capacity dirty_capacity log_capacity "
    "loopback sends_per_gpu num_chunks dispatch_ask_flits num_parts by_peers exclusive pay_end_ps "
    "networked network_width wire_entries pool_capacity wheel_slots wheel_shift"
)

_COUNTERS = (
    "now_ps heap_size wheel_size wheel_slot pool_used pool_free "
    "sequence events decisions asked transfers log_size dirty_head dirty_size serving pending_kind "
    "pending_gpu num_candidates num_legal choice ready_sequence tokens_left split_done "
    "dispatch_first dispatch_last gemm1_first gemm1_last gemm2_first gemm2_last combine_first combine_last "
    "evictions status chunks_weighed"
)

GPU = _record(
    # memory side
    "hbm_free_ps hbm_busy_ps l2_used_bytes l2_stamp tlb_sequence tiles_live outputs_live "
    # dispatch group
    "chunk chunk_pos unsent_head dispatch_in_flight tokens_sent part send_head send_tail "
    # GEMM group
    "free_sms row_tile row_stage slots arrivals_left slots1_left slots2_left hold_gemm sm_busy_ps "
    # combine group
    "ready_head ready_tail issue_head issue_tail combine_in_flight items items_waiting take_head take_tail "
    "hold_combine combined start_open dirty0 dirty1 dirty2 dirty3 "
    # sizes: the row of ``splits`` in force and what it says; SMs that the two groups have, and that are to leave them;
    # SMs that the GEMM group has
    "split dispatch_sms combine_sms min_partial dispatch_here combine_here dispatch_leaving combine_leaving gemm_sms"
)

# One communication SM: the token it is at (if something of that is left), the next of the token's pairs, vectors in
# flight, the next SM that may take something, and whether it belongs to its group.
SM = _record("", "token pair in_flight next duty")

UPLINK = _record("free_ps wake last_class queued_flits busy_ps")
# One virtual-channel class of an uplink: segments waiting at the GPU, flits held at the switch input, its FIFO.
LANE = _record("head tail used_flits fifo_head fifo_tail")
# One virtual-channel class of a port: the inputs that have something for it, in round-robin order.
TURN = _record("head tail")
PORT = _record(
    "free_ps wake last_class queued_flits busy_ps slots_used slots_draining open_head open_tail stalled_node"
)

TOKEN = _record(
    "dispatch_start dispatch_end combine_start combine_end", "pair0 experts_done sums_left chunk remote_targets"
)
# One segment of a multicast store: GPUs that have not acknowledged it, replicas in the switch, when the last of them
# has left, and when their buffer is free.
STORE = _record("end_ps free_ps", "acks_left replicas_left")
# One segment of a token's sum: at its home GPU, and in the reduction unit before that.
SUM = _record(
    "ready_ps",
    "pieces_left contributions_left open open_count open_prev open_next open_pair",
)

PAIR = _record("translated_ps", "token home gpu slot0 num_experts experts_done part segments_left")
# A segment: whose it is (pair of a copy or partial sum, else token), where it goes, and what it weighs.
NODE = _record("tail_ps", "owner plane flits next payload_flits pieces")
# The round trip of a vector, kept for its first segment: when it was issued, by which SM, and how many segments are still
# under way.
TRIP = _record("issued_ps", "sm segments_out")
EXPERT = _record(
    "ready_ps", "number part gpu total arrived slot0 tile0 tiles_open open_count ready1 started1 row2_head row2_tail"
)
# An expert's two matrices: bytes of each in L2, when each was last used, and when its fetch ends.
MATRICES = _record("resident1 resident2 used1 used2 weights1_ps weights2_ps")
# One part on one GPU: what is left of it there, and which of its stages may run.
PART = _record("sends_left arrivals_left slots1_left slots2_left gate1_open gate2_open gate3_open gate2_asked")
# One part on all GPUs.
PHASE = _record("arrivals_left slots2_left")
TILE = _record(
    "weights_ps inputs_ps ready1_ps ready1_seq ready2_ps ready2_seq start1 end1 start2 end2",
    "expert first count finishes left running next",
)
CHUNK = _record("flits", "first last prev next part slot0 num_slots copies")
UNIT = _record("ready_ps", "head tail count prev next listed part copies")
# The virtual output queue of one input, port and class: its first and last node, and the next input in the round.
QUEUE = _record("", "head tail next")
# What a split says, and what of an expert and part is shown: the fill of its open tile and how much of it has arrived.
SPLIT_ROW = _record("dispatch_sms combine_sms early_tokens")
SHOWN = np.dtype([("fill", np.float64), ("progress", np.float64)])
LOG_ROW = _record(" ".join(LOG_FIELDS))
# An event: time, kind and sequence in one number, two operands, and in the wheel the event behind it.
EVENT = _record("time_ps order next", "a b")
# One slot of the wheel: its first and its last event.
WHEEL_SLOT = _record("", "head tail")


# What a decision shows of each candidate. Every value lies in [0, 1]; the "root" of a time is sqrt(time / lower bound),
# cut at 1, so that small backlogs stay visible.
FEATURE_MEANINGS = {
    "is_hold": "1 for hold, whose other features are 0",
    "order": "place in the list over max_candidates (first unsent; first ready; fullest open tile last)",
    "size": "tokens over chunk_tokens (dispatch, combine) or tile_tokens (GEMM)",
    "is_gemm2": "1 for a GEMM-2 row",
    "is_partial": "1 for an open tile that would be closed early",
    "weights_in_l2": "1 if the row's expert matrix is in L2",
    "waiting": "root of the time since it became ready",
    "expert_left": "fraction of the row's expert's tokens still to arrive",
    "finishes": "fraction of the row's tokens whose other experts are all done",
    "tile_fill": "dispatch: mean fill of the open tiles the chunk's tokens would join",
    "expert_progress": "dispatch: mean fraction of their tokens that the chunk's experts have received",
    "fan_out": "dispatch, combine: mean remote GPUs per token over GPUs - 1",
    "backlog": "root of the longest queue it meets: target downlinks, expert uplinks, or HBM",
    "cost": "root of the time it takes on its GPU's link, or on the GEMM group or HBM",
    "split_dispatch": "split: dispatch SMs over all SMs",
    "split_combine": "split: combine SMs over all SMs",
    "split_early": "split: 1 less the fewest tokens of an open tile that may be closed early over tile_tokens",
}
FEATURES = tuple(FEATURE_MEANINGS)
# Features whose computation walks tokens; a rule that gives them no weight does not pay for them.
LOOKED_UP = tuple(map(FEATURES.index, ("finishes", "tile_fill", "expert_progress", "fan_out", "backlog", "cost")))

# What a decision shows of the GPU that decides and of the whole layer; every value lies in [0, 1].
CONTEXT_MEANINGS = {
    "is_split": "1 if SM-group sizes are chosen: for all GPUs at the start, then for this one",
    "is_dispatch": "1 if a token chunk to dispatch is chosen",
    "is_gemm": "1 if a row is chosen",
    "is_combine": "1 if a chunk to combine is chosen",
    "elapsed": "time so far over 4 lower bounds, cut at 1",
    "sent": "fraction of this GPU's tokens dispatched",
    "received": "fraction of this GPU's (token, expert) pairs that have arrived",
    "gemm_done": "fraction of this GPU's GEMM work finished, by tokens",
    "combined": "fraction of this GPU's own tokens combined",
    "uplink_backlog": "root of what waits on this GPU's uplink",
    "downlink_backlog": "root of what waits at the switch for this GPU",
    "hbm_backlog": "root of what waits for this GPU's HBM",
    "free_sms": "free fraction of the GEMM group",
    "dispatch_in_flight": "fraction of the vectors that the dispatch group may keep in flight",
    "combine_in_flight": "the same for the combine group",
    "all_combined": "fraction of all tokens combined",
    "link_share": "what the busiest link alone needs over the lower bound: near 1 if links bind",
    "gemm_share": "the same for the SMs of the GPU with the most GEMM work",
    "hbm_share": "the same for the HBM that expert weights and tokens keep busiest",
    "tokens_per_expert": "(token, expert) pairs an expert of this GPU has on average, over themselves and a tile",
    "l2_room": "L2 over itself and the matrices of this GPU's experts",
    "ready": "fraction of the sums that this GPU combines that it may combine, or has",
    "any_ready": "1 if there is one",
    "all_sent": "1 if this GPU has dispatched all its tokens",
}
CONTEXT = tuple(CONTEXT_MEANINGS)
NUM_FEATURES, NUM_CONTEXT = len(FEATURES), len(CONTEXT)
FEATURE_ROW = np.dtype([(name, np.float32) for name in FEATURES])
CONTEXT_ROW = np.dtype([(name, np.float32) for name in CONTEXT])


# Rows that a network works in, beside one for each candidate; see network.py.
NETWORK_ROWS = 5


class Seat(NamedTuple):
    """Where a layer keeps its root and shows its decisions; seats of layers that advance together lie side by side."""

    root: np.ndarray  # (1,) ROOT
    features: np.ndarray  # (max_candidates, feature) float32
    context: np.ndarray  # (context,) float32
    mask: np.ndarray  # (max_candidates,) bool


class State(NamedTuple):
    """Everything one simulated layer is, as flat arrays owned by the caller; the kernel mutates them in place."""

    root: np.ndarray  # (1,) ROOT: parameters, counters and the addresses of the arrays below
    gpus: np.ndarray  # (gpu,) GPU
    sms: np.ndarray  # (sm,) SM
    uplinks: np.ndarray  # (link,) UPLINK
    lanes: np.ndarray  # (link * 2 + class,) LANE
    ports: np.ndarray  # (2 * link,) PORT
    turns: np.ndarray  # (port * 2 + class,) TURN
    tokens: np.ndarray  # (token,) TOKEN
    pairs: np.ndarray  # (pair,) PAIR
    stores: np.ndarray  # (token * S + segment,) STORE
    sums: np.ndarray  # (token * C + segment,) SUM
    nodes: np.ndarray  # (node,) NODE
    trips: np.ndarray  # (node,) TRIP, from node trip0 on, the first that is ever issued
    fifo_next: np.ndarray  # (node,) int32 links of the switch input FIFOs; empty where inputs are no FIFOs
    experts: np.ndarray  # (expert * parts + part,) EXPERT
    matrices: np.ndarray  # (expert,) MATRICES
    parts: np.ndarray  # (gpu * parts + part,) PART
    phases: np.ndarray  # (part,) PHASE
    tiles: np.ndarray  # (tile,) TILE, an expert's tiles consecutive
    chunks: np.ndarray  # (chunk,) CHUNK, a home GPU's chunks consecutive
    units: np.ndarray  # (unit,) UNIT
    wire_times: np.ndarray  # (wire_entries,) int64 ps that so many flits keep a link busy
    store_flits: np.ndarray  # (top_k + 1,) int64 flits of a dispatched vector naming so many experts
    ask_flits: np.ndarray  # (top_k + 1,) int64 flits that ask for one segment of a sum, naming so many experts
    gpu_experts: np.ndarray  # (expert,) int32 experts grouped by the GPU that holds them
    slot_expert: np.ndarray  # (slot,) int32 expert (and part) of each (token, expert), grouped by pair
    slot_tlb: np.ndarray  # (slot,) int32 insertion number of its entry in the expert GPU's AL TLB, or -1
    slot_tile: np.ndarray  # (slot,) int32 tile that it is in, -1 before it arrives, or COUNTED
    arrived_pair: np.ndarray  # (slot,) int32 pairs in order of arrival, grouped by expert
    order: np.ndarray  # (token,) int32 tokens of each home GPU in the order its chunks hold them
    chunk_experts: np.ndarray  # (slot,) int32 expert (and part) of each slot, grouped by chunk
    chunk_targets: np.ndarray  # (chunk * gpus + gpu,) bool, whether a chunk's vectors cross the GPU's downlink
    unit_targets: np.ndarray  # (unit * gpus + gpu,) bool, whether sums pulled for a unit cross the GPU's uplink
    backlogs: np.ndarray  # (gpu,) int64 ps of the links that the candidates of the decision at hand would meet
    shown: np.ndarray  # (expert * parts + part,) SHOWN
    item_next: np.ndarray  # (token or pair,) int32 links of the combine item lists
    queues: np.ndarray  # (port, class, input + 1,) QUEUE
    traffic: np.ndarray  # (gpu, direction, purpose,) int64 wire flits
    payload: np.ndarray  # (gpu, direction, purpose,) int64 data flits among them
    heap: np.ndarray  # (capacity, 4) int64, a row the size of an EVENT
    pool: np.ndarray  # (capacity, 4) int64, rows for the events in the wheel
    wheel: np.ndarray  # (slot,) WHEEL_SLOT
    slots_filled: np.ndarray  # (slot / 64,) int64, a bit for each slot that holds an event
    dirty: np.ndarray  # (4 * gpu,) int64 SM groups that may act, and GPUs that choose sizes, first come first served
    splits: np.ndarray  # (split, 3) int64 dispatch SMs, combine SMs, fewest tokens of a tile closed early
    weights: np.ndarray  # (kind, feature) float64 rule: scores of candidates are weights . features
    network: np.ndarray  # (numbers,) float32 weights of the network that scores candidates; see network.py
    scratch: np.ndarray  # ((max_candidates + NETWORK_ROWS) * width + feature,) float32 what the network works in
    candidates: np.ndarray  # (max_candidates,) int64 what each candidate is; see decisions.py
    keys: np.ndarray  # (max_candidates,) int64 what GEMM candidates are sorted by
    features: np.ndarray  # (max_candidates, feature) float32
    context: np.ndarray  # (context,) float32
    mask: np.ndarray  # (max_candidates,) bool
    log: np.ndarray  # (capacity, 7) int64 LOG_FIELDS; capacity 0 unless logging


# What the arrays of the state hold, as compiled code sees them: ``s.NAME[i]``.
ARRAYS: dict[str, Any] = {
    "gpus": GPU,
    "sms": SM,
    "uplinks": UPLINK,
    "lanes": LANE,
    "ports": PORT,
    "turns": TURN,
    "tokens": TOKEN,
    "pairs": PAIR,
    "stores": STORE,
    "sums": SUM,
    "nodes": NODE,
    "trips": TRIP,
    "fifo_next": np.int32,
    "experts": EXPERT,
    "matrices": MATRICES,
    "parts": PART,
    "phases": PHASE,
    "tiles": TILE,
    "chunks": CHUNK,
    "units": UNIT,
    "wire_times": np.int64,
    "store_flits": np.int64,
    "ask_flits": np.int64,
    "gpu_experts": np.int32,
    "slot_expert": np.int32,
    "slot_tlb": np.int32,
    "slot_tile": np.int32,
    "arrived_pair": np.int32,
    "order": np.int32,
    "chunk_experts": np.int32,
    "chunk_targets": np.uint8,
    "unit_targets": np.uint8,
    "backlogs": np.int64,
    "shown": SHOWN,
    "item_next": np.int32,
    "queues": QUEUE,
    "traffic": np.int64,
    "payload": np.int64,
    "heap": EVENT,
    "pool": EVENT,
    "wheel": WHEEL_SLOT,
    "slots_filled": np.int64,
    "dirty": np.int64,
    "splits": SPLIT_ROW,
    "candidates": np.int64,
    "keys": np.int64,
    "features": FEATURE_ROW,
    "context": CONTEXT_ROW,
    "mask": np.uint8,
    "log": LOG_ROW,
}
_ADDRESSES = " ".join(f"{name}_at" for name in State._fields if name != "root")
ROOT = _record(" ".join([_PARAMETERS, _COUNTERS, _ADDRESSES]))

# Fields that compiled code never writes, so that what it has read once need not be read again.
CONSTANT_FIELDS = (
    (ROOT, frozenset(f"{_PARAMETERS} {_ADDRESSES}".split()) - {"gemm_sms", "dispatch_sms", "combine_sms"}),
    (PAIR, frozenset("token home gpu slot0 num_experts part".split())),
    (NODE, frozenset("owner plane".split())),
)


# Arrays that nothing writes once they are there, so that copies of a layer may share them.
CONSTANT_ARRAYS = frozenset(
    "wire_times store_flits ask_flits gpu_experts slot_expert order splits weights network".split()
)

# Where the addresses begin, which follow each other as the arrays do.
_ADDRESS0 = list(ROOT.names or ()).index(f"{State._fields[1]}_at")


def point(root: np.ndarray, addresses: list[int]) -> None:
    """Writes where all arrays but the root lie, in the order of ``State``."""
    root.view(np.int64)[_ADDRESS0:] = addresses


def bind(state: State) -> State:
    """Writes the arrays' addresses and lengths that can change into the root, and returns the state."""
    root, *arrays = state
    assert all(array.flags.c_contiguous for array in arrays)
    point(root, [array.ctypes.data for array in arrays])
    root["num_tiles"] = len(state.tiles)
    root["heap_capacity"] = len(state.heap)
    root["pool_capacity"] = len(state.pool)
    root["dirty_capacity"] = len(state.dirty)
    root["log_capacity"] = len(state.log)
    return state


def reseat(state: State, seat: Seat) -> State:
    """Returns the state with all that is in its seat in another one; the rest stays where it is."""
    for name, array in seat._asdict().items():
        array[...] = getattr(state, name)
        if name != "root":
            seat.root[f"{name}_at"] = array.ctypes.data
    return state._replace(**seat._asdict())
