"""Routing that inference engines record to files of tensors: SGLang's recorder and TensorRT-LLM's statistics.

SGLang, ``--expert-distribution-recorder-mode``, a .pt of plain containers and tensors, which ``weights_only`` admits:
``stat`` holds ``logical_count`` (step, layer, expert); ``per_pass`` and ``per_token``, a file a rank, hold ``records``
of forward passes with ids of physical experts, and ``last_physical_to_logical_map``. As JSON, ``logical_count`` alone.

TensorRT-LLM, ``EXPERT_STATISTIC_PATH``: ``meta_info.json`` and a safetensors a rank, ``"{iteration}_{layer}"`` with
counts by expert; of some forks also ``rank{r}_raw.safetensors`` with ids, (token, k), which are read in their place.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np

from dysharp_env.files import ConfigError, foreign, read_json
from dysharp_env.workload.importers.pieces import Counted, Piece, Routing, Wanted, counts_of, ids_of, map_of, to_logical
from dysharp_env.workload.importers.reading import (
    Budget,
    array_of,
    count_field,
    field,
    read_start,
)
from dysharp_env.workload.npz import MOST_ARRAY_BYTES, zip_members

_DECODE = 2  # forward_mode of SGLang's records
RANK_FILE = re.compile(r"rank(\d+)(_raw)?\.safetensors")
_TENSOR = re.compile(r"(\d{1,9})_(\d{1,6})")
_MOST_HEADER_BYTES = 16 << 20
_MOST_OBJECTS_BYTES = 16 << 20  # of a .pt, without its tensors
_TO_NPZ = (
    "Python objects are never read from pickles, as that can run any program; where the file can be trusted, write"
    " arrays from it with numpy.savez(FILE, routed_experts=IDS), IDS (token, layer, k), and import that"
)


def refuse_pickle(path: Path) -> None:
    """Refuses a file of pickled objects.

    Raises:
        ConfigError: Always; the message says what to do.
    """
    raise ConfigError(f"'{path}': {_TO_NPZ}")


def read_recorder(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing | Counted:
    """Returns the routing, or loads, of SGLang's recorder; the files of ranks together."""
    routing, loads = Routing(), _Loads()
    for path in paths:
        where, held = f"'{path}'", _load_tensors(path)
        if not isinstance(held, dict):
            raise ConfigError(f"{where}: must hold a mapping, not {type(held).__name__}")
        if "logical_count" in held:
            counts = _array(held["logical_count"], where, "logical_count", budget)
            loads.add(counts_of(counts, where, "logical_count"), where)
            routing.experts = counts.shape[-1]
        else:
            _read_records(held, where, wanted, budget, routing, loads)
    if routing.pieces:
        return routing
    return loads.result()


def _read_records(
    held: dict[str, Any], where: str, wanted: Wanted, budget: Budget, routing: Routing, loads: _Loads
) -> None:
    maps = _maps_of(held, where, wanted, budget)
    for place, record in enumerate(field(held, "records", list, where)):
        at = f"{where} records[{place}]"
        step = count_field(record, "forward_pass_id", at)
        if not wanted.has_step(step):
            continue
        if "topk_ids_of_layer" in record:
            routing.pieces.append(_piece_of(record, at, maps, budget))
            continue
        key = "global_physical_count"
        physical = _array(field(record, key, object, at), at, key, budget)
        if physical.ndim != 2:
            raise ConfigError(f"{at}: {key} must be (layer, physical expert), not of shape {physical.shape}")
        counts = _logical_counts(counts_of(physical, at, key), maps, at)
        loads.add_global(counts, at, count_field(record, "rank", at), step)


def _maps_of(held: dict[str, Any], where: str, wanted: Wanted, budget: Budget) -> dict[int | None, np.ndarray]:
    """Returns the logical expert of every physical one, by layer: the file's, or the one that the user gives."""
    key = "last_physical_to_logical_map"
    if held.get(key) is None:
        if wanted.physical:
            return wanted.physical
        raise ConfigError(f"{where}: key '{key}' is missing, and its ids are of physical experts; give placement")
    array = ids_of(_array(held[key], where, key, budget), where, key, budget, ndim=2)
    if array.min() < 0:
        raise ConfigError(f"{where}: {key} holds {array.min()}; every physical expert must be of a logical one")
    return dict(enumerate(array))


