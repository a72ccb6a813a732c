"""Schedules, run on real vectors, give what the dense layer gives; a machine with a wrong table entry does not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.multimem.dense import MoeTensors, dense_moe, random_tensors
from dysharp_env.multimem.execute import Action, Execution, Schedule, execute, steps_of
from dysharp_env.multimem.faults import MultimemFault, ScheduleFault, UndispatchedFault
from dysharp_env.multimem.hub import VALID
from dysharp_env.multimem.packet import PacketFormat
from dysharp_env.multimem.transfers import COMBINE, DISPATCH
from dysharp_env.multimem.wire import Kind, Stage
from dysharp_env.schedules.run import start
from dysharp_env.schedules.spec import Exposure, load_schedule
from dysharp_env.simulator import layout
from dysharp_env.simulator.result import schedule_table
from dysharp_env.system import load_system
from dysharp_env.workload import LayerSpec, Workload

SHIPPED = ["comet", "deepep", "dysharp-basic", "dysharp-l2", "dysharp", "fused-unicast", "nvls"]
HIDDEN, INNER = 40, 24  # 160 B: a full packet and a part-filled one


def draw_workload(seed: int, num_gpus: int, tokens_per_gpu: int, experts_per_gpu: int = 2, top_k: int = 4) -> Workload:
    rng = np.random.default_rng(seed)
    experts = num_gpus * experts_per_gpu
    layer = LayerSpec(
        name="small",
        hidden=2 * HIDDEN,  # BF16 in the engine: as many bytes as HIDDEN float32 values here
        moe_ff=64,
        experts=experts,
        top_k=top_k,
        ffn_matrices=2,
        compute_dtype="bf16",
        tile_tokens=8,
        source="test",
    )
    popularity = rng.random((num_gpus * tokens_per_gpu, experts)) + 0.3 * rng.random(experts)
    return Workload(
        layer=layer,
        num_gpus=num_gpus,
        tokens_per_gpu=tokens_per_gpu,
        topk_ids=np.argsort(-popularity, axis=1)[:, :top_k],
        gpu_of_expert=rng.permutation(np.arange(experts) % num_gpus),
        name="small",
    )


def recorded(engine) -> Schedule:
    """Returns a finished engine's schedule as plain tables."""
    state = engine.state
    chunks = [state.order[int(chunk["first"]) : int(chunk["last"])].copy() for chunk in state.chunks]
    tiles = [
        state.pairs["token"][state.arrived_pair[int(tile["first"]) : int(tile["first"] + tile["count"])]]
        for tile in state.tiles
    ]
    root = state.root[0]
    return Schedule(
        schedule_table(engine),
        chunks,
        tiles,
        layout.DISPATCH_PRIMITIVES[int(root["dispatch_primitive"])],
        layout.COMBINE_PRIMITIVES[int(root["combine_primitive"])],
    )


def played(name: str, workload: Workload, seed: int | None = None):
    """Returns an engine run to its end: under the schedule's rule or, given a seed, by random legal actions."""
    system = load_system("gh200-nvl32", workload.num_gpus)
    kinds = () if seed is None else ("dispatch", "gemm", "combine")
    exposure = Exposure(kinds=kinds, hold=seed is not None, partial_tiles=seed is not None)
    spec = load_schedule(name) if name != "push" else load_schedule("dysharp").with_changes({"combine": "push_reduce"})
    engine = start(system, workload, spec, exposure=exposure).engine
    rng = np.random.default_rng(seed)
    while (asked := engine.advance()) is not None:
        engine.decide(int(rng.choice(np.flatnonzero(asked.mask))))
    return engine


