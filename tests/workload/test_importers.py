from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.importers import FORMATS, Imported, Wanted, format_of, import_routing
from dysharp_env.workload.layer import load_model
from tests.shared_files import SHARED, needs_shared
from tests.workload.routing_files import (
    EXPERTS,
    LAYERS,
    TOP_K,
    llama_rows,
    megatron_lines,
    random_ids,
    route_lines,
    sglang_response,
    vllm21_response,
    vllm_response,
    with_dense,
    write_json,
    write_lines,
    write_safetensors,
)

SHAPE = Wanted(layers=LAYERS + 1, top_k=TOP_K)


def imported(paths: list[Path] | Path, name: str, wanted: Wanted | None = None, **options: str) -> Imported:
    """Returns what is imported, of which the format must be recognised."""
    found, result = import_routing(paths if isinstance(paths, list) else [paths], wanted, **options)
    assert found == name
    return result


def assert_same(result: Imported, ids: np.ndarray, layers: list[int], documents: list[int]) -> None:
    assert np.array_equal(result.trace.topk_ids, ids)
    assert result.trace.layer_index.tolist() == layers
    assert np.diff(result.trace.doc_offsets).tolist() == documents


def test_vllm_responses_in_all_their_forms(tmp_path: Path) -> None:
    first, second = random_ids(9), random_ids(5, seed=1)
    one = write_json(tmp_path / "one.json", vllm_response(first, prompt=6))
    result = imported(one, "vllm")
    assert_same(result, first, [1, 2, 3], [9])
    assert (result.dropped, result.phases, result.trace.experts) == ((0,), (6, 3), EXPERTS)
    assert not result.trace.is_experts_known
    both = [vllm_response(first, 6), vllm_response(second, 2)]
    for path in (write_json(tmp_path / "list.json", both), write_lines(tmp_path / "lines.txt", both)):
        assert_same(imported(path, "vllm"), np.concatenate([first, second], axis=1), [1, 2, 3], [9, 5])
    decode = imported(path, "vllm", phase="decode")
    assert_same(decode, np.concatenate([first[:, 6:], second[:, 2:]], axis=1), [1, 2, 3], [3, 3])
    prefill = imported(path, "vllm", phase="prefill")
    assert_same(prefill, np.concatenate([first[:, :6], second[:, :2]], axis=1), [1, 2, 3], [6, 2])
    old = write_json(tmp_path / "old.json", vllm21_response(first, [second, random_ids(2, seed=2)]))
    result = imported(old, "vllm")
    expected = np.concatenate([first, second, random_ids(2, seed=2)], axis=1)
    assert_same(result, expected, [0, 1, 2], [9, 5, 2])
    assert result.phases == (9, 7)


def test_sglang_responses_have_their_shape_from_the_user(tmp_path: Path) -> None:
    ids = random_ids(9)
    for openai in (False, True):
        path = write_json(tmp_path / "r.json", sglang_response(ids, prompt=6, openai=openai))
        result = imported(path, "sglang", SHAPE)
        assert_same(result, ids, [1, 2, 3], [9])
        assert result.phases == (6, 3) and result.dropped == (0,)
    path = write_json(tmp_path / "r.json", [sglang_response(ids, prompt=6, start=4)])
    assert_same(imported(path, "sglang", SHAPE, phase="prefill"), ids[:, 4:6], [1, 2, 3], [2])
    # A model says the shape too: 61 layers of which the first three are dense, top-8 of 256.
    model = load_model("deepseek-v3")
    many = np.concatenate([np.zeros((2, 3, 8), int), random_ids(3, layers=58, experts=256, k=8)])
    path = write_json(tmp_path / "r.json", sglang_response(many, prompt=2))
    result = imported(path, "sglang", Wanted(model=model))
    assert_same(result, many[2:], [*range(3, 61)], [3])
    assert result.trace.is_experts_known and result.trace.experts == 256
    with pytest.raises(ConfigError, match="give layers; the file of model 'deepseek-v2-lite' does not say"):
        import_routing([path], Wanted(model=load_model("deepseek-v2-lite")))


