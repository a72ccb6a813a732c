"""How far a long command is, on standard error: a bar on a terminal, now and then a plain line anywhere else.

Results go to standard output, so that a command that is piped or logged still says when it will end.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from dysharp_env.simulator.warmup import notice

_EVERY_S = 30.0  # between plain lines
_FIRST_S = 10.0  # before the first: what is over by then needs none
_SHOWN = 0.01  # part that must be done before the time left is worth a guess


class Track(Protocol):
    """Where a command says how far it is."""

    def at(self, done: float, text: str = "", line: str = "") -> None:
        """Says that so much of the total is done.

        Args:
            done: How much.
            text: In a few words what there is to see, for the bar.
            line: What is worth a line of its own where there is no bar; without one such lines come now and then.
        """


class Clock:
    """How much is done since when, and how long the rest will take at that pace."""

    def __init__(self, total: float, before: float = 0.0) -> None:
        """Starts now; so much was done ``before``."""
        self.total, self.done, self._before = total, before, before
        self._started = time.monotonic()

    @property
    def part(self) -> float:
        """What part of all is done, 0 to 1."""
        return min(self.done / self.total, 1.0) if self.total > 0 else 1.0

    def left(self) -> str:
        """Returns the time left in words, ``?`` as long as nobody can know."""
        gained = self.done - self._before
        if gained <= 0 or self.part < _SHOWN:
            return "? left"
        left_s = (time.monotonic() - self._started) * max(self.total - self.done, 0.0) / gained
        return f"{duration(left_s)} left"


def duration(seconds: float) -> str:
    """Returns a time as people read it: ``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def track(what: str, total: float, *, before: float = 0.0, quiet: bool = False) -> Iterator[Track]:
    """Yields where a command says how far it is.

    Args:
        what: What is being done, in a word or two.
        total: How much there is to do, in any unit.
        before: What of it is done already, when an interrupted command goes on.
        quiet: Whether to show nothing.
    """
    clock = Clock(total, before)
    if quiet:
        yield _Silent()
    elif sys.stderr.isatty():
        # Short texts: a bar that does not fit in 80 columns is cut at both ends.
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=10), TextColumn("{task.percentage:>3.0f}%"))
        rest = (TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
        with Progress(*columns, *rest, console=Console(stderr=True)) as bar:
            yield _Bar(clock, bar, what)
    else:
        yield _Lines(clock, what)


class _Silent:
    def at(self, done: float, text: str = "", line: str = "") -> None:
        """Shows nothing."""


class _Bar:
    def __init__(self, clock: Clock, bar: Progress, what: str) -> None:
        """Draws the bar."""
        self._clock, self._bar = clock, bar
        self._task = bar.add_task(what, total=clock.total, text="", left="")
        self.at(clock.done)

    def at(self, done: float, text: str = "", line: str = "") -> None:
        """Moves the bar."""
        self._clock.done = done
        self._bar.update(self._task, completed=min(done, self._clock.total), text=text, left=self._clock.left())


class _Lines:
    def __init__(self, clock: Clock, what: str) -> None:
        """Says nothing yet."""
        self._clock, self._what = clock, what
        self._next_s = time.monotonic() + _FIRST_S

    def at(self, done: float, text: str = "", line: str = "") -> None:
        """Leaves a line, if there is one or the last one is some time ago."""
        self._clock.done = done
        now_s = time.monotonic()
        if line or now_s >= self._next_s:
            self._next_s = now_s + _EVERY_S
            told = line or ", ".join(part for part in (f"{self._what} {self._clock.part:.0%}", text) if part)
            notice(f"{time.strftime('%H:%M:%S')}  {told}, {self._clock.left()}")
