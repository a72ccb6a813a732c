"""A simulated layer as a Chrome trace, to be opened in Perfetto (ui.perfetto.dev) or chrome://tracing.

The trace has one process per GPU with lanes for uplink, downlink, reduction unit, GEMM rows, dispatch and combine
chunks, and weights that come to copies. A lane of the viewer cannot show two things at once, so what overlaps in one SM
group is spread over as many lanes as it needs. Data segments are shown; control flits (acknowledgements, requests,
notifications) delay them but are not drawn, so small gaps between segments are time in which the link carried those.
"""

from __future__ import annotations

import heapq
import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from dysharp_env.multimem import ScheduleRow
from dysharp_env.report import STAGE_NAMES
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import schedule_table, segment_name
from dysharp_env.simulator.state import codes

_LINK_LANES = {codes.LOG_UP: "uplink", codes.LOG_DOWN: "downlink", codes.LOG_REDUCE: "reduction unit"}
_GROUP_LANES = {"gemm": "GEMM SMs", "dispatch": "dispatch SMs", "combine": "combine SMs", "weights": "weights to come"}
# Lanes of one SM group are numbered from its base, so they are listed together and in this order.
_LANES_PER_GROUP = 1000


def chrome_trace(engine: Engine, title: str) -> bytes:
    """Returns a finished layer in the Chrome trace event format (JSON); times are in microseconds.

    Links and reduction units are shown only if the engine kept a log.
    """
    events: list[dict[str, Any]] = []
    for gpu in range(engine.workload.num_gpus):
        events.append({"ph": "M", "name": "process_name", "pid": gpu, "args": {"name": f"GPU {gpu}"}})
        events.append({"ph": "M", "name": "process_sort_index", "pid": gpu, "args": {"sort_index": gpu}})
    spans = [*_link_spans(engine), *_group_spans(engine)]
    lanes = {(span["pid"], span["tid"]): span.pop("lane") for span in spans}
    for (gpu, lane), name in sorted(lanes.items()):
        events.append({"ph": "M", "name": "thread_name", "pid": gpu, "tid": lane, "args": {"name": name}})
        events.append({"ph": "M", "name": "thread_sort_index", "pid": gpu, "tid": lane, "args": {"sort_index": lane}})
    document = {"traceEvents": events + spans, "displayTimeUnit": "ns", "otherData": {"title": title}}
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def _span(
    gpu: int, lane: int, lane_name: str, name: str, start_us: float, end_us: float, args: dict[str, Any]
) -> dict[str, Any]:
    """Returns a complete event; ``lane`` is taken out again once the lanes are named."""
    # Start and duration on a grid of picoseconds: differences of floats would make neighbours overlap by a hair.
    start_us = round(start_us, 6)
    return {
        "ph": "X",
        "pid": gpu,
        "tid": lane,
        "lane": lane_name,
        "name": name,
        "ts": start_us,
        "dur": round(end_us - start_us, 6),
        "args": args,
    }


def _link_spans(engine: Engine) -> Iterator[dict[str, Any]]:
    state, planes = engine.state, engine.costs.planes
    flit_bytes = engine.costs.packet.flit_bytes
    for resource, gpu, purpose, node, flits, start_ps, end_ps in state.log[: int(state.root["log_size"][0])].tolist():
        if resource not in _LINK_LANES:
            continue
        segment = segment_name(state, node)
        if purpose == codes.WEIGHT_DATA:
            args = {"expert": segment.token, "tile": segment.place}
        else:
            args = {"token": segment.token, "home GPU": int(state.tokens["home"][segment.token])}
        args["bytes"] = flits * flit_bytes
        if segment.what in ("copy", "partial"):
            args["expert GPU"] = segment.gpu
        lane = _LINK_LANES[resource]
        if engine.costs.resolution == "packet":
            args["packet"] = segment.place
            lane = f"{lane}, plane {segment.plane}"
        name = codes.PURPOSES[purpose].replace("_data", "").replace("_", " ")
        yield _span(gpu, resource * planes + segment.plane, lane, name, start_ps / 1e6, end_ps / 1e6, args)


def _group_spans(engine: Engine) -> Iterator[dict[str, Any]]:
    rows = [row for row in schedule_table(engine) if not math.isnan(row.end_us)]
    for place, (group, lane_name) in enumerate(_GROUP_LANES.items(), start=1):
        for gpu in range(engine.workload.num_gpus):
            for row, lane in _without_overlap(row for row in rows if row.resource == group and row.gpu == gpu):
                args: dict[str, Any] = {"tokens": row.tokens}
                if row.expert >= 0:
                    args["expert"] = row.expert
                tid = place * _LANES_PER_GROUP + lane
                name = f"{STAGE_NAMES[row.stage]} {row.item}"
                yield _span(gpu, tid, lane_name, name, row.start_us, row.end_us, args)


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
