from __future__ import annotations

import pytest

from dysharp_env.config import ConfigError, config_root, parse_spec
from dysharp_env.reproduction.steps.roofline import Work, attention_work, ffn_work, total_ps
from dysharp_env.system import load_system
from dysharp_env.system.spec import GpuSpec
from dysharp_env.workload import load_model
from dysharp_env.workload.transformer import AttentionSpec

GPU = load_system("dgx-h100").gpu.with_changes(
    {"fp8_tflops": 2.0, "bf16_tflops": 1.0, "gemm_efficiency": 0.5, "hbm_gbps": 20.0, "hbm_efficiency": 0.5}
)


def test_an_operation_takes_the_longer_of_compute_and_memory() -> None:
    assert isinstance(GPU, GpuSpec)
    assert Work(3_000_000, 20_000, "fp8").time_ps(GPU) == 3_000_000  # 3 MFLOP at 1 TFLOP/s
    assert Work(3_000_000, 20_000, "bf16").time_ps(GPU) == 6_000_000
    assert Work(3_000_000, 70_000, "bf16").time_ps(GPU) == 7_000_000  # 70 kB at 10 GB/s
    assert total_ps(GPU, [Work(10**6, 0, "fp8"), Work(0, 10**4, "bf16")], work_factor=2) == 4_000_000


def test_weights_of_deepseek_v3_by_hand() -> None:
    attention = load_model("deepseek-v3").transformer.attention
    query = 7168 * 1536 + 1536 * 128 * (128 + 64)
    key_value = 7168 * (512 + 64) + 512 * 128 * (128 + 128)
    assert attention.weights(7168) == query + key_value + 128 * 128 * 7168 == 187_105_280
    assert attention.cached_values == 576
    assert attention.pair_flops(absorbed=False) == 2 * 128 * (192 + 128)
    assert attention.pair_flops(absorbed=True) == 2 * 128 * (576 + 512)


def test_weights_of_grouped_queries_by_hand() -> None:
    attention = load_model("qwen3-235b").transformer.attention
    assert attention.weights(4096) == 4096 * 128 * (64 + 4 + 4 + 64)
    assert attention.cached_values == 2 * 4 * 128
    assert attention.pair_flops(absorbed=True) == attention.pair_flops(absorbed=False) == 2 * 64 * 256


def test_attention_of_a_whole_sequence_by_hand() -> None:
    layer = load_model("small")  # hidden 2048, 32 heads of 64, FP8
    projections, core = attention_work(layer, sequences=3, new_tokens=100)
    weights = 4 * 2048 * 2048
    assert (projections.flops, projections.dtype) == (2 * weights * 300, "fp8")
    scales = weights // 128**2 * 4
    assert projections.num_bytes == weights + scales + 2 * 300 * 2048 * 2
    assert (core.flops, core.dtype) == (3 * 5050 * 2 * 2048 * 2, "bf16")  # 1 + 2 + ... + 100 pairs, score and sum
    assert core.num_bytes == 4 * 300 * 2048 * 2  # keys, values, queries, outputs


def test_decoding_reads_the_cache() -> None:
    layer = load_model("small")
    projections, core = attention_work(layer, sequences=5, new_tokens=1, cached_tokens=999)
    assert projections.flops == 2 * 4 * 2048 * 2048 * 5
    assert core.flops == 5 * 1000 * 4 * 2048
    assert core.num_bytes == (5 * 1000 * 2 * 2048 + 2 * 5 * 2048) * 2


def test_no_shared_experts_cost_nothing() -> None:
    layer = load_model("small")
    assert ffn_work(layer, 0, 1000).time_ps(GPU) == 0
    assert ffn_work(layer, 512, 10).flops == 2 * 2 * 2048 * 512 * 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 5}, "heads=8 must be a multiple of kv_heads=5"),
        ({"latent_kv": 16}, "kv_heads=4 must equal heads=8 where latent_kv is given"),
        ({"rotary_dim": 16}, "latent_query and rotary_dim belong to MLA and need latent_kv"),
    ],
)
def test_attention_that_does_not_fit(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec(AttentionSpec, {"heads": 8, "kv_heads": 4, "head_dim": 16, **changes}, source="attention")


def test_models_around_a_layer_are_sourced() -> None:
    with_model = [
        path.stem for path in (config_root() / "models").glob("*.yaml") if load_model(path.stem).transformer is not None
    ]
    assert {"small", "medium", "large", "deepseek-v3", "gpt-oss-120b", "qwen3-235b"} <= set(with_model)
    for name in ("small", "medium", "large"):
        layer = load_model(name)
        assert layer.transformer.attention.heads * layer.transformer.attention.head_dim == layer.hidden
