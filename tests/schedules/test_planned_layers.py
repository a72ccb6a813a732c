"""Schedules with planners, run: what engine and twin get, bounds, variants, and what the plan is worth."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, Problem, Starter, load_schedule
from dysharp_env.workload import ScenarioSpec, Workload
from dysharp_env.workload.placement import contiguous_placement

GPUS, TOKENS = 4, 96
SCENARIO = ScenarioSpec(system="dgx-h100", gpus=GPUS, model="small", tokens=TOKENS, routing="uniform").build()


@cache
def skewed(tokens: int) -> Workload:
    """Returns a layer in which GPU 0 has more than twice its share, which an earlier batch had seen coming."""
    layer, rng = SCENARIO.layer, np.random.default_rng(0)
    liking = np.where(np.arange(layer.experts) < layer.experts // GPUS, 2.0, 0.0)
    scores = liking + rng.gumbel(size=(GPUS * tokens, layer.experts))
    ids = np.argsort(-scores, axis=1)[:, : layer.top_k]
    placement = contiguous_placement(layer.experts, GPUS)
    return Workload(layer, np.full(GPUS, tokens), ids, placement, "skewed", lambda: 1000 * np.exp(liking))


def problem_of(tokens: int = TOKENS) -> Problem:
    return Problem.of(SCENARIO.system, skewed(tokens))


@pytest.mark.parametrize("weights", ["pull", "unicast", "relay", "team", "multicast"])
@pytest.mark.parametrize("base", ["deepep", "dysharp"])
def test_engine_and_twin_run_the_same_plan(base: str, weights: str) -> None:
    problem, schedule = problem_of(), load_schedule(f"{base}+moonep:{weights}")
    run = problem.run(schedule)
    assert run.routed is problem.workload
    shared = run.engine.workload
    assert shared is schedule.planned(problem.workload) and shared.placement.num_copies
    twin = problem.twin(schedule, Exposure())
    twin.run()
    assert twin.now_ps == run.engine.now_ps
    result = run.result()
    assert result.wire_bytes["by_purpose"]["weight_data"] > 0 and result.ratio >= 1
    assert run.lower_bound_ps == problem.copies_bound.total_ps


def test_starters_plan_as_problems_do() -> None:
    workload = skewed(TOKENS)
    schedule = load_schedule("dysharp+ultraep").with_changes({"replicate.min_tokens": 8})
    run = Starter(SCENARIO.system, SCENARIO.layer, schedule).start(workload)
    run.engine.run()
    again = problem_of().run(schedule)
    assert run.engine.workload is again.engine.workload and run.routed is workload
    assert (run.engine.now_ps, run.lower_bound_ps) == (again.engine.now_ps, again.lower_bound_ps)


def test_variants_may_plan_otherwise() -> None:
    problem, base = problem_of(), load_schedule("dysharp+moonep")
    changes = tuple({"replicate.tolerance": tolerance} for tolerance in (1.0, 1.3, 2.0))
    schedule = base.with_changes({"best_of": changes})
    alone = {each["replicate.tolerance"]: problem.run(base.with_changes(each)).engine.now_ps for each in changes}
    run = problem.run(schedule)
    assert run.engine.now_ps == min(alone.values()) and len({*alone.values()}) == 3
    assert alone[run.variant["replicate.tolerance"]] == run.engine.now_ps


def test_static_replicas_have_the_bound_of_where_they_are() -> None:
    problem, schedule = problem_of(), load_schedule("eplb")
    run = problem.run(schedule)
    shared = run.engine.workload
    assert shared.placement.num_copies == 0 and shared.num_experts == problem.workload.num_experts + 4
    assert run.lower_bound_ps == Problem.of(problem.system, shared).bound.total_ps
    assert run.result().wire_bytes["by_purpose"]["weight_data"] == 0


def test_what_is_not_planned_is_as_before() -> None:
    problem = problem_of()
    for name in ("deepep", "dysharp"):
        run = problem.run(load_schedule(name))
        assert run.engine.workload is problem.workload and run.lower_bound_ps == problem.bound.total_ps


def test_copies_pay_with_many_tokens_and_not_with_few() -> None:
    few, many = (
        {name: problem.run(load_schedule(name)).engine.now_ps for name in ("deepep", "deepep+moonep")}
        for problem in (problem_of(32), problem_of(2048))
    )
    assert few["deepep+moonep"] > few["deepep"] and many["deepep+moonep"] < 0.95 * many["deepep"]


def test_a_layer_planned_once_is_not_planned_again() -> None:
    shared = load_schedule("moonep").planned(skewed(TOKENS))
    with pytest.raises(ConfigError, match="planner=moonep: workload 'skewed' has copies already"):
        Problem.of(problem_of().system, shared).run(load_schedule("moonep"))


def test_uneven_layers_are_shared_out_evenly() -> None:
    even = skewed(TOKENS)
    uneven = Workload(even.layer, np.array([0, 96, 14, 0]), even.topk_ids[:110], even.placement, "uneven")
    run = Problem.of(SCENARIO.system, uneven).run(load_schedule("dysharp+moonep:multicast"))
    shared = run.engine.workload
    loads = np.bincount(shared.gpu_of_expert, weights=shared.demand.expert_tokens, minlength=4)
    assert loads.tolist() == [220, 220, 220, 220] and run.result().ratio >= 1


@pytest.mark.parametrize(
    ("name", "weights", "tolerance"),
    [
        ("dysharp+moonep", "pull", 1.0),
        ("dysharp+moonep:multicast", "multicast", 1.0),
        ("dysharp+moonep:1.05", "pull", 1.05),
        ("dysharp+ultraep:team:1.1", "team", 1.1),
    ],
)
def test_a_name_says_how_weights_travel_and_what_is_balanced_enough(name: str, weights: str, tolerance: float) -> None:
    schedule = load_schedule(name)
    assert schedule.name == name
    assert (schedule.replicate.weights, schedule.replicate.tolerance) == (weights, tolerance)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dysharp+moonep:0.5", "tolerance '0.5' must be a number from 1 on"),
        ("dysharp+moonep:pull:x", "tolerance 'x' must be a number from 1 on"),
        ("dysharp+eplb:1.2", "eplb moves no weights in the layer; leave ':1.2' out"),
    ],
)
def test_what_a_name_cannot_say(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_schedule(name)
