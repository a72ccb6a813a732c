"""A picture of a sweep: a line for each schedule over sizes, labelled where it ends, with a mark where two cross."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, ScalarFormatter

from dysharp_env.report.colours import FAINT, INK
from dysharp_env.report.drawing import TITLE, write_figure
from dysharp_env.report.sweep import Crossing, Point, drawn_names

# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is pale on white; black comes first for the
# schedule that others are measured against.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255")
MOST_LINES = len(_COLOURS) + 1
_TICKS = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
_SIZE_IN, _DPI = (9.6, 5.4), 150
_LABEL_GAP = 0.045  # between labels, of the height of the axes


def write_sweep(
    path: str, points: Sequence[Point], found: Sequence[Crossing], against: str, *, title: str, what: str, ratio: bool
) -> list[str]:
    """Writes a picture of a sweep and returns the names of the schedules that it shows.

    Args:
        path: A .png, .svg or .pdf.
        points: The values of the sweep, in order.
        found: Where schedules overtake each other.
        against: Whose line is black.
        title: What is compared.
        what: The name of the axis of sizes.
        ratio: Whether times are shown over those of ``against``, rather than in microseconds.
    """
    figure = Figure(figsize=_SIZE_IN, dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.085, 0.12, 0.68, 0.73))
    names = drawn_names(points, against, MOST_LINES)
    is_of_numbers = isinstance(points[0].value, int)
    places = [float(point.value) if is_of_numbers else float(i) for i, point in enumerate(points)]
    base_us = np.array([point.makespan_us[against] if ratio else 1.0 for point in points])
    colours = iter(_COLOURS)
    lines = {}
    for name in names:
        colour = INK if name == against else next(colours)
        lines[name] = np.array([point.makespan_us[name] for point in points]) / base_us, colour
        style = {"linewidth": 1.8} if is_of_numbers else {"linestyle": "none"}
        axes.plot(places, lines[name][0], marker="o", markersize=5, color=colour, **style)
    _set_axes(axes, places, points, what, f"time over {against}" if ratio else "makespan, us")
    for each in found if is_of_numbers else ():
        if {each.faster, each.slower} <= set(names):
            us = each.makespan_us / (_at(places, base_us, each.at) if ratio else 1.0)
            axes.plot([each.at], [us], marker="D", markersize=8, markerfacecolor="none", color=FAINT, zorder=5)
            axes.axvline(each.at, color=FAINT, linewidth=0.6, linestyle=":", zorder=0)
            where = axes.get_xaxis_transform()
            axes.text(each.at, 1.0, f"{each.at:.0f}", transform=where, ha="center", fontsize=8, color=FAINT)
    _label(axes, lines)
    figure.text(0.085, 0.94, title, **TITLE)
    if is_of_numbers and found:
        note = "diamonds: where one overtakes another, by straight lines between the sizes that were run"
        figure.text(0.085, 0.9, note, fontsize=8.5, color=FAINT)
    write_figure(path, figure)
    return names


def _at(places: Sequence[float], values: np.ndarray, at: float) -> float:
    """Returns what straight lines between logarithms say of a place between others."""
    return float(np.exp(np.interp(math.log(at), np.log(places), np.log(values))))


def _set_axes(axes: Axes, places: Sequence[float], points: Sequence[Point], what: str, of_y: str) -> None:
    if isinstance(points[0].value, int):
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(point.value) for point in points], fontsize=9)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=_TICKS))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.tick_params(axis="both", which="both", labelsize=8.5, colors=INK)
    axes.set_xlabel(what, fontsize=10, color=INK)
    axes.set_ylabel(of_y, fontsize=10, color=INK)
    axes.grid(axis="y", which="both", color="#E9ECEF", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _label(axes: Axes, lines: dict[str, tuple[np.ndarray, str]]) -> None:
    """Writes each name beside the end of its line, far enough apart to be read."""
    low, high = np.log(axes.get_ylim())
    ends = {name: (float(np.log(values[-1])) - low) / (high - low) for name, (values, _) in lines.items()}
    order = sorted(ends, key=lambda name: ends[name])
    heights = np.array([ends[name] for name in order])
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + _LABEL_GAP)
    heights -= max(0.0, heights[-1] - 1.0)  # all of them, if the highest left the picture
    for name, height in zip(order, heights, strict=True):
        colour = lines[name][1]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            name,
            xy=(1.0 - 0.045, ends[name]),
            xytext=(1.015, height),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colour,
            arrowprops=arrow,
        )
