"""What the twin's decisions show: the features of candidates and the context, computed afresh from the objects.

A table for each kind of candidate, and one for the context, says what the value of each name is; a candidate has 0 for
a name that its table lacks. Only the names are the engine's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dysharp_env.simulator.layout import COMBINE, CONTEXT, DECISION_KINDS, DISPATCH, FEATURES
from dysharp_env.simulator.twin.gpu import Gpu
from dysharp_env.simulator.twin.parts import Candidate, Chunk, Expert, Hold, Pair, Row, Split, Unit
from dysharp_env.simulator.twin.world import World


class View(NamedTuple):
    """Where a decision is taken: on one GPU of all, about candidates in their places."""

    world: World
    gpus: list[Gpu]
    gpu: Gpu
    place: int = 0  # of the candidate in the list

    @property
    def now_ps(self) -> int:
        """The time."""
        return self.world.clock.now_ps

    @property
    def tile_tokens(self) -> int:
        """Tokens of a full tile."""
        return self.world.workload.layer.tile_tokens

    def root(self, ps: int) -> float:
        """Returns the square root of a time over the lower bound, cut to [0, 1]."""
        return min(1.0, math.sqrt(max(ps, 0) / self.world.scale_ps))

    def fan_out(self, pairs: int, tokens: int) -> float:
        """Returns pairs with other GPUs over those that so many tokens can have, cut to 1."""
        return min(1.0, pairs / (tokens * (self.world.num_gpus - 1)))


def mean(values: list[float]) -> float:
    """Returns the mean, summed in order and rounded at each step as the engine does; ``sum`` may compensate."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values) if values else 0.0


def fraction(part: int, whole: int) -> float:
    """Returns part over whole cut to 1; nothing to do counts as done."""
    return min(1.0, part / whole) if whole else 1.0


def pairs_of(view: View, chunk: Chunk) -> list[Pair]:
    """Returns what is dispatched with a chunk."""
    return [pair for token in chunk.tokens for pair in view.gpu.dispatch.in_turn(token)]


def remote_pairs(view: View, chunk: Chunk) -> list[Pair]:
    """Returns those of a chunk's pairs whose vectors cross links to experts."""
    return [pair for pair in pairs_of(view, chunk) if pair.is_remote and pair.experts]


def experts_of(view: View, chunk: Chunk) -> list[Expert]:
    """Returns the expert of each (token, expert) of a chunk."""
    pairs = pairs_of(view, chunk)
    return [view.gpus[pair.gpu].gemm.experts[number, pair.part] for pair in pairs for number in pair.experts]


def link_ps(view: View, chunk: Chunk) -> int:
    """Returns how long a chunk keeps the links of the GPU busy that sends it."""
    world, costs = view.world, view.world.costs
    if world.dispatch.in_switch:
        named = [token.remote_experts if world.dispatch.names_targets else 0 for token in chunk.tokens]
        flits = sum(map(costs.dispatch_flits, named))
    else:
        flits = len(remote_pairs(view, chunk)) * costs.dispatch_flits()
    return costs.spread_ps(flits)


def is_resident(view: View, row: Row) -> bool:
    """Returns whether a row's matrix is in L2."""
    return view.gpu.site.memory.has_weights(row.tile.expert.number, row.stage)


def num_finished(view: View, row: Row) -> int:
    """Returns for how many tokens a row is the last that their sum, or this GPU's partial sum, waits for."""
    if view.world.combine.reads:
        return sum(pair.token.experts_done == view.world.workload.layer.top_k - 1 for pair in row.tile.pairs)
    return sum(pair.experts_done == len(pair.experts) - 1 for pair in row.tile.pairs)


