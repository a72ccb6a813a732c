"""Schedules, run on real vectors, give what the dense layer gives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.multimem.dense import MoeTensors, dense_moe, random_tensors
from dysharp_env.multimem.execute import Action, Execution, Schedule, ScheduleRow, execute, steps_of
from dysharp_env.multimem.faults import ScheduleFault
from dysharp_env.multimem.packets import Kind, Stage
from dysharp_env.schedules.spec import ScheduleSpec
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.record import record
from dysharp_env.simulator.state import codes, observation
from dysharp_env.system.packet import PacketFormat
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES, Primitive
from dysharp_env.workload.placement import Placement
from dysharp_env.workload.workload import Workload
from tests.multimem.small_layers import (
    HIDDEN,
    INNER,
    SHIPPED,
    SYSTEMS,
    draw_shape,
    draw_workload,
    is_dense,
    played,
    small_layer,
    spec_of,
    total_flits,
)

EVERY_PRIMITIVE = [
    {"dispatch": dispatch, "combine": combine} for dispatch in DISPATCH_PRIMITIVES for combine in COMBINE_PRIMITIVES
]
EVERY_PRIMITIVE += [
    {"dispatch": dispatch, "combine": combine, "copies": "expert"}
    for dispatch in ("unicast", "pull")
    for combine in ("unicast", "pull")
]
EVERY_PRIMITIVE += [{"dispatch": "broadcast", "combine": "reduce_scatter", "loopback": True}]
SEQUENCES = 100  # random action sequences on each system


def test_an_expert_worked_by_hand() -> None:
    workload = draw_workload(0, num_gpus=2, tokens_per_gpu=1, experts_per_gpu=1, top_k=1)
    vectors = {
        "tokens": np.float32([[1, 2], [3, -1]]),
        "gate_weights": np.float32([[0.5], [2]]),
        "up": np.float32([[[1], [1]]] * 2),
        "down": np.float32([[[2, 4]]] * 2),
    }
    # ReLU(1 + 2) is 3, ReLU(3 - 1) is 2; times 2 and 4; times the gate weight.
    np.testing.assert_allclose(dense_moe(workload, MoeTensors(**vectors)), [[3, 6], [8, 16]])
    gated = MoeTensors(**vectors, gate=np.float32([[[1], [-1]]] * 2))
    # The gate is 1 - 2 = -1 and 3 + 1 = 4: SiLU is -1 / (1 + e) and 4 / (1 + e^-4).
    silu = np.array([-1 / (1 + np.e), 4 / (1 + np.exp(-4))])
    np.testing.assert_allclose(dense_moe(workload, gated), silu[:, None] * [[3, 6], [8, 16]], rtol=1e-6)


def test_replicas_and_missing_experts_worked_by_hand() -> None:
    # Expert 1 is there twice, as physical experts 0 and 2; token 1 has one expert, token 2 none.
    placement = Placement(2, np.array([0, 1, 1]), np.array([1, 0, 1]))
    ids = np.array([[1, 2], [0, -1], [-1, -1]])
    workload = Workload(
        small_layer(experts=2, top_k=2, ffn_matrices=2, tile_tokens=8), np.array([0, 3]), ids, placement, "by hand"
    )
    tensors = MoeTensors(
        tokens=np.float32([[1], [2], [4]]),
        gate_weights=np.float32([[1, 0.5], [2, 9], [9, 9]]),
        up=np.float32([[[10]], [[1000]]]),
        down=np.float32([[[1]], [[1]]]),
    )
    # 1 x 10 + 0.5 x 1000; 2 x 2 x 1000; nothing.
    assert dense_moe(workload, tensors).tolist() == [[510], [4000], [0]]


@pytest.mark.parametrize("ffn_matrices", [2, 3])
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_schedule_computes_the_dense_layer(name: str, ffn_matrices: int) -> None:
    workload = draw_workload(1, num_gpus=4, tokens_per_gpu=24, ffn_matrices=ffn_matrices)
    engine = played(spec_of(name), workload)
    tensors = random_tensors(workload, HIDDEN, INNER)
    # A planner of copies may have others serve the tokens.
    outputs = execute(record(engine), engine.workload, tensors)
    assert is_dense(outputs, workload, tensors)


def any_schedule(rng: np.random.Generator) -> ScheduleSpec:
    """Returns a shipped schedule, or its gates and parts with any primitives that fit; small chunks, early closing."""
    spec = spec_of(str(rng.choice(SHIPPED))).with_changes(
        {
            "chunk_tokens": int(rng.integers(1, 5)),
            "min_partial_tokens": 1,
            "prefetch": str(rng.choice(["none", "ahead", "early"])),
        }
    )
    try:
        return spec.with_changes({"copies": "gpu", "loopback": False, **rng.choice(EVERY_PRIMITIVE)})
    except ConfigError:
        return spec


def any_sequence(system: str, seed: int) -> tuple[Workload, Engine, np.random.Generator]:
    """Returns a workload, the engine that random legal actions led to its end, and the random generator.

    The workload is as the schedule shares it out.

    Half of the seeds have as many tokens and experts on every GPU.
    """
    rng = np.random.default_rng([SYSTEMS.index(system), seed])
    tokens_per_gpu, experts_per_gpu = int(rng.integers(2, 7)), int(rng.integers(1, 4))
    top_k, tile_tokens = int(rng.integers(1, 5)), int(rng.integers(2, 9))
    shape = {"num_gpus": 8, "top_k": top_k, "ffn_matrices": 2 + seed % 2, "tile_tokens": tile_tokens}
    if seed // 2 % 2:
        workload = draw_workload(seed, tokens_per_gpu=tokens_per_gpu, experts_per_gpu=experts_per_gpu, **shape)
    else:
        shares = {"dropped": float(rng.choice((0, 0.3))), "bare": float(rng.choice((0, 0.3)))}
        idle = tuple(np.flatnonzero(rng.random(8) < rng.choice((0, 0.4)))[:7].tolist())
        experts, replicas = int(rng.integers(4, 25)), int(rng.integers(0, 7))
        workload = draw_shape(seed, experts=experts, idle_gpus=idle, replicas=replicas, **shape, **shares)
    engine = played(any_schedule(rng), workload, system, seed)
    return engine.workload, engine, rng


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_random_legal_actions_compute_the_dense_layer(system: str, seed: int) -> None:
    workload, engine, rng = any_sequence(system, seed)
    tensors = random_tensors(workload, HIDDEN, INNER, seed)
    # Few slots and a small TLB, so that sums are evicted and mappings read again.
    sizes = {"reduction_slots": int(rng.integers(1, 4)), "al_tlb_entries": int(rng.integers(1, 6))}
    assert is_dense(execute(record(engine), workload, tensors, packet=engine.costs.packet, **sizes), workload, tensors)


def test_random_legal_actions_reach_every_kind_of_decision(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = set()
    decide = Engine.decide

    def recording(engine: Any, choice: Any) -> None:
        is_hold = engine.state.candidates["item"][choice] == codes.NOTHING
        taken.add((observation.DECISION_KINDS[engine.state.root["pending_kind"][0]], bool(is_hold)))
        decide(engine, choice)

    monkeypatch.setattr(Engine, "decide", recording)
    closed_early = 0
    for seed in range(20):
        workload, engine, _ = any_sequence(SYSTEMS[0], seed)
        state = engine.state
        tiles = state.tiles["expert"][state.tiles["count"] > 0]
        needed = -(-state.experts["total"] // workload.layer.tile_tokens)
        closed_early += np.maximum(np.bincount(tiles, minlength=len(needed)) - needed, 0).sum()
    holds = {(kind, True) for kind in observation.ENGINE_KINDS if observation.KINDS[kind].may_wait}
    assert taken == {(kind, False) for kind in observation.ENGINE_KINDS} | holds
    assert closed_early > 0


def test_smaller_packets_change_nothing() -> None:
    workload = draw_workload(5, num_gpus=3, tokens_per_gpu=6)
    tensors = random_tensors(workload, HIDDEN, INNER)
    schedule = record(played(spec_of("dysharp"), workload))
    outputs = [execute(schedule, workload, tensors, packet=PacketFormat(payload_bytes=size)) for size in (64, 128)]
    np.testing.assert_array_equal(*outputs)


def flits_of(execution: Execution, stage: Stage, direction: str, *kinds: Kind) -> np.ndarray:
    """Returns the flits of some kinds of packets on each GPU's link, (GPU,)."""
    found = np.zeros(execution.runtime.num_gpus, np.int64)
    for use, flits in execution.runtime.links.flits.items():
        if use.stage == stage and use.direction == direction and use.kind in kinds:
            found[use.gpu] += flits
    return found


