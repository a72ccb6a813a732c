"""Layers as what timeline.js draws: spans, what is paid, strips of use, and chunks and rows of some GPUs.

Numbers are cut to what a screen can show, so that a page stays small: use in per cent of a bin, times in nanoseconds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from dysharp_env.report import STAGE_NAMES, colours, use
from dysharp_env.report.page.parts import Timeline
from dysharp_env.report.paid import Payer
from dysharp_env.report.spans import spans_of
from dysharp_env.report.steps import Step
from dysharp_env.schedules import LayerRun
from dysharp_env.simulator.result import schedule_table
from dysharp_env.simulator.state.codes import NOTHING

_BINS = 400
_MOST_GPUS = 8
_MOST_ROWS = 1500  # of a GPU; of more it shows strips only
_GROUPS = {"dispatch": "dispatch chunks", "gemm": "GEMM rows", "combine": "combine chunks", "weights": "weights"}
_PLAIN = {"weights": "copying", "weights1": "copying", "weights2": "copying"}  # stages by their colour
_LEGEND = {
    **{stage: STAGE_NAMES[stage] for stage in colours.STAGES},
    **colours.BESIDE_NAMES,
    "paid": "launches, barriers, other kernels",
}


def timeline(title: str, runs: Sequence[tuple[str, LayerRun]], paths: Mapping[str, Sequence[Step]] = {}) -> Timeline:  # noqa: B006
    """Returns finished layers of one workload, whose engines kept logs, above each other on one time axis.

    Args:
        title: What is shown.
        runs: Who ran each layer, and the layer.
        paths: The critical paths of those that have one, by name.
    """
    end_us = max(max(run.engine.now_ps, run.lower_bound_ps) / 1e6 for _, run in runs)
    gpus = use.chosen_gpus(runs[0][1].engine, _MOST_GPUS)
    layers = [_layer(name, run, [NOTHING, *gpus], end_us, paths.get(name, ())) for name, run in runs]
    strips = [parts for layer in layers for block in layer["blocks"].values() for _, parts in block]
    shown = {stage for parts in strips for stage, _ in parts} | {"paid", *colours.STAGES}
    data = {
        "end_us": round(end_us, 3),
        "first": use.last_gpu(runs[0][1].engine) if len(runs) == 1 else NOTHING,
        "gpus": [[NOTHING, "all GPUs (mean)"], *([gpu, f"GPU {gpu}"] for gpu in gpus)],
        "colours": {**colours.ALL, "paid": colours.PAID},
        "names": _LEGEND,
        "legend": [[stage, name] for stage, name in _LEGEND.items() if stage in shown],
        "layers": layers,
    }
    return Timeline(title, data)


def _layer(name: str, run: LayerRun, gpus: Sequence[int], end_us: float, path: Sequence[Step]) -> dict[str, Any]:
    """Returns one layer."""
    bound_us, makespan_us = run.lower_bound_ps / 1e6, run.engine.now_ps / 1e6
    strips = use.strips_of(run.engine, end_us, _BINS)
    found: dict[str, Any] = {
        "name": name,
        "text": f"makespan {makespan_us:.1f} µs, {makespan_us / bound_us:.2f} × lower bound ({bound_us:.1f} µs)",
        "makespan_us": makespan_us,
        "bound_us": bound_us,
        "bin_us": end_us / _BINS,
        "spans": [
            [_PLAIN.get(stage, stage), *_rounded(first_us, last_us), STAGE_NAMES[stage]]
            for stage, (first_us, last_us) in spans_of(run).items()
        ],
        "paid": [
            [each.item.short, *_rounded(each.start_ps / 1e6, each.end_ps / 1e6), each.stage, each.gpu]
            for each in Payer.of(run).spans()
        ],
        "blocks": {
            str(gpu): [
                [strip, [[stage, (100 * used).round().astype(int).tolist()] for stage, used in parts.items()]]
                for strip, parts in use.block_of(strips, gpu).strips
            ]
            for gpu in gpus
        },
        "rows": _rows(run, gpus),
    }
    if path:
        found["path"] = [
            [step.stage, *_rounded(step.start_ps / 1e6, step.end_ps / 1e6), f"{number} {step.what}: {step.waited_for}",
             step.is_waiting and step.stage not in colours.BESIDE]
            for number, step in enumerate(path, start=1)
        ]  # fmt: skip
    return found


def _rows(run: LayerRun, gpus: Sequence[int]) -> dict[str, list[list[Any]]]:
    """Returns the chunks and rows of GPUs by group, as (stage, start, end, what it is)."""
    found: dict[int, dict[str, list[list[Any]]]] = {gpu: defaultdict(list) for gpu in gpus}
    for row in schedule_table(run.engine):
        if row.gpu in found and not math.isnan(row.end_us):
            what = f"{STAGE_NAMES[row.stage]}, {row.item}"
            what += f", {row.tokens} tokens" if row.tokens else ""
            what += f", expert {row.expert}" if row.expert >= 0 else ""
            times = _rounded(row.start_us, row.end_us)
            found[row.gpu][row.resource].append([_PLAIN.get(row.stage, row.stage), *times, what])
    return {
        str(gpu): [[text, groups[group]] for group, text in _GROUPS.items() if groups.get(group)]
        for gpu, groups in found.items()
        if 0 < sum(map(len, groups.values())) <= _MOST_ROWS
    }


def _rounded(*times_us: float) -> list[float]:
    return [round(time_us, 3) for time_us in times_us]
