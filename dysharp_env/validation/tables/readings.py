"""Tables of measurements as readings: each a number that was measured, and the experiment that predicts it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

from dysharp_env.config import ConfigError

LARGEST_COUNT = 1_000_000


class Experiment(Protocol):
    """What the engine is asked to run; equal experiments give equal figures, and are run once."""

    line_through: ClassVar[tuple[int, int] | None]
    """Two numbers of tokens: beyond the larger, figures lie on the straight line through those of both. None: never."""

    @property
    def tokens(self) -> int:
        """Tokens of each GPU."""

    def at(self, tokens: int) -> Self:
        """Returns the same experiment with other tokens on each GPU."""

    def figures(self) -> tuple[float, ...]:
        """Returns what was measured in the order and unit in which it was: microseconds, or what a table says."""


@dataclass(frozen=True)
class Reading:
    """One measured number.

    Attributes:
        line: Of the file, the header being line 1; a place in the list where there is no file.
        series: What was measured, for errors apart.
        shape: Everything else but the tokens, for people.
        measured: The number.
        experiment: What predicts it.
        place: Which of the experiment's figures does.
    """

    line: int
    series: str
    shape: str
    measured: float
    experiment: Experiment
    place: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of each GPU."""
        return self.experiment.tokens


@dataclass(frozen=True)
class Table:
    """A table's readings.

    Attributes:
        name: A name from ``TABLES``, or a file's.
        rows: Rows that it has.
        readings: Numbers of the rows that can be predicted; a row may have two.
        left_out: How many rows cannot, by reason.
    """

    name: str
    rows: int
    readings: tuple[Reading, ...]
    left_out: dict[str, int]


class CannotExpressError(Exception):
    """A row is sound, and of something that the engine has no program for; the text is the reason, the same for all."""


@dataclass(frozen=True)
class Row:
    """One line of a CSV file, whose cells are read by name and kind.

    Attributes:
        file: The file's name, for messages.
        line: Its line there.
        cells: Text by column.
    """

    file: str
    line: int
    cells: dict[str, str]

    def word(self, column: str, known: Iterable[str] = ()) -> str:
        """Returns a cell of text, one of ``known`` if there are any.

        Raises:
            ConfigError: It is empty or another.
        """
        text, words = self.cells[column], list(known)
        if not text or (words and text not in words):
            raise self.error(column, f"must be one of {words}" if words else "must not be empty")
        return text

    def count(self, column: str, least: int = 1) -> int:
        """Returns a cell that counts something.

        Raises:
            ConfigError: It is no whole number, or out of range.
        """
        return int(
            self._number(column, int, lambda value: least <= value <= LARGEST_COUNT, f"a whole number from {least} on")
        )

    def micros(self, column: str) -> float:
        """Returns a cell that holds a time.

        Raises:
            ConfigError: It is no number above 0.
        """
        return self._number(column, float, lambda value: 0 < value < 1e9, "a time above 0, in microseconds")

    def _number(
        self, column: str, kind: Callable[[str], float], is_allowed: Callable[[float], bool], allowed: str
    ) -> float:
        try:
            value = kind(self.cells[column])
        except ValueError:
            raise self.error(column, f"must be {allowed}") from None
        if not is_allowed(value):
            raise self.error(column, f"must be {allowed}")
        return value

    def error(self, column: str, must: str) -> ConfigError:
        """Returns the error that says what is wrong with a cell."""
        return ConfigError(f"'{self.file}', line {self.line}: {column}='{self.cells[column]}' {must}")
