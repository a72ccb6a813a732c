"""Routing as lines of JSON, one a call of a layer or one a token.

Megatron-LM (pull request 5220, ``--moe-routing-trace-path DIR``): a file a rank, a line per step, block, layer and
microbatch with the ids of all its tokens. Blocks of multi-token prediction, whose layers are numbered anew, are left
out.

Loggers beside vLLM: a line ``{"type": "meta", ...}`` and lines ``{"type": "route", "req_id", "token_idx", "layer",
"topk_ids", "topk_weights"}``; files may hold one layer or all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dysharp_env.files import ConfigError, shown
from dysharp_env.workload.choices import NO_EXPERT
from dysharp_env.workload.importers.pieces import Piece, Routing, Wanted, ids_of, to_logical
from dysharp_env.workload.importers.reading import (
    Budget,
    array_of,
    count_field,
    field,
    read_json_lines,
)


def read_megatron(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing:
    """Returns the routing of Megatron-LM's traces, by rank and step."""
    # By rank and step, then by layer, what each microbatch says, in the order of the file.
    steps: dict[tuple[int, int], dict[int, list[np.ndarray]]] = {}
    place: dict[tuple[int, int], str] = {}
    others = 0
    for path in paths:
        for where, record in read_json_lines(path):
            if record.get("block", "decoder") != "decoder":
                others += 1
                continue
            step, rank = count_field(record, "step", where), count_field(record, "rank", where)
            if not wanted.has_step(step):
                continue
            layer, ids = count_field(record, "layer", where), _top_indices(record, where, budget)
            if len(ids):
                steps.setdefault((rank, step), {}).setdefault(layer, []).append(ids)
                place.setdefault((rank, step), where)
    notes = (
        [f"{others} lines of blocks other than the decoder (multi-token prediction) were left out"] if others else []
    )
    return Routing(
        [_of_step(key, by_layer, place[key], wanted) for key, by_layer in sorted(steps.items())], notes=notes
    )


def _top_indices(record: dict[str, Any], where: str, budget: Budget) -> np.ndarray:
    """Returns the ids of a line, (token, k), which may be none."""
    tokens, top_k = count_field(record, "num_tokens", where), count_field(record, "topk", where, least=1)
    listed = field(record, "top_indices", list, where)
    if not listed and not tokens:
        return np.empty((0, top_k), np.int16)
    array = array_of(listed, where, "top_indices")
    if array.shape != (tokens, top_k):
        raise ConfigError(f"{where}: top_indices has shape {array.shape}; num_tokens and topk say {(tokens, top_k)}")
    return ids_of(array, where, "top_indices", budget, ndim=2)


def _of_step(key: tuple[int, int], by_layer: dict[int, list[np.ndarray]], where: str, wanted: Wanted) -> Piece:
    rank, step = key
    layers = tuple(sorted(by_layer))
    first = [len(ids) for ids in by_layer[layers[0]]]
    for layer in layers:
        lengths = [len(ids) for ids in by_layer[layer]]
        if lengths != first:
            raise ConfigError(
                f"{where}: step {step} of rank {rank}: num_tokens={lengths} of layer {layer} differ from {first} of"
                f" layer {layers[0]}"
            )
        if len({ids.shape[1] for ids in by_layer[layer]} | {by_layer[layers[0]][0].shape[1]}) > 1:
            raise ConfigError(f"{where}: step {step} of rank {rank}: topk of layer {layer} differs from that of others")
    ids = np.stack([np.concatenate(by_layer[layer]) for layer in layers])
    at = f"{where}: step {step} of rank {rank}"
    return Piece(to_logical(ids, layers, wanted.physical, at, "top_indices"), layers, at, rank, documents=tuple(first))


def read_route_log(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing:
    """Returns the routing of logs of routes, request by request in the order in which they first come."""
    # By request, layer and token: the ids, and the weights where there are some.
    requests: dict[str, dict[int, dict[int, tuple[list[int], list[float] | None]]]] = {}
    place: dict[str, str] = {}
    experts = None
    for path in paths:
        for where, record in read_json_lines(path):
            if record.get("type") == "meta":
                experts = count_field(record, "num_experts", where, 1) if "num_experts" in record else experts
                continue
            if record.get("type") != "route":
                raise ConfigError(f"{where}: type={shown(record.get('type'))} must be 'meta' or 'route'")
            layer, token = count_field(record, "layer", where), count_field(record, "token_idx", where)
            ids, weights = field(record, "topk_ids", list, where), record.get("topk_weights")
            budget.take(4 * len(ids) + 32, where)  # as lists they take more than in arrays
            array = ids_of(array_of(ids, where, "topk_ids"), where, "topk_ids", Budget(), ndim=1)
            if weights is not None and array_of(weights, where, "topk_weights").shape != array.shape:
                raise ConfigError(f"{where}: topk_weights must be as many as topk_ids, {len(ids)}")
            request = str(record.get("req_id", ""))
            tokens = requests.setdefault(request, {}).setdefault(layer, {})
            if token in tokens:
                raise ConfigError(f"{where}: token_idx={token} of layer {layer} is there twice")
            tokens[token] = (ids, weights)
            place.setdefault(request, where)
    pieces = [_of_request(by_layer, place[request], wanted) for request, by_layer in requests.items()]
    return Routing(pieces, experts)


def _of_request(
    by_layer: dict[int, dict[int, tuple[list[int], list[float] | None]]], where: str, wanted: Wanted
) -> Piece:
    layers = tuple(sorted(by_layer))
    tokens = sorted(by_layer[layers[0]])
    top_k = max(len(ids) for each in by_layer.values() for ids, _ in each.values())
    Budget().take(len(layers) * len(tokens) * top_k, where)  # one token may have many more than the others
    ids = np.full((len(layers), len(tokens), top_k), NO_EXPERT, np.int32)
    weights = np.zeros(ids.shape, np.float32)
    has_weights = True
    for row, layer in enumerate(layers):
        if sorted(by_layer[layer]) != tokens:
            raise ConfigError(f"{where}: token_idx of layer {layer} are not those of layer {layers[0]}")
        for column, token in enumerate(tokens):
            chosen, of_chosen = by_layer[layer][token]
            ids[row, column, : len(chosen)] = chosen
            has_weights &= of_chosen is not None
            if of_chosen is not None:
                weights[row, column, : len(chosen)] = of_chosen
    narrow = ids_of(ids, where, "topk_ids", Budget())
    logical = to_logical(narrow, layers, wanted.physical, where, "topk_ids")
    return Piece(logical, layers, where, weights=weights if has_weights else None)
