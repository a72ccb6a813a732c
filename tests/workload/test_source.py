"""Sources: what they draw from generators, traces and loads, for even and uneven GPUs, one layer or several."""

from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError, Notice, parse_spec
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.eplb import eplb_placement
from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.source import WorkloadSource
from dysharp_env.workload.traces import RoutingTrace, save_trace
from tests.shared_files import SHARED, needs_shared

LAYER = LayerSpec(
    name="test", hidden=64, moe_ff=64, experts=8, top_k=2, ffn_matrices=2, compute_dtype="bf16", source="test"
)


def numbered_trace(tokens: int = 100, tokens_of_gpu: list[int] | None = None) -> RoutingTrace:
    """Token t of layer 3 chooses experts (t mod 8, t + 1 mod 8), so that windows can be recognised."""
    first = np.arange(tokens) % 8
    ids = np.stack([first, (first + 1) % 8], axis=-1).astype(np.uint8)
    counts = None if tokens_of_gpu is None else np.array(tokens_of_gpu)
    return RoutingTrace(np.stack([ids, 7 - ids]), 8, np.array([0, tokens]), np.array([3, 4]), tokens_of_gpu=counts)


@pytest.fixture
def numbered(tmp_path: Path) -> str:
    save_trace(numbered_trace(), str(tmp_path / "numbered.npz"))
    return str(tmp_path / "numbered.npz")


def test_overlapping_windows_are_noticed_with_their_numbers(numbered: str) -> None:
    # Each of 4 GPUs takes half of 100 tokens: (1 - 1/2)^4 are in no window, so 93.75 of 200 tokens are new.
    with pytest.warns(
        Notice, match=r"4 GPUs draw 200 tokens from 100 of '.*' \(split 'all'\): .* about 53% of a batch's"
    ):
        WorkloadSource(LAYER, 4, tokens=50, routing=numbered)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WorkloadSource(LAYER, 4, tokens=5, routing=numbered)


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


def test_trace_windows_are_contiguous_independent_and_within_the_split(numbered: str) -> None:
    source = WorkloadSource(LAYER, 4, routing=numbered, tokens=15, split="test", layer_index=3)
    starts = set()
    for seed in range(40):
        drawn = source.draw(seed)
        windows = drawn.topk_ids[:, 0].reshape(4, 15)
        assert (np.diff(windows, axis=1) % 8 == 1).all()
        starts |= set(windows[:, 0].tolist())
    assert drawn.name == "numbered layer=3 split=test seed=39"
    # The test split is tokens 80 to 99, so windows of 15 start at 80 to 85, which is 0 to 5 modulo 8.
    assert starts == {0, 1, 2, 3, 4, 5}
    source = WorkloadSource(LAYER, 4, routing=numbered, tokens=15)
    assert {source.draw(seed).name[:16] for seed in range(20)} == {"numbered layer=3", "numbered layer=4"}


def test_a_window_may_fill_its_split(numbered: str) -> None:
    source = WorkloadSource(LAYER, 2, routing=numbered, tokens=20, split="validation", layer_index=3)
    drawn = source.draw(0)
    assert drawn.topk_ids[:20].tolist() == drawn.topk_ids[20:].tolist() == numbered_trace().topk_ids[0, 60:80].tolist()


def test_every_gpu_has_a_window_of_its_own_length(numbered: str) -> None:
    counts = [15, 0, 20, 1]
    source = WorkloadSource(LAYER, 4, routing=numbered, tokens=counts, split="test", layer_index=3)
    for seed in range(20):
        drawn = source.draw(seed)
        assert drawn.tokens_of_gpu.tolist() == counts
        for first, last in zip(drawn.first_token, drawn.first_token[1:], strict=False):
            assert (np.diff(drawn.topk_ids[first:last, 0]) % 8 == 1).all()
        assert drawn.topk_ids[15, 0] == 0  # a window of 20 is the whole split, which begins at token 80
    # Given as a list, even counts draw what the number draws.
    even, listed = (WorkloadSource(LAYER, 3, routing=numbered, tokens=each) for each in (7, [7, 7, 7]))
    assert all(np.array_equal(even.draw(seed).topk_ids, listed.draw(seed).topk_ids) for seed in range(10))


def test_windows_of_a_seed_stay_what_they_were() -> None:
    # Rows that version 0.1.0 drew from the shipped recording.
    drawn = ScenarioSpec(tokens=256).build().draw(11)
    assert drawn.name == "recorded layer=1 split=all seed=11"
    assert drawn.topk_ids[[0, 300, 2047]].tolist() == [
        [36, 1, 48, 59, 10, 29],
        [58, 19, 26, 50, 35, 20],
        [55, 30, 33, 57, 20, 54],
    ]


