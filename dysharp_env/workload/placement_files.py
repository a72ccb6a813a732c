"""Placements as files: those that serving systems write, each for one layer or for every layer of a model.

==================================  ==========================================================================
.json list of numbers               the GPU of every expert; or the expert of every slot, slots GPU by GPU
.json list of lists                 the same, a row a layer: EPLB's ``phy2log``
.json ``physical_to_logical_map``   the expert of every slot, a row a layer: SGLang
.json ``layer_list``                experts by device and layer: the expert map of vllm-ascend
.yaml                               ``initial_global_assignments``: TensorRT-LLM's ``moe_load_balancer.yaml``
.npz                                ``gpu_of_expert`` or ``physical_to_logical_map``, with or without layers
.npz:NAME                           one array of it: as a list, or 0 and 1 by (device, layer, expert) as omni_infer
                                    has them; ``NAME__bits`` and ``NAME__shape`` are such an array packed in bits
==================================  ==========================================================================

Which row is a layer's: of one row, that one. Of as many rows as the routing has layers, the one in the same place, so
that a file of MoE layers needs no numbers. Otherwise the row with the layer's number in the model; rows of a file
without numbers count from 0, dense layers included, as SGLang's do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dysharp_env.files import ConfigError, read_json, read_yaml, shown
from dysharp_env.workload.npz import array_names, read_arrays, split_array_name
from dysharp_env.workload.placement import Placement, contiguous_placement

CONTIGUOUS = "contiguous"


@dataclass(frozen=True)
class LayerPlacements:
    """The placements of a model's layers.

    Attributes:
        name: As it was given.
        numbers: (row,) the number of each row's layer.
        placements: (row,) the placements.
    """

    name: str
    numbers: tuple[int, ...]
    placements: tuple[Placement, ...]

    def of_layer(self, layer: int, layers: Sequence[int]) -> Placement:
        """Returns the placement of a layer by the rule above; ``layers`` are those that the routing has, in order.

        Raises:
            ConfigError: No row is that layer's.
        """
        if len(self.placements) == 1:
            return self.placements[0]
        if len(self.placements) == len(layers):
            return self.placements[list(layers).index(layer)]
        if layer not in self.numbers:
            raise ConfigError(
                f"placement '{self.name}' has {len(self.numbers)} layers from {self.numbers[0]} to {self.numbers[-1]},"
                f" but none for layer {layer} of {len(layers)}"
            )
        return self.placements[self.numbers.index(layer)]

    def of_named(self, layer: int | None) -> Placement:
        """Returns the placement of a layer that is named by a number of the file, or the only one.

        Raises:
            ConfigError: The file has no such layer, or several and none is named.
        """
        if len(self.placements) == 1:
            return self.placements[0]
        if layer not in self.numbers:
            given = "no layer is named" if layer is None else f"layer_index={layer} is not one of them"
            raise ConfigError(
                f"placement '{self.name}' has {len(self.numbers)} layers from {self.numbers[0]} to {self.numbers[-1]};"
                f" {given}: choose with layer_index"
            )
        return self.placements[self.numbers.index(layer)]


def load_placements(name: str, experts: int, num_gpus: int) -> LayerPlacements:
    """Returns the placements of ``contiguous`` or of a file.

    Raises:
        ConfigError: The name is neither, the file is unreadable, or what it holds does not fit.
    """
    if name == CONTIGUOUS:
        return LayerPlacements(name, (0,), (contiguous_placement(experts, num_gpus),))
    listed = _read_listed(name)
    try:
        numbers, rows = _rows_of(listed, experts, num_gpus)
        return LayerPlacements(name, numbers, tuple(_placement_of(*row, experts, num_gpus) for row in rows))
    except ConfigError as error:
        raise ConfigError(f"placement '{name}': {error}") from None


def load_slot_maps(name: str) -> dict[int | None, np.ndarray]:
    """Returns the logical expert of every slot, by the layer's number, or under None of a file of one layer.

    That is all that ids of physical experts need: on which GPU a slot is does not matter.

    Raises:
        ConfigError: The file is unreadable, or lists no experts of slots.
    """
    try:
        numbers, rows = _rows_of(_read_listed(name), experts=1, num_gpus=1)
    except ConfigError as error:
        raise ConfigError(str(error) if name in str(error) else f"placement '{name}': {error}") from None
    maps: dict[int | None, np.ndarray] = {}
    for number, (_, logical) in zip(numbers, rows, strict=True):
        if not len(logical):
            raise ConfigError(f"placement '{name}': layer {number} holds no experts")
        if logical.min() < 0 or logical.max() > 65535:
            raise ConfigError(f"placement '{name}': it names expert {logical.min()} or {logical.max()}")
        maps[None if len(rows) == 1 else number] = logical
    return maps


def _read_listed(name: str) -> Any:
    """Returns what a file of placements holds, as it stands there."""
    path, array = split_array_name(name)
    if path.endswith(".npz"):
        return _listed_in_npz(path, array)
    if path.endswith((".yaml", ".yml")):
        return read_yaml(Path(path))
    if path.endswith(".json"):
        return read_json(Path(path))
    raise ConfigError(f"placement='{name}' is unknown; choose '{CONTIGUOUS}', 'eplb:M' or a .json, .npz or .yaml file")


def placements_json(placements: dict[int, Placement]) -> str:
    """Returns placements by layer number as SGLang's JSON, which has a row for every layer of the model.

    Rows of layers that are not given, which are dense ones, hold the experts in order.

    Args:
        placements: By the model's number of the layer; every GPU of every layer holds as many experts.
    """
    slots = len(next(iter(placements.values())))
    experts = next(iter(placements.values())).num_logical
    dense = [slot % experts for slot in range(slots)]
    rows = [
        _slots_in_order(placements[layer]) if layer in placements else dense for layer in range(max(placements) + 1)
    ]
    return json.dumps({"physical_to_logical_map": rows}) + "\n"


def placements_yaml(placements: dict[int, Placement]) -> str:
    """Returns placements by layer number as TensorRT-LLM's YAML, which has a row for every MoE layer.

    Args:
        placements: By the model's number of the layer; every GPU of every layer holds as many experts.
    """
    rows = "".join(f"  {layer}: {_slots_in_order(placements[layer])}\n" for layer in sorted(placements))
    return f"num_slots: {len(next(iter(placements.values())))}\ninitial_global_assignments:\n{rows}"


def _slots_in_order(placement: Placement) -> list[int]:
    """Returns the expert of every slot, GPU by GPU."""
    return placement.logical_of_expert[np.argsort(placement.gpu_of_expert, kind="stable")].tolist()


def _listed_in_npz(path: str, name: str | None) -> Any:
    known = ("gpu_of_expert", "physical_to_logical_map")
    names = [name] if name else [*known]
    arrays = read_arrays(path, [*names, *(f"{each}__{part}" for each in names for part in ("bits", "shape"))])
    found = [name] if name else [each for each in known if each in arrays]
    held = "" if arrays else shown(sorted(array_names(path)))
    if not found:
        raise ConfigError(f"'{path}' lacks the array '{known[0]}'; it holds {held}, choose one as '{path}:NAME'")
    if f"{found[0]}__bits" in arrays and f"{found[0]}__shape" in arrays:
        return _unpacked(path, found[0], arrays)
    if found[0] not in arrays:
        raise ConfigError(f"'{path}' has no array '{found[0]}'; it holds {held}")
    return arrays[found[0]]


def _unpacked(path: str, name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    bits, shape = arrays[f"{name}__bits"], arrays[f"{name}__shape"]
    is_sound = bits.dtype == np.uint8 and bits.ndim == 1 and shape.dtype.kind in "iu" and shape.ndim == 1
    if (
        not is_sound
        or (shape < 1).any()
        or len(shape) > 3
        or not 0 <= 8 * len(bits) - int(np.prod(shape.astype(object))) < 8
    ):
        raise ConfigError(f"'{path}': {name}__bits does not hold the bits of an array of shape {shown(shape.tolist())}")
    return np.unpackbits(bits)[: int(np.prod(shape))].reshape(shape)


# (gpus, logical experts) of one layer's slots.
_Slots = tuple[np.ndarray, np.ndarray]


def _rows_of(listed: Any, experts: int, num_gpus: int) -> tuple[tuple[int, ...], list[_Slots]]:
    """Returns the number and the slots of every layer that a file lists."""
    if isinstance(listed, dict):
        if "layer_list" in listed:
            rows = _rows_by_device(listed["layer_list"], num_gpus)
            return tuple(range(len(rows))), rows
        if "initial_global_assignments" in listed:
            by_layer = listed["initial_global_assignments"]
            if not isinstance(by_layer, dict) or not by_layer or not all(isinstance(key, int) for key in by_layer):
                raise ConfigError("initial_global_assignments must map numbers of layers to lists")
            numbers = sorted(by_layer)
            return tuple(numbers), [_slots_of(_numbers(by_layer[number]), num_gpus) for number in numbers]
        if "physical_to_logical_map" not in listed:
            raise ConfigError(
                "it must hold a list, or a mapping with 'physical_to_logical_map', 'layer_list' or"
                f" 'initial_global_assignments', not {shown(sorted(map(str, listed)))}"
            )
        array = np.atleast_2d(_numbers(listed["physical_to_logical_map"]))
        return tuple(range(len(array))), [_slots_of(row, num_gpus) for row in array]
    array = _numbers(listed)
    if array.ndim == 3:
        return tuple(range(array.shape[1])), _rows_of_bits(array, num_gpus)
    array = np.atleast_2d(array)
    is_gpus = array.shape[1] == experts and array.max() < num_gpus
    if not is_gpus and (array.shape[1] < experts or (array.shape[1] == experts and not _is_order(array))):
        raise ConfigError(
            f"it has shape {np.shape(listed)}; it must list the GPU, below {num_gpus}, of each of {experts} experts, or"
            " the expert of each slot"
        )
    rows = [(row, np.arange(experts)) if is_gpus else _slots_of(row, num_gpus) for row in array]
    return tuple(range(len(array))), rows


def _is_order(array: np.ndarray) -> bool:
    """Returns whether every row, (row, slot), holds each expert once."""
    return bool((np.sort(array, axis=1) == np.arange(array.shape[1])).all())


def _numbers(listed: Any, most_axes: int = 3) -> np.ndarray:
    try:
        array = np.asarray(listed)
    except (ValueError, OverflowError, RecursionError):  # lists of different lengths, or too deep
        array = np.empty(0)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "iu" or array.size == 0 or not 1 <= array.ndim <= most_axes:
        raise ConfigError("it must list whole numbers, as many in every row")
    return array


def _slots_of(row: np.ndarray, num_gpus: int) -> _Slots:
    """Returns the slots of one layer from the expert of each, as many on every GPU."""
    if row.ndim != 1 or len(row) % num_gpus:
        raise ConfigError(f"{row.size} slots cannot be spread evenly over gpus={num_gpus}")
    return np.repeat(np.arange(num_gpus), len(row) // num_gpus), row


def _rows_of_bits(array: np.ndarray, num_gpus: int) -> list[_Slots]:
    if array.shape[0] != num_gpus or not np.isin(array, (0, 1)).all():
        raise ConfigError(
            f"an array of shape {array.shape} must hold 0 and 1 by device, layer and expert, on {num_gpus}"
        )
    return [np.nonzero(array[:, layer]) for layer in range(array.shape[1])]  # type: ignore[misc]


def _rows_by_device(layers: Any, num_gpus: int) -> list[_Slots]:
    """Returns the slots of every layer of an expert map, whose layers and devices count in the order they stand."""
    try:
        by_layer = [[_numbers(each["device_expert"], 1) for each in layer["device_list"]] for layer in layers]
    except (KeyError, TypeError):
        raise ConfigError("each of layer_list must have a device_list, and each of that a list device_expert") from None
    rows = []
    for number, devices in enumerate(by_layer):
        if len(devices) != num_gpus:
            raise ConfigError(f"layer {number} has {len(devices)} devices, not gpus={num_gpus}")
        held = [len(each) for each in devices]
        rows.append((np.repeat(np.arange(num_gpus), held), np.concatenate(devices)))
    if not rows:
        raise ConfigError("layer_list is empty")
    return rows


def _placement_of(gpus: np.ndarray, logical: np.ndarray, experts: int, num_gpus: int) -> Placement:
    """Returns the placement of one layer's slots; where each expert has one, they have the experts' numbers."""
    wrong = (logical < 0) | (logical >= experts)
    if wrong.any():
        raise ConfigError(f"it names expert {logical[wrong][0]}; experts are 0 to {experts - 1}")
    missing = np.setdiff1d(np.arange(experts), logical)
    if missing.size:
        raise ConfigError(f"no GPU holds expert {missing[0]}")
    if len(logical) == experts:
        return Placement(num_gpus, gpus[np.argsort(logical)])
    return Placement(num_gpus, gpus, logical)
