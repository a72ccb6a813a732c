"""One expert that becomes hot in mid-layer."""

from __future__ import annotations

import numpy as np
import pytest

from dysharp_env.workload import LayerSpec, ScenarioSpec
from dysharp_env.workload.drawing import Batch
from dysharp_env.workload.heat import Heated
from dysharp_env.workload.source import WorkloadSource
from dysharp_env.workload.suite import SuiteEntry

LAYER = LayerSpec(
    name="hot", hidden=64, moe_ff=64, experts=32, top_k=4, ffn_matrices=2, compute_dtype="bf16", source="test"
)


@pytest.mark.parametrize("tokens", [40, [40, 0, 13, 8]])
def test_so_many_of_the_later_tokens_choose_one_expert(tokens: int | list[int]) -> None:
    cold = WorkloadSource(LAYER, 4, tokens, "uniform").draw(3)
    hot = WorkloadSource(LAYER, 4, tokens, "uniform", hot_expert=0.75, hot_from=0.5).draw(3)
    place = np.concatenate([np.arange(count) / max(count, 1) for count in cold.tokens_of_gpu])
    later, changed = place >= 0.5, (cold.topk_ids != hot.topk_ids).any(axis=1)
    assert changed.any() and not changed[~later].any()
    # Experts of a token stay different, and all but the last as they were.
    assert (cold.topk_ids[:, :-1] == hot.topk_ids[:, :-1]).all()
    assert all(len(set(ids)) == LAYER.top_k for ids in hot.topk_ids.tolist())
    (expert,) = set(hot.topk_ids[changed, -1].tolist())
    has = (hot.topk_ids == expert).any(axis=1)
    assert has[later].sum() == round(0.75 * later.sum()) and has[~later].mean() < 0.5
    # The seed says which one it is, and an earlier batch knows nothing of it.
    assert np.array_equal(cold.history(), hot.history())


def test_it_is_another_expert_for_another_seed_and_none_for_no_share() -> None:
    source = WorkloadSource(LAYER, 4, 64, "uniform", hot_expert=1.0, hot_from=0.0)
    found = [np.bincount(source.draw(seed).topk_ids.ravel()).argmax() for seed in range(6)]
    assert len(set(found)) > 1
    assert np.array_equal(source.draw(2).topk_ids, source.draw(2).topk_ids)
    sound = WorkloadSource(LAYER, 4, 64, "uniform", hot_expert=0.0, hot_from=0.0).draw(2)
    assert sound.name == WorkloadSource(LAYER, 4, 64, "uniform").draw(2).name
    assert "hot=1 from=0" in source.draw(2).name


def test_dropped_choices_stay_dropped_and_suites_name_it() -> None:
    bare = np.array([[1, 2, -1, -1], [3, -1, -1, -1], [-1, -1, -1, -1], [5, 6, 7, 8]])
    entry = SuiteEntry(model="olmoe", tokens=8, routing="uniform", hot_expert=0.5, faults="slow_link=2", seeds=(0, 1))
    scenario = entry.build()
    name = entry.name_of(scenario, scenario.draw(0))
    assert "faults slow_link=2" in name and "hot=0.5" in name

    class Bare:
        tokens_of_gpu = np.array([2, 2])
        layers = chosen = ()

        def draw(self, seed: int, is_all: bool = False) -> list[Batch]:
            return [Batch(bare, "bare", None, lambda: np.zeros(9))]

    (batch,) = Heated(Bare(), 9, 1.0, 0.0).draw(1)
    counts = [(ids >= 0).sum() for ids in batch.ids]
    assert counts == [2, 1, 0, 4]
    (hot,) = set.intersection(*(set(ids[ids >= 0].tolist()) for ids in batch.ids[[0, 1, 3]]))
    assert 0 <= hot < 9


def test_a_scenario_has_both_options() -> None:
    scenario = ScenarioSpec(model="olmoe", tokens=8, routing="uniform", hot_expert=0.5, hot_from=0.25).build()
    assert "hot=0.5 from=0.25" in scenario.draw(0).name
