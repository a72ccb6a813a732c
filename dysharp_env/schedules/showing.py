"""What a decision on a plan shows: sizes and times of each plan for an evenly routed layer, and what shapes that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dysharp_env.schedules.spec import ScheduleSpec
from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.families import SmCosts
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state.codes import GATE_FINE
from dysharp_env.workload import Workload


def plan_features(
    schedule: ScheduleSpec, program: Program, even: Workload, costs: Costs, bound: Bound, num_sms: int
) -> dict[str, float]:
    """Returns what is shown of a plan, by feature, for an evenly routed layer; features that are left out are 0."""
    early = program.min_partial_tokens / even.layer.tile_tokens if program.partial_tiles else 1.0
    costs = costs.under(program.dispatch, program.combine, program.families)
    moved = _Moved.of(program, even, costs)
    return {
        "size": min(1.0, program.chunk_tokens * even.num_gpus / max(even.num_tokens, 1)),
        "is_partial": program.partial_tiles,
        "fan_out": min(1.0, moved.pairs / max(moved.tokens * (even.num_gpus - 1), 1.0)),
        "cost": rooted(moved.sms_ps(program, costs), bound.total_ps),
        "links": rooted(moved.links_ps(program, costs), bound.total_ps),
        "paid": rooted(sum(program.pays_ps) + program.pay_end_ps, bound.total_ps),
        "counts": program.counted,
        "multicasts": program.dispatch.in_switch,
        "pulls": program.dispatch.reads,
        "switch_sums": program.combine.in_switch,
        "pushes": not program.combine.reads,
        "per_expert": program.copies_per_expert,
        "in_gemm": program.in_gemm,
        "waves": program.waves or schedule.parts.by == "experts",
        "phases": sum(gate != GATE_FINE for gate in program.gates) / len(program.gates),
        "prefetches": program.prefetches,
        "copies_experts": schedule.replicate.planner != "none",
        "split_dispatch": program.dispatch_sms / num_sms,
        "split_combine": program.combine_sms / num_sms,
        "split_early": max(0.0, 1.0 - early),
    }


def rooted(ps: float, scale_ps: int) -> float:
    """Returns the square root of a time over a bound, cut at 1, as the engine shows times."""
    return min(1.0, math.sqrt(ps / scale_ps))


def shape(workload: Workload, costs: Costs, bound: Bound) -> dict[str, float]:
    """Returns the context values that are the same all through a layer, for a GPU with a mean share of the work."""
    scale_ps, num_gpus = bound.total_ps, workload.num_gpus
    slots = workload.experts_of_token.sum() / num_gpus
    experts = workload.num_experts / num_gpus
    expert_bytes = sum(costs.matrix_bytes)
    return {
        "link_share": min(1.0, bound.links_ps / scale_ps),
        "gemm_share": min(1.0, bound.gemms_ps / scale_ps),
        "hbm_share": min(1.0, bound.hbm_ps / scale_ps),
        "tokens_per_expert": slots / max(slots + experts * workload.layer.tile_tokens, 1),
        "l2_room": costs.l2_bytes / (costs.l2_bytes + experts * expert_bytes),
    }


@dataclass(frozen=True)
class _Moved:
    """What a mean GPU of an evenly routed layer moves.

    Attributes:
        tokens: Tokens that live there.
        pairs: Pairs of one of them and another GPU that computes for it, as often as a copy goes there.
        stores: Stores, or answers, of tokens.
        named: GPUs that a store names.
        sums: Sums that come home.
    """

    tokens: float
    pairs: float
    stores: float
    named: int
    sums: float

    @classmethod
    def of(cls, program: Program, even: Workload, costs: Costs) -> _Moved:
        demand, num_gpus, dispatch, combine = even.demand, even.num_gpus, program.dispatch, program.combine
        pairs, tokens = demand.remote_pairs.mean(), even.num_tokens / num_gpus
        if program.copies_per_expert:
            pairs *= even.experts_of_token.sum() / max(demand.num_pairs, 1)
        if dispatch.to_all or combine.to_all:
            pairs = tokens * (num_gpus - 1)
        stores, named = (tokens, round(pairs / max(tokens, 1))) if dispatch.in_switch else (pairs, 0)
        if dispatch.by_team:
            stores = min(pairs, tokens * costs.store_groups(dispatch.by_team, num_gpus))
        return cls(tokens, pairs, stores, named, tokens if combine.in_switch else pairs)

    def links_ps(self, program: Program, costs: Costs) -> int:
        """Returns what tokens and sums take of the busier direction, asking and acknowledging left out."""
        token = costs.dispatch_flits(self.named if program.dispatch.names_targets else 0)
        result = costs.combine_flits()
        up = self.stores * token + self.pairs * result
        down = self.pairs * costs.dispatch_flits() + self.sums * result
        return costs.wire_ps(int(max(up, down)))

    def sms_ps(self, program: Program, costs: Costs) -> float:
        """Returns how long the SMs that move tokens, or those that move sums, need at least for that."""
        fetched = self.sums if program.combine.reads else self.pairs
        out_ps = _work_ps(costs.dispatch_sm, self.stores, self.tokens) / program.dispatch_sms
        return max(out_ps, _work_ps(costs.combine_sm, fetched, self.tokens) / program.combine_sms)


def _work_ps(sm: SmCosts, vectors: float, tokens: float) -> float:
    """Returns how long one SM takes to move vectors of so many tokens."""
    return vectors * max(sm.vector_ps, sm.trip_ps / sm.slots) + tokens * (sm.token_ps + sm.prepare_ps)


def imbalance_before(workload: Workload) -> float:
    """Returns 1 less the mean load of GPUs over that of the busiest in an earlier batch; 0 where nobody knows one."""
    past = workload.past_loads
    if past is None or not past.any():
        return 0.0
    placement = workload.placement
    replicas = np.bincount(placement.logical_of_expert, minlength=placement.num_logical)
    of_expert = (past / np.maximum(replicas, 1))[placement.logical_of_expert]
    loads = np.bincount(placement.gpu_of_expert, of_expert, minlength=placement.num_gpus)
    return float(1 - loads.mean() / loads.max())