def assert_flits_are_charged(engine: Engine, execution: Execution) -> None:
    num_gpus = engine.workload.num_gpus
    charged = engine.state.traffic.reshape(num_gpus, 2, codes.NUM_PURPOSES)
    stores = (Kind.WRITE, Kind.MULTIMEM_STORE, Kind.DYNAMIC_STORE, Kind.RESPONSE)
    sums = (Kind.WRITE, Kind.RESPONSE, Kind.PUSH)
    reads = (Kind.LOAD, Kind.MULTIMEM_LOAD, Kind.DYNAMIC_LOAD)
    for purpose, stage, kinds in (
        (codes.DISPATCH_REQUEST, Stage.DISPATCH, reads),
        (codes.DISPATCH_DATA, Stage.DISPATCH, stores),
        (codes.DISPATCH_ACK, Stage.DISPATCH, (Kind.ACK,)),
        (codes.COMBINE_REQUEST, Stage.COMBINE, reads),
        (codes.COMBINE_DATA, Stage.COMBINE, sums),
        (codes.COMBINE_ACK, Stage.COMBINE, (Kind.ACK,)),
    ):
        for way, direction in ((codes.UP, "up"), (codes.DOWN, "down")):
            found, carried = charged[:, way, purpose], flits_of(execution, stage, direction, *kinds)
            # The engine stops when the last sum is home, with acknowledgements still on their way.
            may_be_short = purpose == codes.COMBINE_ACK and way == codes.DOWN
            name = codes.PURPOSES[purpose], direction
            assert (found <= carried).all() if may_be_short else (found == carried).all(), name


