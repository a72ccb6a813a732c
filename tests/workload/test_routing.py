from __future__ import annotations

import hashlib

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.choices import NO_EXPERT, in_front
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.routing import (
    ROUTING_MODELS,
    draw_past_loads,
    draw_popularity,
    draw_routing,
    draw_tokens,
    routing_candidates,
    routing_names,
)
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


def test_mixed_stands_for_every_model_but_those_that_came_later() -> None:
    later = ["deepseek-r1", "aiconfigurator"]
    assert [*(model.name for model in routing_candidates("mixed")), *later] == routing_names()[:-1]


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_aiconfigurator_draws_loads_from_a_cut_power_law(alpha: float) -> None:
    layer, (model,) = layer_of(4000, 8), routing_candidates(f"aiconfigurator:{alpha}")
    tokens = np.full(8, 1250)
    popularity = draw_popularity(model, layer, np.random.default_rng(0), tokens)
    share = 1 - np.exp(-np.exp(popularity.astype(float)))  # of tokens that choose the expert
    assert share.sum() == pytest.approx(8, rel=0.02)
    # Density x^-alpha from 1 to 8000: quartiles of the samples, up to one factor that scales them to what is chosen.
    power, quantiles = 1 - alpha, np.array([0.25, 0.5, 0.75])
    exact = 8000**quantiles if alpha == 1 else (1 + quantiles * (8000**power - 1)) ** (1 / power)
    got = np.quantile(share, quantiles)
    assert got[1:] / got[0] == pytest.approx(exact[1:] / exact[0], rel=0.2)
    # The first GPU is the busiest.
    assert share.reshape(8, -1).sum(axis=1).argmax() == 0


def test_aiconfigurator_spreads_few_tokens_less() -> None:
    layer, (model,) = layer_of(4000, 8), routing_candidates("aiconfigurator")
    popularity = draw_popularity(model, layer, np.random.default_rng(0), np.full(4, 10))
    share = 1 - np.exp(-np.exp(popularity.astype(float)))
    assert share.max() / share.min() == pytest.approx(200, rel=0.05)  # from 0.01 to 2


# SHA-256 of ids that version 0.1.0 drew: workloads of a seed stay what they are.
@pytest.mark.parametrize(
    ("routing", "digest"),
    [
        ("uniform", "ab660c01911fd2b2"),
        ("power-law", "12c0c9b7567709cf"),
        ("paper-normal", "da35f01c1f5559e9"),
        ("gpt-oss-20b", "e9f817bab35ebfe5"),
        ("deepseek-v3", "d30147fecd5971de"),
    ],
)
def test_rectangular_draws_stay_what_they_were(routing: str, digest: str) -> None:
    layer = layer_of(256, 8, n_group=8, topk_group=4)
    ids = draw_routing(ROUTING_MODELS[routing], layer, 9, 2100, np.random.default_rng(7))
    assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("routing", list(ROUTING_MODELS))
def test_tokens_may_differ_from_gpu_to_gpu(routing: str) -> None:
    model, layer = ROUTING_MODELS[routing], layer_of(32, 4, n_group=4, topk_group=2)
    popularity = draw_popularity(model, layer, np.random.default_rng(0), np.array([64]))
    counts = np.array([0, 40, 40, 0, 7, 0])
    ids = draw_tokens(model, layer, popularity, counts, np.random.default_rng(1))
    assert ids.shape == (87, 4) and ids.dtype == np.int32
    assert (np.diff(np.sort(ids, axis=-1), axis=-1) > 0).all() and ids.min() >= 0 and ids.max() < 32
    assert draw_tokens(model, layer, popularity, np.zeros(3, int), np.random.default_rng(1)).shape == (0, 4)
    even = draw_tokens(model, layer, popularity, np.array([40, 40]), np.random.default_rng(1))
    assert np.array_equal(even, ids[:80])  # what other GPUs have changes nothing for those before them


def test_experts_that_compute_nothing_leave_tokens_with_fewer() -> None:
    layer = layer_of(16, 6).with_changes({"zero_experts": 8})
    ids = draw_routing(ROUTING_MODELS["uniform"], layer, 4, 2000, np.random.default_rng(0)).reshape(-1, 6)
    has = ids != NO_EXPERT
    assert ids.max() == 15 and (np.diff(has.astype(int), axis=-1) <= 0).all()  # behind the last
    assert has.mean() == pytest.approx(16 / 24, abs=0.01)
    # They are chosen as any other: without them the same tokens choose the same, best first.
    whole = draw_routing(ROUTING_MODELS["uniform"], layer_of(24, 6), 4, 2000, np.random.default_rng(0)).reshape(-1, 6)
    assert all(row[row < 16].tolist() == kept[kept >= 0].tolist() for row, kept in zip(whole, ids, strict=True))


