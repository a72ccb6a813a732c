"""Pictures of where a layer's time goes: a GPU over time, the critical path below it, and what would save how much.

Each explanation is a panel. At its top are all strips of the GPU that ends last; below, on the same time axis, the
critical path, whose steps are numbered and told at the left. Pale steps are those in which the path waited for its
turn. At the right is how long the layer would take if one thing were ideal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dysharp_env.report import STAGE_NAMES, use
from dysharp_env.report.explained import Explanation, ideal_name
from dysharp_env.report.files import write_bytes
from dysharp_env.report.gantt import (
    BESIDE,
    BIN_PX,
    COLOURS,
    COPYING,
    DPI,
    FAINT,
    INK,
    LEGEND,
    TITLE,
    block_height,
    draw_blocks,
    draw_ends,
    encode_png,
)
from dysharp_env.report.steps import Step

_COLOURS = {**COLOURS, **BESIDE}
_RESOURCE_COLOURS = {"links": "dispatch", "memory": "memory", "compute": "gemm1", "software": "software"}
_WIDTH, _LEFT_PX, _RIGHT_PX = 1200, 122, 24
_HEAD_PX, _AXIS_PX, _FOOT_PX, _STRIP_PX, _PATH_PX, _LINE_PX = 58, 52, 60, 30, 26, 17
_TEXTS_PX = 652  # of the width, for what the steps are
_LEAST_SHARE = 0.005  # of the makespan: shorter steps are told together
_NUMBERED_SHARE = 0.014  # of the makespan: steps that have room for their number
_PALE = 0.4


def write_causes(path: str | Path, *panels: tuple[str, Explanation], scale: float = 2.0) -> None:
    """Writes what ``draw_causes`` returns as a PNG file.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_bytes(path, encode_png(draw_causes(*panels, scale=scale)))


