"""EPLB's greedy placement: against all placements of tiny cases, and what holds of every one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.eplb import eplb_placement, replica_counts
from dysharp_env.workload.placement import Placement


def busiest(placement: Placement, loads: np.ndarray) -> float:
    """Load of the busiest GPU over the mean, loads spread evenly over replicas."""
    share = (loads / np.bincount(placement.logical_of_expert))[placement.logical_of_expert]
    of_gpu = np.bincount(placement.gpu_of_expert, share, minlength=placement.num_gpus)
    return float(of_gpu.max() / of_gpu.mean()) if loads.sum() else 1.0


def best_of_all(loads: np.ndarray, num_gpus: int, slots: int) -> float:
    """The same for the best placement that fills all slots and holds every expert, no GPU one of them twice."""
    best = np.inf
    sets = list(itertools.combinations(range(len(loads)), slots))
    for chosen in itertools.combinations_with_replacement(sets, num_gpus):
        logical = np.concatenate(chosen)
        if len(set(logical.tolist())) == len(loads):
            gpus = np.repeat(np.arange(num_gpus), slots)
            best = min(best, busiest(Placement(num_gpus, gpus, logical), loads))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_against_every_placement_of_tiny_cases(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_gpus, slots = ((2, 2), (2, 3), (3, 2), (2, 4), (4, 2))[seed % 5]
    experts = int(rng.integers(slots, min(num_gpus * slots, 6) + 1))
    loads = rng.pareto(1.0, experts) + 0.1
    greedy, best = busiest(eplb_placement(loads, num_gpus, slots), loads), best_of_all(loads, num_gpus, slots)
    # Greedy scheduling of independent jobs is within 4/3 of the best (Graham 1969); slots that must be filled and
    # replicas chosen one by one cost little on top.
    assert best - 1e-9 <= greedy <= 4 / 3 * best


def test_it_is_mostly_as_good_as_can_be_on_tiny_cases() -> None:
    rng = np.random.default_rng(0)
    drawn = [rng.pareto(1.0, 5) + 0.1 for _ in range(40)]
    ratios = [busiest(eplb_placement(loads, 3, 2), loads) / best_of_all(loads, 3, 2) for loads in drawn]
    assert np.mean(np.isclose(ratios, 1.0)) > 0.5 and np.mean(ratios) < 1.05


@pytest.mark.parametrize("seed", range(60))
def test_what_holds_of_every_placement(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_gpus, experts = int(rng.integers(1, 10)), int(rng.integers(1, 40))
    slots = int(rng.integers(-(-experts // num_gpus), experts + 1))
    loads = rng.pareto(0.5, experts) * rng.integers(0, 2, experts)
    placement = eplb_placement(loads, num_gpus, slots)
    assert placement.held.tolist() == [slots] * num_gpus
    pairs = set(zip(placement.gpu_of_expert.tolist(), placement.logical_of_expert.tolist(), strict=True))
    assert len(pairs) == len(placement) == num_gpus * slots  # no GPU holds an expert twice
    counts = np.bincount(placement.logical_of_expert, minlength=experts)
    assert (counts >= 1).all() and placement.num_copies == 0
    assert counts.tolist() == replica_counts(loads, num_gpus * slots, num_gpus).tolist()
    assert placement.is_plain == (num_gpus * slots == experts)


def test_replicas_go_to_the_heaviest_by_hand() -> None:
    # Loads per replica: 12 5 3 -> 6 5 3 -> 4 5 3 -> 4 2.5 3 -> 3 2.5 3.
    loads = np.array([12.0, 5.0, 3.0])
    assert [replica_counts(loads, slots, 4).tolist() for slots in (3, 4, 5, 6, 7)] == [
        [1, 1, 1],
        [2, 1, 1],
        [3, 1, 1],
        [3, 2, 1],
        [4, 2, 1],
    ]
    assert replica_counts(loads, 7, 3).tolist() == [3, 2, 2]  # at most one a GPU
    assert replica_counts(np.zeros(3), 5, 4).tolist() == [2, 2, 1]


def test_a_replica_that_finds_no_gpu_takes_the_place_of_another() -> None:
    # The last expert has two replicas and only GPUs with it have a slot left, unless another moves there.
    loads = np.array([2, 1, 4, 1, 8, 2, 8, 4, 4, 1, 2, 8, 4, 4, 2, 1])
    placement = eplb_placement(loads, 3, 14)
    assert placement.held.tolist() == [14, 14, 14]
    assert len({*zip(placement.gpu_of_expert.tolist(), placement.logical_of_expert.tolist(), strict=True)}) == 42


def test_experts_that_nobody_chose_are_spread_too() -> None:
    placement = eplb_placement(np.array([0, 0, 0, 0, 0, 7]), 3, 2)
    assert placement.held.tolist() == [2, 2, 2]


def test_real_skew_at_real_sizes_comes_out_nearly_flat() -> None:
    loads = np.random.default_rng(1).lognormal(0, 1.0, 256)
    flat = busiest(eplb_placement(loads, 32, 9), loads)
    assert flat < 1.05 < 1.5 < busiest(Placement(32, np.repeat(np.arange(32), 8)), loads)


def test_mistakes_are_one_line() -> None:
    for loads, num_gpus, slots, message in (
        (np.ones(8), 2, 3, "slots=3 on each of 2 GPUs must be from 4 to 8 for 8 experts"),
        (np.ones(8), 2, 9, "slots=9 on each of 2 GPUs must be from 4 to 8 for 8 experts"),
        (np.ones(8), 0, 8, "slots=8 on each of 0 GPUs"),
        (np.array([1.0, -1.0]), 1, 2, "loads must be numbers from 0 up"),
        (np.array([1.0, np.nan]), 1, 2, "loads must be numbers from 0 up"),
        (np.ones((2, 2)), 1, 2, "one for each expert"),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            eplb_placement(loads, num_gpus, slots)
        assert "\n" not in str(raised.value)
