"""Layers with copies on the machine of round numbers, and what copies move: from placement and packets alone."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.state import codes
from dysharp_env.system.packet import PacketFormat
from dysharp_env.system.primitives import DISPATCH_PRIMITIVES
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.placement import NOWHERE, Placement
from dysharp_env.workload.workload import Workload
from tests.conftest import Case, costs_of
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system


def copied_case(
    primitive: str,
    copies: Sequence[tuple[int, int]],
    topk_ids: Sequence[Sequence[int]] = ((0, 1),),
    num_gpus: int = 4,
    layer: LayerSpec | None = None,
    **changes: object,
) -> Case:
    """Returns a case with experts 0 and 1 on GPU 0, tokens on GPU 0 alone, and copies, (source, GPU) of each.

    Copies are numbered from 2 on.
    """
    gpus = [0, 0, *(gpu for _, gpu in copies)]
    sources = [NOWHERE, NOWHERE, *(source for source, _ in copies)]
    logical = [0, 1]
    for source, _ in copies:
        while source > 1:
            source = copies[source - 2][0]
        logical.append(source)
    placement = Placement(num_gpus, np.array(gpus), np.array(logical), np.array(sources))
    layer = layer or round_layer(2)
    tokens = np.zeros(num_gpus, np.int64)
    tokens[0] = len(topk_ids)
    copying = {"copying": DISPATCH_PRIMITIVES[primitive], "copy_sms": 1, "weight_tile_bytes": 1024, **changes}
    program = dataclasses.replace(ROUND_PROGRAM, **copying)  # type: ignore[arg-type]
    workload = Workload(layer, tokens, np.array(topk_ids), placement, "copied")
    system = round_system(num_gpus)
    return Case(
        workload, costs_of(program, Costs.of(system, layer)), program, system.gpu.num_sms, Bound(10**6, 1, 1, 1)
    )


class Store(NamedTuple):
    """What brings one tile of an expert to one copy, or to several: a store, or a load."""

    source: int  # expert
    experts: tuple[int, ...]  # copies


def stores_of(case: Case) -> list[Store]:
    """Returns what brings a tile of every copied expert to its copies."""
    placement, primitive = case.workload.placement, case.program.copying
    assert primitive is not None
    found = defaultdict(list)
    for expert in np.flatnonzero(placement.is_copy).tolist():
        source = int(placement.copied_from[expert])
        while primitive.name != "unicast" and placement.copied_from[source] >= 0:
            source = int(placement.copied_from[source])
        group = expert if not primitive.in_switch else 0
        if primitive.by_team:
            group = int(placement.gpu_of_expert[expert]) // case.costs.team_gpus
        found[source, group].append(expert)
    return [Store(source, tuple(experts)) for (source, _), experts in sorted(found.items())]


def tile_bytes(case: Case) -> list[list[int]]:
    """Returns the bytes of the tiles of GEMM-1's and of GEMM-2's matrix."""
    size = case.program.weight_tile_bytes
    return [[min(size, whole - at) for at in range(0, whole, size)] for whole in case.costs.matrix_bytes]


def packet_of(case: Case) -> PacketFormat:
    """Returns the packets in which weights move."""
    primitive = case.program.copying
    assert primitive is not None
    family = case.program.copying_family or primitive.usual_family
    return case.costs.families.packet_of(family, primitive.in_switch)


def weight_traffic(case: Case) -> dict[tuple[int, int], np.ndarray]:
    """Returns the flits of every GPU by (direction, purpose) that copies of weights cause."""
    placement, primitive = case.workload.placement, case.program.copying
    flits: dict[tuple[int, int], np.ndarray] = defaultdict(lambda: np.zeros(case.workload.num_gpus, np.int64))
    if placement.num_copies == 0:
        return flits
    assert primitive is not None
    packet, gpu_of = packet_of(case), placement.gpu_of_expert.tolist()
    for store in stores_of(case):
        home = gpu_of[store.source]
        for num_bytes in sum(tile_bytes(case), []):
            named = len(store.experts) * primitive.names_targets
            flits[codes.UP, codes.WEIGHT_DATA][home] += packet.data_flits(num_bytes, named)
            ack_flits, ask_flits = packet.acknowledge_flits(num_bytes), packet.ask_flits(num_bytes)
            if not primitive.reads:
                flits[codes.DOWN, codes.WEIGHT_ACK][home] += ack_flits
            for expert in store.experts:
                gpu = gpu_of[expert]
                flits[codes.DOWN, codes.WEIGHT_DATA][gpu] += packet.data_flits(num_bytes, int(primitive.names_targets))
                if primitive.reads:
                    flits[codes.UP, codes.WEIGHT_REQUEST][gpu] += ask_flits
                    flits[codes.DOWN, codes.WEIGHT_REQUEST][home] += ask_flits
                else:
                    flits[codes.UP, codes.WEIGHT_ACK][gpu] += ack_flits
    return flits
