"""Tracks of SM groups: chunks that are dispatched and combined, rows of GEMMs with their SMs, copies' weights."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.multimem import ScheduleRow
from dysharp_env.report import STAGE_NAMES
from dysharp_env.report.moves import Moves
from dysharp_env.report.timelines.model import GEMMS, OTHER, Slice, Track
from dysharp_env.report.use import row_hits
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import schedule_table
from dysharp_env.simulator.state.codes import GEMM1, GEMM2

GROUPS = {"gemm": "GEMM SMs", "dispatch": "dispatch SMs", "combine": "combine SMs", "weights": "weights to come"}


def group_tracks(
    engine: Engine, ranks: Mapping[str, int], use: RowUse | None, flows: Mapping[tuple[str, str], tuple[int, ...]]
) -> Iterator[Track]:
    """Yields tracks of what each SM group has under way: as many for a group as it has at once.

    Args:
        engine: A finished layer, or one under way, of which what has ended is shown.
        ranks: The rank of each group, by name.
        use: What rows used, of an engine that kept a log.
        flows: Flows that go through a stage of an item, both as the schedule's table names them.
    """
    rows = [row for row in schedule_table(engine) if not math.isnan(row.end_us)]
    for group, name in GROUPS.items():
        for gpu in range(engine.workload.num_gpus):
            lanes: dict[int, list[Slice]] = {}
            for row, lane in _without_overlap(row for row in rows if row.resource == group and row.gpu == gpu):
                lanes.setdefault(lane, []).append(_slice(row, use, flows.get((row.stage, row.item), ())))
            of = GEMMS if group == "gemm" else OTHER
            yield from (Track(gpu, name, ranks[name], lanes[lane], lane=lane, of=of) for lane in sorted(lanes))


def _slice(row: ScheduleRow, use: RowUse | None, flows: tuple[int, ...]) -> Slice:
    args: dict[str, Any] = {"tokens": row.tokens} if row.tokens else {}
    if row.expert >= 0:
        args["expert"] = row.expert
    if row.resource == "gemm" and use:
        args |= use.of(int(row.item.split()[1]), row.stage)
    start_ps, end_ps = round(row.start_us * 1e6), round(row.end_us * 1e6)
    return Slice(f"{STAGE_NAMES[row.stage]} {row.item}", start_ps, end_ps, args, flows)


def _without_overlap(rows: Iterable[ScheduleRow]) -> Iterator[tuple[ScheduleRow, int]]:
    """Yields rows, which come in order of start, each with the lowest lane that is free by then."""
    busy: list[tuple[float, int]] = []  # (end, lane)
    free: list[int] = []
    for row in rows:
        while busy and busy[0][0] <= row.start_us:
            heapq.heappush(free, heapq.heappop(busy)[1])
        lane = heapq.heappop(free) if free else len(busy)
        heapq.heappush(busy, (row.end_us, lane))
        yield row, lane


class L2Use(NamedTuple):
    """What started rows took from memory, (row,) each: the GPU, when, bytes that they needed, and those not in L2."""

    gpu: np.ndarray
    start_ps: np.ndarray
    needed_bytes: np.ndarray
    missed_bytes: np.ndarray


class RowUse:
    """What the log says of rows of GEMMs: their SMs, what these waited for, and what L2 had of their inputs."""

    def __init__(self, engine: Engine, moves: Moves) -> None:
        """Sums thread blocks up by row; a row is a (tile, GEMM) that has started."""
        blocks, lost = moves.blocks
        self._key, first, row = np.unique(
            blocks["item"] * 2 + blocks["purpose"] - 1, return_index=True, return_inverse=True
        )
        row = row.reshape(-1)

        def total(weights: np.ndarray) -> np.ndarray:
            return np.bincount(row, weights=weights, minlength=len(self._key)).astype(np.int64)

        count = blocks["amount"]
        self._blocks, self._sm_ps = total(count), total(count * (blocks["end_ps"] - blocks["start_ps"]))
        self._hbm_ps, self._communication_ps = total(count * lost.hbm_ps), total(count * lost.communication_ps)
        self._most = self._most_at_once(blocks, row)
        self._start_ps, self._gpu = blocks["start_ps"][first], blocks["gpu"][first]
        self.l2 = self._l2(engine)

    def _most_at_once(self, blocks: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Returns the most SMs that each row had at once; an SM that one block frees takes the next."""
        rows = np.concatenate((row, row))
        times = np.concatenate((blocks["start_ps"], blocks["end_ps"]))
        steps = np.concatenate((blocks["amount"], -blocks["amount"]))
        order = np.lexsort((steps, times, rows))
        held = np.cumsum(steps[order])  # every row ends with none
        most = np.zeros(len(self._key), np.int64)
        np.maximum.at(most, rows[order], held)
        return most

    def _l2(self, engine: Engine) -> L2Use:
        read, found = (each[self._key // 2, self._key % 2] for each in row_hits(engine))
        return L2Use(self._gpu, self._start_ps, read, read - found)

    def of(self, tile: int, stage: str) -> dict[str, Any]:
        """Returns what is known of a row, by name."""
        place = int(np.searchsorted(self._key, tile * 2 + (GEMM2 if stage == "gemm2" else GEMM1)))
        found = {
            "thread_blocks": int(self._blocks[place]),
            "most_sms": int(self._most[place]),
            "sm_time_us": int(self._sm_ps[place]) / 1e6,
            "hbm_wait_us": int(self._hbm_ps[place]) / 1e6,
            "input_bytes": int(self.l2.needed_bytes[place]),
            "l2_missed_bytes": int(self.l2.missed_bytes[place]),
        }
        if self._communication_ps[place]:
            found["communication_us"] = int(self._communication_ps[place]) / 1e6
        return found