@pytest.mark.parametrize("name", [*SHIPPED, "push"])
def test_links_carry_exactly_the_flits_that_the_engine_charges(name: str) -> None:
    workload = draw_workload(3, num_gpus=4, tokens_per_gpu=16)
    engine = played(spec_of(name), workload)
    workload = engine.workload
    execution = Execution(record(engine), workload, random_tensors(workload, HIDDEN, INNER))
    for step in execution.steps:
        execution.apply(step)
    assert_flits_are_charged(engine, execution)


@pytest.mark.parametrize("primitives", EVERY_PRIMITIVE, ids=lambda given: "-".join(map(str, given.values())))
def test_every_primitive_computes_the_dense_layer_with_the_flits_charged(primitives: dict[str, Any]) -> None:
    workload = draw_workload(5, num_gpus=4, tokens_per_gpu=8)
    tensors = random_tensors(workload, HIDDEN, INNER)
    engine = played(spec_of("dysharp-basic").with_changes(primitives), workload)
    execution = Execution(record(engine), workload, tensors)
    for step in execution.steps:
        execution.apply(step)
    assert is_dense(execution.finish(), workload, tensors)
    assert_flits_are_charged(engine, execution)


SHAPES = {
    "60 experts on 8 GPUs": draw_shape(0, num_gpus=8, experts=60, top_k=6),
    "GPUs without tokens": draw_shape(1, num_gpus=4, experts=8, idle_gpus=(0, 2)),
    "GPUs without experts": draw_shape(2, num_gpus=5, experts=3),
    "replicas": draw_shape(3, num_gpus=4, experts=6, replicas=5),
    "dropped slots": draw_shape(4, num_gpus=3, experts=7, dropped=0.4),
    "tokens without experts": draw_shape(5, num_gpus=3, experts=7, bare=0.6),
    "all of it": draw_shape(6, num_gpus=6, experts=5, idle_gpus=(5,), replicas=3, dropped=0.3, bare=0.3),
}


