"""Contents that claim what they do not hold: headers of arrays, tensors and archives, and numbers that cannot be."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.corpus import parsers


def npy_header(shape: object, dtype: str = "'|u1'", more: str = "", version: bytes = b"\x01\x00") -> bytes:
    """Returns the head of an .npy file that claims a shape and type; both as Python writes them."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, {more}}}\n".encode()
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    return b"\x93NUMPY" + version + length + header


WHOLE = parsers.npy(np.arange(64).reshape(1, 64))
NPY = {
    "more than there is": npy_header((1 << 40, 61, 8)) + bytes(10),
    "less than there is": npy_header((2, 2)) + bytes(500),
    "objects": npy_header((2,), "'|O'") + bytes(16),
    "records": npy_header((2,), "[('a', '<i4'), ('b', '|O')]") + bytes(24),
    "an array of arrays": npy_header((2,), "('<i4', (1000000, 1000000))") + bytes(24),
    "texts of a gigabyte": npy_header((1,), "'<U268435456'") + bytes(24),
    "nothing each": npy_header((1 << 60,), "'|V0'"),
    "axes below nothing": npy_header((-5, -5)) + bytes(25),
    "sixty-four axes": npy_header((1,) * 64) + bytes(1),
    "an axis of truth": npy_header("(True, 1e3)") + bytes(1),
    "a shape of a thousand digits": npy_header("(" + "9" * 5000 + ",)"),
    "a shape that is a program": npy_header("__import__('os').getcwd()"),
    "brackets": npy_header("(" * 3000),
    "minus signs": npy_header("(" + "-" * 5000 + "1,)"),
    "an escape of Python": npy_header((1,), r"'\d'") + bytes(1),
    "a key too many": npy_header((1,), more="'x': 1") + bytes(1),
    "a version of no one": b"\x93NUMPY\x09\x09" + bytes(50),
    "a head without an end": b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 31) + b"{",
    "dates": npy_header((2,), "'<M8[s]'") + bytes(16),
    "complex numbers": npy_header((2,), "'<c16'") + bytes(32),
    "nothing by more than can be counted": npy_header((0, 1 << 63, 64)),
    "nothing by more than can be counted together": npy_header((0, *(1 << 28,) * 3)),
    "no array at all": b"hello",
}


def with_wrong_sum(whole: bytes) -> bytes:
    """Returns an archive without compression in which a number of the first array is another."""
    place = whole.index(b"NUMPY") + 200
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]


def replaced(whole: bytes, old: bytes, new: bytes) -> bytes:
    """Returns a text in which something is another thing."""
    assert old in whole, old
    return whole.replace(old, new)


def _gguf_claiming(parts: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, parts, parts) + bytes(64)


def _safetensors(header: Any, behind: int = 0, claim: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claim is None else claim) + text + bytes(behind)


def _tensor(shape: list[int], end: int, dtype: str = "I64") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


def _changed_weights(change: Callable[[np.ndarray], None]) -> Callable[[bytes], bytes]:
    """Returns what writes weights in which a change has been made to the first tensor."""

    def of(whole: bytes) -> bytes:
        size = 8 + struct.unpack("<Q", whole[:8])[0]
        numbers = np.frombuffer(whole[size:], "<f4").copy()
        change(numbers)
        return whole[:size] + numbers.tobytes()

    return of


def _set(value: float) -> Callable[[np.ndarray], None]:
    return lambda numbers: numbers.__setitem__(slice(None, None, 100), value)


def _packed(held: Any) -> bytes:
    return gzip.compress(json.dumps(held).encode() if not isinstance(held, bytes) else held, mtime=0)


