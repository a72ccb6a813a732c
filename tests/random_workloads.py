"""Random small layers and workloads: as many tokens and experts on every GPU, or any shape that a workload may have."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.placement import NOWHERE, Placement, contiguous_placement
from dysharp_env.workload.workload import NO_EXPERT, Workload


class Draw:
    """Random options of one case, each from a stream of its own name: a new option leaves all others as they are."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def number(self, name: str) -> int:
        """Returns 64 random bits."""
        digest = hashlib.blake2b(f"{self.seed} {name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little")

    def stream(self, name: str) -> np.random.Generator:
        """Returns a stream for arrays."""
        return np.random.default_rng(self.number(name))

    def pick(self, name: str, *values: Any) -> Any:
        """Returns one of some values."""
        return values[self.number(name) % len(values)]

    def between(self, name: str, first: int, last: int) -> int:
        """Returns a whole number from ``first`` to ``last``."""
        return first + self.number(name) % (last - first + 1)

    def chance(self, name: str, probability: float) -> bool:
        """Returns whether something as likely as that is so."""
        return self.number(name) < probability * 2**64


def draw_num_gpus(draw: Draw, even: bool) -> int:
    """Returns how many GPUs there are; eight, for 60 experts, now and then."""
    return 8 if not even and draw.chance("sixty_experts", 0.1) else draw.between("num_gpus", 2, 6)


def draw_layer(draw: Draw, num_gpus: int, even: bool) -> LayerSpec:
    """Returns a layer; where it need not be even, its experts need not divide by the GPUs."""
    experts = num_gpus * draw.between("experts_per_gpu", 1, 4)
    if not even:
        experts = 60 if num_gpus == 8 else draw.between("experts", 1, 4 * num_gpus)
    return LayerSpec(
        name="random",
        hidden=draw.pick("hidden", 16, 64, 200, 2048),
        moe_ff=draw.pick("moe_ff", 32, 256, 1000),
        experts=experts,
        top_k=draw.between("top_k", 1, min(experts, 6)),
        ffn_matrices=draw.pick("ffn_matrices", 2, 3),
        dispatch_dtype=draw.pick("dispatch_dtype", "bf16", "fp8", "nvfp4"),
        combine_dtype=draw.pick("combine_dtype", "bf16", "bf16", "fp8"),
        compute_dtype=draw.pick("compute_dtype", "bf16", "fp8"),
        weight_dtype=draw.pick("weight_dtype", None, None, "mxfp4"),
        direction=draw.pick("direction", "forward", "backward"),
        weight_gradients=(deferred := draw.pick("weight_gradients", "fused", "deferred")),
        recompute=deferred == "deferred" and draw.chance("recompute", 0.5),
        shared_experts=draw.pick("shared_experts", 0, 1, 2),
        tile_tokens=draw.pick("tile_tokens", 1, 2, 4, 8, 128),
        source="test",
    )


def draw_workload(draw: Draw, layer: LayerSpec, num_gpus: int, even: bool) -> Workload:
    """Returns a workload of a layer: even, or with what ``draw_tokens``, ``draw_placement`` and ``drop`` make of it."""
    most = draw.pick("most_tokens_per_gpu", 3, 11, 24)
    tokens = np.full(num_gpus, draw.between("tokens_per_gpu", 1, most))
    placement = Placement(num_gpus, draw.stream("placement").permutation(np.arange(layer.experts) % num_gpus))
    if not even:
        tokens, placement = draw_tokens(draw, num_gpus, most), draw_placement(draw, layer.experts, num_gpus)
    # A skewed choice of experts leaves some GPUs idle and makes others the bottleneck.
    popularity = draw.stream("popularity").random(layer.experts) * draw.pick("skew", 0.0, 1.0)
    liking = popularity + draw.stream("routing").random((int(tokens.sum()), layer.experts))
    ids = np.argsort(-liking, axis=1)[:, : layer.top_k]
    if not even:
        dropped, bare = draw.pick("dropped_slots", 0.0, 0.1, 0.5), draw.pick("bare_tokens", 0.0, 0.2, 0.6)
        ids = drop(draw, choose_replicas(draw, ids, placement), dropped, bare)
    return with_copies(draw, Workload(layer, tokens, ids, placement, "random"))


