from __future__ import annotations

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.routing import ROUTING_MODELS, draw_routing, routing_candidates, routing_names
from dysharp_env.workload.statistics import trace_statistics, uniform_fan_out
from dysharp_env.workload.traces import RoutingTrace


def layer_of(experts: int, top_k: int, n_group: int = 1, topk_group: int = 1) -> LayerSpec:
    return LayerSpec(
        name="test", hidden=64, moe_ff=64, experts=experts, top_k=top_k, ffn_matrices=2, compute_dtype="bf16",
        n_group=n_group, topk_group=topk_group, source="test",
    )  # fmt: skip


def drawn_trace(routing: str, layer: LayerSpec, documents: int, layers: int = 8) -> RoutingTrace:
    model = routing_candidates(routing)[0]
    length = model.document_tokens
    rows = [
        draw_routing(model, layer, documents, length, np.random.default_rng(seed), aligned=True)
        for seed in range(layers)
    ]
    ids = np.stack(rows).reshape(layers, -1, layer.top_k)
    return RoutingTrace(ids, layer.experts, np.arange(documents + 1) * length, np.arange(layers))


# Per-token traces of the real models, means over layers: load CV, share repeated by the next token, load max/mean.
# Popularity is drawn anew for every layer, so the mean over a dozen of draws still moves by a tenth or so.
@pytest.mark.parametrize(
    ("routing", "experts", "top_k", "documents", "cv", "adjacent", "max_over_mean"),
    [
        ("dsv2-lite", 64, 6, 32, 0.50, 0.268, 2.58),
        ("gpt-oss-20b", 32, 4, 32, 0.73, 0.412, 2.76),
        ("qwen3-30b", 128, 8, 8, 0.88, 0.470, 4.04),
    ],
)
def test_fitted_presets_match_real_traces(
    routing: str, experts: int, top_k: int, documents: int, cv: float, adjacent: float, max_over_mean: float
) -> None:
    mean = trace_statistics(drawn_trace(routing, layer_of(experts, top_k), documents, layers=16)).mean
    assert mean.load_cv == pytest.approx(cv, rel=0.2)
    assert mean.adjacent_share == pytest.approx(adjacent, rel=0.1)
    assert mean.load_max_over_mean == pytest.approx(max_over_mean, rel=0.3)
    assert mean.adjacent_share > 1.5 * mean.adjacent_share_independent


def test_deepseek_v3_group_limit_gives_the_known_fan_out() -> None:
    trace = drawn_trace("deepseek-v3", layer_of(256, 8, n_group=8, topk_group=4), documents=16, layers=4)
    fan_out = [row.fan_out for row in trace_statistics(trace, (8, 16, 32)).fan_out]
    assert fan_out == pytest.approx([3.97, 5.71, 6.84], rel=0.01)
    groups = np.sort(trace.topk_ids // 32, axis=-1)
    assert (1 + (np.diff(groups, axis=-1) > 0).sum(axis=-1)).max() == 4


def test_uniform_routing_has_the_hypergeometric_fan_out_and_no_locality() -> None:
    # 256 experts on 32 GPUs, top-8: 7.27 GPUs of which 7.27 * 31/32 = 7.04 are remote, the paper's 340 %.
    assert uniform_fan_out(256, 8, 32) * 31 / 32 == pytest.approx(7.04, abs=0.01)
    statistics = trace_statistics(drawn_trace("uniform", layer_of(256, 8, 8, 4), documents=16, layers=2), (32,))
    assert statistics.fan_out[0].fan_out == pytest.approx(uniform_fan_out(256, 8, 32), rel=0.005)
    assert statistics.mean.adjacent_share == pytest.approx(8 / 256, rel=0.05)


def test_power_law_loads_fall_with_rank_and_alpha_steepens_them() -> None:
    layer = layer_of(64, 1)  # at top-1 loads are exactly in proportion to rank ** -alpha
    loads = np.sort(np.bincount(drawn_trace("power-law", layer, 64, layers=1).topk_ids.ravel(), minlength=64))[::-1]
    expected = np.arange(1, 65.0) ** -1.5
    assert loads[:4] / loads.sum() == pytest.approx(expected[:4] / expected.sum(), rel=0.06)
    shares = [trace_statistics(drawn_trace(f"power-law:{a}", layer_of(64, 6), 8)).mean.hottest_share for a in (0.5, 2)]
    assert shares[0] < shares[1]


def test_paper_normal_spread_is_relative_to_a_mean_share_of_an_eighth() -> None:
    loads = trace_statistics(drawn_trace("paper-normal", layer_of(256, 1), 256, layers=4)).mean
    sampling = 1 / np.sqrt(256)  # CV that 65536 draws over 256 experts have on their own
    assert loads.load_cv == pytest.approx(np.hypot(0.256, sampling), rel=0.1)
    assert routing_candidates("paper-normal:0.01")[0].sigma_expert == pytest.approx(0.08)


@pytest.mark.parametrize("routing", list(ROUTING_MODELS))
def test_any_preset_drives_any_layer_with_distinct_experts(routing: str) -> None:
    layer = layer_of(32, 16)
    ids = draw_routing(ROUTING_MODELS[routing], layer, 4, 300, np.random.default_rng(1))
    assert ids.shape == (4, 300, 16) and ids.dtype == np.int32
    assert (np.diff(np.sort(ids, axis=-1), axis=-1) > 0).all() and ids.min() >= 0 and ids.max() < 32
    again = draw_routing(ROUTING_MODELS[routing], layer, 4, 300, np.random.default_rng(1))
    assert np.array_equal(ids, again)
    assert not np.array_equal(ids[0], ids[1])


def test_all_experts_may_be_chosen() -> None:
    ids = draw_routing(ROUTING_MODELS["dsv2-lite"], layer_of(8, 8, 2, 2), 1, 5, np.random.default_rng(0))
    assert np.array_equal(np.sort(ids, axis=-1), np.broadcast_to(np.arange(8), (1, 5, 8)))


def test_experts_are_ordered_best_first() -> None:
    # With popularity falling as rank ** -10 the noise hardly ever moves the two most popular experts.
    model = routing_candidates("power-law:10")[0]
    ids = draw_routing(model, layer_of(64, 4), 1, 200, np.random.default_rng(0))[0]
    assert np.unique(ids[:, 0], return_counts=True)[1].max() > 190
    assert np.unique(ids[:, 1], return_counts=True)[1].max() > 180


def test_mixed_stands_for_every_model() -> None:
    assert [model.name for model in routing_candidates("mixed")] == routing_names()[:-1]


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        ("powerlaw", r"routing='powerlaw' is unknown; choose from \['uniform', .*\(did you mean 'power-law'\?\)$"),
        ("uniform:2", "takes no parameter"),
        ("power-law:steep", "'steep' must be a number from 0.0 to 10.0"),
        ("power-law:nan", "'nan' must be a number"),
        ("paper-normal:-1", "'-1' must be a number from 0.0 to 0.1"),
        ("mixed:1", "is unknown"),
    ],
)
def test_wrong_names_give_one_line(routing: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        routing_candidates(routing)
    assert "\n" not in str(raised.value)
