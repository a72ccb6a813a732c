"""What pictures are drawn with: strips of use, spans of stages, what software shades, titles that fit, and files.

Figures are made without pyplot, so there is no global state. Their layout is in pixels at scale 1.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dysharp_env.files import write_bytes
from dysharp_env.report import STAGE_NAMES, colours, use
from dysharp_env.report.colours import BESIDE_NAMES, FAINT, INK
from dysharp_env.report.paid import Paid
from dysharp_env.report.spans import spans_of, stages_of
from dysharp_env.schedules import LayerRun
from dysharp_env.simulator.state.codes import NOTHING

WIDTH, LEFT_PX, RIGHT_PX = 1200, 136, 24
TITLE: dict[str, Any] = {"fontsize": 11.5, "fontweight": "bold", "color": INK}
LEGEND: dict[str, Any] = {
    **{"frameon": False, "fontsize": 9, "labelcolor": INK},
    **{"handlelength": 1.2, "handleheight": 0.9, "columnspacing": 1.4},
}
DPI = 100
BIN_PX = 4  # narrower, and the strips show single segments rather than use
SPAN_PX = 15  # height of a stage's span
STRIP_FILL = 0.84  # of a strip's height; the rest keeps strips apart
_STEP = 1 / 128  # of a strip's height: less is not seen
_BLOCK_GAP = 0.6  # below the strips of a block, in strip heights
_LEAST_FONT = 8.5
_CHARACTER_PX = 5.4  # of the font of spans, about
# Where, as a fraction of the time axis, a label no longer fits to the right or to the left of its line.
_FULL_RIGHT, _FULL_LEFT = 0.75, 0.12


def new_figure(height: int, scale: float, width: int = WIDTH) -> Figure:
    """Returns a figure of so many pixels, times ``scale``."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI * scale, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def pixels_of(figure: Figure) -> np.ndarray:
    """Returns a figure as (height, width, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def write_figure(path: str | Path, figure: Figure) -> None:
    """Writes a figure as PNG, SVG or PDF, as the file's name ends; the same figure gives the same bytes.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_bytes(path, encoded(figure, Path(path).suffix.removeprefix(".")))


def encoded(figure: Figure, form: str) -> bytes:
    """Returns a figure as a file of a form: ``png``, ``svg`` or ``pdf``."""
    stream = io.BytesIO()
    undated = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "dysharp"}):
        figure.savefig(stream, format=form, metadata=undated[form], dpi=figure.dpi)
    return stream.getvalue()


def write_title(figure: Figure, text: str, left_px: int, middle_px: float, style: dict[str, Any] = TITLE) -> None:
    """Writes a line that fits the width: with a smaller font if it must, and else in two lines or cut.

    ``middle_px`` is the height of its middle above the lower edge.
    """
    width_px, height_px = figure.get_size_inches() * DPI
    room_px = (width_px - left_px - RIGHT_PX) * figure.dpi / DPI
    place = left_px / width_px, middle_px / height_px
    label = figure.text(*place, text, **style, va="center", parse_math=False, linespacing=1.05)
    needed_px = label.get_window_extent().width
    font = float(style["fontsize"])
    if needed_px > room_px:
        font = max(font * room_px / needed_px, min(_LEAST_FONT, font))
        label.set_fontsize(font)
        needed_px = label.get_window_extent().width
    if needed_px > room_px:
        letters = max(int(len(text) * room_px / needed_px) - 2, 8)
        lines = textwrap.wrap(text, letters, max_lines=2, placeholder=" …")
        label.set_text("\n".join(lines))


def draw_legend(figure: Figure, drawn: Sequence[use.Block], *more: Patch) -> None:
    """Draws what the colours of the strips mean, in two rows at the bottom."""
    shown = {stage for block in drawn for _, stages in block.strips for stage in stages}
    handles = [Patch(facecolor=colour, label=STAGE_NAMES[stage]) for stage, colour in colours.STAGES.items()]
    handles += [
        Patch(facecolor=colours.BESIDE[name], label=text) for name, text in BESIDE_NAMES.items() if name in shown
    ]
    handles += [Patch(facecolor=colours.SHADE, label="launches, barriers, other kernels"), *more]
    columns = -(-len(handles) // 2)
    corner = (LEFT_PX / figure.get_size_inches()[0] / DPI - 0.004, 0.0)
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=corner, ncols=columns, **LEGEND)


