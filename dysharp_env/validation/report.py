"""Every comparison the simulator is validated by: as rows, and as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rich.table import Table

from dysharp_env.report.tables import add_groups, empty_table
from dysharp_env.validation.all_to_all import all_to_all_rows
from dysharp_env.validation.closed_forms import closed_form_rows
from dysharp_env.validation.copies import copy_rows
from dysharp_env.validation.measurements import measurement_rows
from dysharp_env.validation.packets import packet_rows
from dysharp_env.validation.rows import ValidationRow


def validation_rows(seed: int = 0) -> Iterator[ValidationRow]:
    """Yields every row, simulating as it goes; ``seed`` draws the random routing."""
    yield from closed_form_rows(seed)
    yield from all_to_all_rows()
    yield from packet_rows(seed)
    yield from measurement_rows(seed)
    yield from copy_rows()


def validation_table(rows: Iterable[ValidationRow]) -> Table:
    """Returns one line per row, groups kept apart."""
    table = empty_table("Expected and simulated", ("group", "what"), ("expected", "simulated", "error %"))
    table.add_column("role")
    table.add_column("pass")
    add_groups(table, ((row.group, _cells(row)) for row in rows))
    return table


def _cells(row: ValidationRow) -> tuple[str, ...]:
    verdict = "yes" if row.passes else "[bold red]NO[/]"
    return row.name, _number(row.expected), _number(row.simulated), f"{row.error_pct:+.3f}", row.role, verdict


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.5g}"
