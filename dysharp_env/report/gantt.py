"""Pictures of a layer: what every GPU's uplink, SMs and downlink do over time.

Each GPU is a block of three strips. The height of a strip is how much of the resource is in use at that moment: the
part of the time a link sends data, the part of the GEMM group's SMs that run thread blocks. Colours say what for, and
are chosen to stay apart for the colour-blind (Okabe and Ito). Links are known only if the engine keeps a log; without
one, the strips show how many chunks and rows the SM groups have under way, relative to their most.

Drawing reads an engine and changes nothing. Figures are made without pyplot, so there is no global state either.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Patch

from dysharp_env.report import STAGE_NAMES
from dysharp_env.report.files import write_bytes
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import schedule_table
from dysharp_env.simulator.state import codes, observation

# Okabe and Ito, "Color Universal Design" (2008).
COLOURS = {"dispatch": "#0072B2", "gemm1": "#009E73", "gemm2": "#CC79A7", "combine": "#E69F00"}
_STRIP_GROUND = "#F1F3F5"
_INK, _FAINT = "#212529", "#868E96"
_BOUND_COLOUR = "#D55E00"
_TITLE: dict[str, Any] = {"fontsize": 11.5, "fontweight": "bold", "color": _INK}
_LEGEND: dict[str, Any] = {
    **{"frameon": False, "fontsize": 9.5, "labelcolor": _INK},
    **{"handlelength": 1.2, "handleheight": 0.9, "columnspacing": 1.4},
}
_DPI = 100
_BIN_PX = 4  # narrower, and the strips show single segments rather than use
_BLOCK_PITCH = 3.6  # a block's three strips and the space below them, in strip heights
_STRIP_FILL = 0.84  # of a strip's height; the rest keeps strips apart
# Margins in pixels at scale 1.
_LEFT_PX, _RIGHT_PX, _HEAD_PX, _FOOT_PX = 122, 24, 58, 56
# Where, as a fraction of the time axis, a label no longer fits to the right or to the left of its line.
_FULL_RIGHT, _FULL_LEFT = 0.75, 0.08


@dataclass(frozen=True)
class _Block:
    """One GPU's strips, or the mean of all: for each strip its name and the used fraction by stage, (bin,) each."""

    name: str
    strips: tuple[tuple[str, dict[str, np.ndarray]], ...]