def test_arrays_of_ids_in_both_layouts(tmp_path: Path) -> None:
    ids = random_ids(9)
    np.save(tmp_path / "a.npy", with_dense(ids).transpose(1, 0, 2).astype(np.uint16))
    assert_same(imported(tmp_path / "a.npy", "ids"), ids, [1, 2, 3], [9])
    np.savez(tmp_path / "r3.npz", routed_experts=with_dense(ids).transpose(1, 0, 2), prompt_token_ids=np.arange(6))
    result = imported(tmp_path / "r3.npz", "ids")
    assert_same(result, ids, [1, 2, 3], [9])
    assert result.phases == (6, 3)
    np.savez(tmp_path / "own.npz", topk_ids=ids, experts=np.array(40))
    assert_same(imported(tmp_path / "own.npz", "ids"), ids, [0, 1, 2], [9])
    assert imported(tmp_path / "own.npz", "ids").trace.experts == 40
    np.savez(tmp_path / "tlk.npz", topk_ids=ids.transpose(1, 0, 2))
    result = imported(tmp_path / "tlk.npz", "ids")
    assert_same(result, ids, [0, 1, 2], [9])
    assert "was read as (token, layer, k)" in result.notes[0]
    assert imported(tmp_path / "tlk.npz", "ids", Wanted(layout="layer")).trace.topk_ids.shape == (9, 3, 4)


def test_padding_is_stripped_and_fewer_experts_are_kept(tmp_path: Path) -> None:
    ids = random_ids(6)
    ids[:, 4:] = -1  # padding at the end
    ids[1, 0] = [7, -1, 3, -1]  # two places dropped
    ids[:, 1] = 0  # what an engine leaves where it routed nothing
    np.save(tmp_path / "a.npy", ids.transpose(1, 0, 2))
    result = imported(tmp_path / "a.npy", "ids")
    assert result.trace.topk_ids[1, 0].tolist() == [7, 3, -1, -1]
    assert np.array_equal(result.trace.topk_ids[0], ids[0, [0, 2, 3]])
    assert result.trace.num_padding == 3
    assert result.notes[:2] == [
        "1 tokens have only zeros, which is no choice of experts",
        "3 tokens without any expert were padding and left out",
    ]


def test_megatron_keeps_ranks_uneven_tokens_and_steps(tmp_path: Path) -> None:
    steps = {(rank, step): random_ids(4 + 3 * rank + step, seed=10 * rank + step) for rank in (0, 2) for step in (0, 1)}
    for rank in (0, 2):
        lines = [line for step in (0, 1) for line in megatron_lines(steps[rank, step], rank, step)]
        write_lines(tmp_path / f"router_trace_rank{rank}.jsonl", lines)
    result = imported([tmp_path], "megatron")  # a folder stands for its files
    assert_same(result, np.concatenate([*steps.values()], axis=1), [1, 2, 3], [4, 5, 10, 11])
    assert result.trace.tokens_of_gpu.tolist() == [9, 21] and result.ranks == (0, 2)
    assert result.notes[0].startswith("4 lines of blocks other than the decoder")
    second = imported([tmp_path], "megatron", Wanted(steps=(1, 2)))
    assert second.trace.tokens_of_gpu.tolist() == [5, 11]
    # Microbatches of a step follow one another.
    parts = [steps[0, 0][:, :2], steps[0, 0][:, 2:]]
    lines = [{**line, "microbatch": place} for place, part in enumerate(parts) for line in megatron_lines(part, 0, 0)]
    result = imported(write_lines(tmp_path / "one.jsonl", lines), "megatron")
    assert_same(result, steps[0, 0], [1, 2, 3], [2, 2])
    assert result.trace.tokens_of_gpu is None and "all tokens are of one GPU, 0" in result.notes[1]


def test_logs_of_routes_in_one_file_or_several(tmp_path: Path) -> None:
    requests = {"b": random_ids(5), "a": random_ids(3, seed=1)}
    rng = np.random.default_rng(2)
    weights = {name: rng.random(ids.shape).round(3) for name, ids in requests.items()}
    lines = route_lines(requests, weights)
    expected = np.concatenate([*requests.values()], axis=1)
    result = imported(write_lines(tmp_path / "all.jsonl", lines), "route-log")
    assert_same(result, expected, [1, 2, 3], [5, 3])
    assert result.trace.experts == EXPERTS and result.trace.is_experts_known
    expected_weights = np.concatenate([*weights.values()], axis=1)
    assert result.trace.topk_weights == pytest.approx(expected_weights, abs=1e-3)
    files = [
        write_lines(
            tmp_path / f"layer{layer}.jsonl", [lines[0], *(each for each in lines[1:] if each["layer"] == layer)]
        )
        for layer in (1, 2, 3)
    ]
    assert_same(imported(files, "route-log"), expected, [1, 2, 3], [5, 3])


