"""What software takes of a layer's time: launches, the exchange of counts, barriers and kernels between stages.

A schedule pays before dispatch, as a gate opens, and at the end. A gate's payment begins when the last of what it waits
for is done, on all GPUs or on its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dysharp_env.report.moves import Moves
from dysharp_env.schedules import LayerRun, ScheduleSpec
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.phases import STAGES, START
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NOTHING, OPENS_ALL, OPENS_COMBINE, OPENS_GEMM1, OPENS_GEMM2
from dysharp_env.simulator.state.pays import KernelPays
from dysharp_env.system import SystemSpec
from dysharp_env.system.overheads import OVERHEADS

_NAMES = {
    "launch": "kernel launch",
    "gap": "launch of the next kernel",
    "fused_start": "start of a fused kernel",
    "barrier": "barrier of all GPUs",
    "count_exchange": "exchange of token counts",
    "shared": "shared experts",
    "start": "start of its kernels",
    "copy_gradients": "adding up the gradients of copies",
}
SHORT_NAMES = {
    "launch": "launch",
    "gap": "launch",
    "fused_start": "launch",
    "barrier": "barrier",
    "count_exchange": "count exchange",
    "start": "start",
    "shared": "shared experts",
    "copy_gradients": "gradients of copies",
}
# Which GEMM's rows, and which time of them, a gate waits for.
_WAITS_FOR = {
    OPENS_GEMM1: ("ready_ps", GEMM1),
    OPENS_GEMM2: ("end_ps", GEMM1),
    OPENS_COMBINE: ("end_ps", GEMM2),
}


class Item(NamedTuple):
    """One thing that is paid: its name as the schedule has it, how long it takes, whether it works on tokens."""

    name: str
    took_ps: int
    is_kernel: bool

    @property
    def text(self) -> str:
        """What people call it."""
        return _NAMES.get(self.name, self.name.replace("_", " "))

    @property
    def short(self) -> str:
        """The same in a word or two, which kernels between stages have too."""
        return SHORT_NAMES.get(self.name, self.name.replace("_", " "))


class Paid(NamedTuple):
    """An item that was paid, from when to when: before which stage, on which GPU (NOTHING: all wait for it)."""

    item: Item
    stage: str
    gpu: int
    start_ps: int
    end_ps: int


@dataclass(frozen=True)
class Payer:
    """What a layer pays.

    Attributes:
        engine: The layer.
        schedule: What it is run under; None: what is fixed of a stage is one item.
        system: What it is run on; likewise.
    """

    engine: Engine
    schedule: ScheduleSpec | None = None
    system: SystemSpec | None = None

    @classmethod
    def of(cls, run: LayerRun) -> Payer:
        """Returns what a run pays."""
        return cls(run.engine, run.schedule, run.system)

    def items(self, stage: str, gate: np.void | None) -> list[Item]:
        """Returns what is paid before a stage behind a gate or before dispatch, or at the end, in the schedule's order.

        ``stage`` is one of ``STAGES``; dispatch and the end have no gate.
        """
        engine, place = self.engine, STAGES.index(stage)
        named = getattr(self.schedule.pays, stage) if self.schedule else ()
        fixed = [cost for cost in named if cost in OVERHEADS]
        fixed_ps = (*engine.program.pays_ps, engine.program.pay_end_ps)[place]
        times_ps: list[int] = []
        if self.system:
            # Rounded as their sum is.
            ends_us = np.cumsum([self.system.overhead_us(cost) for cost in fixed])
            times_ps = np.diff(np.round(ends_us * 1e6).astype(np.int64), prepend=0).tolist()
        if sum(times_ps) != fixed_ps:  # not what this schedule pays on this system
            fixed, times_ps = [" and ".join(fixed) or "fixed costs"], [fixed_ps]
        part, gpu = (0, NOTHING) if gate is None else (int(gate["part"]), int(gate["gpu"]))
        pays = KernelPays(engine.costs, engine.program, int(engine.state.root["num_sms"][0]))
        kernels = pays.named_ps(engine.state, engine.workload, place, part, gpu)
        found = [Item(name, took_ps, False) for name, took_ps in zip(fixed, times_ps, strict=True)]
        found += [Item(name, took_ps, name != START) for name, took_ps in kernels]
        return sorted(found, key=lambda item: named.index(item.name) if item.name in named else len(named))

    def spans(self) -> list[Paid]:
        """Returns all that is paid in a layer so far, in order of start; of gates only if the engine keeps a log."""
        state, now_ps = self.engine.state, self.engine.now_ps
        found = list(self._laid_out(0, None, int(state.gates["pay_ps"][0])))
        if self.engine.done:
            found += self._laid_out(4, None, now_ps)
        if state.root["logging"][0]:
            moves = Moves(self.engine)
            for gate in state.gates[1:]:
                if gate["left"] == 0 and gate["pay_ps"] > 0:
                    since_ps = _done_ps(self.engine, moves, gate)
                    if since_ps is not None:
                        found += self._laid_out(int(gate["stage"]) + 1, gate, since_ps + int(gate["pay_ps"]))
        found = [each for each in found if 0 <= each.start_ps < each.end_ps and each.start_ps <= now_ps]
        return sorted(found, key=lambda each: (each.start_ps, each.gpu))

    def _laid_out(self, place: int, gate: np.void | None, end_ps: int) -> Iterator[Paid]:
        """Yields what is paid there, one after the other, the last ending at a time."""
        gpu = NOTHING if gate is None else int(gate["gpu"])
        for item in reversed(self.items(STAGES[place], gate)):
            yield Paid(item, STAGES[place], gpu, end_ps - item.took_ps, end_ps)
            end_ps -= item.took_ps


def _done_ps(engine: Engine, moves: Moves, gate: np.void) -> int | None:
    """Returns when the last of what a gate waits for was done; None if it waits for nothing that is known."""
    state, stage, part, gpu = engine.state, int(gate["stage"]), int(gate["part"]), int(gate["gpu"])
    if stage == OPENS_ALL:
        return None
    experts = state.experts[state.tiles["expert"]]
    rows = state.tiles["rows"]
    mine = (rows["start_ps"][:, GEMM1] >= 0) & (experts["part"] == part)
    if gpu != NOTHING:
        mine &= experts["gpu"] == gpu
    if not mine.any():
        return None
    time, gemm = _WAITS_FOR[stage]
    done_ps = max(int(rows[time][mine, gemm].max()), int(gate["not_before_ps"]))
    if stage == OPENS_GEMM1:
        copied = state.copies["expert"][(state.copies["gpu"] == gpu) | (gpu == NOTHING)]
        came_ps = state.matrices["end_ps"][np.concatenate([2 * copied, 2 * copied + 1])]
        done_ps = max(done_ps, int(came_ps.max(initial=0)))
    elif stage == OPENS_GEMM2:
        done_ps = max(done_ps, moves.last_sent(gpu, part)[2])
    return done_ps
