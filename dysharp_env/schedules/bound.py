"""A lower bound on the makespan of any schedule of one workload on one system.

It is the largest of: the time each uplink, downlink and reduction unit needs for what must cross it under the best pair
of primitives the hardware has; the time each GPU's SMs and HBM need for its experts; and the path of a single token.
Each has the unavoidable head (a kernel launch, hops before the first byte) and tail (hops after the last) around it.

It is conservative where an exact account would depend on the schedule: acknowledgements that may still be on the wire
when the last token is home, notifications, evictions, the count exchange and barriers are left out, tiles are counted
as if they wasted nothing, and HBM is charged only for what a GEMM must wait for.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dysharp_env.simulator.costs import PS_PER_S, Costs
from dysharp_env.system import SystemSpec
from dysharp_env.workload import Workload


def lower_bound_ps(system: SystemSpec, workload: Workload, costs: Costs) -> int:
    """Returns a time that no schedule of ``workload`` on ``system`` can beat, in picoseconds."""
    demand = _Demand(workload, costs)
    dispatches = [_dispatch_ps(demand, primitive) for primitive in system.switch.dispatch_primitives]
    combines = [_combine_ps(demand, primitive) for primitive in system.switch.combine_primitives]
    links = min(_communication_ps(costs, dispatch, combine) for dispatch in dispatches for combine in combines)
    compute = _compute_ps(demand, system.gpu.num_sms)
    return costs.launch_ps + max(links, compute, _one_token_ps(demand), 1)


class _Demand:
    """What a workload asks of every GPU: remote (token, GPU) pairs, targets, and expert loads."""

    def __init__(self, workload: Workload, costs: Costs):
        self.workload, self.costs = workload, costs
        num_gpus, tokens_per_gpu = workload.num_gpus, workload.tokens_per_gpu
        self.num_gpus = num_gpus
        num_tokens = num_gpus * tokens_per_gpu
        ids = workload.topk_ids.astype(np.int64)
        gpus = workload.gpu_of_expert.astype(np.int64)[ids]
        keys = (np.arange(num_tokens)[:, None] * num_gpus + gpus).reshape(-1)
        pair_keys, self.targets = np.unique(keys, return_counts=True)
        token, gpu = pair_keys // num_gpus, pair_keys % num_gpus
        home = token // tokens_per_gpu
        remote = gpu != home
        self.is_local_receiver = np.zeros(num_gpus, bool)
        self.is_local_receiver[gpu[~remote]] = True
        # Remote pairs: home GPU, expert GPU, experts there.
        self.home, self.gpu, self.targets = home[remote], gpu[remote], self.targets[remote]
        # Tokens with at least one remote expert: home GPU, remote experts.
        targets_of_token = np.bincount(token[remote], weights=self.targets, minlength=num_tokens).astype(np.int64)
        sent = np.flatnonzero(targets_of_token)
        self.sent_home, self.sent_targets = sent // tokens_per_gpu, targets_of_token[sent]
        self.own_tokens = tokens_per_gpu
        self.expert_tokens = np.bincount(ids.reshape(-1), minlength=len(workload.gpu_of_expert))
        self.gpu_of_expert = workload.gpu_of_expert

    def per_gpu(self, gpu: np.ndarray, ps: np.ndarray | int) -> np.ndarray:
        """Returns the sum of times by GPU, int64."""
        total = np.zeros(self.num_gpus, np.int64)
        np.add.at(total, gpu, ps)
        return total

    def wire_ps(self, flits_of: Callable[[int], int], targets: np.ndarray) -> np.ndarray:
        """Returns the link time of segments that name so many target experts, rounded as ``Costs.wire_ps`` rounds."""
        return np.array([self.costs.wire_ps(flits_of(count)) for count in range(targets.max(initial=0) + 1)])[targets]


def _dispatch_ps(demand: _Demand, primitive: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns (gpu,) least uplink and downlink times of dispatch; acks count where data must follow them."""
    costs = demand.costs
    plain_ps = costs.wire_ps(costs.dispatch_flits())
    if primitive == "pull":
        ask_ps = costs.wire_ps(costs.packet.ask_flits(costs.dispatch_bytes))
        up = demand.per_gpu(demand.home, plain_ps) + demand.per_gpu(demand.gpu, ask_ps)
        return up, demand.per_gpu(demand.gpu, plain_ps) + demand.per_gpu(demand.home, ask_ps)
    up = demand.per_gpu(demand.gpu, costs.wire_ps(costs.packet.acknowledge_flits(costs.dispatch_bytes)))
    if primitive == "broadcast":
        others = demand.own_tokens * (demand.num_gpus - 1)
        return up + demand.own_tokens * plain_ps, np.full(demand.num_gpus, others * plain_ps)
    if primitive == "unicast":
        return up + demand.per_gpu(demand.home, plain_ps), demand.per_gpu(demand.gpu, plain_ps)
    up += demand.per_gpu(demand.sent_home, demand.wire_ps(costs.dispatch_flits, demand.sent_targets))
    return up, demand.per_gpu(demand.gpu, demand.wire_ps(costs.dispatch_flits, demand.targets))


