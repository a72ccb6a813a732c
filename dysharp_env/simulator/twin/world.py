"""What all parts of the twin share: inputs and what follows from them, the clock, and the records of what happened."""

from __future__ import annotations

from collections import deque

import numpy as np

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin.clock import Clock
from dysharp_env.simulator.twin.parts import Candidate, Name, Options, Split, Use
from dysharp_env.workload.workload import Workload


class Group:
    """What takes decisions on one GPU: an SM group, or the choice of the groups' sizes."""

    def __init__(self, world: World, kind: int, gpu: int) -> None:
        self.world, self.kind, self.gpu = world, kind, gpu
        self.is_marked = False
        self.holds = False  # until something new concerns it

    def mark(self) -> None:
        """Asks for the group to act, once, when all events of the instant are served."""
        if not self.is_marked:
            self.is_marked = True
            self.world.marked.append(self)

    def wake(self) -> None:
        """Marks the group because of something new, so that it no longer holds."""
        self.holds = False
        self.mark()

    def act(self) -> Options | None:
        """Does all that needs no choice; returns what to choose from next, or None if the group has to wait."""
        raise NotImplementedError

    def take(self, candidate: Candidate) -> None:
        """Does what was chosen."""
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
        self.dispatch = program.dispatch
        self.combine = program.combine
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