def test_a_trace_may_say_which_tokens_each_gpu_had(tmp_path: Path) -> None:
    path = str(tmp_path / "own.npz")
    save_trace(numbered_trace(100, [30, 0, 69, 1]), path)
    source = WorkloadSource(LAYER, 4, routing=path, tokens="trace", layer_index=4)
    drawn = source.draw(0)
    assert drawn.tokens_of_gpu.tolist() == [30, 0, 69, 1]
    assert np.array_equal(drawn.topk_ids, numbered_trace().topk_ids[1])
    assert np.array_equal(source.draw(1).topk_ids, drawn.topk_ids)
    # Windows may still be cut from it.
    assert WorkloadSource(LAYER, 2, routing=path, tokens=5).draw(0).num_tokens == 10


def test_several_layers_have_the_same_tokens(numbered: str) -> None:
    for layer_index, numbers in (((4, 3), [4, 3]), ("all", [3, 4])):
        source = WorkloadSource(LAYER, 4, routing=numbered, tokens=[9, 2, 0, 5], layer_index=layer_index)
        drawn = source.draw_layers(7)
        assert [each.name for each in drawn] == [f"numbered layer={number} split=all seed=7" for number in numbers]
        assert np.array_equal(drawn[0].topk_ids, 7 - drawn[1].topk_ids)
        alone = source.draw(7)
        assert any(each.name == alone.name and np.array_equal(each.topk_ids, alone.topk_ids) for each in drawn)
        assert [each.layer_index for each in drawn] == numbers
    for layer_index in (None, 3):
        source = WorkloadSource(LAYER, 4, routing=numbered, tokens=9, layer_index=layer_index)
        (only,) = source.draw_layers(7)
        assert only.name == source.draw(7).name and np.array_equal(only.topk_ids, source.draw(7).topk_ids)


def test_history_of_a_trace_is_its_other_tokens(numbered: str) -> None:
    source = WorkloadSource(LAYER, 2, routing=numbered, tokens=[30, 10], split="train", layer_index=3)
    drawn = source.draw(1)
    loads = np.bincount(numbered_trace().topk_ids[0].ravel(), minlength=8)
    now = np.bincount(drawn.topk_ids.ravel(), minlength=8)
    used = {*range(*_window(drawn, 0, 30)), *range(*_window(drawn, 1, 10))}
    others = np.delete(numbered_trace().topk_ids[0], sorted(used), axis=0)
    assert pickle.loads(pickle.dumps(drawn)).past_loads.tolist() == np.bincount(others.ravel(), minlength=8).tolist()
    assert drawn.past_loads.sum() >= loads.sum() - now.sum()
    # Where nothing is left, all of it.
    whole = WorkloadSource(LAYER, 1, routing=numbered, tokens=100, layer_index=3).draw(0)
    assert whole.past_loads.tolist() == loads.tolist()


def _window(drawn: Any, gpu: int, count: int) -> tuple[int, int]:
    """Finds a window of the numbered trace's training split by its draw, which its first token shows modulo 8 only."""
    rng = np.random.default_rng(1)
    rng.integers(1)
    start = int(rng.integers(0, 60 - drawn.tokens_of_gpu + 1)[gpu])
    assert drawn.topk_ids[drawn.first_token[gpu], 0] == start % 8
    return start, start + count


def test_history_of_a_generator_is_another_batch_of_the_same_kind() -> None:
    drawn = WorkloadSource(LAYER, 2, routing="gpt-oss-20b:2", tokens=[4000, 1000]).draw(3)
    now = np.bincount(drawn.topk_ids.ravel(), minlength=8)
    past = pickle.loads(pickle.dumps(drawn)).past_loads
    assert past.sum() == now.sum() and past.tolist() != now.tolist() and np.corrcoef(past, now)[0, 1] > 0.8


def test_tokens_are_served_by_replicas(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps([0, 1, 2, 3, 4, 5, 6, 7, 0, 1]))  # 0 and 1 are on both GPUs
    chosen = {}
    for how in ("nearest", "round_robin", "least_loaded"):
        source = WorkloadSource(LAYER, 2, 50, "uniform", placement=str(tmp_path / "p.json"), replicas=how)
        drawn = source.draw(0)
        chosen[how] = np.bincount(drawn.topk_ids.ravel(), minlength=10)
        assert drawn.past_loads.shape == (8,)  # of logical experts
        plain = WorkloadSource(LAYER, 2, 50, "uniform").draw(0)
        assert np.array_equal(drawn.logical_ids, plain.topk_ids)
    away = drawn.placement.gpu_of_expert[drawn.topk_ids] != drawn.home_of_token[:, None]
    nearest = WorkloadSource(LAYER, 2, 50, "uniform", placement=str(tmp_path / "p.json")).draw(0)
    assert not (away & np.isin(drawn.logical_ids, (0, 1))).sum() == 0
    near = nearest.placement.gpu_of_expert[nearest.topk_ids] == nearest.home_of_token[:, None]
    assert near[np.isin(nearest.logical_ids, (0, 1))].all()
    assert abs(np.subtract(*chosen["round_robin"][[0, 8]])) <= 2


