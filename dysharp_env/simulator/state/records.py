"""What the compiled engine remembers: record types, and the root that holds parameters, counters and addresses.

All times are int64 picoseconds. Ids, counts and flits of what there is much of are int32, which lowering checks to be
enough, and come out as int64 in compiled code (jit/rows.py).

Ids used throughout:
    token  global token; those of one home GPU are consecutive
    pair   one (token, expert GPU), or one (token, expert) where each expert gets its own copy; a token's pairs are
           consecutive, in order of (expert GPU - home GPU) mod GPUs
    slot   one (token, expert), grouped by pair: token * top_k + i; a token with fewer experts leaves its last ones
           empty
    part   a share of each stage with gates of its own: of every home GPU's tokens, of every expert GPU's peers, or of
           every GPU's experts
    expert where an expert's tokens are in several parts, one (expert, part) = expert * parts + part: a part's tokens
           fill tiles of their own
    segment  place of a segment in its vector: always 0 at token resolution, the packet's number at packet resolution
    node   a segment in a link or switch queue; S of a dispatched vector and C of a sum, P pairs, T tokens:
           [0, partial0) copies, pair * S + segment; from partial0 partial sums, pair * C + segment;
           from store0 multicast stores, store * S + segment; from sum0 reduced sums, token * C + segment;
           from weights0 tiles of weights on their way to one GPU, copy * weight tiles + tile; from weight_store0 tiles
           that are stored to several, store * weight tiles + tile, numbered by themselves
    copy   a physical expert whose weights come over the links, numbered by where from, and by group where teams are of
           fewer than all GPUs; the copies that one store reaches are consecutive
    store  a token's store to the GPUs of one group, token * stores_per_token + group; a token has one but where teams
           are of fewer than all GPUs, group = gpu // team_gpus
    link   gpu * planes + plane
    home chunk  a chunk of a home GPU's tokens; a GPU's are consecutive, and GPUs follow each other
    unit   what a combine decision takes: a home chunk (pull), or a GPU's partial sums of one (push), which is
           gpu * home_chunks + home chunk
    block  what L2 holds: [0, tile_blocks) matrices, expert * 2 + GEMM; from tile_blocks three of each tile, from
           chunk_blocks two of each home chunk
    port   [0, links) downlinks, [links, 2 links) the reduction units in front of them
    sm     a communication SM; a GPU's are consecutive, those that dispatch before those that combine
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.simulator.state.observation import CONTEXT_ROW, FEATURE_ROW, NUM_KINDS

# Ids, counts and flits in records and operands of events stay below this, and experts of a token below that.
NARROW_LIMIT = 2**31
SHORT_LIMIT = 2**15

# Fields of each record that begin as NOTHING rather than 0.
_NOTHINGS: dict[np.dtype, list[str]] = {}


def _record(wide: str, narrow: str = "", short: str = "", **nested: Any) -> np.dtype:
    """Returns a record of int64, int32 and int16 fields, and records within it.

    Args:
        wide: Names of int64 fields, separated by spaces; a field whose name ends in ``-`` begins as NOTHING.
        narrow: Names of int32 fields, likewise.
        short: Names of int16 fields, likewise.
        **nested: Records, or (record, count) for several of them.
    """
    fields: list[Any] = [(name.rstrip("-"), np.int64) for name in wide.split()]
    fields += [(name.rstrip("-"), np.int32) for name in narrow.split()]
    fields += [(name.rstrip("-"), np.int16) for name in short.split()]
    fields += [(name, *(inner if isinstance(inner, tuple) else (inner,))) for name, inner in nested.items()]
    record = np.dtype(fields)
    _NOTHINGS[record] = [name.rstrip("-") for name in f"{wide} {narrow} {short}".split() if name.endswith("-")]
    return record


def blank(count: int, record: np.dtype) -> np.ndarray:
    """Returns records to which nothing has happened: 0, or NOTHING in fields that begin so."""
    records = np.zeros(count, record)
    erase(records)
    return records


def erase(records: np.ndarray) -> None:
    """Writes NOTHING into the fields of records, and of records within them, that begin so."""
    dtype = records.dtype
    for name in _NOTHINGS.get(dtype, []):
        records[name] = NOTHING
    for name in dtype.names or ():
        if dtype[name].base.names:
            erase(records[name])


# A first-in first-out list, or its ends: what is in it is linked by fields named ``next``; see kernel/fifo.py.
FIFO = _record("", "head- tail-")
# A link of a list of things that have no record of their own.
LINK = _record("", "next")

# The vectors of one direction, dispatch or combine: what its primitive is (system/primitives.py), segments of a vector
# and packets of a segment; how an SM works on them (simulator/families.py); the most SMs of its group under any split,
# and the first of them among those of a GPU.
FLOW = _record(
    "reads in_switch names_targets to_all segments segment_packets slots vector_ps token_ps trip_ps "
    "prepare_ps own_ps most_sms first_sm"
)
# One GEMM: thread blocks of a row; what a granule of tokens adds to one by arithmetic, half of that, and the time of
# reading weights from shared memory; bytes of an expert's matrix in L2 and of what a row reads of it, and bytes that a
# token moves into it and out of it.
GEMM_COST = _record(
    "blocks granule_ps half_granule_ps operand_ps matrix_bytes weight_bytes token_in_bytes token_out_bytes"
)
# Where the weights of a network begin among its numbers; see network.py.
NETWORK_PLACES = _record("row row_bias context embed embed_bias score_row score_bias score_pool score linear")
# Who answers one kind of decision: somebody outside, the network, weights of a rule and whether those walk (features
# that are dear); and whether hold is offered.
ANSWERER = _record("exposed networked ruled walks may_hold")

# One SM group of one GPU (and, in rows ``split`` and ``prefetch``, its choice of sizes and of weights): whether it is
# marked to act, and waits after hold; SMs that are in it, that it should have, and that are to leave it; vectors at
# hand, and SMs that may take something.
GROUP = _record("marked holding sms wanted_sms leaving in_flight", able=FIFO)
GPU = _record(
    # memory side
    "hbm_free_ps hbm_busy_ps hbm_wake l2_used_bytes tlb_sequence tiles_live outputs_live "
    # dispatch: the chunk at hand, the token in it that is next, tokens sent, the part at hand, unsent chunks
    "chunk- chunk_pos tokens_sent part "
    # GEMM: free SMs, the row at hand, slots there are, that are to come, and (below) that each GEMM has to do; SM time
    # that communication took from thread blocks and that none has lost yet
    "free_sms row_tile- row_gemm slots arrivals_left sm_busy_ps debt_ps "
    # matrices of copies here that are to come; what L2 could take in without dropping what is still to be used, as of
    # the last list of what to fetch ahead
    "weights_left room_bytes "
    # flags of GPUs that have stored all they dispatch to this one, of all parts: how many there are, and are to come
    "sources sources_left "
    # combine: units that something is ready of, those before the one at hand, sums it combines and that are not ready
    "items items_waiting combined start_open "
    # the row of ``splits`` in force, and the fewest tokens of an open tile that may be closed early
    "split- early_tokens "
    # the layer: tokens that this GPU goes through as it dispatches; its own tokens, their chunks, and its experts in
    # ``gpu_experts``: the first of each, and how many there are
    "sends first_token num_tokens first_chunk num_chunks first_expert num_experts",
    slots_left=(np.int64, 2),
    l2=FIFO,
    unsent=FIFO,
    ready=FIFO,
    issue=FIFO,
    groups=(GROUP, NUM_KINDS),
)
# One communication SM: the token it is at (if something of that is left), the next of the token's pairs or stores,
# vectors at hand, the next SM that may take something, and whether it belongs to its group; when its token is prepared.
SM = _record("ready_ps", "token- pair in_flight next duty")

# A link also has the time of a flit over that on a sound one, in thousandths, and the data packets that have entered it
# where some are replayed; of ports downlinks have.
UPLINK = _record("free_ps wake last_class queued_flits busy_ps permille packets")
# One virtual-channel class of an uplink: segments waiting at the GPU, flits held at the switch input, its FIFO.
LANE = _record("used_flits", waiting=FIFO, inputs=FIFO)
# A port; the inputs that have something for it, a class each, in round-robin order; sums open in a reduction unit.
PORT = _record(
    "free_ps wake last_class queued_flits busy_ps permille packets slots_used slots_draining stalled_node-",
    turns=(FIFO, 2),
    open=FIFO,
)
# The virtual output queue of one input, port and class, and the next input in the round.
QUEUE = _record("", "next-", nodes=FIFO)

# A cache line.
TOKEN = _record(
    "dispatch_start- dispatch_end- combine_start- combine_end-",
    "home pair0 experts_done sums_left chunk remote_targets partials",
    "num_experts is_read",
)
# One segment of a multicast store: GPUs that have not acknowledged it, replicas in the switch, when the last of them
# has left, and when their buffer is free.
STORE = _record("end_ps free_ps", "acks_left replicas_left")
# One segment of a token's sum: at its home GPU, and in the reduction unit before that.
SUM = _record("ready_ps", "pieces_left contributions_left open open_count prev- next- open_pair-")
PAIR = _record("translated_ps", "token home gpu slot0 num_experts experts_done part segments_left")
# A segment: whose it is (pair of a copy or partial sum, store, copy of weights or the first that a store of them
# reaches, else token), where it goes, and what it weighs.
NODE = _record("tail_ps", "owner plane flits next payload_flits pieces")
# A vector at hand, kept for its first segment: when an SM took it and when it departs, of which SM it is, and segments
# that have not made the round trip.
TRIP = _record("taken_ps departs_ps", "sm segments_out")

# An expert (and part): its tokens, its slots and tiles, GEMM-1 rows that are ready and that have started, tiles whose
# GEMM-2 row is ready, and its tokens whose row of each GEMM has not started.
EXPERT = _record(
    "ready_ps",
    "number part gpu total arrived slot0 tile0 tiles_open open_count rows_ready rows_started",
    second=FIFO,
    unstarted=(np.int32, 2),
)
# A copy: its expert, where that is, the expert that its weights come from and where that is, the store that brings them
# and how many copies that reaches, whether it is the first that each tile is sent to, and the copies that it is sent on
# to (relays).
COPY = _record("", "expert gpu source source_gpu store replicas is_first child0 children")
# A tile of any expert's weights; see simulator/weights.py.
WEIGHT_TILE = _record("num_bytes", "gemm packets ask_flits")
# An expert's matrix: when a fetch from HBM ends; of a copy's, when its first tile was issued and its last one came,
# what of it is here (all of one that copies are made of), tiles to come, whether it was fetched ahead at the price of
# something else and no row has used it since, and tiles of tokens whose rows wait for it.
MATRIX = _record("fetched_ps start_ps- end_ps- here_bytes", "tiles_left at_price", held=FIFO)
# The SMs of a GPU that move weights: when they may issue another tile, the time between two, tiles that they are yet to
# issue and those of them that are at hand, tiles under way, how many they are and should be, and whether EV_MOVE is to
# come.
MOVER = _record("next_ps pace_ps left in_flight", "sms wanted_sms issuing", queue=FIFO)
# What L2 holds of a block, and what of that HBM has not; it is linked with others of its GPU while that is anything.
BLOCK = _record("resident_bytes dirty_bytes", "prev next")
# One row: when it became ready, its place in the order of readiness, when it started and ended.
ROW = _record("ready_ps ready_sequence start_ps- end_ps-")
TILE = _record("weights_ps inputs_ps", "expert first count finishes left running next-", rows=(ROW, 2))
# A gate: what is left to be done before it, what is then paid, but not before a time, and which stage of which part it
# opens, on which GPU (NOTHING: on all).
GATE = _record("left pay_ps not_before_ps stage part gpu-")
# One stage of one part on one GPU: whether it may start, and the gate that what is done counts for (NOTHING: none).
STAGE = _record("open gate-")
# One part on one GPU: tokens it has to send, GPUs that are to say that they have stored all they send it, how many of
# them have not, and the stages that gates open.
PART = _record("sends_left sources sources_left", stages=(STAGE, 3))

# What a GPU dispatches together: tokens of one home GPU, places in ``order``.
CHUNK = _record("flits", "gpu first last prev- next- part slot0 num_slots copies")
# What is ready of a unit, its place in the list of ready units, its part, and remote copies of its ready tokens.
UNIT = _record("ready_ps", "count prev- next- listed part copies", items=FIFO)
# An event: time, kind and sequence in one number, three operands, and in the wheel the event behind it.
EVENT = _record("time_ps order", "next a b c")
# An SM group, or a GPU's choice of sizes, that may act.
MARK = _record("", "kind gpu")
# A candidate: a chunk, tile, unit or row of ``splits`` (NOTHING: hold); which GEMM of a tile, what rows are sorted by.
CANDIDATE = _record("key", "item- gemm")
# What a split says, and what of an expert and part is shown: the fill of its open tile and how much of it has arrived.
SPLIT_ROW = _record("dispatch_sms combine_sms early_tokens")
SHOWN = np.dtype([("fill", np.float64), ("progress", np.float64)])
LOG_FIELDS = ("resource", "gpu", "purpose", "item", "amount", "start_ps", "end_ps")
LOG_ROW = _record(" ".join(LOG_FIELDS))

# Rows that a network works in, beside one for each candidate; see kernel/network.py.
NETWORK_ROWS = 5

# What the arrays of the state hold, as compiled code sees them: ``s.NAME[i]``.
ARRAYS: dict[str, Any] = {
    "gpus": GPU,  # (gpu,)
    "sms": SM,  # (sm,)
    "uplinks": UPLINK,  # (link,)
    "lanes": LANE,  # (link * 2 + class,)
    "ports": PORT,  # (2 * link,)
    "queues": QUEUE,  # ((port * 2 + class) * (gpus + 1) + input,)
    "tokens": TOKEN,  # (token + 1,), the last a sentinel
    "pairs": PAIR,  # (pair,)
    "stores": STORE,  # (store * S + segment,)
    "sums": SUM,  # (token * C + segment,)
    "nodes": NODE,  # (node,)
    "trips": TRIP,  # (node - trip0,), trip0 the first node that is ever issued
    "input_links": LINK,  # (node,) of the switch's input FIFOs; empty where inputs are no FIFOs
    "experts": EXPERT,  # (expert * parts + part,)
    "blocks": BLOCK,  # (block,)
    "matrices": MATRIX,  # (expert * 2 + GEMM,)
    "copies": COPY,  # (copy,)
    "weight_tiles": WEIGHT_TILE,  # (weight tile,) those of one expert
    "weight_stores": STORE,  # (store of weights * weight tiles + tile,)
    "movers": MOVER,  # (gpu,)
    "parts": PART,  # (gpu * parts + part,)
    "gates": GATE,  # (gate,), the first opens everything
    "tiles": TILE,  # (tile,), an expert's tiles consecutive
    "chunks": CHUNK,  # (chunk,), those that a GPU dispatches consecutive
    "units": UNIT,  # (unit,)
    "wire_times": np.int64,  # (flits,) ps that so many flits keep a link busy
    "store_flits": np.int64,  # (top_k + 1,) flits of a dispatched vector naming so many experts
    "ask_flits": np.int64,  # (top_k + 1,) flits that ask for one segment of a sum, naming so many experts
    "gpu_experts": np.int32,  # (expert,) experts grouped by the GPU that holds them
    "slot_expert": np.int32,  # (slot,) expert (and part) of each (token, expert), grouped by pair
    "slot_tlb": np.int32,  # (slot,) insertion number of its entry in the expert GPU's AL TLB, or NOTHING
    "slot_tile": np.int32,  # (slot,) tile that it is in, NOTHING before it arrives, or COUNTED - tile
    "arrived_pair": np.int32,  # (slot,) pairs in order of arrival, grouped by expert
    "order": np.int32,  # (token,) tokens of each home GPU in the order its chunks hold them
    "chunk_experts": np.int32,  # (slot,) expert (and part) of each slot, grouped by chunk
    "chunk_targets": np.bool_,  # (chunk * gpus + gpu,) whether a chunk's vectors cross the GPU's downlink
    "unit_targets": np.bool_,  # (unit * gpus + gpu,) whether sums pulled for a unit cross the GPU's uplink
    "backlogs": np.int64,  # (gpu,) ps of the links that the candidates of the decision at hand would meet
    "shown": SHOWN,  # (expert * parts + part,)
    "item_links": LINK,  # (token or pair,) of the items of units
    "traffic": np.int64,  # ((gpu * 2 + direction) * purposes + purpose,) wire flits
    "payload": np.int64,  # likewise, data flits among them
    "heap": EVENT,  # (capacity,)
    "pool": EVENT,  # (capacity,) events in the wheel
    "wheel": FIFO,  # (slot,)
    "slots_filled": np.int64,  # (slot / 64,) a bit for each slot that holds an event
    "marks": MARK,  # (kinds * gpu,) a ring, first come first served
    "splits": SPLIT_ROW,  # (split,)
    "weights": np.float64,  # (kind * features + feature,) rule: scores of candidates are weights . features
    "network": np.float32,  # (number,) weights of the network that scores candidates; see network.py
    "scratch": np.float32,  # ((max_candidates + NETWORK_ROWS) * width + feature,) what the network works in
    "candidates": CANDIDATE,  # (max_candidates,)
    "features": FEATURE_ROW,  # (max_candidates,)
    "context": CONTEXT_ROW,  # (1,)
    "mask": np.bool_,  # (max_candidates,) which candidates are legal
    "log": LOG_ROW,  # (capacity,), capacity 0 unless logging
}

PARAMETERS = (
    # workload
    "num_gpus num_tokens top_k most_experts tile_tokens smallest_tile chunk_tokens home_chunks most_chunks num_chunks "
    # links and packets
    "ps_mult ps_div quantum_ps hop_ps store_and_forward planes num_links wire_entries sum_flits dispatch_ask_flits "
    "partial0 store0 sum0 weights0 weight_store0 trip0 num_weight_tiles copy_sms copies_behind "
    "ack_flits credit_flits queueing reduction_slots reduction_ppm cycle_ps replay_packets replay_ps "
    "team_gpus stores_per_token "
    # GPU
    "memory_ps num_sms in_gemm_permille role_change_ps block_overhead_ps slow_permille cold_exposure_permille "
    "row_granularity hbm_mult hbm_div l2_bytes tile_blocks chunk_blocks al_tlb_entries tile_status_entries "
    "output_readiness_entries "
    # schedule
    "late_ps meets notifies partial_tiles copies_per_expert loopback num_parts parts_by parts_per_expert exclusive "
    "pay_end_ps prefetches early_ps counted in_band imbalance_ppm num_splits split_moments network_width "
    "max_candidates scale_ps links_ps gemms_ps hbm_ps "
    # room
    "heap_margin log_margin logging num_tiles heap_capacity pool_capacity marks_capacity log_capacity wheel_slots "
    "wheel_shift"
).split()
_COUNTERS = (
    "now_ps heap_size wheel_size wheel_slot pool_used pool_free- "
    "sequence events decisions asked transfers log_size marks_head marks_size serving pending_kind- "
    "pending_gpu- num_candidates num_legal choice- ready_sequence tokens_left split_done "
    "dispatch_first- dispatch_last- gemm1_first- gemm1_last- gemm2_first- gemm2_last- combine_first- combine_last- "
    "weights_first- weights_last- weights_left "
    "evictions status chunks_weighed"
)
_ADDRESSES = " ".join(f"{name}_at" for name in ARRAYS)
ROOT = _record(
    f"{' '.join(PARAMETERS)} {_COUNTERS} {_ADDRESSES}",
    dispatch=FLOW,
    combine=FLOW,
    copying=FLOW,
    gemms=(GEMM_COST, 2),
    answerers=(ANSWERER, NUM_KINDS),
    places=NETWORK_PLACES,
)

# Who plays a layer: a network, by the root's names for its parts; the decisions it has room for and has taken; the
# choice whose reward is still owed, what is rewarded up to, and the bound that rewards are in; whether the next
# decision begins an episode, and of this episode the decisions and (float64) their rewards. Then where it reads what a
# decision shows and the numbers that it chooses by, and where it keeps what it saw and did; see kernel/playing.py.
PLAYER = _record(
    "network_at scratch_at network_width max_candidates num_candidates "
    "room taken owes rewarded_ps bound_ps starts length "
    "features_at context_at mask_at scores_at uniforms_at "
    "kept_candidates_at kept_contexts_at kept_masks_at counts_at actions_at log_probs_at rewards_at starts_at",
    places=NETWORK_PLACES,
    total=np.float64,
)
# The players of layers that answer to whoever advances them.
NOBODY = np.zeros(0, PLAYER)

# Fields that compiled code never writes, so that what it has read once need not be read again.
CONSTANT_FIELDS = (
    (ROOT, frozenset(PARAMETERS) | frozenset(_ADDRESSES.split())),
    (FLOW, frozenset(FLOW.names or ())),
    (GEMM_COST, frozenset(GEMM_COST.names or ())),
    (ANSWERER, frozenset(ANSWERER.names or ())),
    (NETWORK_PLACES, frozenset(NETWORK_PLACES.names or ())),
    (UPLINK, frozenset(["permille"])),
    (PORT, frozenset(["permille"])),
    (PAIR, frozenset("token home gpu slot0 num_experts part".split())),
    (NODE, frozenset("owner plane".split())),
    (COPY, frozenset(COPY.names or ())),
    (WEIGHT_TILE, frozenset(WEIGHT_TILE.names or ())),
)