def _piece_of(record: dict[str, Any], at: str, maps: dict[int | None, np.ndarray], budget: Budget) -> Piece:
    key = "topk_ids_of_layer"
    ids = ids_of(_array(record[key], at, key, budget), at, key, budget)
    # Places behind the model's top-k are -1 for every token.
    used = (ids >= 0).any(axis=(0, 1))
    ids = ids[:, :, : int(np.flatnonzero(used)[-1]) + 1] if used.any() else ids
    layers = tuple(range(len(ids)))
    lengths = record.get("extend_seq_lens")
    lengths = [] if lengths is None else np.asarray(lengths).ravel().tolist()
    tokens = ids.shape[1]
    is_decode = count_field(record, "forward_mode", at) == _DECODE
    if is_decode:
        lengths = [1] * tokens  # each of another sequence
    elif sum(lengths) != tokens or min(lengths, default=0) < 0:
        lengths = []
    rank = count_field(record, "rank", at)
    logical = to_logical(ids, layers, maps, at, key)
    documents = tuple(length for length in lengths if length)
    return Piece(logical, layers, at, rank, 0 if is_decode else tokens, documents)


def _logical_counts(physical: np.ndarray, maps: dict[int | None, np.ndarray], at: str) -> np.ndarray:
    """Returns counts, (layer, logical), from those of physical experts."""
    experts = 1 + max(int(each.max()) for each in maps.values())
    counts = np.zeros((len(physical), experts))
    for layer, of_layer in enumerate(physical):
        logical = map_of(maps, layer, at)
        if len(logical) != len(of_layer):
            raise ConfigError(f"{at}: layer {layer} has {len(of_layer)} physical experts; the map has {len(logical)}")
        np.add.at(counts[layer], logical, of_layer)
    return counts


class _Loads:
    """Sums loads of files, and of ranks that count the same, once."""

    def __init__(self) -> None:
        self._total: np.ndarray | None = None
        self._layers: tuple[int, ...] = ()
        self._where = ""
        self._steps: dict[int, int] = {}  # the rank whose counts of a step are taken
        self._repeated = 0

    def add(self, counts: np.ndarray, where: str, layers: tuple[int, ...] = ()) -> None:
        """Adds loads, (layer, expert), of layers that count from 0 if none are named."""
        layers = layers or tuple(range(len(counts)))
        if self._total is None:
            self._total, self._layers, self._where = np.zeros_like(counts), layers, where
        if layers != self._layers or counts.shape != self._total.shape:
            raise ConfigError(
                f"{where}: has {len(counts)} layers and {counts.shape[1]} experts, or other layers than {self._where}"
                f" with {len(self._total)} and {self._total.shape[1]}"
            )
        self._total += counts

    def add_global(self, counts: np.ndarray, where: str, rank: int, step: int) -> None:
        """Adds loads of a step that every rank counts alike, of the first rank that comes."""
        if self._steps.setdefault(step, rank) == rank:
            self.add(counts, where)
        else:
            self._repeated += 1

    def result(self, top_k: int | None = None) -> Counted:
        """Returns the sums.

        Raises:
            ConfigError: Nothing was added.
        """
        if self._total is None:
            raise ConfigError("nothing to import: no records in those files or steps")
        notes = []
        if self._repeated:
            notes.append(f"{self._repeated} records count on another rank what one that was read counts")
        return Counted(self._total, self._layers, self._where, top_k, notes)


def _load_tensors(path: Path) -> Any:
    """Returns what a .pt holds of plain containers and tensors; anything else in it is refused."""
    members = zip_members(path)
    objects = sum(size for name, size in members.items() if name.endswith("data.pkl"))
    if objects > _MOST_OBJECTS_BYTES or sum(members.values()) > MOST_ARRAY_BYTES:
        raise ConfigError(
            f"'{path}': {sum(members.values()) >> 20} MB unpacked; at most {MOST_ARRAY_BYTES >> 20} MB are read"
        )
    import torch

    with foreign(f"'{path}'", ".pt file"):
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:
            if "weights" in str(error).lower() or "unsupported" in str(error).lower():
                refuse_pickle(path)
            raise


def _array(value: Any, where: str, key: str, budget: Budget) -> np.ndarray:
    """Returns a tensor, or nested lists, as an array; what a tensor claims is checked before it is copied."""
    if hasattr(value, "numel") and hasattr(value, "numpy"):
        if int(value.numel()) * int(value.element_size()) > MOST_ARRAY_BYTES:
            raise ConfigError(f"{where}: {key} claims {int(value.numel())} numbers; too many")
        if str(value.dtype) == "torch.bfloat16" or value.is_sparse:
            raise ConfigError(f"{where}: {key} must be whole numbers, not {value.dtype}")
        return value.detach().numpy()
    return array_of(value, where, key)


