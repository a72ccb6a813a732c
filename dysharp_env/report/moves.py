"""What a finished layer's log says of single vectors and thread blocks: when each was at what, and waited for what."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING


@dataclass(frozen=True)
class Way:
    """A vector's way through the switch, or that of its last packet, in picoseconds.

    Attributes:
        taken_ps: An SM took it to work on.
        departs_ps: The SM sent it off, or the request for it.
        up_ps: It took the uplink.
        switch_ps: It could leave the switch, or be added up there: its head had come.
        reduced_ps: Its turn in a reduction unit came; None without one.
        down_ps: It, or the sum, took the downlink.
        arrived_ps: It was there.
    """

    taken_ps: int
    departs_ps: int
    up_ps: int
    switch_ps: int
    reduced_ps: int | None
    down_ps: int
    arrived_ps: int


class Trips(NamedTuple):
    """Vectors that SM groups had under way, (vector,) each: on which GPU, and from when to when in picoseconds."""

    gpu: np.ndarray
    taken_ps: np.ndarray
    arrived_ps: np.ndarray


class Lost(NamedTuple):
    """What thread blocks took beyond their own work, (log row,) each, in picoseconds.

    Attributes:
        hbm_ps: Weights or tokens came from HBM, or weights slowed the block down while they came.
        communication_ps: Thread blocks communicated.
    """

    hbm_ps: np.ndarray
    communication_ps: np.ndarray


class Moves:
    """The log of a finished engine, by vector."""

    def __init__(self, engine: Engine) -> None:
        """Sorts the log of an engine that kept one."""
        self._state, self._costs, self._program = engine.state, engine.costs, engine.program
        root = engine.state.root[0]
        self._partial0, self._store0, self._sum0 = (int(root[name]) for name in ("partial0", "store0", "sum0"))
        self._trip0 = int(root["trip0"])
        self._copies, self._sums = engine.costs.dispatch_segments, engine.costs.combine_segments
        log = engine.state.log[: int(root["log_size"])]
        is_link = (log["resource"] == codes.LOG_UP) | (log["resource"] == codes.LOG_DOWN)
        is_weights = is_link & (log["purpose"] == codes.WEIGHT_DATA)
        self._up, self._down, self._reduce, self._sm = (
            log[(log["resource"] == code) & ~is_weights]
            for code in (codes.LOG_UP, codes.LOG_DOWN, codes.LOG_REDUCE, codes.LOG_SM)
        )
        # Places in the log, which is in order of time, of thread blocks and of what is read from HBM.
        self._sm_places = np.flatnonzero(log["resource"] == codes.LOG_SM)
        # No row waits for weights that are read to be copied.
        is_of_row = (log["purpose"] == codes.HBM_WEIGHTS) | (log["item"] >= int(root["tile_blocks"]))
        is_read = (log["resource"] == codes.LOG_HBM) & (log["purpose"] != codes.HBM_WRITE) & is_of_row
        self._read_places = np.flatnonzero(is_read)
        self._reads = log[is_read]

    def dispatched(self) -> Trips:
        """Returns the copies that went down to GPUs, each on the GPU that took it or the store that it is of."""
        rows, pairs = _of(self._down, 0, self._partial0), self._state.pairs
        pair = rows["item"] // self._copies
        first = self._taken_as(pair)
        return self._trips(pairs["gpu" if self._program.dispatch.reads else "home"][pair], first, rows)

    def _taken_as(self, pair: np.ndarray) -> np.ndarray:
        """Returns the first node of what an SM took for pairs, (pair,) each: a copy, or the store that it is of."""
        if not self._program.dispatch.in_switch:
            return pair * self._copies
        root, token = self._state.root[0], self._state.pairs["token"][pair].astype(np.int64)
        groups = int(root["stores_per_token"])
        group = self._state.pairs["gpu"][pair] // int(root["team_gpus"]) if groups > 1 else 0
        return self._store0 + (token * groups + group) * self._copies

    def combined(self) -> Trips:
        """Returns the sums or partial sums that arrived, at home or in the switch, each on the GPU that took it."""
        reads, in_switch, pairs = self._program.combine.reads, self._program.combine.in_switch, self._state.pairs
        if reads and in_switch:
            rows = self._down[self._down["item"] >= self._sum0]
            token = (rows["item"] - self._sum0) // self._sums
            return self._trips(self._state.tokens["home"][token], self._sum0 + token * self._sums, rows)
        rows = self._reduce if in_switch else _of(self._down, self._partial0, self._store0)
        pair = (rows["item"] - self._partial0) // self._sums
        return self._trips(pairs["home" if reads else "gpu"][pair], self._partial0 + pair * self._sums, rows)

    def _trips(self, gpu: np.ndarray, first: np.ndarray, rows: np.ndarray) -> Trips:
        return Trips(gpu, self._state.trips["taken_ps"][first - self._trip0], rows["end_ps"])

    def pairs_of(self, token: int) -> range:
        """Returns the pairs of a token."""
        first, end = self._state.tokens["pair0"][token : token + 2]
        return range(int(first), int(end))

    @cached_property
    def blocks(self) -> tuple[np.ndarray, Lost]:
        """The log rows of all thread blocks, and what each took beyond its own work."""
        rows = self._sm
        tokens = self._state.tiles["count"][rows["item"]]
        kinds, kind = np.unique(
            np.stack((rows["purpose"], tokens, np.minimum(rows["gpu"], 1))), axis=1, return_inverse=True
        )
        # All GPUs but the first are equally fast.
        times = [self._costs.block_ps(stage, count, gpu) for stage, count, gpu in kinds.T.tolist()]
        alone_ps = np.array(times, np.int64)[kind.reshape(-1)]
        beyond_ps = np.maximum(rows["end_ps"] - rows["start_ps"] - alone_ps, 0)
        if not self._state.root["in_gemm_permille"][0]:
            return rows, Lost(beyond_ps, np.zeros_like(beyond_ps))
        # A block that ends as its last input comes waited for that, whatever else it lost.
        weights_ps, inputs_ps = self._inputs_ps()
        cold_ps = np.maximum(weights_ps - rows["start_ps"], 0) // 1000 * self._costs.cold_exposure_permille
        lost_ps = np.where(rows["end_ps"] > inputs_ps, np.maximum(beyond_ps - cold_ps, 0), 0)
        return rows, Lost(beyond_ps - lost_ps, lost_ps)

    def _inputs_ps(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns when the weights, and when weights and tokens, of each thread block's row had come, (log row,)."""
        rows, gemm = self._sm, self._sm["purpose"] - 1
        number = self._state.experts["number"][self._state.tiles["expert"][rows["item"]]].astype(np.int64)
        # Its first blocks start right after a row has asked for what it reads.
        _, first, row = np.unique(rows["item"] * 2 + gemm, return_index=True, return_inverse=True)
        place = self._sm_places[first][row.reshape(-1)]
        tokens = int(self._state.root["tile_blocks"][0]) + rows["item"] * codes.BLOCKS_PER_TILE + gemm
        weights_ps = self._read_ps(number * 2 + gemm, place)
        return weights_ps, np.maximum(weights_ps, self._read_ps(tokens, place))

    def _read_ps(self, block: np.ndarray, place: np.ndarray) -> np.ndarray:
        """Returns when the last read of blocks that was asked for before places in the log was over; 0 without one."""
        if len(self._reads) == 0:
            return np.zeros(len(block), np.int64)
        span = int(self._state.root["log_size"][0])
        keys = self._reads["item"] * span + self._read_places
        order = np.argsort(keys)
        found = np.searchsorted(keys[order], block * span + place) - 1
        last = order[np.maximum(found, 0)]
        is_there = (found >= 0) & (self._reads["item"][last] == block)
        return np.where(is_there, self._reads["end_ps"][last], 0)

    def lost_shares(self, gpu: int, since_ps: int, until_ps: int) -> tuple[float, float]:
        """Returns the parts of the time of a GPU's running thread blocks that went to HBM and to communication."""
        rows, lost = self.blocks
        took_ps = np.maximum(rows["end_ps"] - rows["start_ps"], 1)
        within_ps = np.minimum(rows["end_ps"], until_ps) - np.maximum(rows["start_ps"], since_ps)
        weight = np.where(rows["gpu"] == gpu, np.maximum(within_ps, 0) * rows["amount"], 0)
        hbm, communication = (float((weight * (ps / took_ps)).sum() / max(weight.sum(), 1)) for ps in lost)
        return hbm, communication

    def crossed(self, pair: int) -> bool:
        """Returns whether a pair's partial sum took an uplink."""
        first = self._partial0 + pair * self._sums
        return len(_of(self._up, first, first + self._sums)) > 0

    def last_partial(self, token: int) -> int:
        """Returns the pair whose partial sum was the last that came home or was added up, or NOTHING if none moved."""
        pairs = self.pairs_of(token)
        first, end = (self._partial0 + pair * self._sums for pair in (pairs.start, pairs.stop))
        rows = _of(self._reduce if self._program.combine.in_switch else self._down, first, end)
        if len(rows) == 0:
            return NOTHING
        return int(rows["item"][np.argmax(rows["end_ps"])] - self._partial0) // self._sums

    def way_home(self, token: int, pair: int) -> Way:
        """Returns the way of a pair's partial sum; if it is added up in the switch, on with the sum."""
        first = self._partial0 + pair * self._sums
        if not self._program.combine.in_switch:
            came = _last(_of(self._down, first, first + self._sums))
            return self._way(first, came, int(came["item"]))
        added = _last(_of(self._reduce, first, first + self._sums))
        segment = (int(added["item"]) - self._partial0) % self._sums
        whole = self._sum0 + token * self._sums
        down = _of(self._down, whole + segment, whole + segment + 1)
        if len(down) == 0:
            # The sum was given up early: its last piece went home under a partial sum's name.
            pairs = self.pairs_of(token)
            ends = (self._partial0 + each * self._sums for each in (pairs.start, pairs.stop))
            down = _of(self._down, *ends)
        taken_as = whole if self._program.combine.reads else first
        return self._way(taken_as, _last(down), int(added["item"]), added)

    def way_out(self, pair: int) -> Way | None:
        """Returns the way of a pair's copy, or None if it did not leave its GPU."""
        first = pair * self._copies
        rows = _of(self._down, first, first + self._copies)
        if len(rows) == 0:
            return None
        down = _last(rows)
        taken_as = int(self._taken_as(np.array([pair]))[0])
        return self._way(taken_as, down, taken_as + int(down["item"]) - first)

    def arrived_ps(self, pair: int, by_ps: int) -> int:
        """Returns when a pair's token came to its GPU, or ``by_ps`` where that is not known."""
        way = self.way_out(pair)
        if way is not None:
            return way.arrived_ps
        # Parts of peers or experts take a token again, and only the first time is kept.
        if self._program.dispatch.reads or (self._program.rounds > 1 and self._state.pairs["part"][pair] > 0):
            return by_ps
        token = int(self._state.pairs["token"][pair])
        return int(self._state.tokens["dispatch_start"][token]) + self._costs.memory_ps

    def last_sent(self, gpu: int, part: int) -> tuple[int, int, int]:
        """Returns what ended a part's dispatch on a GPU: a copy's pair, when it came, and when that was known.

        A part is over with all before it; one that the next does not wait for, as its last copy is taken. NOTHING and
        zeros if no copy left the GPU.
        """
        rows = _of(self._down, 0, self._partial0)
        pair = rows["item"] // self._copies
        pairs, reads = self._state.pairs, self._program.dispatch.reads
        mine = (pairs["gpu" if reads else "home"][pair] == gpu) & (pairs["part"][pair] <= part)
        if not mine.any():
            return NOTHING, 0, 0
        is_wave = self._program.parts_by == codes.BY_EXPERTS and part < int(self._state.root["num_parts"][0]) - 1
        if is_wave:
            taken_ps = self._state.trips["taken_ps"][pair[mine] * self._copies - self._trip0]
            last_ps = int(taken_ps.max())
            return int(pair[mine][np.argmax(taken_ps)]), last_ps, last_ps
        last = _last(rows[mine])
        arrived_ps = int(last["end_ps"]) + self._costs.hop_ps
        return int(last["item"]) // self._copies, arrived_ps, arrived_ps + (0 if reads else 2 * self._costs.hop_ps)

    def _way(self, taken_as: int, down: np.void, node: int, added: np.void | None = None) -> Way:
        """Returns the way of ``node``; an SM took what it is part of as the vector whose first is ``taken_as``."""
        up = _last(_of(self._up, node, node + 1))
        costs = self._costs
        head_ps = int(up["end_ps" if costs.store_and_forward else "start_ps"])
        trip = self._state.trips[taken_as - self._trip0]
        return Way(
            taken_ps=int(trip["taken_ps"]),
            departs_ps=int(trip["departs_ps"]),
            up_ps=int(up["start_ps"]),
            switch_ps=head_ps + costs.hop_ps,
            reduced_ps=None if added is None else int(added["start_ps"]),
            down_ps=int(down["start_ps"]),
            arrived_ps=int(down["end_ps"]) + costs.hop_ps,
        )


def _of(rows: np.ndarray, first: int, end: int) -> np.ndarray:
    """Returns the log rows whose node is in [first, end)."""
    return rows[(rows["item"] >= first) & (rows["item"] < end)]


def _last(rows: np.ndarray) -> np.void:
    row: np.void = rows[np.argmax(rows["end_ps"])]
    return row