# Strips.


def block_height(block: use.Block) -> float:
    """Returns the height of a block's strips and of the space below them, in strips."""
    return len(block.strips) + _BLOCK_GAP


def draw_blocks(axes: Axes, blocks: Sequence[use.Block], end_us: float, paid: Sequence[Paid] = ()) -> None:
    """Draws the strips of all blocks, top to bottom, and names them; what is paid is shaded where nothing else runs."""
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
            axes.axhspan(base - STRIP_FILL, base, color=colours.GROUND, linewidth=0, zorder=0)
            centre = base - STRIP_FILL / 2
            axes.text(-0.006, centre, name, transform=beside, ha="right", va="center", fontsize=7.5, color=FAINT)
            _draw_strip(axes, base, stages, end_us)
            for each in paid:
                if each.gpu in (NOTHING, block.gpu):
                    span = (each.start_ps / 1e6, (each.end_ps - each.start_ps) / 1e6)
                    axes.broken_barh([span], (base - STRIP_FILL, STRIP_FILL), color=colours.SHADE, lw=0, zorder=1)
        middle = top + (len(block.strips) + 1) / 2 - STRIP_FILL / 2
        axes.text(-0.1175, middle, block.name, transform=beside, ha="left", va="center", fontsize=9.5, color=INK)
        top += block_height(block)


def _draw_strip(axes: Axes, base: float, stages: dict[str, np.ndarray], end_us: float) -> None:
    """Draws the used fractions of one strip, stacked upwards from ``base``."""
    bins = len(next(iter(stages.values())))
    time_us = np.linspace(0.0, end_us, bins + 1)
    below = np.zeros(bins)
    for stage, used in stages.items():
        # A link that sends back to back for two stages must not come out above its strip by rounding.
        above = np.minimum(below + used, 1.0)
        edges = np.round(np.stack((below, above)) / _STEP)
        # Bins that look alike are one, so that drawn paths stay small.
        kept = np.append(np.flatnonzero(np.diff(edges, axis=1, prepend=np.nan).any(axis=0)), bins)
        low, high = (base - STRIP_FILL * _STEP * np.append(edge, edge[-1])[kept] for edge in edges)
        axes.fill_between(time_us[kept], low, high, step="post", color=colours.ALL[stage], linewidth=0, zorder=2)
        below = above


# Spans of stages, above the strips.


def num_spans(run: LayerRun) -> int:
    """Returns how many rows ``draw_spans`` draws."""
    return 1 + len(stages_of(run))


def draw_spans(axes: Axes, run: LayerRun, paid: Sequence[Paid], end_us: float) -> None:
    """Draws what software takes and each stage's span, a row each, with its name and times."""
    rows = ["software", *stages_of(run)]
    axes.set_xlim(0.0, end_us * 1.005)
    axes.set_ylim(len(rows), 0.0)
    axes.axis("off")
    axes.set_zorder(5)  # above the lines that mark the bound and the end
    beside, spans = axes.get_yaxis_transform(), spans_of(run)
    px_per_us = axes.get_window_extent().width / axes.figure.dpi * DPI / (end_us * 1.005)
    for place, row in enumerate(rows):
        middle = place + 0.5
        name = STAGE_NAMES.get(row, row)
        axes.text(-0.006, middle, name, transform=beside, ha="right", va="center", fontsize=7.5, color=FAINT)
        if row in spans:
            start_us, last_us = spans[row]
            colour = colours.ALL["copying" if row == "weights" else row]
            text = f"{name} {start_us:.1f} to {last_us:.1f} µs"
            axes.broken_barh([(start_us, last_us - start_us)], (middle - 0.4, 0.8), facecolor=colour, linewidth=0)
            ink = "white" if row in ("dispatch", "gemm1") else INK
            _label_span(axes, middle, (start_us, last_us), text, ink, px_per_us, (0.0, end_us))
    _draw_paid(axes, _together(paid), px_per_us, end_us)


def _together(paid: Sequence[Paid]) -> list[list[Paid]]:
    """Returns what all GPUs wait for, grouped where one thing follows the other without a pause."""
    groups: list[list[Paid]] = []
    for each in paid:
        if each.gpu == NOTHING:
            if groups and groups[-1][-1].end_ps == each.start_ps:
                groups[-1].append(each)
            else:
                groups.append([each])
    return groups


