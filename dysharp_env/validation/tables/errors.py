"""Errors of predictions over a table: how large, to which side, for how many tokens, and where the worst are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.validation.tables.readings import Reading, Table

# The largest errors are listed, or all of a table that is no longer than a screen.
NUM_WORST, NUM_ALL = 8, 24


class Outcome(NamedTuple):
    """A reading and what was predicted for it."""

    reading: Reading
    predicted: float

    @property
    def error_pct(self) -> float:
        """Predicted over measured, less one, in percent."""
        return 100 * (self.predicted / self.reading.measured - 1)


@dataclass(frozen=True)
class Errors:
    """Statistics of some outcomes.

    Attributes:
        values: How many.
        median_abs_pct, p90_abs_pct: Of the absolute error; the second is its 90th percentile.
        median_pct: Of the error with its sign: above 0 where predictions are too large.
    """

    values: int
    median_abs_pct: float
    p90_abs_pct: float
    median_pct: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Errors:
        """Returns the statistics of at least one outcome."""
        errors_pct = np.array([outcome.error_pct for outcome in outcomes])
        absolute = np.abs(errors_pct)
        return cls(
            values=len(errors_pct),
            median_abs_pct=float(np.median(absolute)),
            p90_abs_pct=float(np.quantile(absolute, 0.9)),
            median_pct=float(np.median(errors_pct)),
        )

    def record(self) -> dict[str, Any]:
        """Returns the statistics as they stand in a JSON result."""
        return {
            "values": self.values,
            "median_abs_error_pct": self.median_abs_pct,
            "p90_abs_error_pct": self.p90_abs_pct,
            "median_error_pct": self.median_pct,
        }


@dataclass(frozen=True)
class TableErrors:
    """A table with what was predicted for it.

    Attributes:
        table: The table.
        outcomes: One for each of its readings.
        constants_set: How many constants of the model were chosen with its rows in sight.
    """

    table: Table
    outcomes: tuple[Outcome, ...]
    constants_set: int

    @property
    def errors(self) -> Errors | None:
        """Statistics of all outcomes; None if there is none."""
        return Errors.of(self.outcomes) if self.outcomes else None

    def by(self, key: Callable[[Reading], Any]) -> dict[Any, Errors]:
        """Returns statistics of outcomes with equal keys, in the order of keys."""
        groups: dict[Any, list[Outcome]] = {}
        for outcome in self.outcomes:
            groups.setdefault(key(outcome.reading), []).append(outcome)
        return {name: Errors.of(groups[name]) for name in sorted(groups)}

    def worst(self) -> list[Outcome]:
        """Returns the outcomes with the largest errors, the largest first."""
        number = NUM_ALL if len(self.outcomes) <= NUM_ALL else NUM_WORST
        return sorted(self.outcomes, key=lambda outcome: -abs(outcome.error_pct))[:number]

    def record(self) -> dict[str, Any]:
        """Returns the table as one item of ``tables`` in a JSON result; a table without outcomes has null errors."""
        nothing = {"values": 0, "median_abs_error_pct": None, "p90_abs_error_pct": None, "median_error_pct": None}
        return {
            "table": self.table.name,
            "rows": self.table.rows,
            **(self.errors.record() if self.errors else nothing),
            "constants_set": self.constants_set,
            "left_out": self.table.left_out,
            "by_tokens": [{"tokens": tokens, **each.record()} for tokens, each in self.by(_tokens).items()],
            "by_series": [{"series": series, **each.record()} for series, each in self.by(_series).items()],
            "worst": [
                {
                    "line": outcome.reading.line,
                    "series": outcome.reading.series,
                    "shape": outcome.reading.shape,
                    "tokens": outcome.reading.tokens,
                    "measured": outcome.reading.measured,
                    "predicted": outcome.predicted,
                    "error_pct": outcome.error_pct,
                }
                for outcome in self.worst()
            ],
        }


def _tokens(reading: Reading) -> int:
    return reading.tokens


def _series(reading: Reading) -> str:
    return reading.series
