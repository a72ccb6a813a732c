"""Pictures of where a layer's time goes: a GPU over time, the critical path below it, and what would save how much.

Each explanation is a panel. At its top are all strips of the GPU that ends last; below, on the same time axis, the
critical path, whose steps are numbered and told at the left. Pale steps are those in which the path waited for its
turn. At the right is how long the layer would take if one thing were ideal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from dysharp_env.report import colours, use
from dysharp_env.report.colours import FAINT, INK
from dysharp_env.report.drawing import (
    BIN_PX,
    LEFT_PX,
    RIGHT_PX,
    SPAN_PX,
    WIDTH,
    block_height,
    draw_blocks,
    draw_ends,
    draw_legend,
    draw_spans,
    new_figure,
    num_spans,
    write_figure,
    write_title,
)
from dysharp_env.report.explained import Explanation, ideal_name
from dysharp_env.report.paid import Payer
from dysharp_env.report.records import picture_title
from dysharp_env.report.steps import Step

_RESOURCE_COLOURS = {"links": "dispatch", "memory": "memory", "compute": "gemm1", "software": "software"}
_HEAD_PX, _AXIS_PX, _FOOT_PX, _STRIP_PX, _PATH_PX, _LINE_PX = 62, 52, 64, 28, 26, 17
_TEXTS_PX = 652  # of the width, for what the steps are
_LEAST_SHARE = 0.005  # of the makespan: shorter steps are told together
_NUMBERED_SHARE = 0.014  # of the makespan: steps that have room for their number
_PALE = 0.4


def write_causes(path: str | Path, *explanations: Explanation, scale: float = 2.0) -> None:
    """Writes what ``draw_causes`` draws as a PNG, SVG or PDF file, as its name ends.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_figure(path, draw_causes(*explanations, scale=scale))


def draw_causes(*explanations: Explanation, scale: float = 1.0) -> Figure:
    """Returns a figure of explanations, one above the other; 1200 pixels wide times ``scale``."""
    blocks = [_block_of(explanation) for explanation in explanations]
    heights = [_height_px(*each) for each in zip(blocks, explanations, strict=True)]
    height = sum(heights) + _FOOT_PX
    figure = new_figure(height, scale)
    top = height
    for block, panel_height, explanation in zip(blocks, heights, explanations, strict=True):
        _Panel(figure, height, top).draw(explanation, block)
        top -= panel_height
    draw_legend(figure, blocks, Patch(facecolor=FAINT, alpha=_PALE, label="pale: waiting for its turn"))
    return figure


def _block_of(explanation: Explanation) -> use.Block:
    """Returns the strips of the GPU whose token is the last home."""
    engine = explanation.run.engine
    end_us, inner_px = explanation.makespan_ps / 1e6, WIDTH - LEFT_PX - RIGHT_PX
    return use.everything_of(engine, use.last_gpu(engine), end_us, inner_px // BIN_PX)


def _told(explanation: Explanation) -> list[tuple[int, Step]]:
    """Returns the steps that are told one by one, with their numbers."""
    least_ps = _LEAST_SHARE * explanation.makespan_ps
    steps = enumerate(explanation.path, start=1)
    return [(number, step) for number, step in steps if step.end_ps - step.start_ps >= least_ps]


def _below_lines(explanation: Explanation) -> int:
    return max(len(_told(explanation)) + 2, len(explanation.ideal) + 2)


def _height_px(block: use.Block, explanation: Explanation) -> int:
    strips_px = round(block_height(block) * _STRIP_PX) + _PATH_PX + num_spans(explanation.run) * SPAN_PX
    return _HEAD_PX + strips_px + _AXIS_PX + _below_lines(explanation) * _LINE_PX


class _Panel:
    """The part of a figure that shows one explanation, from ``top`` (pixels from the bottom) downwards."""

    def __init__(self, figure: Figure, height: int, top: int) -> None:
        self.figure, self.height, self.top = figure, height, top

    def axes(self, left: int, bottom: int, width: int, height: int) -> Axes:
        """Returns axes in a box of pixels."""
        return self.figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))

    def draw(self, explanation: Explanation, block: use.Block) -> None:
        """Draws everything."""
        run = explanation.run
        write_title(self.figure, picture_title([explanation.schedule], run), 14, self.top - 22)
        strips_px, spans_px = round(block_height(block) * _STRIP_PX), num_spans(run) * SPAN_PX
        inner_px, bottom = WIDTH - LEFT_PX - RIGHT_PX, self.top - _HEAD_PX - spans_px
        end_us, paid = explanation.makespan_ps / 1e6, Payer.of(run).spans()
        draw_spans(self.axes(LEFT_PX, bottom, inner_px, spans_px), run, paid, end_us)
        bottom -= strips_px
        strips = self.axes(LEFT_PX, bottom, inner_px, strips_px)
        draw_blocks(strips, [block], end_us, paid)
        draw_ends(strips, run, top=1 + spans_px / strips_px)
        strips.tick_params(bottom=False, labelbottom=False)
        strips.spines["bottom"].set_visible(False)
        bottom -= _PATH_PX
        path = self.axes(LEFT_PX, bottom, inner_px, _PATH_PX)
        _draw_path(path, explanation)
        bottom -= _AXIS_PX
        self._tell(explanation, bottom)
        ideal_px = (len(explanation.ideal) + 1) * _LINE_PX
        left = _TEXTS_PX + 178
        _draw_ideal(self.axes(left, bottom - ideal_px, WIDTH - left - 130, ideal_px), explanation)

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
            colour = colours.ALL[told[place][1].stage] if place < len(told) else FAINT
            self.figure.text(30 / WIDTH, y, number, ha="right", color=colour, fontweight="bold", **style)
            self.figure.text(38 / WIDTH, y, what, color=INK, **style)
            self.figure.text(212 / WIDTH, y, waited_for, color=FAINT, **style)
            self.figure.text(_TEXTS_PX / WIDTH, y, f"{took_ps / 1e6:.2f} µs", ha="right", color=INK, **style)


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
        is_pale = step.is_waiting and step.stage not in colours.BESIDE
        style: dict[str, Any] = {"facecolor": colours.ALL[step.stage], "edgecolor": "white", "linewidth": 0.5}
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
    return colours.ALL[_RESOURCE_COLOURS[resource]] if resource in _RESOURCE_COLOURS else INK
