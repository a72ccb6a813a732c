"""Other numbers for the GPUs of a machine.

Which GPU has which number says nothing about a machine, but schedules break ties by it. What is measured under several
numberings depends less on that. Two things hang on numbers, and are kept: GPU 0 is the one that is slow, late or behind
slow links where a machine has one, and neighbours form the groups whose subsets are teams (``switch.team_gpus``).
"""

from __future__ import annotations

import numpy as np

from dysharp_env.system import SystemSpec


def gpu_order(system: SystemSpec, renaming: int) -> np.ndarray:
    """Returns the old number of each GPU, (gpu,) int64, for ``Workload.renamed``.

    Renaming 0 leaves all as they are; every other is drawn from a stream of its own.
    """
    numbers, size = np.arange(system.num_gpus), system.switch.team_gpus
    if renaming == 0:
        return numbers
    rng = np.random.default_rng([renaming, system.num_gpus])
    kept = int(system.singles_out)
    groups = np.split(numbers, range(size, system.num_gpus, size))
    inside = [_shuffled(group, kept if place == 0 else 0, rng) for place, group in enumerate(groups)]
    # A last group with fewer GPUs stays the last.
    whole = max(1, system.num_gpus // size)
    places = [*_shuffled(np.arange(whole), kept, rng), *range(whole, len(groups))]
    return np.concatenate([inside[place] for place in places])


def _shuffled(numbers: np.ndarray, kept: int, rng: np.random.Generator) -> np.ndarray:
    """Returns numbers in another order, but for the first ``kept``."""
    return np.concatenate([numbers[:kept], rng.permutation(numbers[kept:])])
