"""Pictures of layers: what launches and barriers, stages, links, SMs, HBM and L2 do over time.

Each layer is a panel. At its top are the spans of what software takes and of the stages; below, blocks of strips, one
for each GPU that is shown or for the mean of all. The height of a strip is how much of the resource is in use at that
moment: the part of the time a link or HBM moves data, the part of the GEMM group's SMs that run thread blocks; of L2 it
is the part of what the running rows read that was there as they started. Colours say what for. Where all wait for
software the strips are shaded. Links, HBM and L2 are known only if the engine keeps a log; without one, the strips show
how many chunks and rows the SM groups have under way, relative to their most.

Drawing reads an engine and changes nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dysharp_env.report import use
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
    pixels_of,
    write_figure,
    write_title,
)
from dysharp_env.report.paid import Payer
from dysharp_env.report.records import picture_title
from dysharp_env.schedules import LayerRun

# Heights in pixels at scale 1: the title of all, of one of several panels with the labels of its lines, and the foot.
_HEAD_PX, _NAME_PX, _LABELS_PX, _GAP_PX, _FOOT_PX = 52, 24, 22, 14, 84


def draw(*panels: tuple[str, LayerRun], width: int = WIDTH, max_gpus: int | None = None, scale: float = 1.0) -> Figure:
    """Returns a figure of layers, one above the other on one time axis, under one title.

    Args:
        *panels: Who runs each layer, and the layer, running or finished; the same machine and model in all.
        width: Pixels at scale 1; the height follows from the GPUs shown.
        max_gpus: Most GPUs shown of a layer: 8 of one, 1 of each of several, if not given; of more, the mean of all and
            GPUs evenly spread over the system, with the one that is last home.
        scale: Pixels per pixel, for screens that have more of them.
    """
    most = max_gpus or (8 if len(panels) == 1 else 1)
    end_us = max(1e-3, *(max(run.engine.now_ps, run.lower_bound_ps) / 1e6 for _, run in panels))
    drawn = [(name, run, use.blocks(run.engine, most, end_us, max(width // BIN_PX, 2))) for name, run in panels]
    strip_px = 24 if max(len(blocks) for *_, blocks in drawn) <= 4 else 18
    strips_px = [round(sum(block_height(block) for block in blocks) * strip_px) for *_, blocks in drawn]
    spans_px = [num_spans(run) * SPAN_PX for _, run in panels]
    name_px = _NAME_PX if len(panels) > 1 else 0
    above_px = name_px + _LABELS_PX
    height = _HEAD_PX + sum(strips_px) + sum(spans_px) + len(panels) * (above_px + _GAP_PX) - _GAP_PX + _FOOT_PX
    figure = new_figure(height, scale, width)
    title = picture_title([name for name, _ in panels], panels[0][1])
    write_title(figure, title, 14, height - 19)
    write_title(figure, f"routing: {panels[0][1].routed.name}", 14, height - 39, {"fontsize": 8.5, "color": FAINT})
    top, left, inner = height - _HEAD_PX, LEFT_PX / width, (width - LEFT_PX - RIGHT_PX) / width
    for (name, run, blocks), strips, spans in zip(drawn, strips_px, spans_px, strict=True):
        if name_px:
            write_title(figure, name, 14, top - name_px / 2 - 4, {"fontsize": 10.5, "fontweight": "bold", "color": INK})
        top -= above_px + spans + strips
        paid = Payer.of(run).spans()
        bands = figure.add_axes((left, (top + strips) / height, inner, spans / height))
        draw_spans(bands, run, paid, end_us)
        axes = figure.add_axes((left, top / height, inner, strips / height))
        draw_blocks(axes, blocks, end_us, paid)
        draw_ends(axes, run, top=1 + spans / strips)
        axes.tick_params(labelbottom=top <= _FOOT_PX)
        top -= _GAP_PX
    axes.set_xlabel("time, µs", color=INK, fontsize=9.5, loc="left", labelpad=1)
    draw_legend(figure, [block for *_, blocks in drawn for block in blocks])
    return figure


def render(*panels: tuple[str, LayerRun], width: int = WIDTH, max_gpus: int | None = None) -> np.ndarray:
    """Returns what ``draw`` draws as (height, width, 3) uint8."""
    return pixels_of(draw(*panels, width=width, max_gpus=max_gpus))


def write_picture(path: str | Path, *panels: tuple[str, LayerRun], scale: float = 2.0) -> None:
    """Writes what ``draw`` draws as a PNG, SVG or PDF file, as its name ends.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_figure(path, draw(*panels, scale=scale))
