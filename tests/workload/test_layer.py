from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dysharp_env.config import ConfigError, Notice, config_root, preset_names
from dysharp_env.workload.layer import LayerSpec, load_model

PAPER = {"small": (2048, 512, 64), "medium": (4096, 1024, 128), "large": (7168, 2048, 256)}
# name: (hidden, moe_ff, experts, top_k, compute)
REAL = {
    "deepseek-v3": (7168, 2048, 256, 8, "fp8"),
    "deepseek-r1": (7168, 2048, 256, 8, "fp8"),
    "deepseek-v2-lite": (2048, 1408, 64, 6, "bf16"),
    "kimi-k2": (7168, 2048, 384, 8, "fp8"),
    "qwen3-30b": (2048, 768, 128, 8, "bf16"),
    "qwen3-235b": (4096, 1536, 128, 8, "bf16"),
    "gpt-oss-20b": (2880, 2880, 32, 4, "bf16"),
    "gpt-oss-120b": (2880, 2880, 128, 4, "bf16"),
    "mixtral-8x7b": (4096, 14336, 8, 2, "bf16"),
    "olmoe": (2048, 1024, 64, 8, "bf16"),
    "deepseek-v4-pro": (7168, 3072, 384, 6, "fp8"),
    "deepseek-v4-flash": (4096, 2048, 256, 6, "fp8"),
    "kimi-k3": (3584, 3072, 896, 16, "bf16"),
    "qwen3.8-flash-next": (2560, 640, 512, 10, "bf16"),
    "qwen3.5-35b-a3b": (2048, 512, 256, 8, "bf16"),
    "glm-4.5": (5120, 1536, 160, 8, "bf16"),
    "glm-4.5-air": (4096, 1408, 128, 8, "bf16"),
}


@pytest.mark.parametrize("name", preset_names("models"))
def test_every_preset_loads_under_its_own_name(name: str) -> None:
    layer = load_model(name)
    assert layer.name == name
    assert layer.source
    assert layer.ffn_matrices == (2 if name in PAPER else 3)
    assert layer.direction == "forward"
    native = "mxfp8" if name.startswith("deepseek-v4") else layer.compute_dtype
    assert layer.dispatch_dtype == ("bf16" if name in PAPER else native)


@pytest.mark.parametrize("name", PAPER)
@pytest.mark.parametrize("top_k", [None, 16, 32])
def test_paper_models(name: str, top_k: None | int) -> None:
    layer = load_model(name, top_k=top_k)
    assert (layer.hidden, layer.moe_ff, layer.experts) == PAPER[name]
    assert layer.top_k == (top_k or 8)
    assert (layer.dispatch_bytes, layer.combine_bytes) == (2 * layer.hidden, 2 * layer.hidden)


@pytest.mark.parametrize("name", REAL)
def test_real_models(name: str) -> None:
    layer = load_model(name)
    assert (layer.hidden, layer.moe_ff, layer.experts, layer.top_k, layer.compute_dtype) == REAL[name]


def test_deepseek_v3_by_hand() -> None:
    layer = load_model("deepseek-v3")
    assert (layer.n_group, layer.topk_group, layer.shared_experts) == (8, 4, 1)
    assert layer.dispatch_bytes == 7168 + 7168 // 128 * 4 == 7392
    assert layer.combine_bytes == 14336
    assert layer.gemms == ((4096, 7168), (7168, 2048))
    assert layer.weight_bytes == (4096 * 7168 + 32 * 56 * 4, 7168 * 2048 + 56 * 16 * 4)
    assert layer.mid_bytes == 2048 + 16 * 4
    assert layer.gemm_flops == (2 * 4096 * 7168, 2 * 7168 * 2048)
    # 8192 tokens with 8 experts each: 5.77 TFLOP in one pass, twice that backward.
    assert 8192 * 8 * sum(layer.gemm_flops) == pytest.approx(5.77e12, rel=1e-3)
    assert (layer.work_factor, load_model("deepseek-v3", direction="backward").work_factor) == (1, 2)


