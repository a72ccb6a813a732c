"""A lower bound on the makespan of any schedule of one workload on one system.

It is the largest of what must come after a kernel has been launched:

* The time of each uplink, downlink and reduction unit for what must cross it under the best pair of primitives the
  hardware has (needs.py), with two hops; for what is dispatched alone, whose last token still has its rows and its way
  home before it; for what is combined alone, which is after the first rows.
* The time each GPU's SMs need for its experts' thread blocks from the first token's arrival on, as if tiles wasted
  nothing but what reading weights costs, and the way home of a token from the last row.
* The time each GPU's HBM needs for the weights of its experts that have tokens. Whatever L2 has room for, each matrix
  is read once, one after the other, from the launch on; a row waits for the last, and a token goes home after it.
* The path of a single token, by the quickest kernels.

Left out is what depends on the schedule: acknowledgements that may still be on the wire when the last token is home,
notifications, evictions, the count exchange and barriers, gates and the order of tiles, and HBM traffic of activations,
which L2 may hold or which nobody may wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit

from dysharp_env.schedules.needs import (
    AWAY,
    NUM_COUNTS,
    OTHERS,
    OWN,
    RECEIVED,
    REQUESTS,
    SENT,
    STORED,
    STORES,
    TEAMS,
    combine_needs,
    dispatch_needs,
    weights,
)
from dysharp_env.simulator.costs import PS_PER_S, Bound, Costs
from dysharp_env.system import SystemSpec
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES, Primitive
from dysharp_env.workload import Workload
from dysharp_env.workload.demand import Demand
from dysharp_env.workload.layer import LayerSpec


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
        self._dispatch = np.array([weights(dispatch_needs(each, costs, acknowledged=True)) for each in dispatches])
        self._data = np.array([weights(dispatch_needs(each, costs, acknowledged=False)) for each in dispatches])
        self._combine = np.array([weights(combine_needs(each, costs)) for each in combines])
        self._team_gpus = costs.team_gpus if any(primitive.by_team for primitive in dispatches) else 0
        arrival_ps = min(_out_ps(each, costs, combines[0]) for each in dispatches)
        home_ps = min(_home_ps(each, costs, dispatches[0]) for each in combines)
        self._times = _Times(
            hop_ps=_hop_ps(costs),
            arrival_ps=arrival_ps,
            local_arrival_ps=min(costs.memory_ps, arrival_ps),
            rows_ps=min(costs.block_ps(1, 1, gpu) + costs.block_ps(2, 1, gpu) for gpu in (0, 1)),
            home_ps=home_ps,
            granule_tokens=costs.row_granularity,
            granule_ps=_of_row(costs, costs.granule_ps),
            half_granule_ps=_of_row(costs, [granule_ps // 2 for granule_ps in costs.granule_ps]),
            operand_ps=_of_row(costs, costs.operand_ps),
            tile_tokens=layer.tile_tokens,
            tile_ps=sum(costs.blocks) * costs.block_overhead_ps,
            blocks=sum(costs.blocks),
            slow_permille=costs.slow_permille,
            num_sms=system.gpu.num_sms,
            weight_bytes=sum(costs.weight_bytes),
            byte_ps=PS_PER_S / costs.hbm_bytes_per_s,
        )

    def of(self, workload: Workload) -> Bound:
        """Returns a time that no schedule of a workload of this layer can beat, and what it is made of."""
        links_ps, longest_ps, gemms_ps, hbm_ps = _bound(
            workload.demand,
            workload.topk_ids,
            workload.gpu_of_expert,
            self._team_gpus,
            workload.first_token,
            self._store_ps,
            self._request_ps,
            self._dispatch,
            self._data,
            self._combine,
            self._times,
            np.empty((NUM_COUNTS, workload.num_gpus), np.int64),
        )
        return Bound(self._launch_ps + max(links_ps, longest_ps, 1), links_ps, gemms_ps, hbm_ps)


class _Times(NamedTuple):
    """What compute and single tokens take, and what that is made of."""

    hop_ps: int
    arrival_ps: int  # of a token from another GPU
    local_arrival_ps: int
    rows_ps: int  # of a tile of one token in both GEMMs
    home_ps: int  # from the end of a row to the sum at another GPU
    granule_tokens: int
    granule_ps: int  # of SM time, both GEMMs
    half_granule_ps: int
    operand_ps: int  # of SM time of a tile that is bound by reading, beside that of half its granules
    tile_tokens: int
    tile_ps: int  # of SM time beside that of its granules
    blocks: int  # of a tile, both GEMMs
    slow_permille: int  # SM time on GPU 0 over that on others
    num_sms: int
    weight_bytes: int  # of an expert
    byte_ps: float  # of HBM


@njit(cache=True)
def _bound(
    demand: Demand,
    topk_ids: np.ndarray,
    gpu_of_expert: np.ndarray,
    team_gpus: int,
    first_token: np.ndarray,
    store_ps: np.ndarray,
    request_ps: np.ndarray,
    dispatch: np.ndarray,
    data: np.ndarray,
    combine: np.ndarray,
    times: _Times,
    counts: np.ndarray,
) -> tuple[int, int, int, int]:
    """Returns what links need, and what ``_compute`` returns; one call, because each costs microseconds."""
    _count(demand, first_token, store_ps, request_ps, counts)
    _count_teams(topk_ids, gpu_of_expert, team_gpus, first_token, counts)
    links_ps, staged_ps = _links(_needs(counts, dispatch), _needs(counts, data), _needs(counts, combine), times)
    longest_ps, gemms_ps, hbm_ps = _compute(demand, gpu_of_expert, times)
    return links_ps, max(staged_ps, longest_ps), gemms_ps, hbm_ps


@njit(cache=True)
def _count(
    demand: Demand, first_token: np.ndarray, store_ps: np.ndarray, request_ps: np.ndarray, counts: np.ndarray
) -> None:
    """Writes what primitives need of each GPU, (count, gpu)."""
    num_gpus = counts.shape[1]
    counts[:] = 0
    for gpu in range(num_gpus):
        counts[SENT, gpu] = demand.remote_pairs[gpu]
        counts[OWN, gpu] = first_token[gpu + 1] - first_token[gpu]
        counts[OTHERS, gpu] = first_token[num_gpus] - counts[OWN, gpu]
        for targets in range(1, len(store_ps)):
            pairs, tokens = demand.pair_targets[gpu, targets], demand.token_targets[gpu, targets]
            counts[RECEIVED, gpu] += pairs
            counts[AWAY, gpu] += tokens
            counts[STORES, gpu] += tokens * store_ps[targets]
            counts[REQUESTS, gpu] += tokens * request_ps[targets]
            counts[STORED, gpu] += pairs * store_ps[targets]


@njit(cache=True)
def _count_teams(
    topk_ids: np.ndarray, gpu_of_expert: np.ndarray, team_gpus: int, first_token: np.ndarray, counts: np.ndarray
) -> None:
    """Writes how many stores to teams the tokens of each GPU take: one for every group of GPUs with a remote target.

    Without ``team_gpus`` there are no teams.
    """
    num_gpus = counts.shape[1]
    if team_gpus >= num_gpus:
        counts[TEAMS] = counts[AWAY]
    elif team_gpus > 0:
        home = 0
        last_token = np.full((num_gpus - 1) // team_gpus + 1, -1)  # with a target in each group
        for token in range(len(topk_ids)):
            while token == first_token[home + 1]:
                home += 1
            for place in range(topk_ids.shape[1]):
                if topk_ids[token, place] < 0:
                    break
                gpu = gpu_of_expert[topk_ids[token, place]]
                if gpu != home and last_token[gpu // team_gpus] != token:
                    last_token[gpu // team_gpus] = token
                    counts[TEAMS, home] += 1


@njit(cache=True)
def _needs(counts: np.ndarray, weights_ps: np.ndarray) -> np.ndarray:
    """Returns what each primitive needs of links and reduction units, (primitive, kind, gpu) picoseconds."""
    needs_ps = np.zeros((weights_ps.shape[0], weights_ps.shape[1], counts.shape[1]), np.int64)
    for primitive in range(weights_ps.shape[0]):
        for kind in range(weights_ps.shape[1]):
            for count in range(len(counts)):
                if weights_ps[primitive, kind, count] != 0:
                    for gpu in range(counts.shape[1]):
                        needs_ps[primitive, kind, gpu] += weights_ps[primitive, kind, count] * counts[count, gpu]
    return needs_ps


@njit(cache=True)
def _links(dispatch: np.ndarray, data: np.ndarray, combine: np.ndarray, times: _Times) -> tuple[int, int]:
    """Returns the time that the busiest link or reduction unit needs under the best pair of primitives, with hops.

    With it comes the same where dispatch is before rows and combine behind them.
    """
    best_ps, best_staged_ps = -1, -1
    # An uplink's last byte still has two hops to go, a downlink's first had one and its last has one.
    hops_ps = 2 * times.hop_ps
    for first in range(len(dispatch)):
        for second in range(len(combine)):
            busiest_ps, staged_ps = 0, 0
            for kind in range(dispatch.shape[1]):
                for gpu in range(dispatch.shape[2]):
                    out_ps, home_ps = data[first, kind, gpu], combine[second, kind, gpu]
                    busiest_ps = max(busiest_ps, dispatch[first, kind, gpu] + home_ps)
                    if out_ps > 0:
                        staged_ps = max(staged_ps, out_ps + hops_ps + times.rows_ps + times.home_ps)
                    if home_ps > 0:
                        staged_ps = max(staged_ps, times.local_arrival_ps + times.rows_ps + home_ps + hops_ps)
            if best_ps < 0 or busiest_ps < best_ps:
                best_ps = busiest_ps
            staged_ps = max(staged_ps, busiest_ps)
            if best_staged_ps < 0 or staged_ps < best_staged_ps:
                best_staged_ps = staged_ps
    return best_ps + hops_ps if best_ps > 0 else 0, best_staged_ps


@njit(cache=True)
def _compute(demand: Demand, gpu_of_expert: np.ndarray, times: _Times) -> tuple[int, int, int]:
    """Returns the time the busiest GPU needs for its experts, or a single token for its way to one and back.

    A GPU's time is from the first token there to the last one home. With it comes what the SMs of the busiest GPU alone
    need, and what the HBM of the busiest.
    """
    num_gpus = len(demand.local_pairs)
    sm_ps, experts, slots = np.zeros(num_gpus, np.int64), np.zeros(num_gpus, np.int64), 0
    for expert in range(len(gpu_of_expert)):
        gpu, tokens = gpu_of_expert[expert], demand.expert_tokens[expert]
        granules, tiles = -(-tokens // times.granule_tokens), -(-tokens // times.tile_tokens)
        # Every tile takes the longer of two times, hence all tiles together no less than the longer of the sums.
        reading_ps = tiles * times.operand_ps + granules * times.half_granule_ps
        sm_ps[gpu] += max(granules * times.granule_ps, reading_ps) + tiles * times.tile_ps
        experts[gpu] += tokens > 0
        slots += tokens * (gpu == 0)
    # Each thread block's time is rounded down; no tile has less than a token.
    sm_ps[0] = max(sm_ps[0] * times.slow_permille // 1000 - slots * times.blocks, 0)
    one_token_ps = times.arrival_ps + times.rows_ps + times.home_ps
    longest_ps = one_token_ps if demand.remote_pairs.any() else 0
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
            tail_ps = 0 if is_local else times.home_ps
            # Weights need not wait for the first token; thread blocks do.
            longest_ps = max(longest_ps, max(head_ps + sm_ps[gpu] // times.num_sms, hbm_ps) + tail_ps)
    return longest_ps, most_sms_ps, most_hbm_ps


def _of_row(costs: Costs, block_ps: Sequence[int]) -> int:
    """Returns what all thread blocks of a row in both GEMMs take, each so long."""
    return sum(blocks * ps for blocks, ps in zip(costs.blocks, block_ps, strict=True))


def _hop_ps(costs: Costs) -> int:
    """Returns a hop in whole quanta, to which deliveries are rounded down."""
    return costs.hop_ps // costs.quantum_ps * costs.quantum_ps


def _families(primitive: Primitive, costs: Costs) -> list[str]:
    """Returns the families that may issue a primitive; the usual one where a GPU has none."""
    if primitive.in_switch or not costs.families.specs:
        return [primitive.usual_family]
    return [name for name in costs.families.specs if name != "multimem"]


def _out_ps(primitive: Primitive, costs: Costs, combine: Primitive) -> int:
    """Returns how soon a token can be at an expert GPU, by whichever kernels issue a dispatch primitive."""
    return min(
        _way_ps(costs.under(primitive, combine, (family, "")), primitive, True)
        for family in _families(primitive, costs)
    )


def _home_ps(primitive: Primitive, costs: Costs, dispatch: Primitive) -> int:
    """Returns how soon a sum can be home, by whichever kernels issue a combine primitive."""
    return min(
        _way_ps(costs.under(dispatch, primitive, ("", family)), primitive, False)
        for family in _families(primitive, costs)
    )


def _way_ps(costs: Costs, primitive: Primitive, is_dispatch: bool) -> int:
    """Returns how long a vector is at hand and on its way at least, through an idle network, at either resolution."""
    sm, num_bytes = (
        (costs.dispatch_sm, costs.dispatch_bytes) if is_dispatch else (costs.combine_sm, costs.combine_bytes)
    )
    packet = costs.dispatch_packet if is_dispatch else costs.combine_packet
    named = int(primitive.names_targets)
    way_ps = costs.wire_ps(packet.data_flits(num_bytes, named if is_dispatch else 0))
    if is_dispatch and primitive.names_targets:
        # A first look into the AL TLB misses; packets behind the first pass it meanwhile.
        way_ps = max(way_ps, costs.memory_ps)
    if primitive.reads:
        way_ps += costs.wire_ps(packet.ask_flits(num_bytes, named)) + 2 * _hop_ps(costs) + costs.memory_ps
    if not is_dispatch and primitive.in_switch:
        way_ps += costs.cycle_ps
    # Only the first of a token's vectors bears the work on the token itself, so all do where there is one of them.
    is_only = primitive.in_switch and not primitive.by_team and (is_dispatch or primitive.reads)
    return sm.delay_ps(sm.token_ps * is_only) + way_ps + 2 * _hop_ps(costs)
