from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError, Notice
from dysharp_env.workload.layer import LayerSpec, load_model
from dysharp_env.workload.statistics import trace_statistics
from dysharp_env.workload.traces import RoutingTrace, load_trace, save_trace, split_range
from tests.shared_files import SHARED, needs_shared

LAYER = LayerSpec(
    name="test", hidden=64, moe_ff=64, experts=4, top_k=1, ffn_matrices=2, compute_dtype="bf16", source="test"
)


def small_trace() -> RoutingTrace:
    """Six tokens, two layers, two documents; the second layer is the first with experts reversed."""
    ids = np.array([[0, 1], [0, 1], [0, 2], [3, 2], [1, 0], [0, 3]], dtype=np.uint8)
    weights = np.tile(np.array([0.25, 0.75], dtype=np.float16), (2, 6, 1))
    return RoutingTrace(np.stack([ids, 3 - ids]), 4, np.array([0, 4, 6]), np.array([5, 9]), weights, "by hand")


class Wary(np.ndarray):
    """Unsigned numbers that are compared with none they cannot be: numpy before 2.2.2 may end the process over it."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        limit = np.iinfo(self.dtype)
        assert all(limit.min <= each <= limit.max for each in inputs if type(each) is int), (ufunc, inputs)
        plain = [each.view(np.ndarray) if isinstance(each, Wary) else each for each in inputs]
        return getattr(ufunc, method)(*plain, **options)


def test_ids_without_a_sign_are_compared_with_nothing_else() -> None:
    whole = np.arange(512, dtype=np.uint8).reshape(2, 64, 4).view(Wary)
    with pytest.raises(AssertionError):
        whole[..., 1:] == -1  # noqa: B015
    trace = RoutingTrace(whole[:, 1:, :3], 256, np.array([0, 63]), np.array([0, 1]))
    assert type(trace.topk_ids) is Wary and trace.without_padding() is trace
    layer = LAYER.with_changes({"experts": 250, "zero_experts": 6, "top_k": 3})
    assert trace.for_layer(layer).topk_ids.min() == -1


def test_round_trip(tmp_path: Path) -> None:
    path = str(tmp_path / "trace.npz")
    save_trace(small_trace(), path)
    loaded = load_trace(path)
    for name in ("topk_ids", "topk_weights", "doc_offsets", "layer_index"):
        assert np.array_equal(getattr(loaded, name), getattr(small_trace(), name)), name
    assert (loaded.experts, loaded.source, loaded.topk_ids.dtype) == (4, "by hand", np.uint8)
    assert os.listdir(tmp_path) == ["trace.npz"]


def test_more_layers_than_tokens_are_wondered_about(tmp_path: Path) -> None:
    path, ids = str(tmp_path / "t.npz"), np.tile(np.arange(2), (26, 9, 1))
    np.savez(path, topk_ids=ids.transpose(1, 0, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_trace(path)
    np.savez(path, topk_ids=ids)
    with pytest.warns(
        Notice, match=r"t.npz' has more layers, 26, than tokens, 9; if tokens come first in it, 'trace im"
    ):
        trace = load_trace(path)
    save_trace(trace, path)  # which says what its layers are
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_trace(path).num_tokens == 9


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, full_disk: None) -> None:
    path = tmp_path / "trace.npz"
    path.write_bytes(b"old")
    with pytest.raises(ConfigError, match="No space left"):
        save_trace(small_trace(), str(path))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["trace.npz"]


def test_minimal_file_gets_defaults(tmp_path: Path) -> None:
    path = str(tmp_path / "bare.npz")
    np.savez(path, topk_ids=small_trace().topk_ids.astype(np.int64))
    loaded = load_trace(path)
    assert (loaded.experts, loaded.layer_index.tolist(), loaded.doc_offsets.tolist()) == (4, [0, 1], [0, 6])
    assert loaded.topk_weights is None and loaded.topk_ids.dtype == np.uint8


IDS = small_trace().topk_ids


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": IDS}, r"lacks the array 'topk_ids'; it holds \['ids'\]"),
        ({"topk_ids": IDS[0]}, r"must be whole numbers \(layer, token, k\), not uint8 of shape \(6, 2\)"),
        ({"topk_ids": IDS.astype(float)}, "must be whole numbers"),
        ({"topk_ids": IDS[:, :0]}, "must be whole numbers"),
        ({"topk_ids": IDS, "experts": 3}, "topk_ids holds expert 3; experts are 0 to 2"),
        ({"topk_ids": IDS.astype(np.int8) - 2}, "topk_ids holds expert -2; experts are 0 to"),
        ({"topk_ids": IDS.astype(np.int8) * 0 - 1, "experts": 4}, "topk_ids holds -1 for every token"),
        ({"topk_ids": IDS, "tokens_of_gpu": [3, 4]}, r"tokens_of_gpu must list whole numbers that make 6 .* \[3, 4\]"),
        ({"topk_ids": IDS, "tokens_of_gpu": [8, -2]}, "tokens_of_gpu must list whole numbers"),
        ({"topk_ids": IDS, "tokens_of_gpu": [3.0, 3.0]}, "tokens_of_gpu must list whole numbers"),
        ({"topk_ids": IDS, "experts": [4]}, "experts must be one whole number"),
        ({"topk_ids": IDS * 0}, r"token 0 of layer 0 chose an expert twice: \[0, 0\]"),
        ({"topk_ids": IDS, "topk_weights": np.ones((2, 6))}, "topk_weights must be floats of shape"),
        ({"topk_ids": IDS, "topk_weights": np.full(IDS.shape, np.nan)}, "must be finite"),
        ({"topk_ids": IDS, "doc_offsets": [0, 4]}, "must grow from 0 to the 6 tokens"),
        ({"topk_ids": IDS, "doc_offsets": [0, 4, 4, 6]}, "must grow"),
        ({"topk_ids": IDS, "doc_offsets": [0.0, 6.0]}, "must list whole numbers"),
        ({"topk_ids": IDS, "layer_index": [1]}, "topk_ids has 2 layers"),
        ({"topk_ids": IDS, "layer_index": [1, 1]}, "names a layer twice"),
        ({"topk_ids": np.array([None])}, "holds object, not numbers; arrays of Python objects are never read"),
    ],
)
def test_impossible_arrays_give_one_line(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    path = str(tmp_path / "bad.npz")
    np.savez(path, **arrays)  # the last case is pickled here, and must not be unpickled there
    with pytest.raises(ConfigError, match=message) as raised:
        load_trace(path)
    assert path in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    save_trace(small_trace(), str(path))
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match="not a whole npz file"):
            load_trace(str(path))


def test_a_flipped_byte_never_escapes_as_another_error(tmp_path: Path) -> None:
    path = tmp_path / "trace.npz"
    save_trace(small_trace(), str(path))
    whole = path.read_bytes()
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            load_trace(str(path))
        except ConfigError as error:
            assert "\n" not in str(error)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_trace(str(tmp_path / "missing.npz"))
    for content in (b"", b"hello", b"\x80\x04N."):
        (tmp_path / "other.npz").write_bytes(content)
        with pytest.raises(ConfigError, match="not a whole npz file"):
            load_trace(str(tmp_path / "other.npz"))
    np.save(tmp_path / "bare.npy", IDS)
    (tmp_path / "bare.npy").rename(tmp_path / "bare.npz")
    with pytest.raises(ConfigError, match="not a whole npz file"):
        load_trace(str(tmp_path / "bare.npz"))
    for target in ("trace.txt", "no/such/folder.npz"):
        with pytest.raises(ConfigError, match="output='"):
            save_trace(small_trace(), str(tmp_path / target))


def test_for_layer_keeps_the_heaviest_experts() -> None:
    assert small_trace().for_layer(LAYER).topk_ids[0, :, 0].tolist() == [1, 1, 2, 2, 0, 3]
    same = small_trace()
    assert same.for_layer(LAYER.with_changes({"top_k": 2})) is same
    with pytest.raises(ConfigError, match="no topk_weights"):
        replace(small_trace(), topk_weights=None).for_layer(LAYER)
    with pytest.raises(ConfigError, match="it has 2 experts a token; top_k=3 needs"):
        small_trace().for_layer(LAYER.with_changes({"top_k": 3}))
    with pytest.raises(ConfigError, match="it has 4 experts; model 'test' has 8"):
        small_trace().for_layer(LAYER.with_changes({"experts": 8}))


def with_gaps() -> dict[str, np.ndarray]:
    """The small trace with slots that were dropped, all of a token's in one layer, and two tokens of padding."""
    ids = IDS.astype(np.int64)
    ids[0, 0], ids[1, 2, 1], ids[0, 3], ids[:, 4], ids[:, 5] = (-1, 1), -1, -1, -1, -1
    weights = np.tile(np.array([0.25, 0.75], dtype=np.float16), (2, 6, 1))
    return {"topk_ids": ids, "topk_weights": weights, "doc_offsets": [0, 4, 6], "tokens_of_gpu": [1, 0, 4, 1]}


