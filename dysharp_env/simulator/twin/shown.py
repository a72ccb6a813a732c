"""What the twin's decisions show, computed afresh from the objects, and what a network makes of it.

Every kind of candidate has the values that its function names, and 0 for all other features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES
from dysharp_env.simulator.twin.gpu import Gpu
from dysharp_env.simulator.twin.links import Link
from dysharp_env.simulator.twin.parts import Candidate, Chunk, Expert, Hold, Matrix, Pair, Row, Split, Token, Unit
from dysharp_env.simulator.twin.world import COMBINING, GEMM1, GEMM2, World


class Shown:
    """What the decisions of a world's GPUs show."""

    def __init__(self, world: World, gpus: list[Gpu]) -> None:
        self.world, self.gpus = world, gpus

    def features(self, gpu: Gpu, candidates: list[Candidate]) -> np.ndarray:
        """Returns the features of a decision's candidates, (max_candidates, feature) float32; empty rows are 0."""
        features = np.zeros((self.world.program.max_candidates, len(FEATURES)), np.float32)
        for place, candidate in enumerate(candidates):
            values = self.values_of(gpu, candidate, place)
            features[place] = [values.get(name, 0.0) for name in FEATURES]
        return features

    def context(self, gpu: Gpu, kind: int) -> np.ndarray:
        """Returns what a decision shows of its GPU and of the layer, (context,) float32."""
        values = self.context_of(gpu, kind)
        return np.array([values[name] for name in CONTEXT], np.float32)

    def values_of(self, gpu: Gpu, candidate: Candidate, place: int) -> dict[str, float]:
        """Returns the features of a candidate in its place in the list."""
        order = {"order": place / self.world.program.max_candidates}
        match candidate:
            case Hold():
                return {"is_hold": 1.0}
            case Chunk():
                return order | self._of_chunk(gpu, candidate)
            case Matrix():
                return order | self._of_matrix(gpu, candidate)
            case Row():
                return order | self._of_row(gpu, candidate)
            case Unit():
                return order | self._of_unit(candidate)
            case Split():
                return order | self._of_split(candidate)
        return order

    def _of_split(self, split: Split) -> dict[str, float]:
        return {
            "split_dispatch": split.dispatch_sms / self.world.num_sms,
            "split_combine": split.combine_sms / self.world.num_sms,
            "split_early": max(0.0, 1 - split.early_tokens / self.world.workload.layer.tile_tokens),
        }

    def _of_chunk(self, gpu: Gpu, chunk: Chunk) -> dict[str, float]:
        world, costs, count = self.world, self.world.costs, len(chunk.tokens)
        pairs = [pair for token in chunk.tokens for pair in gpu.dispatch.in_turn(token)]
        experts = [self.gpus[pair.gpu].gemm.experts[number, pair.part] for pair in pairs for number in pair.experts]
        remote = [pair for pair in pairs if pair.is_remote and pair.experts]
        if world.dispatch.in_switch:
            flits = sum(self._store_flits(token) for token in chunk.tokens)
        else:
            flits = len(remote) * costs.dispatch_flits()
        tile_tokens = world.workload.layer.tile_tokens
        return {
            "size": count / world.program.chunk_tokens,
            "tile_fill": mean([expert.open_count / tile_tokens for expert in experts]),
            "expert_progress": mean([expert.arrived / expert.total for expert in experts]) * world.program.counted,
            "fan_out": min(1.0, len(remote) / (count * (world.num_gpus - 1))),
            "backlog": self._root(max([backlog_ps(self.gpus[pair.gpu].downlinks) for pair in remote], default=0)),
            "cost": self._root(costs.spread_ps(flits)),
        }

    def _store_flits(self, token: Token) -> int:
        """Returns the flits of all stores of a token; one without targets is shown as one store too."""
        world, targets = self.world, {pair.gpu for pair in token.pairs if pair.is_sent}
        groups = {gpu // world.costs.team_gpus for gpu in targets} if world.dispatch.by_team else {0}
        return max(len(groups), 1) * world.costs.dispatch_flits(
            token.remote_experts if world.dispatch.names_targets else 0
        )

    def _of_matrix(self, gpu: Gpu, matrix: Matrix) -> dict[str, float]:
        memory, prefetch, stage = gpu.memory, gpu.prefetch, matrix.stage
        total, arrived = sum(part.total for part in matrix.parts), sum(part.arrived for part in matrix.parts)
        sources, sources_left = sum(gpu.progress.sources), sum(gpu.progress.sources_left)
        left = sources_left / sources if sources_left else 1 - fraction(arrived, total)
        return {
            "size": min(1.0, prefetch.known_tokens(matrix) / self.world.workload.layer.tile_tokens),
            "is_gemm2": float(stage == GEMM2),
            "expert_left": left if gpu.progress.has_begun else 1.0,
            "cost": self._root(self.world.costs.hbm_ps(memory.weights_to_read(matrix.expert, stage))),
            "wanted": float(any(part.rows[stage - 1] for part in matrix.parts)),
            "drops": prefetch.drops_bytes(matrix) / memory.missing_bytes(matrix.expert, stage),
        }

    def _of_row(self, gpu: Gpu, row: Row) -> dict[str, float]:
        world, costs, stage, expert, pairs = self.world, self.world.costs, row.stage, row.tile.expert, row.tile.pairs
        now_ps, memory = world.clock.now_ps, gpu.memory
        if world.combine.reads:
            finishes = sum(pair.token.experts_done == pair.token.num_experts - 1 for pair in pairs)
        else:
            finishes = sum(pair.experts_done == len(pair.experts) - 1 for pair in pairs)
        reads = memory.weights_to_read(expert.number, stage)
        block_ps = costs.block_ps(stage, len(pairs), gpu.number)
        return {
            "size": len(pairs) / world.workload.layer.tile_tokens,
            "is_gemm2": float(stage == 2),
            "is_partial": float(row.is_open),
            "weights_in_l2": float(reads == 0),
            "waiting": self._root(0 if row.is_open else now_ps - row.tile.ready_ps[stage - 1]),
            "expert_left": self._left(gpu, expert),
            "finishes": finishes / len(pairs),
            "backlog": self._root(memory.hbm_free_ps - now_ps),
            "cost": self._root(max(costs.blocks[stage - 1] * block_ps // gpu.gemm_sms, costs.hbm_ps(reads))),
        }

    def _left(self, gpu: Gpu, expert: Expert) -> float:
        """Returns the share of an expert's tokens that is to arrive; while that is unknown, of sources that go on."""
        sources_left = gpu.progress.sources_left[expert.part]
        if sources_left > 0:
            return sources_left / gpu.progress.sources[expert.part]
        return (expert.total - expert.arrived) / expert.total

    def _of_unit(self, unit: Unit) -> dict[str, float]:
        world, count = self.world, len(unit.items)
        workload, per_token = world.workload, 1
        if world.program.copies_per_expert and not world.combine.reads:
            per_token = min(workload.layer.top_k, workload.most_experts)
        backlogs_ps = []
        for item in unit.items:
            if isinstance(item, Pair):
                backlogs_ps.append(backlog_ps(self.gpus[unit.home].downlinks))
            else:
                sources = [pair for pair in item.pairs if pair.is_remote and pair.experts]
                backlogs_ps.extend(backlog_ps(self.gpus[pair.gpu].uplinks) for pair in sources)
        return {
            "size": count / (world.program.chunk_tokens * per_token),
            "waiting": self._root(world.clock.now_ps - unit.ready_ps),
            "fan_out": min(1.0, len(backlogs_ps) / (count * (world.num_gpus - 1))),
            "backlog": self._root(max(backlogs_ps, default=0)),
            "cost": self._root(world.costs.spread_ps(count * world.costs.combine_flits())),
        }

    def context_of(self, gpu: Gpu, kind: int) -> dict[str, float]:
        """Returns the context of a decision."""
        world, costs, bound, workload = self.world, self.world.costs, self.world.bound, self.world.workload
        progress, all_slots, dispatch, combine = gpu.progress, gpu.gemm.slots, gpu.dispatch, gpu.combine
        # Until all sources are done what has arrived counts, and an even share is expected.
        left, is_told, sources = progress.left, progress.is_told and progress.has_begun, sum(progress.sources)
        arrived = all_slots - sum(left[GEMM1])
        slots = all_slots if is_told else workload.num_tokens * workload.layer.top_k // world.num_gpus
        told = sources - sum(progress.sources_left)
        received = fraction(arrived, slots) if is_told else fraction(told, max(sources, 1))
        done = 2 * all_slots - sum(left[GEMM2]) - sum(left[COMBINING])
        ready = combine.items - combine.items_waiting
        experts = int(workload.placement.held[gpu.number])
        return {
            **{f"is_{name}": float(kind == other) for other, name in enumerate(DECISION_KINDS)},
            "elapsed": min(1.0, world.clock.now_ps / (4 * world.scale_ps)),
            "sent": fraction(dispatch.tokens_sent, dispatch.tokens_to_send),
            "received": received,
            "gemm_done": fraction(done, 2 * (slots if is_told else arrived)),
            "combined": fraction(combine.combined, int(workload.tokens_of_gpu[gpu.number])),
            "uplink_backlog": self._root(backlog_ps(gpu.uplinks)),
            "downlink_backlog": self._root(backlog_ps(gpu.downlinks)),
            "hbm_backlog": self._root(gpu.memory.hbm_free_ps - world.clock.now_ps),
            "free_sms": gpu.free_sms / max(gpu.gemm_sms, 1),
            "dispatch_in_flight": fraction(dispatch.in_flight, dispatch.size * dispatch.work.slots),
            "combine_in_flight": fraction(combine.in_flight, combine.size * combine.work.slots),
            "all_combined": (workload.num_tokens - world.tokens_left) / workload.num_tokens,
            "link_share": fraction(bound.links_ps, world.scale_ps),
            "gemm_share": fraction(bound.gemms_ps, world.scale_ps),
            "hbm_share": fraction(bound.hbm_ps, world.scale_ps),
            "tokens_per_expert": slots / (slots + experts * workload.layer.tile_tokens) if experts else 0.0,
            "l2_room": costs.l2_bytes / (costs.l2_bytes + experts * sum(costs.matrix_bytes)),
            "ready": ready / max(combine.items, 1) if is_told or world.combine.reads else 0.0,
            "any_ready": float(ready > 0),
            "all_sent": float(dispatch.tokens_sent == dispatch.tokens_to_send),
            "imbalance": workload.imbalance_ppm / 1e6 if world.program.counted and gpu.progress.has_begun else 0.0,
        }

    def _root(self, ps: int) -> float:
        """Returns the square root of a time over the lower bound, cut to [0, 1]."""
        return min(1.0, math.sqrt(max(ps, 0) / self.world.scale_ps))


def backlog_ps(links: Sequence[Link]) -> int:
    """Returns how long what is queued and being sent keeps the busiest link busy."""
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


def scores_of(network: Network, features: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Returns the scores of a decision's candidates, (candidate,) float32; no row of their features is empty.

    The referee of the engine's arithmetic, all of it float32. A sum starts from its bias and takes one product after
    the other, in the order of the inputs and each rounded: no sum in another order, nor a fused product, has the same
    bits.
    """
    of_context = _add(0, context[None], network.context)
    hidden = np.maximum(_add(network.row_bias + of_context, features, network.row), 0)
    embedded = np.maximum(_add(network.embed_bias, hidden, network.embed), 0)
    total = np.zeros(network.width, np.float32)
    for of_candidate in embedded:
        total = total + of_candidate
    pool = np.concatenate([total / np.float32(len(embedded)), embedded.max(axis=0)])
    of_pool = _add(network.score_bias, pool[None], network.score_pool)
    hidden = np.maximum(_add(of_pool, embedded, network.score_row), 0)
    by_network = _add(0, hidden, network.score[:, None])
    # The rule's weights depend on the context; what it says is added feature by feature.
    rule = _add(0, context[None], network.linear)[0]
    return _add(by_network, features, rule[:, None])[:, 0]


def _add(start: np.ndarray | int, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns start + inputs . weights, (candidate, out), each product added in the order of the inputs."""
    total = np.zeros((len(inputs), weights.shape[1]), np.float32) + start
    for i in range(len(weights)):
        total = total + inputs[:, i : i + 1] * weights[i]
    return total
