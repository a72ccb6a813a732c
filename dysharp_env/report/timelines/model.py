"""What a timeline holds, whatever format it is written in: tracks of slices, instants and counters, and flows.

Times are picoseconds since the layer began. Slices of one track never overlap; they come in order of start.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

ALL_GPUS = -1

# What a track is of: links, thread blocks of GEMMs, kernels between phases, anything else.
LINKS, GEMMS, KERNELS, OTHER = "links", "gemms", "kernels", "other"


class Slice(NamedTuple):
    """Something that took time.

    Attributes:
        name: What it was.
        start_ps, end_ps: From when to when.
        args: More about it, by name with the unit; whole numbers, fractions and texts.
        flows: Of the flows that go through it.
    """

    name: str
    start_ps: int
    end_ps: int
    args: dict[str, Any]
    flows: tuple[int, ...] = ()


class Instant(NamedTuple):
    """Something that happened at one moment; ``args`` may hold lists and dictionaries too."""

    name: str
    time_ps: int
    args: dict[str, Any]


@dataclass(frozen=True)
class Track:
    """A line of the timeline.

    Attributes:
        gpu: Whose it is; ALL_GPUS for the layer's.
        name: Several tracks of a GPU that have one name are lanes of one thing.
        rank: Its place among those of its GPU, the same for all lanes of a name.
        lane: Its place among those of its name.
        slices: Its slices, which can be gone through more than once.
        instants: Its instants.
        of: ``LINKS``, ``GEMMS``, ``KERNELS`` or ``OTHER``.
        note: For people: what is not seen at once.
    """

    gpu: int
    name: str
    rank: int
    slices: Iterable[Slice] = ()
    instants: Iterable[Instant] = ()
    lane: int = 0
    of: str = OTHER
    note: str = ""


@dataclass(frozen=True)
class Counter:
    """A number that changes over time: what each value holds from its time on, until the next.

    Attributes:
        gpu: Whose it is.
        name: What is counted.
        unit: In what.
        times_ps: (value,) int64, rising.
        values: (value,) float64.
    """

    gpu: int
    name: str
    unit: str
    times_ps: np.ndarray
    values: np.ndarray

    def integral(self, end_ps: int) -> float:
        """Returns the sum of values times how long they hold, up to the end, in units times picoseconds."""
        return float((np.diff(self.times_ps, append=end_ps) * self.values).sum())


@dataclass(frozen=True)
class Timeline:
    """One layer.

    Attributes:
        title: What it is of, for people.
        num_gpus: Its GPUs.
        end_ps: How long it took.
        is_aggregated: Whether segments on links are shown as stretches in which a link was in use.
        tracks: All tracks, those of the layer first, then GPU by GPU in order of rank.
        counters: All counters.
        notes: What the timeline leaves out, for people.
    """

    title: str
    num_gpus: int
    end_ps: int
    is_aggregated: bool
    tracks: list[Track] = field(default_factory=list)
    counters: list[Counter] = field(default_factory=list)
    notes: tuple[str, ...] = ()
