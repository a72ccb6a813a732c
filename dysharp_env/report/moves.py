"""What a finished layer's log says of single vectors: when each was issued, and when it took which link."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING


@dataclass(frozen=True)
class Way:
    """A vector's way through the switch, or that of its last packet, in picoseconds.

    Attributes:
        issued_ps: An SM issued the store, or the request for it.
        up_ps: It took the uplink.
        switch_ps: It could leave the switch, or be added up there: its head had come.
        reduced_ps: Its turn in a reduction unit came; None without one.
        down_ps: It, or the sum, took the downlink.
        arrived_ps: It was there.
    """

    issued_ps: int
    up_ps: int
    switch_ps: int
    reduced_ps: int | None
    down_ps: int
    arrived_ps: int


class Trips(NamedTuple):
    """Vectors that SM groups had under way, (vector,) each: on which GPU, and from when to when in picoseconds."""

    gpu: np.ndarray
    issued_ps: np.ndarray
    arrived_ps: np.ndarray


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
        self._up, self._down, self._reduce, self._sm = (
            log[log["resource"] == code] for code in (codes.LOG_UP, codes.LOG_DOWN, codes.LOG_REDUCE, codes.LOG_SM)
        )

    def dispatched(self) -> Trips:
        """Returns the copies that went down to GPUs, each on the GPU that issued it or the store that it is of."""
        rows, pairs = _of(self._down, 0, self._partial0), self._state.pairs
        pair = rows["item"] // self._copies
        first = pair * self._copies
        if self._program.dispatch.in_switch:
            first = self._store0 + pairs["token"][pair].astype(np.int64) * self._copies
        return self._trips(pairs["gpu" if self._program.dispatch.reads else "home"][pair], first, rows)

    def combined(self) -> Trips:
        """Returns the sums or partial sums that arrived, at home or in the switch, each on the GPU that issued it."""
        reads, in_switch, pairs = self._program.combine.reads, self._program.combine.in_switch, self._state.pairs
        if reads and in_switch:
            rows = self._down[self._down["item"] >= self._sum0]
            token = (rows["item"] - self._sum0) // self._sums
            root = self._state.root[0]
            return self._trips(token // int(root["tokens_per_gpu"]), self._sum0 + token * self._sums, rows)
        rows = self._reduce if in_switch else _of(self._down, self._partial0, self._store0)
        pair = (rows["item"] - self._partial0) // self._sums
        return self._trips(pairs["home" if reads else "gpu"][pair], self._partial0 + pair * self._sums, rows)

    def _trips(self, gpu: np.ndarray, first: np.ndarray, rows: np.ndarray) -> Trips:
        return Trips(gpu, self._state.trips["issued_ps"][first - self._trip0], rows["end_ps"])

    def pairs_of(self, token: int) -> range:
        """Returns the pairs of a token."""
        first, end = self._state.tokens["pair0"][token : token + 2]
        return range(int(first), int(end))

    def blocks(self, tile: int, gemm: int) -> np.ndarray:
        """Returns the log rows of a row's thread blocks."""
        return self._sm[(self._sm["item"] == tile) & (self._sm["purpose"] == gemm + 1)]

    def stalls(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the log rows of all thread blocks and, (row,), how long each took beyond its arithmetic: for HBM."""
        rows = self._sm
        tokens = self._state.tiles["count"][rows["item"]]
        kinds, kind = np.unique(
            np.stack((rows["purpose"], tokens, np.minimum(rows["gpu"], 1))), axis=1, return_inverse=True
        )
        # All GPUs but the first are equally fast.
        times = [self._costs.block_ps(stage, count, gpu) for stage, count, gpu in kinds.T.tolist()]
        alone_ps = np.array(times, np.int64)[kind.reshape(-1)]
        return rows, np.maximum(rows["end_ps"] - rows["start_ps"] - alone_ps, 0)

    def stalled_share(self, gpu: int, since_ps: int, until_ps: int) -> float:
        """Returns the part of the time of a GPU's running thread blocks that went to waiting for HBM."""
        rows, stalled_ps = self.stalls()
        took_ps = np.maximum(rows["end_ps"] - rows["start_ps"], 1)
        within_ps = np.minimum(rows["end_ps"], until_ps) - np.maximum(rows["start_ps"], since_ps)
        weight = np.where(rows["gpu"] == gpu, np.maximum(within_ps, 0) * rows["amount"], 0)
        return float((weight * (stalled_ps / took_ps)).sum() / max(weight.sum(), 1))

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
        issued = whole if self._program.combine.reads else first
        return self._way(issued, _last(down), int(added["item"]), added)

    def way_out(self, pair: int) -> Way | None:
        """Returns the way of a pair's copy, or None if it did not leave its GPU."""
        first = pair * self._copies
        rows = _of(self._down, first, first + self._copies)
        if len(rows) == 0:
            return None
        down = _last(rows)
        segment = int(down["item"]) - first
        if self._program.dispatch.in_switch:
            first = self._store0 + int(self._state.pairs["token"][pair]) * self._copies
        return self._way(first, down, first + segment)

    def arrived_ps(self, pair: int, by_ps: int) -> int:
        """Returns when a pair's token came to its GPU, or ``by_ps`` where that is not known."""
        way = self.way_out(pair)
        if way is not None:
            return way.arrived_ps
        if self._program.dispatch.reads:
            return by_ps
        token = int(self._state.pairs["token"][pair])
        return int(self._state.tokens["dispatch_start"][token]) + self._costs.memory_ps

    def last_sent(self, gpu: int, part: int) -> tuple[int, int, int]:
        """Returns the last of the copies of a part that a GPU dispatched: its pair, when it came, when that was known.

        NOTHING and zeros if none left its GPU.
        """
        rows = _of(self._down, 0, self._partial0)
        pair = rows["item"] // self._copies
        pairs, reads = self._state.pairs, self._program.dispatch.reads
        mine = (pairs["gpu" if reads else "home"][pair] == gpu) & (pairs["part"][pair] == part)
        if not mine.any():
            return NOTHING, 0, 0
        last = _last(rows[mine])
        arrived_ps = int(last["end_ps"]) + self._costs.hop_ps
        return int(last["item"]) // self._copies, arrived_ps, arrived_ps + (0 if reads else 2 * self._costs.hop_ps)

    def _way(self, issued: int, down: np.void, node: int, added: np.void | None = None) -> Way:
        """Returns the way of ``node``, whose vector's first segment was issued as ``issued``."""
        up = _last(_of(self._up, node, node + 1))
        costs = self._costs
        head_ps = int(up["end_ps" if costs.store_and_forward else "start_ps"])
        return Way(
            issued_ps=int(self._state.trips["issued_ps"][issued - self._trip0]),
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