def render(
    *panels: tuple[str, Engine],
    lower_bound_us: float | None = None,
    width: int = 1200,
    max_gpus: int | None = None,
    scale: float = 1.0,
) -> np.ndarray:
    """Returns a picture of layers, one above the other on one time axis, as (height, width, 3) uint8 times ``scale``.

    Args:
        *panels: Title and engine of each layer, running or finished.
        lower_bound_us: Drawn as a dashed line.
        width: Pixels at scale 1; the height follows from the GPUs shown.
        max_gpus: Most GPUs shown of a layer: 8 of one, 2 of each of several, if not given; of more, the mean of all and
            GPUs evenly spread over the system.
        scale: Pixels per pixel, for screens that have more of them.
    """
    most = max_gpus or (8 if len(panels) == 1 else 2)
    end_us = max(lower_bound_us or 0.0, 1e-3, *(engine.now_ps / 1e6 for _, engine in panels))
    drawn = [(title, engine, _blocks(engine, most, end_us, width)) for title, engine in panels]
    strip_px = 24 if max(len(blocks) for *_, blocks in drawn) <= 4 else 18
    heights = [round(len(blocks) * _BLOCK_PITCH * strip_px) for *_, blocks in drawn]
    height = sum(heights) + _HEAD_PX * len(panels) + _FOOT_PX
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI * scale, facecolor="white")
    bottom = height
    for (title, engine, blocks), panel_height in zip(drawn, heights, strict=True):
        top = bottom - _HEAD_PX
        bottom = top - panel_height
        box = (_LEFT_PX / width, bottom / height, (width - _LEFT_PX - _RIGHT_PX) / width, panel_height / height)
        axes = figure.add_axes(box)
        _draw_blocks(axes, blocks, end_us)
        _draw_ends(axes, engine, lower_bound_us)
        axes.tick_params(labelbottom=bottom <= _FOOT_PX)
        figure.text(14 / width, (top + 34) / height, title, **_TITLE, va="center", parse_math=False)
    axes.set_xlabel("time, µs", color=_INK, fontsize=9.5, loc="left", labelpad=1)
    handles = [Patch(facecolor=colour, label=STAGE_NAMES[stage]) for stage, colour in COLOURS.items()]
    corner = (1 - _RIGHT_PX / width, 0.0)
    figure.legend(handles=handles, loc="lower right", bbox_to_anchor=corner, ncols=len(handles), **_LEGEND)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def write_picture(path: str | Path, *panels: tuple[str, Engine], lower_bound_us: float, scale: float = 2.0) -> None:
    """Writes what ``render`` returns as a PNG file.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_bytes(path, encode_png(render(*panels, lower_bound_us=lower_bound_us, scale=scale)))


def encode_png(picture: np.ndarray) -> bytes:
    """Returns an (height, width, 3) uint8 picture as a PNG file."""
    stream = io.BytesIO()
    imsave(stream, picture, format="png")
    return stream.getvalue()


# What is drawn: used fractions over time.


def _blocks(engine: Engine, max_gpus: int, end_us: float, width: int) -> list[_Block]:
    """Returns the strips to draw: every GPU, or the mean of all and a few."""
    num_gpus = engine.workload.num_gpus
    edges_ps = np.linspace(0.0, end_us * 1e6, max(width // _BIN_PX, 2) + 1)
    use = _logged_use(engine, edges_ps) if engine.state.root["logging"][0] else _table_use(engine, edges_ps)

    def block(name: str, gpus: np.ndarray) -> _Block:
        means = ((strip, {stage: used[gpus].mean(axis=0) for stage, used in stages.items()}) for strip, stages in use)
        return _Block(name, tuple(means))

    if num_gpus <= max_gpus:
        return [block(f"GPU {gpu}", np.array([gpu])) for gpu in range(num_gpus)]
    chosen = np.unique(np.linspace(0, num_gpus - 1, max_gpus).round().astype(int))
    mean = block("all (mean)", np.arange(num_gpus))
    return [mean, *(block(f"GPU {gpu}", np.array([gpu])) for gpu in chosen)]


def _logged_use(engine: Engine, edges_ps: np.ndarray) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Returns for uplinks, SMs and downlinks the used fraction by stage, (gpu, bin) each, from the engine's log."""
    root = engine.state.root[0]
    log = engine.state.log[: int(root["log_size"])]
    resource, gpu, purpose, amount = (log[name] for name in ("resource", "gpu", "purpose", "amount"))
    start, end = log["start_ps"], log["end_ps"]
    num_gpus = engine.workload.num_gpus

    def used(chosen: np.ndarray, weight: np.ndarray) -> np.ndarray:
        args = (gpu[chosen], start[chosen], end[chosen], weight[chosen])
        return np.clip(_fractions(num_gpus, *args, edges_ps), 0.0, 1.0)

    once = np.full(len(log), 1 / engine.costs.planes)
    is_dispatch = purpose == codes.DISPATCH_DATA
    links = {
        name: {
            "dispatch": used((resource == code) & is_dispatch, once),
            "combine": used((resource == code) & ~is_dispatch, once),
        }
        for name, code in (("uplink", codes.LOG_UP), ("downlink", codes.LOG_DOWN))
    }
    blocks = amount / _most_gemm_sms(engine)
    sms = {f"gemm{stage}": used((resource == codes.LOG_SM) & (purpose == stage), blocks) for stage in (1, 2)}
    return [("uplink", links["uplink"]), ("SMs", sms), ("downlink", links["downlink"])]


def _most_gemm_sms(engine: Engine) -> int:
    """Returns the size of the GEMM group, the largest if it changes while the layer runs."""
    root, splits = engine.state.root[0], engine.state.splits
    if root["split_moments"] > 0 and len(splits) > 0:
        return int(root["num_sms"] - (splits["dispatch_sms"] + splits["combine_sms"]).min())
    return int(engine.state.gpus["groups"]["sms"][0, observation.GEMM])


def _table_use(engine: Engine, edges_ps: np.ndarray) -> list[tuple[str, dict[str, np.ndarray]]]:
    """Returns dispatch chunks, GEMM rows and combine chunks under way, over the most there are, from the table."""
    num_gpus = engine.workload.num_gpus
    rows = schedule_table(engine)
    strips = []
    for strip, names in (("dispatch", ("dispatch",)), ("SMs", ("gemm1", "gemm2")), ("combine", ("combine",))):
        stages = {}
        for stage in names:
            chosen = [row for row in rows if row.stage == stage]
            gpu = np.array([row.gpu for row in chosen], np.int64)
            start = np.array([row.start_us for row in chosen]) * 1e6
            end = np.array([engine.now_ps if math.isnan(row.end_us) else row.end_us * 1e6 for row in chosen])
            stages[stage] = _fractions(num_gpus, gpu, start, end, np.ones(len(chosen)), edges_ps)
        most = max(sum(stages.values()).max(), 1.0)  # type: ignore[union-attr]
        strips.append((strip, {stage: used / most for stage, used in stages.items()}))
    return strips


