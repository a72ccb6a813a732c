"""What software takes of a layer's time: launches, the exchange of counts, barriers and kernels between stages.

A schedule pays before dispatch, as a gate opens, and at the end. A gate's payment begins when the last of what it waits
for is done, on all GPUs or on its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from dysharp_env.report.moves import Moves
from dysharp_env.schedules import LayerRun
from dysharp_env.simulator.phases import STAGES
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NOTHING, OPENS_ALL, OPENS_COMBINE, OPENS_GEMM1, OPENS_GEMM2
from dysharp_env.simulator.state.pays import KernelPays
from dysharp_env.system.spec import OVERHEADS

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


class Paid(NamedTuple):
    """One thing that is paid, from when to when: before which stage, on which GPU (NOTHING: all wait for it)."""

    name: str
    stage: str
    gpu: int
    start_ps: int
    end_ps: int

    @property
    def text(self) -> str:
        """What it is."""
        return paid_name(self.name)

    @property
    def short(self) -> str:
        """The same in a word or two, which kernels between stages have too."""
        return SHORT_NAMES.get(self.name, self.name.replace("_", " "))


def paid_name(name: str) -> str:
    """Returns what people call a thing that is paid."""
    return _NAMES.get(name, name.replace("_", " "))


def items(run: LayerRun, stage: int, gate: np.void | None) -> list[tuple[str, int]]:
    """Returns what is paid before a stage (0 to 3) behind a gate or before dispatch, or at the end (4), in order.

    Each is (name, ps); the names are those of the schedule.
    """
    engine, system = run.engine, run.system
    named = getattr(run.schedule.pays, STAGES[stage])
    fixed = [cost for cost in named if cost in OVERHEADS]
    fixed_ps = (*engine.program.pays_ps, engine.program.pay_end_ps)[stage]
    # Rounded as their sum is.
    ends_us = np.cumsum([system.overhead_us(cost) for cost in fixed])
    times_ps = np.diff(np.round(ends_us * 1e6).astype(np.int64), prepend=0).tolist()
    if sum(times_ps) != fixed_ps:  # not what this schedule pays on this system
        fixed, times_ps = [" and ".join(fixed)], [fixed_ps]
    part, gpu = (0, NOTHING) if gate is None else (int(gate["part"]), int(gate["gpu"]))
    pays = KernelPays(engine.costs, engine.program, system.gpu.num_sms)
    kernels = pays.named_ps(engine.state, engine.workload, stage, part, gpu)
    paid = [*zip(fixed, times_ps, strict=True), *kernels]
    return sorted(paid, key=lambda item: named.index(item[0]) if item[0] in named else len(named))


def paid_spans(run: LayerRun) -> list[Paid]:
    """Returns all that is paid in a layer so far, in order of start; of gates only if the engine keeps a log."""
    state, now_ps = run.engine.state, run.engine.now_ps
    found = list(_laid_out(run, 0, None, int(state.gates["pay_ps"][0])))
    if run.engine.done:
        found += _laid_out(run, 4, None, now_ps)
    if state.root["logging"][0]:
        moves = Moves(run.engine)
        for gate in state.gates[1:]:
            if gate["left"] == 0 and gate["pay_ps"] > 0 and (since_ps := _done_ps(run, moves, gate)) is not None:
                found += _laid_out(run, int(gate["stage"]) + 1, gate, since_ps + int(gate["pay_ps"]))
    found = [each for each in found if 0 <= each.start_ps < each.end_ps and each.start_ps <= now_ps]
    return sorted(found, key=lambda each: (each.start_ps, each.gpu))


def _laid_out(run: LayerRun, stage: int, gate: np.void | None, end_ps: int) -> Iterator[Paid]:
    """Yields what is paid there, one after the other, the last ending at a time."""
    gpu = NOTHING if gate is None else int(gate["gpu"])
    for name, took_ps in reversed(items(run, stage, gate)):
        yield Paid(name, STAGES[stage], gpu, end_ps - took_ps, end_ps)
        end_ps -= took_ps


def _done_ps(run: LayerRun, moves: Moves, gate: np.void) -> int | None:
    """Returns when the last of what a gate waits for was done; None if it waits for nothing that is known."""
    state, stage, part, gpu = run.engine.state, int(gate["stage"]), int(gate["part"]), int(gate["gpu"])
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
    done_ps = int(rows[time][mine, gemm].max())
    if stage == OPENS_GEMM1:
        copied = state.copies["expert"][(state.copies["gpu"] == gpu) | (gpu == NOTHING)]
        came_ps = state.matrices["end_ps"][np.concatenate([2 * copied, 2 * copied + 1])]
        done_ps = max(done_ps, int(gate["not_before_ps"]), int(came_ps.max(initial=0)))
    elif stage == OPENS_GEMM2:
        done_ps = max(done_ps, moves.last_sent(gpu, part)[2])
    return done_ps
