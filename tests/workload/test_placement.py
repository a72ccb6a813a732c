"""Placements: contiguous ones, replicas and copies by hand, and every kind of file they come in."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.workload.eplb import eplb_placement
from dysharp_env.workload.layer import load_model
from dysharp_env.workload.placement import Placement, contiguous_placement
from dysharp_env.workload.placement_files import load_placements, load_slot_maps, placements_json, placements_yaml
from dysharp_env.workload.replicas import serve
from dysharp_env.workload.workload import Workload
from tests.shared_files import SHARED, needs_shared


def test_contiguous_placements_have_ceiling_and_floor_shares() -> None:
    assert contiguous_placement(60, 8).held.tolist() == [8, 8, 8, 8, 7, 7, 7, 7]
    assert contiguous_placement(3, 5).gpu_of_expert.tolist() == [0, 1, 2]
    assert contiguous_placement(3, 5).held.tolist() == [1, 1, 1, 0, 0]


def test_replicas_and_copies_by_hand() -> None:
    made = Placement(3, np.array([0, 1, 2, 0, 2]), np.array([0, 1, 1, 1, 0]), np.array([-1, -1, -1, 1, 0]))
    assert (made.num_logical, len(made), made.num_copies, made.is_plain) == (2, 5, 2, False)
    assert made.is_copy.tolist() == [False, False, False, True, True]
    first, replicas = made.replicas
    assert first.tolist() == [0, 2, 5] and replicas.tolist() == [0, 4, 1, 2, 3]
    assert contiguous_placement(4, 2).is_plain


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (([0, 2],), "gpu_of_expert names GPU 2; there are GPUs 0 to 1"),
        (([[0, 1]],), r"gpu_of_expert has shape \(1, 2\)"),
        (([0, 1], [0.0, 1.0]), "logical_of_expert must hold whole numbers"),
        (([0, 1], [0, 2]), "logical_of_expert names expert 2"),
        (([0, 1], [1, 1]), "no GPU holds logical expert 0 when the layer begins"),
        (([0, 1, 1], [0, 0, 1], [-1, 0, 0]), "no GPU holds logical expert 1 when the layer begins"),
        (([0, 1, 1], [0, 1, 0], [-1, -1, 1]), "expert 2 would get the weights of another, 1"),
        (([0, 0, 1], [0, 0, 1], [-1, 0, -1]), "experts 1 and 0 are on the same GPU, 0"),
        (([0, 1, 0], [0, 0, 0], [-1, 2, 1]), "copies get their weights from each other"),
    ],
)
def test_impossible_placements_give_one_line(arrays: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        Placement(2, *(np.array(each) for each in arrays))
    assert "\n" not in str(raised.value)


def read(path: Path, experts: int, num_gpus: int, layer: int | None = None) -> Placement:
    return load_placements(str(path), experts, num_gpus).of_named(layer)


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_gpu_of_every_expert(tmp_path: Path) -> None:
    listed = [0, 1, 0, 1, 1, 0, 1, 1]  # in any shares
    np.savez(tmp_path / "p.npz", gpu_of_expert=np.array(listed))
    for path in (write(tmp_path / "p.json", listed), tmp_path / "p.npz"):
        placement = read(path, 8, 2)
        assert placement.gpu_of_expert.tolist() == listed and placement.is_plain
    path = write(tmp_path / "p.json", [listed, listed[::-1]])
    assert read(path, 8, 2, 1).gpu_of_expert.tolist() == listed[::-1]


def test_the_expert_of_every_slot(tmp_path: Path) -> None:
    listed = [0, 1, 3, 2, 3, 1]  # GPU 0 holds 0, 1 and 3, GPU 1 holds 2, 3 and 1
    np.savez(tmp_path / "p.npz", physical_to_logical_map=np.array([listed]))
    np.savez(tmp_path / "other.npz", mine=np.array(listed))
    for path in (
        write(tmp_path / "eplb.json", listed),
        write(tmp_path / "rows.json", [listed]),
        write(tmp_path / "sglang.json", {"physical_to_logical_map": [listed]}),
        write(tmp_path / "trtllm.yaml", f"num_slots: 6\ninitial_global_assignments:\n  3: {listed}\n"),
        tmp_path / "p.npz",
        tmp_path / "other.npz:mine",
    ):
        placement = read(path, 4, 2)
        assert placement.gpu_of_expert.tolist() == [0, 0, 0, 1, 1, 1], path
        assert placement.logical_of_expert.tolist() == listed
    # As many slots as experts: experts keep their numbers.
    plain = read(write(tmp_path / "plain.json", [3, 0, 2, 1]), 4, 2)
    assert plain.is_plain and plain.gpu_of_expert.tolist() == [0, 1, 1, 0]


def test_experts_by_device(tmp_path: Path) -> None:
    devices = [{"device_id": 0, "device_expert": [2, 0]}, {"device_id": 1, "device_expert": [1, 3, 0]}]
    content = {"moe_layer_count": 1, "layer_list": [{"layer_id": 0, "device_count": 2, "device_list": devices}]}
    placement = read(write(tmp_path / "map.json", content), 4, 2)
    assert placement.gpu_of_expert.tolist() == [0, 0, 1, 1, 1]
    assert placement.logical_of_expert.tolist() == [2, 0, 1, 3, 0]


def test_zeros_and_ones_by_device_layer_and_expert(tmp_path: Path) -> None:
    bits = np.zeros((2, 3, 4), np.uint8)
    bits[0, :, :2], bits[1, :, 2:], bits[1, 2, 0] = 1, 1, 1  # layer 2 has expert 0 twice
    path = tmp_path / "p.npz"
    np.savez(path, plain=bits, packed__bits=np.packbits(bits), packed__shape=np.array(bits.shape), flags=bits == 1)
    for name in ("plain", "packed", "flags"):
        assert read(Path(f"{path}:{name}"), 4, 2, 0).gpu_of_expert.tolist() == [0, 0, 1, 1]
        placement = read(Path(f"{path}:{name}"), 4, 2, 2)
        assert placement.gpu_of_expert.tolist() == [0, 0, 1, 1, 1]
        assert placement.logical_of_expert.tolist() == [0, 1, 0, 2, 3]


def test_which_row_is_a_layer_s(tmp_path: Path) -> None:
    rows = [[0, 1], [1, 0], [0, 0], [1, 1]]
    placements = load_placements(str(write(tmp_path / "p.json", rows)), 2, 2)
    # As many as the routing has: in the same place, whatever their numbers.
    layers = [3, 4, 5, 9]
    assert [placements.of_layer(each, layers).gpu_of_expert.tolist() for each in layers] == rows
    # Otherwise by number, from 0 and dense layers with them.
    assert [placements.of_layer(each, [1, 3]).gpu_of_expert.tolist() for each in (1, 3)] == [[1, 0], [1, 1]]
    with pytest.raises(ConfigError, match="has 4 layers from 0 to 3, but none for layer 9 of 2"):
        placements.of_layer(9, [1, 9])
    # One is for all.
    one = load_placements(str(write(tmp_path / "one.json", rows[1])), 2, 2)
    assert one.of_layer(9, [1, 9]).gpu_of_expert.tolist() == one.of_named(None).gpu_of_expert.tolist() == [1, 0]
    # TensorRT-LLM numbers its layers itself.
    text = "initial_global_assignments: {7: [1, 0], 3: [0, 1], 9: [0, 1]}"
    numbered = load_placements(str(write(tmp_path / "p.yaml", text)), 2, 2)
    assert numbered.of_layer(7, [7]).gpu_of_expert.tolist() == [1, 0]
    # A generator has no layers.
    for layer, message in (
        (None, "has 4 layers from 0 to 3; no layer is named: choose with layer_index"),
        (4, "has 4 layers from 0 to 3; layer_index=4 is not one of them"),
    ):
        with pytest.raises(ConfigError, match=message):
            placements.of_named(layer)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = {layer: eplb_placement(rng.pareto(1, 12) + 0.1, 4, 4) for layer in (1, 2, 4)}
    path = write(tmp_path / "p.json", placements_json(made))
    rows = json.loads(path.read_text())["physical_to_logical_map"]
    assert len(rows) == 5 and rows[0] == rows[3] == [*range(12), 0, 1, 2, 3]
    text = placements_yaml(made)
    assert text.startswith("num_slots: 16\ninitial_global_assignments:\n  1: [")
    both = [load_placements(str(each), 12, 4) for each in (path, write(tmp_path / "p.yaml", text))]
    for (layer, placement), placements in product(made.items(), both):
        again = placements.of_layer(layer, [1, 2, 4])
        assert np.array_equal(again.gpu_of_expert, placement.gpu_of_expert)
        assert np.array_equal(again.logical_of_expert, placement.logical_of_expert)


def test_maps_of_slots_need_no_gpus(tmp_path: Path) -> None:
    rows = [[1, 0, 1], [0, 1, 0]]
    path = write(tmp_path / "p.json", {"physical_to_logical_map": rows})
    assert {layer: each.tolist() for layer, each in load_slot_maps(str(path)).items()} == {0: rows[0], 1: rows[1]}
    path = write(tmp_path / "p.yaml", "initial_global_assignments: {7: [1, 0, 1]}")
    assert {layer: each.tolist() for layer, each in load_slot_maps(str(path)).items()} == {None: [1, 0, 1]}
    with pytest.raises(ConfigError, match="placement='x.txt' is unknown"):
        load_slot_maps("x.txt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[[1], 2]", "must list whole numbers, as many in every row"),
        ("[[1, 2], [1]]", "must list whole numbers, as many in every row"),
        ('["a"]', "must list whole numbers"),
        ("[0.5]", "must list whole numbers"),
        ("[]", "must list whole numbers"),
        ("3", "must list whole numbers"),
        ("[0, 1]", r"has shape \(2,\); it must list the GPU, below 2, of each of 8 experts, or the expert of each"),
        ("[0, 0, 0, 0, 1, 1, 1, 9]", r"has shape \(8,\); it must list the GPU, below 2"),
        ("[0, 0, 0, 0, 1, 1, 1, -1]", "gpu_of_expert names GPU -1"),
        ("[0, 1, 2, 3, 4, 5, 6, 7, 0]", "9 slots cannot be spread evenly over gpus=2"),
        ("[0, 1, 2, 3, 4, 5, 6, 8, 0, 1]", "names expert 8; experts are 0 to 7"),
        ("[0, 1, 2, 3, 4, 5, 6, 6, 0, 1]", "no GPU holds expert 7"),
        ("{}", r"must hold a list, or a mapping with 'physical_to_logical_map', .* not \[\]"),
        ('{"layer_list": [{"device_list": [{"device_expert": [0]}]}]}', "layer 0 has 1 devices, not gpus=2"),
        ('{"layer_list": [{"devices": 1}]}', "each of layer_list must have a device_list"),
        ('{"layer_list": []}', "layer_list is empty"),
        ('{"physical_to_logical_map": {"0": [1]}}', "must list whole numbers"),
    ],
)
def test_wrong_files_give_one_line(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"'.*bad.json'.*{message}") as raised:
        load_placements(str(write(tmp_path / "bad.json", content)), 8, 2)
    assert "\n" not in str(raised.value)


def test_wrong_names_and_arrays_give_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    bits = np.ones(3, np.uint8)
    np.savez(path, other=np.zeros((3, 1, 8), int), short__bits=bits, short__shape=np.array([2, 2, 8]))
    for name, message in (
        ("random", "placement='random' is unknown; choose 'contiguous', 'eplb:M' or a .json, .npz or .yaml file"),
        (str(tmp_path / "missing.json"), "cannot read '.*missing.json': No such file"),
        (str(tmp_path / "missing.npz"), "npz file '.*missing.npz' does not exist"),
        (str(tmp_path / "missing.yaml"), "cannot read '.*missing.yaml': No such file"),
        (str(path), r"lacks the array 'gpu_of_expert'; it holds \['other', .*choose one as '.*p.npz:NAME'"),
        (f"{path}:mine", r"has no array 'mine'; it holds \['other'"),
        (f"{path}:other", r"an array of shape \(3, 1, 8\) must hold 0 and 1 by device, layer and expert, on 2"),
        (f"{path}:short", r"short__bits does not hold the bits of an array of shape \[2, 2, 8\]"),
        (
            str(write(tmp_path / "p.yaml", "initial_global_assignments: [1]")),
            "initial_global_assignments must map numbers of layers to lists",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as raised:
            load_placements(name, 8, 2)
        assert "\n" not in str(raised.value)


@needs_shared
def test_every_real_placement_holds_every_expert_and_serves_tokens() -> None:
    layer, path = load_model("deepseek-r1"), SHARED / "traces" / "omni_infer_placements.npz"
    with np.load(path) as arrays:
        shapes = {name.removesuffix("__shape"): arrays[name] for name in arrays.files if name.endswith("__shape")}
    assert len(shapes) == 13
    ids = np.argsort(np.random.default_rng(0).random((128, 256)), axis=1)[:, :8]
    num_copies = 0
    for name, (num_gpus, num_layers, _) in shapes.items():
        placements = load_placements(f"{path}:{name}", 256, int(num_gpus))
        assert len(placements.placements) == num_layers == 58
        tokens_of_gpu = np.full(num_gpus, 128 // num_gpus)
        first_token = np.concatenate([[0], np.cumsum(tokens_of_gpu)])
        for placement in placements.placements:
            assert set(placement.logical_of_expert.tolist()) == set(range(256))
            num_copies += len(placement) > 256
        for how in ("nearest", "round_robin", "least_loaded"):
            placement = placements.of_named(57)
            workload = Workload(layer, tokens_of_gpu, serve(ids, first_token, placement, how), placement, name)
            assert np.array_equal(np.sort(workload.logical_ids, axis=1), np.sort(ids, axis=1))
    assert num_copies > 58 * 4


@needs_shared
def test_placements_that_people_had() -> None:
    cases = SHARED / "cases"
    eplb, ascend = (read(cases / name, 256, 32) for name in ("eplb_phy2log.json", "ascend_expert_map.json"))
    assert eplb.held.tolist() == ascend.held.tolist() == [9] * 32
    assert read(cases / "eplb_phy2log.json", 256, 72).held.tolist() == [4] * 72
    assert read(cases / "uneven60.json", 60, 8).held.tolist() == [8, 8, 8, 8, 7, 7, 7, 7]
