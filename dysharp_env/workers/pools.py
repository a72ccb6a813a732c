"""Threads of this process and processes of this machine as workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from threading import Thread

from dysharp_env.config import ConfigError
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.workers.workers import Item, Result, Workers, one_thread_each, timed


class Threads(Workers):
    """Threads of this process, which are worth having where the work is done inside the engine."""

    def __init__(self, workers: int) -> None:
        """Starts nothing yet; ``workers`` threads will work."""
        super().__init__()
        self._workers = workers
        self._pool: Executor | None = None
        self._owner = 0  # the process that started the pool; one that was forked from it has no part in it

    def close(self) -> None:
        """Ends the pool and forgets what has not begun."""
        if self._pool is not None and self._owner == os.getpid():
            self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = None

    def _start(self) -> Executor:
        return ThreadPoolExecutor(self._workers)

    def _ends(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        order: Sequence[int],
        constants: Sequence[object],
    ) -> Iterator[tuple[int, Result]]:
        if self._pool is None or self._owner != os.getpid():
            self._pool, self._owner = self._start(), os.getpid()
        pool = self._pool
        futures = {pool.submit(timed, function, items[place]): place for place in order}
        try:
            for future in as_completed(futures):
                result, seconds = future.result()
                self._count(seconds)
                yield futures[future], result
        except BaseException:
            self.close()
            raise

    def _count(self, seconds: float) -> None:
        """Does nothing: this process's clock has counted them."""


def _begin() -> None:
    """Leaves interrupts to the process that started this one, and sees to it that this one ends with that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None
    Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


class Processes(Threads):
    """Processes of this machine.

    They are spawned, not forked: progress bars run threads, and a fork in the middle of one can hang. Interrupts are
    for this process alone, which lets the others finish what they do; if it is killed they end as well.
    """

    def _start(self) -> Executor:
        ensure_compiled()
        return ProcessPoolExecutor(self._workers, get_context("spawn"), _begin)

    def _ends(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        order: Sequence[int],
        constants: Sequence[object],
    ) -> Iterator[tuple[int, Result]]:
        try:
            with one_thread_each():  # the first items start them all
                yield from super()._ends(function, items, order, constants)
        except BrokenProcessPool:
            raise ConfigError(
                f"workers={self._workers}: a process ended early, most likely for want of memory; use fewer"
            ) from None

    def _count(self, seconds: float) -> None:
        self.elsewhere_s += seconds
