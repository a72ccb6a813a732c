"""Random routing, and writers of the formats in which others keep it: from their descriptions, not from the importers.

Arrays are (layer, token, k). Layer 0 is dense in formats whose layer axis covers dense layers: zeros, as they stand
there.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

EXPERTS, TOP_K, LAYERS = 32, 4, 3


def random_ids(tokens: int, seed: int = 0, layers: int = LAYERS, experts: int = EXPERTS, k: int = TOP_K) -> np.ndarray:
    """Returns ids, (layer, token, k), distinct in a token; the highest expert is among them."""
    rng = np.random.default_rng(seed)
    ids = rng.random((layers, tokens, experts)).argsort(axis=-1)[..., :k]
    ids[0, 0] = np.arange(experts - 1, experts - 1 - k, -1)
    return ids


def with_dense(ids: np.ndarray) -> np.ndarray:
    """Returns ids with a dense layer of zeros before the others."""
    return np.concatenate([np.zeros_like(ids[:1]), ids])


def npy_text(array: np.ndarray) -> str:
    """Returns base64 of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, array)
    return base64.b64encode(stream.getvalue()).decode()


def write_json(path: Path, held: Any) -> Path:
    path.write_text(json.dumps(held))
    return path


def vllm_response(ids: np.ndarray, prompt: int) -> dict[str, Any]:
    """Returns a response of vLLM from 0.22: routing of prompt and output, without the last token."""
    routed = npy_text(with_dense(ids).transpose(1, 0, 2).astype(np.uint8))
    usage = {"prompt_tokens": prompt, "completion_tokens": ids.shape[1] + 1 - prompt}
    return {"id": "cmpl-0", "choices": [{"index": 0, "text": "ü 🙂", "routed_experts": routed}], "usage": usage}


def vllm21_response(prompt: np.ndarray, outputs: list[np.ndarray]) -> dict[str, Any]:
    """Returns a response of vLLM 0.21: MoE layers alone, the prompt beside the choices."""
    choices = [{"index": i, "routed_experts": ids.transpose(1, 0, 2).tolist()} for i, ids in enumerate(outputs)]
    return {"prompt_routed_experts": prompt.transpose(1, 0, 2).tolist(), "choices": choices}


def sglang_response(ids: np.ndarray, prompt: int, start: int = 0, openai: bool = False) -> dict[str, Any]:
    """Returns a response of SGLang: raw int32 without the first ``start`` tokens, dense layer and all."""
    raw = with_dense(ids)[:, start:].transpose(1, 0, 2).astype("<i4").tobytes()
    text, usage = (
        base64.b64encode(raw).decode(),
        {"prompt_tokens": prompt, "completion_tokens": ids.shape[1] + 1 - prompt},
    )
    if openai:
        return {"choices": [{"index": 0, "text": "x"}], "sglext": {"routed_experts": text}, "usage": usage}
    return {"text": "x", "meta_info": {"id": "0", **usage, "routed_experts": text}}


def megatron_lines(ids: np.ndarray, rank: int, step: int) -> list[dict[str, Any]]:
    """Returns the lines of a step of a rank, one a layer, numbered from 1, and one of multi-token prediction."""
    head = {"step": step, "stage": "pre_dispatch"}
    size = {"rank": rank, "num_tokens": ids.shape[1], "topk": ids.shape[2]}
    lines = [
        {**head, "block": "decoder", "layer": number + 1, **size, "top_indices": each.tolist()}
        for number, each in enumerate(ids)
    ]
    return [*lines, {**head, "block": "mtp", "layer": 0, **size, "mtp_idx": 0, "top_indices": ids[0].tolist()}]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], header: bytes | None = None) -> Path:
    """Writes arrays by the format's definition: length of the header, header, bytes of the arrays."""
    names, offset = {}, 0
    for name, array in arrays.items():
        dtype = {np.dtype("<i8"): "I64", np.dtype("<i4"): "I32"}[array.dtype]
        names[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    head = json.dumps(names).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(head)) + head + b"".join(array.tobytes() for array in arrays.values()))
    return path


def llama_rows(passes: list[np.ndarray]) -> str:
    """Returns llama.cpp's CSV of passes, (layer, token, k) each, layers numbered from 1; -1 has no row."""
    rows = [
        f"{layer + 1},{expert}"
        for ids in passes
        for layer, each in enumerate(ids)
        for expert in each.ravel()
        if expert >= 0
    ]
    return "\n".join(["layer,expert", *rows]) + "\n"


def route_lines(requests: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns a log of routes: a line a token and layer, layers numbered from 1."""
    meta = {"type": "meta", "model_id": "m", "layers_logged": [1, 2, 3], "top_k": TOP_K, "num_experts": EXPERTS}
    routes = [
        {
            **{"type": "route", "req_id": name, "token_idx": token, "layer": layer + 1},
            **{"topk_ids": row.tolist(), "topk_weights": weights[name][layer, token].tolist()},
        }
        for name, ids in requests.items()
        for layer, each in enumerate(ids)
        for token, row in enumerate(each)
    ]
    return [meta, *routes]
