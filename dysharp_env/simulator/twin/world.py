"""What all parts of the twin share: clock, inputs and records; and how far each GPU is, and what its memory holds."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin.parts import Name, Pair, Split, Use
from dysharp_env.simulator.twin.phases import Phases
from dysharp_env.simulator.weights import WeightCosts
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
    fetches_from_ps: list[int]  # when weights may be fetched ahead, on each GPU
    start_ps: list[int]  # when each GPU's kernels start, as far as one that is late makes a difference
    shared_end_ps: list[int]  # when each GPU's shared experts that run beside dispatch are over

    def __init__(self, workload: Workload, costs: Costs, program: Program, num_sms: int, bound: Bound) -> None:
        self.workload, self.costs, self.program = workload, costs, program.fitted(workload.most_experts)
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
        self.weights = WeightCosts.of(costs, program, workload)  # None without copies
        self.matrices_left = 2 * workload.placement.num_copies  # of copies, that are to come
        self.tokens_left = int((workload.experts_of_token > 0).sum())  # that are to be combined and are not
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
        # GPUs that are to say that they have stored all they send here, and those of them that have not.
        self.sources = [0 for _ in parts]
        self.sources_left = [0 for _ in parts]
        # (token, expert)s that a stage waits for: to arrive, or to have the GEMM before it.
        self.left = {stage: [0 for _ in parts] for stage in STAGES}
        self.copies_left = 0  # here, that lack weights, for which the gates of all parts' GEMM-1 wait too
        self.is_open = {(stage, part): gates[stage - 1] == codes.GATE_FINE for stage in STAGES for part in parts}
        self.is_boundary_paid = [False for _ in parts]  # before GEMM-2, or being paid

    @property
    def has_begun(self) -> bool:
        """Whether the layer has opened: its start is paid for."""
        return self.is_open.get((EVERYTHING, 0), False)

    @property
    def is_told(self) -> bool:
        """Whether all who are to say that they are done have said so."""
        return not any(self.sources_left)

    @property
    def more_comes(self) -> bool:
        """Whether more tokens come here, or may do so as far as this GPU has been told."""
        return any(self.left[GEMM1]) or not self.is_told

    @property
    def is_dispatched(self) -> bool:
        """Whether all that this GPU dispatches is stored, and all that it is sent has arrived."""
        return self.part == len(self.sends_left) and not self.more_comes

    def pay(self, stage: int, part: int, everywhere: bool) -> None:
        """Opens a stage of a part, here or everywhere, once it is paid for."""
        gpus = [gpu for gpu, progress in enumerate(self.everywhere) if everywhere or progress is self]
        begins_ps = max(self.clock.now_ps, *(self.world.start_ps[gpu] for gpu in gpus))
        if stage == GEMM1:
            begins_ps = max(begins_ps, *(self.world.shared_end_ps[gpu] for gpu in gpus))
        paid_ps = begins_ps + self.world.phases.pay_ps(stage, part, gpus)
        self.clock.at(paid_ps, codes.EV_GATE, self._open, stage, part, self.everywhere if everywhere else [self])

    def begin(self) -> None:
        """Starts this GPU's kernels."""
        self._open(EVERYTHING, 0, [self])

    def _open(self, stage: int, part: int, where: list[Progress]) -> None:
        for progress in where:
            progress.is_open[stage, part] = True
            progress.opened(stage, part)

    def check(self, stage: int, part: int) -> None:
        """Opens a stage of a part, GEMM-1 or combine, if what it waits for is over."""
        gate = self.program.gates[stage - 1]
        if gate == codes.GATE_PHASE and all(progress._is_over(stage, part) for progress in self.everywhere):
            self.pay(stage, part, everywhere=True)
        if gate == codes.GATE_GPU and self._is_over(stage, part):
            self.pay(stage, part, everywhere=False)

    def _is_over(self, stage: int, part: int) -> bool:
        """Returns whether all is here that a stage of a part, GEMM-1 or combine, waits for."""
        if stage == GEMM1:
            return self.left[stage][part] == 0 and self.copies_left == 0
        return self.left[stage][part] == 0 and self.sources_left[part] == 0

    def end_first_kernel(self, part: int) -> None:
        """Opens a part's GEMM-2 behind a kernel boundary: its GEMM-1 is over here, what it dispatched is stored."""
        is_over = self.left[GEMM2][part] == 0 and self.part > part and self.sources_left[part] == 0
        if self.program.gates[1] == codes.GATE_PHASE and is_over and not self.is_boundary_paid[part]:
            self.is_boundary_paid[part] = True
            self.pay(GEMM2, part, everywhere=False)


@dataclass
class Held:
    """What L2 holds of one block, and what of that HBM has not."""

    num_bytes: int = 0
    dirty_bytes: int = 0


