"""Routing as bare arrays in .npy and .npz: what vLLM's Python interface returns, what trainers keep, logits.

========================  ===============================================================================
.npy, three axes          ids (token, layer, k), as ``RequestOutput.outputs[i].routed_experts`` of vLLM
.npz ``routed_experts``   the same, with or without ``prompt_token_ids``: the common form of RL trainers
.npz ``topk_ids``         ids of this project's layout, (layer, token, k), or (token, layer, k)
.npz ``router_logits``    logits (layer, token, expert), or an array a layer, ``router_logits_N``, (token, expert)
                          or (batch, token, expert), as Hugging Face's ``output_router_logits=True`` returns them
.npy, two axes            loads (layer, expert), as EPLB takes them
========================  ===============================================================================
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dysharp_env.files import ConfigError, shown
from dysharp_env.workload.importers.pieces import Counted, Piece, Routing, Wanted, counts_of, ids_of, to_logical
from dysharp_env.workload.importers.reading import Budget
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.npz import array_names, read_arrays, read_npy

LOGITS = re.compile(r"router_logits(?:_\d{1,6})?")
_NAMES = ("routed_experts", "topk_ids", "prompt_token_ids", "experts")  # of an npz of ids
_ROWS = 4096  # tokens whose logits are sorted at once


def read_ids(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing | Counted:
    """Returns the routing of arrays of ids, or the loads of arrays with two axes."""
    routing = Routing()
    for path in paths:
        where = f"'{path}'"
        if path.suffix == ".npy":
            array = read_npy(path)
            if array.ndim == 2:
                if len(paths) > 1:
                    raise ConfigError(f"{where}: loads are imported alone, not with {len(paths) - 1} other files")
                return Counted(counts_of(array, where, "array"), tuple(range(len(array))), where)
            routing.pieces.append(_piece(array, None, where, "array", wanted, budget, routing.notes))
            continue
        arrays = read_arrays(str(path), _NAMES)
        key = "routed_experts" if "routed_experts" in arrays else "topk_ids"
        if key not in arrays:
            raise ConfigError(
                f"{where}: has no array 'routed_experts' or 'topk_ids'; it holds {shown(array_names(path))}"
            )
        prompt = arrays.get("prompt_token_ids")
        prefill = prompt.size if prompt is not None and prompt.ndim == 1 else None
        routing.pieces.append(_piece(arrays[key], prefill, where, key, wanted, budget, routing.notes))
        routing.experts = _experts_of(arrays, where) or routing.experts
    return routing


def _experts_of(arrays: dict[str, np.ndarray], where: str) -> int | None:
    if "experts" not in arrays:
        return None
    declared = arrays["experts"]
    if declared.ndim or declared.dtype.kind not in "iu" or int(declared) < 1:
        raise ConfigError(f"{where}: experts must be one whole number from 1, not {declared.tolist()!r:.60}")
    return int(declared)


def _piece(
    array: np.ndarray, prefill: int | None, where: str, key: str, wanted: Wanted, budget: Budget, notes: list[str]
) -> Piece:
    ids = ids_of(array, where, key, budget)
    is_token_first = wanted.layout == "token"
    if wanted.layout == "auto":
        # Only this project's own key has layers first, and few models have more layers than a recording has tokens.
        is_token_first = key != "topk_ids" or ids.shape[0] > ids.shape[1]
        if key == "topk_ids" and is_token_first:
            notes.append(
                f"{where}: topk_ids of shape {ids.shape} was read as (token, layer, k), as layers would exceed tokens;"
                " layout says otherwise"
            )
    ids = ids.transpose(1, 0, 2) if is_token_first else ids
    layers = tuple(range(len(ids)))
    return Piece(to_logical(ids, layers, wanted.physical, where, key), layers, where, prefill=prefill)


def read_logits(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing:
    """Returns the routing that logits give to a router that takes the largest: not to one with groups or a bias.

    Raises:
        ConfigError: The model's router is of the other kind, or the arrays are no logits.
    """
    _refuse_groups(wanted.model, f"'{paths[0]}'")
    routing = Routing(
        notes=[
            "experts are those with the largest logits: right for softmax routers (Mixtral, Qwen), wrong for routers"
            " with a bias or groups (DeepSeek-V3, Kimi, GLM), whose choice a RoutingRecorder records"
        ]
    )
    for path in paths:
        by_layer, where = _logits_of(path), f"'{path}'"
        top_k = wanted.require_top_k(where)
        chosen = []
        for number, logits in by_layer.items():
            if logits.shape != next(iter(by_layer.values())).shape or not top_k <= logits.shape[1]:
                raise ConfigError(
                    f"{where}: router_logits of layer {number} has shape {logits.shape}; all layers must have as many"
                    f" tokens, and at least top_k={top_k} experts"
                )
            budget.take(len(logits) * top_k, f"{where}: router_logits of layer {number}")
            chosen.append(_largest(logits, top_k, f"{where}: router_logits of layer {number}"))
        routing.pieces.append(Piece(np.stack(chosen), tuple(by_layer), where))
        routing.experts = next(iter(by_layer.values())).shape[1]
    return routing


def _refuse_groups(model: LayerSpec | None, where: str) -> None:
    if model is not None and model.n_group > 1:
        raise ConfigError(
            f"{where}: logits of model '{model.name}' do not give its choice, as its router has groups and a bias;"
            " record the ids it chose (RoutingRecorder)"
        )


def _logits_of(path: Path) -> dict[int, np.ndarray]:
    """Returns logits, (token, expert), by the number of the layer."""
    where, found = f"'{path}'", {}
    arrays = read_arrays(str(path), {name for name in array_names(path) if LOGITS.fullmatch(name)})
    for name, array in arrays.items():
        if array.dtype.kind != "f" or array.ndim not in (2, 3) or 0 in array.shape:
            raise ConfigError(f"{where}: {name} must be floats with 2 or 3 axes, not {array.dtype} of {array.shape}")
        if number := name.removeprefix("router_logits").removeprefix("_"):
            found[int(number)] = array.reshape(-1, array.shape[-1])
        else:
            found.update(enumerate(array if array.ndim == 3 else array[None]))
    if not found:
        raise ConfigError(f"{where}: has no array 'router_logits' or 'router_logits_N'")
    return dict(sorted(found.items()))


def _largest(logits: np.ndarray, top_k: int, where: str) -> np.ndarray:
    """Returns the experts with the largest logits, (token, k) int32, largest first."""
    parts = []
    for start in range(0, len(logits), _ROWS):
        part = logits[start : start + _ROWS].astype(np.float32)
        if np.isnan(part).any():
            raise ConfigError(f"{where}: token {start + int(np.isnan(part).any(axis=1).argmax())} is not a number")
        parts.append(np.argsort(-part, axis=1, kind="stable")[:, :top_k].astype(np.int32))
    return np.concatenate(parts)
