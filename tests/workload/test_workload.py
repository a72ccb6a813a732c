from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.traces import RoutingTrace, save_trace
from dysharp_env.workload.workload import Workload, WorkloadSource, contiguous_placement, load_placement

LAYER = LayerSpec(
    name="test", hidden=64, moe_ff=64, experts=8, top_k=2, ffn_matrices=2, compute_dtype="bf16", source="test"
)


def workload(**changes: np.ndarray) -> Workload:
    values = {
        "layer": LAYER,
        "num_gpus": 2,
        "tokens_per_gpu": 2,
        "topk_ids": np.array([[0, 1], [2, 3], [4, 5], [7, 0]]),
        "gpu_of_expert": contiguous_placement(8, 2),
        "name": "by hand",
    }
    return Workload(**{**values, **changes})


def numbered_trace(tokens: int = 100) -> RoutingTrace:
    """Token t of layer 3 chooses experts (t mod 8, t + 1 mod 8), so that windows can be recognised."""
    first = np.arange(tokens) % 8
    ids = np.stack([first, (first + 1) % 8], axis=-1).astype(np.uint8)
    return RoutingTrace(np.stack([ids, 7 - ids]), 8, np.array([0, tokens]), np.array([3, 4]))


def test_arrays_are_read_only_copies_of_the_right_type() -> None:
    ids = np.array([[0, 1], [2, 3], [4, 5], [7, 0]])
    made = workload(topk_ids=ids)
    ids[:] = 0
    assert made.topk_ids.tolist()[3] == [7, 0] and made.topk_ids.dtype == np.int32
    for array in (made.topk_ids, made.gpu_of_expert):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    assert (made.num_tokens, made.experts_per_gpu) == (4, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"topk_ids": np.zeros((3, 2), int)}, r"topk_ids is \(3, 2\), but 'test' on 2 GPUs: \(4, 2\)"),
        ({"topk_ids": np.array([[0, 1], [2, 3], [4, 5], [8, 0]])}, "topk_ids holds 8; test has experts 0 to 7"),
        ({"topk_ids": np.array([[0, 1], [2, 3], [4, -1], [7, 0]])}, "topk_ids holds -1"),
        ({"topk_ids": np.array([[0, 1], [2, 3], [4, 5], [7, 7]])}, r"token 3 chose an expert twice: \[7, 7\]"),
        ({"topk_ids": np.zeros((4, 2))}, "topk_ids must hold whole numbers, not float64"),
        ({"tokens_per_gpu": 0}, "tokens=0 must be at least 1"),
        ({"num_gpus": 3}, r"gpus=3"),
        ({"gpu_of_expert": np.array([0, 0, 0, 0, 0, 1, 1, 1])}, "gives GPU 0 5 experts; every GPU must hold 4"),
        ({"gpu_of_expert": np.array([0, 0, 0, 0, 2, 1, 1, 1])}, "names GPU 2; there are GPUs 0 to 1"),
        ({"gpu_of_expert": np.zeros(4, int)}, "must list a GPU for each of 8 experts"),
    ],
)
def test_wrong_workloads_give_one_line(changes: dict[str, Any], message: str) -> None:
    if changes.get("num_gpus") == 3:
        changes = {"num_gpus": 3, "topk_ids": np.tile([[0, 1]], (6, 1))}
        message = r"gpus=3 does not divide 8 experts evenly; choose from \[1, 2, 4, 8\]"
    with pytest.raises(ConfigError, match=message) as raised:
        workload(**changes)
    assert "\n" not in str(raised.value)


def test_a_source_draws_new_workloads_that_their_seed_repeats() -> None:
    source = WorkloadSource(LAYER, 4, routing="dsv2-lite", tokens=32)
    first, second = source.draw(5), source.draw(6)
    assert not np.array_equal(first.topk_ids, second.topk_ids)
    assert first.name == "dsv2-lite seed=5"
    assert np.array_equal(source.draw(5).topk_ids, first.topk_ids)


def test_mixed_names_the_model_it_drew() -> None:
    source = WorkloadSource(LAYER, 4, routing="mixed", tokens=8)
    names = {source.draw(seed).name.split()[0] for seed in range(60)}
    assert {"mixed/uniform", "mixed/dsv2-lite", "mixed/power-law"} <= names