def _combine_ps(demand: _Demand, primitive: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (gpu,) least uplink, downlink and reduction-unit times of combine."""
    costs = demand.costs
    data_ps = costs.wire_ps(costs.combine_flits())
    reduce_ps = costs.reduce_ps(costs.combine_flits())
    nothing = np.zeros(demand.num_gpus, np.int64)
    if primitive == "reduce_scatter":
        others = demand.own_tokens * (demand.num_gpus - 1)
        ask_ps = costs.wire_ps(costs.request_flits())
        up = np.full(demand.num_gpus, others * data_ps + demand.own_tokens * ask_ps)
        down = np.full(demand.num_gpus, demand.own_tokens * data_ps + others * ask_ps)
        return up, down, np.full(demand.num_gpus, others * reduce_ps)
    up = demand.per_gpu(demand.gpu, data_ps)
    if primitive == "unicast":
        return up, demand.per_gpu(demand.home, data_ps), nothing
    if primitive == "pull":
        ask_ps = costs.wire_ps(costs.request_flits())
        up = up + demand.per_gpu(demand.home, ask_ps)
        return up, demand.per_gpu(demand.home, data_ps) + demand.per_gpu(demand.gpu, ask_ps), nothing
    down = demand.per_gpu(demand.sent_home, data_ps)
    reduction = demand.per_gpu(demand.home, reduce_ps)
    if primitive == "pull_reduce":
        up = up + demand.per_gpu(demand.sent_home, demand.wire_ps(costs.request_flits, demand.sent_targets))
        down = down + demand.per_gpu(demand.gpu, demand.wire_ps(costs.request_flits, demand.targets))
    return up, down, reduction


def _communication_ps(costs: Costs, dispatch: tuple[np.ndarray, ...], combine: tuple[np.ndarray, ...]) -> int:
    """Returns the time the busiest link or reduction unit needs under one pair of primitives, hops included."""
    (dispatch_up, dispatch_down), (combine_up, combine_down, reduction) = dispatch, combine
    busiest = max((dispatch_up + combine_up).max(), (dispatch_down + combine_down).max(), reduction.max())
    # An uplink's last byte still has two hops to go, a downlink's first had one and its last has one.
    return int(busiest) + 2 * costs.hop_ps if busiest > 0 else 0


def _compute_ps(demand: _Demand, num_sms: int) -> int:
    """Returns the time the busiest GPU needs for its experts, from the first token there to the last one home."""
    costs = demand.costs
    tokens = demand.expert_tokens
    granules = -(-tokens // costs.row_granularity)
    tiles = -(-tokens // demand.workload.layer.tile_tokens)
    granule_ps = costs.blocks[0] * costs.granule_ps[0] + costs.blocks[1] * costs.granule_ps[1]
    tile_ps = sum(costs.blocks) * costs.block_overhead_ps
    sm_ps = demand.per_gpu(demand.gpu_of_expert, granules * granule_ps + tiles * tile_ps) // num_sms
    read_bytes = tokens * (costs.token_bytes[0] + costs.token_bytes[2]) + (tokens > 0) * sum(costs.weight_bytes)
    hbm_ps = demand.per_gpu(demand.gpu_of_expert, read_bytes) * (PS_PER_S / costs.hbm_bytes_per_s) // 1
    # Each access rounds down by less than a picosecond; a token causes at most two, an expert two more.
    hbm_ps = hbm_ps.astype(np.int64) - demand.per_gpu(demand.gpu_of_expert, 2 * tokens + 2)
    work = np.maximum(sm_ps, hbm_ps)
    arrival = 2 * costs.hop_ps + costs.wire_ps(costs.dispatch_flits())
    head = np.where(demand.is_local_receiver, min(costs.memory_ps, arrival), arrival)
    tail = np.where(demand.is_local_receiver, 0, 2 * costs.hop_ps)
    return int(np.where(work > 0, head + work + tail, 0).max())


def _one_token_ps(demand: _Demand) -> int:
    """Returns the time of the shortest path of a token with a remote expert, or 0 if all experts are local."""
    costs = demand.costs
    if len(demand.home) == 0:
        return 0
    out = 2 * costs.hop_ps + costs.wire_ps(costs.dispatch_flits())
    home = 2 * costs.hop_ps + costs.wire_ps(costs.combine_flits())
    return out + costs.block_ps(1, 1) + costs.block_ps(2, 1) + home
