"""Loads without tokens: what files hold, and that sampled tokens have the loads they are sampled from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.choices import count_loads
from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.loads import LayerLoads, is_loads_name, load_loads, popularity_of, sampling_model
from dysharp_env.workload.routing import draw_tokens
from dysharp_env.workload.source import WorkloadSource
from tests.shared_files import SHARED, needs_shared


def layer_of(experts: int, top_k: int, **changes: int) -> LayerSpec:
    return LayerSpec(
        name="test", hidden=64, moe_ff=64, experts=experts, top_k=top_k, ffn_matrices=2, compute_dtype="bf16",
        source="test", **changes,
    )  # fmt: skip


def sampled(counts: np.ndarray, layer: LayerSpec, tokens: int = 20_000) -> np.ndarray:
    """Returns the shares of tokens that choose each expert."""
    popularity = popularity_of(counts, layer)
    ids = draw_tokens(sampling_model("test"), layer, popularity, np.array([tokens]), np.random.default_rng(1))
    return count_loads(ids, layer.choices) / tokens


@pytest.mark.parametrize(("experts", "top_k"), [(256, 8), (64, 6), (32, 4), (8, 2)])
def test_tokens_have_the_loads_they_are_sampled_from(experts: int, top_k: int) -> None:
    counts = np.random.default_rng(experts).lognormal(0, 0.8, experts)
    wanted = top_k * counts / counts.sum()
    got = sampled(counts, layer_of(experts, top_k))
    # The formula is exact for many experts; of eight the hottest comes out 4 % too often. 0.02 is 3 sigma of chance.
    assert got == pytest.approx(wanted, rel=0.05, abs=0.02)
    naive = np.log(counts)
    ids = draw_tokens(
        sampling_model("x"), layer_of(experts, top_k), naive.astype(np.float32), np.array([20_000]),
        np.random.default_rng(1),
    )  # fmt: skip
    flattened = count_loads(ids, experts) / 20_000
    assert np.abs(got - wanted).max() < np.abs(flattened - wanted).max() / 2


def test_loads_survive_the_limit_of_groups() -> None:
    layer = layer_of(64, 4, n_group=8, topk_group=2)
    counts = np.random.default_rng(0).lognormal(0, 0.6, 64) * np.repeat(np.linspace(0.5, 2, 8), 8)
    wanted = 4 * counts / counts.sum()
    got = sampled(counts, layer)
    of_group, wanted_of_group = (each.reshape(8, 8).sum(axis=1) for each in (got, wanted))
    assert of_group == pytest.approx(wanted_of_group, rel=0.06)  # of the smallest, 3 sigma of chance are 5 %
    assert got == pytest.approx(wanted, rel=0.1, abs=0.006)


def test_experts_without_load_are_not_chosen() -> None:
    counts = np.array([0, 5, 0, 3, 2, 4, 0, 1])
    assert (sampled(counts, layer_of(8, 2))[counts == 0] == 0).all()


def test_files_by_hand(tmp_path: Path) -> None:
    counts = np.array([[0, 0, 0, 0], [1, 2, 3, 4], [0, 1, 0, 1]])
    path = tmp_path / "loads.npz"
    steps = np.stack([counts, 2 * counts])
    np.savez(path, plain=counts, steps=steps, layer_index=np.array([2, 5, 7]), two=counts[1:])
    for name, factor in (("plain", 1), ("steps", 3)):
        loads = load_loads(f"{path}:{name}")
        assert loads.counts.tolist() == (factor * counts[1:]).tolist()
        assert loads.layer_index.tolist() == [5, 7] and loads.num_dense == 1
    assert load_loads(f"{path}:two").layer_index.tolist() == [0, 1]  # layer_index is of three layers
    assert is_loads_name(f"{path}:two") and not is_loads_name(str(path)) and not is_loads_name("power-law:1")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([["a"]]), "must be numbers \\(layer, expert\\), not <U1"),
        (np.ones(3), r"must be numbers \(layer, expert\), not float64 of shape \(3,\)"),
        (np.ones((0, 3)), "must be numbers"),
        (np.array([[1.0, -1.0]]), "must be finite and not negative"),
        (np.array([[1.0, np.inf]]), "must be finite and not negative"),
        (np.zeros((2, 3)), "are all zero"),
    ],
)
def test_wrong_loads_give_one_line(tmp_path: Path, array: Any, message: str) -> None:
    path = tmp_path / "loads.npz"
    np.savez(path, mine=array)
    with pytest.raises(ConfigError, match=f"loads '.*:mine' {message}") as raised:
        load_loads(f"{path}:mine")
    assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="lacks the array 'other'; it holds"):
        load_loads(f"{path}:other")
    with pytest.raises(ConfigError, match="it has 3 experts; model 'test' has 4 and 2 that compute nothing"):
        LayerLoads(np.ones((1, 3)), np.array([0])).for_layer(layer_of(4, 2, zero_experts=2))


def test_workloads_of_loads_are_of_drawn_layers_and_follow_their_seed(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    np.savez(path, loads=np.array([[1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1]]))
    layer = layer_of(8, 2)
    source = WorkloadSource(layer, 2, [300, 100], f"{path}:loads")
    drawn = [source.draw(seed) for seed in range(12)]
    assert {each.name.rsplit(" seed", 1)[0] for each in drawn} == {"mine:loads layer=0", "mine:loads layer=1"}
    for each in drawn:
        loads = np.bincount(each.topk_ids.ravel(), minlength=8)
        rises = np.corrcoef(loads, np.arange(8))[0, 1]
        assert rises > 0.8 if "layer=0" in each.name else rises < -0.8
        assert np.corrcoef(loads, each.past_loads)[0, 1] > 0.8 and each.past_loads.tolist() != loads.tolist()
    assert np.array_equal(source.draw(3).topk_ids, drawn[3].topk_ids)
    # A layer has the same tokens alone and among others.
    both = WorkloadSource(layer, 2, [300, 100], f"{path}:loads", layer_index="all").draw_layers(3)
    one = WorkloadSource(layer, 2, [300, 100], f"{path}:loads", layer_index=1).draw(3)
    assert np.array_equal(both[1].topk_ids, one.topk_ids) and both[1].name == one.name


@needs_shared
@pytest.mark.parametrize("name", ["prefill_in4096", "decode_in2000out100"])
def test_real_loads_come_out_under_the_model_s_limit_of_groups(name: str) -> None:
    layer = load_model("deepseek-r1")
    loads = load_loads(f"{SHARED / 'traces' / 'deepseek_r1_sglang_loads.npz'}:{name}")
    assert loads.counts.shape == (58, 256) and loads.layer_index.tolist() == [*range(3, 61)] and loads.num_dense == 3
    for row in (0, 20, 45, 57):
        wanted = 8 * loads.counts[row] / loads.counts[row].sum()
        got = sampled(loads.counts[row], layer, 20_000)
        for num_gpus, within in ((8, 0.02), (32, 0.05)):
            busiest, wanted_busiest = (each.reshape(num_gpus, -1).sum(axis=1).max() for each in (got, wanted))
            assert busiest == pytest.approx(wanted_busiest, rel=within)
        assert got.max() == pytest.approx(wanted.max(), rel=0.06)
        assert np.abs(got - wanted).sum() / 8 < 0.05  # of all choices; half of it is chance
