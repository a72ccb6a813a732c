"""What a finished layer is reported as: times, traffic, utilisation, and the schedule as a table.

The engine counts in picoseconds and flits; results are in microseconds and bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.multimem import ScheduleRow
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state.codes import DOWN, GEMM1, NO_TIME, NUM_PURPOSES, PURPOSES, UP
from dysharp_env.simulator.state.state import State

STAGES = ("dispatch", "gemm1", "gemm2", "combine")
# What a layer with copies has besides; in a schedule's table, of which a matrix has a row, with the GEMM's number.
WEIGHTS = "weights"


class SegmentName(NamedTuple):
    """What a node of the engine's is: a vector or packet on its way.

    Attributes:
        what: ``copy`` (dispatched to one GPU), ``store`` (to many at once), ``partial`` or ``sum``; ``weights`` (to one
            GPU) or ``weight_store`` (to many).
        token: Whose vector it is; of weights the expert that gets them, or of a store that gives them.
        gpu: Expert GPU of a copy or partial sum, home GPU of a store or sum; of weights where that expert is.
        place: Packet in its vector, 0 at token resolution; tile of its expert's weights.
        plane: Plane it takes; 0 at token resolution.
        group: Of a store to a team: the group of GPUs that the team is of; of weights the number of the store.
    """

    what: str
    token: int
    gpu: int
    place: int
    plane: int
    group: int = 0


@dataclass(frozen=True)
class LayerResult:
    """One layer under one schedule.

    Attributes:
        makespan_us: Until the last token is combined and what the schedule pays after that is over.
        lower_bound_us: What no schedule can beat.
        family_bound_us: What nothing can beat that runs by the same program; None where it was not asked for.
        phases_us: First start and last end of each stage, and of ``weights`` if copies are made; 0 of one that nothing
            reached.
        wire_bytes, payload_bytes: ``up`` and ``down`` over all GPUs, and ``by_purpose`` (both directions).
        utilisation: Of ``uplink``, ``downlink``, ``sm``, ``hbm``: mean and maximum over GPUs of the busy fraction.
        transfers: Segments put on a link.
        decisions: Decisions with more than one legal answer.
        evictions: Partial sums that a reduction unit had to give up early.
    """

    makespan_us: float
    lower_bound_us: float
    family_bound_us: float | None
    phases_us: dict[str, tuple[float, float]]
    wire_bytes: dict[str, Any]
    payload_bytes: dict[str, Any]
    utilisation: dict[str, dict[str, float]]
    events: int
    transfers: int
    decisions: int
    evictions: int

    @property
    def ratio(self) -> float:
        """Makespan over lower bound."""
        return self.makespan_us / self.lower_bound_us


def summarise(engine: Engine, lower_bound_ps: int, family_bound_ps: int | None = None) -> LayerResult:
    """Returns the result of a finished engine, of which two bounds are known, or one."""
    state, costs = engine.state, engine.costs
    root, gpus = state.root[0], state.gpus
    makespan_ps = max(1, engine.now_ps)
    num_gpus = engine.workload.num_gpus
    flits = state.traffic.reshape(num_gpus, 2, NUM_PURPOSES)
    wire = flits * costs.packet.flit_bytes
    payload = state.payload.reshape(flits.shape) * costs.packet.flit_bytes

    def within(busy_ps: np.ndarray, free_ps: np.ndarray) -> np.ndarray:
        """Returns busy fractions of the makespan; what a server still has queued at the end is not in it."""
        return (busy_ps - np.maximum(free_ps - makespan_ps, 0)) / makespan_ps

    def of_links(links: np.ndarray) -> np.ndarray:
        """Returns the mean over planes for each GPU."""
        return within(links["busy_ps"], links["free_ps"]).reshape(num_gpus, -1).mean(axis=1)

    def reached_us(name: str) -> float:
        """Returns a time that the root holds, 0 if it never came."""
        return max(int(root[name]), 0) / 1e6

    busy = {
        "uplink": of_links(state.uplinks),
        "downlink": of_links(state.ports[: len(state.uplinks)]),
        "sm": gpus["sm_busy_ps"] / (makespan_ps * int(root["num_sms"])),
        "hbm": within(gpus["hbm_busy_ps"], gpus["hbm_free_ps"]),
    }
    stages = (*STAGES, WEIGHTS) if len(state.copies) else STAGES
    return LayerResult(
        makespan_us=engine.now_ps / 1e6,
        lower_bound_us=lower_bound_ps / 1e6,
        family_bound_us=None if family_bound_ps is None else family_bound_ps / 1e6,
        phases_us={stage: (reached_us(f"{stage}_first"), reached_us(f"{stage}_last")) for stage in stages},
        wire_bytes=_by_direction_and_purpose(wire),
        payload_bytes=_by_direction_and_purpose(payload),
        utilisation={name: {"mean": float(use.mean()), "max": float(use.max())} for name, use in busy.items()},
        events=int(root["events"]),
        transfers=int(root["transfers"]),
        decisions=int(root["decisions"]),
        evictions=int(root["evictions"]),
    )


def _by_direction_and_purpose(num_bytes: np.ndarray) -> dict[str, Any]:
    per_purpose = num_bytes.sum(axis=(0, 1))
    return {
        "up": int(num_bytes[:, UP].sum()),
        "down": int(num_bytes[:, DOWN].sum()),
        "by_purpose": {name: int(total) for name, total in zip(PURPOSES, per_purpose, strict=True)},
    }


def schedule_table(engine: Engine) -> list[ScheduleRow]:
    """Returns the schedule of a finished (or running) engine, in order of start.

    What has not started is left out; what has not ended has the end ``nan``.
    """
    rows = _chunk_rows(engine) + _tile_rows(engine) + _copy_rows(engine)
    return sorted(rows, key=lambda row: (row.start_us, row.gpu, row.stage, row.item))


def _us(time_ps: int) -> float:
    return time_ps / 1e6 if time_ps >= 0 else float("nan")


def _chunk_rows(engine: Engine) -> list[ScheduleRow]:
    state = engine.state
    rows = []
    # A chunk of each home GPU once, however many GPUs or parts dispatch from it.
    order = state.order
    firsts = np.flatnonzero(np.diff(state.tokens["chunk"][order], prepend=-1))
    for index, members in enumerate(np.split(state.tokens[order], firsts[1:])):
        has_experts = members["num_experts"] > 0
        for stage in ("dispatch", "combine"):
            starts, ends = members[f"{stage}_start"], members[f"{stage}_end"]
            started = starts >= 0
            if not started.any():
                continue
            # Nothing waits for a token without experts: it is dispatched once it is taken, if the layer is not over by
            # then, and never combined.
            if stage == "dispatch":
                ends = np.where(has_experts, ends, starts)
            end = int(ends.max()) if (ends[has_experts] >= 0).all() else NO_TIME
            rows.append(
                ScheduleRow(
                    f"chunk {index}",
                    stage,
                    int(members["home"][0]),
                    stage,
                    len(members),
                    -1,
                    _us(int(starts[started].min())),
                    _us(end),
                )
            )
    return rows


def _tile_rows(engine: Engine) -> list[ScheduleRow]:
    state = engine.state
    rows = []
    for index in np.flatnonzero(state.tiles["rows"]["start_ps"][:, GEMM1] >= 0):
        tile = state.tiles[index]
        expert = state.experts[int(tile["expert"])]
        for stage, row in zip(("gemm1", "gemm2"), tile["rows"], strict=True):
            if row["start_ps"] < 0:
                continue
            rows.append(
                ScheduleRow(
                    f"tile {index}",
                    stage,
                    int(expert["gpu"]),
                    "gemm",
                    int(tile["count"]),
                    int(expert["number"]),
                    _us(int(row["start_ps"])),
                    _us(int(row["end_ps"])),
                )
            )
    return rows


def _copy_rows(engine: Engine) -> list[ScheduleRow]:
    rows = []
    for expert, gpu in engine.state.copies[["expert", "gpu"]].tolist():
        for gemm, stage in enumerate(("weights1", "weights2")):
            start_ps, end_ps = engine.state.matrices[["start_ps", "end_ps"]][2 * expert + gemm].tolist()
            if start_ps >= 0:
                rows.append(
                    ScheduleRow(f"copy {expert}", stage, gpu, WEIGHTS, 0, expert, _us(start_ps), _us(end_ps)),
                )
    return rows


def segment_name(state: State, node: int) -> SegmentName:
    """Returns what a node is."""
    root = state.root[0]
    owner, plane = int(state.nodes["owner"][node]), int(state.nodes["plane"][node])
    if node >= root["weights0"]:
        copy, place = state.copies[owner], (node - int(root["weights0"])) % int(root["num_weight_tiles"])
        if node < root["weight_store0"]:
            return SegmentName(WEIGHTS, int(copy["expert"]), int(copy["gpu"]), place, plane)
        group = int(copy["store"])
        return SegmentName("weight_store", int(copy["source"]), int(copy["source_gpu"]), place, plane, group)
    bases = {"copy": 0, "partial": int(root["partial0"]), "store": int(root["store0"]), "sum": int(root["sum0"])}
    what = next(what for what, base in reversed(bases.items()) if node >= base)
    stage = "dispatch" if what in ("copy", "store") else "combine"
    place = node - bases[what] - owner * int(root[stage]["segments"])
    if what in ("copy", "partial"):
        return SegmentName(what, int(state.pairs["token"][owner]), int(state.pairs["gpu"][owner]), place, plane)
    token, group = divmod(owner, int(root["stores_per_token"])) if what == "store" else (owner, 0)
    return SegmentName(what, token, int(state.tokens["home"][token]), place, plane, group)
