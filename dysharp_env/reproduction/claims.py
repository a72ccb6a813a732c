"""Claims of a publication: the simulations they need, and rows of published against simulated.

A ``Measure`` is a time (or an amount) computed from simulated layers. A ``Claim`` is a statistic over ratios of two
measures, such as the geometric mean over nine models of DeepEP's time over DySHARP's, beside the published value.
Claims are plain data until the layers they name have been simulated, each once, however many claims share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from dysharp_env.report.tables import add_groups, empty_table
from dysharp_env.reproduction.steps.layers import LayerCase, LayerTimes

Statistic = Literal["max", "geomean", "value"]
# A row that is further than this from the published value carries a note of what each side was bound by.
NEAR_PCT = 10.0


Results = Mapping[LayerCase, LayerTimes]


@dataclass(frozen=True)
class Measure:
    """What is computed from some simulated layers.

    Attributes:
        cases: The layers.
        of: Returns the value, given the results of at least these.
    """

    cases: tuple[LayerCase, ...]
    of: Callable[[Results], float]


@dataclass(frozen=True)
class Claim:
    """One number of one table.

    Attributes:
        table: The table's name.
        name: What is compared with what.
        statistic: ``max`` or ``geomean`` over the pairs, or the ``value`` of the only pair.
        published: The paper's number; None where it gives only a figure, or nothing.
        pairs: (numerator, denominator) measures, one for each model or point.
        stated: What the paper says in words, where it does.
    """

    table: str
    name: str
    statistic: Statistic
    published: float | None
    pairs: tuple[tuple[Measure, Measure], ...]
    stated: str = ""

    @property
    def cases(self) -> tuple[LayerCase, ...]:
        """Every layer that must be simulated."""
        return tuple(case for pair in self.pairs for measure in pair for case in measure.cases)


@dataclass(frozen=True)
class Row:
    """One line of a reproduction."""

    table: str
    name: str
    statistic: Statistic
    published: float | None
    simulated: float
    calibration: str
    notes: str

    @property
    def ratio(self) -> float | None:
        """Simulated over published."""
        return None if self.published is None else self.simulated / self.published

    def record(self) -> dict[str, Any]:
        """Returns the row as one item of ``rows`` in a JSON result."""
        fields = ("table", "name", "statistic", "published", "simulated", "ratio", "calibration", "notes")
        return {name: getattr(self, name) for name in fields}


def statistic_of(statistic: Statistic, ratios: Sequence[float]) -> float:
    """Returns the maximum, the geometric mean, or the only ratio."""
    if statistic == "max":
        return max(ratios)
    if statistic == "geomean":
        return math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    (value,) = ratios
    return value


def evaluate(claim: Claim, calibration: str, results: Results) -> Row:
    """Returns a claim's row, given the results of at least its own cases."""
    ratios = [numerator.of(results) / denominator.of(results) for numerator, denominator in claim.pairs]
    simulated = statistic_of(claim.statistic, ratios)
    notes = [f"paper: {claim.stated}"] if claim.stated else []
    if claim.published is not None and abs(simulated / claim.published - 1) > NEAR_PCT / 100:
        notes.append(_why(claim, results))
    return Row(claim.table, claim.name, claim.statistic, claim.published, simulated, calibration, "; ".join(notes))


def _why(claim: Claim, results: Results) -> str:
    """Returns what both sides of a claim kept busy, which is where a difference has to come from."""
    sides = []
    for place in (0, 1):
        cases = [case for pair in claim.pairs for case in pair[place].cases]
        if cases:
            names = "/".join(dict.fromkeys(case.schedule for case in cases))
            sides.append(f"{names} {_mean_busy([results[case] for case in cases])}")
    return "links/SMs/HBM busy %: " + ", ".join(sides)


def _mean_busy(times: Sequence[LayerTimes]) -> str:
    """Returns the mean busy fraction of the busier link direction, of SMs and of HBM, in percent."""
    busy = [(max(each.busy["uplink"], each.busy["downlink"]), each.busy["sm"], each.busy["hbm"]) for each in times]
    return "/".join(f"{100 * sum(column) / len(busy):.0f}" for column in zip(*busy, strict=True))


def summary_lines(rows: Sequence[Row]) -> list[str]:
    """Returns, for each calibration and table with published numbers, how many are met and whether the order is."""
    lines = []
    for calibration, table in dict.fromkeys((row.calibration, row.table) for row in rows):
        chosen = [row for row in rows if (row.calibration, row.table) == (calibration, table)]
        ratios = [row.ratio for row in chosen if row.ratio is not None]
        if not ratios:
            continue
        near = sum(abs(ratio - 1) <= NEAR_PCT / 100 for ratio in ratios)
        line = f"{calibration}, {table}: {near} of {len(ratios)} published values within {NEAR_PCT:g} %"
        means = [row for row in chosen if row.statistic == "geomean" and row.published is not None]
        if means:
            simulated = sorted(means, key=lambda row: -row.simulated)
            in_order = simulated == sorted(means, key=lambda row: -(row.published or 0.0))
            shown = ", ".join(row.name for row in simulated)
            line += f"; order of geomeans as published: {'yes' if in_order else f'no, {shown}'}"
        lines.append(line)
    return lines


def reproduction_table(table: str, rows: Iterable[Row]) -> Table:
    """Returns one line per row of one table, calibrations kept apart."""
    shown = empty_table(table, ("calibration", "what", "statistic"), ("published", "simulated", "ratio"))
    shown.add_column("notes")
    add_groups(shown, ((row.calibration, _cells(row)) for row in rows))
    return shown


def _cells(row: Row) -> tuple[str, ...]:
    published, simulated, ratio = (
        "-" if value is None else f"{value:.3f}" for value in (row.published, row.simulated, row.ratio)
    )
    return escape(row.name), row.statistic, published, simulated, ratio, escape(row.notes)
