"""The pages of simulate, compare and explain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dysharp_env.report import RESOURCE_NAMES
from dysharp_env.report.explained import Explanation, ideal_name, ideal_table, path_table
from dysharp_env.report.page.heat import link_maps
from dysharp_env.report.page.parts import Bar, Bars, Grid, Page, Part, Section, percent
from dysharp_env.report.page.timelines import timeline
from dysharp_env.report.records import TimedRun, hardware_of, picture_title, totals_of
from dysharp_env.report.tables import (
    comparison_table,
    layer_tables,
    phase_table,
    totals_table,
    traffic_table,
    utilisation_table,
)
from dysharp_env.schedules import LayerRun

_HOW_TO_READ = (
    "Each strip is a resource; its height is how much of it is in use, its colour what for. Dark bars at the top are"
    " launches, exchanges of counts, barriers and kernels between stages. The dashed line is the lower bound."
)
_LINKS = "Brighter is busier: the part of the time that a link sends data, from 0 % (dark) to 100 % (yellow)."
_BINDS = {
    "links": "the links",
    "memory": "memory (HBM and L2)",
    "compute": "arithmetic",
    "software": "software (launches, exchange of counts, barriers)",
}


def simulate_page(
    command: Sequence[str], document: dict[str, Any], runs: Sequence[TimedRun], notes: Sequence[str]
) -> Page:
    """Returns the page of one schedule: of its only layer, or of several without drawings."""
    first, (total,) = runs[0], totals_of(runs)
    took = f"{total.makespan_us:.1f} µs{_for_layers(runs)}"
    lead = [f"{first.schedule} takes {took}, {total.ratio:.2f} times the lower bound."]
    lead += [_bound_line(runs, total.lower_bound_us), _busiest_line(first)]
    if len(runs) > 1:
        sections = [Section("Layers", [Grid.of(table) for table in layer_tables(runs)])]
    else:
        tables = (phase_table(first), utilisation_table(first), traffic_table(first))
        sections = [Section("Results", [Grid.of(table) for table in tables]), *_drawn([(first.schedule, first.run)])]
    return Page(picture_title([first.schedule], first.run), lead, command, document, sections, notes)


def compare_page(
    command: Sequence[str],
    document: dict[str, Any],
    runs: Sequence[TimedRun],
    against: str,
    drawn: Sequence[tuple[str, LayerRun]],
    notes: Sequence[str],
) -> Page:
    """Returns the page of several schedules; ``drawn`` are those that kept logs, none if there are several layers."""
    totals = sorted(totals_of(runs), key=lambda total: total.makespan_us)
    best, base = totals[0], next(total for total in totals if total.schedule == against)
    first = next(run for run in runs if run.schedule == best.schedule)
    others = f"the fastest of {len(totals)} schedules" if len(totals) > 1 else "the only schedule"
    text = f"{best.schedule} is {others}: {best.makespan_us:.1f} µs{_for_layers(runs)}"
    rivals = {each.schedule: each.makespan_us for each in (*totals[1:2], base) if each is not best}
    less = [f"{percent(1 - best.makespan_us / us, 1)} less than {name} ({us:.1f} µs)" for name, us in rivals.items()]
    lead = [f"{', '.join([text, *less])}.", _bound_line(runs, best.lower_bound_us), _busiest_line(first)]
    lines = [
        Bar(each.schedule, each.makespan_us, f"{each.makespan_us:.1f} µs, {each.ratio:.2f} × bound") for each in totals
    ]
    title = "Makespan, µs; the dashed line is the lower bound"
    bars = Bars(title, lines, mark=best.lower_bound_us, from_zero=True)
    if len(runs) > len(totals):
        tables = [*layer_tables(runs), totals_table(totals, against, hardware_of(runs))]
    else:
        tables = [comparison_table(runs, against)]
    sections = [Section("Results", [bars, *(Grid.of(table) for table in tables)]), *_drawn(drawn)]
    title = picture_title([total.schedule for total in totals], first.run)
    return Page(title, lead, command, document, sections, notes)


def explain_page(
    command: Sequence[str], document: dict[str, Any], explanations: Sequence[Explanation], notes: Sequence[str]
) -> Page:
    """Returns the page of where the time goes."""
    lead, sections = [], []
    for each in explanations:
        name, us = each.schedule, each.makespan_ps / 1e6
        best = next(ideal for ideal in each.ideal if ideal.is_group and ideal.resource == each.binds)
        longest = max(each.path, key=lambda step: step.end_ps - step.start_ps)
        took_ps = longest.end_ps - longest.start_ps
        lead.append(
            f"{name} takes {us:.1f} µs. What binds it is {_BINDS.get(each.binds, each.binds)}: if that cost nothing, it"
            f" would take {best.makespan_ps / 1e6:.1f} µs, {each.saved_pct(best):.0f} % less."
        )
        lead.append(
            f"The longest step on the way of its last token: {longest.what} ({longest.waited_for}),"
            f" {took_ps / 1e6:.1f} µs, {percent(took_ps / each.makespan_ps)} of the time."
        )
        ideal = [Bar("as it is", us, f"{us:.1f} µs")]
        for one in each.ideal:
            change_pct = -round(each.saved_pct(one))
            text = f"{one.makespan_ps / 1e6:.1f} µs" + (f", {change_pct:+d} %" if change_pct else "")
            ideal.append(Bar(ideal_name(one), one.makespan_ps / 1e6, text))
        parts: list[Part] = [
            timeline(f"{name}, with its critical path", [(name, each.run)], {name: each.path}),
            Bars("Makespan if something were ideal, µs", ideal, from_zero=True),
            Grid.of(ideal_table(each)),
            Grid.of(path_table(each)),
        ]
        sections += [Section(name, parts, [_HOW_TO_READ]), _links([(name, each.run)])]
    title = picture_title([each.schedule for each in explanations], explanations[0].run)
    return Page(f"Where the time goes: {title}", lead, command, document, sections, notes)


def timeline_section(drawn: Sequence[tuple[str, LayerRun]]) -> Section:
    """Returns the timelines of finished layers whose engines kept logs."""
    return Section("Timelines", [timeline("All on one time axis" if len(drawn) > 1 else "", drawn)], [_HOW_TO_READ])


def _drawn(drawn: Sequence[tuple[str, LayerRun]]) -> list[Section]:
    return [timeline_section(drawn), _links(drawn)] if drawn else []


def _links(drawn: Sequence[tuple[str, LayerRun]]) -> Section:
    names = ", ".join(name for name, _ in drawn)
    return Section(f"Links: {names}", [part for name, run in drawn for part in link_maps(name, run)], [_LINKS])


def _for_layers(runs: Sequence[TimedRun]) -> str:
    layers = len({run.layer_index for run in runs})
    return f" for {layers} layers" if layers > 1 else ""


def _bound_line(runs: Sequence[TimedRun], bound_us: float) -> str:
    binds = sorted({_BINDS[run.binds] for run in runs})
    return f"No schedule can take less than {bound_us:.1f} µs (lower bound); what binds there is {' or '.join(binds)}."


def _busiest_line(run: TimedRun) -> str:
    use = run.result.utilisation
    name = max(RESOURCE_NAMES, key=lambda resource: use[resource]["mean"])
    share = percent(use[name]["mean"])
    return f"What {run.schedule} keeps busiest: {RESOURCE_NAMES[name]}, {share} of the time, mean of all GPUs."