def test_a_deferred_backward_pass_by_hand() -> None:
    forward = load_model("deepseek-v3", weight_gradients="deferred", recompute=True)
    assert forward == load_model("deepseek-v3").with_changes({"weight_gradients": "deferred", "recompute": True})
    assert (forward.gemms, forward.gemm_factor, forward.dispatch_bytes) == (forward.forward_gemms, 1, 7392)
    kept = load_model("deepseek-v3", weight_gradients="deferred", direction="backward")
    # Through the last matrix first: from 7168 to 2048 columns, then from those of gate and up to 7168.
    assert (kept.gemms, kept.gemm_factor, kept.work_factor) == (((2048, 7168), (7168, 4096)), 1, 2)
    assert sum(columns * depth for columns, depth in kept.gemms) == 3 * 2048 * 7168
    assert (kept.dispatch_bytes, kept.combine_bytes) == (7392, 14336)
    # GEMM-1 once more: gate and up, 4096 columns, beside the 2048; every token's input comes with its gradient.
    again = load_model("deepseek-v3", weight_gradients="deferred", direction="backward", recompute=True)
    assert again.gemms == ((6144, 7168), (7168, 4096))
    assert again.weight_bytes == (6144 * 7168 + 48 * 56 * 4, 7168 * 4096 + 56 * 32 * 4)
    assert again.dispatch_bytes == 2 * 7392 and again.gemm_flops == forward.gemm_flops
    fused = load_model("deepseek-v3", direction="backward")
    assert (fused.gemms, fused.gemm_factor) == (fused.forward_gemms, 2)


def test_two_matrices_in_bf16_by_hand() -> None:
    layer = load_model("large", compute_dtype="bf16")
    assert (layer.gemms[0][0], layer.gemms[1][1]) == (2048, 2048)
    assert layer.weight_bytes == (2 * 2048 * 7168,) * 2
    assert 8192 * 8 * sum(layer.gemm_flops) == pytest.approx(3.85e12, rel=1e-3)


