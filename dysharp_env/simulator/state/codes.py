"""The names of the engine's codes: events, stages, gates, purposes of traffic, and what a layer or an SM is at."""

from __future__ import annotations

from typing import get_args

from dysharp_env.system.spec import Queueing

# Event kinds, in the order in which equal times are served: what frees a resource comes before what asks for it.
(
    EV_CREDIT,  # input buffer space comes back to an uplink: link, class, flits
    EV_INPUT_NEXT,  # the head of an input FIFO has left: link, class
    EV_UPLINK,  # an uplink with something queued falls free: link
    EV_PORT,  # a port with something queued falls free: port
    EV_BLOCKS,  # thread blocks of a row end together: tile, GEMM, count
    EV_ROLE,  # an SM has changed over: its communication group or GEMM, gpu, the SM (NOTHING: of the GEMM group)
    EV_ACK,  # the sender learns that its segment is stored: node
    EV_DEPART,  # an SM sends a vector off, or the request for it: its first node, gpu
    EV_MOVE,  # the SMs that move weights issue the next tile of them: gpu
    EV_SWITCH,  # the head of a segment reaches the switch: node, gpu it came from
    EV_REACH,  # the tail of a segment reaches a GPU: node, gpu
    EV_ARRIVE,  # a token becomes visible to the experts of one GPU: pair
    EV_TILE,  # a tile whose status entry had spilled becomes ready: tile
    EV_REQUEST,  # a read request reaches the GPU that has the vector: its first node
    EV_RESPOND,  # what was asked for, or is a tile of weights, has been read: its first node, gpu that has it
    EV_NOTIFY,  # home GPUs learn that a GEMM-2 row is finished: tile, gpu that ran it
    EV_SAID,  # GPUs learn that all a GPU dispatches of a part is stored: that GPU, part, whether it tells itself
    EV_READY,  # a token whose readiness entry had spilled becomes ready: token
    EV_GATE,  # a stage opens after what it pays: gate, whether the late GPU alone does what the others have done
    EV_HBM,  # HBM may have nothing to do, where weights are fetched ahead: gpu
    EV_EARLY,  # weights may be fetched ahead although the layer has not opened: whether by the late GPU alone
) = range(21)

# The two GEMMs of a layer, by which records that exist for each are indexed.
GEMM1, GEMM2 = range(2)

# Stages that a gate may open: a GEMM, the combine of a part, or everything at the start.
OPENS_GEMM1, OPENS_GEMM2, OPENS_COMBINE, OPENS_ALL = range(4)
# When a stage may start on a part: as its inputs arrive; when the stage before it is over on all GPUs (for GEMM-2: on
# this GPU); or when that is so on this GPU.
GATE_FINE, GATE_PHASE, GATE_GPU = range(3)
# What a part is a share of: every home GPU's tokens, every expert GPU's peers, or every GPU's own experts.
PARTS_BY = ("tokens", "peers", "experts")
BY_TOKENS, BY_PEERS, BY_EXPERTS = range(len(PARTS_BY))

QUEUEING: tuple[str, ...] = get_args(Queueing)
OUTPUT_QUEUED, VOQ, INPUT_FIFO = range(3)

# What a flit on the wire is for.
PURPOSES = (
    "dispatch_request",
    "dispatch_data",
    "dispatch_ack",
    "dispatch_done",
    "combine_request",
    "combine_data",
    "combine_ack",
    "notify",
    "eviction",
    "weight_request",
    "weight_data",
    "weight_ack",
    "replay",
)
(
    DISPATCH_REQUEST, DISPATCH_DATA, DISPATCH_ACK, DISPATCH_DONE, COMBINE_REQUEST, COMBINE_DATA, COMBINE_ACK, NOTIFY,
    EVICTION, WEIGHT_REQUEST, WEIGHT_DATA, WEIGHT_ACK, REPLAY,
) = range(len(PURPOSES))  # fmt: skip
NUM_PURPOSES = len(PURPOSES)
UP, DOWN = range(2)
# Virtual-channel classes.
REQUEST, RESPONSE = range(2)

# What a log row describes.
LOG_UP, LOG_DOWN, LOG_REDUCE, LOG_SM, LOG_HBM = range(5)
# What HBM is used for: weights that rows use, what else is read, and what is written back or through.
HBM_PURPOSES = ("weights", "read", "write")
HBM_WEIGHTS, HBM_READ, HBM_WRITE = range(len(HBM_PURPOSES))

# What L2 holds of a tile (tokens, what GEMM-1 makes of them, results) and of a token chunk at its home GPU.
TILE_IN, TILE_MID, TILE_OUT = range(3)
CHUNK_INPUT, CHUNK_RESULT = range(2)
BLOCKS_PER_TILE, BLOCKS_PER_CHUNK = 3, 2

# What a layer is at: no layer; may run; a decision waits; done; the heap or log wants room; nothing can happen.
EMPTY, RUN, ASK, DONE, GROW, STUCK = range(6)

# A counter update at a home GPU: a header flit and a flit of data.
NOTIFY_FLITS = 2
# What says that a GPU has stored all it dispatches of a part: a flag, as small as an acknowledgement.
DONE_FLITS = 1

# A communication SM: in its group, to leave it when it has nothing to do, in the GEMM group, or on its way from there.
ON_DUTY, LEAVING, AWAY, COMING = range(4)

NO_TIME = -1
NOTHING = -1
# In ``slot_tile``, less the tile: its row is done, as far as the GPU that waits for it knows.
COUNTED = -2