def read_loads_json(paths: list[Path], wanted: Wanted, budget: Budget) -> Counted:
    """Returns the loads of SGLang's JSON, or of bare lists as EPLB takes them, of all files together."""
    loads = _Loads()
    for path in paths:
        where, key, held = f"'{path}'", "logical_count", read_json(path)
        listed = held if isinstance(held, list) else field(held, key, list, where)
        loads.add(counts_of(array_of(listed, where, key), where, key), where)
    return loads.result()


def read_tensorrt(paths: list[Path], wanted: Wanted, budget: Budget) -> Routing | Counted:
    """Returns the routing of raw statistics of TensorRT-LLM, or else the loads of the counts."""
    experts, top_k = _meta_of(paths)
    matched = [(path, match) for path in paths if (match := RANK_FILE.fullmatch(path.name))]
    if not matched:
        raise ConfigError(f"'{paths[0]}': statistics are named rank0.safetensors, rank1.safetensors, ...")
    raw = [(path, int(match[1])) for path, match in matched if match[2]]
    if not raw:
        loads = _Loads()
        for path, _ in matched:
            _add_counts(path, experts, wanted, budget, loads)
        return loads.result(top_k)
    routing = Routing(experts=experts or None)
    if len(raw) < len(matched):
        routing.notes.append(f"{len(matched) - len(raw)} files of counts were left out for those of ids")
    for path, rank in raw:
        for step, by_layer in sorted(_read_safetensors(path, wanted, budget, ndim=2).items()):
            at, layers = f"'{path}' iteration {step}", tuple(sorted(by_layer))
            arrays = [ids_of(by_layer[layer], at, f"{step}_{layer}", budget, ndim=2) for layer in layers]
            if len({array.shape for array in arrays}) > 1:
                raise ConfigError(f"{at}: layers have different shapes, {sorted({array.shape for array in arrays})}")
            ids = to_logical(np.stack(arrays), layers, wanted.physical, at, "ids")
            routing.pieces.append(Piece(ids, layers, at, rank))
    return routing


def _meta_of(paths: list[Path]) -> tuple[int | None, int | None]:
    """Returns experts and top-k of the meta_info.json among files or beside the first."""
    path = next((path for path in paths if path.name == "meta_info.json"), paths[0].with_name("meta_info.json"))
    if not os.path.isfile(path):
        return None, None
    held, where = read_json(path), f"'{path}'"
    return count_field(held, "num_experts", where, 1), count_field(held, "num_experts_per_token", where, 1)


def _add_counts(path: Path, experts: int | None, wanted: Wanted, budget: Budget, loads: _Loads) -> None:
    by_step = _read_safetensors(path, wanted, budget, ndim=1)
    numbers = sorted({layer for by_layer in by_step.values() for layer in by_layer})
    for step, by_layer in by_step.items():
        for layer, array in by_layer.items():
            if experts is not None and len(array) != experts:
                raise ConfigError(f"'{path}': {step}_{layer} has {len(array)} experts; num_experts={experts}")
    if len({len(array) for by_layer in by_step.values() for array in by_layer.values()}) > 1:
        raise ConfigError(f"'{path}': layers have different numbers of experts")
    if not numbers:
        return
    total = {
        layer: counts_of(
            np.stack([each[layer] for each in by_step.values() if layer in each]), f"'{path}'", f"*_{layer}"
        )
        for layer in numbers
    }
    loads.add(np.stack([total[layer].sum(axis=0) for layer in numbers]), f"'{path}'", tuple(numbers))


def _read_safetensors(path: Path, wanted: Wanted, budget: Budget, ndim: int) -> dict[int, dict[int, np.ndarray]]:
    """Returns arrays by iteration and layer."""
    where = f"'{path}'"
    size = int.from_bytes(read_start(path, 8), "little")
    if size > _MOST_HEADER_BYTES:
        raise ConfigError(f"{where}: its header claims {size} bytes; at most {_MOST_HEADER_BYTES} are read")
    from safetensors import safe_open

    found: dict[int, dict[int, np.ndarray]] = {}
    with foreign(where, "safetensors file"), safe_open(path, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            match = _TENSOR.fullmatch(name)
            if match is None:
                raise ConfigError(f"{where}: tensor '{name}' must be named ITERATION_LAYER")
            if not wanted.has_step(int(match[1])):
                continue
            shape = file.get_slice(name).get_shape()
            if len(shape) != ndim:
                raise ConfigError(f"{where}: {name} has shape {shape}; it must have {ndim} axes")
            budget.take(int(np.prod([int(each) for each in shape], dtype=object)), f"{where}: {name}")
            found.setdefault(int(match[1]), {})[int(match[2])] = file.get_tensor(name)
    return found
