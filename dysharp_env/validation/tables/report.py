"""Errors over tables of measurements, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table as Printed

from dysharp_env.report.tables import add_groups, empty_table
from dysharp_env.validation.tables.constants import SET_CONSTANTS, constants_set
from dysharp_env.validation.tables.errors import Errors, Outcome, TableErrors
from dysharp_env.validation.tables.predict import predictions
from dysharp_env.validation.tables.readings import Reading, Table
from dysharp_env.workers import Workers

_ERRORS = ("values", "median |error| %", "90th pct |error| %", "median error %")


def judge(tables: Sequence[Table], workers: Workers | None = None) -> list[TableErrors]:
    """Returns every table with what the engine predicts for it; see ``predictions``."""
    readings = [reading for table in tables for reading in table.readings]
    predicted = iter(predictions(readings, workers))
    return [
        TableErrors(
            table,
            tuple(Outcome(reading, next(predicted)) for reading in table.readings),
            constants_set(table.name),
        )
        for table in tables
    ]


def printed_tables(judged: Sequence[TableErrors]) -> Iterator[Printed]:
    """Yields the tables that a terminal is shown: errors by table, series and tokens, what is left out, the worst."""
    yield _summary(judged)
    for each in judged:
        if each.outcomes:
            yield _by(f"{each.table.name}: by what was measured", "series", each, lambda reading: reading.series)
            yield _by(f"{each.table.name}: by tokens of a GPU", "tokens", each, lambda reading: reading.tokens)
            yield _worst(each)


def constants_lines() -> list[str]:
    """Returns lines that say how many constants of the machines were set, and on what."""
    generations = {constant.generation for constant in SET_CONSTANTS} - {"all"}
    lines = [f"{len(SET_CONSTANTS)} constants were set, for all GPUs of {len(generations)} generations:"]
    for constant in SET_CONSTANTS:
        lines.append(f"  {constant.generation}, {constant.key} = {constant.value:g}: {constant.rows}")
    return lines


def _summary(judged: Iterable[TableErrors]) -> Printed:
    printed = empty_table("Predicted over measured", ("table",), ("rows", *_ERRORS, "constants set"))
    printed.add_column("left out")
    for each in judged:
        reasons = "; ".join(f"{count} rows: {reason}" for reason, count in each.table.left_out.items())
        cells = _cells(each.errors) if each.errors else ("0", "-", "-", "-")
        numbers = (str(each.table.rows), *cells, str(each.constants_set))
        printed.add_row(escape(each.table.name), *numbers, escape(reasons) or "none")
    return printed


def _by(title: str, what: str, judged: TableErrors, key: Callable[[Reading], Any]) -> Printed:
    printed = empty_table(escape(title), (what,), _ERRORS)
    for name, errors in judged.by(key).items():
        printed.add_row(escape(str(name)), *_cells(errors))
    return printed


def _worst(judged: TableErrors) -> Printed:
    numbers = ("line", "tokens", "measured", "predicted", "error %")
    printed = empty_table(escape(f"{judged.table.name}: largest errors"), ("series", "shape"), numbers)
    rows = []
    for outcome in judged.worst():
        reading = outcome.reading
        figures = (f"{reading.measured:.1f}", f"{outcome.predicted:.1f}", f"{outcome.error_pct:+.1f}")
        rows.append((reading.series, (escape(reading.shape), str(reading.line), str(reading.tokens), *figures)))
    add_groups(printed, rows)
    return printed


def _cells(errors: Errors) -> tuple[str, ...]:
    rates = f"{errors.median_abs_pct:.1f}", f"{errors.p90_abs_pct:.1f}", f"{errors.median_pct:+.1f}"
    return str(errors.values), *rates
