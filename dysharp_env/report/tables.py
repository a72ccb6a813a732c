"""Results as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.markup import escape
from rich.table import Table

from dysharp_env.report import RESOURCE_NAMES, STAGE_NAMES
from dysharp_env.report.records import TimedRun, Total

_MOST_COLUMNS = 6  # schedules side by side in a table of layers


def empty_table(title: str, text_columns: Sequence[str], number_columns: Sequence[str]) -> Table:
    """Returns a table without rows: columns of text, then columns of numbers, which are set to the right."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in text_columns:
        table.add_column(column, overflow="fold")
    for column in number_columns:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def add_groups(table: Table, rows: Iterable[tuple[str, Sequence[str]]]) -> None:
    """Adds rows given as (group, cells), with a line between groups and each group's name in its first row."""
    for group, members in groupby(rows, key=lambda row: row[0]):
        table.add_section()
        for place, (_, cells) in enumerate(members):
            table.add_row("" if place else escape(group), *cells)


def phase_table(run: TimedRun) -> Table:
    """Returns when each stage starts and ends."""
    table = empty_table("Stages, us", ("stage",), ("first start", "last end", "span"))
    for stage, (start_us, end_us) in run.result.phases_us.items():
        table.add_row(STAGE_NAMES[stage], f"{start_us:.1f}", f"{end_us:.1f}", f"{end_us - start_us:.1f}")
    return table


def traffic_table(run: TimedRun) -> Table:
    """Returns what crossed the links: by purpose, both directions together, and by direction."""
    wire: dict[str, Any] = run.result.wire_bytes
    payload: dict[str, Any] = run.result.payload_bytes
    table = empty_table("Traffic of all GPUs, MB", ("purpose",), ("wire", "payload"))
    for purpose, num_bytes in wire["by_purpose"].items():
        if num_bytes:
            carried = payload["by_purpose"][purpose]
            shown = f"{carried / 1e6:.2f}" if carried else "-"
            table.add_row(purpose.replace("_", " "), f"{num_bytes / 1e6:.2f}", shown)
    table.add_section()
    for direction, name in (("up", "all uplinks"), ("down", "all downlinks")):
        table.add_row(name, f"{wire[direction] / 1e6:.2f}", f"{payload[direction] / 1e6:.2f}")
    return table


def utilisation_table(run: TimedRun) -> Table:
    """Returns the busy fraction of links, SMs and memory."""
    table = empty_table("Busy, % of the makespan", ("resource",), ("mean over GPUs", "busiest GPU"))
    for name, use in run.result.utilisation.items():
        table.add_row(RESOURCE_NAMES[name], f"{100 * use['mean']:.1f}", f"{100 * use['max']:.1f}")
    return table


def comparison_table(runs: Sequence[TimedRun], against: str) -> Table:
    """Returns one line per run, fastest first; ``against`` is the schedule that speed-ups are relative to."""
    base_us = next(run.result.makespan_us for run in runs if run.schedule == against)
    busy = (f"{name} %" for name in RESOURCE_NAMES.values())
    numbers = ("makespan us", "x bound", "x family", f"vs {against}", "payload MB", "wire MB", *busy)
    table = empty_table("Fastest first; busy % is the mean over GPUs", ("schedule", "hardware"), numbers)
    for run in sorted(runs, key=lambda run: run.result.makespan_us):
        result = run.result
        wire: dict[str, Any] = result.wire_bytes
        payload: dict[str, Any] = result.payload_bytes
        table.add_row(
            escape(run.schedule),
            run.hardware,
            f"{result.makespan_us:.1f}",
            f"{result.ratio:.3f}",
            "" if result.family_bound_us is None else f"{result.makespan_us / result.family_bound_us:.3f}",
            f"{base_us / result.makespan_us:.3f}x",
            f"{(payload['up'] + payload['down']) / 1e6:.1f}",
            f"{(wire['up'] + wire['down']) / 1e6:.1f}",
            *(f"{100 * result.utilisation[name]['mean']:.1f}" for name in RESOURCE_NAMES),
        )
    return table


def layer_tables(runs: Sequence[TimedRun]) -> list[Table]:
    """Returns the makespan of every layer, one line each, under every schedule; a few schedules a table."""
    schedules = list(dict.fromkeys(run.schedule for run in runs))
    makespan_us = {(run.layer_index, run.schedule): run.result.makespan_us for run in runs}
    bound_us = {run.layer_index: run.result.lower_bound_us for run in runs}
    tables = []
    for first in range(0, len(schedules), _MOST_COLUMNS):
        shown = schedules[first : first + _MOST_COLUMNS]
        table = empty_table("Makespan of every layer, us", ("layer",), ("lower bound", *map(escape, shown)))
        for layer, bound in bound_us.items():
            table.add_row(str(layer), f"{bound:.1f}", *(f"{makespan_us[layer, name]:.1f}" for name in shown))
        table.add_section()
        totals = (sum(us for (_, name), us in makespan_us.items() if name == each) for each in shown)
        table.add_row("total", f"{sum(bound_us.values()):.1f}", *(f"{total:.1f}" for total in totals))
        tables.append(table)
    return tables


def totals_table(totals: Sequence[Total], against: str, hardware_of: Mapping[str, str]) -> Table:
    """Returns one line per schedule over all layers, fastest first; speed-ups are relative to ``against``."""
    base_us = next(total.makespan_us for total in totals if total.schedule == against)
    title = f"All {totals[0].layers} layers, fastest first"
    table = empty_table(title, ("schedule", "hardware"), ("makespan us", "x bound", f"vs {against}"))
    for total in sorted(totals, key=lambda total: total.makespan_us):
        speed = f"{base_us / total.makespan_us:.3f}x"
        hardware = hardware_of[total.schedule]
        table.add_row(escape(total.schedule), hardware, f"{total.makespan_us:.1f}", f"{total.ratio:.3f}", speed)
    return table
