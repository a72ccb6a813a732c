"""The twin's clock: events, in the order in which equal times are settled."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Simulated time and what is to happen, ordered by (time, kind, sequence).

    Attributes:
        now_ps: The simulated time.
        pushed, served: Events so far.
    """

    def __init__(self) -> None:
        self.now_ps = self.pushed = self.served = 0
        self._events: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, time_ps: int, kind: int, effect: Callable[..., None], *operands: object) -> None:
        """Has an effect happen at a time, among the events of its kind."""
        heapq.heappush(self._events, (time_ps, kind, self.pushed, effect, operands))
        self.pushed += 1

    def serve_instant(self) -> bool:
        """Goes to the next instant and serves all its events; returns False if there are none any more."""
        if not self._events:
            return False
        self.now_ps = self._events[0][0]
        while self._events and self._events[0][0] == self.now_ps:
            _, _, _, effect, operands = heapq.heappop(self._events)
            self.served += 1
            effect(*operands)
        return True