def draw_tokens(draw: Draw, num_gpus: int, most: int) -> np.ndarray:
    """Returns (gpu,) tokens of each, some of them none."""
    tokens = draw.stream("tokens").integers(0, most + 1, num_gpus)
    tokens[draw.stream("idle").random(num_gpus) < draw.pick("idle_gpus", 0.0, 0.0, 0.5)] = 0
    if not tokens.any():
        tokens[draw.between("lone_gpu", 0, num_gpus - 1)] = 1
    return tokens


def draw_placement(draw: Draw, experts: int, num_gpus: int) -> Placement:
    """Returns where experts are: in shares that differ by one, or anywhere; some several times, and in any order."""
    rng = draw.stream("uneven_placement")
    gpus = {
        "contiguous": contiguous_placement(experts, num_gpus).gpu_of_expert,
        "shares": rng.permutation(np.arange(experts) % num_gpus),
        "anywhere": rng.integers(0, num_gpus, experts),
    }[draw.pick("placed", "contiguous", "shares", "anywhere")]
    replicas = draw.pick("replicas", 0, 0, draw.between("some_replicas", 1, 6))
    logical = np.append(np.arange(experts), rng.integers(0, experts, replicas))
    gpus = np.append(gpus, rng.integers(0, num_gpus, replicas))
    order = rng.permutation(len(gpus)) if draw.chance("shuffled", 0.5) else np.arange(len(gpus))
    return Placement(num_gpus, gpus[order], logical[order])


def choose_replicas(draw: Draw, logical_ids: np.ndarray, placement: Placement) -> np.ndarray:
    """Returns (token, k) physical experts of logical ones, any replica of each."""
    counts = np.bincount(placement.logical_of_expert)
    first = np.cumsum(counts) - counts
    which = (draw.stream("chosen_replicas").random(logical_ids.shape) * counts[logical_ids]).astype(np.int64)
    return np.argsort(placement.logical_of_expert, kind="stable")[first[logical_ids] + which]


def with_copies(draw: Draw, workload: Workload) -> Workload:
    """Returns a workload, some with copies made in the layer, also of copies, that take some of the tokens."""
    if not draw.chance("copies", 0.4):
        return workload
    rng, before = draw.stream("copies"), workload.placement
    gpus, logical = before.gpu_of_expert.tolist(), before.logical_of_expert.tolist()
    sources = before.copied_from.tolist()
    for _ in range(draw.between("num_copies", 1, 6)):
        source = int(rng.integers(len(gpus) if draw.chance("relays", 0.5) else len(before)))
        gpus.append((gpus[source] + int(rng.integers(1, before.num_gpus))) % before.num_gpus)
        logical.append(logical[source])
        sources.append(source)
    # Copies may have any numbers.
    number = rng.permutation(len(gpus)) if draw.chance("shuffled_copies", 0.5) else np.arange(len(gpus))
    order = np.argsort(number)
    from_where = np.append(number, NOWHERE)[np.array(sources)]
    placement = Placement(before.num_gpus, np.array(gpus)[order], np.array(logical)[order], from_where[order])
    ids = np.array(workload.topk_ids)
    for slot in np.ndindex(ids.shape):
        if ids[slot] != NO_EXPERT:
            same = np.flatnonzero(placement.logical_of_expert == before.logical_of_expert[ids[slot]])
            moves = rng.random() < draw.pick("copied_tokens", 0.2, 0.7)
            ids[slot] = rng.choice(same) if moves else number[ids[slot]]
    return workload.served_by(ids, placement)


def drop(draw: Draw, ids: np.ndarray, dropped: float, bare: float) -> np.ndarray:
    """Returns (token, k) ids without such shares of them, and of tokens that have none at all; at least one stays."""
    kept = draw.stream("dropped").random(ids.shape) >= dropped
    kept[draw.stream("bare").random(len(ids)) < bare] = False
    if not kept.any():
        kept[draw.between("lone_token", 0, len(ids) - 1), 0] = True
    order = np.argsort(~kept, axis=1, kind="stable")
    return np.take_along_axis(np.where(kept, ids, NO_EXPERT), order, axis=1)
