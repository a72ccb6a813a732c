"""Counters of every GPU: SMs, HBM, L2, links, vectors under way and queues, each as means over equal stretches of time.

A mean over a stretch loses nothing of the total: a counter's integral is what the log adds up to.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dysharp_env.report.moves import Moves, Trips
from dysharp_env.report.timelines.groups import L2Use
from dysharp_env.report.timelines.log import COPY, PARTIAL, STORE, SUM, Log
from dysharp_env.report.timelines.model import Counter
from dysharp_env.report.use import fractions
from dysharp_env.simulator.state import codes

BINS, AGGREGATED_BINS = 1000, 250
_PER_PS = 1000.0  # bytes per picosecond in GB/s
# One thing that holds for a while, (interval,) each: on which GPU, from when to when, and how much it counts.
_Held = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def counters(log: Log, moves: Moves, l2: L2Use, bins: int) -> list[Counter]:
    """Returns the counters of all GPUs, GPU by GPU, in so many stretches of time."""
    engine = log.engine
    edges_ps = np.linspace(0.0, engine.now_ps, bins + 1)
    tables = [
        (name, unit, fractions(engine.workload.num_gpus, *held, edges_ps))
        for name, unit, held in (*_of_sms(moves), *_of_hbm(log), *_of_links(log), *_under_way(moves), *_queues(log))
    ]
    tables.append(("L2 hits of GEMM inputs", "%", _l2_hits(l2, engine.workload.num_gpus, edges_ps)))
    times_ps = edges_ps[:-1].round().astype(np.int64)
    return [
        Counter(gpu, name, unit, times_ps, table[gpu])
        for gpu in range(engine.workload.num_gpus)
        for name, unit, table in tables
    ]


def _of_sms(moves: Moves) -> Iterator[tuple[str, str, _Held]]:
    rows, lost = moves.blocks
    amount, start_ps, end_ps = rows["amount"].astype(float), rows["start_ps"], rows["end_ps"]
    fed_ps = start_ps + lost.hbm_ps
    free_ps = fed_ps + lost.communication_ps
    yield "SMs working", "SMs", (rows["gpu"], free_ps, end_ps, amount)
    yield "SMs waiting for HBM", "SMs", (rows["gpu"], start_ps, fed_ps, amount)
    if lost.communication_ps.any():
        yield "SMs communicating", "SMs", (rows["gpu"], fed_ps, free_ps, amount)


def _of_hbm(log: Log) -> Iterator[tuple[str, str, _Held]]:
    rows = log.rows[log.rows["resource"] == codes.LOG_HBM]
    yield "HBM busy", "%", (rows["gpu"], rows["start_ps"], rows["end_ps"], np.full(len(rows), 100.0))
    for purpose, name in enumerate(codes.HBM_PURPOSES):
        mine = rows[rows["purpose"] == purpose]
        took_ps = np.maximum(mine["end_ps"] - mine["start_ps"], 1)
        yield f"HBM {name}", "GB/s", (mine["gpu"], mine["start_ps"], mine["end_ps"], mine["amount"] / took_ps * _PER_PS)


def _of_links(log: Log) -> Iterator[tuple[str, str, _Held]]:
    for resource, name in ((codes.LOG_UP, "uplink"), (codes.LOG_DOWN, "downlink")):
        places = np.flatnonzero(log.rows["resource"] == resource)
        rows = log.rows[places]
        each = np.full(len(rows), 100 / log.engine.costs.planes)
        yield f"{name} busy with data", "%", (rows["gpu"], rows["start_ps"], rows["end_ps"], each)
        took_ps = np.maximum(rows["end_ps"] - rows["start_ps"], 1)
        rate = log.wire_bytes[places] / took_ps * _PER_PS
        yield f"{name} data on the wire", "GB/s", (rows["gpu"], rows["start_ps"], rows["end_ps"], rate)


def _under_way(moves: Moves) -> Iterator[tuple[str, str, _Held]]:
    for name, trips in (("dispatched", moves.dispatched()), ("combined", moves.combined())):
        yield f"vectors being {name}", "vectors", _held(trips)


def _held(trips: Trips) -> _Held:
    return trips.gpu, trips.taken_ps, trips.arrived_ps, np.ones(len(trips.gpu))


def _queues(log: Log) -> Iterator[tuple[str, str, _Held]]:
    """Yields the segments of vectors that wait for an uplink, and in the switch for a unit or downlink."""
    rows, costs = log.rows, log.engine.costs
    is_vector = log.what <= SUM
    up = np.flatnonzero((rows["resource"] == codes.LOG_UP) & is_vector)
    yield "queue of the uplink", "segments", _waiting(log, up, asked_ps(log, up))
    # The head of a segment, or of what is stored and forwarded its tail, reaches the switch a hop later.
    at_switch_ps = np.zeros(len(log.engine.state.nodes), np.int64)
    came = rows["end_ps" if costs.store_and_forward else "start_ps"]
    at_switch_ps[log.nodes[up]] = came[up] + costs.hop_ps
    reduce = np.flatnonzero(rows["resource"] == codes.LOG_REDUCE)
    if len(reduce):
        yield "queue of the reduction unit", "segments", _waiting(log, reduce, at_switch_ps[log.nodes[reduce]])
    # What is added up waits for others in its unit; copies and partial sums that are not wait for their downlink.
    is_moved = log.what <= (COPY if log.engine.program.combine.in_switch else PARTIAL)
    down = np.flatnonzero((rows["resource"] == codes.LOG_DOWN) & is_moved)
    yield "queue of the downlink", "segments", _waiting(log, down, at_switch_ps[sent_as(log, down)])


def asked_ps(log: Log, up: np.ndarray) -> np.ndarray:
    """Returns when segments of vectors, which are rows of uplinks, came to wait for the uplink."""
    engine, what = log.engine, log.what[up]
    root, trips, program, costs = engine.state.root[0], engine.state.trips, engine.program, engine.costs
    first = log.nodes[up] - log.place[up]
    reads = np.where((what == COPY) | (what == STORE), program.dispatch.reads, program.combine.reads)
    if program.combine.reads and program.combine.in_switch:
        # An SM asks for a sum, and its pieces come.
        sums = int(root["sum0"]) + log.token[up] * costs.combine_segments
        first = np.where(what == PARTIAL, sums, first)
    departs_ps = trips["departs_ps"][first - int(root["trip0"])]
    return departs_ps + reads * (2 * costs.hop_ps + costs.memory_ps)


def sent_as(log: Log, down: np.ndarray) -> np.ndarray:
    """Returns the nodes by which segments that went down, as copies or partial sums, had gone up."""
    engine, nodes = log.engine, log.nodes[down]
    if not engine.program.dispatch.in_switch:
        return nodes
    root = engine.state.root[0]
    groups = int(root["stores_per_token"])
    group = log.expert_gpu[down] // int(root["team_gpus"]) if groups > 1 else 0
    store = int(root["store0"]) + (log.token[down] * groups + group) * engine.costs.dispatch_segments
    return np.where(log.what[down] == COPY, store + log.place[down], nodes)


def _waiting(log: Log, places: np.ndarray, since_ps: np.ndarray) -> _Held:
    rows = log.rows[places]
    return rows["gpu"], np.minimum(since_ps, rows["start_ps"]), rows["start_ps"], np.ones(len(rows))


def _l2_hits(l2: L2Use, num_gpus: int, edges_ps: np.ndarray) -> np.ndarray:
    """Returns the (gpu, bin) percentage of what rows need that L2 had as they started; the last one where none did."""
    bins = len(edges_ps) - 1
    place = np.clip(np.searchsorted(edges_ps, l2.start_ps, side="right") - 1, 0, bins - 1) + l2.gpu * bins
    needed, missed = (
        np.bincount(place, weights=each, minlength=num_gpus * bins).reshape(num_gpus, bins)
        for each in (l2.needed_bytes, l2.missed_bytes)
    )
    found = 100 * (1 - missed / np.maximum(needed, 1))
    last = np.maximum.accumulate(np.where(needed > 0, np.arange(bins), -1), axis=1)
    return np.where(last >= 0, np.take_along_axis(found, np.maximum(last, 0), axis=1), 0.0)
