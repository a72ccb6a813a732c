from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from dysharp_env.config import preset_names
from dysharp_env.report.path import _Walk, critical_path
from dysharp_env.report.steps import Step
from dysharp_env.schedules import LayerRun, Problem, load_schedule
from dysharp_env.simulator.phases import START, Load
from dysharp_env.simulator.state import codes
from dysharp_env.system import load_system
from dysharp_env.workload import ScenarioSpec, load_model
from dysharp_env.workload.workload import NO_EXPERT
from tests.conftest import Case
from tests.simulator.copy_rules import copied_case
from tests.simulator.odd_shapes import draw_shape
from tests.simulator.run_log import play


def explained(schedule: str, resolution: str = "token", **changes: object) -> tuple[LayerRun, list[Step]]:
    options = {"system": "gh200-nvl32", "gpus": 4, "model": "small", "tokens": 96, "routing": "uniform", **changes}
    scenario = ScenarioSpec(**options).build()
    problem = Problem.of(scenario.system, scenario.draw(0), resolution=resolution)
    run = problem.start(load_schedule(schedule), logging=True)
    run.engine.run()
    return run, critical_path(run)


def assert_whole(path: list[Step], makespan_ps: int) -> None:
    assert path[0].start_ps == 0 and path[-1].end_ps == makespan_ps
    assert all(before.end_ps == after.start_ps for before, after in zip(path, path[1:], strict=False))
    assert all(step.start_ps < step.end_ps for step in path)


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses a walk that would have to go forwards: a cause that is later than its effect."""
    back = _Walk.back

    def checked(walk: _Walk, since_ps: int, *what: object) -> None:
        assert since_ps <= walk.cursor, what
        back(walk, since_ps, *what)  # type: ignore[arg-type]

    monkeypatch.setattr(_Walk, "back", checked)


@pytest.mark.parametrize("schedule", preset_names("schedules"))
def test_steps_make_up_the_makespan(schedule: str, strict: None) -> None:
    for resolution, tokens in (("token", 96), ("token", 7), ("packet", 16)):
        run, path = explained(schedule, resolution, tokens=tokens)
        assert_whole(path, run.engine.now_ps)
        assert path[0].what == "before the start" and path[0].waited_for == "kernel launch"
        whats = [step.what for step in path]
        # A copy's GEMM-2 may wait for the last of its weights longer than for its GEMM-1.
        assert "GEMM-2" in whats and ("waiting for weights" in whats or "GEMM-1" in whats)
        assert "GEMM-1" not in whats or whats.index("GEMM-1") < whats.index("GEMM-2")


@pytest.mark.parametrize("schedule", preset_names("schedules"))
def test_layers_of_odd_shapes_have_a_path(schedule: str, strict: None) -> None:
    """Some GPUs have no tokens or no experts, and some tokens few experts; and a layer of tokens that have none."""
    system, layer = load_system("gh200-nvl32", 4), load_model("small")
    shapes = [draw_shape(layer, system.num_gpus, np.random.default_rng(seed)) for seed in range(4)]
    nobody = dataclasses.replace(shapes[0], topk_ids=np.full_like(shapes[0].topk_ids, NO_EXPERT))
    for shape in (*shapes, nobody):
        workload = dataclasses.replace(shape, history=lambda: np.arange(layer.experts))
        run = Problem.of(system, workload).run(load_schedule(schedule), logging=True)
        path = critical_path(run)
        assert_whole(path, run.engine.now_ps)
        assert path[0].what == "before the start"


@pytest.mark.parametrize("seed", range(60))
def test_any_program_has_a_path(random_case: Callable[[int], Case], seed: int) -> None:
    engine = play(random_case(seed), seed)
    schedule = load_schedule("deepep")
    path = critical_path(SimpleNamespace(engine=engine, schedule=schedule, system=load_system("dgx-h200")))
    assert_whole(path, engine.now_ps)


@pytest.mark.parametrize("gates", [(0, 0, 0), (1, 1, 1), (2, 1, 0)])
@pytest.mark.parametrize("primitive", ["unicast", "pull", "team", "multicast"])
def test_a_chain_that_waits_for_weights_says_so(primitive: str, gates: tuple[int, int, int], strict: None) -> None:
    """A copy's only token is there long before its weights, which come from a copy of a copy if they are relayed."""
    case = copied_case(primitive, [(0, 1), (2, 2)], [(3, 1)], gates=gates)
    engine, schedule = play(case, 0), load_schedule("deepep")
    path = critical_path(SimpleNamespace(engine=engine, schedule=schedule, system=load_system("dgx-h200")))
    assert_whole(path, engine.now_ps)
    steps = [(step.what, step.waited_for, step.end_ps) for step in path if step.stage == "copying"]
    near, far = "those of expert 2, from GPU 0 to GPU 1", "those of expert 3, from GPU 0 to GPU 2"
    found = [waited_for for what, waited_for, _ in steps if what == "weights"]
    if primitive == "unicast":
        assert found == [near, "those of expert 3, from GPU 1 to GPU 2"]
    else:
        # One store brings both copies theirs at the same moment, of which all GPUs may wait for either.
        assert found == [far] or (primitive != "pull" and gates[0] == codes.GATE_PHASE and found == [near])
    # Behind a gate both matrices are there before GEMM-1.
    ends_ps = engine.state.matrices["end_ps"][6:8]
    assert steps[-1][2] == ends_ps[1]


