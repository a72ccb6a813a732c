"""Measured numbers, and how they are measured.

Every time is taken twice: on the wall, which is what a user waits, and of all CPUs in this process, which is what other
work on a shared machine disturbs least. Of repeated measurements the one of least CPU time counts: what disturbs a
measurement only ever adds to it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

Result = TypeVar("Result")


class Seconds(NamedTuple):
    """How long something took."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        name: What is measured.
        value: How much.
        unit: Of ``value``.
        took: How long the measurement took that counts; None where ``value`` is not made from a time.
    """

    name: str
    value: float
    unit: str
    took: Seconds | None = None

    def record(self) -> dict[str, Any]:
        """Returns the row as one item of ``rows`` in a JSON result."""
        times = {"wall_s": None, "cpu_s": None} if self.took is None else self.took._asdict()
        return {"name": self.name, "value": self.value, "unit": self.unit, **times}


def per_second(name: str, count: int, took: Seconds, unit: str) -> Row:
    """Returns ``count`` things of a kind as a rate in wall time."""
    return Row(name, count / took.wall_s, f"{unit}/s", took)


def timed(action: Callable[[], Result]) -> tuple[Result, Seconds]:
    """Returns what an action returns, and how long it took."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    result = action()
    return result, Seconds(time.perf_counter() - wall_s, time.process_time() - cpu_s)


def least(action: Callable[[], tuple[Result, Seconds]], repeats: int) -> tuple[Result, Seconds]:
    """Returns the measurement of least CPU time of ``repeats`` that ``action`` prepares and times; see ``timed``."""
    return min((action() for _ in range(repeats)), key=lambda measured: measured[1].cpu_s)


def power_law(sizes: Sequence[float], costs: Sequence[float]) -> tuple[float, float]:
    """Returns the exponent b of the power law a * size**b nearest to the costs, and R squared, both in logarithms.

    R squared is 1 where the costs do not vary at all.
    """
    x, y = np.log(sizes), np.log(costs)
    exponent, offset = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    missed = float(((y - exponent * x - offset) ** 2).sum())
    return float(exponent), 1.0 - missed / spread if spread > 0 else 1.0