def test_tensorrt_llm_ids_and_counts(tmp_path: Path) -> None:
    write_json(tmp_path / "meta_info.json", {"num_experts": EXPERTS, "num_experts_per_token": TOP_K})
    ids = [random_ids(4), random_ids(6, seed=1)]
    for rank, each in enumerate(ids):
        raw = {f"100_{layer + 1}": part.astype("<i4") for layer, part in enumerate(each)}
        write_safetensors(tmp_path / f"rank{rank}_raw.safetensors", raw)
        counts = {name: np.bincount(part.ravel(), minlength=EXPERTS).astype("<i8") for name, part in raw.items()}
        write_safetensors(tmp_path / f"rank{rank}.safetensors", counts)
    result = imported([tmp_path], "tensorrt-llm")
    assert_same(result, np.concatenate(ids, axis=1), [1, 2, 3], [4, 6])
    assert result.trace.tokens_of_gpu.tolist() == [4, 6] and result.trace.is_experts_known
    counted = imported([tmp_path / "rank0.safetensors", tmp_path / "rank1.safetensors"], "tensorrt-llm")
    whole = np.concatenate(ids, axis=1)
    assert counted.loads.tolist() == [np.bincount(each.ravel(), minlength=EXPERTS).tolist() for each in whole]
    assert counted.trace.topk_ids.shape == (LAYERS, 8192, TOP_K) and counted.trace.layer_index.tolist() == [1, 2, 3]


def test_llama_cpp_tells_prefill_from_decode_and_skips_the_last_layer(tmp_path: Path) -> None:
    ids = random_ids(7)
    path = tmp_path / "t.csv"
    path.write_text(llama_rows([ids[:, :5], ids[:, 5:6], ids[:, 6:]]))
    result = imported(path, "llama.cpp", SHAPE)
    assert_same(result, ids, [1, 2, 3], [7])
    assert result.phases == (5, 2)
    short = ids.copy()
    short[-1, :4] = -1  # of a prompt the last layer computes its last token
    path.write_text(llama_rows([short[:, :5], short[:, 5:6], short[:, 6:]]))
    result = imported(path, "llama.cpp", SHAPE)
    assert_same(result, short, [1, 2, 3], [7])
    assert "4 tokens have no expert in layer 3, the last" in result.notes[0]


