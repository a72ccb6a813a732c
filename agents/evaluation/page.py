"""The page of an evaluation: who is faster, by how much and how surely, on all workloads and by what binds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dysharp_env.report.page.parts import Bar, Bars, Grid, Page, Part, Section, percent
from dysharp_env.schedules.opponent import Played

from .breakdown import GroupResult, breakdown_table
from .report import summary_table
from .table import Summary, log_ratios

BINDS = "binds"  # the grouping that every page shows
_MOST_DOTS = 200  # of a policy
_HOW_TO_READ = (
    "Left of the dashed line is faster. A dark mark is the geometric mean of a policy's makespan over that of the"
    " reference on the same workload, the blue bar its 95 % interval, and each dot a workload."
)


def evaluation_page(
    command: Sequence[str],
    document: dict[str, Any],
    rows: Sequence[Played],
    summaries: Sequence[Sequence[Summary]],
    charged: Sequence[Sequence[Summary]],
    groups: Sequence[Sequence[GroupResult]],
) -> Page:
    """Returns the page.

    Args:
        command: The words of the command line.
        document: The JSON result.
        rows: All that was played.
        summaries: Everybody over each reference, the first of which the lead is about.
        charged: The same with the time of decisions.
        groups: Groups of workloads, a grouping and reference each.
    """
    suite = document["config"]["suite"]["name"]
    note = f", with {document['config']['decision_us']} µs a decision" if charged else ""
    sections = []
    for each in summaries:
        parts: list[Part] = [_bars(each, rows), Grid.of(summary_table(each, suite))]
        sections.append(Section(f"Against {each[0].against}", parts, [_HOW_TO_READ]))
    if charged:
        tables = [Grid.of(summary_table(each, suite, note)) for each in charged]
        sections.append(Section("With the time that decisions take", tables))
    for group in groups:
        title = "By what binds" if group[0].by == BINDS else f"By {group[0].by}"
        text = "What binds a workload is what its lower bound needs longest: links, memory, compute or software."
        shown: list[Part] = [*_group_bars(group), Grid.of(breakdown_table(group))]
        sections.append(Section(f"{title}, against {group[0].against}", shown, [text] if group[0].by == BINDS else []))
    title = f"{len({row.policy for row in rows})} policies on suite {suite}"
    return Page(title, _lead(summaries[0], groups), command, document, sections)


def _lead(summaries: Sequence[Summary], groups: Sequence[Sequence[GroupResult]]) -> list[str]:
    """Returns who is fastest, by how much and how surely, and where that comes from."""
    against, workloads = summaries[0].against, summaries[0].workloads
    best = min(summaries, key=lambda summary: summary.geomean_ratio)
    if best.policy == against:
        lead = [f"Nobody is faster than {against} on the mean of {workloads} workloads."]
        others = [summary for summary in summaries if summary.policy != against]
        best = min(others, key=lambda summary: summary.geomean_ratio, default=best)
        if best.policy == against:
            return lead
        lead.append(f"The next, {best.policy}, takes {_estimate(best)} of its time.")
    else:
        saved = f"{percent(1 - best.geomean_ratio, 1)} less time than {against}"
        lead = [f"{best.policy} is the fastest on the mean of {workloads} workloads: {saved}."]
        sure = "surely" if best.ci_high < 1 else "not surely"
        lead.append(
            f"It takes {_estimate(best)} of the time of {against}, so it is {sure} faster; it wins on {best.wins} of"
            f" {best.workloads} workloads, and takes {best.mean_ratio_to_bound:.2f} times the lower bound on the mean."
        )
    of_best = [each for group in groups for each in group if (each.by, each.policy) == (BINDS, best.policy)]
    of_best = [each for each in of_best if each.against == against]
    if of_best:
        told = ", ".join(f"{each.group} {each.geomean_ratio:.3f} ({each.workloads} workloads)" for each in of_best)
        lead.append(f"By what binds the workload its ratio to {against} is: {told}.")
    return lead


def _estimate(summary: Summary) -> str:
    return f"{summary.geomean_ratio:.3f} (95 %: {summary.ci_low:.3f} to {summary.ci_high:.3f})"


def _bars(summaries: Sequence[Summary], rows: Sequence[Played]) -> Bars:
    """Returns everybody's ratio to the reference with its interval and those of all workloads."""
    against, bars = summaries[0].against, []
    for summary in sorted(summaries, key=lambda summary: summary.geomean_ratio):
        if summary.policy != against:
            ratios = np.exp(log_ratios(rows, summary.policy, against)[1]).mean(axis=0)
            dots = ratios[:: -(-len(ratios) // _MOST_DOTS)].tolist()
            numbers = summary.geomean_ratio, _estimate(summary), summary.ci_low, summary.ci_high
            bars.append(Bar(summary.policy, *numbers, dots))
    return Bars(f"Makespan / that of {against} on the same workload", bars, mark=1.0)


def _group_bars(group: Sequence[GroupResult]) -> list[Bars]:
    """Returns a picture for each group of workloads."""
    ends = [value for each in group for value in (each.geomean_ratio, each.ci_low, each.ci_high)]
    found = []
    for name in dict.fromkeys(result.group for result in group):
        inside = sorted((each for each in group if each.group == name), key=lambda each: each.geomean_ratio)
        bars = [
            Bar(each.policy, each.geomean_ratio, f"{each.geomean_ratio:.3f}, {each.wins}/{each.workloads} wins",
                each.ci_low if each.workloads > 1 else None, each.ci_high if each.workloads > 1 else None)
            for each in inside
        ]  # fmt: skip
        found.append(Bars(f"{name}: makespan / that of {group[0].against}", bars, mark=1.0, also=ends))
    return found
