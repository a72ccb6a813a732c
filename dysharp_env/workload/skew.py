"""What balance is worth, from loads alone: how much more the busiest GPU computes than the mean.

Numbers count (token, expert)s, which is what GEMMs work on: with GPUs in perfect balance their rows would take so many
times less. What else bounds a layer, and that small groups of tokens fill tiles badly, is left out. Loads of an expert
with replicas are taken to spread evenly over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dysharp_env.workload.placement import Placement, contiguous_placement


@dataclass(frozen=True)
class Skew:
    """(Token, expert)s of the busiest GPU over the mean of all, by layer.

    Attributes:
        num_gpus: GPUs.
        of_layer: By the model's number of the layer.
        lower_quartile: Of the layers, as the other two.
        median: See there.
        upper_quartile: See there.
        worst: Of the worst layer.
        worst_layer: Its number.
    """

    num_gpus: int
    of_layer: dict[int, float]
    lower_quartile: float
    median: float
    upper_quartile: float
    worst: float
    worst_layer: int

    @classmethod
    def of(cls, loads: Mapping[int, np.ndarray], placements: Mapping[int, Placement]) -> Skew:
        """Returns the skew of layers.

        Args:
            loads: (expert,) tokens that chose each expert, by layer.
            placements: Where experts are, by layer.
        """
        of_layer = {layer: skew_of(each, placements[layer]) for layer, each in loads.items()}
        lower, median, upper = np.percentile([*of_layer.values()], (25, 50, 75)).tolist()
        worst_layer = max(of_layer, key=lambda layer: of_layer[layer])
        num_gpus = next(iter(placements.values())).num_gpus
        return cls(num_gpus, of_layer, lower, median, upper, of_layer[worst_layer], worst_layer)


def skew_of(loads: np.ndarray, placement: Placement) -> float:
    """Returns the (token, expert)s of the busiest GPU over the mean, for the tokens that chose each logical expert."""
    share = loads / np.bincount(placement.logical_of_expert)
    of_gpu = np.bincount(placement.gpu_of_expert, share[placement.logical_of_expert], minlength=placement.num_gpus)
    return float(of_gpu.max() / of_gpu.mean()) if loads.any() else 1.0


def contiguous_skews(loads: Mapping[int, np.ndarray], gpu_counts: Sequence[int]) -> list[Skew]:
    """Returns the skew for each number of GPUs, with experts in order."""
    experts = len(next(iter(loads.values())))
    return [Skew.of(loads, dict.fromkeys(loads, contiguous_placement(experts, count))) for count in gpu_counts]
