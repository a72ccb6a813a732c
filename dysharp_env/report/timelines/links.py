"""Tracks of links and reduction units: every segment, or the stretches in which they were in use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dysharp_env.report.timelines.log import STORE, WEIGHT_STORE, Log
from dysharp_env.report.timelines.model import LINKS, Slice, Track
from dysharp_env.simulator.state import codes

UPLINK, DOWNLINK, REDUCTION = "uplink", "downlink", "reduction unit"
_NAMES = {codes.LOG_UP: UPLINK, codes.LOG_DOWN: DOWNLINK, codes.LOG_REDUCE: REDUCTION}
_NOTE = "control flits (requests, acknowledgements, notifications) delay data but are not drawn"
# Stretches of one purpose that are less than this share of the makespan apart are shown as one.
_GAP_SHARE = 1 / 1000


def link_tracks(log: Log, ranks: Mapping[str, int], flows: Mapping[int, tuple[int, ...]]) -> Iterator[Track]:
    """Yields a track for every link and plane with its segments.

    Args:
        log: The log.
        ranks: The rank of each of the three, by name.
        flows: Flows that go through rows of the log.
    """
    planes, by_packet = log.engine.costs.planes, log.engine.costs.resolution == "packet"
    for rows, resource, gpu, plane in _by_lane(log, planes):
        name = _NAMES[resource]
        lane = f"{name}, plane {plane}" if by_packet else name
        yield Track(gpu, lane, ranks[name], _Segments(log, rows, flows), lane=plane, of=LINKS, note=_NOTE)


def aggregated_link_tracks(log: Log, ranks: Mapping[str, int]) -> Iterator[Track]:
    """Yields a track for every link, plane and purpose with stretches in which it was in use."""
    planes, by_packet = log.engine.costs.planes, log.engine.costs.resolution == "packet"
    gap_ps = int(log.engine.now_ps * _GAP_SHARE)
    for rows, resource, gpu, plane in _by_lane(log, planes):
        name = _NAMES[resource]
        for purpose in np.unique(log.rows["purpose"][rows]).tolist():
            mine = rows[log.rows["purpose"][rows] == purpose]
            lane = f"{name}: {purpose_name(purpose)}" + (f", plane {plane}" if by_packet else "")
            number = plane * codes.NUM_PURPOSES + purpose
            yield Track(gpu, lane, ranks[name], _stretches(log, mine, gap_ps), lane=number, of=LINKS, note=_NOTE)


def purpose_name(purpose: int) -> str:
    """Returns what a flit of data is for, as people read it."""
    return codes.PURPOSES[purpose].replace("_data", "").replace("_", " ")


def _by_lane(log: Log, planes: int) -> Iterator[tuple[np.ndarray, int, int, int]]:
    """Yields the places of rows, in order of start, of every (resource, gpu, plane), which follow."""
    resource, gpu = log.rows["resource"], log.rows["gpu"]
    found = np.flatnonzero(resource <= codes.LOG_REDUCE)
    key = (gpu[found] * len(_NAMES) + resource[found]) * planes + log.plane[found]
    order = np.lexsort((log.rows["start_ps"][found], key))
    found, key = found[order], key[order]
    for rows in np.split(found, np.flatnonzero(np.diff(key)) + 1) if len(found) else ():
        first = rows[0]
        yield rows, int(resource[first]), int(gpu[first]), int(log.plane[first])


class _Segments:
    """The segments of one lane as slices, made as they are gone through."""

    def __init__(self, log: Log, rows: np.ndarray, flows: Mapping[int, tuple[int, ...]]) -> None:
        self._log, self._rows, self._flows = log, rows, flows

    def __iter__(self) -> Iterator[Slice]:
        log, rows = self._log, self._rows
        home, by_packet = log.engine.state.tokens["home"], log.engine.costs.resolution == "packet"
        columns = zip(
            *(rows.tolist(), log.rows["purpose"][rows].tolist()),
            *(log.rows["start_ps"][rows].tolist(), log.rows["end_ps"][rows].tolist()),
            *(log.token[rows].tolist(), log.expert_gpu[rows].tolist(), log.expert[rows].tolist()),
            *(log.place[rows].tolist(), log.what[rows].tolist()),
            *(log.wire_bytes[rows].tolist(), log.payload_bytes[rows].tolist()),
            strict=True,
        )
        for row, purpose, start_ps, end_ps, token, expert_gpu, expert, place, what, wire, payload in columns:
            if expert >= 0:
                args: dict[str, Any] = {"expert": expert, "weight_tile": place}
            else:
                args = {"token": token, "home_gpu": int(home[token])}
                if expert_gpu >= 0:
                    args["expert_gpu"] = expert_gpu
                if by_packet:
                    args["packet"] = place
            if what in (STORE, WEIGHT_STORE):
                args["to_many"] = 1
            args["wire_bytes"], args["payload_bytes"] = wire, payload
            yield Slice(purpose_name(purpose), start_ps, end_ps, args, self._flows.get(row, ()))


def _stretches(log: Log, rows: np.ndarray, gap_ps: int) -> list[Slice]:
    """Returns the slices of what is less than a gap apart, with how much of each the link was in use."""
    start, end = log.rows["start_ps"][rows], log.rows["end_ps"][rows]
    firsts = np.flatnonzero(np.concatenate(([True], start[1:] - end[:-1] > gap_ps)))
    lasts = np.append(firsts[1:], len(rows)) - 1
    sums = (np.add.reduceat(each, firsts) for each in (end - start, log.wire_bytes[rows], log.payload_bytes[rows]))
    columns = zip(
        *(start[firsts].tolist(), end[lasts].tolist(), (lasts - firsts + 1).tolist()),
        *(each.tolist() for each in sums),
        strict=True,
    )
    name = purpose_name(int(log.rows["purpose"][rows[0]]))
    return [
        Slice(
            name,
            since_ps,
            until_ps,
            {"segments": count, "busy_ps": busy_ps, "wire_bytes": wire, "payload_bytes": payload},
        )
        for since_ps, until_ps, count, busy_ps, wire, payload in columns
    ]