def _fractions(
    num_gpus: int, gpu: np.ndarray, start: np.ndarray, end: np.ndarray, weight: np.ndarray, edges: np.ndarray
) -> np.ndarray:
    """Returns the (gpu, bin) mean over each bin of the summed weights of the intervals that cover it."""
    means = np.zeros((num_gpus, len(edges) - 1))
    for index in range(num_gpus):
        mine = gpu == index
        area = _area_before(edges, start[mine], weight[mine]) - _area_before(edges, end[mine], weight[mine])
        means[index] = np.diff(area) / np.diff(edges)
    return means


def _area_before(edges: np.ndarray, since: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Returns at each edge the area under a sum of steps, each of which rises by its weight at ``since`` and stays."""
    order = np.argsort(since, kind="stable")
    height = np.concatenate(([0.0], np.cumsum(weight[order])))
    moment = np.concatenate(([0.0], np.cumsum(weight[order] * since[order])))
    place = np.searchsorted(since[order], edges)
    return height[place] * edges - moment[place]


# How it is drawn.


def _draw_blocks(axes: Axes, blocks: list[_Block], end_us: float) -> None:
    """Draws the strips of all blocks, top to bottom, and names them."""
    axes.set_xlim(0.0, end_us * 1.005)
    axes.set_ylim(len(blocks) * _BLOCK_PITCH, 0.0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_FAINT)
    axes.tick_params(axis="x", colors=_INK, labelsize=9)
    axes.set_yticks([])
    axes.grid(axis="x", color="white", linewidth=1.0)
    axes.set_axisbelow(True)  # above the ground of the strips, below what is drawn on it
    beside = axes.get_yaxis_transform()
    for index, block in enumerate(blocks):
        for place, (name, stages) in enumerate(block.strips):
            base = index * _BLOCK_PITCH + place + 1.0
            axes.axhspan(base - _STRIP_FILL, base, color=_STRIP_GROUND, linewidth=0, zorder=0)
            centre = base - _STRIP_FILL / 2
            axes.text(-0.006, centre, name, transform=beside, ha="right", va="center", fontsize=7.5, color=_FAINT)
            _draw_strip(axes, base, stages, end_us)
        middle = index * _BLOCK_PITCH + 2.0 - _STRIP_FILL / 2
        axes.text(-0.103, middle, block.name, transform=beside, ha="left", va="center", fontsize=9.5, color=_INK)


def _draw_strip(axes: Axes, base: float, stages: dict[str, np.ndarray], end_us: float) -> None:
    """Draws the used fractions of one strip, stacked upwards from ``base``."""
    bins = len(next(iter(stages.values())))
    time_us = np.linspace(0.0, end_us, bins + 1)
    below = np.zeros(bins)
    for stage, used in stages.items():
        # A link that sends back to back for two stages must not come out above its strip by rounding.
        above = np.minimum(below + used, 1.0)
        axes.fill_between(
            time_us,
            base - _STRIP_FILL * np.append(below, below[-1]),
            base - _STRIP_FILL * np.append(above, above[-1]),
            step="post",
            color=COLOURS[stage],
            linewidth=0,
            zorder=2,
        )
        below = above


def _draw_ends(axes: Axes, engine: Engine, lower_bound_us: float | None) -> None:
    """Marks the lower bound and the end of the layer (or the present, while it runs), each with its time."""
    now_us, span_us = engine.now_ps / 1e6, axes.get_xlim()[1]
    ratio = f", {now_us / lower_bound_us:.2f} × bound" if lower_bound_us and engine.done else ""
    marks = [(now_us, f"{'makespan' if engine.done else 'now'} {now_us:.1f} µs{ratio}", _INK, "-")]
    if lower_bound_us:
        marks.append((lower_bound_us, f"lower bound {lower_bound_us:.1f} µs", _BOUND_COLOUR, "--"))
    *earlier, last = sorted(marks)
    last_at_right = last[0] < _FULL_RIGHT * span_us
    _mark(axes, *last, label_us=last[0], at_right=last_at_right)
    for mark in earlier:
        # To the left of its line, and clear of the other label where that is to the left of its own.
        label_us = mark[0] if last_at_right else min(mark[0], last[0] - (1 - _FULL_RIGHT) * span_us)
        _mark(axes, *mark, label_us=label_us, at_right=label_us < _FULL_LEFT * span_us)


def _mark(axes: Axes, time_us: float, text: str, colour: str, line: str, label_us: float, at_right: bool) -> None:
    """Draws a line through all strips at ``time_us`` and its label above them, beginning or ending at ``label_us``."""
    axes.axvline(time_us, color=colour, linewidth=1.4, linestyle=line, zorder=4, clip_on=False)
    # An annotation, unlike a text, can be set off from its place by points.
    label = axes.annotate(text, (label_us, 1.0), (5 if at_right else -5, 5), ("data", "axes fraction"), "offset points")
    label.set(ha="left" if at_right else "right", va="bottom", fontsize=9, color=colour, annotation_clip=False)
