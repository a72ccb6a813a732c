"""What is left of each part on the twin's GPUs, and when its stages may start there."""

from __future__ import annotations

from collections.abc import Callable

from dysharp_env.simulator.state.codes import EV_GATE, GATE_FINE, GATE_GPU, GATE_PHASE
from dysharp_env.simulator.twin.world import World

EVERYTHING, GEMM1, GEMM2, COMBINING = range(4)  # what a gate opens


class Progress:
    """How far one GPU is, by part.

    Attributes:
        part: Whose turn it is to be dispatched.
        sends_left: Tokens yet to be given to an SM.
        arrivals_left: (token, expert)s yet to arrive.
        slots_left: (token, expert)s that have GEMM-1, and GEMM-2, before them.
        is_open: By (stage, part), whether the stage may start.
        is_boundary_paid: Whether the kernel boundary before GEMM-2 is, or is being, paid.
    """

    def __init__(self, world: World) -> None:
        parts = range(world.program.parts)
        self.part = 0
        self.sends_left, self.arrivals_left = [0 for _ in parts], [0 for _ in parts]
        self.slots_left = ([0 for _ in parts], [0 for _ in parts])
        gates = world.program.gates
        self.is_open = {(stage, part): gates[stage - 1] == GATE_FINE for stage in (1, 2, 3) for part in parts}
        self.is_boundary_paid = [False for _ in parts]

    @property
    def is_dispatched(self) -> bool:
        """Whether all that this GPU dispatches is stored, and all that it is sent has arrived."""
        return self.part == len(self.sends_left) and not any(self.arrivals_left)


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

    def after_arrival(self, gpu: int, part: int) -> None:
        """Opens GEMM-1 if an arrival was the last."""
        self._check(GEMM1, gpu, part, [progress.arrivals_left for progress in self.progress])

    def after_gemm2(self, gpu: int, part: int) -> None:
        """Opens combine if a GEMM-2 row was the last."""
        self._check(COMBINING, gpu, part, [progress.slots_left[1] for progress in self.progress])

    def _check(self, stage: int, gpu: int, part: int, left: list[list[int]]) -> None:
        gate = self.world.program.gates[stage - 1]
        if gate == GATE_PHASE and all(of_gpu[part] == 0 for of_gpu in left):
            self.pay(stage, part, list(range(self.world.num_gpus)))
        if gate == GATE_GPU and left[gpu][part] == 0:
            self.pay(stage, part, [gpu])

    def end_first_kernel(self, gpu: int, part: int) -> None:
        """Opens a part's GEMM-2 behind a kernel boundary: its GEMM-1 is over here, what it dispatched is stored."""
        progress = self.progress[gpu]
        is_over = progress.slots_left[0][part] == 0 and progress.part > part
        if self.world.program.gates[1] == GATE_PHASE and is_over and not progress.is_boundary_paid[part]:
            progress.is_boundary_paid[part] = True
            self.pay(GEMM2, part, [gpu])
