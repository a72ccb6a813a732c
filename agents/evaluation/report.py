"""Evaluation results for people: a table for the terminal and a picture of every workload's ratio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from dysharp_env.report import colours
from dysharp_env.report.drawing import TITLE
from dysharp_env.schedules.opponent import Played

from .table import Summary, log_ratios


def plain_table(title: str, caption: str | None = None) -> Table:
    """Returns an empty table without lines between its columns; brackets in the user's names are not read as markup."""
    return Table(
        title=Text(title, "bold"),
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )


def summary_table(summaries: Sequence[Summary], suite: str, note: str = "") -> Table:
    """Returns one line per policy, fastest first; ``note`` says more of the suite."""
    against = summaries[0].against
    workloads = summaries[0].workloads
    table = plain_table(
        f"Suite {suite}{note}: {workloads} workloads, time / {against} on the same workload",
        "bound: time / lower bound. family: time / bound of its program. ratio: geometric mean. IQM: mean of the middle"
        " half. P: share of workloads and seeds it is faster on. 95 %: bootstrap over workloads, and over seeds where"
        " there are several",
    )
    table.add_column("policy", overflow="fold", min_width=8)
    for column in ("bound", "family", "ratio", "95 %", "IQM", "95 %", "P", "95 %", "wins"):
        table.add_column(Text(column), justify="right", no_wrap=True)
    for row in sorted(summaries, key=lambda summary: summary.geomean_ratio):
        itself = row.policy == against
        faster = _interval(row.improvement_low, row.improvement_high, digits=2)
        table.add_row(
            Text(row.policy if row.seeds == 1 else f"{row.policy} ({row.seeds} seeds)"),
            f"{row.mean_ratio_to_bound:.3f}",
            "-" if row.mean_ratio_to_family_bound is None else f"{row.mean_ratio_to_family_bound:.3f}",
            f"{row.geomean_ratio:.3f}",
            "-" if itself else _interval(row.ci_low, row.ci_high),
            f"{row.iqm_ratio:.3f}",
            "-" if itself else _interval(row.iqm_low, row.iqm_high),
            "-" if itself else f"{row.improvement:.2f}",
            "-" if itself else faster,
            "-" if itself else f"{row.wins}/{row.workloads}",
        )
    return table


def _interval(low: float, high: float, digits: int = 3) -> str:
    """Returns an interval without leading zeros, so that a table of many fits a terminal."""
    return "-".join(f"{value:.{digits}f}".removeprefix("0") for value in (low, high))


def plot_summary(rows: Sequence[Played], against: str, suite: str) -> Figure:
    """Returns a figure with one dot per workload and policy, and the geometric means as bars."""
    policies = dict.fromkeys(row.policy for row in rows if row.policy != against)
    relative = {policy: log_ratios(rows, policy, against)[1] for policy in policies}
    ratios = {policy: np.exp(logs).mean(axis=0) for policy, logs in relative.items() if logs.size}
    order = sorted(ratios, key=lambda policy: float(np.log(ratios[policy]).mean()), reverse=True)
    figure = Figure(figsize=(8, 1.2 + 0.45 * max(1, len(order))), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for height, policy in enumerate(order):
        values = ratios[policy]
        mean = float(np.exp(np.log(values).mean()))
        axes.plot([mean, mean], [height - 0.32, height + 0.32], color="black", linewidth=2)
        # Dots of one policy are spread a little so that equal ratios stay visible.
        heights = height + np.linspace(-0.22, 0.22, len(values))
        axes.scatter(values, heights, s=14, color=colours.STAGES["dispatch"], alpha=0.6, linewidths=0)
    axes.axvline(1.0, color=colours.FAINT, linewidth=1, linestyle="--")
    # Names are the user's: a dollar in one starts no formula.
    axes.set_yticks(range(len(order)), order, parse_math=False)
    axes.set_xlabel(f"makespan / {against} on the same workload (bar: geometric mean)", parse_math=False)
    workloads = len({row.workload for row in rows})
    title = f"{len(order)} policies on suite {suite}, {workloads} workloads"
    axes.set_title(title, **TITLE, loc="left", parse_math=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure
