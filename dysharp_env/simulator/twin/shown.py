"""What the twin's decisions show: the features of candidates and the context, computed afresh from the objects."""

from __future__ import annotations

from collections.abc import Sequence

from dysharp_env.simulator.layout import BROADCAST, COMBINE, DECISION_KINDS, DISPATCH, MULTICAST
from dysharp_env.simulator.twin.fabric import Link
from dysharp_env.simulator.twin.gpu import Gpu
from dysharp_env.simulator.twin.parts import Candidate, Chunk, Pair, Row, Split, Unit


def features_of(gpu: Gpu, candidate: Candidate) -> dict[str, float]:
    """Returns the features of a candidate that are not 0, except its place in the list."""
    if isinstance(candidate, Chunk):
        return chunk_features(gpu, candidate)
    if isinstance(candidate, Row):
        return row_features(gpu, candidate)
    if isinstance(candidate, Unit):
        return unit_features(gpu, candidate)
    if isinstance(candidate, Split):
        return {
            "split_dispatch": candidate.dispatch_sms / gpu.twin.num_sms,
            "split_combine": candidate.combine_sms / gpu.twin.num_sms,
            "split_early": max(0.0, 1 - candidate.early_tokens / gpu.twin.workload.layer.tile_tokens),
        }
    return {"is_hold": 1.0}


def chunk_features(gpu: Gpu, chunk: Chunk) -> dict[str, float]:
    """Describes an unsent token chunk."""
    twin, count = gpu.twin, len(chunk.tokens)
    pairs = [pair for token in chunk.tokens for pair in gpu.in_turn(token)]
    experts = [twin.experts[number, pair.part] for pair in pairs for number in pair.experts]
    remote = [pair for pair in pairs if pair.is_remote and pair.experts]
    if twin.program.dispatch_primitive in (MULTICAST, BROADCAST):
        flits = sum(twin.costs.dispatch_flits(twin.store_targets(token)) for token in chunk.tokens)
    else:
        flits = len(remote) * twin.costs.dispatch_flits()
    tile_tokens = twin.workload.layer.tile_tokens
    return {
        "size": count / twin.program.chunk_tokens,
        "tile_fill": mean([expert.open_count / tile_tokens for expert in experts]),
        "expert_progress": mean([expert.arrived / expert.total for expert in experts]),
        "fan_out": min(1.0, len(remote) / (count * (twin.num_gpus - 1))),
        "backlog": twin.root(max((backlog_ps(twin.gpus[pair.gpu].downlinks) for pair in remote), default=0)),
        "cost": twin.root(twin.costs.spread_ps(flits)),
    }


def row_features(gpu: Gpu, row: Row) -> dict[str, float]:
    """Describes a ready row or an open tile."""
    twin, costs, expert, pairs = gpu.twin, gpu.twin.costs, row.tile.expert, row.tile.pairs
    if twin.program.pulls:
        finishes = sum(pair.token.experts_done == twin.workload.layer.top_k - 1 for pair in pairs)
    else:
        finishes = sum(pair.experts_done == len(pair.experts) - 1 for pair in pairs)
    is_resident = (expert.number, row.stage) in gpu.l2
    row_ps = costs.blocks[row.stage - 1] * costs.block_ps(row.stage, len(pairs), gpu.number) // gpu.gemm_sms
    fetch_ps = 0 if is_resident else costs.hbm_ps(costs.weight_bytes[row.stage - 1])
    waiting_ps = 0 if row.is_open else twin.now_ps - row.tile.ready_ps[row.stage - 1]
    return {
        "size": len(pairs) / twin.workload.layer.tile_tokens,
        "is_gemm2": float(row.stage == 2),
        "is_partial": float(row.is_open),
        "weights_in_l2": float(is_resident),
        "waiting": twin.root(waiting_ps),
        "expert_left": (expert.total - expert.arrived) / expert.total,
        "finishes": finishes / len(pairs),
        "backlog": twin.root(gpu.hbm_free_ps - twin.now_ps),
        "cost": twin.root(max(row_ps, fetch_ps)),
    }


