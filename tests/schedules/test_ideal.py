from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.schedules.ideal import (
    ALL,
    IDEALISATIONS,
    RESOURCES,
    Idealisation,
    Times,
    binding,
    binds,
    ideal_runs,
    ideal_system,
)
from dysharp_env.schedules.opponent import ScheduleOpponent
from dysharp_env.simulator.phases import Load
from dysharp_env.system import load_system
from dysharp_env.workload import ScenarioSpec, Workload
from dysharp_env.workload.placement import Placement

SYSTEM = load_system("dgx-h200")


def problem(compute_scale: float = 1.0, **changes: Any) -> Problem:
    scenario = ScenarioSpec(system="dgx-h200", gpus=4, model="small", tokens=32, routing="uniform").build()
    system = scenario.system.with_changes(changes)
    return Problem.of(system, scenario.draw(0), compute_scale=compute_scale)


@pytest.mark.parametrize("idealisation", IDEALISATIONS, ids=lambda each: each.name)
def test_every_idealisation_changes_the_machine(idealisation: Idealisation) -> None:
    assert idealisation.resource in RESOURCES
    assert ideal_system(SYSTEM, [idealisation]) != SYSTEM


def test_settings_are_replaced_multiplied_and_passed_over() -> None:
    changes = {"gpu.*_tflops": Times(100), "link.gbps": Times(10**9), "gpu.no_such": 3, "overheads.*launch*_us": 0}
    ideal = ideal_system(SYSTEM, [Idealisation("some", "links", "", changes)])
    assert ideal.gpu.fp8_tflops == 100 * SYSTEM.gpu.fp8_tflops and ideal.gpu.bf16_tflops == 100 * SYSTEM.gpu.bf16_tflops
    assert ideal.link.gbps == 10**9  # the most that a system may have
    kept = {"gpu.fp8_tflops": SYSTEM.gpu.fp8_tflops, "gpu.bf16_tflops": SYSTEM.gpu.bf16_tflops}
    kept |= {"link.gbps": SYSTEM.link.gbps}
    kept |= {f"overheads.{name}_us": getattr(SYSTEM.overheads, f"{name}_us") for name in ("launch", "launch_gap")}
    assert ideal.overheads.launch_us == 0 and ideal.with_changes(kept) == SYSTEM


def test_what_phases_pay_is_what_they_save() -> None:
    # deepep starts six kernels one after the other, with two barriers and an exchange of counts between them; in BF16
    # nothing is quantised.
    free = problem()
    engine = free.engine(load_schedule("deepep"))
    engine.run()
    saved_ps = {
        run.what: engine.now_ps - run.makespan_ps for run in ideal_runs(free, ScheduleOpponent(load_schedule("deepep")))
    }
    launches, barriers, counts = (saved_ps[name] for name in ("launches", "barriers", "count exchange"))
    costs, overheads = free.costs, free.system.overheads
    gap_ps, layout_ps = round(overheads.launch_gap_us * 1e6), round(32 * overheads.layout_ns_per_token * 1000)
    assert (barriers, counts) == (2 * costs.barrier_ps, costs.count_exchange_ps)
    assert launches == costs.launch_ps + 5 * gap_ps
    # What runs between phases takes time beside its launch: layout, and the activation, for which a GPU waits alone.
    rows = np.bincount(free.workload.gpu_of_expert, weights=free.workload.demand.expert_tokens).astype(int)
    (activation,) = costs.phase_kernels(2, ("activation",))
    kernels_ps = saved_ps["kernels between phases"]
    assert kernels_ps in [gap_ps + layout_ps + activation.ps(Load(rows=int(each)), costs.hbm_ps) for each in rows]
    assert saved_ps["software"] == launches + barriers + counts + kernels_ps - 2 * gap_ps


def test_ideal_communication_sms_leave_packets_as_they_are() -> None:
    free = ideal_system(SYSTEM, [each for each in IDEALISATIONS if each.name == "communication SMs"])
    assert {name: family.payload_bytes for name, family in free.gpu.families.items()} == {
        name: family.payload_bytes for name, family in SYSTEM.gpu.families.items()
    }
    scenario = ScenarioSpec(system="dgx-h200", gpus=4, model="small", tokens=32, routing="uniform").build()
    for name in ("deepep", "mega-moe", "dysharp", "trtllm-two-sided"):
        costs = Problem.of(free, scenario.draw(0)).start(load_schedule(name)).engine.costs
        assert all(sm.delay_ps(sm.token_ps) == 0 and sm.slots >= 10**6 for sm in (costs.dispatch_sm, costs.combine_sm))


def test_there_is_a_run_for_everything_and_each_group() -> None:
    runs = ideal_runs(problem(), ScheduleOpponent(load_schedule("dysharp")))
    assert [run.what for run in runs if run.is_group] == [*RESOURCES, ALL]
    singles = [run.what for run in runs if not run.is_group]
    # What is alone in its resource is the resource.
    assert singles == [each.name for each in IDEALISATIONS if each.resource != "compute"]
    assert runs[-1].makespan_ps == min(run.makespan_ps for run in runs)


@pytest.mark.parametrize(
    ("resource", "changes"),
    [
        ("links", {"link.gbps": 1.0}),
        ("memory", {"gpu.hbm_gbps": 20.0}),
        ("compute", {"gpu.bf16_tflops": 1.0, "gpu.fp8_tflops": 1.0}),
        ("software", {"overheads.launch_us": 1000.0}),
    ],
)
@pytest.mark.parametrize("schedule", ["deepep", "dysharp"])
def test_what_is_slow_binds(schedule: str, resource: str, changes: dict[str, float]) -> None:
    given = problem(**changes)
    assert binds(given, load_schedule(schedule)) == resource
    assert binding(ideal_runs(given, ScheduleOpponent(load_schedule(schedule)))) == resource


def test_the_compute_scale_is_kept() -> None:
    changes = {"gpu.bf16_tflops": 1.0, "gpu.fp8_tflops": 1.0, "link.gbps": 10.0}
    assert binds(problem(**changes), load_schedule("dysharp")) == "compute"
    assert binds(problem(0.001, **changes), load_schedule("dysharp")) == "links"


def test_a_planner_saves_its_plan_on_gpus_of_any_load() -> None:
    """GPUs without tokens or experts, tokens without experts, and all work of some experts handed out."""
    scenario = ScenarioSpec(system="dgx-h200", gpus=4, model="deepseek-v2-lite", tokens=600, routing="uniform").build()
    layer, rng = scenario.layer, np.random.default_rng(0)
    ids = np.argsort(rng.random((1000, layer.experts)) - 2.0 * (np.arange(layer.experts) < 8), axis=1)[:, : layer.top_k]
    ids[rng.random(1000) < 0.1] = -1
    gpus = rng.integers(0, 3, layer.experts)
    uneven = Problem.of(scenario.system, Workload(layer, np.array([700, 0, 300, 0]), ids, Placement(4, gpus), "uneven"))
    schedule = load_schedule("dysharp+moonep:multicast")
    engine = uneven.engine(schedule)
    engine.run()
    assert engine.workload.placement.num_copies > 0
    saved_ps = {run.what: engine.now_ps - run.makespan_ps for run in ideal_runs(uneven, ScheduleOpponent(schedule))}
    assert saved_ps["planning"] == uneven.system.overhead_us("plan") * 1e6
    assert saved_ps["everything"] > saved_ps["planning"] > 0
    assert binds(uneven, schedule) in RESOURCES
