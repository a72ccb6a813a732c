"""Writes timelines as Chrome traces (JSON), which ui.perfetto.dev and chrome://tracing open.

Format: "Trace Event Format", Google; times are microseconds, here with six digits behind the point: picoseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from dysharp_env.report.timelines.model import ALL_GPUS, Timeline, Track

# Lanes of one track name are numbered from its base, so they are listed together and in this order.
_LANES_PER_RANK = 1000


def chrome_json(timeline: Timeline) -> bytes:
    """Returns a timeline as a Chrome trace; a GPU's process has its number, the layer's comes after them."""
    events = [*_names(timeline), *_slices(timeline), *_counters(timeline)]
    other = {"title": timeline.title, "is_aggregated": timeline.is_aggregated, "notes": list(timeline.notes)}
    document = {"traceEvents": events, "displayTimeUnit": "ns", "otherData": other}
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode()


def _process(timeline: Timeline, gpu: int) -> int:
    return timeline.num_gpus if gpu == ALL_GPUS else gpu


def _thread(track: Track) -> int:
    return track.rank * _LANES_PER_RANK + track.lane


def _names(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for gpu in (*range(timeline.num_gpus), ALL_GPUS):
        head = {"ph": "M", "pid": _process(timeline, gpu)}
        yield {**head, "name": "process_name", "args": {"name": "layer" if gpu == ALL_GPUS else f"GPU {gpu}"}}
        yield {**head, "name": "process_sort_index", "args": {"sort_index": gpu}}
    for track in timeline.tracks:
        head = {"ph": "M", "pid": _process(timeline, track.gpu), "tid": _thread(track)}
        yield {**head, "name": "thread_name", "args": {"name": track.name}}
        yield {**head, "name": "thread_sort_index", "args": {"sort_index": _thread(track)}}


def _slices(timeline: Timeline) -> Iterator[dict[str, Any]]:
    steps: dict[int, list[tuple[int, int, int]]] = {}
    for track in timeline.tracks:
        pid, tid = _process(timeline, track.gpu), _thread(track)
        for each in track.slices:
            # On a grid of picoseconds: differences of floats would make neighbours overlap by a hair.
            times = {"ts": each.start_ps / 1e6, "dur": (each.end_ps - each.start_ps) / 1e6}
            yield {"ph": "X", "pid": pid, "tid": tid, "name": each.name, **times, "args": each.args}
            for flow in each.flows:
                steps.setdefault(flow, []).append((each.start_ps, pid, tid))
        for instant in track.instants:
            head = {"ph": "i", "s": "t", "pid": pid, "tid": tid, "name": instant.name}
            yield {**head, "ts": instant.time_ps / 1e6, "args": instant.args}
    for flow, places in steps.items():
        places.sort()
        for step, (start_ps, pid, tid) in enumerate(places):
            phase = "s" if step == 0 else "f" if step == len(places) - 1 else "t"
            head = {"ph": phase, "bp": "e", "cat": "token", "name": "token", "id": flow}
            yield {**head, "pid": pid, "tid": tid, "ts": start_ps / 1e6}


def _counters(timeline: Timeline) -> Iterator[dict[str, Any]]:
    for counter in timeline.counters:
        head = {"ph": "C", "pid": counter.gpu, "name": f"{counter.name} ({counter.unit})"}
        last: float | None = None
        for time_ps, value in zip(counter.times_ps.tolist(), counter.values.round(6).tolist(), strict=True):
            if value != last:
                yield {**head, "ts": time_ps / 1e6, "args": {counter.unit: value}}
            last = value