def _draw_paid(axes: Axes, groups: Sequence[Sequence[Paid]], px_per_us: float, end_us: float) -> None:
    """Draws things that are paid one after the other, and says what they are as far as there is room."""
    for each in (each for group in groups for each in group):
        span = each.start_ps / 1e6, (each.end_ps - each.start_ps) / 1e6
        axes.broken_barh([span], (0.1, 0.8), facecolor=colours.PAID, edgecolor="white", linewidth=0.6)
    free_us = 0.0  # up to where something stands
    for place, group in enumerate(groups):
        start_us, last_us = group[0].start_ps / 1e6, group[-1].end_ps / 1e6
        next_us = groups[place + 1][0].start_ps / 1e6 if place + 1 < len(groups) else end_us
        took = f"{last_us - start_us:.1f} µs"
        for text in (f"{', '.join(dict.fromkeys(each.item.short for each in group))}, {took}", took):
            ends_us = _label_span(axes, 0.5, (start_us, last_us), text, "white", px_per_us, (free_us, next_us))
            if ends_us is not None:
                free_us = ends_us
                break
        free_us = max(free_us, last_us)


def _label_span(
    axes: Axes,
    middle: float,
    span_us: tuple[float, float],
    text: str,
    ink: str,
    px_per_us: float,
    room_us: tuple[float, float],
) -> float | None:
    """Writes what a span is in it, or else beside it, where it finds room, and returns up to where; None if nowhere."""
    start_us, last_us = span_us
    needed_us = (len(text) + 2) * _CHARACTER_PX / px_per_us
    style: dict[str, Any] = {"va": "center", "fontsize": 7.5, "annotation_clip": False, "textcoords": "offset points"}
    around = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}
    if needed_us < last_us - start_us:
        axes.annotate(text, (start_us, middle), (5, -0.5), color=ink, **style)
        return last_us
    if last_us + needed_us < room_us[1]:
        axes.annotate(text, (last_us, middle), (5, -0.5), color=INK, bbox=around, **style)
        return last_us + needed_us
    if start_us - needed_us > room_us[0]:
        axes.annotate(text, (start_us, middle), (-5, -0.5), color=INK, bbox=around, ha="right", **style)
        return last_us
    return None


# The end and the bound.


def draw_ends(axes: Axes, run: LayerRun, top: float = 1.0) -> None:
    """Marks the lower bound and the end of the layer (or the present, while it runs), each with its time.

    ``top`` is where the labels stand, as a fraction of the height of the axes.
    """
    engine, bound_us = run.engine, run.lower_bound_ps / 1e6
    now_us, span_us = engine.now_ps / 1e6, axes.get_xlim()[1]
    ratio = f", {now_us / bound_us:.2f} × bound" if engine.done else ""
    marks = [
        (now_us, f"{'makespan' if engine.done else 'now'} {now_us:.1f} µs{ratio}", INK, "-"),
        (bound_us, f"lower bound {bound_us:.1f} µs", colours.BOUND, "--"),
    ]
    *earlier, last = sorted(marks)
    last_at_right = last[0] < _FULL_RIGHT * span_us
    _mark(axes, *last, label_us=last[0], at_right=last_at_right, top=top)
    for mark in earlier:
        # To the left of its line, and clear of the other label where that is to the left of its own.
        label_us = mark[0] if last_at_right else min(mark[0], last[0] - (1 - _FULL_RIGHT) * span_us)
        _mark(axes, *mark, label_us=label_us, at_right=label_us < _FULL_LEFT * span_us, top=top)


def _mark(
    axes: Axes, time_us: float, text: str, colour: str, line: str, label_us: float, at_right: bool, top: float
) -> None:
    """Draws a line through all strips at ``time_us`` and its label above them, beginning or ending at ``label_us``."""
    axes.plot([time_us, time_us], [0.0, top], transform=axes.get_xaxis_transform(), color=colour, linestyle=line,
              linewidth=1.4, zorder=4, clip_on=False)  # fmt: skip
    # An annotation, unlike a text, can be set off from its place by points.
    label = axes.annotate(text, (label_us, top), (5 if at_right else -5, 3), ("data", "axes fraction"), "offset points")
    label.set(ha="left" if at_right else "right", va="bottom", fontsize=9, color=colour, annotation_clip=False)
