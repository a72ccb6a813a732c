"""What is wrong with a file is said in one line: the file, the place in it and the field."""

from __future__ import annotations

import base64
import json
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.importers import Wanted, import_routing
from tests.workload.routing_files import (
    EXPERTS,
    LAYERS,
    TOP_K,
    llama_rows,
    megatron_lines,
    npy_text,
    random_ids,
    route_lines,
    sglang_response,
    vllm_response,
    write_json,
    write_lines,
    write_safetensors,
)

SHAPE = Wanted(layers=LAYERS + 1, top_k=TOP_K)
IDS = random_ids(4)


def npy_claiming(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def vllm(value: Any, **more: Any) -> Callable[[Path], Path]:
    return lambda folder: write_json(folder / "v.json", {"choices": [{"routed_experts": value, **more}]})


def text_file(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / name

    return write


def megatron(**changes: Any) -> Callable[[Path], Path]:
    """Writes a step whose second line has other values; None takes a key away."""

    def write(folder: Path) -> Path:
        lines = megatron_lines(IDS, 0, 0)
        lines[1] = {key: value for key, value in {**lines[1], **changes}.items() if value is not None}
        return write_lines(folder / "m.jsonl", lines)

    return write


def routes(place: int, **changes: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        lines = route_lines({"a": IDS}, {"a": np.ones(IDS.shape)})
        lines[place] = {**lines[place], **changes}
        return write_lines(folder / "r.jsonl", lines)

    return write


def arrays(**held: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        np.savez(folder / "a.npz", **held)
        return folder / "a.npz"

    return write


def tensors(
    held: dict[str, np.ndarray] | None, header: bytes | None = None, meta: Any = None
) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        if meta is not None:
            write_json(folder / "meta_info.json", meta)
        return write_safetensors(folder / "rank0.safetensors", held or {}, header)

    return write


COUNTS = np.ones(EXPERTS, "<i8")
BIG = IDS.transpose(1, 0, 2).copy()
BIG[2, 1, 0] = BIG[2, 1, 1]

CASES: list[tuple[Callable[[Path], Path], str]] = [
    # vLLM
    (vllm(7), "v.json' choices[0]: routed_experts must be base64 text, not int"),
    (vllm("%%%"), "v.json' choices[0]: routed_experts is not base64: "),
    (vllm(base64.b64encode(b"short").decode()), "v.json' choices[0]: routed_experts: not a whole .npy array"),
    (
        vllm(base64.b64encode(npy_claiming((1 << 20, 61, 8)) + b"x" * 10).decode()),
        "routed_experts: the .npy header says uint8 of shape (1048576, 61, 8), but 10 bytes follow",
    ),
    (
        vllm(base64.b64encode(npy_claiming((2, 2, 2), "|O")).decode()),
        "routed_experts: holds object, not numbers; arrays of Python objects are never read",
    ),
    (
        vllm(base64.b64encode(npy_claiming((2, 2, 2)).replace(b", }", b"(((")).decode()),
        "v.json' choices[0]: routed_experts: not a whole .npy array",
    ),
    (
        vllm(npy_text(np.ones((4, 4), np.uint8))),
        "routed_experts must be whole numbers with 3 axes, not uint8 of shape (4, 4)",
    ),
    (vllm(npy_text(np.full((4, 3, 2), 0.5))), "routed_experts must be whole numbers with 3 axes, not float64"),
    (vllm(npy_text(np.full((4, 3, 2), -7))), "v.json' choices[0]: routed_experts holds expert -7; ids are 0 to 65535"),
    (vllm(npy_text(np.zeros((4, 3, 2), np.int16))), "v.json' choices[0]: every layer is all zero"),
    (vllm([[[1, 2], [3]]]), "v.json' choices[0]: routed_experts must hold numbers, as many in every list"),
    (vllm([[[1, "2"]]]), "v.json' choices[0]: routed_experts must hold numbers"),
    (vllm(npy_text(BIG)), "v.json' choices[0]: token 2 of layer 1 chose an expert twice: "),
    (text_file("v.json", '{"choices": [{"routed_experts": 1'), "v.json': not valid JSON: "),
    (
        text_file("v.json", '{"choices": {"routed_experts": 1}}'),
        "v.json': choices={'routed_experts': 1} must be a list",
    ),
    (text_file("v.json", '{"choices": [{"routed_experts": NaN}]}'), "v.json': not valid JSON: NaN is no number"),
    (text_file("v.json", '{"routed_experts": ' + "[" * 100_000), "v.json': not valid JSON: nested too deeply"),
    # SGLang
    (
        lambda folder: write_json(folder / "s.json", {"meta_info": {"routed_experts": "AAAA"}}),
        "s.json' meta_info: routed_experts has 3 bytes, which is not whole tokens of layers=4 x top_k=4 int32",
    ),
    (
        lambda folder: write_json(folder / "s.json", {"meta_info": {"id": 1}}),
        "s.json': has no key 'routed_experts': the request must ask for it",
    ),
    (
        lambda folder: write_json(folder / "s.json", {"logical_count": [[1, -2], [3, 4]]}),
        "s.json': logical_count holds -2; counts are not negative",
    ),
    (
        lambda folder: write_json(folder / "s.json", {"logical_count": [[0, 0], [0, 0]]}),
        "s.json': every layer is all zero",
    ),
    (
        lambda folder: write_json(folder / "s.json", {"logical_count": [[1, 2], [3]]}),
        "s.json': logical_count must hold numbers, as many in every list",
    ),
    (
        lambda folder: write_json(folder / "p.json", {"physical_to_logical_map": [[0, 1]]}),
        "p.json': is a placement of experts, not routing",
    ),
    # Megatron-LM
    (megatron(step=None), "m.jsonl' line 2: key 'step' is missing"),
    (megatron(rank="zero"), "m.jsonl' line 2: rank='zero' must be a whole number"),
    (megatron(layer=-1), "m.jsonl' line 2: layer=-1 must be a whole number from 0"),
    (megatron(num_tokens=5), "m.jsonl' line 2: top_indices has shape (4, 4); num_tokens and topk say (5, 4)"),
    (megatron(top_indices=[[1, 2]]), "m.jsonl' line 2: top_indices has shape (1, 2)"),
    (
        megatron(top_indices=[[1] * 4, [1] * 3, [1] * 4, [1] * 4]),
        "line 2: top_indices must hold numbers, as many in every",
    ),
    (megatron(top_indices=(IDS[1].astype(object) + 10**30).tolist()), "m.jsonl' line 2: top_indices must hold numbers"),
    (megatron(layer=1), "m.jsonl' line 1: step 0 of rank 0: num_tokens=[4] of layer 3 differ from [4, 4] of layer 1"),
    (
        megatron(num_tokens=3, top_indices=IDS[1, :3].tolist()),
        "m.jsonl' line 1: step 0 of rank 0: num_tokens=[3] of layer 2 differ from [4] of layer 1",
    ),
    (text_file("m.jsonl", '{"top_indices": 1}\n[1]\n'), "m.jsonl' line 1: key 'step' is missing"),
    (
        text_file("m.jsonl", '{"block": "mtp", "top_indices": 1}\n[1]\n'),
        "m.jsonl' line 2: must be a JSON object, not list",
    ),
    # Logs of routes
    (routes(3, type="rout"), "r.jsonl' line 4: type=rout must be 'meta' or 'route'"),
    (routes(3, topk_ids=[1, "2"]), "r.jsonl' line 4: topk_ids must hold numbers"),
    (routes(3, topk_weights=[1.0]), "r.jsonl' line 4: topk_weights must be as many as topk_ids, 4"),
    (routes(3, token_idx=0), "r.jsonl' line 4: token_idx=0 of layer 1 is there twice"),
    (routes(3, topk_ids=[40, 1, 2, 3]), "token 2 of layer 1 chose expert 40; experts are 0 to 31"),
    # TensorRT-LLM
    (tensors(None, header=b"{" + b" " * 40), "rank0.safetensors': not a whole safetensors file: "),
    (tensors({"layer_1": COUNTS}), "rank0.safetensors': tensor 'layer_1' must be named ITERATION_LAYER"),
    (tensors({"0_1": COUNTS.reshape(2, -1)}), "rank0.safetensors': 0_1 has shape [2, 16]; it must have 1 axes"),
    (tensors({"0_1": -COUNTS}), "rank0.safetensors': *_1 holds -1; counts are not negative"),
    (
        tensors({"0_1": COUNTS}, meta={"num_experts": 8, "num_experts_per_token": 2}),
        "0_1 has 32 experts; num_experts=8",
    ),
    (tensors({"0_1": COUNTS}, meta={"num_experts": 8}), "meta_info.json': key 'num_experts_per_token' is missing"),
    # Tables
    (text_file("t.csv", "layer,expert\n1,2\n1,x\n"), "t.csv' line 3: b'1,x' must be 2 whole numbers"),
    (text_file("t.csv", "layer,expert\n1,2\n1,2,3\n"), "t.csv' line 3: b'1,2,3' must be 2 whole numbers"),
    (text_file("t.csv", "layer,expert\n1,2\n1,-3\n"), "t.csv' line 3: -3 must not be negative"),
    (text_file("t.csv", "layer,expert\n1,2\n" + "1" * 999), "t.csv' line 3: longer than 256 bytes"),
    (text_file("t.csv", "layer,expert\n"), "t.csv': has no rows below its header"),
    (text_file("t.csv", llama_rows([IDS])[:-5]), "rows of layer 3 are not whole tokens of top_k=4"),
    (text_file("t.csv", llama_rows([IDS, IDS[:2]])), "t.csv' line 50: a pass has layers [1, 2], others [1, 2, 3]"),
    (text_file("c.csv", "layer_id,expert_id,count\n0,1,2\n0,99999999,1\n"), "expert_id 99999999 is too large"),
    # Arrays
    (
        arrays(routed_experts=IDS[0]),
        "a.npz': routed_experts must be whole numbers with 3 axes, not int64 of shape (4, 4)",
    ),
    (arrays(topk_ids=IDS, experts=np.array([1, 2])), "a.npz': experts must be one whole number from 1, not [1, 2]"),
    (arrays(topk_ids=IDS, experts=np.array(8)), "chose expert 31; experts are 0 to 7"),
    (arrays(other=IDS), "a.npz': is of no known format (zip with ['other'])"),
    (arrays(router_logits=np.full((2, 3, 8), np.nan)), "a.npz': router_logits of layer 0: token 0 is not a number"),
    (arrays(router_logits=np.ones((2, 3, 2))), "a.npz': router_logits of layer 0 has shape (3, 2); all layers"),
    (arrays(routed_experts=np.array([{}], object)), "a.npz': routed_experts: holds object, not numbers"),
    (
        text_file("a.npy", npy_claiming((1 << 40, 61, 8))),
        "a.npy': the .npy header says uint8 of shape (1099511627776, 61, 8)",
    ),
    (text_file("a.npz", b"PK\x03\x04 and no end"), "a.npz': not a whole zip archive"),
    # Never read
    (text_file("x.pt", pickle.dumps({"a": 1})), "x.pt': Python objects are never read from pickles"),
    (text_file("e.json", ""), "e.json': is of no known format (empty"),
    (text_file("x.md", "# hello\n"), "x.md': is of no known format (text"),
    (lambda folder: folder / "none.json", "none.json' does not exist"),
]


@pytest.mark.parametrize(("write", "message"), CASES)
def test_one_line_names_file_place_and_field(write: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(ConfigError) as raised:
        import_routing([path], SHAPE)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert path.name in str(raised.value) or "meta_info.json" in str(raised.value)


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60


def test_damaged_parquet_and_gguf(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("gguf")
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"x" * 40)
    with pytest.raises(ConfigError, match="a.parquet': not a whole parquet file: "):
        import_routing([tmp_path / "a.parquet"])
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"indices": [[1, 2], [3]]}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="a.parquet': indices must be lists of numbers, all of one length"):
        import_routing([tmp_path / "a.parquet"])
    whole = (tmp_path / "a.parquet").read_bytes()
    for place in range(4, len(whole), 7):
        (tmp_path / "a.parquet").write_bytes(whole[:place] + b"\x7f" + whole[place + 1 :])
        with pytest.raises(ConfigError) as raised:
            import_routing([tmp_path / "a.parquet"])
        assert "\n" not in str(raised.value)
    # An array of 2^60 numbers, of which none is there.
    key = struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 60)
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + key)
    with pytest.raises(ConfigError, match="a.gguf': not a whole GGUF file: it ends early"):
        import_routing([tmp_path / "a.gguf"], SHAPE)


def test_objects_in_a_torch_file_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"records": [Path("x")]}, tmp_path / "rollout.pt")
    with pytest.raises(ConfigError, match=r"rollout.pt': Python objects are never read from pickles.*numpy.savez"):
        import_routing([tmp_path / "rollout.pt"])
    torch.save({"router": torch.ones(2)}, tmp_path / "router_state_rank0.pt")
    with pytest.raises(ConfigError, match="holds the routers' weights, not what tokens chose"):
        import_routing([tmp_path / "router_state_rank0.pt"])
    torch.save({"logical_count": torch.ones(1, dtype=torch.int32).expand(1 << 20, 61, 256)}, tmp_path / "wide.pt")
    with pytest.raises(ConfigError, match="wide.pt': logical_count claims 16374562816 numbers"):
        import_routing([tmp_path / "wide.pt"], SHAPE)