def assert_dense(outputs: np.ndarray, workload: Workload, tensors: MoeTensors) -> None:
    np.testing.assert_allclose(outputs, dense_moe(workload, tensors), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_schedule_computes_the_dense_layer(name):
    workload = draw_workload(1, num_gpus=4, tokens_per_gpu=24)
    tensors = random_tensors(workload, HIDDEN, INNER)
    assert_dense(execute(recorded(played(name, workload)), workload, tensors), workload, tensors)


@pytest.mark.parametrize("seed", range(20))
def test_random_legal_actions_compute_the_dense_layer(seed):
    rng = np.random.default_rng(seed)
    workload = draw_workload(seed, num_gpus=int(rng.integers(2, 9)), tokens_per_gpu=int(rng.integers(4, 20)))
    tensors = random_tensors(workload, HIDDEN, INNER, seed)
    name = ("dysharp", "dysharp-basic", "fused-unicast", "deepep", "push")[seed % 5]
    schedule = recorded(played(name, workload, seed))
    # Few slots and a small TLB, so that sums are evicted and mappings read again.
    outputs = execute(schedule, workload, tensors, reduction_slots=1 + seed % 3, al_tlb_entries=1 + seed % 5)
    assert_dense(outputs, workload, tensors)


@pytest.mark.parametrize("dispatch", DISPATCH)
@pytest.mark.parametrize("combine", COMBINE)
def test_any_two_primitives_go_together(dispatch, combine):
    workload = draw_workload(5, num_gpus=3, tokens_per_gpu=6)
    tensors = random_tensors(workload, HIDDEN, INNER)
    schedule = recorded(played("dysharp", workload))
    schedule = Schedule(schedule.rows, schedule.chunks, schedule.tiles, dispatch, combine)
    assert_dense(execute(schedule, workload, tensors, packet=PacketFormat(payload_bytes=64)), workload, tensors)


@pytest.mark.parametrize("name", [*SHIPPED, "push"])
def test_links_carry_exactly_the_flits_that_the_engine_charges(name):
    workload = draw_workload(3, num_gpus=4, tokens_per_gpu=16)
    engine = played(name, workload)
    execution = Execution(recorded(engine), workload, random_tensors(workload, HIDDEN, INNER))
    for step in execution.steps:
        execution.apply(step)
    charged = engine.state.traffic.reshape(workload.num_gpus, 2, layout.NUM_PURPOSES).sum(axis=0)
    total = execution.runtime.links.total
    stores = (Kind.WRITE, Kind.MULTIMEM_STORE, Kind.DYNAMIC_STORE)
    sums = (Kind.WRITE, Kind.RESPONSE, Kind.PUSH)
    reads = (Kind.MULTIMEM_LOAD, Kind.DYNAMIC_LOAD)
    for direction, name_of_direction in ((layout.UP, "up"), (layout.DOWN, "down")):

        def carried(*kinds: Kind, stage: Stage, way: str = name_of_direction) -> int:
            return sum(total(way, kind, stage) for kind in kinds)

        assert charged[direction, layout.DISPATCH_DATA] == carried(*stores, stage=Stage.DISPATCH)
        assert charged[direction, layout.DISPATCH_ACK] == carried(Kind.ACK, stage=Stage.DISPATCH)
        assert charged[direction, layout.COMBINE_REQUEST] == carried(*reads, stage=Stage.COMBINE)
        assert charged[direction, layout.COMBINE_DATA] == carried(*sums, stage=Stage.COMBINE)
        if direction == layout.UP:
            assert charged[direction, layout.COMBINE_ACK] == carried(Kind.ACK, stage=Stage.COMBINE)
        else:  # the engine stops when the last sum is home, with acknowledgements still on their way
            assert charged[direction, layout.COMBINE_ACK] <= carried(Kind.ACK, stage=Stage.COMBINE)


@pytest.mark.parametrize("name", ["dysharp-basic", "push"])
def test_evictions_cost_traffic_and_not_correctness(name):
    workload = draw_workload(2, num_gpus=4, tokens_per_gpu=16)
    tensors = random_tensors(workload, HIDDEN, INNER)
    schedule = recorded(played(name, workload))
    flits = {}
    for slots in (1, 512):
        execution = Execution(schedule, workload, tensors, reduction_slots=slots)
        for step in execution.steps:
            execution.apply(step)
        assert_dense(execution.outputs, workload, tensors)
        flits[slots] = execution.runtime.links.total("down", Kind.PARTIAL, Stage.COMBINE)
        assert (execution.runtime.switch.evictions > 0) == (slots == 1)
    assert flits[1] > flits[512] == 0


@cache
def tiny() -> tuple[Workload, MoeTensors, Schedule]:
    workload = draw_workload(7, num_gpus=2, tokens_per_gpu=3, top_k=2)
    return workload, random_tensors(workload, HIDDEN, INNER), recorded(played("dysharp-basic", workload))


def survives(mutate: Callable[[Execution], None], before: Action) -> bool:
    """Returns whether the layer still comes out right when a table is changed before the first step of a kind."""
    workload, tensors, schedule = tiny()
    execution = Execution(schedule, workload, tensors)
    mutated = False
    try:
        for step in execution.steps:
            if step.action == before and not mutated:
                mutate(execution)
                mutated = True
            execution.apply(step)
        execution.check_arrivals()
    except MultimemFault:
        return False
    assert mutated
    return np.allclose(execution.outputs, dense_moe(workload, tensors), rtol=2e-5, atol=2e-6)


def test_every_al_entry_matters():
    workload = tiny()[0]
    for token, ids in enumerate(workload.topk_ids.tolist()):
        for expert in ids:
            for change in (VALID, np.uint32(1)):  # the valid bit; another row

                def mutate(execution, token=token, expert=expert, change=change):
                    hub = execution.runtime.hubs[int(workload.gpu_of_expert[expert])]
                    hub.al_table[expert][token] ^= change
                    hub.tlb.clear()

                assert not survives(mutate, Action.ASK), (token, expert, change)


def test_every_tlb_entry_matters():
    workload = tiny()[0]
    for token, ids in enumerate(workload.topk_ids.tolist()):
        for expert in ids:

            def mutate(execution, key=(expert, token)):
                execution.runtime.hubs[int(workload.gpu_of_expert[key[0]])].tlb[key] ^= 1

            assert not survives(mutate, Action.ASK), (token, expert)


def test_every_routing_entry_matters():
    workload = tiny()[0]
    home = np.arange(workload.num_tokens) // workload.tokens_per_gpu
    for expert in range(workload.layer.experts):
        gpu = workload.gpu_of_expert[expert]
        if not ((workload.topk_ids == expert).any(axis=1) & (home != gpu)).any():
            continue  # never routed through the switch

        def mutate(execution, expert=expert):
            execution.runtime.switch.port_of_expert[expert] ^= 1

        for action in (Action.DISPATCH, Action.ASK):
            assert not survives(mutate, action), expert


def test_every_reduction_count_matters():
    workload, tensors, schedule = tiny()
    probe = Execution(schedule, workload, tensors)
    for step in probe.steps:
        if step.action == Action.COMBINE:
            break
        probe.apply(step)
    opened = [(port, key) for port, table in enumerate(probe.runtime.switch.reductions) for key in table]
    assert opened
    for port, key in opened:
        for change in (-1, 1):

            def mutate(execution, port=port, key=key, change=change):
                execution.runtime.switch.reductions[port][key].expected += change

            assert not survives(mutate, Action.COMBINE), (port, key, change)


def test_an_untouched_machine_survives():
    assert survives(lambda execution: None, Action.ASK)


def swapped(schedule: Schedule, **changes) -> Schedule:
    return Schedule(**{**schedule.__dict__, **changes})


def test_using_data_before_it_is_there_is_a_fault():
    workload, tensors, schedule = tiny()
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


def test_a_table_that_lacks_or_repeats_work_is_refused():
    _, _, schedule = tiny()
    with pytest.raises(ScheduleFault, match="is missing, unknown, or there twice"):
        steps_of(swapped(schedule, rows=schedule.rows[1:]))
    with pytest.raises(ScheduleFault, match="is missing, unknown, or there twice"):
        steps_of(swapped(schedule, rows=[*schedule.rows, schedule.rows[0]]))
    unfinished = [schedule.rows[0]._replace(end_us=float("nan")), *schedule.rows[1:]]
    with pytest.raises(ScheduleFault, match="only a finished schedule"):
        steps_of(swapped(schedule, rows=unfinished))


def test_a_token_sent_twice_is_a_fault():
    workload, tensors, schedule = tiny()
    execution = Execution(schedule, workload, tensors)
    dispatches = [step for step in execution.steps if step.action == Action.DISPATCH]
    for step in [*dispatches, dispatches[0]]:
        execution.apply(step)
    with pytest.raises(ScheduleFault, match="received 320 B of token"):
        execution.check_arrivals()


def test_a_combine_of_an_undispatched_token_names_token_and_expert():
    workload, tensors, schedule = tiny()
    execution = Execution(schedule, workload, tensors)
    expert = int(workload.topk_ids[0, 0])
    gpu = int(workload.gpu_of_expert[expert])
    region = execution.runtime.region
    with pytest.raises(UndispatchedFault, match=rf"token 0 was never dispatched to expert {expert} \[DYNAMIC_LOAD"):
        execution.runtime.dymultimem_ld_reduce(1 - gpu, 160, region.address(0), 1, (expert,), Stage.COMBINE)


def test_unknown_primitives_and_misshapen_tensors_are_refused():
    workload, tensors, schedule = tiny()
    with pytest.raises(ConfigError, match="combine='push' is unknown"):
        execute(swapped(schedule, combine="push"), workload, tensors)
    with pytest.raises(ConfigError, match=r"tensors.gates is float32 \(6, 1\); it must be float32 \(6, 2\)"):
        execute(schedule, workload, MoeTensors(tensors.tokens, tensors.gates[:, :1], tensors.up, tensors.down))
