"""A picture of errors over tables of measurements: by tokens of a GPU, one panel a table, one line a series.

A line is the median of predicted over measured, less one; the band around it holds the middle 80 % of the values.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dysharp_env.files import write_bytes
from dysharp_env.validation.tables.errors import Outcome, TableErrors

# Okabe and Ito, "Color Universal Design" (2008).
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^")  # once colours are used up
_COLUMNS = 2
_PANEL_INCHES = (7.0, 3.6)
_DPI = 100
_INK, _FAINT = "#212529", "#868E96"
# Errors beyond these are drawn at the edge, so that one row does not flatten the rest.
_LIMIT_PCT = 60.0


def draw(judged: Sequence[TableErrors], path: str) -> None:
    """Writes the picture of tables as a PNG; those without values are left out.

    Raises:
        ConfigError: The file cannot be written.
    """
    shown = [each for each in judged if each.outcomes]
    columns = min(_COLUMNS, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(_PANEL_INCHES[0] * columns, _PANEL_INCHES[1] * rows), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel, each in zip(panels, shown, strict=False):
        _draw_table(panel, each)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_bytes(path, content.getvalue())


def _draw_table(panel: Axes, judged: TableErrors) -> None:
    errors = judged.errors
    assert errors is not None
    title = f"{judged.table.name}: median |error| {errors.median_abs_pct:.1f} %, 90 % within {errors.p90_abs_pct:.1f} %"
    panel.set_title(title, loc="left", fontsize=10, color=_INK)
    series: dict[str, list[Outcome]] = {}
    for outcome in judged.outcomes:
        series.setdefault(outcome.reading.series, []).append(outcome)
    for place, (name, outcomes) in enumerate(series.items()):
        lap, colour = divmod(place, len(_COLOURS))
        _draw_series(panel, name, outcomes, _COLOURS[colour], _MARKERS[lap % len(_MARKERS)])
    panel.axhline(0, color=_FAINT, linewidth=0.8)
    # Linear below 1, for what has no tokens.
    panel.set_xscale("symlog", base=2, linthresh=1)
    tokens = sorted({outcome.reading.tokens for outcome in judged.outcomes})
    panel.set_xlim(tokens[0] / 1.3 if tokens[0] else -0.3, tokens[-1] * 1.3 + 0.1)
    ticks = [each for each in tokens if each & (each - 1) == 0][:: 1 + len(tokens) // 20]
    panel.set_xticks(ticks, [str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.set_ylim(-_LIMIT_PCT, _LIMIT_PCT)
    panel.set_xlabel("tokens of a GPU", fontsize=9)
    panel.set_ylabel("predicted / measured - 1, %", fontsize=9)
    panel.tick_params(labelsize=8)
    panel.grid(alpha=0.25)
    panel.legend(fontsize=7.5, frameon=False, ncols=2)


def _draw_series(panel: Axes, name: str, outcomes: Sequence[Outcome], colour: str, marker: str) -> None:
    groups: dict[int, list[float]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.reading.tokens, []).append(outcome.error_pct)
    tokens = sorted(groups)
    low, median, high = (
        np.clip([np.quantile(groups[each], share) for each in tokens], -_LIMIT_PCT, _LIMIT_PCT)
        for share in (0.1, 0.5, 0.9)
    )
    panel.plot(tokens, median, color=colour, linewidth=1.6, marker=marker, markersize=3, label=name)
    panel.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