def unit_features(gpu: Gpu, unit: Unit) -> dict[str, float]:
    """Describes a chunk's ready tokens, or this GPU's ready partial sums of a chunk."""
    twin = gpu.twin
    backlogs_ps = []
    for item in unit.items:
        if isinstance(item, Pair):
            backlogs_ps.append(backlog_ps(twin.gpus[unit.home].downlinks))
        else:
            sources = [pair for pair in item.pairs if pair.is_remote and pair.experts]
            backlogs_ps.extend(backlog_ps(twin.gpus[pair.gpu].uplinks) for pair in sources)
    return {
        "size": len(unit.items) / twin.program.chunk_tokens,
        "waiting": twin.root(twin.now_ps - unit.ready_ps),
        "fan_out": min(1.0, len(backlogs_ps) / (len(unit.items) * (twin.num_gpus - 1))),
        "backlog": twin.root(max(backlogs_ps, default=0)),
        "cost": twin.root(twin.costs.spread_ps(len(unit.items) * twin.costs.combine_flits())),
    }


def context_of(gpu: Gpu, kind: int) -> dict[str, float]:
    """Returns what a decision shows of this GPU and of the layer."""
    twin, of_gpu, of_all = gpu.twin, gpu.twin.workload.tokens_per_gpu, len(gpu.twin.tokens)
    costs, layer = twin.costs, twin.workload.layer
    experts_per_gpu = layer.experts // twin.num_gpus
    matrix_bytes = experts_per_gpu * sum(costs.matrix_bytes)
    ready = gpu.items - gpu.items_waiting if gpu.items else 0
    return {
        f"is_{DECISION_KINDS[kind]}": 1.0,
        "elapsed": min(1.0, twin.now_ps / (4 * twin.scale_ps)),
        "sent": gpu.tokens_sent / gpu.tokens_to_send,
        "received": fraction(gpu.slots - sum(gpu.arrivals_left), gpu.slots),
        "gemm_done": fraction(2 * gpu.slots - sum(map(sum, gpu.slots_left)), 2 * gpu.slots),
        "combined": gpu.combined / of_gpu,
        "uplink_backlog": twin.root(backlog_ps(gpu.uplinks)),
        "downlink_backlog": twin.root(backlog_ps(gpu.downlinks)),
        "hbm_backlog": twin.root(gpu.hbm_free_ps - twin.now_ps),
        "free_sms": gpu.free_sms / max(gpu.gemm_sms, 1),
        "dispatch_in_flight": fraction(gpu.dispatch_in_flight, gpu.sizes[DISPATCH] * twin.dispatch_window.slots),
        "combine_in_flight": fraction(gpu.combine_in_flight, gpu.sizes[COMBINE] * twin.combine_window.slots),
        "all_combined": (of_all - twin.tokens_left) / of_all,
        "link_share": fraction(twin.bound.links_ps, twin.scale_ps),
        "gemm_share": fraction(twin.bound.gemms_ps, twin.scale_ps),
        "hbm_share": fraction(twin.bound.hbm_ps, twin.scale_ps),
        "tokens_per_expert": gpu.slots / (gpu.slots + experts_per_gpu * layer.tile_tokens),
        "l2_room": costs.l2_bytes / (costs.l2_bytes + matrix_bytes),
        "ready": ready / max(gpu.items, 1),
        "any_ready": float(ready > 0),
        "all_sent": float(gpu.tokens_sent == gpu.tokens_to_send),
    }


def backlog_ps(links: Sequence[Link]) -> int:
    """Returns how long what is queued and being sent keeps the busiest of a GPU's links busy."""
    return max(link.backlog_ps() for link in links)


def mean(values: list[float]) -> float:
    """Returns the mean, summed in order and rounded at each step as the engine does; ``sum`` may compensate."""
    total = 0.0
    for value in values:
        total += value
    return total / len(values) if values else 0.0


def fraction(part: int, whole: int) -> float:
    """Returns part over whole cut to 1; nothing to do counts as done."""
    return min(1.0, part / whole) if whole else 1.0
