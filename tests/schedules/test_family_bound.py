"""The bound of a program's family: between the bound of any schedule and every layer that the program can run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dysharp_env.config import ConfigError, preset_names
from dysharp_env.schedules import Exposure, Problem, load_schedule
from dysharp_env.schedules.copy_bound import without_copies
from dysharp_env.schedules.family_bound import FamilyBound, family_bound
from dysharp_env.schedules.replication import ReplicateSpec, planned
from dysharp_env.schedules.tiles import fewest_slots, fewest_vectors_ps, least_end_ps
from dysharp_env.simulator.engine import Engine
from dysharp_env.system import load_system
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.workload import LayerSpec, ScenarioSpec, Workload
from dysharp_env.workload.placement import Placement
from dysharp_env.workload.suite import load_suite
from tests.conftest import Case, draw_case
from tests.random_workloads import Draw
from tests.schedules.test_bound import any_bound


def play_at_random(engine: Engine, seed: int) -> int:
    """Returns the makespan of a layer whose decisions, where any are asked, are drawn."""
    rng = np.random.default_rng(seed)
    while (decision := engine.advance()) is not None:
        engine.decide(int(rng.choice(np.flatnonzero(decision.mask))))
    return engine.now_ps


def bound_of(case: Case, least_ps: int = 0) -> FamilyBound:
    return family_bound(case.workload, case.costs, case.program, case.num_sms, least_ps)


class Bounds(NamedTuple):
    """What bounds a random case: of its program, of any schedule, of any that may copy weights, of none that may."""

    family_ps: int
    any_ps: int
    copies_ps: int
    placed_ps: int


def bounds_of(case: Case, seed: int) -> Bounds:
    """Returns all bounds of a random case; where it has copies none of them is for whoever leaves experts in place."""
    bound, workload = any_bound(case, seed), case.workload
    any_ps = bound.of(workload).total_ps
    copies_ps = bound.of(workload, copies_allowed=True).total_ps
    placed_ps = any_ps
    if workload.placement.num_copies:
        placed_ps = bound.of(without_copies(workload)).total_ps if is_placed_once(workload) else copies_ps
    return Bounds(bound_of(case, any_ps).total_ps, any_ps, copies_ps, placed_ps)


def is_placed_once(workload: Workload) -> bool:
    """Returns whether every expert is there once before the layer."""
    return int(np.count_nonzero(~workload.placement.is_copy)) == workload.layer.experts


def planned_case(case: Case, seed: int) -> Case:
    """Returns a random case with its work shared out by a planner; as it is where it has copies already."""
    if case.workload.placement.num_copies:
        return case
    draw = Draw(seed)
    spec = ReplicateSpec(
        planner=draw.pick("planner", "moonep", "ultraep", "llep"),
        slots=draw.pick("slots", 1, "experts", "any"),
        weights=draw.pick("planned_weights", "unicast", "relay"),
        fan_out=draw.between("fan_out", 1, 2),
        tolerance=draw.pick("tolerance", 1.0, 1.3),
        min_tokens=draw.pick("min_tokens", 1, 3),
    )
    return case._replace(workload=planned(case.workload, spec))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_no_planner_breaks_it(seed: int) -> None:
    """Plans of random layers, against what bounds any plan of the layer before it was planned."""
    case = draw_case(seed)
    shared = planned_case(case, seed)
    now_ps = play_at_random(shared.engine(logging=False), seed)
    assert now_ps >= bounds_of(shared, seed).family_ps
    assert now_ps >= any_bound(case, seed).of(case.workload, copies_allowed=True).total_ps


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_nothing_drawn_breaks_it(seed: int) -> None:
    """Machines, layers, routing, copies, every primitive, gate, part, split and rule, decisions asked and drawn."""
    case = draw_case(seed)
    bounds = bounds_of(case, seed)
    now_ps = play_at_random(case.engine(logging=False), seed)
    assert now_ps >= bounds.family_ps >= bounds.any_ps > 0
    assert now_ps >= bounds.copies_ps <= bounds.placed_ps


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    name=st.sampled_from(preset_names("schedules")),
    tokens=st.integers(16, 160),
    prefetch=st.sampled_from(["none", "ahead"]),
    asks=st.booleans(),
    early=st.booleans(),
)
def test_no_rule_or_decision_on_a_real_machine_breaks_it(
    seed: int, name: str, tokens: int, prefetch: str, asks: bool, early: bool
) -> None:
    """Tiles of full size on GPUs with all their SMs, where the ends of the GEMMs count."""
    rng = np.random.default_rng(seed)
    scenario = ScenarioSpec(
        system="dgx-h100", gpus=int(rng.choice([2, 4, 8])), model="deepseek-v2-lite", tokens=tokens, routing="uniform"
    ).build()
    schedule = load_schedule(name).with_changes({"prefetch": prefetch, "partial_tiles": early})
    problem = Problem.of(scenario.system, scenario.draw(seed % 1000))
    exposure = Exposure(("dispatch", "gemm", "combine"), asks, early) if asks else Exposure()
    program = problem.offer(schedule, exposure).plans[0].program
    program = dataclasses.replace(program, weights=rng.normal(size=program.weights.shape))
    case = Case(problem.workload, problem.costs, program, scenario.system.gpu.num_sms, problem.bound)
    bound = bound_of(case, problem.bound.total_ps)
    assert play_at_random(case.engine(logging=False), seed) >= bound.total_ps >= problem.bound.total_ps


@pytest.mark.parametrize("suite", preset_names("suites"))
def test_no_preset_breaks_it_on_a_suite(suite: str) -> None:
    """A few schedules on a few workloads of every suite; all of them were tried once."""
    rng = np.random.default_rng(len(suite))
    names = preset_names("schedules")
    entries = load_suite(suite).workloads
    for place in rng.choice(len(entries), min(2, len(entries)), replace=False):
        scenario = load_suite(suite).build(entries[place])
        problem = Problem.of(
            scenario.system, scenario.draw(entries[place].seeds[0]), compute_scale=entries[place].compute_scale
        )
        for name in rng.choice(names, 4, replace=False):
            try:
                run = problem.start(load_schedule(str(name)))
            except ConfigError:
                continue
            run.engine.run()
            assert run.engine.now_ps >= run.family_bound().total_ps >= run.lower_bound_ps, (suite, place, name)


def test_weights_come_from_the_start_though_nobody_counted() -> None:
    """HBM binds: 16 experts a GPU, each of them used."""
    scenario = ScenarioSpec(model="olmoe", gpus=4, tokens=24, routing="dsv2-lite").build()
    problem = Problem.of(scenario.system, scenario.draw(0))
    bounds = []
    for paid in (("launch", "fused_start"), ("launch", "fused_start", "count_exchange")):
        run = problem.run(load_schedule("fused-unicast").with_changes({"prefetch": "ahead", "pays.dispatch": paid}))
        bounds.append(run.family_bound())
        assert bounds[-1].hbm_ps == bounds[-1].total_ps <= run.engine.now_ps
    assert bounds[1].hbm_ps - bounds[0].hbm_ps == round(scenario.system.overhead_us("count_exchange") * 1e6)


@pytest.mark.parametrize("dispatch", DISPATCH_PRIMITIVES)
@pytest.mark.parametrize("combine", COMBINE_PRIMITIVES)
@pytest.mark.parametrize("prefetches", [False, True])
def test_a_lone_token_takes_no_longer(
    make_case: Callable[..., Case], dispatch: str, combine: str, prefetches: bool
) -> None:
    """With one token to go anywhere there is nothing to decide, so the bound is the time that it takes."""
    # Without families, whose work on a token only the first of its vectors bears.
    system = load_system("dgx-h100", 2).with_changes({"gpu.families": {}})
    layer = LayerSpec(
        name="one", hidden=1024, moe_ff=128, experts=2, top_k=1, ffn_matrices=2, compute_dtype="bf16", source="test"
    )
    schedule = load_schedule("dysharp").with_changes({"prefetch": "ahead" if prefetches else "none"})
    program = dataclasses.replace(
        schedule.program(system),
        dispatch=DISPATCH_PRIMITIVES[dispatch],
        combine=COMBINE_PRIMITIVES[combine],
    )
    # GPU 0's token goes to the expert of GPU 1, and that of GPU 1 stays.
    case = make_case(system, layer, np.array([[1], [1]]), program)
    now_ps = play_at_random(case.engine(logging=False), 0)
    bound = bound_of(case)
    assert bound.total_ps <= now_ps
    # The results of a row are written before the sum is asked for; that is all that is left out.
    assert bound.total_ps == pytest.approx(now_ps, rel=0.001)


def test_a_token_that_loops_home_tells_nobody_of_its_row(make_case: Callable[..., Case]) -> None:
    system = load_system("dgx-h100", 2).with_changes({"gpu.families": {}})
    layer = LayerSpec(
        name="one", hidden=1024, moe_ff=128, experts=2, top_k=1, ffn_matrices=2, compute_dtype="bf16", source="test"
    )
    static = {"dispatch": DISPATCH_PRIMITIVES["broadcast"], "combine": COMBINE_PRIMITIVES["reduce_scatter"]}
    program = dataclasses.replace(load_schedule("dysharp").program(system), **static, loopback=True)
    case = make_case(system, layer, np.array([[0], [1]]), program)
    now_ps = play_at_random(case.engine(logging=False), 0)
    assert now_ps >= bound_of(case).total_ps == pytest.approx(now_ps, rel=0.02)


def test_it_grows_with_what_a_program_pays_and_lacks() -> None:
    scenario = ScenarioSpec(system="dgx-h100", model="deepseek-v2-lite", tokens=64, routing="uniform").build()
    problem = Problem.of(scenario.system, scenario.draw(0))
    schedule = load_schedule("dysharp")

    def bound(**changes: object) -> FamilyBound:
        return problem.start(
            schedule.with_changes({key.replace("__", "."): value for key, value in changes.items()})
        ).family_bound()

    usual = bound()
    assert usual.total_ps > problem.bound.total_ps
    assert bound(prefetch="ahead").hbm_ps < usual.hbm_ps
    assert bound(sms__dispatch=40).sms_ps > usual.sms_ps
    assert bound(pays__end=["launch"]).total_ps == usual.total_ps + problem.costs.launch_ps
    assert bound(partial_tiles=True).sms_ps < usual.sms_ps


def test_fewest_slots_of_other_gpus_tokens_in_some_tiles() -> None:
    # 300 tokens are tiles of 128, 128 and 44; of 30 tokens 10 are at home.
    total, local = np.array([300, 30, 0]), np.array([0, 10, 0])
    first_to_close = fewest_slots(np.array([128, 30, 0]), 128, total, local)
    assert first_to_close.tolist() == [20, 148, 276, 320]
    last_to_finish = fewest_slots(np.array([44, 30, 0]), 128, total, local)
    assert last_to_finish.tolist() == [20, 64, 192, 320]


def test_fewest_vectors_takes_those_with_most_experts_first() -> None:
    # Two for one expert, one for two, one for three; a vector that is not wanted whole counts by its share.
    vectors, ps = np.array([5, 2, 1, 1]), np.array([0, 100, 140, 150])
    assert [fewest_vectors_ps(slots, vectors, ps) for slots in (0, 3, 4, 5, 6, 9)] == [0, 150, 220, 290, 390, 490]


def test_least_end_counts_what_idles_at_both_ends() -> None:
    # 10 SMs; a tile keeps 4 busy. The second tile opens 5 later, the third 10 later: 6 and 2 SMs idle for 5 each. At
    # the other end nothing runs for 3, and 4 SMs do for 2 more.
    opens, closes = np.array([100, 105, 110]), np.array([3, 5, 5])
    room = lambda length: 10 * length - 6 * 5 - 2 * 5 - 10 * 3 - 6 * 2  # noqa: E731
    for work in (room(40), room(41), room(100)):
        length = (work + 30 + 10 + 30 + 12) / 10
        assert least_end_ps(work, 10, opens, closes, 4, 4, 0, 0) == 100 + int(np.ceil(length))
    # So little that both ends are one: a tile of 4 blocks that take 7.
    assert least_end_ps(28, 10, np.array([100, 200]), np.array([3, 50]), 4, 4, 0, 0) == 110


def test_workload_without_remote_tokens_needs_no_links() -> None:
    system = load_system("dgx-h100", 2)
    layer = LayerSpec(
        name="one", hidden=1024, moe_ff=128, experts=2, top_k=1, ffn_matrices=2, compute_dtype="bf16", source="test"
    )
    workload = Workload.even(layer, 2, np.repeat([[0], [1]], 8, axis=0), np.arange(2), "at home")
    run = Problem.of(system, workload).start(load_schedule("dysharp"))
    run.engine.run()
    bound = run.family_bound()
    assert bound.links_ps == 0
    assert bound.total_ps == run.engine.now_ps


def test_a_layer_without_any_expert_has_only_what_it_pays_first() -> None:
    system = load_system("dgx-h100", 2)
    layer = LayerSpec(
        name="one", hidden=1024, moe_ff=128, experts=2, top_k=1, ffn_matrices=2, compute_dtype="bf16", source="test"
    )
    placement = Placement(2, np.array([0, 1, 0]), np.array([0, 1, 1]))  # one of them twice, which may be chosen anew
    for held in (Placement(2, np.array([0, 1])), placement):
        workload = Workload(layer, np.array([5, 0]), np.full((5, 1), -1), held, "nothing to do")
        problem = Problem.of(system, workload)
        run = problem.start(load_schedule("dysharp"))
        run.engine.run()
        assert problem.bound.total_ps == problem.copies_bound.total_ps == problem.costs.launch_ps
        assert run.engine.now_ps == run.family_bound().total_ps >= problem.costs.launch_ps
