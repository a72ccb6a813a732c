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

Tokens may be on some GPUs only, and so may experts; those that no token chose need nothing. Weights of copies, where a
placement has any, come over the links before the layer is over: down to each copy, and up from where they were first
at least once, or as often as copies are made of that if no store is replicated by the switch. HBM need not read them
where they come to, where rows wait for the first matrix. What HBM reads to send them is left out: nobody waits for it.

Left out is what depends on the schedule: acknowledgements that may still be on the wire when the last token is home,
notifications, evictions, the count exchange and barriers, gates and the order of tiles, and HBM traffic of activations,
which L2 may hold or which nobody may wait for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dysharp_env.native import native
from dysharp_env.schedules.copy_bound import Asked, links_ps, shared_bound, without_copies
from dysharp_env.schedules.needs import (
    ADDED,
    AWAY,
    COPIED,
    COPIES,
    NUM_COUNTS,
    OTHERS,
    OWN,
    RECEIVED,
    REQUESTS,
    SENT,
    SOURCES,
    STORED,
    STORES,
    TEAMS,
    combine_needs,
    dispatch_needs,
    weight_needs,
    weights,
)
from dysharp_env.schedules.spec import COSTS_OF_PLANNING
from dysharp_env.schedules.times import CopyTimes, Times, least_times, work_ps
from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.faults import LATE_GPU
from dysharp_env.simulator.hardware import PS_PER_US
from dysharp_env.system import SystemSpec
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES, Primitive
from dysharp_env.workload import Workload
from dysharp_env.workload.demand import Demand
from dysharp_env.workload.layer import LayerSpec


class Wires(NamedTuple):
    """What is needed of a GPU's links and reduction unit: of those of GPU 0 and of others, in this order, or of one.

    Attributes:
        store_ps, request_ps: (experts named,) of a multicast store, and of an in-switch request.
        dispatch, data, combine: (primitive, link or reduction unit, count); the second without acknowledgements.
    """

    store_ps: np.ndarray
    request_ps: np.ndarray
    dispatch: np.ndarray
    data: np.ndarray
    combine: np.ndarray

    @classmethod
    def of(
        cls, costs: Costs, layer: LayerSpec, dispatches: Sequence[Primitive], combines: Sequence[Primitive]
    ) -> Wires:
        """Returns the needs by the costs of one GPU's links."""
        named, packet = range(layer.top_k + 1), costs.families.packet_of("multimem", in_switch=True)
        dispatch = [weights(dispatch_needs(each, costs, acknowledged=True)) for each in dispatches]
        return cls(
            costs.wire_ps(np.array([packet.data_flits(costs.dispatch_bytes, count) for count in named])),
            costs.wire_ps(np.array([packet.ask_flits(costs.combine_bytes, count) for count in named])),
            np.array(dispatch) + weights(weight_needs(dispatches, costs)),
            np.array([weights(dispatch_needs(each, costs, acknowledged=False)) for each in dispatches]),
            np.array([weights(combine_needs(each, costs)) for each in combines]),
        )


class LowerBound:
    """Bounds workloads of one layer on one system; times that they share are worked out once."""

    def __init__(self, system: SystemSpec, layer: LayerSpec, costs: Costs) -> None:
        """Takes the costs of the layer on the system at token resolution."""
        self._launch_ps = costs.launch_ps
        self._plan_ps = sum(int(system.overhead_us(cost) * PS_PER_US) for cost in COSTS_OF_PLANNING)
        dispatches = [DISPATCH_PRIMITIVES[name] for name in system.switch.dispatch_primitives]
        combines = [COMBINE_PRIMITIVES[name] for name in system.switch.combining(layer.combine_dtype)]
        first, others = (costs.on_links(gpu, system.living_link.planes) for gpu in (0, 1))
        self._least = Wires.of(others, layer, dispatches, combines)
        of_first = self._least if first == others else Wires.of(first, layer, dispatches, combines)
        self._wires = Wires(*map(np.stack, zip(of_first, self._least, strict=True)))
        self._team_gpus = costs.team_gpus if any(primitive.by_team for primitive in dispatches) else 0
        self._times = least_times(system, layer, costs, dispatches, combines)
        self._copy_times = CopyTimes.of(costs, dispatches)

    def of(self, workload: Workload, *, copies_allowed: bool = False) -> Bound:
        """Returns a time that no schedule of a workload of this layer can beat, and what it is made of.

        Args:
            workload: Routing and placement of the layer.
            copies_allowed: Whether schedules may also copy the weights of any experts to any GPUs, and share their
                tokens in any way; see copy_bound.py. Copies that the workload has already then do not matter. Takes
                milliseconds rather than microseconds.
        """
        if copies_allowed:
            return self._with_copies(workload)
        links_ps, longest_ps, gemms_ps, hbm_ps = _bound(
            workload.demand,
            workload.topk_ids,
            workload.gpu_of_expert,
            workload.placement.copied_from,
            workload.first_token,
            self._team_gpus,
            self._wires,
            self._times,
            np.empty((NUM_COUNTS, workload.num_gpus), np.int64),
        )
        return Bound(self._launch_ps + max(links_ps, longest_ps), links_ps, gemms_ps, hbm_ps)

    def _with_copies(self, workload: Workload) -> Bound:
        """Returns the bound of whoever copies nothing or, if that is less, of whoever copies something and pays for it.

        Replicas that are there before the layer may be chosen anew for nothing.
        """
        asked, pays_ps, least = Asked.of(workload), self._launch_ps, self._least
        least_ps = int(least.store_ps[1]), int(least.request_ps[1])
        wires_ps = links_ps(asked, least.dispatch, least.combine, least_ps, self._copy_times.wire_ps)
        if not asked.is_placed:
            shared = shared_bound(asked, wires_ps, self._times, self._copy_times, pays_ps, copies=False)
            return shared if workload.placement.num_copies else min(shared, self.of(workload))
        pays_ps += self._plan_ps
        shared = shared_bound(asked, wires_ps, self._times, self._copy_times, pays_ps, copies=True)
        return min(shared, self.of(without_copies(workload) if workload.placement.num_copies else workload))


