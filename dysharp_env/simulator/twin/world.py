"""What all parts of the twin share: the clock, who takes decisions, inputs and the records of what happened."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin.parts import Candidate, Name, Split, Use
from dysharp_env.workload.workload import Workload


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


class Group:
    """What takes decisions of one kind on one GPU: an SM group, or the choice of the groups' sizes.

    Attributes:
        holds: Whether it waits although it has something to do, until something new concerns it.
    """

    def __init__(self, world: World, kind: int, gpu: int) -> None:
        self.world, self.kind, self.gpu = world, kind, gpu
        self.is_marked = self.holds = False

    def mark(self) -> None:
        """Asks for the group to act, once, when all events of the instant are served."""
        if not self.is_marked:
            self.is_marked = True
            self.world.marked.append(self)

    def wake(self) -> None:
        """Marks the group because of something new, so that it no longer holds."""
        self.holds = False
        self.mark()

    def act(self) -> Sequence[Candidate]:
        """Does all that needs no choice; returns what to choose from next, nothing if the group has to wait."""
        raise NotImplementedError

    def may_hold(self) -> bool:
        """Returns whether the group may hold now, if its kind may at all: something must still concern it."""
        return False

    def take(self, candidate: Any) -> None:
        """Does what was chosen of what it offered."""
        raise NotImplementedError


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
        self.marked: deque[Group] = deque()
        self.tokens_left = workload.num_tokens
        self.rows_ready = self.decisions = self.evictions = 0
        self.traffic = np.zeros((self.num_gpus, 2, codes.NUM_PURPOSES), np.int64)
        self.log: list[Use] = []

    def use(self, resource: int, gpu: int, purpose: int, item: Name, amount: int, end_ps: int) -> None:
        """Logs that a resource is in use from now on."""
        self.log.append(Use(resource, gpu, purpose, item, amount, self.clock.now_ps, end_ps))
