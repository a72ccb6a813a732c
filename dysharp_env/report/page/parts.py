"""What a page is made of: a head, and sections of tables, bars with intervals, heat maps and timelines.

All texts are plain: the template escapes them, whatever they hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        title: What it shows, with the unit where all numbers have one.
        columns: The heads of its columns.
        rows: Its cells, (row, column).
        numbers: Of each column, whether it holds numbers, which are set to the right.
        ends: Of each row, whether a line is drawn below it.
        note: What a reader must know to read it.
    """

    kind: ClassVar[str] = "grid"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[bool]
    ends: Sequence[bool] = ()
    note: str = ""

    @classmethod
    def of(cls, table: Table) -> Grid:
        """Returns a table of the terminal."""
        return cls(
            _with_units(_plain(table.title)),
            [_with_units(_plain(column.header)) for column in table.columns],
            [list(map(_plain, row)) for row in zip(*(column.cells for column in table.columns), strict=True)],
            [column.justify == "right" for column in table.columns],
            [row.end_section for row in table.rows],
            _plain(table.caption),
        )


def percent(share: float, digits: int = 0) -> str:
    """Returns a share as a percentage."""
    return f"{100 * share:.{digits}f} %"


def _plain(cell: Any) -> str:
    """Returns a cell of a table without its markup."""
    if cell is None:
        return ""
    return cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain


def _with_units(header: str) -> str:
    """Returns a title or the head of a column as pages write units."""
    return " ".join("µs" if word == "us" else word for word in header.split(" "))


@dataclass(frozen=True)
class Bar:
    """One line of bars: a name, its number with an interval or without, and single values as dots."""

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    dots: Sequence[float] = ()


@dataclass(frozen=True)
class Bars:
    """Numbers beside each other on one axis.

    Attributes:
        title: What they are, with their unit.
        bars: The lines.
        mark: A value that a line is drawn at, such as 1 for ratios; None for none.
        from_zero: Whether the axis begins at 0 and bars at its start; else they are marks on the axis.
        also: Values that the axis shows besides, so that several pictures have the same.
    """

    kind: ClassVar[str] = "bars"
    title: str
    bars: Sequence[Bar]
    mark: float | None = None
    from_zero: bool = False
    also: Sequence[float] = ()

    def place(self, value: float) -> str:
        """Returns where a value lies on the axis, as a percentage of its length."""
        low, high = self.span
        return f"{100 * min(max((value - low) / (high - low), 0.0), 1.0):.2f}%"

    def between(self, low: float, high: float) -> str:
        """Returns the length between two values, as a percentage of that of the axis."""
        first, last = self.span
        return f"{100 * max(min(high, last) - max(low, first), 0.0) / (last - first):.2f}%"

    @property
    def ticks(self) -> list[float]:
        """Values that stand below the axis: round ones, about five."""
        low, high = self.span
        rough = (high - low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        return [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]

    @property
    def span(self) -> tuple[float, float]:
        """What the axis shows, from where to where."""
        shown = [value for bar in self.bars for value in (bar.value, bar.low, bar.high, *bar.dots)]
        values = [value for value in (*shown, *self.also, self.mark) if value is not None]
        if self.from_zero:
            return 0.0, max(*values, 1e-9)
        margin = 0.02 * (max(values) - min(values)) or 0.01
        return min(values) - margin, max(values) + margin


@dataclass(frozen=True)
class Heat:
    """A heat map: rows of shares of time, by GPU, over the time of a layer.

    Attributes:
        title: What it shows.
        picture: The map as a data URL, a pixel for each GPU and bin.
        labels: For some of its rows the row's number and name.
        num_rows: How many rows it has.
        values: Of each row what is written at its end; empty if there are too many.
        end_us: The time at its right edge, in microseconds.
    """

    kind: ClassVar[str] = "heat"
    title: str
    picture: str
    labels: Sequence[tuple[int, str]]
    num_rows: int
    values: Sequence[str]
    end_us: float


@dataclass(frozen=True)
class Timeline:
    """Layers to zoom into; ``data`` is what timeline.js draws, see ``timelines.data_of``."""

    kind: ClassVar[str] = "timeline"
    title: str
    data: dict[str, Any]


Part = Grid | Bars | Heat | Timeline


@dataclass(frozen=True)
class Section:
    """A part of a page with a title, some lines of text and what is shown."""

    title: str
    parts: Sequence[Part]
    texts: Sequence[str] = ()


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: Its title.
        lead: What was found, in sentences; the first says most.
        command: The words of the command line that made it.
        document: The JSON result, of which the page also shows version, seed and the configuration's digest.
        sections: What is shown.
        notes: What one must know of how it was made.
    """

    title: str
    lead: Sequence[str]
    command: Sequence[str]
    document: dict[str, Any]
    sections: Sequence[Section]
    notes: Sequence[str] = field(default=())