def _list_with(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda _: _packed(parsers.decision_list() | changes)


def _vllm(value: Any) -> bytes:
    return json.dumps({"choices": [{"routed_experts": value}]}).encode()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


_LINE = {"step": 0, "rank": 0, "layer": 1, "num_tokens": 1, "topk": 1, "top_indices": [[1]]}
_ROUTE = {"type": "route", "token_idx": 0, "layer": 0, "topk_ids": [1]}
_HEAD = parsers._TABLE.splitlines()[0]
_ROW = parsers._TABLE.splitlines()[1]
_WEIGHTS = parsers.rule()["weights"]["gemm"]["is_gemm2"]

# By parser and by name, a content, or what makes one of a whole file.
OF_PARSER: dict[str, dict[str, bytes | str | Callable[[bytes], bytes]]] = {
    "import vllm": {
        "array that claims": _vllm(_base64(npy_header((1 << 20, 61, 8)) + b"x")),
        "array of objects": _vllm(_base64(npy_header((2, 2, 2), "'|O'"))),
        "numbers beyond all": _vllm([[[10**40, 1]]]),
        "deep lists": json.dumps({"choices": 0}).replace("0", "[" * 900 + "]" * 900),
    },
    "import sglang": {
        "half a token": json.dumps({"meta_info": {"routed_experts": "AAAA"}}),
        "no base64": json.dumps({"meta_info": {"routed_experts": "\x1b[2J"}}),
        "lines that end": '{"meta_info": {"routed_experts": "AAAA"}}\n{"meta_info"',
    },
    "import sglang-recorder": {
        "a program": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02ls\x94\x85\x94R\x94.",
        "wide": lambda _: parsers.torch_file({"logical_count": _expanded()}),
        "deep": lambda _: parsers.torch_file({"records": [[[[]]]]}),
        "step beyond all": lambda _: parsers.torch_file(
            {**parsers.recorder(), "records": [{"forward_pass_id": 1 << 40}]}
        ),
        "texts as lengths": lambda _: _recorded(extend_seq_lens=["a", "b"]),
        "lengths beyond all": lambda _: _recorded(extend_seq_lens=[1 << 70]),
    },
    "import megatron": {
        "step beyond all": parsers.as_lines([{**_LINE, "step": 10**30}]),
        "truth as a number": parsers.as_lines([{**_LINE, "rank": True}]),
        "ids beyond all": parsers.as_lines([{**_LINE, "top_indices": [[10**30]]}]),
        "ids that are endless": b'{"step":0,"rank":0,"layer":1,"num_tokens":1,"topk":1,"top_indices":[[1e999]]}\n',
        "a line of forty megabytes": b'{"top_indices": [' + b"1," * (20 << 20) + b"1]}",
        "tokens that are not there": parsers.as_lines([{**_LINE, "num_tokens": 1 << 30}]),
        "NUL": b'{"top_indices": 1}\n\0\0\0\n',
    },
    "import route-log": {
        "token beyond all": parsers.as_lines([{**_ROUTE, "token_idx": 1 << 62}]),
        "weights that are no numbers": parsers.as_lines([{**_ROUTE, "topk_weights": ["x"]}]),
        "weight that is endless": b'{"type":"route","token_idx":0,"layer":0,"topk_ids":[1],"topk_weights":[1e999]}\n',
        "ids in ids": parsers.as_lines([{**_ROUTE, "topk_ids": [[1]]}]),
        "experts beyond all": parsers.as_lines([{"type": "meta", "num_experts": 10**40}, _ROUTE]),
    },
    "import tensorrt-llm": {
        "head beyond all": _safetensors({}, claim=1 << 62),
        "tensor beyond the file": _safetensors({"0_1": _tensor([1 << 40], 1 << 43)}),
        "tensor of below nothing": _safetensors({"0_1": _tensor([-1], 8)}, 8),
        "tensor that overflows": _safetensors({"0_1": _tensor([1 << 62, 1 << 62], 8)}, 8),
        "type of no one": _safetensors({"0_1": _tensor([1], 8, "Q128")}, 8),
        "half floats": _safetensors({"0_1": _tensor([4], 8, "BF16")}, 8),
        "two in one place": _safetensors({"0_1": _tensor([1], 8), "0_2": _tensor([1], 8)}, 8),
        "name of a megabyte": _safetensors({"x" * 1_000_000: _tensor([1], 8)}, 8),
        "escapes": _safetensors({"\x1b[2J": _tensor([1], 8)}, 8),
        "head that is a list": _safetensors([1, 2]),
        "head of brackets": _safetensors(b"[" * 100_000),
    },
    "import llama.cpp": {
        "long line": b"layer,expert\n" + b"1" * 100_000,
        "digits": "layer,expert\n1," + "9" * 200,
        "layer beyond all": b"layer,expert\n99999999,1\n",
        "no numbers": "layer,expert\nnan,inf\n",
        "letters of another alphabet": "layer,expert\n٣,٤\n",
        "carriage returns alone": b"layer,expert\r1,2\r",
    },
    "import imatrix": {
        "tensors beyond all": _gguf_claiming(1 << 60),
        "many small tensors": _gguf_claiming(1 << 20) + bytes(1 << 20),
        "name beyond the file": b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1 << 50),
        "axes beyond all": lambda whole: replaced(whole, struct.pack("<IQ", 1, 4), struct.pack("<IQ", 1, 1 << 61)),
        "version of no one": lambda whole: whole[:4] + struct.pack("<I", 77) + whole[8:],
        "counts that are no numbers": lambda whole: whole[:-16] + np.full(4, np.nan, "<f4").tobytes(),
    },
    "import flame": {
        "foot that claims": lambda whole: whole[:-8] + struct.pack("<I", 1 << 31) + b"PAR1",
        "foot of noise": lambda whole: whole[:-200] + bytes(192) + whole[-8:],
    },
    "import logits": {
        "no numbers": lambda _: parsers.npz(router_logits=np.full((2, 4, 8), np.nan)),
        "number of a layer beyond all": lambda _: parsers.npz(**{"router_logits_" + "9" * 200: np.ones((4, 8))}),
        "texts": lambda _: parsers.npz(router_logits=np.array([["a"]])),
    },
    "import ids": {name: npy for name, npy in NPY.items() if name not in ("no array at all",)},
    "import sglang-csv": {
        "expert beyond all": b"layer_id,expert_id,count\n0,99999999,1\n",
        "all layers and experts": b"layer_id,expert_id,count\n4095,65535,1\n",
        "count of a hundred digits": "layer_id,expert_id,count\n0,1," + "9" * 100,
    },
    "trace": {
        "ids of 64 bits": lambda _: parsers.npz(topk_ids=np.full((1, 2, 2), 2**64 - 1, np.uint64)),
        "below nothing": lambda _: parsers.npz(topk_ids=np.full((1, 2, 2), -7)),
        "weights that are no numbers": lambda _: parsers.npz(
            topk_ids=parsers.IDS, topk_weights=np.full(parsers.IDS.shape, np.nan)
        ),
        "documents beyond all": lambda _: parsers.npz(topk_ids=parsers.IDS, doc_offsets=np.array([0, 1 << 62, 4])),
        "many layers twice": lambda _: parsers.npz(
            topk_ids=np.arange(4)[None, None].repeat(5000, 0), layer_index=np.zeros(5000, int)
        ),
        "tokens of GPUs that overflow": lambda _: parsers.npz(
            topk_ids=parsers.IDS, tokens_of_gpu=np.array([2**63 - 1, 2**63 - 1, 6])
        ),
        "experts that are texts": lambda _: parsers.npz(topk_ids=parsers.IDS, experts=np.array("\x1b[2J")),
    },
    "loads": {
        "no numbers": lambda _: parsers.npz(loads=np.array([[np.nan, 1]])),
        "endless": lambda _: parsers.npz(loads=np.array([[np.inf, 1]])),
        "truths": lambda _: parsers.npz(loads=np.array([[True, False]])),
    },
    "slot map": {
        "a layer of no experts": b"[[[0, 0, 0, 0]]]",
        "layers of no experts": b"[[[0, 0], [0, 0]], [[0, 0], [0, 0]]]",
    },
    "placement.json": {
        "endless experts": b'{"layer_list": [{"device_list": [{"device_expert": [1e999]}]}]}',
        "digits of experts": b'{"layer_list": [{"device_list": [{"device_expert": ["' + b"9" * 5000 + b'"]}]}]}',
        "numbers beyond all": json.dumps([10**30] * 64),
        "texts": json.dumps({"layer_list": "abc"}),
        "no devices": json.dumps({"layer_list": [{"device_list": []}]}),
        "deep": json.dumps({"physical_to_logical_map": 0}).replace("0", "[" * 100 + "]" * 100),
        "truths and numbers": "[true, 1, 2.5]",
    },
    "placement.yaml": {
        "layers that are texts": "initial_global_assignments: {a: [1]}",
        "layers without rows": "initial_global_assignments: {}",
        "rows that are texts": "initial_global_assignments: {0: [a, b]}",
    },
    "placement.npz": {
        "bits of a shape beyond all": lambda _: parsers.npz(
            gpu_of_expert__bits=np.zeros(1, np.uint8), gpu_of_expert__shape=np.array([1 << 62, 1 << 62, 4])
        ),
        "bits of many axes": lambda _: parsers.npz(
            gpu_of_expert__bits=np.zeros(1, np.uint8), gpu_of_expert__shape=np.ones(100, int)
        ),
        "numbers that overflow": lambda _: parsers.npz(gpu_of_expert=np.full(64, 2**64 - 1, np.uint64)),
    },
    "table of measurements": {
        "cell of a megabyte": f"{_HEAD}\n{'x' * 1_000_000}\n",
        "quote without an end": f'{_HEAD}\n"NVIDIA',
        "digits": f"{_HEAD}\n{_ROW.replace('7168', '9' * 5000)}\n",
        "experts without end": f"{_HEAD}\n{_ROW.replace(',256,', ',1e30,')}\n",
        "no number": f"{_HEAD}\n{_ROW.replace('30.5', 'nan')}\n",
        "escapes": f"{_HEAD}\n{_ROW.replace('nvfp4', chr(27) + '[2J')}\n",
        "a head alone": f"{_HEAD}\n",
        "NUL": f"{_HEAD}\n{_ROW}\0\n\0",
        "seven million columns": b"," * 7_000_000,
        "two hundred thousand rows": f"{_HEAD}\n" + f"{_ROW.replace('NVLinkOneSided', 'x')}\n" * 200_000,
    },
    "packed table": {
        "bomb": lambda _: gzip.compress(bytes(100 << 20), 9, mtime=0),
        "not packed": parsers._TABLE,
        "wrong sum": lambda whole: whole[:-8] + bytes(8),
        "packed twice": lambda whole: gzip.compress(whole, mtime=0),
    },
    "decision list": {
        "bomb": lambda _: gzip.compress(b'{"choices": [' + b"0," * (32 << 20), 9, mtime=0),
        "not packed": json.dumps({"choices": []}),
        "a list": _packed([1]),
        "deep": _packed(b"[" * 100_000),
        "format of no one": _list_with(format="\x1b[2J" * 500),
        "choices that are texts": _list_with(choices=["a"]),
        "choice beyond all": _list_with(choices=[10**400]),
        "seed beyond all": _list_with(workload_seed=10**40),
        "renaming below nothing": _list_with(renaming=-1),
        "machine that is a pipe": _list_with(
            scenario={**parsers.decision_list()["scenario"], "system": "/dev/zero", "model": "x" * 5000}
        ),
        "tokens of no machine": _list_with(scenario={**parsers.decision_list()["scenario"], "tokens": 10**30}),
        "keys of another": _list_with(**{f"k{i}": 0 for i in range(5000)}),
        "half of a letter": _list_with(policy="\ud800"),
        "half of a letter in a key": _list_with(schedule={"\ud800": 1}),
        "a key twice": _packed(b'{"format": "dysharp/decisions/1", "format": "dysharp/decisions/1"}'),
    },
    "table of results": {
        "schema of no one": json.dumps({"schema": "\n" * 3000}),
        "rows that are texts": json.dumps({"schema": "dysharp/evaluate/1", "rows": "abc"}),
        "row that is endless": b'{"schema": "dysharp/evaluate/1", "rows": [{"makespan_us": 1e999}]}',
        "a hundred thousand rows": json.dumps({"schema": "dysharp/evaluate/1", "rows": [{}] * 100_000}),
    },
    "rule": {
        "weight that is endless": json.dumps(
            {**parsers.rule(), "weights": {"gemm": {"is_gemm2": {**_WEIGHTS, "weights": {"elapsed": 1e308}}}}}
        ).replace("1e+308", "1e999"),
        "kinds of another": json.dumps({**parsers.rule(), "weights": {f"k{i}": {} for i in range(50_000)}}),
        "schedule that is a device": json.dumps({**parsers.rule(), "schedule": "/dev/zero"}),
        "schedule of a megabyte": json.dumps({**parsers.rule(), "schedule": "x" * 1_000_000}),
        "candidates without end": json.dumps({**parsers.rule(), "max_candidates": 10**30}),
        "words of a megabyte": json.dumps({**parsers.rule(), "context": {"x" * 1_000_000: "y"}}),
    },
    "card of a policy": {
        "format of no one": lambda whole: replaced(whole, b"dysharp/policy/3", b"x" * 3000),
        "features of no one": lambda whole: replaced(whole, b'"is_hold"', b'"\\u001bx"'),
        "schedule that is a device": lambda whole: replaced(whole, b'"dysharp-tuned"', b'"/dev/zero"'),
        "decisions beyond all": lambda whole: claims_decisions(whole),
    },
    "weights of a policy": {
        "not numbers": _changed_weights(_set(np.nan)),
        "endless": _changed_weights(_set(np.inf)),
        "head beyond all": _safetensors({}, claim=1 << 62),
        "tensor beyond the file": _safetensors({"scorer.embed.weight": _tensor([1 << 40], 1 << 43)}),
        "another network": _safetensors({"x": _tensor([1], 8)}, 8),
        "a tensor too many": lambda whole: replaced(whole, b"critic.value.bias", b"critic.value.bia\\u001b"[:17]),
        "half floats": lambda whole: whole.replace(b"F32", b"I32"),
        "nothing": _safetensors({}),
    },
}


def claims_decisions(whole: bytes) -> bytes:
    """Returns a card of so many decisions that no number holds them."""
    card = json.loads(whole)
    return json.dumps({**card, "decisions": -1}).encode()


def _expanded() -> Any:
    import torch

    return torch.ones(1, dtype=torch.int32).expand(1 << 20, 61, 256)


def _recorded(**changes: Any) -> bytes:
    held = parsers.recorder()
    held["records"][0] |= changes
    del held["last_physical_to_logical_map"]
    return parsers.torch_file(held)
