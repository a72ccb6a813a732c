"""Schedules over a sweep of sizes: what each takes, and between which two sizes one overtakes another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any

from rich.markup import escape
from rich.table import Table

from dysharp_env.report.records import Total
from dysharp_env.report.tables import empty_table

MOST_PAIRED = 6  # schedules of which every two are looked at; of more, those that are fastest somewhere


@dataclass(frozen=True)
class Point:
    """All schedules at one value of a sweep."""

    value: int | str
    totals: tuple[Total, ...]

    @property
    def makespan_us(self) -> dict[str, float]:
        """The time of all layers by schedule."""
        return {total.schedule: total.makespan_us for total in self.totals}

    @property
    def fastest(self) -> str:
        """Who takes least, the first of equals."""
        return min(self.totals, key=lambda total: total.makespan_us).schedule

    def record(self) -> dict[str, Any]:
        """Returns it as one item of ``points`` in a JSON result."""
        return {"value": self.value, "fastest": self.fastest, "totals": [total.record() for total in self.totals]}


@dataclass(frozen=True)
class Crossing:
    """One schedule overtakes another between two sizes that were tried.

    Attributes:
        faster, slower: Who is from there on, and who was before.
        below, above: The sizes, between which it happens.
        at: About where, by straight lines between logarithms of sizes and times.
        makespan_us: What both take there, likewise.
    """

    faster: str
    slower: str
    below: int
    above: int
    at: float
    makespan_us: float

    def record(self) -> dict[str, Any]:
        """Returns it as one item of ``crossings`` in a JSON result."""
        return asdict(self)


def crossings(points: Sequence[Point], against: str) -> list[Crossing]:
    """Returns who overtakes whom in a sweep of numbers, in order of sizes.

    Of more than ``MOST_PAIRED`` schedules only those are looked at that are fastest somewhere, and ``against``.
    """
    names = [total.schedule for total in points[0].totals]
    if len(names) > MOST_PAIRED:
        chosen = {against, *(point.fastest for point in points)}
        names = [name for name in names if name in chosen]
    found = [each for pair in permutations(names, 2) for each in _crossings_of(points, *pair)]
    return sorted(found, key=lambda each: (each.at, each.faster))


def _crossings_of(points: Sequence[Point], faster: str, slower: str) -> Iterator[Crossing]:
    """Yields where one overtakes the other; sizes at which both take the same are passed over."""
    last: tuple[int, float, float] | None = None  # a size at which they differ, by how much, ``faster``'s time
    for point in points:
        own_us, size = point.makespan_us[faster], int(point.value)
        lead = math.log(point.makespan_us[slower] / own_us)
        if lead == 0:
            continue
        if last is not None and last[1] < 0 < lead:
            below, before, before_us = last
            share = before / (before - lead)
            at = math.exp(math.log(below) + share * math.log(size / below))
            us = math.exp(math.log(before_us) + share * math.log(own_us / before_us))
            yield Crossing(faster, slower, below, size, at, us)
        last = size, lead, own_us


def crossing_lines(points: Sequence[Point], found: Sequence[Crossing], what: str) -> list[str]:
    """Returns what a sweep says in words: who is fastest where, and who overtakes whom between which sizes."""
    runs: list[tuple[str, list[str]]] = []
    for point in points:
        if not runs or runs[-1][0] != point.fastest:
            runs.append((point.fastest, []))
        runs[-1][1].append(str(point.value))
    fastest = ", ".join(f"{name} at {' '.join(values)}" for name, values in runs)
    return [
        f"fastest, by {what}: {fastest}",
        *(
            f"{each.faster} overtakes {each.slower} between {each.below} and {each.above} {what}, near {each.at:.0f}"
            for each in found
        ),
    ]


def sweep_tables(points: Sequence[Point], against: str, hardware_of: Mapping[str, str], what: str) -> list[Table]:
    """Returns times and speed-ups over ``against``, a line for each schedule, the best on the mean first.

    The fastest at a value is in bold.
    """
    names = sorted(hardware_of, key=lambda name: sum(math.log(point.makespan_us[name]) for point in points))
    heads = [f"{point.value}" for point in points]
    tables = []
    for head, is_speed in ((f"Makespan, us, by {what}", False), (f"Speed-up over {against}, by {what}", True)):
        table = empty_table(head, ("schedule", "hardware"), [escape(each) for each in heads])
        for name in names:
            cells = []
            for point in points:
                us = point.makespan_us[name]
                text = f"{point.makespan_us[against] / us:.3f}x" if is_speed else f"{us:.1f}"
                cells.append(f"[bold]{text}[/]" if point.fastest == name else text)
            table.add_row(escape(name), hardware_of[name], *cells)
        tables.append(table)
    return tables


def drawn_names(points: Sequence[Point], against: str, most: int) -> list[str]:
    """Returns which schedules a picture has room for: those fastest somewhere, ``against``, then the best on the mean.

    They are in the order in which they were compared.
    """
    names = [total.schedule for total in points[0].totals]
    by_mean = sorted(names, key=lambda name: sum(math.log(point.makespan_us[name]) for point in points))
    first = list(dict.fromkeys([*(point.fastest for point in points), against, *by_mean]))[:most]
    return [name for name in names if name in first]
