"""A lower bound on the makespan of any schedule of one workload on one system.

It is the largest of: the time each uplink, downlink and reduction unit needs for what must cross it under the best pair
of primitives the hardware has; the time each GPU's SMs and HBM need for its experts; and the path of a single token.
Each has the unavoidable head (a kernel launch, hops before the first byte) and tail (hops after the last) around it.

It is conservative where an exact account would depend on the schedule: acknowledgements that may still be on the wire
when the last token is home, notifications, evictions, the count exchange and barriers are left out, tiles are counted
as if they wasted nothing. HBM is charged only for what some GEMM row must wait for wherever else L2 finds room: the
weights of every expert that has tokens, once. They may be read as soon as the layer begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from dysharp_env.simulator.costs import PS_PER_S, Bound, Costs
from dysharp_env.system import SystemSpec
from dysharp_env.system.primitives import (
    COMBINE_PRIMITIVES,
    DISPATCH_PRIMITIVES,
    Primitive,
)
from dysharp_env.workload import Workload
from dysharp_env.workload.demand import Demand
from dysharp_env.workload.layer import LayerSpec

# What a primitive's needs are made of, counted for each GPU: pairs of its own tokens with other GPUs, pairs of others'
# tokens with it, its own tokens, everybody else's, its own that any other GPU must see, and the stores to teams that
# these take; and in picoseconds: its multicast stores and in-switch requests on its uplink, and what of them comes down
# to it.
_SENT, _RECEIVED, _OWN, _OTHERS, _AWAY, _TEAMS, _STORES, _REQUESTS, _STORED, _REQUESTED = range(10)
_NUM_COUNTS = 10
Needs = tuple[dict[int, int], dict[int, int], dict[int, int]]


class LowerBound:
    """Bounds workloads of one layer on one system; times that they share are worked out once."""

    def __init__(self, system: SystemSpec, layer: LayerSpec, costs: Costs) -> None:
        """Takes the costs of the layer on the system at token resolution."""
        self._launch_ps = costs.launch_ps
        # By the number of experts that a store or request names.
        named = range(layer.top_k + 1)
        packet = costs.families.packet_of("multimem", in_switch=True)
        self._store_ps = costs.wire_ps(np.array([packet.data_flits(costs.dispatch_bytes, count) for count in named]))
        self._request_ps = costs.wire_ps(np.array([packet.ask_flits(costs.combine_bytes, count) for count in named]))
        dispatches = [DISPATCH_PRIMITIVES[name] for name in system.switch.dispatch_primitives]
        combines = [COMBINE_PRIMITIVES[name] for name in system.switch.combining(layer.combine_dtype)]
        # (primitive, link or reduction unit, count)
        self._dispatch = np.array([_weights(_dispatch_needs(primitive, costs)) for primitive in dispatches])
        self._combine = np.array([_weights(_combine_needs(primitive, costs)) for primitive in combines])
        self._team_gpus = costs.team_gpus if any(primitive.by_team for primitive in dispatches) else 0
        arrival_ps, home_ps = (
            2 * costs.hop_ps + min(_Moved.by(primitive, costs, num_bytes).data_ps for primitive in primitives)
            for primitives, num_bytes in ((dispatches, costs.dispatch_bytes), (combines, costs.combine_bytes))
        )
        self._times = _Times(
            hop_ps=costs.hop_ps,
            arrival_ps=arrival_ps,
            local_arrival_ps=min(costs.memory_ps, arrival_ps),
            one_token_ps=arrival_ps + costs.block_ps(1, 1) + costs.block_ps(2, 1) + home_ps,
            granule_tokens=costs.row_granularity,
            granule_ps=_of_row(costs, costs.granule_ps),
            half_granule_ps=_of_row(costs, [granule_ps // 2 for granule_ps in costs.granule_ps]),
            operand_ps=_of_row(costs, costs.operand_ps),
            tile_tokens=layer.tile_tokens,
            tile_ps=sum(costs.blocks) * costs.block_overhead_ps,
            num_sms=system.gpu.num_sms,
            weight_bytes=sum(costs.weight_bytes),
            byte_ps=PS_PER_S / costs.hbm_bytes_per_s,
        )

    def of(self, workload: Workload) -> Bound:
        """Returns a time that no schedule of a workload of this layer can beat, and what it is made of."""
        demand, times = workload.demand, self._times
        counts = np.empty((_NUM_COUNTS, workload.num_gpus), np.int64)
        links_ps, longest_ps, gemms_ps, hbm_ps = _bound(
            demand,
            workload.topk_ids,
            workload.gpu_of_expert,
            self._team_gpus,
            workload.tokens_per_gpu,
            self._store_ps,
            self._request_ps,
            self._dispatch,
            self._combine,
            times,
            counts,
        )
        return Bound(self._launch_ps + max(links_ps, longest_ps, 1), links_ps, gemms_ps, hbm_ps)


class _Times(NamedTuple):
    """What compute and single tokens take, and what that is made of."""

    hop_ps: int
    arrival_ps: int  # of a token from another GPU
    local_arrival_ps: int
    one_token_ps: int  # out to another GPU, through its expert, and home
    granule_tokens: int
    granule_ps: int  # of SM time, both GEMMs
    half_granule_ps: int
    operand_ps: int  # of SM time of a tile that is bound by reading, beside that of half its granules
    tile_tokens: int
    tile_ps: int  # of SM time beside that of its granules
    num_sms: int
    weight_bytes: int  # of an expert
    byte_ps: float  # of HBM


@njit(cache=True)
def _bound(
    demand: Demand,
    topk_ids: np.ndarray,
    gpu_of_expert: np.ndarray,
    team_gpus: int,
    tokens_per_gpu: int,
    store_ps: np.ndarray,
    request_ps: np.ndarray,
    dispatch: np.ndarray,
    combine: np.ndarray,
    times: _Times,
    counts: np.ndarray,
) -> tuple[int, int, int, int]:
    """Returns what links need, and what ``_compute`` returns; one call, because each costs microseconds."""
    _count(demand, tokens_per_gpu, store_ps, request_ps, counts)
    _count_teams(topk_ids, gpu_of_expert, team_gpus, counts)
    longest_ps, gemms_ps, hbm_ps = _compute(demand, gpu_of_expert, times)
    return _links(counts, dispatch, combine, times), longest_ps, gemms_ps, hbm_ps


@njit(cache=True)
def _count(
    demand: Demand, tokens_per_gpu: int, store_ps: np.ndarray, request_ps: np.ndarray, counts: np.ndarray
) -> None:
    """Writes what primitives need of each GPU, (count, gpu)."""
    num_gpus = counts.shape[1]
    counts[:] = 0
    for gpu in range(num_gpus):
        counts[_SENT, gpu] = demand.remote_pairs[gpu]
        counts[_OWN, gpu] = tokens_per_gpu
        counts[_OTHERS, gpu] = tokens_per_gpu * (num_gpus - 1)
        for targets in range(1, len(store_ps)):
            pairs, tokens = demand.pair_targets[gpu, targets], demand.token_targets[gpu, targets]
            counts[_RECEIVED, gpu] += pairs
            counts[_AWAY, gpu] += tokens
            counts[_STORES, gpu] += tokens * store_ps[targets]
            counts[_REQUESTS, gpu] += tokens * request_ps[targets]
            counts[_STORED, gpu] += pairs * store_ps[targets]
            counts[_REQUESTED, gpu] += pairs * request_ps[targets]


@njit(cache=True)
def _count_teams(topk_ids: np.ndarray, gpu_of_expert: np.ndarray, team_gpus: int, counts: np.ndarray) -> None:
    """Writes how many stores to teams the tokens of each GPU take: one for every group of GPUs with a remote target.

    Without ``team_gpus`` there are no teams.
    """
    num_gpus = counts.shape[1]
    if team_gpus >= num_gpus:
        counts[_TEAMS] = counts[_AWAY]
    elif team_gpus > 0:
        tokens_per_gpu = len(topk_ids) // num_gpus
        last_token = np.full((num_gpus - 1) // team_gpus + 1, -1)  # with a target in each group
        for token in range(len(topk_ids)):
            home = token // tokens_per_gpu
            for place in range(topk_ids.shape[1]):
                gpu = gpu_of_expert[topk_ids[token, place]]
                if gpu != home and last_token[gpu // team_gpus] != token:
                    last_token[gpu // team_gpus] = token
                    counts[_TEAMS, home] += 1


@njit(cache=True)
def _links(counts: np.ndarray, dispatch: np.ndarray, combine: np.ndarray, times: _Times) -> int:
    """Returns the time the busiest link or reduction unit needs under the best pair of primitives, with hops."""
    best_ps = -1
    for first in range(len(dispatch)):
        for second in range(len(combine)):
            busiest_ps = 0
            for kind in range(dispatch.shape[1]):
                for gpu in range(counts.shape[1]):
                    need_ps = 0
                    for count in range(len(counts)):
                        weight = dispatch[first, kind, count] + combine[second, kind, count]
                        need_ps += weight * counts[count, gpu]
                    busiest_ps = max(busiest_ps, need_ps)
            if best_ps < 0 or busiest_ps < best_ps:
                best_ps = busiest_ps
    # An uplink's last byte still has two hops to go, a downlink's first had one and its last has one.
    return best_ps + 2 * times.hop_ps if best_ps > 0 else 0


@njit(cache=True)
def _compute(demand: Demand, gpu_of_expert: np.ndarray, times: _Times) -> tuple[int, int, int]:
    """Returns the time the busiest GPU needs for its experts, or a single token for its way to one and back.

    A GPU's time is from the first token there to the last one home. With it comes what the SMs of the busiest GPU alone
    need, and what the HBM of the busiest.
    """
    num_gpus = len(demand.local_pairs)
    sm_ps, experts = np.zeros(num_gpus, np.int64), np.zeros(num_gpus, np.int64)
    for expert in range(len(gpu_of_expert)):
        gpu, tokens = gpu_of_expert[expert], demand.expert_tokens[expert]
        granules, tiles = -(-tokens // times.granule_tokens), -(-tokens // times.tile_tokens)
        # Every tile takes the longer of two times, hence all tiles together no less than the longer of the sums.
        reading_ps = tiles * times.operand_ps + granules * times.half_granule_ps
        sm_ps[gpu] += max(granules * times.granule_ps, reading_ps) + tiles * times.tile_ps
        experts[gpu] += tokens > 0
    longest_ps = times.one_token_ps if demand.remote_pairs.any() else 0
    most_sms_ps, most_hbm_ps = 0, 0
    for gpu in range(num_gpus):
        # An expert's two matrices are an access each, which rounds down by less than a picosecond; so does the sum.
        accesses = 2 * experts[gpu]
        hbm_ps = max(np.int64(np.floor(experts[gpu] * times.weight_bytes * times.byte_ps)) - accesses - 1, 0)
        most_sms_ps = max(most_sms_ps, sm_ps[gpu] // times.num_sms)
        most_hbm_ps = max(most_hbm_ps, hbm_ps)
        if experts[gpu] > 0:
            is_local = demand.local_pairs[gpu] > 0
            head_ps = times.local_arrival_ps if is_local else times.arrival_ps
            tail_ps = 0 if is_local else 2 * times.hop_ps
            # Weights need not wait for the first token; thread blocks do.
            longest_ps = max(longest_ps, max(head_ps + sm_ps[gpu] // times.num_sms, hbm_ps) + tail_ps)
    return longest_ps, most_sms_ps, most_hbm_ps


def _of_row(costs: Costs, block_ps: Sequence[int]) -> int:
    """Returns what all thread blocks of a row in both GEMMs take, each so long."""
    return sum(blocks * ps for blocks, ps in zip(costs.blocks, block_ps, strict=True))


def _weights(needs: Needs) -> np.ndarray:
    """Returns what uplinks, downlinks and reduction units need, (3, count) picoseconds of each count."""
    weights = np.zeros((len(needs), _NUM_COUNTS), np.int64)
    for row, need in enumerate(needs):
        for count, ps in need.items():
            weights[row, count] = ps
    return weights


class _Moved(NamedTuple):
    """What a vector keeps links busy for at least, in the packets of whichever kernels may move it."""

    data_ps: int
    ask_ps: int
    ack_ps: int
    reduce_ps: int

    @classmethod
    def by(cls, primitive: Primitive, costs: Costs, num_bytes: int) -> _Moved:
        """Returns what a primitive takes for a vector that names no expert."""
        packets = costs.families.packets_of(primitive)
        data_flits = min(packet.data_flits(num_bytes) for packet in packets)
        return cls(
            costs.wire_ps(data_flits),
            costs.wire_ps(min(packet.ask_flits(num_bytes) for packet in packets)),
            costs.wire_ps(min(packet.acknowledge_flits(num_bytes) for packet in packets)),
            costs.reduce_ps(data_flits),
        )


def _dispatch_needs(primitive: Primitive, costs: Costs) -> Needs:
    """Returns the least times of dispatch by a primitive, as picoseconds of each count.

    Acknowledgements count where data must follow them.
    """
    data_ps, ask_ps, ack_ps, _ = _Moved.by(primitive, costs, costs.dispatch_bytes)
    if primitive.reads:
        return {_SENT: data_ps, _RECEIVED: ask_ps}, {_RECEIVED: data_ps, _SENT: ask_ps}, {}
    if primitive.names_targets:
        return {_STORES: 1, _RECEIVED: ack_ps}, {_STORED: 1}, {}
    if primitive.to_all:
        return {_OWN: data_ps, _RECEIVED: ack_ps}, {_OTHERS: data_ps}, {}
    if primitive.by_team:
        return {_TEAMS: data_ps, _RECEIVED: ack_ps}, {_RECEIVED: data_ps}, {}
    return {_SENT: data_ps, _RECEIVED: ack_ps}, {_RECEIVED: data_ps}, {}


def _combine_needs(primitive: Primitive, costs: Costs) -> Needs:
    """Returns the least times of combine by a primitive, as picoseconds of each count."""
    data_ps, ask_ps, _, reduce_ps = _Moved.by(primitive, costs, costs.combine_bytes)
    if primitive.to_all:
        return {_OTHERS: data_ps, _OWN: ask_ps}, {_OWN: data_ps, _OTHERS: ask_ps}, {_OTHERS: reduce_ps}
    if primitive.names_targets:
        return {_RECEIVED: data_ps, _REQUESTS: 1}, {_AWAY: data_ps, _REQUESTED: 1}, {_SENT: reduce_ps}
    if primitive.in_switch:
        return {_RECEIVED: data_ps}, {_AWAY: data_ps}, {_SENT: reduce_ps}
    if primitive.reads:
        return {_RECEIVED: data_ps, _SENT: ask_ps}, {_SENT: data_ps, _RECEIVED: ask_ps}, {}
    return {_RECEIVED: data_ps}, {_SENT: data_ps}, {}