def test_trace_windows_are_contiguous_independent_and_within_the_split(tmp_path: Path) -> None:
    path = str(tmp_path / "numbered.npz")
    save_trace(numbered_trace(), path)
    source = WorkloadSource(LAYER, 4, routing=path, tokens=15, split="test", layer_index=3)
    starts = set()
    for seed in range(40):
        drawn = source.draw(seed)
        windows = drawn.topk_ids[:, 0].reshape(4, 15)
        assert (np.diff(windows, axis=1) % 8 == 1).all()
        starts |= set(windows[:, 0].tolist())
    assert drawn.name == "numbered layer=3 split=test seed=39"
    # The test split is tokens 80 to 99, so windows of 15 start at 80 to 85, which is 0 to 5 modulo 8.
    assert starts == {0, 1, 2, 3, 4, 5}
    source = WorkloadSource(LAYER, 4, routing=path, tokens=15)
    assert {source.draw(seed).name[:16] for seed in range(20)} == {"numbered layer=3", "numbered layer=4"}


def test_a_window_may_fill_its_split(tmp_path: Path) -> None:
    path = str(tmp_path / "numbered.npz")
    save_trace(numbered_trace(), path)
    source = WorkloadSource(LAYER, 2, routing=path, tokens=20, split="validation", layer_index=3)
    drawn = source.draw(0)
    assert drawn.topk_ids[:20].tolist() == drawn.topk_ids[20:].tolist() == numbered_trace().topk_ids[0, 60:80].tolist()


def test_wrong_sources_give_one_line(tmp_path: Path) -> None:
    path = str(tmp_path / "numbered.npz")
    save_trace(numbered_trace(), path)
    for changes, message in (
        ({"routing": path, "split": "test", "tokens": 21}, r"tokens=21 is more than split 'test' of .* \(20 of 100 "),
        ({"routing": path, "layer_index": 1}, r"trace '.*': layer_index=1 is not in it; choose from \[3, 4\]"),
        ({"routing": "recorded"}, "trace 'recorded': it has 64 experts; model 'test' has 8"),
        ({"routing": "unifrom"}, r"did you mean 'uniform'\?"),
        ({"layer_index": 1}, "layer_index=1 needs a trace; routing='uniform' is a generator"),
        ({"split": "train"}, "split='train' needs a trace; routing='uniform' is a generator"),
        ({"placement": "random"}, "placement='random' is unknown; choose 'contiguous' or"),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            WorkloadSource(LAYER, 4, **{"tokens": 10, **changes})
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="gpus=3 does not divide 8 experts evenly"):
        WorkloadSource(LAYER, 3, tokens=256)


def test_the_shipped_recording_serves_every_split_of_a_small_machine() -> None:
    for split in ("train", "validation", "test"):
        source = WorkloadSource(load_model("deepseek-v2-lite"), 8, routing="recorded", tokens=512, split=split)
        drawn = source.draw(1)
        assert drawn.topk_ids.shape == (4096, 6)


def test_placements_from_files(tmp_path: Path) -> None:
    listed = [0, 1, 0, 1, 1, 0, 1, 0]
    (tmp_path / "p.json").write_text(json.dumps(listed))
    np.savez(tmp_path / "p.npz", gpu_of_expert=np.array(listed))
    for name in ("p.json", "p.npz"):
        assert load_placement(str(tmp_path / name), 8, 2).tolist() == listed
        source = WorkloadSource(LAYER, 2, tokens=4, placement=str(tmp_path / name))
        assert source.draw(0).gpu_of_expert.tolist() == listed
    for content in ("{", "[[1], 2]", '["a"]', "[0.5]", "[0, 1]", "[0,0,0,0,0,0,0,0]", "[0,0,0,0,1,1,1,9]", "3", "{}"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ConfigError, match="placement '.*bad.json'"):
            load_placement(str(tmp_path / "bad.json"), 8, 2)
    with pytest.raises(ConfigError, match="No such file"):
        load_placement(str(tmp_path / "missing.json"), 8, 2)