def test_parquet_is_a_file_a_layer(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    ids, scores = random_ids(9), np.random.default_rng(3).random((LAYERS, 9, TOP_K)).astype(np.float16)
    for layer in range(LAYERS):
        columns = {
            "indices": pyarrow.array(ids[layer].tolist(), pyarrow.list_(pyarrow.int16(), TOP_K)),
            "scores": pyarrow.array(
                [[np.float16(x) for x in row] for row in scores[layer]], pyarrow.list_(pyarrow.float16())
            ),
        }
        parquet.write_table(pyarrow.table(columns), tmp_path / f"layer_{layer + 2:02d}.parquet")
    result = imported([tmp_path], "flame")
    assert_same(result, ids, [2, 3, 4], [9])
    assert np.array_equal(result.trace.topk_weights, scores)


def test_importance_matrix_counts_tokens_of_experts(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(4)
    counts = {1: rng.integers(1, 90, EXPERTS), 2: rng.integers(1, 90, EXPERTS)}
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "")
    writer.add_type("imatrix")
    for layer, each in counts.items():
        for part in ("gate", "down"):
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight.counts", each.astype(np.float32).reshape(-1, 1))
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight.in_sum2", np.ones((EXPERTS, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = imported(tmp_path / "imatrix.gguf", "imatrix", Wanted(top_k=TOP_K, tokens=100))
    assert result.loads.tolist() == [each.tolist() for each in counts.values()]
    assert result.trace.layer_index.tolist() == [1, 2]


def test_logits_give_the_choice_of_softmax_routers_alone(tmp_path: Path) -> None:
    logits = np.random.default_rng(5).standard_normal((LAYERS, 8, EXPERTS)).astype(np.float32)
    expected = np.argsort(-logits, axis=-1)[..., :TOP_K]
    np.savez(tmp_path / "l.npz", router_logits=logits)
    result = imported(tmp_path / "l.npz", "logits", SHAPE)
    assert_same(result, expected, [0, 1, 2], [8])
    assert result.trace.experts == EXPERTS and "DeepSeek-V3" in result.notes[0]
    by_layer = {f"router_logits_{layer + 1}": each.reshape(2, 4, EXPERTS) for layer, each in enumerate(logits)}
    np.savez(tmp_path / "l.npz", **by_layer)
    assert_same(imported(tmp_path / "l.npz", "logits", SHAPE), expected, [1, 2, 3], [8])
    with pytest.raises(ConfigError, match="logits of model 'deepseek-r1' do not give its choice"):
        imported(tmp_path / "l.npz", "logits", Wanted(model=load_model("deepseek-r1")))


def test_loads_become_tokens_that_fit_them(tmp_path: Path) -> None:
    counts = np.random.default_rng(6).pareto(2.0, (2, EXPERTS)) * 100 + 20
    counts = np.concatenate([np.zeros((1, EXPERTS)), counts.round()])
    sgl = write_json(tmp_path / "s.json", {"logical_count": [(counts / 2).tolist(), (counts / 2).tolist()]})
    eplb = write_json(tmp_path / "e.json", counts.tolist())
    np.save(tmp_path / "e.npy", counts)
    table = [
        "layer_id,expert_id,count",
        *(f"{i},{e},{int(n)}" for i, row in enumerate(counts) for e, n in enumerate(row)),
    ]
    (tmp_path / "c.csv").write_text("\n".join(table))
    wanted, results = Wanted(top_k=TOP_K, tokens=6000, seed=1), []
    for path, name in (
        (sgl, "loads"),
        (eplb, "loads"),
        (tmp_path / "e.npy", "ids"),
        (tmp_path / "c.csv", "sglang-csv"),
    ):
        result = imported(path, name, wanted)
        assert result.loads == pytest.approx(counts[1:])
        results.append(result.trace.topk_ids)
    assert all(np.array_equal(each, results[0]) for each in results)
    assert result.trace.layer_index.tolist() == [1, 2] and result.dropped == (0,)
    got = np.stack([np.bincount(each.ravel(), minlength=EXPERTS) for each in results[0]]) / (6000 * TOP_K)
    assert got == pytest.approx(counts[1:] / counts[1:].sum(axis=1, keepdims=True), abs=0.008)
    assert "which experts a token chooses together, and that tokens are independent, is assumed" in result.notes[-1]
    with pytest.raises(ConfigError, match="phase='decode': format 'loads' holds loads"):
        import_routing([sgl], wanted, phase="decode")


def test_sglang_recorder_maps_physical_ids_and_tells_phases(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    # 36 physical experts of 32, in an order of each layer's own; layer 0 is dense.
    rng = np.random.default_rng(7)
    maps = np.stack([rng.permutation(np.append(np.arange(EXPERTS), [3, 4, 5, 3])) for _ in range(LAYERS + 1)])
    logical = {(rank, step): random_ids(5 + rank + step, seed=2 * rank + step) for rank in (0, 1) for step in (0, 1)}
    for rank in (0, 1):
        records = []
        for step in (0, 1):
            ids = logical[rank, step]
            physical = np.full((LAYERS + 1, ids.shape[1], 8), -1, np.int32)
            for layer, each in enumerate(ids):
                places = [np.flatnonzero(maps[layer + 1] == expert) for expert in range(EXPERTS)]
                physical[layer + 1, :, :TOP_K] = [[rng.choice(places[expert]) for expert in row] for row in each]
            record = {"forward_pass_id": step, "rank": rank, "forward_mode": 2 if step else 1}
            lengths = [2, ids.shape[1] - 2] if not step else None
            counts = torch.zeros(LAYERS + 1, maps.shape[1], dtype=torch.int32)
            records.append(
                {
                    **record,
                    "extend_seq_lens": lengths,
                    "topk_ids_of_layer": torch.from_numpy(physical),
                    "global_physical_count": counts,
                }
            )
        held = {"records": records, "last_physical_to_logical_map": torch.from_numpy(maps)}
        torch.save(held, tmp_path / f"r{rank}.pt")
    result = imported([tmp_path], "sglang-recorder")
    whole = np.concatenate([*logical.values()], axis=1)
    assert_same(result, whole, [1, 2, 3], [2, 3, *[1] * 6, 2, 4, *[1] * 7])
    assert result.phases == (11, 13) and result.trace.tokens_of_gpu.tolist() == [11, 13] and result.dropped == (0,)
    decode = imported([tmp_path], "sglang-recorder", phase="decode")
    assert np.array_equal(decode.trace.topk_ids, np.concatenate([logical[0, 1], logical[1, 1]], axis=1))
    # Without a map in the file the user gives one.
    del held["last_physical_to_logical_map"]
    torch.save(held, tmp_path / "r0.pt")
    with pytest.raises(ConfigError, match="its ids are of physical experts; give placement"):
        import_routing([tmp_path / "r0.pt"])
    given = {layer: maps[layer] for layer in range(LAYERS + 1)}
    own = imported(tmp_path / "r0.pt", "sglang-recorder", Wanted(physical=given))
    assert np.array_equal(own.trace.topk_ids, np.concatenate([logical[1, 0], logical[1, 1]], axis=1))


def test_sglang_recorder_counts_every_step_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    counts = np.random.default_rng(8).integers(1, 50, (2, 3, 8))
    torch.save({"rank": 0, "logical_count": torch.from_numpy(counts.astype(np.int32))}, tmp_path / "stat.pt")
    result = imported(tmp_path / "stat.pt", "sglang-recorder", Wanted(top_k=2, tokens=10))
    assert np.array_equal(result.loads, counts.sum(axis=0))
    maps = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 0]] * 3)
    for rank in (0, 1):  # each rank has the global counts
        records = [
            {"forward_pass_id": step, "rank": rank, "global_physical_count": torch.from_numpy(counts[step])}
            for step in (0, 1)
        ]
        torch.save({"records": records, "last_physical_to_logical_map": maps}, tmp_path / f"pass{rank}.pt")
    result = imported([tmp_path / "pass0.pt", tmp_path / "pass1.pt"], "sglang-recorder", Wanted(top_k=2, tokens=10))
    total = counts.sum(axis=0)
    expected = np.concatenate([total[:, :6], np.zeros((3, 0))], axis=1)
    expected[:, 5] += total[:, 6]
    expected[:, 0] += total[:, 7]
    assert np.array_equal(result.loads, expected)
    assert result.notes[0] == "2 records count on another rank what one that was read counts"


