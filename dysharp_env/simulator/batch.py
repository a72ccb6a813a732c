"""Many layers that advance together: one compiled call takes each of them to its next decision.

What decisions show lies in arrays that all layers share, a row each, written in place by the kernel. Layers know
nothing of one another, so a copy plays what it would play alone, on one thread or on several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from typing import Any

import numpy as np

from dysharp_env.simulator.engine import Decision, Engine
from dysharp_env.simulator.kernel.loop import advance
from dysharp_env.simulator.playing import Players
from dysharp_env.simulator.state.codes import ASK, GROW, RUN
from dysharp_env.simulator.state.observation import NUM_CONTEXT, NUM_FEATURES
from dysharp_env.simulator.state.records import NOBODY, ROOT
from dysharp_env.simulator.state.state import Seat


class Batch:
    """Seats for layers, which may be of any workload, system and program that shows so many candidates.

    Copied or pickled, it is seats of their own with copies of the layers in them.

    Attributes:
        engines: The layer of each copy, or None.
        features: (copy, max_candidates, feature) float32, what the waiting decisions show.
        rows: (copy, max_candidates * feature) float32, the same numbers.
        context: (copy, context) float32, likewise.
        mask: (copy, max_candidates) bool, likewise.
        status: (copy,) int64, ``ASK`` where a decision waits, ``DONE`` where the layer is done, ``EMPTY`` without one.
        kind, gpu: (copy,) int64, the waiting decision's; of no meaning elsewhere.
        now_ps: (copy,) int64, the simulated time.
        decisions, asked: (copy,) int64, decisions so far with more than one legal answer, and those of them that were
            answered from outside or by the program's network.
    """

    def __init__(self, num_copies: int, max_candidates: int, threads: int = 1) -> None:
        """Makes empty seats.

        Args:
            num_copies: Layers that it holds at most.
            max_candidates: Candidates that their decisions show at most.
            threads: Threads that share the layers. More than one pays only where that many cores are idle: every
                call waits for the slowest.
        """
        self._roots = np.zeros(num_copies, ROOT)
        self.engines: list[Engine | None] = [None] * num_copies
        self.features = np.zeros((num_copies, max_candidates, NUM_FEATURES), np.float32)
        self.rows = self.features.reshape(num_copies, -1)
        self.context = np.zeros((num_copies, NUM_CONTEXT), np.float32)
        self.mask = np.zeros((num_copies, max_candidates), np.bool_)
        self.status, self.kind, self.gpu = (self._roots[name] for name in ("status", "pending_kind", "pending_gpu"))
        self.now_ps, self.decisions, self.asked = (self._roots[name] for name in ("now_ps", "decisions", "asked"))
        self._choice = self._roots["choice"]
        bounds = np.linspace(0, num_copies, min(threads, num_copies) + 1).astype(int)
        self._slices = [self._roots[first:last] for first, last in zip(bounds, bounds[1:], strict=False)]
        self._pool: ThreadPoolExecutor | None = None
        self._owner = 0  # the process whose threads the pool has

    def place(self, copy: int, engine: Engine) -> None:
        """Seats a layer that has its first decision still before it; the one before keeps its state elsewhere."""
        before = self.engines[copy]
        if before is not None:
            before.move(_seat(self.mask.shape[1]))
        engine.move(
            Seat(self._roots[copy : copy + 1], self.features[copy], self.context[copy], self.mask[copy]),
        )
        self.engines[copy] = engine

    def show(self, copy: int, waiting: Decision, asked: int, decisions: int) -> None:
        """Shows a decision in a seat that has no layer yet; ``answer`` is not for it.

        Args:
            copy: Whose seat it is.
            waiting: What is asked before its layer starts.
            asked: As the attribute of that name.
            decisions: Likewise.
        """
        before = self.engines[copy]
        if before is not None:
            before.move(_seat(self.mask.shape[1]))
        self.engines[copy] = None
        self.features[copy], self.context[copy], self.mask[copy] = waiting.features, waiting.context, waiting.mask
        self.status[copy], self.kind[copy], self.gpu[copy] = ASK, waiting.kind, waiting.gpu
        self.now_ps[copy], self.asked[copy], self.decisions[copy] = 0, asked, decisions

    def answer(self, copies: np.ndarray, choices: np.ndarray) -> None:
        """Answers waiting decisions; time does not move.

        Args:
            copies: (copy,) bool, whose decisions are answered; each must wait.
            choices: (copy,) int64, rows of legal candidates, which is the caller's to see to; others are not read.
        """
        np.copyto(self._choice, choices, where=copies)
        np.copyto(self.status, RUN, where=copies)

    def advance(self) -> None:
        """Takes every layer that is free to run to its next decision or its end.

        Raises:
            RuntimeError: A layer is stuck; its program cannot be run.
        """
        if len(self._slices) == 1:
            others = advance(self._roots, NOBODY)
        else:
            pool = self._threads()
            rest = [pool.submit(advance, roots, NOBODY) for roots in self._slices[1:]]
            others = advance(self._slices[0], NOBODY) + sum(future.result() for future in rest)
        if others:
            for copy in np.flatnonzero(self.status >= GROW):
                engine = self.engines[copy]
                assert engine is not None, copy
                engine.settle()

    def _threads(self) -> ThreadPoolExecutor:
        """Returns the pool of this process's threads: those of a process that it was forked from are not here."""
        if self._pool is None or self._owner != os.getpid():
            # This thread takes a slice as well.
            self._pool, self._owner = ThreadPoolExecutor(len(self._slices) - 1), os.getpid()
        return self._pool

    def play(self, copy: int, players: Players) -> None:
        """Lets a copy's player answer its layer until the layer is done or the player has no more room.

        Other copies may be played at the same time by other threads.

        Raises:
            RuntimeError: The layer is stuck; its program cannot be run.
        """
        while advance(self._roots[copy : copy + 1], players.records[copy : copy + 1]):
            engine = self.engines[copy]
            assert engine is not None, copy
            engine.settle()

    @classmethod
    def seating(cls, engines: Sequence[Engine | None], max_candidates: int, threads: int) -> Batch:
        """Returns a batch with a seat for each layer, and an empty one for each None."""
        batch = cls(len(engines), max_candidates, threads)
        for index, engine in enumerate(engines):
            if engine is not None:
                batch.place(index, engine)
        return batch

    def __copy__(self) -> Batch:
        return deepcopy(self)

    def __reduce__(self) -> tuple[Callable[..., Batch], tuple[Any, ...]]:
        # What lies in a seat is its layer's state as well, and an empty seat holds nothing.
        return Batch.seating, (self.engines, self.mask.shape[1], len(self._slices))

    def close(self) -> None:
        """Ends the threads."""
        if self._pool is not None and self._owner == os.getpid():
            self._pool.shutdown()


def _seat(max_candidates: int) -> Seat:
    """Returns a seat of its own."""
    return Seat(
        np.zeros(1, ROOT),
        np.zeros((max_candidates, NUM_FEATURES), np.float32),
        np.zeros(NUM_CONTEXT, np.float32),
        np.zeros(max_candidates, np.bool_),
    )
