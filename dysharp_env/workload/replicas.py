"""Which replica of an expert serves a token, where a placement holds experts more than once.

The choice is made before the layer begins and without asking other GPUs for more than they know anyway: the placement,
and for ``least_loaded`` what every token before chose. Copies that come while the layer runs are replicas as any other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from dysharp_env.config import ConfigError, require_choice
from dysharp_env.native import native
from dysharp_env.workload.choices import NO_EXPERT
from dysharp_env.workload.placement import Placement

ReplicaRule = Literal["nearest", "round_robin", "least_loaded"]


def serve(logical_ids: np.ndarray, first_token: np.ndarray, placement: Placement, how: str) -> np.ndarray:
    """Returns the physical experts that serve tokens, (token, k) int32, ``NO_EXPERT`` where the ids say so.

    Args:
        logical_ids: (token, k) logical experts that tokens chose.
        first_token: (gpu + 1,) the first token that lives on each GPU, and the end.
        placement: The physical experts; n replicas of an expert are counted from 0 in the order of their numbers.
        how: ``nearest``: the home GPU's replica if it has one, or else the one on the next GPU, counted round from
            home, that has. ``round_robin``: the k-th token of home GPU h that chose the expert takes replica
            (h + k) mod n. ``least_loaded``: token after token, and a token's experts in their order, the replica whose
            GPU was given the fewest (token, expert) so far, experts without a choice included; the first of equals.

    Raises:
        ConfigError: ``how`` is none of these, or an id is not that of a logical expert.
    """
    require_choice("replicas", how, _RULES)
    ids = np.ascontiguousarray(logical_ids, np.int32)
    wrong = (ids < NO_EXPERT) | (ids >= placement.num_logical)
    if wrong.any():
        raise ConfigError(f"ids hold expert {ids[wrong][0]}; the placement holds 0 to {placement.num_logical - 1}")
    if placement.is_plain:
        return ids.copy()
    return _RULES[how](ids, np.asarray(first_token, np.int64), placement)


def _serve_nearest(ids: np.ndarray, first_token: np.ndarray, placement: Placement) -> np.ndarray:
    num_gpus = placement.num_gpus
    nearest = np.empty((num_gpus, placement.num_logical), np.int32)
    for home in range(num_gpus):
        # Far ones first, so that near ones, and of those on one GPU the first, are written over them.
        order = np.lexsort((-np.arange(len(placement)), -((placement.gpu_of_expert - home) % num_gpus)))
        nearest[home, placement.logical_of_expert[order]] = order
    served = nearest[np.repeat(np.arange(num_gpus), np.diff(first_token))[:, None], ids]
    served[ids == NO_EXPERT] = NO_EXPERT
    return served


def _serve_in_turn(ids: np.ndarray, first_token: np.ndarray, placement: Placement) -> np.ndarray:
    served = ids.copy()
    _take_turns(served, first_token, *placement.replicas)
    return served


def _serve_least_loaded(ids: np.ndarray, first_token: np.ndarray, placement: Placement) -> np.ndarray:
    served = ids.copy()
    _level(served, *placement.replicas, placement.gpu_of_expert, np.zeros(placement.num_gpus, np.int64))
    return served


_RULES = {"nearest": _serve_nearest, "round_robin": _serve_in_turn, "least_loaded": _serve_least_loaded}


@native(error_model="numpy")
def _take_turns(ids: np.ndarray, first_token: np.ndarray, first: np.ndarray, replicas: np.ndarray) -> None:
    """Turns logical ids, (token, k), into physical ones in place: each home GPU's tokens take replicas in turn."""
    seen = np.empty(len(first) - 1, np.int64)  # tokens of the home GPU at hand that chose each expert
    for home in range(len(first_token) - 1):
        seen[:] = 0
        for token in range(first_token[home], first_token[home + 1]):
            for place in range(ids.shape[1]):
                expert = ids[token, place]
                if expert >= 0:
                    count = first[expert + 1] - first[expert]
                    ids[token, place] = replicas[first[expert] + (home + seen[expert]) % count]
                    seen[expert] += 1


@native(error_model="numpy")
def _level(
    ids: np.ndarray, first: np.ndarray, replicas: np.ndarray, gpu_of_expert: np.ndarray, given: np.ndarray
) -> None:
    """Turns logical ids, (token, k), into physical ones in place; ``given`` counts what each GPU has so far."""
    for token in range(ids.shape[0]):
        for place in range(ids.shape[1]):
            expert = ids[token, place]
            if expert < 0:
                continue
            best = replicas[first[expert]]
            for index in range(first[expert] + 1, first[expert + 1]):
                if given[gpu_of_expert[replicas[index]]] < given[gpu_of_expert[best]]:
                    best = replicas[index]
            ids[token, place] = best
            given[gpu_of_expert[best]] += 1
