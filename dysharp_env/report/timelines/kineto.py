"""Writes timelines as PyTorch profiler traces (Kineto JSON), a file a GPU, as HolisticTraceAnalysis reads them.

GPUs are ranks, tracks are streams, and everything is a kernel: rows of GEMMs, kernels between phases, and what is on a
link, whose names begin as those of NCCL's kernels do, for that is how communication is told from computation. Chunks,
decisions, counters, flows, fixed costs and the switch's reduction units are left out: no GPU runs a kernel for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from dysharp_env.report.timelines.links import REDUCTION
from dysharp_env.report.timelines.model import ALL_GPUS, GEMMS, KERNELS, LINKS, Timeline, Track

COMMUNICATION = "ncclDevKernel_"


def kineto_json(timeline: Timeline, gpu: int) -> bytes:
    """Returns one GPU's part of a timeline as a PyTorch profiler trace; what all GPUs pay together is in each."""
    events = [
        {"ph": "M", "name": "process_name", "pid": gpu, "tid": 0, "ts": 0, "args": {"name": "dysharp_env"}},
        {"ph": "M", "name": "process_labels", "pid": gpu, "tid": 0, "ts": 0, "args": {"labels": f"GPU {gpu}"}},
    ]
    correlation = 0
    for stream, track in enumerate(_kernel_tracks(timeline, gpu), start=1):
        head = {"ph": "M", "name": "thread_name", "pid": gpu, "tid": stream, "ts": 0}
        events.append({**head, "args": {"name": f"stream {stream}: {track.name}"}})
        for each in track.slices:
            correlation += 1
            args = {"device": gpu, "stream": stream, "correlation": correlation, "context": 1, **each.args}
            times = {"ts": each.start_ps / 1e6, "dur": (each.end_ps - each.start_ps) / 1e6}
            head = {"ph": "X", "cat": "kernel", "name": _name(track, each.name), "pid": gpu, "tid": stream}
            events.append({**head, **times, "args": args})
    head = {
        "schemaVersion": 1,
        "distributedInfo": {"backend": "nccl", "rank": gpu, "world_size": timeline.num_gpus},
        "deviceProperties": [{"id": gpu, "name": "simulated GPU"}],
        "displayTimeUnit": "ms",
        "traceName": timeline.title,
    }
    # HolisticTraceAnalysis looks for the rank line by line, with a space before the number.
    lines = ",\n".join(json.dumps(event, allow_nan=False, separators=(",", ":")) for event in events)
    return f'{json.dumps(head)[:-1]},\n"traceEvents": [\n{lines}\n]}}\n'.encode()


def _kernel_tracks(timeline: Timeline, gpu: int) -> Iterator[Track]:
    for track in timeline.tracks:
        if (
            track.gpu in (gpu, ALL_GPUS)
            and track.of in (LINKS, GEMMS, KERNELS)
            and not track.name.startswith(REDUCTION)
        ):
            yield track


def _name(track: Track, name: str) -> str:
    if track.of != LINKS:
        return name
    link = track.name.partition(",")[0].partition(":")[0]
    return f"{COMMUNICATION}{name}_{link}".replace(" ", "_")