def test_four_bits_by_hand() -> None:
    """A token in NVFP4 at V4-Flash's width is 2048 B of values and 256 scales of a byte."""
    layer = load_model("deepseek-v4-flash", dispatch_dtype="nvfp4", combine_dtype="fp8", compute_dtype="fp4")
    assert (layer.dispatch_bytes, layer.combine_bytes) == (2048 + 256, 4096 + 32 * 4)
    # Weights stay MXFP4: a byte of scale for 32 values; what lies between the GEMMs is NVFP4.
    assert layer.weight_bytes == (4096 * 4096 * 17 // 32, 4096 * 2048 * 17 // 32)
    assert layer.mid_bytes == 1024 + 128
    assert load_model("deepseek-v4-flash").dispatch_bytes == 4096 + 128
    # By default weights are what tensor cores of that rate read.
    assert load_model("small", compute_dtype="fp4").weight_bytes[0] == 512 * 2048 * 9 // 16
    assert load_model("gpt-oss-20b").weight_bytes[1] == 2880 * 2880 * 17 // 32


def test_fp8_scale_of_a_partial_block_is_whole() -> None:
    # 2880 values are 22.5 blocks of 128.
    assert load_model("gpt-oss-20b", dispatch_dtype="fp8").dispatch_bytes == 2880 + 23 * 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"top_k": 65}, "models/small: top_k=65 must be at most experts=64"),
        ({"top_k": 0}, "models/small: top_k=0: "),
        ({"hidden": -2048}, "models/small: hidden=-2048: "),
        ({"n_group": 5}, "models/small: experts=64 must be divisible by n_group=5"),
        ({"topk_group": 2}, "models/small: topk_group=2 must be at most n_group=1"),
        ({"n_group": 16}, "models/small: top_k=8 must be at most the 4 experts in topk_group=1 of n_group=16 groups"),
        (
            {"zero_experts": 8, "top_k": 73},
            "models/small: top_k=73 must be at most experts=64 and zero_experts=8 together",
        ),
        ({"zero_experts": 8, "n_group": 2}, "models/small: zero_experts=8 needs n_group=1, not 2"),
        ({"zero_experts": -1}, "models/small: zero_experts=-1: "),
        ({"ffn_matrices": 4}, "models/small: ffn_matrices=4: Input should be 2 or 3"),
        ({"combine_dtype": "nvfp4"}, "models/small: combine_dtype='nvfp4': Input should be 'bf16' or 'fp8'"),
        ({"compute_dtype": "mxfp4"}, "models/small: compute_dtype='mxfp4': Input should be 'bf16', 'fp8' or 'fp4'"),
        (
            {"weight_dtype": "int4"},
            "models/small: weight_dtype='int4': Input should be 'bf16', 'fp8', 'mxfp8', 'nvfp4'",
        ),
        (
            {"dispatch_dtype": "fp4"},
            "models/small: dispatch_dtype='fp4': Input should be 'bf16', 'fp8', 'mxfp8', 'nvfp4'",
        ),
        (
            {"weight_gradients": "later"},
            "models/small: weight_gradients='later': Input should be 'fused' or 'deferred'",
        ),
        ({"recompute": True}, "models/small: recompute=true needs weight_gradients='deferred', not 'fused'"),
        ({"direction": "both"}, "models/small: direction='both': Input should be 'forward' or 'backward'"),
        ({"hiden": 1}, "models/small: unknown key 'hiden' (did you mean 'hidden'?)"),
    ],
)
def test_wrong_value_is_one_line(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_model("small", **overrides)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_router_may_choose_experts_that_compute_nothing() -> None:
    layer = load_model("small", zero_experts=8, top_k=72)
    assert (layer.choices, layer.experts, load_model("small").choices) == (72, 64, 64)
    assert layer.weight_bytes == load_model("small").weight_bytes


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^model='mixtral-8x7' is unknown; .*\(did you mean 'mixtral-8x7b'\?\)$"):
        load_model("mixtral-8x7")


def test_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text((config_root() / "models" / "small.yaml").read_text().replace("experts: 64", "experts: 96"))
    assert load_model(str(path), top_k=12).experts == 96
    path.write_text(path.read_text().replace("hidden: 2048", "hidden: many"))
    with pytest.raises(ConfigError) as error:
        load_model(str(path))
    assert str(error.value) == f"{path}: hidden='many' must be a number"


def test_round_trip() -> None:
    layer = load_model("qwen3-30b")
    assert LayerSpec.model_validate_json(layer.model_dump_json()) == layer


# What published configurations hold of a layer, and that layer; the rest of such a file is of no concern here.
HUB_CONFIGS = {
    "deepseek-v3": {
        **{"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256},
        **{"num_experts_per_tok": 8, "n_shared_experts": 1, "n_group": 8, "topk_group": 4, "num_local_experts": None},
        **{"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}, "rms_norm_eps": 1e-06},
    },
    "qwen3-30b": {
        **{"hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768, "num_experts": 128},
        "num_experts_per_tok": 8,
    },
    "mixtral-8x7b": {
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_local_experts": 8, "num_experts_per_tok": 2},
        "torch_dtype": "bfloat16",
    },
    "gpt-oss-120b": {
        **{"hidden_size": 2880, "intermediate_size": 2880, "num_local_experts": 128, "num_experts_per_tok": 4},
        **{"experts_per_token": 4, "quantization_config": {"quant_method": "mxfp4"}},
    },
}


@pytest.mark.parametrize("name", HUB_CONFIGS)
@pytest.mark.parametrize("is_nested", [False, True])
def test_the_config_of_a_model_hub_is_read(name: str, is_nested: bool, tmp_path: Path) -> None:
    config, path = HUB_CONFIGS[name], tmp_path / "config.json"
    whole = {"text_config": config, "vision_config": {"hidden_size": 1}} if is_nested else config
    path.write_text(json.dumps({"model_type": "some_moe", **whole}, indent=2))
    preset, layer = load_model(name), load_model(str(path))
    differs = {"name", "source", "transformer", "combine_dtype"}
    assert layer.model_dump(exclude=differs) == preset.model_dump(exclude=differs)
    assert (layer.name, layer.source) == ("some_moe", str(path))
    assert load_model(str(path), top_k=1, dispatch_dtype="fp8").dispatch_dtype == "fp8"


def test_configs_that_are_not_of_such_a_layer_give_one_line(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"hidden_size": 4096, "intermediate_size": 11008}))
    with pytest.raises(ConfigError, match="no 'n_routed_experts' or .* is in it; is it of a model with experts?"):
        load_model(str(path))
    path.write_text(json.dumps({**HUB_CONFIGS["mixtral-8x7b"], "num_local_experts": [8, 8]}))
    with pytest.raises(ConfigError, match=r"experts=\[8, 8\]: Input should be a valid integer"):
        load_model(str(path))
    path.write_text(json.dumps({**HUB_CONFIGS["mixtral-8x7b"], "quantization_config": {"quant_method": "awq"}}))
    with pytest.warns(Notice, match="weights quantised by 'awq' are taken as BF16"):
        assert load_model(str(path)).compute_dtype == "bf16"
    with pytest.raises(ConfigError, match="No such file"):
        load_model(str(tmp_path / "none.json"))