def test_shapes_have_what_their_names_say() -> None:
    held = {name: workload.placement.held for name, workload in SHAPES.items()}
    assert held["60 experts on 8 GPUs"].tolist() == [8, 8, 8, 8, 7, 7, 7, 7]
    assert (held["GPUs without experts"] == 0).any() and (held["all of it"] == 0).any()
    used = np.unique(SHAPES["replicas"].topk_ids)
    assert len(np.unique(SHAPES["replicas"].placement.logical_of_expert[used])) < len(used)
    for name, least in (("dropped slots", 1), ("tokens without experts", 0), ("all of it", 0)):
        assert SHAPES[name].experts_of_token.min() == least < SHAPES[name].layer.top_k, name


@pytest.mark.parametrize("primitives", EVERY_PRIMITIVE, ids=lambda given: "-".join(map(str, given.values())))
@pytest.mark.parametrize("shape", SHAPES)
def test_every_primitive_computes_every_shape_with_the_flits_charged(shape: str, primitives: dict[str, Any]) -> None:
    workload = SHAPES[shape]
    tensors = random_tensors(workload, HIDDEN, INNER)
    engine = played(spec_of("dysharp-basic").with_changes({**primitives, "chunk_tokens": 2}), workload)
    execution = Execution(record(engine), workload, tensors)
    for step in execution.steps:
        execution.apply(step)
    assert is_dense(execution.finish(), workload, tensors)
    assert (execution.outputs[workload.experts_of_token == 0] == 0).all()
    assert_flits_are_charged(engine, execution)


@pytest.mark.parametrize("combine", COMBINE_PRIMITIVES)
@pytest.mark.parametrize("team_gpus", [2, 3, 5])
def test_teams_of_some_of_the_gpus_compute_the_dense_layer_with_the_flits_charged(team_gpus: int, combine: str) -> None:
    workload = draw_workload(5, num_gpus=7, tokens_per_gpu=6)
    tensors = random_tensors(workload, HIDDEN, INNER)
    spec = spec_of("dysharp-basic").with_changes({"dispatch": "team", "combine": combine})
    engine = played(spec, workload, team_gpus=team_gpus)
    execution = Execution(record(engine), workload, tensors)
    for step in execution.steps:
        execution.apply(step)
    assert is_dense(execution.finish(), workload, tensors)
    assert_flits_are_charged(engine, execution)


@pytest.mark.parametrize("primitives", [DISPATCH_PRIMITIVES, COMBINE_PRIMITIVES], ids=["dispatch", "combine"])
def test_no_two_primitives_move_alike(primitives: dict[str, Primitive]) -> None:
    assert len({replace(primitive, name="") for primitive in primitives.values()}) == len(primitives)


@pytest.mark.parametrize("name", ["dysharp-basic", "push"])
def test_evictions_cost_traffic_and_not_correctness(name: str) -> None:
    workload = draw_workload(2, num_gpus=4, tokens_per_gpu=16)
    tensors = random_tensors(workload, HIDDEN, INNER)
    schedule = record(played(spec_of(name), workload))
    flits = {}
    for slots in (1, 512):
        execution = Execution(schedule, workload, tensors, reduction_slots=slots)
        for step in execution.steps:
            execution.apply(step)
        assert is_dense(execution.finish(), workload, tensors)
        flits[slots] = total_flits(execution.runtime.links, "down", Kind.PARTIAL, Stage.COMBINE)
        assert (execution.runtime.switch.evictions > 0) == (slots == 1)
    assert flits[1] > flits[512] == 0


@pytest.fixture(scope="module")
def tiny() -> tuple[Workload, MoeTensors, Schedule]:
    workload = draw_workload(7, num_gpus=2, tokens_per_gpu=3, top_k=2)
    return workload, random_tensors(workload, HIDDEN, INNER), record(played(spec_of("dysharp-basic"), workload))


def swapped(schedule: Schedule, **changes: list[ScheduleRow] | str) -> Schedule:
    return replace(schedule, **changes)


