"""What all parts of the twin share: the clock, inputs and what follows from them, and the records of what happened."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin.parts import Name, Split, Use
from dysharp_env.workload.workload import Workload


class Clock:
    """Simulated time and what is to happen, ordered by (time, kind, sequence)."""

    def __init__(self) -> None:
        self.now_ps = 0
        self.pushed = self.served = 0  # events so far
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


class World:
    """One layer's inputs, clock and records.

    Attributes:
        dispatch, combine: The primitives in use.
        notifies: Whether expert GPUs tell home GPUs of finished rows; a phase boundary makes that unnecessary.
        may_close_early: Whether any split, or the program, lets an open tile be closed early.
        scale_ps: What times are compared with in what decisions show.
        marked: Groups that are to act, first come first served.
        rows_ready: GEMM rows that have become ready so far.
        tokens_left: Tokens that are not combined.
        decisions: Decisions between two or more legal candidates so far.
        evictions: Partial sums sent home for want of accumulator slots.
        traffic: (GPU, direction, purpose) int64 flits on the wire.
    """

    def __init__(self, workload: Workload, costs: Costs, program: Program, num_sms: int, bound: Bound) -> None:
        self.workload, self.costs, self.program = workload, costs, program
        self.num_gpus, self.num_sms, self.bound = workload.num_gpus, num_sms, bound
        self.dispatch, self.combine = program.dispatch, program.combine
        self.notifies = self.combine.reads and program.gates[2] == codes.GATE_FINE
        self.splits = [Split(row, *split) for row, split in enumerate(program.splits)]
        tile_tokens = workload.layer.tile_tokens
        self.may_close_early = program.partial_tiles or any(split.early_tokens < tile_tokens for split in self.splits)
        self.scale_ps = max(1, bound.total_ps)
        self.clock = Clock()
        self.marked: deque[Any] = deque()
        self.tokens_left = workload.num_tokens
        self.rows_ready = self.decisions = self.evictions = 0
        self.traffic = np.zeros((self.num_gpus, 2, codes.NUM_PURPOSES), np.int64)
        self.log: list[Use] = []

    def use(self, resource: int, gpu: int, purpose: int, item: Name, amount: int, end_ps: int) -> None:
        """Logs that a resource is in use from now on."""
        self.log.append(Use(resource, gpu, purpose, item, amount, self.clock.now_ps, end_ps))
