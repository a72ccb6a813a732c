"""What all workers have in common, and the simplest of them: this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Does things in this process, one after the other; subclasses do several at a time.

    Attributes:
        elsewhere_s: Processor seconds that other processes have worked for this one.
    """

    def __init__(self) -> None:
        """Begins with nothing done."""
        self.elsewhere_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends whatever was started to work."""

    @property
    def cpu_s(self) -> float:
        """Processor seconds of this process and of what has worked for it."""
        return time.process_time() + self.elsewhere_s

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        size: Callable[[Item], float] | None = None,
        constants: Sequence[object] = (),
        tell: Callable[[int, int, Result], object] = lambda done, place, result: None,
    ) -> list[Result]:
        """Returns the function's result for every item, in their order.

        Args:
            function: Of a module, so that another process finds it; what it returns depends on the item alone.
            items: What it is called with; they and the results can be pickled.
            size: Roughly how long an item takes: long ones are begun first, so that nobody ends alone.
            constants: Objects that many items hold or the function is made of, in this or later calls, and that nobody
                changes: workers that live elsewhere get each of them once.
            tell: Called after each item with how many are done, the item's place and its result.

        Raises:
            ConfigError: A worker was lost, and what it did cannot be done again.
        """
        order = list(range(len(items)))
        if size is not None:
            order.sort(key=lambda place: -size(items[place]))
        results: dict[int, Result] = {}
        for place, result in self._ends(function, items, order, constants):
            results[place] = result
            tell(len(results), place, result)
        return [results[place] for place in range(len(items))]

    def _ends(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        order: Sequence[int],
        constants: Sequence[object],
    ) -> Iterator[tuple[int, Result]]:
        """Yields places and results as they are done; the items are begun in that order of their places."""
        for place in order:
            yield place, function(items[place])


def timed(function: Callable[[Any], Any], item: object) -> tuple[Any, float]:
    """Returns a function's result and the processor seconds that it took."""
    began = time.process_time()
    return function(item), time.process_time() - began


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Has processes that are started meanwhile use one numerical thread; libraries look when they are loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