def test_in_front_keeps_the_order_of_experts() -> None:
    ids = np.array([[[-1, 4, -1, 0], [3, -1, 1, 2]], [[-1, -1, -1, -1], [0, 1, 2, 3]]])
    assert in_front(ids).tolist() == [[[4, 0, -1, -1], [3, 1, 2, -1]], [[-1, -1, -1, -1], [0, 1, 2, 3]]]


def test_an_earlier_batch_has_other_tokens_and_the_same_popularity() -> None:
    layer, counts = layer_of(64, 6), np.array([3000, 1000])
    model = ROUTING_MODELS["gpt-oss-20b"]
    rng = np.random.default_rng(3)
    popularity = draw_popularity(model, layer, rng, np.array([64]))
    now = np.bincount(draw_tokens(model, layer, popularity, counts, rng).ravel(), minlength=64)
    past = draw_past_loads(model, layer, popularity, counts, seed=3)
    assert past.sum() == now.sum() == 4000 * 6 and not np.array_equal(past, now)
    assert np.corrcoef(past, now)[0, 1] > 0.9
    assert np.array_equal(past, draw_past_loads(model, layer, popularity, counts, seed=3))
    assert not np.array_equal(past, draw_past_loads(model, layer, popularity, counts, seed=4))


def gpu_skew(ids: np.ndarray, num_gpus: int) -> float:
    """Returns the (token, expert)s of the busiest GPU over the mean, 256 experts in order."""
    of_gpu = np.bincount(ids.ravel() * num_gpus // 256, minlength=num_gpus)
    return float(of_gpu.max() / of_gpu.mean())


def test_deepseek_r1_has_the_skew_of_the_layers_it_was_fitted_to() -> None:
    layer, model = layer_of(256, 8, n_group=8, topk_group=4), ROUTING_MODELS["deepseek-r1"]
    drawn = [draw_routing(model, layer, 1, 3000, np.random.default_rng(seed)) for seed in range(120)]
    busiest = [np.bincount(ids.ravel(), minlength=256).max() / (3000 * 8 / 256) for ids in drawn]
    on_8, on_32 = ([gpu_skew(ids, num_gpus) for ids in drawn] for num_gpus in (8, 32))
    # Of 116 layers: quartiles 5.1, 6.7 and 9.0 of experts; 1.40, 1.79 and 2.34 of 8 GPUs; 1.94, 2.36 and 3.44 of 32.
    assert np.percentile(busiest, [25, 50, 75]) == pytest.approx([5.14, 6.67, 9.04], rel=0.15)
    assert np.percentile(on_8, [25, 50, 75]) == pytest.approx([1.40, 1.79, 2.34], rel=0.15)
    assert np.percentile(on_32, [25, 50, 75]) == pytest.approx([1.94, 2.36, 3.44], rel=0.2)
    assert 2.8 < max(on_8) < 5.5 and 4.0 < max(on_32) < 10.0  # the worst layers: 4.3 and 8.0


def test_a_parameter_says_how_skewed_a_layer_is() -> None:
    layer, medians = layer_of(256, 8, n_group=8, topk_group=4), []
    for name in ("deepseek-r1:0.1", "deepseek-r1:0.9"):
        (model,) = routing_candidates(name)
        drawn = [draw_routing(model, layer, 1, 2000, np.random.default_rng(seed)) for seed in range(12)]
        medians.append(np.median([gpu_skew(ids, 8) for ids in drawn]))
    assert medians[0] < 1.55 and medians[1] > 2.2
    assert routing_candidates("gpt-oss-20b:0.4")[0].sigma_expert == 0.4


@pytest.mark.parametrize(
    ("routing", "message"),
    [
        ("powerlaw", r"routing='powerlaw' is unknown; choose from \['uniform', .*\(did you mean 'power-law'\?\)$"),
        ("uniform:2", "takes no parameter"),
        ("power-law:steep", "'steep' must be a number from 0.0 to 10.0"),
        ("power-law:nan", "'nan' must be a number"),
        ("paper-normal:-1", "'-1' must be a number from 0.0 to 0.1"),
        ("aiconfigurator:11", "'11' must be a number from 0.0 to 10.0"),
        ("deepseek-r1:1", "'1' must be a number from 0.01 to 0.99"),
        ("gpt-oss-20b:9", "'9' must be a number from 0.0 to 4.0"),
        ("mixed:1", "is unknown"),
    ],
)
def test_wrong_names_give_one_line(routing: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        routing_candidates(routing)
    assert "\n" not in str(raised.value)