def test_dropped_slots_stand_behind_and_padding_is_left_out(tmp_path: Path) -> None:
    path = str(tmp_path / "gaps.npz")
    np.savez(path, **with_gaps())
    trace = load_trace(path)
    assert trace.topk_ids.tolist() == [
        [[1, -1], [0, 1], [0, 2], [-1, -1]],
        [[3, 2], [3, 2], [3, -1], [0, 1]],
    ]
    assert trace.topk_ids.dtype == np.int8 and trace.num_padding == 2
    assert trace.topk_weights[0, 0].tolist() == [0.75, 0.0] and trace.topk_weights[1, 2].tolist() == [0.25, 0.0]
    assert trace.doc_offsets.tolist() == [0, 4] and trace.tokens_of_gpu.tolist() == [1, 0, 3, 0]
    save_trace(trace, path)
    again = load_trace(path)
    assert np.array_equal(again.topk_ids, trace.topk_ids) and again.num_padding == 0
    assert again.tokens_of_gpu.tolist() == [1, 0, 3, 0]
    assert trace.window(1, 3).tokens_of_gpu.tolist() == [0, 0, 2, 0]
    # A token with no expert in one layer is a token as any other.
    assert trace.window(3, 4, [0]).topk_ids.tolist() == [[[-1, -1]]]


