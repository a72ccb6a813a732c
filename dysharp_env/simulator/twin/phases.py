"""What the twin's GPUs pay before a stage and at the end: what the schedule says, and kernels over what they hold."""

from __future__ import annotations

from collections.abc import Iterable

from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.faults import LATE_GPU
from dysharp_env.simulator.phases import SHARED, START, Load
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.twin.parts import Pair, Token

EVERYTHING, END = 0, 4  # stages that concern all parts


class Phases:
    """Works out what is paid, from the tokens themselves."""

    def __init__(
        self, costs: Costs, program: Program, num_sms: int, tokens: list[Token], copy_gradients_ps: int
    ) -> None:
        self.costs, self.program, self.num_sms, self.tokens = costs, program, num_sms, tokens
        self.copy_gradients_ps = copy_gradients_ps  # until copies' gradients are added up, at the end
        self.pairs = [pair for token in tokens for pair in token.pairs if pair.experts]

    def pay_ps(self, stage: int, part: int, gpus: Iterable[int]) -> int:
        """Returns what a stage of a part, or the end, costs where it waits for these GPUs."""
        fixed_ps = self.program.pay_end_ps + self.copy_gradients_ps if stage == END else self.program.pays_ps[stage]
        kernels = self.costs.phase_kernels(stage, (*self.program.kernels[stage], START))
        if not kernels:
            return fixed_ps
        loads = [self._whole(gpu) if stage in (EVERYTHING, END) else self._of_part(gpu, part) for gpu in gpus]
        return fixed_ps + max(sum(kernel.ps(load, self.costs.hbm_ps) for kernel in kernels) for load in loads)

    def shared_end_ps(self, num_gpus: int) -> list[int]:
        """Returns when the shared experts of each GPU that hide beside dispatch are over; 0 if none do."""
        kernels = self.costs.phase_kernels(EVERYTHING, (SHARED,)) if self.program.hides_shared else []
        if not kernels:
            return [0] * num_gpus
        sms = self.num_sms - self.program.dispatch_sms, self.num_sms
        paid_ps, late_ps = self.pay_ps(EVERYTHING, 0, range(num_gpus)), self.costs.faults.late_ps
        begins_ps = [paid_ps + late_ps * (self.program.meets or gpu == LATE_GPU) for gpu in range(num_gpus)]
        loads = [Load(tokens=sum(token.home == gpu for token in self.tokens)) for gpu in range(num_gpus)]
        took_ps = [sum(kernel.ps(load, self.costs.hbm_ps, sms) for kernel in kernels) for load in loads]
        return [begin_ps + ps for begin_ps, ps in zip(begins_ps, took_ps, strict=True)]

    def _whole(self, gpu: int) -> Load:
        here = [pair for pair in self.pairs if pair.gpu == gpu]
        experts = [expert for pair in here for expert in pair.experts]
        return Load(
            tokens=sum(token.home == gpu for token in self.tokens),
            sent=sum(pair.token.home == gpu for pair in self.pairs),
            received=len(here),
            rows=len(experts),
            experts=len(set(experts)),
        )

    def _of_part(self, gpu: int, part: int) -> Load:
        here: list[Pair] = [pair for pair in self.pairs if (pair.gpu, pair.part) == (gpu, part)]
        return Load(received=len(here), rows=sum(len(pair.experts) for pair in here))