class Memory:
    """HBM as a queue of accesses, L2 as the bytes used last, the AL TLB as the translations made last.

    L2 holds blocks under the names that logs give them: ``weights`` of an (expert, stage); ``in``, ``mid`` and ``out``
    of a tile; ``input`` and ``result`` of a home GPU's chunk.
    """

    def __init__(self, world: World, gpu: int) -> None:
        self.world, self.gpu = world, gpu
        self.costs, self.clock = world.costs, world.clock
        self.hbm_free_ps = 0  # when HBM has served all accesses so far
        self.on_free: Callable[[], None] | None = None  # who is told when HBM has nothing to do
        self._wakes = False  # whether that is going to be seen
        self._l2: OrderedDict[Name, Held] = OrderedDict()  # the least recently used first
        self._loaded_ps: dict[Name, int] = {}  # when a matrix has come from HBM
        self._al_tlb: OrderedDict[tuple[int, int], None] = OrderedDict()  # (token, expert), first in first out

    def use_hbm(self, num_bytes: int, purpose: int, block: Name = ("none",)) -> int:
        """Puts an access behind all earlier ones and returns when it is over."""
        start_ps = max(self.hbm_free_ps, self.clock.now_ps)
        self.hbm_free_ps = start_ps + self.costs.hbm_ps(num_bytes)
        use = Use(codes.LOG_HBM, self.gpu, purpose, block, num_bytes, start_ps, self.hbm_free_ps)
        self.world.log.append(use)
        self._wake()
        return self.hbm_free_ps

    def _wake(self) -> None:
        """Sees to it that who waits for HBM to fall free is told."""
        if self.on_free and not self._wakes:
            self._wakes = True
            self.clock.at(self.hbm_free_ps, codes.EV_HBM, self._falls_free)

    def _falls_free(self) -> None:
        self._wakes = False
        if self.hbm_free_ps > self.clock.now_ps:
            self._wake()
        elif self.on_free:
            self.on_free()

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

    def held_bytes(self, block: Name) -> int:
        """Returns how much of a block is in L2, or on its way there."""
        return self._l2[block].num_bytes if block in self._l2 else 0

    @property
    def room_bytes(self) -> int:
        """What L2 can take before anything gives way."""
        return self.costs.l2_bytes - sum(held.num_bytes for held in self._l2.values())

    def drop(self, block: Name) -> None:
        """Forgets a block that nobody reads again."""
        self._l2.pop(block, None)

    def give_way_first(self, block: Name) -> None:
        """Makes a block the one that gives way next."""
        if block in self._l2:
            self._l2.move_to_end(block, last=False)

    def _bring(self, block: Name, num_bytes: int) -> Held:
        """Makes room for more of a block, which becomes the last used, and puts there what fits."""
        held = self._l2.setdefault(block, Held())
        self._l2.move_to_end(block)
        room = self.room_bytes
        dirty_bytes = 0
        while room < num_bytes and len(self._l2) > 1:
            name, oldest = next(iter(self._l2.items()))
            going = min(num_bytes - room, oldest.num_bytes)
            going_dirty = min(going, oldest.dirty_bytes)
            oldest.num_bytes -= going
            oldest.dirty_bytes -= going_dirty
            room += going
            dirty_bytes += going_dirty
            if oldest.num_bytes == 0:
                del self._l2[name]
        if dirty_bytes:
            self.use_hbm(dirty_bytes, codes.HBM_WRITE, block)
        held.num_bytes += min(num_bytes, room)
        return held

    def write(self, block: Name, num_bytes: int) -> None:
        """Writes more of a block, and straight to HBM what L2 has no room for."""
        before = self.held_bytes(block)
        held = self._bring(block, num_bytes)
        fitting = held.num_bytes - before
        held.dirty_bytes += fitting
        if fitting < num_bytes:
            self.use_hbm(num_bytes - fitting, codes.HBM_WRITE, block)

    def read(self, block: Name, num_bytes: int) -> int:
        """Returns when a block of so many bytes is in L2."""
        missing = max(0, num_bytes - self.held_bytes(block))
        self._bring(block, missing)
        return self.use_hbm(missing, codes.HBM_READ, block) if missing else self.clock.now_ps

    def read_more(self, block: Name, num_bytes: int) -> None:
        """Reads what of a block was never read before."""
        self.read(block, self.held_bytes(block) + num_bytes)

    def read_part(self, block: Name, num_bytes: int, block_bytes: int) -> None:
        """Reads part of a block, which is as much in L2 as the whole is, for the only time: nothing is kept for it."""
        held_bytes = self.held_bytes(block)
        if held_bytes < block_bytes:
            self.use_hbm(num_bytes * (block_bytes - held_bytes) // block_bytes, codes.HBM_READ, block)

    def missing_bytes(self, expert: int, stage: int) -> int:
        """Returns how much of an expert's matrix is not in L2; one larger than L2 fills it."""
        held_bytes = self.held_bytes(("weights", expert, stage))
        return min(self.costs.matrix_bytes[stage - 1], self.costs.l2_bytes) - held_bytes

    def weights_to_read(self, expert: int, stage: int) -> int:
        """Returns how much of an expert's matrix would have to be read from HBM now."""
        matrix_bytes, all_bytes = self.costs.matrix_bytes[stage - 1], self.costs.weight_bytes[stage - 1]
        if self.held_bytes(("weights", expert, stage)) == 0:
            return all_bytes
        return self.missing_bytes(expert, stage) * (all_bytes // matrix_bytes)

    def fetch_weights(self, expert: int, stage: int) -> int:
        """Returns when an expert's matrix is in L2, what was not there read from HBM."""
        block, reads = ("weights", expert, stage), self.weights_to_read(expert, stage)
        self._bring(block, self.missing_bytes(expert, stage))
        if reads:
            self._loaded_ps[block] = self.use_hbm(reads, codes.HBM_WEIGHTS, block)
        # What never came from HBM came over the links.
        return self._loaded_ps.get(block, 0)
