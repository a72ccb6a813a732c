"""What each of the twin's GPUs has besides links and SMs: its memory, its progress and the gates before its stages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin.parts import Pair
from dysharp_env.simulator.twin.world import World

EVERYTHING, GEMM1, GEMM2, COMBINING = range(4)  # what a gate opens
STAGES = (GEMM1, GEMM2, COMBINING)


class Memory:
    """HBM as a queue of accesses, L2 as the matrices used last, the AL TLB as the translations made last.

    Attributes:
        hbm_free_ps: When HBM has served all accesses so far.
    """

    def __init__(self, world: World) -> None:
        self.costs, self.clock = world.costs, world.clock
        self.hbm_free_ps = 0
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


class Progress:
    """How far one GPU is, by part.

    Attributes:
        part: Whose turn it is to be dispatched.
        sends_left: Tokens yet to be given to an SM.
        left: By stage, the (token, expert)s that it waits for: to arrive, or to have the GEMM before it.
        is_open: By (stage, part), whether the stage may start.
        is_boundary_paid: Whether the kernel boundary before GEMM-2 is, or is being, paid.
    """

    def __init__(self, world: World) -> None:
        parts = range(world.program.parts)
        self.part = 0
        self.sends_left = [0 for _ in parts]
        self.left = {stage: [0 for _ in parts] for stage in STAGES}
        gates = world.program.gates
        self.is_open = {(stage, part): gates[stage - 1] == codes.GATE_FINE for stage in STAGES for part in parts}
        self.is_boundary_paid = [False for _ in parts]

    @property
    def is_dispatched(self) -> bool:
        """Whether all that this GPU dispatches is stored, and all that it is sent has arrived."""
        return self.part == len(self.sends_left) and not any(self.left[GEMM1])


class Gates:
    """The gates of all GPUs: they open a stage when what it waits for is over and what it pays is paid.

    Attributes:
        progress: Of each GPU.
        opened: What of each GPU goes on with a (stage, part); they are added once they are there.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.progress = [Progress(world) for _ in range(world.num_gpus)]
        self.opened: list[Callable[[int, int], None]] = []

    def pay(self, stage: int, part: int, gpus: list[int]) -> None:
        """Opens a stage of a part on some GPUs once it is paid for."""
        clock = self.world.clock
        clock.at(clock.now_ps + self.world.program.pays_ps[stage], codes.EV_GATE, self._open, stage, part, gpus)

    def _open(self, stage: int, part: int, gpus: list[int]) -> None:
        for gpu in gpus:
            self.progress[gpu].is_open[stage, part] = True
            self.opened[gpu](stage, part)

    def check(self, stage: int, gpu: int, part: int) -> None:
        """Opens a stage of a part, GEMM-1 or combine, if what it waits for is over."""
        gate, left = self.world.program.gates[stage - 1], [progress.left[stage][part] for progress in self.progress]
        if gate == codes.GATE_PHASE and not any(left):
            self.pay(stage, part, list(range(self.world.num_gpus)))
        if gate == codes.GATE_GPU and left[gpu] == 0:
            self.pay(stage, part, [gpu])

    def end_first_kernel(self, gpu: int, part: int) -> None:
        """Opens a part's GEMM-2 behind a kernel boundary: its GEMM-1 is over here, what it dispatched is stored."""
        progress = self.progress[gpu]
        is_over = progress.left[GEMM2][part] == 0 and progress.part > part
        if self.world.program.gates[1] == codes.GATE_PHASE and is_over and not progress.is_boundary_paid[part]:
            progress.is_boundary_paid[part] = True
            self.pay(GEMM2, part, [gpu])