def test_eplb_places_by_the_loads_of_an_earlier_batch() -> None:
    layer = LAYER.with_changes({"experts": 32, "top_k": 4})
    source = WorkloadSource(layer, 4, 2000, "gpt-oss-20b:1.5", placement="eplb:12", replicas="round_robin")
    for seed in range(3):
        drawn, plain = source.draw(seed), WorkloadSource(layer, 4, 2000, "gpt-oss-20b:1.5").draw(seed)
        placed = eplb_placement(drawn.past_loads, 4, 12)
        assert np.array_equal(drawn.placement.logical_of_expert, placed.logical_of_expert)
        assert np.array_equal(drawn.logical_ids, plain.topk_ids) and drawn.placement.held.tolist() == [12] * 4
        busiest = [
            np.bincount(each.gpu_of_expert, each.demand.expert_tokens).max() * 4 / (8000 * 4) for each in (drawn, plain)
        ]
        assert busiest[0] < 1.1 < busiest[1]


def test_placements_of_layers_go_with_the_layers_of_routing(tmp_path: Path, numbered: str) -> None:
    rows = [[0, 0, 0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0]]
    path = tmp_path / "p.json"
    path.write_text(json.dumps(rows))
    drawn = WorkloadSource(LAYER, 2, 4, numbered, str(path), layer_index="all").draw_layers(0)
    assert [each.gpu_of_expert.tolist() for each in drawn] == rows
    assert WorkloadSource(LAYER, 2, 4, "uniform", str(path), 1).draw(0).gpu_of_expert.tolist() == rows[1]
    with pytest.raises(ConfigError, match="has 2 layers from 0 to 1; no layer is named: choose with layer_index"):
        WorkloadSource(LAYER, 2, 4, "uniform", str(path))
    path.write_text(json.dumps([*rows, rows[0]]))
    with pytest.raises(ConfigError, match="has 3 layers from 0 to 2, but none for layer 3 of 2"):
        WorkloadSource(LAYER, 2, 4, numbered, str(path))


