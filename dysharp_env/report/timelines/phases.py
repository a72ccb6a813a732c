"""Tracks of the layer as a whole: what is paid, its phases, and for each GPU what it moved and used in all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dysharp_env.report import STAGE_NAMES
from dysharp_env.report.paid import Payer
from dysharp_env.report.timelines.model import ALL_GPUS, KERNELS, OTHER, Slice, Track
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.result import STAGES, WEIGHTS
from dysharp_env.simulator.state.codes import DOWN, NOTHING, NUM_PURPOSES, PURPOSES, UP

LAYER, PAID = "whole layer", "paid"


def phase_tracks(engine: Engine) -> Iterator[Track]:
    """Yields the layer's track of its whole time and one for each stage, from its first start to its last end."""
    root = engine.state.root[0]
    yield Track(
        ALL_GPUS, LAYER, 0, [Slice("layer", 0, engine.now_ps, _totals(engine, np.arange(engine.workload.num_gpus)))]
    )
    stages = (*STAGES, WEIGHTS) if len(engine.state.copies) else STAGES
    for rank, stage in enumerate(stages, start=2):
        first_ps, last_ps = int(root[f"{stage}_first"]), int(root[f"{stage}_last"])
        if first_ps >= 0 and last_ps >= first_ps:
            yield Track(
                ALL_GPUS, f"phase: {STAGE_NAMES[stage]}", rank, [Slice(STAGE_NAMES[stage], first_ps, last_ps, {})]
            )


def whole_tracks(engine: Engine) -> Iterator[Track]:
    """Yields for each GPU a track with one slice, which says what the GPU moved and used in the layer."""
    for gpu in range(engine.workload.num_gpus):
        totals = _totals(engine, np.array([gpu]))
        yield Track(gpu, LAYER, 0, [Slice("layer", 0, engine.now_ps, totals)])


def _totals(engine: Engine, gpus: np.ndarray) -> dict[str, Any]:
    """Returns bytes by direction and purpose and busy times of GPUs together, as results count them."""
    state, flit_bytes, now_ps = engine.state, engine.costs.packet.flit_bytes, engine.now_ps
    found: dict[str, Any] = {}
    for kind, flits in (("wire", state.traffic), ("payload", state.payload)):
        table = flits.reshape(-1, 2, NUM_PURPOSES)[gpus].sum(axis=0) * flit_bytes
        for name, direction in (("up", UP), ("down", DOWN)):
            found[f"{kind}_bytes_{name}"] = int(table[direction].sum())
        if kind == "wire":
            for name, direction in (("up", UP), ("down", DOWN)):
                each = zip(PURPOSES, table[direction].tolist(), strict=True)
                found |= {f"wire_bytes_{name}.{purpose}": count for purpose, count in each if count}
    links = len(state.uplinks)
    for name, served in (("uplink", state.uplinks), ("downlink", state.ports[:links])):
        # What a server still has queued at the end is not in it.
        busy_ps = served["busy_ps"] - np.maximum(served["free_ps"] - now_ps, 0)
        found[f"{name}_busy_us"] = float(busy_ps.reshape(engine.workload.num_gpus, -1).mean(axis=1)[gpus].sum()) / 1e6
    found["sm_time_us"] = int(state.gpus["sm_busy_ps"][gpus].sum()) / 1e6
    hbm_ps = state.gpus["hbm_busy_ps"] - np.maximum(state.gpus["hbm_free_ps"] - now_ps, 0)
    found["hbm_busy_us"] = int(hbm_ps[gpus].sum()) / 1e6
    return found


def paid_tracks(payer: Payer) -> Iterator[Track]:
    """Yields tracks of what is paid: before dispatch, before stages behind gates, and at the end.

    What all GPUs pay together is on the layer's track; several parts that pay at one time are on lanes of one name.
    """
    found: dict[int, list[Slice]] = {}
    for paid in payer.spans():
        args = {"paid": "kernel" if paid.item.is_kernel else "fixed cost"}
        gpu = ALL_GPUS if paid.gpu == NOTHING else paid.gpu
        found.setdefault(gpu, []).append(Slice(paid.item.text, paid.start_ps, paid.end_ps, args))
    for gpu, slices in found.items():
        for lane, mine in enumerate(_lanes(slices)):
            for of in (OTHER, KERNELS):
                kind = [each for each in mine if (each.args["paid"] == "kernel") == (of == KERNELS)]
                if kind:
                    name = PAID if of == OTHER else f"{PAID}: kernels between phases"
                    yield Track(gpu, name, 1, kind, lane=2 * lane + (of == KERNELS), of=of)


def _lanes(slices: list[Slice]) -> list[list[Slice]]:
    """Returns slices, which are in order of start, spread over as few lanes as their overlaps allow."""
    lanes: list[list[Slice]] = []
    for each in slices:
        lane = next((lane for lane in lanes if lane[-1].end_ps <= each.start_ps), None)
        if lane is None:
            lanes.append(lane := [])
        lane.append(each)
    return lanes
