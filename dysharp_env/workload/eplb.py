"""A placement with replicas from past loads: the greedy algorithm that DeepSeek published as EPLB.

Two steps (github deepseek-ai/EPLB, ``eplb.py``, without its groups and nodes: all GPUs here are one NVLink domain).
Slot after slot, the expert with the highest load per replica gets one more. Then replicas, heaviest first, go to the
least loaded GPU that has room. Loads of an expert are taken to spread evenly over its replicas.

One thing differs. EPLB may put two replicas of an expert on one GPU, where the second only takes room; here no GPU ever
holds an expert twice, for which a replica changes places with one placed before it where that is the only way.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload.placement import Placement


def eplb_placement(loads: np.ndarray, num_gpus: int, slots_per_gpu: int) -> Placement:
    """Returns the placement that fills ``slots_per_gpu`` slots on every GPU, for given loads of logical experts.

    The physical experts are numbered GPU by GPU, on each in the order of their logical ones; where there are as many
    slots as experts, every expert keeps its own number.

    Args:
        loads: (experts,) tokens that chose each logical expert, or anything proportional to that; all may be 0.
        num_gpus: GPUs.
        slots_per_gpu: Physical experts that each of them holds.

    Raises:
        ConfigError: A load is negative or no number, the slots are too few for all experts, or more than experts.
    """
    loads = np.asarray(loads, np.float64)
    if loads.ndim != 1 or not len(loads) or not (np.isfinite(loads) & (loads >= 0)).all():
        raise ConfigError(f"loads must be numbers from 0 up, one for each expert, not {loads.tolist()}")
    least = -(-len(loads) // max(num_gpus, 1))
    if num_gpus < 1 or not least <= slots_per_gpu <= len(loads):
        raise ConfigError(
            f"slots={slots_per_gpu} on each of {num_gpus} GPUs must be from {least} to {len(loads)} for {len(loads)}"
            " experts"
        )
    counts = replica_counts(loads, num_gpus * slots_per_gpu, num_gpus)
    held = _pack(loads / counts, counts, num_gpus, slots_per_gpu)
    gpus, logical = np.nonzero(held)
    if len(logical) == len(loads):
        return Placement(num_gpus, gpus[np.argsort(logical)])
    return Placement(num_gpus, gpus, logical)


def replica_counts(loads: np.ndarray, slots: int, most: int) -> np.ndarray:
    """Returns how many replicas each expert gets, (experts,) int64: at least one and at most ``most``.

    Of experts with equal loads per replica the one with fewest replicas is next, and of those the first.

    Args:
        loads: (experts,) tokens that chose each.
        slots: Replicas in all, at least as many as experts and at most ``most`` times as many.
        most: Replicas that an expert may have: GPUs.
    """
    counts = np.ones(len(loads), np.int64)
    for _ in range(slots - len(loads)):
        share = np.where(counts < most, loads / counts, -1.0)
        heaviest = np.flatnonzero(share == share.max())
        counts[heaviest[counts[heaviest].argmin()]] += 1
    return counts


def _pack(weights: np.ndarray, counts: np.ndarray, num_gpus: int, slots_per_gpu: int) -> np.ndarray:
    """Returns which GPU holds which expert, (gpu, expert) bool, for the load of one replica of each expert."""
    held = np.zeros((num_gpus, len(weights)), bool)
    filled, given = np.zeros(num_gpus, np.int64), np.zeros(num_gpus)
    for expert in np.argsort(-weights, kind="stable").tolist():
        for _ in range(counts[expert]):
            roomy = np.flatnonzero(filled < slots_per_gpu)
            without = roomy[~held[roomy, expert]]
            if without.size:
                # The least loaded, and of equals (experts that nobody chose weigh nothing) the emptiest.
                gpu = added_to = int(without[np.lexsort((filled[without], given[without]))[0]])
            else:
                # All GPUs with room have the expert: one of them takes in another, from a full GPU that has not.
                added_to = int(roomy[given[roomy].argmin()])
                gpu = _move_one(held, given, weights, expert, added_to)
            held[gpu, expert] = True
            filled[added_to] += 1
            given[gpu] += weights[expert]
    return held


def _move_one(held: np.ndarray, given: np.ndarray, weights: np.ndarray, expert: int, target: int) -> int:
    """Moves an expert to GPU ``target`` from one without ``expert``, and returns that GPU.

    There always is one: a full GPU holds more experts than one with room, hence one that the latter lacks. Of all such
    moves it is the one after which the more loaded of the two GPUs has least, ``expert`` in the place that is free.
    """
    candidates = held & ~held[target] & ~held[:, expert][:, None]  # (gpu, expert) what could move from where
    gpus, movable = np.nonzero(candidates)
    loaded = np.maximum(given[gpus] - weights[movable] + weights[expert], given[target] + weights[movable])
    best = int(loaded.argmin())
    gpu, moved = int(gpus[best]), int(movable[best])
    held[gpu, moved], held[target, moved] = False, True
    given[gpu] -= weights[moved]
    given[target] += weights[moved]
    return gpu