@native
def _bound(
    demand: Demand,
    topk_ids: np.ndarray,
    gpu_of_expert: np.ndarray,
    copied_from: np.ndarray,
    first_token: np.ndarray,
    team_gpus: int,
    wires: Wires,
    times: Times,
    counts: np.ndarray,
) -> tuple[int, int, int, int]:
    """Returns what links need, and what ``_compute`` returns; one call, because each costs microseconds."""
    _count(demand, wires.store_ps, wires.request_ps, counts)
    _count_teams(topk_ids, gpu_of_expert, first_token, team_gpus, counts)
    _count_copies(gpu_of_expert, copied_from, counts)
    dispatch, data, combine = _needs(counts, wires.dispatch), _needs(counts, wires.data), _needs(counts, wires.combine)
    links_ps, staged_ps = _links(dispatch, data, combine, times)
    longest_ps, gemms_ps, hbm_ps = _compute(demand, gpu_of_expert, copied_from, times)
    return links_ps, max(staged_ps, longest_ps), gemms_ps, hbm_ps


@native
def _count(demand: Demand, store_ps: np.ndarray, request_ps: np.ndarray, counts: np.ndarray) -> None:
    """Writes what primitives need of each GPU, (count, gpu)."""
    num_gpus, served = counts.shape[1], demand.served.sum()
    counts[:] = 0
    for gpu in range(num_gpus):
        link = min(gpu, 1)
        counts[SENT, gpu] = demand.remote_pairs[gpu]
        counts[OWN, gpu] = demand.served[gpu]
        counts[OTHERS, gpu] = served - demand.served[gpu]
        counts[ADDED, gpu] = demand.served[gpu] * (num_gpus - 1)
        for targets in range(1, store_ps.shape[1]):
            pairs, tokens = demand.pair_targets[gpu, targets], demand.token_targets[gpu, targets]
            counts[RECEIVED, gpu] += pairs
            counts[AWAY, gpu] += tokens
            counts[STORES, gpu] += tokens * store_ps[link, targets]
            counts[REQUESTS, gpu] += tokens * request_ps[link, targets]
            counts[STORED, gpu] += pairs * store_ps[link, targets]