def test_files_of_two_formats_are_imported_apart(tmp_path: Path) -> None:
    one = write_json(tmp_path / "v.json", vllm_response(IDS, 2))
    other = write_json(tmp_path / "s.json", sglang_response(IDS, 2))
    with pytest.raises(ConfigError, match=r"s.json': is of format 'sglang', '.*v.json' of 'vllm'; import them apart"):
        import_routing([one, other], SHAPE)


def test_responses_of_two_models_do_not_fit(tmp_path: Path) -> None:
    held = [vllm_response(IDS, 2), vllm_response(random_ids(4, k=2), 2)]
    with pytest.raises(ConfigError, match=r"h.json' \[1\] choices\[0\]: top-2 differs from top-4 of '.*\[0\] choices"):
        import_routing([write_json(tmp_path / "h.json", held)])


def test_phases_that_are_not_known_cannot_be_kept(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "m.jsonl", megatron_lines(IDS, 0, 0))
    with pytest.raises(ConfigError, match="phase='decode': .*does not say which tokens are prefill"):
        import_routing([path], phase="decode")
    with pytest.raises(ConfigError, match="nothing to import: no tokens in those steps"):
        import_routing([path], Wanted(steps=(5, 6)))


def write_bomb(path: Path, kind: str) -> None:
    """Writes a small file, or one of 100 MB, that would take gigabytes as it claims or as objects."""
    if kind == "npz":
        with (
            zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open("routed_experts.npy", "w") as file,
        ):
            file.write(npy_claiming((1 << 24, 8, 16)))
            for _ in range(300):
                file.write(bytes(1 << 20))
    elif kind == "npy":
        path.write_bytes(npy_claiming((1 << 24, 8, 16)) + bytes(1 << 10))
    elif kind == "list":
        path.write_bytes(b'{"logical_count": [' + b"[]," * (4 << 20) + b"[]]}")
    elif kind == "objects":
        path.write_bytes(b'{"choices": [' + b'{"routed_experts":1},' * (5 << 20) + b"{}]}")
    else:
        line = json.dumps(megatron_lines(random_ids(512, experts=64, k=8), 0, 0)[0]).encode() + b"\n"
        path.write_bytes(line * ((100 << 20) // len(line)))


@pytest.mark.parametrize("kinds", [("npz", "npy", "list"), pytest.param(("objects", "lines"), marks=pytest.mark.slow)])
def test_memory_stays_below_1_gb_whatever_a_file_claims(kinds: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; from dysharp_env.config import ConfigError\n"
        "from dysharp_env.workload.importers import *\n"
        "for path in sys.argv[1:]:\n"
        "    try: import_routing([path], Wanted(layers=4, top_k=4)); print('read')\n"
        "    except ConfigError as error: print('refused')\n"
        # What getrusage says has the memory of the process that started this one in it.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    paths = [tmp_path / f"{kind}.bomb" for kind in kinds]
    for path, kind in zip(paths, kinds, strict=True):
        write_bomb(path, kind)
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    *outcomes, peak_kb = done.stdout.split()
    assert int(peak_kb) < 1_000_000
    assert outcomes == ["read" if kind == "lines" else "refused" for kind in kinds]
