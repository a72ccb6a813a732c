"""Pictures of a layer: what every GPU's uplink, SMs and downlink do over time.

Each GPU is a block of three strips. The height of a strip is how much of the resource is in use at that moment: the
part of the time a link sends data, the part of the GEMM group's SMs that run thread blocks. Colours say what for, and
are chosen to stay apart for the colour-blind (Okabe and Ito). Links are known only if the engine keeps a log; without
one, the strips show how many chunks and rows the SM groups have under way, relative to their most.

Drawing reads an engine and changes nothing. Figures are made without pyplot, so there is no global state either.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.patches import Patch

from dysharp_env.report import STAGE_NAMES, use
from dysharp_env.report.files import write_bytes
from dysharp_env.simulator.engine import Engine

# Okabe and Ito, "Color Universal Design" (2008).
COLOURS = {"dispatch": "#0072B2", "gemm1": "#009E73", "gemm2": "#CC79A7", "combine": "#E69F00"}
# What is not a stage: thread blocks that wait for HBM or communicate, what HBM moves, what software costs, and weights
# on links.
BESIDE = {
    "stalled": "#56B4E9",
    "communication": "#882255",
    "weights": "#56B4E9",
    "read": "#0B4F6C",
    "write": "#7FA3B3",
    "memory": "#56B4E9",
    "software": "#868E96",
    "copying": "#F0E442",
}
STRIP_GROUND = "#F1F3F5"
INK, FAINT = "#212529", "#868E96"
_BOUND_COLOUR = "#D55E00"
COPYING: dict[str, Any] = {"facecolor": BESIDE["copying"], "label": "weights of copies"}
TITLE: dict[str, Any] = {"fontsize": 11.5, "fontweight": "bold", "color": INK}
LEGEND: dict[str, Any] = {
    **{"frameon": False, "fontsize": 9.5, "labelcolor": INK},
    **{"handlelength": 1.2, "handleheight": 0.9, "columnspacing": 1.4},
}
DPI = 100
BIN_PX = 4  # narrower, and the strips show single segments rather than use
_BLOCK_GAP = 0.6  # below the strips of a block, in strip heights
STRIP_FILL = 0.84  # of a strip's height; the rest keeps strips apart
# Margins in pixels at scale 1.
_LEFT_PX, _RIGHT_PX, _HEAD_PX, _FOOT_PX = 122, 24, 58, 56
# Where, as a fraction of the time axis, a label no longer fits to the right or to the left of its line.
_FULL_RIGHT, _FULL_LEFT = 0.75, 0.08


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
    drawn = [(title, engine, use.blocks(engine, most, end_us, max(width // BIN_PX, 2))) for title, engine in panels]
    strip_px = 24 if max(len(blocks) for *_, blocks in drawn) <= 4 else 18
    heights = [round(sum(block_height(block) for block in blocks) * strip_px) for *_, blocks in drawn]
    height = sum(heights) + _HEAD_PX * len(panels) + _FOOT_PX
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI * scale, facecolor="white")
    bottom = height
    for (title, engine, blocks), panel_height in zip(drawn, heights, strict=True):
        top = bottom - _HEAD_PX
        bottom = top - panel_height
        box = (_LEFT_PX / width, bottom / height, (width - _LEFT_PX - _RIGHT_PX) / width, panel_height / height)
        axes = figure.add_axes(box)
        draw_blocks(axes, blocks, end_us)
        draw_ends(axes, engine, lower_bound_us)
        axes.tick_params(labelbottom=bottom <= _FOOT_PX)
        figure.text(14 / width, (top + 34) / height, title, **TITLE, va="center", parse_math=False)
    axes.set_xlabel("time, µs", color=INK, fontsize=9.5, loc="left", labelpad=1)
    handles = [Patch(facecolor=colour, label=STAGE_NAMES[stage]) for stage, colour in COLOURS.items()]
    if any("copying" in stages for *_, blocks in drawn for block in blocks for _, stages in block.strips):
        handles.append(Patch(**COPYING))
    corner = (1 - _RIGHT_PX / width, 0.0)
    figure.legend(handles=handles, loc="lower right", bbox_to_anchor=corner, ncols=len(handles), **LEGEND)
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


# How it is drawn.


def block_height(block: use.Block) -> float:
    """Returns the height of a block's strips and of the space below them, in strips."""
    return len(block.strips) + _BLOCK_GAP


def draw_blocks(axes: Axes, blocks: list[use.Block], end_us: float) -> None:
    """Draws the strips of all blocks, top to bottom, and names them."""
    axes.set_xlim(0.0, end_us * 1.005)
    axes.set_ylim(sum(block_height(block) for block in blocks), 0.0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(axis="x", colors=INK, labelsize=9)
    axes.set_yticks([])
    axes.grid(axis="x", color="white", linewidth=1.0)
    axes.set_axisbelow(True)  # above the ground of the strips, below what is drawn on it
    beside = axes.get_yaxis_transform()
    top = 0.0
    for block in blocks:
        for place, (name, stages) in enumerate(block.strips):
            base = top + place + 1.0
            axes.axhspan(base - STRIP_FILL, base, color=STRIP_GROUND, linewidth=0, zorder=0)
            centre = base - STRIP_FILL / 2
            axes.text(-0.006, centre, name, transform=beside, ha="right", va="center", fontsize=7.5, color=FAINT)
            _draw_strip(axes, base, stages, end_us)
        middle = top + (len(block.strips) + 1) / 2 - STRIP_FILL / 2
        axes.text(-0.103, middle, block.name, transform=beside, ha="left", va="center", fontsize=9.5, color=INK)
        top += block_height(block)


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
            base - STRIP_FILL * np.append(below, below[-1]),
            base - STRIP_FILL * np.append(above, above[-1]),
            step="post",
            color={**COLOURS, **BESIDE}[stage],
            linewidth=0,
            zorder=2,
        )
        below = above


def draw_ends(axes: Axes, engine: Engine, lower_bound_us: float | None) -> None:
    """Marks the lower bound and the end of the layer (or the present, while it runs), each with its time."""
    now_us, span_us = engine.now_ps / 1e6, axes.get_xlim()[1]
    ratio = f", {now_us / lower_bound_us:.2f} × bound" if lower_bound_us and engine.done else ""
    marks = [(now_us, f"{'makespan' if engine.done else 'now'} {now_us:.1f} µs{ratio}", INK, "-")]
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