def test_wrong_sources_give_one_line(tmp_path: Path, numbered: str) -> None:
    own = str(tmp_path / "own.npz")
    save_trace(numbered_trace(100, [50, 50]), own)
    np.savez(tmp_path / "loads.npz", mine=np.ones((2, 8)), other=np.ones((2, 9)))
    loads = f"{tmp_path / 'loads.npz'}:mine"
    for changes, message in (
        (
            {"routing": numbered, "split": "test", "tokens": 21},
            r"tokens=21 is more than split 'test' of .* \(20 of 100 ",
        ),
        ({"routing": numbered, "tokens": [1, 2, 0, 101]}, r"tokens=101 is more than split 'all' of .* \(100 of 100 "),
        ({"routing": numbered, "layer_index": 1}, r"trace '.*': layer_index=1 is not in it; choose from \[3, 4\]"),
        ({"routing": numbered, "layer_index": (3, 5)}, r"trace '.*': layer_index=5 is not in it"),
        ({"routing": "recorded"}, "trace 'recorded': it has 64 experts; model 'test' has 8"),
        ({"routing": "unifrom"}, r"did you mean 'uniform'\?"),
        ({"layer_index": 1}, "layer_index=1 needs a trace; routing='uniform' is a generator"),
        ({"layer_index": "all"}, "layer_index='all' needs a trace; routing='uniform' is a generator"),
        ({"split": "train"}, "split='train' needs a trace; routing='uniform' is a generator"),
        ({"split": "train", "routing": loads}, "split='train' needs a trace; routing='.*:mine' is loads"),
        ({"routing": loads, "layer_index": 2}, r"loads '.*:mine': layer_index=2 is not in it; choose from \[0, 1\]"),
        ({"routing": loads.replace("mine", "other")}, "loads '.*:other': it has 9 experts; model 'test' has 8"),
        ({"tokens": "trace"}, "tokens='trace' needs a trace; routing='uniform' is a generator"),
        ({"tokens": "trace", "routing": loads}, "tokens='trace' needs a trace; routing='.*:mine' is loads"),
        ({"tokens": "trace", "routing": numbered}, "tokens='trace' needs tokens_of_gpu in the trace; '.*' has none"),
        ({"tokens": "trace", "routing": own}, "tokens='trace': '.*' is of 2 GPUs, not gpus=4"),
        ({"tokens": [1, 2]}, r"tokens=\[1, 2\] lists 2 numbers for gpus=4"),
        ({"placement": "random"}, "placement='random' is unknown; choose 'contiguous', 'eplb:M' or a .json, .npz"),
        ({"placement": "eplb"}, "placement='eplb' must be eplb:M, with the M experts that each GPU holds"),
        ({"placement": "eplb:1"}, "placement='eplb:1': slots=1 on each of 4 GPUs must be from 2 to 8 for 8 experts"),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            WorkloadSource(LAYER, 4, **{"tokens": 10, **changes})
        assert "\n" not in str(raised.value)
    with pytest.raises(ConfigError, match="takes the whole trace and needs split='all', not 'test'"):
        WorkloadSource(LAYER, 2, "trace", own, split="test")


def test_the_shipped_recording_serves_every_split_of_a_small_machine() -> None:
    for split in ("train", "validation", "test"):
        source = WorkloadSource(load_model("deepseek-v2-lite"), 8, routing="recorded", tokens=512, split=split)
        drawn = source.draw(1)
        assert drawn.topk_ids.shape == (4096, 6)


@pytest.mark.parametrize(
    ("given", "read"),
    [(64, 64), ((1, 0), (1, 0)), ([1, 0], (1, 0)), ("64,0,128", (64, 0, 128)), ("trace", "trace")],
)
def test_tokens_as_people_write_them(given: Any, read: Any) -> None:
    spec = ScenarioSpec(tokens=given)
    assert spec.tokens == read and ScenarioSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("field", "given", "message"),
    [
        ("tokens", 0, "tokens=0: must be from 1 to 1000000"),
        ("tokens", 1_000_001, "tokens=1000001: must be from 1 to 1000000"),
        ("tokens", "64", "tokens='64': must be a number, a number for each GPU such as 64,0,128,96, or 'trace'"),
        ("tokens", True, "tokens=True: must be a number"),
        ("tokens", 1.5, "tokens=1.5: must be a number"),
        ("tokens", "a,b", "tokens='a,b': must be a number"),
        ("tokens", "1,-1", "tokens='1,-1': must be a number"),
        ("tokens", [1, -1], "tokens=[1, -1]: must be from 0 to 1000000"),
        ("tokens", "0,0", "tokens='0,0': must be at least 1 together"),
        ("tokens", [], "tokens=[]: must be a number"),
        ("layer_index", "some", "layer_index='some': must be a number, different numbers such as 3,7, or 'all'"),
        ("layer_index", "3,3", "layer_index='3,3': must be a number, different numbers"),
        ("layer_index", True, "layer_index=True: must be a number"),
        ("replicas", "first", "replicas='first': Input should be 'nearest', 'round_robin' or 'least_loaded'"),
    ],
)
def test_wrong_options_give_one_line(field: str, given: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_spec(ScenarioSpec, {field: given}, source="here")
    assert str(raised.value).startswith(f"here: {message}") and "\n" not in str(raised.value)


@needs_shared
def test_traces_loads_and_placements_that_people_had_become_workloads() -> None:
    cases, traces = SHARED / "cases", SHARED / "traces"
    for options in (
        {"model": "deepseek-v2-lite", "routing": str(cases / "pad_tail.npz"), "layer_index": "all"},
        {"model": "deepseek-v2-lite", "routing": str(cases / "pad_some_k.npz"), "layer_index": "all"},
        {"model": "deepseek-v2-lite", "routing": str(cases / "few60.npz")},
        {"model": "deepseek-v2-lite", "routing": str(traces / "dsv2lite_esft_law.npz"), "tokens": (0, 64, 9, 1)},
        {"model": str(cases / "longcat.yaml"), "routing": "uniform", "tokens": (0, 64, 9, 1)},
        {"model": "qwen1.5-moe", "routing": "uniform", "placement": str(cases / "uneven60.json"), "gpus": 8},
        {"model": "deepseek-r1", "routing": "deepseek-r1", "placement": str(cases / "eplb_phy2log.json")},
    ):
        scenario = ScenarioSpec(**{"system": "dgx-h200", "gpus": 4, "tokens": 64, **options}).build()
        for drawn in scenario.draw_layers(0):
            assert drawn.num_tokens > 0 and drawn.past_loads.sum() > 0
    scenario = ScenarioSpec(
        system="gh200-nvl32",
        model="deepseek-r1",
        tokens=16,
        routing=f"{traces / 'deepseek_r1_sglang_loads.npz'}:decode_in2000out100",
        layer_index=(3, 60),
        placement=f"{traces / 'omni_infer_placements.npz'}:placement_pattern_3d_v3_supersuperrr4_32devices_SC",
        replicas="least_loaded",
    ).build()
    names = [drawn.name for drawn in scenario.draw_layers(4)]
    assert names == [f"deepseek_r1_sglang_loads:decode_in2000out100 layer={layer} seed=4" for layer in (3, 60)]