@native
def _count_teams(
    topk_ids: np.ndarray, gpu_of_expert: np.ndarray, first_token: np.ndarray, team_gpus: int, counts: np.ndarray
) -> None:
    """Writes how many stores to teams the tokens of each GPU take: one for every group of GPUs with a remote target.

    Without ``team_gpus`` there are no teams.
    """
    num_gpus = counts.shape[1]
    if team_gpus >= num_gpus:
        counts[TEAMS] = counts[AWAY]
    elif team_gpus > 0:
        last_token = np.full((num_gpus - 1) // team_gpus + 1, -1)  # with a target in each group
        for home in range(num_gpus):
            for token in range(first_token[home], first_token[home + 1]):
                for place in range(topk_ids.shape[1]):
                    if topk_ids[token, place] < 0:
                        break
                    gpu = gpu_of_expert[topk_ids[token, place]]
                    if gpu != home and last_token[gpu // team_gpus] != token:
                        last_token[gpu // team_gpus] = token
                        counts[TEAMS, home] += 1


@native
def _count_copies(gpu_of_expert: np.ndarray, copied_from: np.ndarray, counts: np.ndarray) -> None:
    """Writes which weights must move: those of all copies, from wherever a chain of them begins."""
    last = -1
    for copy in range(len(copied_from)):
        source = copied_from[copy]
        if source >= 0:
            counts[COPIES, gpu_of_expert[copy]] += 1
            counts[COPIED, gpu_of_expert[source]] += copied_from[source] < 0
            last = copy
    if last < 0:
        return
    is_source = np.zeros(len(copied_from), np.bool_)
    for copy in range(last + 1):
        if copied_from[copy] >= 0:
            is_source[copied_from[copy]] = copied_from[copied_from[copy]] < 0
    for expert in range(len(copied_from)):
        counts[SOURCES, gpu_of_expert[expert]] += is_source[expert]


@native
def _needs(counts: np.ndarray, weights_ps: np.ndarray) -> np.ndarray:
    """Returns what each primitive needs of links and reduction units, (primitive, kind, gpu) picoseconds."""
    _, primitives, kinds, _ = weights_ps.shape
    needs_ps = np.zeros((primitives, kinds, counts.shape[1]), np.int64)
    for primitive in range(primitives):
        for kind in range(kinds):
            for count in range(len(counts)):
                if weights_ps[1, primitive, kind, count] != 0 or weights_ps[0, primitive, kind, count] != 0:
                    for gpu in range(counts.shape[1]):
                        each_ps = weights_ps[min(gpu, 1), primitive, kind, count]
                        needs_ps[primitive, kind, gpu] += each_ps * counts[count, gpu]
    return needs_ps


@native
def _links(dispatch: np.ndarray, data: np.ndarray, combine: np.ndarray, times: Times) -> tuple[int, int]:
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


@native
def _compute(demand: Demand, gpu_of_expert: np.ndarray, copied_from: np.ndarray, times: Times) -> tuple[int, int, int]:
    """Returns the time the busiest GPU needs for its experts, or a single token for its way to one and back.

    A GPU's time is from the first token there to the last one home. With it comes what the SMs of the busiest GPU alone
    need, and what the HBM of the busiest.
    """
    num_gpus = len(demand.local_pairs)
    sm_ps, copied_ps, used, read = np.zeros((4, num_gpus), np.int64)
    slots = 0
    for expert in range(len(gpu_of_expert)):
        gpu, tokens = gpu_of_expert[expert], demand.expert_tokens[expert]
        expert_ps, is_copy = work_ps(tokens, times), copied_from[expert] >= 0
        sm_ps[gpu] += expert_ps
        copied_ps[gpu] += expert_ps * is_copy
        used[gpu] += tokens > 0
        read[gpu] += tokens > 0 and not is_copy
        slots += tokens * (gpu == 0)
    if times.slow_permille > 1000:
        # Each thread block's time is rounded down; no tile has less than a token.
        sm_ps[0] = max(sm_ps[0] * times.slow_permille // 1000 - slots * times.blocks, 0)
        copied_ps[0] = max(copied_ps[0] * times.slow_permille // 1000 - slots * times.blocks, 0)
    one_token_ps = times.arrival_ps + times.rows_ps + times.home_ps
    longest_ps = one_token_ps if demand.remote_pairs.any() else 0
    most_sms_ps, most_hbm_ps = 0, 0
    for gpu in range(num_gpus):
        # An expert's two matrices are an access each, which rounds down by less than a picosecond; so does the sum.
        accesses = 2 * read[gpu]
        hbm_ps = max(np.int64(np.floor(read[gpu] * times.weight_bytes * times.byte_ps)) - accesses - 1, 0)
        most_sms_ps = max(most_sms_ps, sm_ps[gpu] // times.num_sms)
        most_hbm_ps = max(most_hbm_ps, hbm_ps)
        if used[gpu] > 0:
            is_local = demand.local_pairs[gpu] > 0
            head_ps = times.local_arrival_ps if is_local else times.arrival_ps
            tail_ps = 0 if is_local else times.home_ps
            late_ps = times.late_ps if gpu == LATE_GPU else 0
            # Weights need not wait for the first token; thread blocks do, and those of copies for their weights.
            ends_ps = max(max(head_ps, late_ps) + sm_ps[gpu] // times.num_sms, late_ps + hbm_ps)
            if copied_ps[gpu] > 0:
                ends_ps = max(ends_ps, max(times.first_copy_ps, late_ps) + copied_ps[gpu] // times.num_sms)
            longest_ps = max(longest_ps, ends_ps + tail_ps)
    return longest_ps, most_sms_ps, most_hbm_ps
