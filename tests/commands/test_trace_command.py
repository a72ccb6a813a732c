from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest

from dysharp_env.commands import trace as trace_command
from dysharp_env.config import ConfigError
from dysharp_env.workload.placement_files import load_placements
from dysharp_env.workload.traces import load_trace
from tests.workload.routing_files import megatron_lines, random_ids, vllm_response, write_json, write_lines


def run(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    trace_command.add_arguments(parser)
    return trace_command.run(parser.parse_args([*map(str, argv)]))


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    path = tmp_path / "generated.npz"
    options = ("--routing", "dsv2-lite", "--model", "deepseek-v2-lite", "--tokens", 700, "--layers", 2)
    assert run("generate", *options, "--output", path) == 0
    return path


def test_generate_makes_a_trace_of_the_model(generated: Path) -> None:
    trace = load_trace(str(generated))
    assert trace.topk_ids.shape == (2, 700, 6) and trace.experts == 64
    assert trace.doc_offsets.tolist() == [0, 256, 512, 700]
    assert trace.source == "generator dsv2-lite, model deepseek-v2-lite, seed 0"
    assert not np.array_equal(trace.topk_ids[0], trace.topk_ids[1])


def test_generate_follows_its_seed(tmp_path: Path, generated: Path) -> None:
    for seed, same in ((0, True), (1, False)):
        path = tmp_path / f"{seed}.npz"
        options = ("--routing", "dsv2-lite", "--model", "deepseek-v2-lite", "--tokens", 700, "--layers", 2)
        run("generate", *options, "--seed", seed, "--output", path)
        assert np.array_equal(load_trace(str(path)).topk_ids, load_trace(str(generated)).topk_ids) == same


def test_info_as_json_is_all_that_is_printed(generated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("info", generated, "--gpus", "4", "8", "--json", "-")
    content = json.loads(capsys.readouterr().out)
    assert content["schema"] == "dysharp/trace/1"
    assert (content["experts"], content["top_k"], content["tokens"], content["documents"]) == (64, 6, 700, 3)
    assert [row["num_gpus"] for row in content["fan_out"]] == [4, 8]
    assert set(content["layers"]) == {"0", "1"} and content["gate_weights"] is None
    assert content["mean"]["adjacent_share"] > 1.5 * content["mean"]["adjacent_share_independent"]
    for row, num_gpus in zip(content["balance"], (4, 8), strict=True):
        loads = [np.bincount(ids.ravel(), minlength=64) for ids in load_trace(str(generated)).topk_ids]
        worth = [each.reshape(num_gpus, -1).sum(axis=1).max() * num_gpus / each.sum() for each in loads]
        assert row["num_gpus"] == num_gpus and [*row["of_layer"].values()] == pytest.approx(worth)
        assert row["median"] == pytest.approx(np.mean(worth)) and row["worst"] == pytest.approx(max(worth))
        assert row["worst_layer"] == int(np.argmax(worth))


def test_info_prints_tables_and_writes_json(
    generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("info", generated, "--json", tmp_path / "info.json")
    out = capsys.readouterr().out
    assert "2 layers, 700 tokens, 3 documents, top-6 of 64 experts" in out
    assert "load CV" in out and "GPUs a token" in out
    assert [row["num_gpus"] for row in json.loads((tmp_path / "info.json").read_text())["fan_out"]] == [8, 16, 32, 64]


def test_info_says_what_a_file_lacks_and_reads_it_as_a_model_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = np.array([[[0, 1], [2, -1], [-1, -1], [3, 0], [1, 2]]])
    path = tmp_path / "gaps.npz"
    np.savez(path, topk_ids=ids, tokens_of_gpu=np.array([3, 2]))
    run("info", path, "--gpus", 2)
    out = capsys.readouterr().out
    assert "4 tokens, 1 documents, top-2 of 4 or more experts; 1 more tokens were padding and left out; " in out
    assert "12.5% of the experts of tokens are missing; of 2 GPUs with 2 to 2 tokens" in out
    model = tmp_path / "five.yaml"
    model.write_text(
        "{name: five, hidden: 64, moe_ff: 64, experts: 5, top_k: 2, ffn_matrices: 2, compute_dtype: bf16, source: test}"
    )
    run("info", path, "--gpus", 2, "--model", model)
    assert "top-2 of 5 experts;" in capsys.readouterr().out


def test_info_of_loads_has_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "loads.npz"
    np.savez(path, mine=np.array([[0] * 8, [1, 2, 3, 4, 5, 6, 7, 8], [8, 0, 0, 0, 0, 0, 0, 0]]))
    run("info", f"{path}:mine", "--gpus", "2", "4", "--json", "-")
    content = json.loads(capsys.readouterr().out)
    assert (content["experts"], content["dense_layers"], content["fan_out"]) == (8, 1, [])
    assert [row["of_layer"] for row in content["balance"]] == [
        {"1": pytest.approx(26 / 18), "2": 2.0},
        {"1": pytest.approx(15 / 9), "2": 4.0},
    ]
    assert set(content["layers"]["1"]) == {"load_cv", "load_max_over_mean", "hottest_share"}
    run("info", f"{path}:mine", "--gpus", "2")
    out = capsys.readouterr().out
    assert "loads of 2 layers, 1 without any left out, 8 experts" in out and "What balance is worth" in out


def test_info_draws_layers_of_a_generator(capsys: pytest.CaptureFixture[str]) -> None:
    run("info", "power-law:1", "--model", "gpt-oss-20b", "--gpus", "8", "--json", "-")
    content = json.loads(capsys.readouterr().out)
    assert content["source"] == "generator power-law:1, model gpt-oss-20b, seed 0" and len(content["layers"]) == 24
    assert content["tokens"] == 8192 and content["balance"][0]["median"] > 1.3


def test_place_evens_out_loads_and_is_read_again(
    generated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    placed = tmp_path / "p.json"
    run("place", generated, "--gpus", 8, "--slots", 9, "--output", placed)
    said = capsys.readouterr().err
    assert "p.json: 2 layers, 9 experts on each of 8 GPUs; busiest GPU over mean from " in said
    rows = json.loads(placed.read_text())["physical_to_logical_map"]
    assert [len(row) for row in rows] == [72, 72]
    worth = []
    for options in ((), ("--placement", placed)):
        run("info", generated, "--gpus", 8, *options, "--json", "-")
        worth.append(json.loads(capsys.readouterr().out)["balance"][0])
    assert worth[1]["worst"] < 1.1 < worth[0]["median"]
    run("info", generated, "--gpus", 8, "--placement", placed)
    assert "busiest GPU/mean, placed by p.json" in capsys.readouterr().out.replace("\n", " ")
    # Loads of a part of the tokens.
    run("place", generated, "--gpus", 8, "--slots", 9, "--split", "train", "--output", placed)
    assert json.loads(placed.read_text())["physical_to_logical_map"] != rows


def test_convert_cuts_a_trace(generated: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.npz"
    run("convert", generated, "--layers", 1, "--split", "test", "--window", "10:60", "--experts", 128, "--output", path)
    cut, whole = load_trace(str(path)), load_trace(str(generated))
    assert cut.experts == 128 and cut.layer_index.tolist() == [1]
    start = 560  # 80 % of 700 tokens; no document ends within 35 tokens of it
    assert np.array_equal(cut.topk_ids[0], whole.topk_ids[1, start + 10 : start + 60])


def test_convert_drops_weights_on_request(tmp_path: Path) -> None:
    for options, kept in (((), True), (("--drop-weights",), False)):
        run("convert", "recorded", "--window", "0:64", *options, "--output", tmp_path / "small.npz")
        assert (load_trace(str(tmp_path / "small.npz")).topk_weights is not None) == kept


def test_record_trains_and_records_held_out_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dysharp_env.workload import recording

    files = recording.standard_library_files()
    assert not any("site-packages" in path.parts or "test" in path.parts for path in files)
    long_files = [path for path in files if path.stat().st_size > 40_000][:16]
    monkeypatch.setattr(recording, "standard_library_files", lambda: long_files)
    path = tmp_path / "tiny.npz"
    run("record", "--steps", 2, "--tokens", 600, "--experts", 8, "--top-k", 2, "--seed", 3, "--output", path)
    trace = load_trace(str(path))
    assert trace.topk_ids.shape == (3, 512, 2) and trace.experts == 8 and trace.doc_offsets.tolist() == [0, 512]
    assert trace.layer_index.tolist() == [1, 2, 3]
    assert trace.topk_weights.astype(float).sum(axis=-1) == pytest.approx(1.0, abs=2e-3)
    assert (np.diff(trace.topk_weights.astype(float), axis=-1) <= 0).all()
    expected = "record --steps 2 --tokens 600 --experts 8 --top-k 2 --seed 3 --output tiny.npz"
    assert trace.source.endswith(f"made by: python -m dysharp_env trace {expected}")
    run("record", "--steps", 2, "--tokens", 600, "--experts", 8, "--top-k", 2, "--seed", 3, "--output", path)
    assert np.array_equal(load_trace(str(path)).topk_ids, trace.topk_ids)


def test_vocabulary_is_lossless_and_spells_rare_pieces_in_bytes() -> None:
    from dysharp_env.workload.recording import Vocabulary

    text = "def naïve(x):\n    return x ** 2\n"
    vocabulary = Vocabulary(["return x\n    return y\n    def "], size=260)
    pieces = {token: piece for piece, token in vocabulary._ids.items()}
    encoded = vocabulary.encode(text)
    spelt = b"".join(pieces[token].encode() if token >= 256 else bytes([token]) for token in encoded.tolist())
    assert spelt.decode() == text
    assert {"return", "\n    "} <= set(pieces.values()) and vocabulary.size <= 260


def test_import_prints_what_it_found_and_what_to_type_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (0, 1):
        lines = megatron_lines(random_ids(5 + rank, seed=rank), rank, step=0)
        write_lines(tmp_path / f"router_trace_rank{rank}.jsonl", lines)
    path = tmp_path / "t.npz"
    assert run("import", tmp_path, "--out", path, "--experts", 32) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "format   megatron (Megatron-LM, router_trace_rank*.jsonl)",
        "layers   3 (1 to 3)",
        "tokens   11 in 2 documents",
        "experts  32, top-4",
        "phases   not told apart",
        "ranks    2, with 5 to 6 tokens",
        "note: 2 lines of blocks other than the decoder (multi-token prediction) were left out",
        f"next: python -m dysharp_env trace info {path}",
    ]
    assert "t.npz: 3 layers x 11 tokens x top-4 of 32 experts" in shown.err
    trace = load_trace(str(path))
    assert trace.tokens_of_gpu.tolist() == [5, 6] and trace.source.startswith("Megatron-LM")
    assert np.array_equal(trace.topk_ids, np.concatenate([random_ids(5), random_ids(6, seed=1)], axis=1))


def test_an_imported_trace_says_no_more_of_experts_than_its_file(tmp_path: Path) -> None:
    write_json(tmp_path / "v.json", vllm_response(random_ids(6), prompt=4))
    run("import", tmp_path / "v.json", "--out", tmp_path / "t.npz", "--phase", "prefill")
    assert not load_trace(str(tmp_path / "t.npz")).is_experts_known
    assert load_trace(str(tmp_path / "t.npz"), experts=40).experts == 40
    run("import", tmp_path / "v.json", "--out", tmp_path / "t.npz", "--model", "qwen3-30b")
    assert load_trace(str(tmp_path / "t.npz")).experts == 128


def test_imported_loads_can_be_used_with_tokens_or_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(tmp_path / "l.json", {"logical_count": [[0, 0, 0, 0], [5, 1, 1, 1], [2, 2, 2, 2]]})
    run("import", tmp_path / "l.json", "--top-k", 1, "--tokens", 500, "--out", tmp_path / "t.npz")
    out = capsys.readouterr().out
    assert "layers   2 (1, 2); without routing, left out: 1 (0)" in out and "500 tokens were sampled" in out
    run("info", f"{tmp_path / 't.npz'}:loads", "--gpus", 2, "--json", "-")
    balance = json.loads(capsys.readouterr().out)["balance"][0]
    assert balance["of_layer"] == {"1": 1.5, "2": 1.0}
    assert load_trace(str(tmp_path / "t.npz")).topk_ids.shape == (2, 500, 1)


def test_placements_are_written_for_two_servers(generated: Path, tmp_path: Path) -> None:
    for name in ("p.json", "p.yaml"):
        run("place", generated, "--gpus", 8, "--slots", 9, "--out", tmp_path / name)
    one, other = (load_placements(str(tmp_path / name), 64, 8).placements for name in ("p.json", "p.yaml"))
    assert all(np.array_equal(a.logical_of_expert, b.logical_of_expert) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_info_draws_a_picture(generated: Path, tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"p.{suffix}"
    run("info", generated, "--gpus", 4, 8, "--picture", path)
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    run("info", generated, "--gpus", 4, 8, "--picture", path)
    assert path.read_bytes() == content


def test_nothing_is_written_over_what_is_read(generated: Path, tmp_path: Path) -> None:
    content = generated.read_bytes()
    for argv in (
        ("convert", generated),
        ("import", generated),
        ("convert", tmp_path / "." / "generated.npz"),
    ):
        with pytest.raises(ConfigError, match="generated.npz. is the file that (trace|files) is read from"):
            run(*argv, "--output", generated)
    loads = tmp_path / "l.json"
    loads.write_text("[[1, 2]]")
    with pytest.raises(ConfigError, match="must end in .npz"):
        run("import", loads, "--output", loads)
    assert generated.read_bytes() == content


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("import", "none.json", "--out", "t.npz"), "'none.json' does not exist"),
        (("import", "none.json", "--out", "t.npz", "--top-k", "0"), "top_k=0 must be at least 1"),
        (("import", "none.json", "--out", "t.npz", "--steps", "3"), "steps='3' must be START:STOP"),
        (("import", "none.json", "--out", "t.npz", "--placement", "p.txt"), "placement='p.txt' is unknown"),
        (("info", "recorded", "--picture", "x.gif"), "picture='x.gif' must end in .png, .svg, .pdf"),
        (("info", "missing.npz"), "npz file 'missing.npz' does not exist"),
        (("info", "dsv2-lite"), "'dsv2-lite' is a generator: model must say of which experts"),
        (("info", "dsv2"), "routing='dsv2' is unknown"),
        (("info", "recorded", "--gpus", "0"), "gpus=0 must be at least 1"),
        (("info", "recorded", "--model", "small"), "'recorded': it has 6 experts a token; top_k=8 needs as many"),
        (("info", "recorded", "--placement", "p.json"), "placement='p.json' needs one number of gpus, not none"),
        (("info", "recorded", "--placement", "p", "--gpus", "8"), "placement='p' is unknown"),
        (("info", "x.npz:y"), "npz file 'x.npz' does not exist"),
        (
            ("place", "recorded", "--gpus", "8", "--slots", "7", "--output", "p.json"),
            "slots=7 on each of 8 GPUs must be",
        ),
        (("place", "recorded", "--gpus", "0", "--slots", "7", "--output", "p.json"), "gpus=0 must be at least 1"),
        (
            ("place", "recorded", "--gpus", "8", "--slots", "9", "--output", "p.npz"),
            "output='p.npz' must end in .json, .yaml, .yml",
        ),
        (("place", "uniform", "--gpus", "8", "--slots", "9", "--output", "p.json"), "'uniform' is a generator"),
        (("info", "recorded", "--json", "no/such/folder.json"), "cannot write json='no/such/folder.json'"),
        (("generate", "--routing", "zipf", "--output", "x.npz"), "routing='zipf' is unknown"),
        (("generate", "--routing", "recorded", "--output", "x.npz"), "routing='recorded' is a trace"),
        (("generate", "--routing", "uniform", "--tokens", "0", "--output", "x.npz"), "tokens=0 must be at least 1"),
        (("generate", "--routing", "uniform", "--seed", "-1", "--output", "x.npz"), "seed=-1 must not be negative"),
        (("generate", "--routing", "uniform", "--model", "smal", "--output", "x.npz"), "did you mean 'small'"),
        (("generate", "--routing", "uniform", "--output", "x.csv"), "output='x.csv' must end in .npz"),
        (("record", "--steps", "0", "--output", "x.npz"), "trace record: steps=0: "),
        (("record", "--top-k", "65", "--output", "x.npz"), "top_k=65 is more than experts=64"),
        (("record", "--tokens", "10000000", "--output", "x.npz"), "more than the held-out files give; at most"),
        (("record", "--output", "no/such/x.npz"), "must be a file in an existing folder"),
        (("convert", "recorded", "--window", "9:3", "--output", "x.npz"), "window='9:3' must be START:STOP"),
        (("convert", "recorded", "--window", "0:99999999", "--output", "x.npz"), "ends after the 16384 tokens"),
        (("convert", "recorded", "--experts", "8", "--output", "x.npz"), "topk_ids holds expert"),
        (("convert", "recorded", "--layers", "9", "--output", "x.npz"), "layer_index=9 is not in it"),
    ],
)
def test_wrong_options_give_one_line_and_write_nothing(
    argv: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as raised:
        run(*argv)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert os.listdir(tmp_path) == []