def test_a_hole_is_refused_where_no_file_is_read() -> None:
    with pytest.raises(ConfigError, match=r"token 0 of layer 0 has -1 before an expert: \[-1, 1\]"):
        RoutingTrace(np.array([[[-1, 1]]]), 2, np.array([0, 1]), np.array([0]))


def test_the_model_says_how_many_experts_where_the_file_does_not(tmp_path: Path) -> None:
    path = str(tmp_path / "bare.npz")
    np.savez(path, topk_ids=IDS)
    assert (load_trace(path).experts, load_trace(path).is_experts_known) == (4, False)
    assert (load_trace(path, 7).experts, load_trace(path, 7).is_experts_known) == (7, True)
    with pytest.raises(ConfigError, match="bare.npz': topk_ids holds expert 3; experts are 0 to 2"):
        load_trace(path, 3)
    np.savez(path, topk_ids=IDS, experts=5)
    assert (load_trace(path, 7).experts, load_trace(path, 7).is_experts_known) == (5, True)


def test_choices_of_experts_that_compute_nothing_become_none() -> None:
    layer = LAYER.with_changes({"experts": 2, "zero_experts": 2, "top_k": 2})
    trace = small_trace().for_layer(layer)
    # Experts 2 and 3 compute nothing.
    assert trace.topk_ids[0].tolist() == [[0, 1], [0, 1], [0, -1], [-1, -1], [1, 0], [0, -1]]
    assert trace.topk_weights[1, 2].tolist() == [0.75, 0.0]  # [3, 1] at [0.25, 0.75]
    # The heaviest is kept first, and what it is comes second.
    assert small_trace().for_layer(layer.with_changes({"top_k": 1})).topk_ids[0].tolist() == [
        [1],
        [1],
        [-1],
        [-1],
        [0],
        [-1],
    ]
    with pytest.raises(ConfigError, match="it has 4 experts; model 'test' has 3 and 2 that compute nothing"):
        small_trace().for_layer(layer.with_changes({"experts": 3}))


@needs_shared
def test_traces_with_padding_dropped_slots_and_experts_that_nobody_chose() -> None:
    layer = load_model("deepseek-v2-lite")
    for name, tokens, padding in (("pad_tail", 560, 40), ("pad_some_k", 600, 0), ("few60", 600, 0)):
        trace = load_trace(str(SHARED / "cases" / f"{name}.npz"), layer.choices).for_layer(layer)
        assert (trace.experts, trace.num_tokens, trace.num_padding) == (64, tokens, padding), name
        assert (trace.topk_ids.min() < 0) == (name == "pad_some_k"), name


def test_window_cuts_documents_and_layers() -> None:
    cut = small_trace().window(1, 5, [9])
    assert cut.doc_offsets.tolist() == [0, 3, 4] and cut.layer_index.tolist() == [9]
    assert np.array_equal(cut.topk_ids[0], small_trace().topk_ids[1, 1:5])
    assert small_trace().window(4, 6).doc_offsets.tolist() == [0, 2]
    for start, stop in ((3, 3), (-1, 2), (0, 7)):
        with pytest.raises(ConfigError, match="not a window of the trace's 6 tokens"):
            small_trace().window(start, stop)
    with pytest.raises(ConfigError, match=r"layer_index=1 is not in it; choose from \[5, 9\]"):
        small_trace().window(0, 2, [1])


