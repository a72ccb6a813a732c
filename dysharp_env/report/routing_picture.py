"""A picture of routing: load by expert and by GPU over layers, how local it is, and how many GPUs tokens go to.

Of loads, which have no tokens, only the first row is drawn. Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dysharp_env.files import write_bytes
from dysharp_env.workload.skew import Skew
from dysharp_env.workload.statistics import LayerStatistics, RemoteStatistics, RoutingStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
_INK, _FAINT = "#212529", "#868E96"
# Okabe and Ito, "Color Universal Design" (2008), in an order of growing numbers of GPUs.
_LINES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
_WIDTH_IN, _ROW_IN = 12.0, 3.6
_MOST_LABELS = 12
_LEGEND_ROOM = 0.25  # of an axis
_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 10.5, "fontweight": "bold", "color": _INK}


def write_routing_picture(
    path: str | Path,
    title: str,
    loads: Mapping[int, np.ndarray],
    statistics: RoutingStatistics,
    skews: Sequence[Skew],
    remote: Sequence[RemoteStatistics],
) -> None:
    """Writes the picture, in the format that the path's end names: PNG, SVG or PDF.

    Args:
        path: The file.
        title: Above everything.
        loads: (expert,) by the model's number of the layer.
        statistics: Of the routing.
        skews: Of each number of GPUs.
        remote: The same of how far tokens go; none of loads.

    Raises:
        ConfigError: The file cannot be written.
    """
    from matplotlib import rc_context

    stream = io.BytesIO()
    figure = draw_routing_picture(title, loads, statistics, skews, remote)
    # The same input gives the same bytes: ids of an SVG's parts would be random without a salt.
    with rc_context({"svg.hashsalt": "routing"}):
        figure.savefig(stream, format=Path(path).suffix[1:], dpi=150, metadata=_undated(Path(path).suffix))
    write_bytes(path, stream.getvalue())


def _undated(suffix: str) -> dict[str, Any]:
    """Returns what keeps the time of drawing out of a file."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})


def draw_routing_picture(
    title: str,
    loads: Mapping[int, np.ndarray],
    statistics: RoutingStatistics,
    skews: Sequence[Skew],
    remote: Sequence[RemoteStatistics],
) -> Figure:
    """Returns the picture as a figure; see ``write_routing_picture``."""
    from matplotlib.figure import Figure

    rows = 2 if remote else 1
    figure = Figure(figsize=(_WIDTH_IN, rows * _ROW_IN + 0.5), facecolor="white", layout="constrained")
    figure.suptitle(title, fontsize=12, fontweight="bold", color=_INK, x=0.01, ha="left", parse_math=False)
    grid = figure.subplots(rows, 2, squeeze=False)
    _draw_loads(figure, grid[0, 0], loads)
    _draw_skews(grid[0, 1], skews)
    if remote:
        _draw_locality(grid[1, 0], statistics, remote)
        _draw_reach(grid[1, 1], remote)
    for axes in grid.flat:
        axes.tick_params(labelsize=8.5, colors=_INK)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            # Room above the lines for their names.
            low, high = axes.get_ylim()
            axes.set_ylim(low, high + _LEGEND_ROOM * (high - low))
            axes.legend(frameon=False, fontsize=8.5, labelcolor=_INK, loc="upper left", ncols=2)
    return figure


def _draw_loads(figure: Figure, axes: Axes, loads: Mapping[int, np.ndarray]) -> None:
    """Draws the load of every expert over its layer's mean: a row a layer."""
    from matplotlib.colors import LogNorm

    table = np.stack([load / max(load.mean(), 1e-12) for load in loads.values()])
    # Two colours around the mean, as far down as up; what is beyond is drawn as the end of the scale.
    reach = float(np.clip(table.max(), 2.0, 16.0))
    shown = np.clip(table, 1 / reach, reach)
    image = axes.imshow(shown, aspect="auto", interpolation="nearest", cmap="RdBu_r", norm=LogNorm(1 / reach, reach))
    axes.set_title("Load of every expert over the mean", **_TITLE)
    axes.set_xlabel("expert", fontsize=9)
    _name_layers(axes, list(loads), is_vertical=True)
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    ticks = [each for each in (0.0625, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16) if 1 / reach <= each <= reach]
    bar.set_ticks(ticks, labels=[f"{each:g}×" for each in ticks], minor=False)
    bar.minorticks_off()
    bar.ax.tick_params(labelsize=8)


def _draw_skews(axes: Axes, skews: Sequence[Skew]) -> None:
    for colour, skew in zip(_colours(len(skews)), skews, strict=True):
        label = f"{skew.num_gpus} GPUs, median {skew.median:.2f}"
        axes.plot(range(len(skew.of_layer)), [*skew.of_layer.values()], color=colour, marker="o", ms=3, label=label)
    axes.axhline(1.0, color=_FAINT, linewidth=1, linestyle="--")
    axes.set_title("Load of the busiest GPU over the mean", **_TITLE)
    axes.set_ylim(bottom=0.9)
    if skews:
        _name_layers(axes, list(skews[0].of_layer))


def _draw_locality(axes: Axes, statistics: RoutingStatistics, remote: Sequence[RemoteStatistics]) -> None:
    rows = [row for row in statistics.layers.values() if isinstance(row, LayerStatistics)]
    axes.plot([row.adjacent_share for row in rows], color=_INK, marker="o", ms=3, label="repeated by the next token")
    independent = [row.adjacent_share_independent for row in rows]
    axes.plot(independent, color=_INK, linestyle=":", label="if tokens were independent")
    for colour, each in zip(_colours(len(remote)), remote, strict=True):
        axes.plot(each.at_home, color=colour, linewidth=1.2, label=f"on the home GPU, of {each.num_gpus}")
    axes.set_title("Share of a token's experts that are ...", **_TITLE)
    axes.set_ylim(bottom=0)
    _name_layers(axes, list(statistics.layers))


def _draw_reach(axes: Axes, remote: Sequence[RemoteStatistics]) -> None:
    most = max(int(np.flatnonzero(each.share_of_r)[-1]) for each in remote)
    for colour, each in zip(_colours(len(remote)), remote, strict=True):
        mean = float((each.share_of_r * np.arange(len(each.share_of_r))).sum())
        share = np.zeros(most + 1)
        share[: min(len(each.share_of_r), most + 1)] = each.share_of_r[: most + 1]
        axes.plot(100 * share, color=colour, marker="o", ms=4, label=f"{each.num_gpus} GPUs, mean R {mean:.2f}")
    axes.set_title("R: distinct remote GPUs of a token", **_TITLE)
    axes.set_xlabel("R", fontsize=9)
    axes.set_ylabel("tokens, %", fontsize=9)
    axes.set_xticks(range(0, most + 1, max(1, most // 16)))
    axes.set_ylim(bottom=0)


def _colours(count: int) -> list[str]:
    return [_LINES[place % len(_LINES)] for place in range(count)]


def _name_layers(axes: Axes, numbers: list[int], is_vertical: bool = False) -> None:
    """Names layers by the model's numbers, as many as there is room for."""
    places = range(0, len(numbers), -(-len(numbers) // _MOST_LABELS))
    labels = [str(numbers[place]) for place in places]
    if is_vertical:
        axes.set_yticks(list(places), labels=labels)
        axes.set_ylabel("layer", fontsize=9)
    else:
        axes.set_xticks(list(places), labels=labels)
        axes.set_xlabel("layer", fontsize=9)
