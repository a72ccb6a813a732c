"""Copies of weights on the functional machine: they come as the schedule says, and compute what the expert does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.multimem.dense import MoeTensors, random_tensors
from dysharp_env.multimem.execute import Action, Execution, Schedule, execute
from dysharp_env.multimem.faults import ScheduleFault
from dysharp_env.multimem.links import Links
from dysharp_env.multimem.packets import Kind
from dysharp_env.simulator.record import record
from dysharp_env.simulator.state import codes
from tests.conftest import Case
from tests.multimem.small_layers import HIDDEN, INNER, is_dense, small_layer
from tests.simulator.copy_rules import copied_case

# Experts 0 and 1 are on GPU 0; copies 2, 3 and 4 of expert 0 there are straight from it, or each from the one before.
THREE = [(0, 1), (0, 2), (0, 3)]
CHAIN = [(0, 1), (2, 2), (3, 3)]
EVERYWHERE = [[0, 1], [2, 1], [3, 1], [1, 4], [2, 1], [4, 1]]
GEMM1_BYTES, GEMM2_BYTES = 4 * HIDDEN * INNER, 4 * INNER * HIDDEN


def finished(
    primitive: str,
    copies: list[tuple[int, int]],
    ffn_matrices: int = 2,
    topk_ids: Sequence[Sequence[int]] = EVERYWHERE,
) -> tuple[Case, Schedule, MoeTensors]:
    """Returns a case, with tokens at all copies unless told, its finished schedule and tensors."""
    layer = small_layer(2, 2, ffn_matrices, tile_tokens=2)
    case = copied_case(primitive, copies, topk_ids, layer=layer)
    case = case._replace(costs=replace(case.costs, team_gpus=2))
    return case, record(case.engine().run()), random_tensors(case.workload, HIDDEN, INNER)


def weight_flits(links: Links, direction: str, kind: Kind) -> list[int]:
    """Returns the flits of a kind on the links of each of four GPUs."""
    found = [0] * 4
    for use, flits in links.flits.items():
        if (use.direction, use.kind) == (direction, kind):
            found[use.gpu] += flits
    return found


@pytest.mark.parametrize("ffn_matrices", [2, 3])
@pytest.mark.parametrize("copies", [THREE, CHAIN])
@pytest.mark.parametrize("primitive", ["unicast", "pull", "team", "multicast"])
def test_copies_compute_what_their_expert_does(
    primitive: str, copies: list[tuple[int, int]], ffn_matrices: int
) -> None:
    case, schedule, tensors = finished(primitive, copies, ffn_matrices)
    assert is_dense(execute(schedule, case.workload, tensors), case.workload, tensors)


def test_copies_compute_with_what_came_to_them() -> None:
    """With other numbers in the place that weights come from, what copies compute is wrong, and nothing else."""
    case, schedule, tensors = finished("unicast", THREE)
    execution = Execution(schedule, case.workload, tensors)
    weights = execution._weights
    assert weights is not None
    for step in execution.steps:
        if step.action == Action.COPY and (step.expert, step.item) == (3, 1):
            weights._values(0, 1)[:] *= 2
            execution.apply(step)
            weights._values(0, 1)[:] /= 2
        else:
            execution.apply(step)
    outputs = execution.finish()
    right = execute(schedule, case.workload, tensors)
    wrong = np.flatnonzero((outputs != right).any(axis=1))
    assert wrong.tolist() == np.flatnonzero((case.workload.topk_ids == 3).any(axis=1)).tolist() == [2]


@pytest.mark.parametrize(
    ("primitive", "copies", "kind", "up", "down"),
    [
        ("unicast", THREE, Kind.WRITE, [3, 0, 0, 0], [0, 1, 1, 1]),
        ("unicast", CHAIN, Kind.WRITE, [1, 1, 1, 0], [0, 1, 1, 1]),
        ("pull", CHAIN, Kind.RESPONSE, [3, 0, 0, 0], [0, 1, 1, 1]),
        ("multicast", THREE, Kind.DYNAMIC_STORE, [1, 0, 0, 0], [0, 1, 1, 1]),
        # GPU 1 is alone in the sender's group, so it has a plain store.
        ("team", THREE, Kind.MULTIMEM_STORE, [1, 0, 0, 0], [0, 0, 1, 1]),
        ("team", THREE, Kind.WRITE, [1, 0, 0, 0], [0, 1, 0, 0]),
    ],
)
def test_weights_cross_links_as_in_the_engine(
    primitive: str, copies: list[tuple[int, int]], kind: Kind, up: list[int], down: list[int]
) -> None:
    case, schedule, tensors = finished(primitive, copies)
    execution = Execution(schedule, case.workload, tensors)
    for step in execution.steps:
        execution.apply(step)
    execution.finish()
    assert execution._weights is not None
    links = execution._weights.runtime.links
    # Packets of 128 B: 8 flits of data and a header, and one that names experts; nothing is part filled.
    packets = (GEMM1_BYTES + GEMM2_BYTES) // 128
    flits = packets * (10 if kind == Kind.DYNAMIC_STORE else 9)
    assert weight_flits(links, "up", kind) == [flits * times for times in up]
    assert weight_flits(links, "down", kind) == [flits * times for times in down]


def moved(schedule: Schedule, item: str, stage: str, later_us: float) -> Schedule:
    """Returns a schedule in which a row ends later."""
    rows = [
        row._replace(end_us=row.end_us + later_us) if (row.item, row.stage) == (item, stage) else row
        for row in schedule.rows
    ]
    return replace(schedule, rows=rows)


@pytest.mark.parametrize("gemm", [1, 2])
def test_a_row_before_its_weights_is_a_fault(gemm: int) -> None:
    case, schedule, tensors = finished("unicast", THREE)
    late = moved(schedule, "copy 3", f"weights{gemm}", 100.0)
    message = rf"GEMM-{gemm} of tile \d+ starts before the weights of expert 3 have come"
    with pytest.raises(ScheduleFault, match=message):
        execute(late, case.workload, tensors)


def test_a_relay_before_its_source_is_a_fault() -> None:
    case, schedule, tensors = finished("unicast", CHAIN, topk_ids=[[3, 1]])
    late = moved(schedule, "copy 2", "weights1", 100.0)
    with pytest.raises(ScheduleFault, match="GEMM-1's weights of expert 3 come before they are at expert 2"):
        execute(late, case.workload, tensors)


def test_relays_of_one_moment_come_in_their_order() -> None:
    """On a machine on which nothing takes time a whole chain has its weights at once; copy 4 comes before copy 2."""
    case, schedule, tensors = finished("unicast", [(4, 1), (4, 2), (0, 3)])
    came_us = max(row.end_us for row in schedule.rows if row.stage == "weights1")
    rows = [row._replace(end_us=came_us) if row.stage == "weights1" else row for row in schedule.rows]
    execution = Execution(replace(schedule, rows=rows), case.workload, tensors)
    order = [step.expert for step in execution.steps if step.action == Action.COPY and step.item == 0]
    assert order == [4, 2, 3]


def test_a_copy_without_its_rows_is_a_fault() -> None:
    case, schedule, tensors = finished("unicast", THREE)
    rows = [row for row in schedule.rows if (row.item, row.stage) != ("copy 3", "weights2")]
    with pytest.raises(ScheduleFault, match="weights2 of item 3 is missing, unknown, or there twice"):
        execute(replace(schedule, rows=rows), case.workload, tensors)


@pytest.mark.parametrize("copying", ["", "broadcast"])
def test_copies_need_a_primitive(copying: str) -> None:
    case, schedule, tensors = finished("unicast", THREE)
    with pytest.raises(ConfigError, match=f"copying='{copying}' cannot move the weights of 3 copies"):
        execute(replace(schedule, copying=copying), case.workload, tensors)


def test_the_engine_s_schedules_hold_their_weights() -> None:
    """What the table says of weights is what the engine keeps."""
    case, schedule, _ = finished("multicast", THREE)
    state = case.engine().run().state
    for row in schedule.rows:
        if row.resource == "weights":
            gemm = codes.GEMM2 if row.stage == "weights2" else codes.GEMM1
            matrix = state.matrices[2 * row.expert + gemm]
            assert (row.start_us, row.end_us) == (matrix["start_ps"] / 1e6, matrix["end_ps"] / 1e6)