def row_ps(view: View, row: Row) -> int:
    """Returns what a row takes on the GEMM group or, if that is longer, its matrix on HBM."""
    costs, stage = view.world.costs, row.stage
    block_ps = costs.block_ps(stage, len(row.tile.pairs), view.gpu.number)
    fetch_ps = 0 if is_resident(view, row) else costs.hbm_ps(costs.weight_bytes[stage - 1])
    return max(costs.blocks[stage - 1] * block_ps // view.gpu.site.staff.gemm_sms, fetch_ps)


def backlogs_ps(view: View, unit: Unit) -> list[int]:
    """Returns what each vector of a unit meets that crosses links: at home if pushed, at the expert GPU if read."""
    found = []
    for item in unit.items:
        if isinstance(item, Pair):
            found.append(view.gpus[unit.home].site.ports.down_ps())
        else:
            sources = [pair for pair in item.pairs if pair.is_remote and pair.experts]
            found.extend(view.gpus[pair.gpu].site.ports.up_ps() for pair in sources)
    return found


def in_flight(view: View, kind: int) -> float:
    """Returns the vectors of a communication group in flight over those that its SMs' windows allow."""
    crew = view.gpu.site.staff.crews[kind]
    return fraction(crew.in_flight, crew.size * crew.window.slots)


def num_ready(view: View) -> int:
    """Returns how many of the tokens or partial sums that a GPU combines have become ready."""
    return view.gpu.combine.items - view.gpu.combine.items_waiting


Formulas = dict[str, Callable[[View, Any], float]]
OF_ANY: Formulas = {
    "order": lambda view, _: view.place / view.world.program.max_candidates,
}
OF_CHUNK: Formulas = OF_ANY | {
    "size": lambda view, chunk: len(chunk.tokens) / view.world.program.chunk_tokens,
    "tile_fill": lambda view, chunk: mean([expert.open_count / view.tile_tokens for expert in experts_of(view, chunk)]),
    "expert_progress": lambda view, chunk: mean([expert.arrived / expert.total for expert in experts_of(view, chunk)]),
    "fan_out": lambda view, chunk: view.fan_out(len(remote_pairs(view, chunk)), len(chunk.tokens)),
    "backlog": lambda view, chunk: view.root(
        max([view.gpus[pair.gpu].site.ports.down_ps() for pair in remote_pairs(view, chunk)], default=0)
    ),
    "cost": lambda view, chunk: view.root(link_ps(view, chunk)),
}
OF_ROW: Formulas = OF_ANY | {
    "size": lambda view, row: len(row.tile.pairs) / view.tile_tokens,
    "is_gemm2": lambda view, row: row.stage == 2,
    "is_partial": lambda view, row: row.is_open,
    "weights_in_l2": is_resident,
    "waiting": lambda view, row: view.root(0 if row.is_open else view.now_ps - row.tile.ready_ps[row.stage - 1]),
    "expert_left": lambda view, row: (row.tile.expert.total - row.tile.expert.arrived) / row.tile.expert.total,
    "finishes": lambda view, row: num_finished(view, row) / len(row.tile.pairs),
    "backlog": lambda view, row: view.root(view.gpu.site.memory.hbm_free_ps - view.now_ps),
    "cost": lambda view, row: view.root(row_ps(view, row)),
}
OF_UNIT: Formulas = OF_ANY | {
    "size": lambda view, unit: len(unit.items) / view.world.program.chunk_tokens,
    "waiting": lambda view, unit: view.root(view.now_ps - unit.ready_ps),
    "fan_out": lambda view, unit: view.fan_out(len(backlogs_ps(view, unit)), len(unit.items)),
    "backlog": lambda view, unit: view.root(max(backlogs_ps(view, unit), default=0)),
    "cost": lambda view, unit: view.root(
        view.world.costs.spread_ps(len(unit.items) * view.world.costs.combine_flits())
    ),
}
OF_SPLIT: Formulas = OF_ANY | {
    "split_dispatch": lambda view, split: split.dispatch_sms / view.world.num_sms,
    "split_combine": lambda view, split: split.combine_sms / view.world.num_sms,
    "split_early": lambda view, split: max(0.0, 1 - split.early_tokens / view.tile_tokens),
}
OF_HOLD: Formulas = {"is_hold": lambda view, hold: 1.0}
OF_CANDIDATE: dict[type, Formulas] = {Chunk: OF_CHUNK, Row: OF_ROW, Unit: OF_UNIT, Split: OF_SPLIT, Hold: OF_HOLD}

# Beside the view the kind of decision is given.
OF_CONTEXT: Formulas = {
    **{f"is_{name}": lambda view, kind, mine=mine: kind == mine for mine, name in enumerate(DECISION_KINDS)},
    "elapsed": lambda view, _: min(1.0, view.now_ps / (4 * view.world.scale_ps)),
    "sent": lambda view, _: view.gpu.dispatch.tokens_sent / view.gpu.dispatch.tokens_to_send,
    "received": lambda view, _: fraction(
        view.gpu.gemm.slots - sum(view.gpu.site.progress.arrivals_left), view.gpu.gemm.slots
    ),
    "gemm_done": lambda view, _: fraction(
        2 * view.gpu.gemm.slots - sum(map(sum, view.gpu.site.progress.slots_left)), 2 * view.gpu.gemm.slots
    ),
    "combined": lambda view, _: view.gpu.combine.combined / view.world.workload.tokens_per_gpu,
    "uplink_backlog": lambda view, _: view.root(view.gpu.site.ports.up_ps()),
    "downlink_backlog": lambda view, _: view.root(view.gpu.site.ports.down_ps()),
    "hbm_backlog": lambda view, _: view.root(view.gpu.site.memory.hbm_free_ps - view.now_ps),
    "free_sms": lambda view, _: view.gpu.site.staff.free_sms / max(view.gpu.site.staff.gemm_sms, 1),
    "dispatch_in_flight": lambda view, _: in_flight(view, DISPATCH),
    "combine_in_flight": lambda view, _: in_flight(view, COMBINE),
    "all_combined": lambda view, _: (
        (view.world.workload.num_tokens - view.world.tokens_left) / view.world.workload.num_tokens
    ),
    "link_share": lambda view, _: fraction(view.world.bound.links_ps, view.world.scale_ps),
    "gemm_share": lambda view, _: fraction(view.world.bound.gemms_ps, view.world.scale_ps),
    "hbm_share": lambda view, _: fraction(view.world.bound.hbm_ps, view.world.scale_ps),
    "tokens_per_expert": lambda view, _: (
        view.gpu.gemm.slots / (view.gpu.gemm.slots + view.world.workload.experts_per_gpu * view.tile_tokens)
    ),
    "l2_room": lambda view, _: (
        view.world.costs.l2_bytes
        / (view.world.costs.l2_bytes + view.world.workload.experts_per_gpu * sum(view.world.costs.matrix_bytes))
    ),
    "ready": lambda view, _: num_ready(view) / max(view.gpu.combine.items, 1),
    "any_ready": lambda view, _: num_ready(view) > 0,
    "all_sent": lambda view, _: view.gpu.dispatch.tokens_sent == view.gpu.dispatch.tokens_to_send,
}


def features_of(world: World, gpus: list[Gpu], gpu: Gpu, candidates: list[Candidate]) -> np.ndarray:
    """Returns the features of a decision's candidates, (max_candidates, feature) float32; empty rows are 0."""
    features = np.zeros((world.program.max_candidates, len(FEATURES)), np.float32)
    for place, candidate in enumerate(candidates):
        view, formulas = View(world, gpus, gpu, place), OF_CANDIDATE[type(candidate)]
        features[place] = [formulas[name](view, candidate) if name in formulas else 0.0 for name in FEATURES]
    return features


def context_of(world: World, gpus: list[Gpu], gpu: Gpu, kind: int) -> np.ndarray:
    """Returns what a decision shows of its GPU and of the layer, (context,) float32."""
    view = View(world, gpus, gpu)
    return np.array([OF_CONTEXT[name](view, kind) for name in CONTEXT], np.float32)
