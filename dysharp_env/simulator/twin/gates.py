"""What is left of each part on the twin's GPUs, and when its stages may start there."""

from __future__ import annotations

from collections.abc import Callable

from dysharp_env.simulator.state.codes import EV_GATE, GATE_FINE, GATE_GPU, GATE_PHASE
from dysharp_env.simulator.twin.world import World

EVERYTHING, GEMM1, GEMM2, COMBINING = range(4)  # what a gate opens
STAGES = (GEMM1, GEMM2, COMBINING)


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
        self.is_open = {(stage, part): gates[stage - 1] == GATE_FINE for stage in STAGES for part in parts}
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
        clock.at(clock.now_ps + self.world.program.pays_ps[stage], EV_GATE, self._open, stage, part, gpus)

    def _open(self, stage: int, part: int, gpus: list[int]) -> None:
        for gpu in gpus:
            self.progress[gpu].is_open[stage, part] = True
            self.opened[gpu](stage, part)

    def check(self, stage: int, gpu: int, part: int) -> None:
        """Opens a stage of a part, GEMM-1 or combine, if what it waits for is over."""
        gate, left = self.world.program.gates[stage - 1], [progress.left[stage][part] for progress in self.progress]
        if gate == GATE_PHASE and not any(left):
            self.pay(stage, part, list(range(self.world.num_gpus)))
        if gate == GATE_GPU and left[gpu] == 0:
            self.pay(stage, part, [gpu])

    def end_first_kernel(self, gpu: int, part: int) -> None:
        """Opens a part's GEMM-2 behind a kernel boundary: its GEMM-1 is over here, what it dispatched is stored."""
        progress = self.progress[gpu]
        is_over = progress.left[GEMM2][part] == 0 and progress.part > part
        if self.world.program.gates[1] == GATE_PHASE and is_over and not progress.is_boundary_paid[part]:
            progress.is_boundary_paid[part] = True
            self.pay(GEMM2, part, [gpu])
