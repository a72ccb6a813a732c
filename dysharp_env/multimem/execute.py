"""Runs a finished schedule on real vectors: every token moved, every tile computed, in the order that was recorded.

A schedule is a table of rows with the tokens of each chunk and tile beside it; who decided it is no matter.
Its order is kept at the resolution of the table: a chunk is dispatched at its start, a GEMM row reads its inputs at its
start and writes its results at its end, a chunk is combined at its end; at equal times, in the order of the layer. The
table does not tell when each token of a chunk arrived, so a tile finds its rows through the TID table instead of
taking neighbours. Using data that is not there yet is a ``ScheduleFault``; how GPUs learn that it is there (counters,
flags, barriers) is not executed, and its flits are not on the links here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, TypedDict, Unpack

import numpy as np

from dysharp_env.config import require_choice
from dysharp_env.multimem.dense import MoeTensors, check_tensors
from dysharp_env.multimem.fabric import FLOAT_BYTES
from dysharp_env.multimem.faults import ScheduleFault
from dysharp_env.multimem.moves import Combine, Dispatch
from dysharp_env.multimem.packets import Stage
from dysharp_env.multimem.runtime import Runtime
from dysharp_env.multimem.tokens import Tokens, plain_bytes
from dysharp_env.multimem.weights import Weights
from dysharp_env.system.packet import PacketFormat
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.workload import Workload
from dysharp_env.workload.workload import NO_EXPERT

_WEIGHTS = ("weights1", "weights2")


class ScheduleRow(NamedTuple):
    """One line of a schedule.

    Attributes:
        item: ``chunk N`` (tokens of one home GPU), ``tile N`` (tokens of one expert) or ``copy N`` (expert N, whose
            weights come over the links).
        stage: ``dispatch``, ``gemm1``, ``gemm2`` or ``combine``; of a copy's matrices ``weights1`` and ``weights2``.
        gpu: Home GPU of a chunk, expert GPU of a tile or copy.
        resource: SM group that ran it: ``dispatch``, ``gemm`` or ``combine``; ``weights``, SMs that move those.
        tokens: Tokens in it; 0 for a copy.
        expert: Physical expert of a tile or copy, -1 for a chunk.
        start_us: First token issued, first thread block started, or first part of a matrix issued.
        end_us: Last copy visible to its expert, last result home, last thread block ended, or last part there.
    """

    item: str
    stage: str
    gpu: int
    resource: str
    tokens: int
    expert: int
    start_us: float
    end_us: float


class Action(IntEnum):
    """What a step does, in the order of the layer."""

    DISPATCH = 0
    COPY = 1
    READ_GEMM1 = 2
    WRITE_GEMM1 = 3
    READ_GEMM2 = 4
    WRITE_GEMM2 = 5
    ASK = 6
    COMBINE = 7


class Step(NamedTuple):
    """One effect of a schedule row; steps sort by time, then by the order of the layer."""

    time_us: float
    action: Action
    item: int  # number of the chunk or tile; of a copy's matrix, 0 for GEMM-1 and 1 for GEMM-2
    expert: int


@dataclass(frozen=True)
class Schedule:
    """A finished schedule and what its items hold.

    Attributes:
        rows: Its table.
        chunks: Token ids of each chunk; those of its tokens that have no expert are never combined.
        tiles: Token ids of each tile; one without tokens was never opened and has no rows.
        dispatch, combine: Primitives by name; see ``system.primitives``.
        copy_per_expert: Whether every expert gets a copy and gives a sum of its own, rather than every GPU; of
            ``unicast`` and ``pull``.
        loopback: Whether a GPU's own replica crosses the switch as well; of ``broadcast`` and ``reduce_scatter``.
        team_gpus: Neighbouring GPUs whose every subset is a team made beforehand; of ``team``.
        copying: Primitive that brings copies their weights; empty where none are made.
    """

    rows: Sequence[ScheduleRow]
    chunks: Sequence[np.ndarray]
    tiles: Sequence[np.ndarray]
    dispatch: str = "multicast"
    combine: str = "pull_reduce"
    copy_per_expert: bool = False
    loopback: bool = False
    team_gpus: int = 8
    copying: str = ""


class MachineSizes(TypedDict, total=False):
    """Sizes of the machine that executes; what is not named is as ``Runtime`` has it."""

    packet: PacketFormat
    reduction_slots: int
    al_tlb_entries: int


class Execution:
    """A schedule being run on a functional machine, step by step.

    Attributes:
        steps: All steps, in the order in which they must be applied.
        runtime: The machine.
        outputs: (token, hidden) float32, a row valid once its token is combined; 0 of tokens without experts.
    """

    def __init__(
        self,
        schedule: Schedule,
        workload: Workload,
        tensors: MoeTensors,
        **sizes: Unpack[MachineSizes],
    ) -> None:
        """Sets the machine up.

        Raises:
            ConfigError: Tensors, primitives or sizes do not fit.
            ScheduleFault: The table is unfinished, or lacks or repeats work.
        """
        check_tensors(workload, tensors)
        require_choice("dispatch", schedule.dispatch, list(DISPATCH_PRIMITIVES))
        require_choice("combine", schedule.combine, list(COMBINE_PRIMITIVES))
        block_bytes = tensors.hidden * FLOAT_BYTES
        self.runtime = Runtime(
            workload.gpu_of_expert, workload.num_gpus, plain_bytes=plain_bytes(workload, block_bytes), **sizes
        )
        self._has_experts = workload.experts_of_token > 0
        is_copy = workload.placement.is_copy
        self._weights = None
        if is_copy.any():
            self._weights = Weights(workload, tensors, schedule.copying, schedule.team_gpus)
        self.steps = steps_of(schedule, self._has_experts, np.flatnonzero(is_copy).tolist())
        if self._weights:
            # What comes at one moment comes in the order in which it is sent on.
            order_of = self._weights.order_of
            self.steps.sort(key=lambda step: (*step[:2], step.action == Action.COPY and order_of(step.expert)))
        self.outputs = np.where(self._has_experts[:, None], np.float32(np.nan), np.zeros_like(tensors.tokens))
        self._schedule, self._workload, self._tensors = schedule, workload, tensors
        tokens = Tokens(self.runtime, workload, block_bytes, schedule.copy_per_expert, schedule.loopback)
        self._dispatch = Dispatch(tokens, DISPATCH_PRIMITIVES[schedule.dispatch], schedule.team_gpus)
        self._combine = Combine(tokens, COMBINE_PRIMITIVES[schedule.combine])
        self._read: dict[tuple[int, int], np.ndarray] = {}  # (tile, GEMM) -> inputs taken at its start
        self._inner: dict[int, np.ndarray] = {}  # tile -> what its GEMM-1 wrote
        self._computed = workload.topk_ids == NO_EXPERT  # (token, k) has its GEMM-2 result, or lacks an expert

    def apply(self, step: Step) -> None:
        """Applies one step.

        Raises:
            MultimemFault: It needs something that is not there, or the machine's tables contradict themselves.
        """
        if step.action == Action.DISPATCH:
            for token in self._schedule.chunks[step.item]:
                self._dispatch.send(int(token), self._tensors.tokens[token])
        elif step.action == Action.COPY:
            assert self._weights is not None
            self._weights.copy(step.expert, step.item)
        elif step.action == Action.ASK:
            self._ask(self._combined(step.item))
        elif step.action == Action.COMBINE:
            self._combine.respond()
            for token in self._combined(step.item):
                self.outputs[token] = self._combine.take(int(token))
        else:
            self._gemm(step)

    def finish(self) -> np.ndarray:
        """Returns the outputs, having checked that every expert received each of its tokens, whole and once.

        Raises:
            ScheduleFault: One is missing, in part or altogether, or came twice.
            CountFault: Something is still under way in the machine, or left in its tables.
        """
        for hub in self.runtime.hubs:
            for expert, tokens in hub.token_of_row.items():
                wanted = np.flatnonzero((self._workload.topk_ids == expert).any(axis=1))
                if not np.array_equal(np.sort(tokens), wanted):
                    raise ScheduleFault(f"expert {expert} received tokens {np.sort(tokens)}, not {wanted}")
                wrong = np.flatnonzero(hub.row_bytes[expert] != hub.region.block_bytes)
                if wrong.size:
                    row = wrong[0]
                    raise ScheduleFault(
                        f"expert {expert} received {hub.row_bytes[expert][row]} B of token {tokens[row]}"
                    )
        self.runtime.check_idle()
        if self._weights:
            self._weights.runtime.check_idle()
        return self.outputs

    def _combined(self, chunk: int) -> np.ndarray:
        """Returns the tokens of a chunk that are combined."""
        tokens = self._schedule.chunks[chunk]
        return tokens[self._has_experts[tokens]]

    def _gemm(self, step: Step) -> None:
        tokens, expert = self._schedule.tiles[step.item], step.expert
        tensors, logical = self._tensors, int(self._workload.placement.logical_of_expert[expert])
        if self._weights:
            tensors, logical = self._weights.of(expert), 0
            if step.action in (Action.READ_GEMM1, Action.READ_GEMM2):
                self._weights.require(expert, int(step.action == Action.READ_GEMM2), step.item)
        hub = self.runtime.hubs[int(self._workload.gpu_of_expert[expert])]
        rows = hub.rows(expert, tokens)
        if (rows < 0).any():
            missing = tokens[rows < 0].tolist()
            raise ScheduleFault(f"tile {step.item} of expert {expert} is computed without its tokens {missing}")
        if step.action == Action.READ_GEMM1:
            self._read[step.item, 1] = hub.read_rows(Stage.DISPATCH, expert, rows)
        elif step.action == Action.WRITE_GEMM1:
            self._inner[step.item] = tensors.gemm1(logical, self._read.pop((step.item, 1)))
        elif step.action == Action.READ_GEMM2:
            if step.item not in self._inner:
                raise ScheduleFault(f"GEMM-2 of tile {step.item} starts before its GEMM-1 has ended")
            self._read[step.item, 2] = self._inner.pop(step.item)
        else:
            place = np.argmax(self._workload.topk_ids[tokens] == expert, axis=1)
            inner = self._read.pop((step.item, 2))
            results = tensors.gemm2(logical, inner, tensors.gate_weights[tokens, place])
            hub.write_rows(Stage.COMBINE, expert, rows, results)
            self._computed[tokens, place] = True

    def _ask(self, tokens: np.ndarray) -> None:
        early = tokens[~self._computed[tokens].all(axis=1)]
        if early.size:
            raise ScheduleFault(f"tokens {early.tolist()} are combined before all their experts are done")
        for token in tokens:
            self._combine.ask(int(token))


def execute(schedule: Schedule, workload: Workload, tensors: MoeTensors, **sizes: Unpack[MachineSizes]) -> np.ndarray:
    """Returns the layer's outputs under a schedule, (token, hidden) float32: the dense layer's, up to rounding.

    The output of a token without experts is 0, whatever the schedule does with it.

    Raises:
        ConfigError: Tensors, primitives or sizes do not fit.
        MultimemFault: The schedule cannot be run, or leaves a token out or moves it twice.
    """
    execution = Execution(schedule, workload, tensors, **sizes)
    for step in execution.steps:
        execution.apply(step)
    return execution.finish()


def steps_of(schedule: Schedule, has_experts: np.ndarray, copies: Sequence[int] = ()) -> list[Step]:
    """Returns what a schedule's rows do, in order.

    A chunk with no token that has an expert is never combined, and need not be dispatched: where primitives address
    all GPUs it is, unless the layer is over before.

    Args:
        schedule: A finished schedule.
        has_experts: (token,) bool, whether a token has an expert.
        copies: Physical experts whose weights come over the links.

    Raises:
        ScheduleFault: A row has not ended, or a chunk's, tile's or copy's stage is missing or there twice.
    """
    steps = []
    done: list[tuple[str, int]] = []
    for row in schedule.rows:
        if not (math.isfinite(row.start_us) and math.isfinite(row.end_us)):
            raise ScheduleFault(f"{row.stage} of {row.item} has not ended; only a finished schedule can be executed")
        index = int(row.item.split()[1])
        done.append((row.stage, index))
        start, end = row.start_us, row.end_us
        effects = {
            "dispatch": ((start, Action.DISPATCH),),
            "weights1": ((end, Action.COPY),),
            "weights2": ((end, Action.COPY),),
            "gemm1": ((start, Action.READ_GEMM1), (end, Action.WRITE_GEMM1)),
            "gemm2": ((start, Action.READ_GEMM2), (end, Action.WRITE_GEMM2)),
            "combine": ((end, Action.ASK), (end, Action.COMBINE)),
        }
        item = int(row.stage == "weights2") if row.stage in _WEIGHTS else index
        steps += [Step(time_us, action, item, row.expert) for time_us, action in effects[row.stage]]
    needed = [index for index, tokens in enumerate(schedule.chunks) if has_experts[tokens].any()]
    filled = [index for index, tokens in enumerate(schedule.tiles) if len(tokens)]
    items = {(stage, index) for stage in ("dispatch", "combine") for index in needed}
    items |= {(stage, index) for stage in ("gemm1", "gemm2") for index in filled}
    items |= {(stage, expert) for stage in _WEIGHTS for expert in copies}
    idle = {("dispatch", index) for index, tokens in enumerate(schedule.chunks) if len(tokens)} - items
    wrong = sorted((set(done) - idle) ^ items) or sorted(item for item in set(done) if done.count(item) > 1)
    if wrong:
        raise ScheduleFault(f"{wrong[0][0]} of item {wrong[0][1]} is missing, unknown, or there twice")
    return sorted(steps)