def test_using_data_before_it_is_there_is_a_fault(tiny: tuple[Workload, MoeTensors, Schedule]) -> None:
    workload, tensors, schedule = tiny
    first = min(row.start_us for row in schedule.rows)
    last = max(row.end_us for row in schedule.rows)

    def moved(stage: str, start_us: float, end_us: float) -> Schedule:
        return swapped(
            schedule,
            rows=[r._replace(start_us=start_us, end_us=end_us) if r.stage == stage else r for r in schedule.rows],
        )

    with pytest.raises(ScheduleFault, match="is computed without its tokens"):
        execute(moved("dispatch", last, last + 1), workload, tensors)
    with pytest.raises(ScheduleFault, match="starts before its GEMM-1 has ended"):
        execute(moved("gemm1", first + 1e3, last + 2e3), workload, tensors)
    with pytest.raises(ScheduleFault, match="combined before all their experts are done"):
        execute(moved("combine", first, first), workload, tensors)


def test_a_table_that_lacks_or_repeats_work_is_refused(tiny: tuple[Workload, MoeTensors, Schedule]) -> None:
    _, _, schedule = tiny
    all_have = np.ones(6, bool)
    with pytest.raises(ScheduleFault, match="is missing, unknown, or there twice"):
        steps_of(swapped(schedule, rows=schedule.rows[1:]), all_have)
    with pytest.raises(ScheduleFault, match="is missing, unknown, or there twice"):
        steps_of(swapped(schedule, rows=[*schedule.rows, schedule.rows[0]]), all_have)
    unfinished = [schedule.rows[0]._replace(end_us=float("nan")), *schedule.rows[1:]]
    with pytest.raises(ScheduleFault, match="only a finished schedule"):
        steps_of(swapped(schedule, rows=unfinished), all_have)


def test_a_chunk_is_combined_only_for_tokens_that_have_experts(tiny: tuple[Workload, MoeTensors, Schedule]) -> None:
    _, _, schedule = tiny
    uncombined = [row for row in schedule.rows if (row.item, row.stage) != ("chunk 0", "combine")]
    nowhere = [row for row in uncombined if (row.item, row.stage) != ("chunk 0", "dispatch")]
    has_experts = np.ones(6, bool)
    has_experts[schedule.chunks[0][1:]] = False
    with pytest.raises(ScheduleFault, match="combine of item 0 is missing"):
        steps_of(swapped(schedule, rows=uncombined), has_experts)
    has_experts[schedule.chunks[0]] = False
    # One that static primitives send, or do not get to before the layer is over.
    for rows in (uncombined, nowhere):
        assert len(steps_of(swapped(schedule, rows=rows), has_experts)) > 0
    with pytest.raises(ScheduleFault, match="combine of item 0 is missing, unknown"):
        steps_of(schedule, has_experts)
    with pytest.raises(ScheduleFault, match="dispatch of item 0 is missing, unknown, or there twice"):
        steps_of(swapped(schedule, rows=[*uncombined, uncombined[0]]), has_experts)


def test_a_token_sent_twice_is_a_fault(tiny: tuple[Workload, MoeTensors, Schedule]) -> None:
    workload, tensors, schedule = tiny
    execution = Execution(schedule, workload, tensors)
    dispatches = [step for step in execution.steps if step.action == Action.DISPATCH]
    for step in [*dispatches, dispatches[0]]:
        execution.apply(step)
    with pytest.raises(ScheduleFault, match="received 320 B of token"):
        execution.finish()


def test_a_token_that_never_came_is_a_fault(tiny: tuple[Workload, MoeTensors, Schedule]) -> None:
    workload, tensors, schedule = tiny
    execution = Execution(schedule, workload, tensors)
    first = execution.steps[0]
    assert first.action == Action.DISPATCH
    execution.apply(first)
    with pytest.raises(ScheduleFault, match=r"expert \d received tokens \[-1.*\], not \["):
        execution.finish()


def test_unknown_primitives_and_misshapen_tensors_are_refused(tiny: tuple[Workload, MoeTensors, Schedule]) -> None:
    workload, tensors, schedule = tiny
    with pytest.raises(ConfigError, match="combine='push' is unknown"):
        execute(swapped(schedule, combine="push"), workload, tensors)
    with pytest.raises(ConfigError, match=r"tensors.gate_weights is float32 \(6, 1\); it must be float32 \(6, 2\)"):
        execute(schedule, workload, replace(tensors, gate_weights=tensors.gate_weights[:, :1]))
    with pytest.raises(ConfigError, match="tensors.gate is given; 'small' has 2 matrices"):
        execute(schedule, workload, replace(tensors, gate=tensors.up))
