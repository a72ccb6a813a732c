"""Routing in responses of inference servers over HTTP: JSON of one response, a list of them, or one on each line.

vLLM from 0.22 (pull request 38939): ``choices[i].routed_experts`` is base64 of an .npy, (sequence - 1, layers, k), of
prompt and output. vLLM 0.21: ``prompt_routed_experts`` beside the choices and in each choice its own, as lists.
SGLang (pull requests 12162 and 17434): base64 of raw int32 without a shape, (tokens - 1 - start, layers, k), in
``meta_info`` or ``sglext``. The number of layers counts dense ones, whose ids are zero, but in vLLM 0.21.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dysharp_env.files import ConfigError, read_json
from dysharp_env.workload.importers.pieces import Piece, Routing, Wanted, ids_of, to_logical
from dysharp_env.workload.importers.reading import (
    Budget,
    array_of,
    decode_base64,
    field,
    is_lines,
    read_json_lines,
)
from dysharp_env.workload.npz import array_of_npy

_KEY = "routed_experts"
_PROMPT_KEY = "prompt_routed_experts"


def read_vllm(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing:
    """Returns the routing of vLLM's responses."""
    routing = Routing()
    for where, record in _responses(paths):
        choices = field(record, "choices", list, where)
        prompt = _prompt_tokens(record, where)
        if record.get(_PROMPT_KEY) is not None:
            ids = _array(record[_PROMPT_KEY], where, _PROMPT_KEY, budget)
            routing.pieces.append(_piece(ids, len(ids), where, _PROMPT_KEY, wanted))
            prompt = 0
        elif len(choices) > 1:
            # The prompt's tokens are those of all choices together where there are several prompts.
            prompt = None
        for place, choice in enumerate(choices):
            at = f"{where} choices[{place}]"
            value = field(choice, _KEY, object, at)
            if value is None:
                routing.notes.append(f"{at} has no routing and is left out")
                continue
            own = choice.get("prompt_token_ids")
            count = len(own) if isinstance(own, list) else prompt
            routing.pieces.append(_piece(_array(value, at, _KEY, budget), count, at, _KEY, wanted))
    return routing


def read_sglang(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing:
    """Returns the routing of SGLang's responses; the user or the model says how many layers there are, and top-k."""
    routing = Routing()
    for where, record in _responses(paths):
        inside = record.get("meta_info")
        holder = "meta_info" if isinstance(inside, dict) and _KEY in inside else "sglext"
        info = field(record, holder, dict, where)
        at = f"{where} {holder}"
        content = decode_base64(field(info, _KEY, object, at), at, _KEY)
        layers, top_k = wanted.require_layers(at), wanted.require_top_k(at)
        row_bytes = 4 * layers * top_k
        if not content or len(content) % row_bytes:
            raise ConfigError(
                f"{at}: {_KEY} has {len(content)} bytes, which is not whole tokens of layers={layers} x top_k={top_k}"
                " int32"
            )
        raw = np.frombuffer(content, "<i4").reshape(-1, layers, top_k)
        usage = record.get("usage") if holder == "sglext" else info
        prompt, output = _counts(usage if isinstance(usage, dict) else {})
        if prompt is not None and output is not None:
            # The first tokens may be left out: those that the request started behind.
            prompt = max(0, prompt - max(0, prompt + output - 1 - len(raw)))
        routing.pieces.append(_piece(ids_of(raw, at, _KEY, budget), prompt, at, _KEY, wanted))
    return routing


def _responses(paths: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the place and the object of every response of files."""
    for path in paths:
        if is_lines(path):
            yield from read_json_lines(path)
            continue
        held = read_json(path)
        for place, record in enumerate(held if isinstance(held, list) else [held]):
            where = f"'{path}' [{place}]" if isinstance(held, list) else f"'{path}'"
            if not isinstance(record, dict):
                raise ConfigError(f"{where}: must be a JSON object, not {type(record).__name__}")
            yield where, record


def _prompt_tokens(record: dict[str, Any], where: str) -> int | None:
    own = record.get("prompt_token_ids")
    if isinstance(own, list):
        return len(own)
    usage = record.get("usage")
    return _counts(usage)[0] if isinstance(usage, dict) else None


def _counts(usage: dict[str, Any]) -> tuple[int | None, int | None]:
    """Returns the tokens of prompt and output, where both are said and possible."""
    prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return tuple(each if type(each) is int and each >= 0 else None for each in (prompt, output))  # type: ignore[return-value]


def _array(value: Any, where: str, key: str, budget: Budget) -> np.ndarray:
    """Returns ids, (token, layer, k), of base64 of an .npy or of nested lists."""
    if isinstance(value, list):
        array = array_of(value, where, key)
    else:
        array = array_of_npy(decode_base64(value, where, key), f"{where}: {key}")
    return ids_of(array, where, key, budget)


def _piece(ids: np.ndarray, prefill: int | None, where: str, key: str, wanted: Wanted) -> Piece:
    layers = tuple(range(ids.shape[1]))
    logical = to_logical(ids.transpose(1, 0, 2), layers, wanted.physical, where, key)
    return Piece(logical, layers, where, prefill=prefill)