def draw_causes(*panels: tuple[str, Explanation], scale: float = 1.0) -> np.ndarray:
    """Returns a picture of explanations, one above the other, as (height, width, 3) uint8; 1200 pixels times ``scale``.

    Args:
        *panels: Title and explanation of each layer.
        scale: Pixels per pixel, for screens that have more of them.
    """
    blocks = [_block_of(explanation) for _, explanation in panels]
    heights = [_height_px(block, explanation) for block, (_, explanation) in zip(blocks, panels, strict=True)]
    height = sum(heights) + _FOOT_PX
    figure = Figure(figsize=(_WIDTH / DPI, height / DPI), dpi=DPI * scale, facecolor="white")
    top = height
    for block, panel_height, (title, explanation) in zip(blocks, heights, panels, strict=True):
        _Panel(figure, height, top).draw(title, explanation, block)
        top -= panel_height
    handles = [Patch(facecolor=COLOURS[stage], label=STAGE_NAMES[stage]) for stage in COLOURS]
    handles.append(Patch(facecolor=BESIDE["memory"], label="waiting for HBM, its weights"))
    handles += [Patch(facecolor=BESIDE[name], label=f"HBM {name}s") for name in ("read", "write")]
    if any("communication" in stages for block in blocks for _, stages in block.strips):
        handles.append(Patch(facecolor=BESIDE["communication"], label="thread blocks communicate"))
    if any("copying" in stages for block in blocks for _, stages in block.strips):
        handles.append(Patch(**COPYING))
    handles.append(Patch(facecolor=BESIDE["software"], label="launches, barriers, other kernels"))
    handles.append(Patch(facecolor=FAINT, alpha=_PALE, label="pale: waiting for its turn"))
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=(0.008, 0.0), ncols=-(-len(handles) // 2), **LEGEND)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()


def _block_of(explanation: Explanation) -> use.Block:
    """Returns the strips of the GPU whose token is the last home."""
    engine = explanation.run.engine
    tokens = engine.state.tokens[:-1]
    gpu = int(tokens["home"][np.argmax(tokens["combine_end"])])
    end_us, inner_px = explanation.makespan_ps / 1e6, _WIDTH - _LEFT_PX - _RIGHT_PX
    return use.everything_of(engine, gpu, end_us, inner_px // BIN_PX)


def _told(explanation: Explanation) -> list[tuple[int, Step]]:
    """Returns the steps that are told one by one, with their numbers."""
    least_ps = _LEAST_SHARE * explanation.makespan_ps
    steps = enumerate(explanation.path, start=1)
    return [(number, step) for number, step in steps if step.end_ps - step.start_ps >= least_ps]


def _below_lines(explanation: Explanation) -> int:
    return max(len(_told(explanation)) + 2, len(explanation.ideal) + 2)


def _height_px(block: use.Block, explanation: Explanation) -> int:
    strips_px = round(block_height(block) * _STRIP_PX) + _PATH_PX
    return _HEAD_PX + strips_px + _AXIS_PX + _below_lines(explanation) * _LINE_PX


class _Panel:
    """The part of a figure that shows one explanation, from ``top`` (pixels from the bottom) downwards."""

    def __init__(self, figure: Figure, height: int, top: int) -> None:
        self.figure, self.height, self.top = figure, height, top

    def axes(self, left: int, bottom: int, width: int, height: int) -> Axes:
        """Returns axes in a box of pixels."""
        return self.figure.add_axes((left / _WIDTH, bottom / self.height, width / _WIDTH, height / self.height))

    def draw(self, title: str, explanation: Explanation, block: use.Block) -> None:
        """Draws everything."""
        self.figure.text(14 / _WIDTH, (self.top - 24) / self.height, title, **TITLE, va="center", parse_math=False)
        strips_px = round(block_height(block) * _STRIP_PX)
        inner_px, bottom = _WIDTH - _LEFT_PX - _RIGHT_PX, self.top - _HEAD_PX - strips_px
        end_us = explanation.makespan_ps / 1e6
        strips = self.axes(_LEFT_PX, bottom, inner_px, strips_px)
        draw_blocks(strips, [block], end_us)
        draw_ends(strips, explanation.run.engine, explanation.run.lower_bound_ps / 1e6)
        strips.tick_params(bottom=False, labelbottom=False)
        strips.spines["bottom"].set_visible(False)
        bottom -= _PATH_PX
        path = self.axes(_LEFT_PX, bottom, inner_px, _PATH_PX)
        _draw_path(path, explanation)
        bottom -= _AXIS_PX
        self._tell(explanation, bottom)
        ideal_px = (len(explanation.ideal) + 1) * _LINE_PX
        left = _TEXTS_PX + 178
        _draw_ideal(self.axes(left, bottom - ideal_px, _WIDTH - left - 130, ideal_px), explanation)

    def _tell(self, explanation: Explanation, bottom: int) -> None:
        """Writes what the steps are, a line each."""
        told = _told(explanation)
        rest_ps = explanation.makespan_ps - sum(step.end_ps - step.start_ps for _, step in told)
        lines = [(f"{number}", step.what, step.waited_for, step.end_ps - step.start_ps) for number, step in told]
        if len(told) < len(explanation.path):
            lines.append(("", f"{len(explanation.path) - len(told)} shorter steps", "", rest_ps))
        for place, (number, what, waited_for, took_ps) in enumerate(lines):
            y = (bottom - (place + 0.5) * _LINE_PX) / self.height
            style: dict[str, Any] = {"fontsize": 8.5, "va": "center", "parse_math": False}
            colour = _COLOURS[told[place][1].stage] if place < len(told) else FAINT
            self.figure.text(30 / _WIDTH, y, number, ha="right", color=colour, fontweight="bold", **style)
            self.figure.text(38 / _WIDTH, y, what, color=INK, **style)
            self.figure.text(212 / _WIDTH, y, waited_for, color=FAINT, **style)
            self.figure.text(_TEXTS_PX / _WIDTH, y, f"{took_ps / 1e6:.2f} µs", ha="right", color=INK, **style)


def _draw_path(axes: Axes, explanation: Explanation) -> None:
    """Draws the critical path as a bar on the time axis."""
    end_us = explanation.makespan_ps / 1e6
    axes.set_xlim(0.0, end_us * 1.005)
    axes.set_ylim(0.0, 1.0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.set_yticks([])
    axes.tick_params(axis="x", colors=INK, labelsize=9)
    axes.set_xlabel("time, µs", color=INK, fontsize=9.5, loc="left", labelpad=1)
    beside: dict[str, Any] = {"transform": axes.transAxes, "ha": "right", "va": "center"}
    axes.text(-0.006, 0.55, "critical path", **beside, fontsize=8.5, color=INK)
    for number, step in enumerate(explanation.path, start=1):
        start_us, took_us = step.start_ps / 1e6, (step.end_ps - step.start_ps) / 1e6
        is_pale = step.is_waiting and step.stage not in BESIDE
        style: dict[str, Any] = {"facecolor": _COLOURS[step.stage], "edgecolor": "white", "linewidth": 0.5}
        axes.broken_barh([(start_us, took_us)], (0.12, 0.82), **style, alpha=_PALE if is_pale else 1.0)
        if took_us > _NUMBERED_SHARE * end_us:
            colour = INK if is_pale else "white"
            axes.text(start_us + took_us / 2, 0.53, f"{number}", ha="center", va="center", fontsize=8, color=colour)


def _draw_ideal(axes: Axes, explanation: Explanation) -> None:
    """Draws how long the layer takes as it is, and where something is ideal."""
    rows: Sequence[tuple[str, float, str, bool]] = [
        ("as it is", explanation.makespan_ps / 1e6, INK, True),
        *(
            (ideal_name(ideal), ideal.makespan_ps / 1e6, _ideal_colour(ideal.resource), ideal.is_group)
            for ideal in explanation.ideal
        ),
    ]
    whole_us = rows[0][1]
    axes.set_xlim(0.0, max(time_us for _, time_us, *_ in rows))
    axes.set_ylim(len(rows), 0.0)
    axes.axis("off")
    axes.set_title("if it were ideal", fontsize=9.5, color=INK, loc="left", pad=4, fontweight="bold")
    for place, (name, time_us, colour, is_bold) in enumerate(rows):
        middle, weight = place + 0.5, "bold" if is_bold else "normal"
        axes.barh(middle, time_us, height=0.7, color=colour, alpha=1.0 if is_bold else 0.55, linewidth=0)
        text = f"{time_us:.1f} µs"
        if place:
            change_pct = round(100 * (time_us - whole_us) / whole_us)
            text += f", {change_pct:+d} %".replace("-", "−") if change_pct else ""
        style: dict[str, Any] = {"fontsize": 8.5, "va": "center", "color": INK, "fontweight": weight}
        axes.annotate(name, (0.0, middle), (-6, 0), textcoords="offset points", ha="right", **style)
        axes.annotate(text, (time_us, middle), (4, 0), textcoords="offset points", **style)


def _ideal_colour(resource: str) -> str:
    return _COLOURS[_RESOURCE_COLOURS[resource]] if resource in _RESOURCE_COLOURS else INK