def test_a_given_map_makes_logical_ids_of_any_format(tmp_path: Path) -> None:
    physical = random_ids(6)
    path = write_json(tmp_path / "v.json", vllm_response(physical, 3))
    order = np.random.default_rng(9).permutation(EXPERTS)
    result = imported(path, "vllm", Wanted(physical={None: order}))
    assert_same(result, order[physical], [1, 2, 3], [6])


@needs_shared
@pytest.mark.parametrize(
    ("files", "name", "shape", "wanted"),
    [
        (["vllm_completion.json"], "vllm", (3, 12, 4), None),
        (["sglang_generate.json"], "sglang", (3, 12, 4), SHAPE),
        (["sglang_openai.json"], "sglang", (3, 12, 4), SHAPE),
        (["r3_request.npz"], "ids", (3, 12, 4), None),
        (["router_trace_rank0.jsonl", "router_trace_rank1.jsonl"], "megatron", (3, 24, 4), None),
        (["trtllm"], "tensorrt-llm", (3, 24, 4), None),
        (["llamacpp_moe_trace.csv"], "llama.cpp", (3, 12, 4), SHAPE),
        (["logical_count.json"], "loads", (3, 8192, 4), SHAPE),
    ],
)
def test_files_written_by_others(files: list[str], name: str, shape: tuple[int, ...], wanted: Wanted | None) -> None:
    folder = SHARED / "formats"
    result = imported([folder / each for each in files], name, wanted)
    assert result.trace.topk_ids.shape == shape and result.trace.layer_index.tolist() == [1, 2, 3]


@needs_shared
def test_one_request_is_the_same_in_four_formats() -> None:
    names = ("vllm_completion.json", "sglang_generate.json", "r3_request.npz", "llamacpp_moe_trace.csv")
    first, *others = (import_routing([SHARED / "formats" / name], SHAPE)[1].trace.topk_ids for name in names)
    assert all(np.array_equal(first, each) for each in others)


@needs_shared
def test_a_trace_with_tokens_first_is_read_as_such() -> None:
    _, result = import_routing([SHARED / "cases" / "routed_experts_T_L_k.npz"])
    assert result.trace.topk_ids.shape == (26, 2000, 6)


def test_every_format_says_what_it_is() -> None:
    assert len(FORMATS) == 13 and all(each.what for each in FORMATS.values())


def test_a_name_of_a_format_overrides_what_is_recognised(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", vllm_response(random_ids(4), 2))
    assert format_of(path) == "vllm"
    with pytest.raises(ConfigError, match="key 'logical_count' is missing"):
        import_routing([path], name="loads")
    (tmp_path / "n.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(ConfigError, match="is of no known format"):
        import_routing([tmp_path / "n.json"])
