"""Evaluation results for people: a table for the terminal and a picture of every workload's ratio."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table
from rich.text import Text

from agents.evaluation import EvaluationRow, Summary, makespans

_INK = "#0072B2"


def summary_table(summaries: Sequence[Summary], suite: str) -> Table:
    """Returns one line per policy, fastest first."""
    against = summaries[0].against
    workloads = summaries[0].workloads
    table = Table(
        # Names are the user's: as ``Text`` their brackets are not read as markup.
        title=Text(
            f"Suite {suite}: {workloads} workloads, makespans relative to {against} on the same workload", "bold"
        ),
        title_justify="left",
        caption="95 %: bootstrap over workloads, and over seeds where there are several; below 1 is faster",
        caption_justify="left",
    )
    table.add_column("policy")
    for column in ("time / lower bound", f"time / {against}", "95 %", "wins", "seeds"):
        table.add_column(Text(column), justify="right")
    for row in sorted(summaries, key=lambda summary: summary.geomean_ratio):
        itself = row.policy == against
        table.add_row(
            Text(row.policy),
            f"{row.mean_ratio_to_bound:.3f}",
            f"{row.geomean_ratio:.3f}",
            "-" if itself else f"{row.ci_low:.3f} to {row.ci_high:.3f}",
            "-" if itself else f"{row.wins}/{row.workloads}",
            str(row.seeds),
        )
    return table


def plot_summary(rows: Sequence[EvaluationRow], against: str, suite: str) -> bytes:
    """Returns a PNG with one dot per workload and policy, and the geometric means as bars."""
    reference = makespans(rows, against).mean(axis=0)
    ratios = {
        policy: (makespans(rows, policy).mean(axis=0) / reference)
        for policy in dict.fromkeys(row.policy for row in rows)
        if policy != against
    }
    order = sorted(ratios, key=lambda policy: float(np.log(ratios[policy]).mean()), reverse=True)
    figure = Figure(figsize=(8, 1.2 + 0.45 * max(1, len(order))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for height, policy in enumerate(order):
        values = ratios[policy]
        mean = float(np.exp(np.log(values).mean()))
        axes.plot([mean, mean], [height - 0.32, height + 0.32], color="black", linewidth=2)
        # Dots of one policy are spread a little so that equal ratios stay visible.
        axes.scatter(values, height + np.linspace(-0.22, 0.22, len(values)), s=14, color=_INK, alpha=0.6, linewidths=0)
    axes.axvline(1.0, color="#868E96", linewidth=1, linestyle="--")
    # Names are the user's: a dollar in one starts no formula.
    axes.set_yticks(range(len(order)), order, parse_math=False)
    axes.set_xlabel(f"makespan / {against} on the same workload (bar: geometric mean)", parse_math=False)
    axes.set_title(f"Suite {suite}", loc="left", fontsize=10, parse_math=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
