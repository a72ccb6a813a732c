"""What all parts of the twin share: clock, inputs and records; and how far each GPU is, and what its memory holds."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin.parts import Name, Pair, Split, Use
from dysharp_env.simulator.twin.phases import Phases
from dysharp_env.workload.workload import Workload

EVERYTHING, GEMM1, GEMM2, COMBINING = range(4)  # what a gate opens
STAGES = (GEMM1, GEMM2, COMBINING)


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
    """One layer's inputs, clock and records."""

    phases: Phases  # what is paid, once the tokens are known
    shared_end_ps: int  # when shared experts that run beside dispatch are over

    def __init__(self, workload: Workload, costs: Costs, program: Program, num_sms: int, bound: Bound) -> None:
        self.workload, self.costs, self.program = workload, costs, program.fitted(workload.experts_per_gpu)
        self.num_gpus, self.num_sms, self.bound = workload.num_gpus, num_sms, bound
        self.dispatch, self.combine = program.dispatch, program.combine
        # Expert GPUs tell home GPUs of finished rows, unless a phase boundary makes that unnecessary.
        self.notifies = self.combine.reads and program.gates[2] == codes.GATE_FINE
        self.splits = [Split(row, *split) for row, split in enumerate(program.splits)]
        tile_tokens = workload.layer.tile_tokens
        self.may_close_early = program.partial_tiles or any(split.early_tokens < tile_tokens for split in self.splits)
        self.scale_ps = max(1, bound.total_ps)  # what times are compared with in what decisions show
        self.clock = Clock()
        self.marked: deque[Any] = deque()  # groups that are to act, first come first served
        self.tokens_left = workload.num_tokens  # that are not combined
        self.rows_ready = 0
        self.decisions = 0  # between two or more legal candidates
        self.evictions = 0  # partial sums sent home for want of accumulator slots
        self.traffic = np.zeros((self.num_gpus, 2, codes.NUM_PURPOSES), np.int64)  # flits on the wire
        self.log: list[Use] = []

    def use(self, resource: int, gpu: int, purpose: int, item: Name, amount: int, end_ps: int) -> None:
        """Logs that a resource is in use from now on."""
        self.log.append(Use(resource, gpu, purpose, item, amount, self.clock.now_ps, end_ps))


class Progress:
    """How far one GPU is, by part; a stage opens when what it waits for is over and what it pays is paid."""

    opened: Callable[[int, int], None]  # goes on with a (stage, part)

    def __init__(self, world: World, everywhere: list[Progress]) -> None:
        self.world, self.clock, self.program, self.everywhere = world, world.clock, world.program, everywhere
        everywhere.append(self)
        parts, gates = range(world.program.parts), world.program.gates
        self.part = 0  # whose turn it is to be dispatched
        self.sends_left = [0 for _ in parts]  # tokens yet to be given to an SM
        # (token, expert)s that a stage waits for: to arrive, or to have the GEMM before it.
        self.left = {stage: [0 for _ in parts] for stage in STAGES}
        self.is_open = {(stage, part): gates[stage - 1] == codes.GATE_FINE for stage in STAGES for part in parts}
        self.is_boundary_paid = [False for _ in parts]  # before GEMM-2, or being paid

    @property
    def is_dispatched(self) -> bool:
        """Whether all that this GPU dispatches is stored, and all that it is sent has arrived."""
        return self.part == len(self.sends_left) and not any(self.left[GEMM1])

    def pay(self, stage: int, part: int, everywhere: bool) -> None:
        """Opens a stage of a part, here or everywhere, once it is paid for."""
        gpus = [gpu for gpu, progress in enumerate(self.everywhere) if everywhere or progress is self]
        begins_ps = max(self.clock.now_ps, self.world.shared_end_ps if stage == GEMM1 else 0)
        paid_ps = begins_ps + self.world.phases.pay_ps(stage, part, gpus)
        self.clock.at(paid_ps, codes.EV_GATE, self._open, stage, part, self.everywhere if everywhere else [self])

    def _open(self, stage: int, part: int, where: list[Progress]) -> None:
        for progress in where:
            progress.is_open[stage, part] = True
            progress.opened(stage, part)

    def check(self, stage: int, part: int) -> None:
        """Opens a stage of a part, GEMM-1 or combine, if what it waits for is over."""
        gate = self.program.gates[stage - 1]
        if gate == codes.GATE_PHASE and not any(progress.left[stage][part] for progress in self.everywhere):
            self.pay(stage, part, everywhere=True)
        if gate == codes.GATE_GPU and self.left[stage][part] == 0:
            self.pay(stage, part, everywhere=False)

    def end_first_kernel(self, part: int) -> None:
        """Opens a part's GEMM-2 behind a kernel boundary: its GEMM-1 is over here, what it dispatched is stored."""
        is_over = self.left[GEMM2][part] == 0 and self.part > part
        if self.program.gates[1] == codes.GATE_PHASE and is_over and not self.is_boundary_paid[part]:
            self.is_boundary_paid[part] = True
            self.pay(GEMM2, part, everywhere=False)


class Memory:
    """HBM as a queue of accesses, L2 as the matrices used last, the AL TLB as the translations made last."""

    def __init__(self, world: World) -> None:
        self.costs, self.clock = world.costs, world.clock
        self.hbm_free_ps = 0  # when HBM has served all accesses so far
        # By (expert, stage), a matrix's bytes and when it is loaded; the least recently used first.
        self._l2: OrderedDict[tuple[int, int], tuple[int, int]] = OrderedDict()
        self._al_tlb: OrderedDict[tuple[int, int], None] = OrderedDict()  # (token, expert), first in first out

    def use_hbm(self, num_bytes: int) -> int:
        """Puts an access behind all earlier ones and returns when it is over."""
        self.hbm_free_ps = max(self.hbm_free_ps, self.clock.now_ps) + self.costs.hbm_ps(num_bytes)
        return self.hbm_free_ps

    def translate(self, pair: Pair) -> int:
        """Returns the delay of looking up a token's experts in the AL TLB: one memory latency if any misses."""
        delay_ps = 0
        for expert in pair.experts:
            key = (pair.token.number, expert)
            if key not in self._al_tlb:
                delay_ps = self.costs.memory_ps
                self._al_tlb[key] = None
                if len(self._al_tlb) > self.costs.al_tlb_entries:
                    self._al_tlb.popitem(last=False)
        return delay_ps

    def has_weights(self, expert: int, stage: int) -> bool:
        """Returns whether an expert's matrix is in L2, or on its way there."""
        return (expert, stage) in self._l2

    def fetch_weights(self, expert: int, stage: int) -> int:
        """Returns when an expert's matrix is in L2, read from HBM if it was not; one larger than L2 fills it."""
        costs, key = self.costs, (expert, stage)
        if key not in self._l2:
            size_bytes = min(costs.matrix_bytes[stage - 1], costs.l2_bytes)
            while self._l2 and sum(held_bytes for held_bytes, _ in self._l2.values()) + size_bytes > costs.l2_bytes:
                self._l2.popitem(last=False)
            self._l2[key] = size_bytes, self.use_hbm(costs.weight_bytes[stage - 1])
        self._l2.move_to_end(key)
        return self._l2[key][1]