def test_a_layer_may_end_with_weights(strict: None) -> None:
    engine, schedule = play(copied_case("unicast", [(0, 1)]), 0), load_schedule("deepep")
    path = critical_path(SimpleNamespace(engine=engine, schedule=schedule, system=load_system("dgx-h200")))
    assert_whole(path, engine.now_ps)
    assert path[-1].what == "weights"


def test_phases_show_all_that_they_pay(strict: None) -> None:
    run, path = explained("deepep", model="deepseek-v3", system="dgx-h200")
    costs, state = run.engine.costs, run.engine.state
    paid = [(step.what, step.waited_for, step.end_ps - step.start_ps) for step in path if step.stage == "software"]
    launch, barrier = ("kernel launch", costs.launch_ps), ("barrier of all GPUs", costs.barrier_ps)
    gap_ps = round(load_system("dgx-h200").overheads.launch_gap_us * 1e6)
    gap = ("launch of the next kernel", gap_ps)
    tokens = Load(tokens=96)
    quantise, layout = (costs.phase_kernels(0, (name,))[0].ps(tokens, costs.hbm_ps) for name in ("quantise", "layout"))
    start, combine_start = (costs.phase_kernels(stage, (START,))[0].ps(tokens, costs.hbm_ps) for stage in (0, 3))
    # GEMM-2 waits on each GPU for itself.
    gates = state.gates[state.gates["stage"] == codes.OPENS_GEMM2]
    (activation_ps,) = {took_ps for _, name, took_ps in paid if name == "activation"}
    assert paid == [
        ("before the start", *launch),
        ("before the start", "quantise", quantise),
        ("before the start", "layout", layout),
        ("before the start", "exchange of token counts", costs.count_exchange_ps),
        ("before the start", "start of its kernels", start),
        ("before GEMM-1", *barrier),
        ("before GEMM-1", *gap),
        ("before GEMM-2", "activation", activation_ps),
        ("before GEMM-2", *gap),
        ("before combine", *gap),
        ("before combine", *barrier),
        ("before combine", "start of its kernels", combine_start),
    ]
    assert activation_ps + gap_ps in gates["pay_ps"] and activation_ps > gap_ps


def test_what_is_paid_at_the_end_is_named(strict: None) -> None:
    run, path = explained("mega-moe", model="deepseek-v3", system="dgx-h200")
    after = [step for step in path if step.what == "after the last token"]
    assert sum(step.end_ps - step.start_ps for step in after) == run.engine.state.root["pay_end_ps"][0] > 0
    assert [step.waited_for for step in after] == ["barrier of all GPUs", "final sum"]


def test_gemms_may_wait_for_shared_experts(strict: None) -> None:
    scenario = ScenarioSpec(system="dgx-h200", gpus=4, model="deepseek-v3", tokens=64, routing="uniform").build()
    schedule = load_schedule("deepep").with_changes({"shared_experts": "hidden", "sms.dispatch": 130})
    problem = Problem.of(scenario.system, scenario.draw(0))
    run = problem.start(schedule, logging=True)
    run.engine.run()
    path = critical_path(run)
    assert_whole(path, run.engine.now_ps)
    place = [step.what for step in path].index("shared experts")
    assert {step.what for step in path[:place]} == {"before the start"}
    assert path[place].start_ps == run.engine.state.gates["pay_ps"][0]


def test_a_lonely_layer_is_a_chain_without_waiting(strict: None) -> None:
    # One token per GPU, each with one expert: nothing is in anybody's way but memory.
    run, path = explained("flashdmoe", gpus=2, tokens=1, top_k=1)
    costs = run.engine.costs
    assert not [step for step in path if step.is_waiting and step.stage != "memory"]
    by_text = {(step.what, step.waited_for.split(" of ")[0]): step.end_ps - step.start_ps for step in path}
    assert by_text["GEMM-1", "thread blocks"] == costs.block_ps(1, 1)
    assert by_text["GEMM-2", "thread blocks"] == costs.block_ps(2, 1)
    assert by_text["before the start", "kernel launch"] == costs.launch_ps
    for what, flits in (("dispatch", costs.dispatch_flits()), ("combine", costs.combine_flits())):
        steps = [step for step in path if step.what == what]
        if len(steps) > 1:  # it crossed the switch
            sm = getattr(costs, f"{what}_sm")
            expected = [sm.delay_ps(sm.token_ps), costs.hop_ps, costs.hop_ps + costs.wire_ps(flits)]
            assert [step.end_ps - step.start_ps for step in steps] == [ps for ps in expected if ps > 0]


@pytest.mark.parametrize("schedule", ["dysharp", "deepep", "mega-moe", "moe-hub", "dysharp-copies"])
def test_steps_make_up_the_makespan_of_a_machine_with_faults(schedule: str) -> None:
    for faults in ("slow_link=3,replay_every=9", "late_us=30", "late_us=2000"):
        run, path = explained(schedule, tokens=48, faults=faults)
        assert_whole(path, run.engine.now_ps)
        if faults == "late_us=2000":
            (late,) = [step for step in path if step.what == "late start"]
            assert late.end_ps - late.start_ps > 1000 * 10**6 and "GPU 0" in late.waited_for