def test_splits_cover_the_trace_without_overlap_and_end_at_documents() -> None:
    ids = np.tile(np.array([0, 1], dtype=np.uint8), (1, 1000, 1))
    trace = RoutingTrace(ids, 2, np.array([0, 290, 580, 1000]), np.array([0]))
    parts = [split_range(trace, split) for split in ("train", "validation", "test")]
    assert parts == [(0, 580), (580, 800), (800, 1000)]  # 580 is a document's end near 600; none is near 800
    assert split_range(trace, "all") == (0, 1000)


def test_statistics_by_hand() -> None:
    statistics = trace_statistics(small_trace(), (1, 2))
    first = statistics.layers[5]
    # Loads of the first layer are [5, 3, 2, 2]: mean 3, variance (4 + 0 + 1 + 1) / 4.
    assert first.load_cv == pytest.approx(np.sqrt(1.5) / 3)
    assert first.load_max_over_mean == pytest.approx(5 / 3)
    assert first.hottest_share == pytest.approx(5 / 12)  # an eighth of 4 experts, at least one
    # Repeated: 2, 1, 1 of 2, then a new document, then 1 of 2.
    assert first.adjacent_share == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4)
    assert first.adjacent_share_independent == pytest.approx((25 + 9 + 4 + 4) / 36 / 2)
    one, two = statistics.fan_out
    assert (one.fan_out, one.fan_out_uniform, one.gpu_max_over_mean, one.pair_max_over_mean) == (1, 1, 1, 1)
    # Experts 0 and 1 are on one GPU, 2 and 3 on the other: tokens visit 1, 1, 2, 1, 1, 2 GPUs.
    assert two.fan_out == pytest.approx(8 / 6)
    assert two.fan_out_uniform == pytest.approx(2 * (1 - 1 / 6))
    assert two.gpu_max_over_mean == pytest.approx(5 / 4)
    assert two.pair_max_over_mean == pytest.approx(3 / 2)  # [[3, 1], [2, 2]]
    assert statistics.gate_weights == pytest.approx([0.75, 0.25])
    for num_gpus, message in ((0, "gpus=0 must be at least 1"), (7, "gpus=7 is more than the trace's 6 tokens")):
        with pytest.raises(ConfigError, match=message):
            trace_statistics(small_trace(), (num_gpus,))


def test_statistics_of_odd_shapes_by_hand() -> None:
    # Experts 0 and 1 on one of three GPUs, 2 and 3 on one each: tokens visit 1, 1, 2, 2, 1, 2 GPUs.
    (three,) = trace_statistics(small_trace().window(0, 6, [5]), (3,)).fan_out
    assert three.fan_out == pytest.approx(9 / 6)
    assert three.fan_out_uniform == pytest.approx(3 - (1 / 6 + 2 * 3 / 6))
    assert three.gpu_max_over_mean == pytest.approx(5 / (9 / 3))
    # Dropped slots are no experts: they are not repeated, go nowhere and weigh nothing.
    ids = np.array([[[0, 1], [1, -1], [-1, -1], [1, 2]]])
    trace = RoutingTrace(ids, 4, np.array([0, 4]), np.array([0]))
    statistics = trace_statistics(trace, (2,))
    assert statistics.layers[0].load_max_over_mean == pytest.approx(3 / (5 / 4))
    assert statistics.layers[0].adjacent_share == pytest.approx((1 + 0 + 0) / 3)
    assert statistics.fan_out[0].fan_out == pytest.approx((1 + 1 + 0 + 2) / 4)
    assert trace_statistics(trace.window(2, 3), ()).mean.load_cv == 0.0


def test_the_shipped_recording_is_small_real_and_fits_its_model() -> None:
    trace = load_trace("recorded")
    assert trace.for_layer(load_model("deepseek-v2-lite")) is trace
    assert trace.for_layer(load_model("deepseek-v2-lite", top_k=4)).top_k == 4
    assert trace.num_tokens >= 16000 and len(trace.doc_offsets) > 20 and len(trace.topk_ids) == 3
    assert "python -m dysharp_env trace record" in trace.source
    import dysharp_env.workload.traces as traces

    assert Path(traces.__file__).with_name("recordings").joinpath("stdlib-moe64.npz").stat().st_size < 1_000_000
    mean = trace_statistics(trace).mean
    assert 0.2 < mean.adjacent_share < 0.5 and mean.adjacent_share > 1.3 * mean.adjacent_share_independent
    assert 0.3 < mean.load_cv < 1.3
