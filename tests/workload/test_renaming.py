"""Renaming GPUs changes numbers and nothing else."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.schedules.bound import LowerBound
from dysharp_env.simulator.costs import Costs
from dysharp_env.system import load_system
from dysharp_env.workload import ScenarioSpec, Workload
from dysharp_env.workload.renaming import gpu_order

SCENARIO = ScenarioSpec(model="olmoe", gpus=4, tokens=(5, 0, 9, 2), routing="power-law:1.0")
REPLICATED = ScenarioSpec(model="olmoe", tokens=16, routing="dsv2-lite", placement="eplb:10", replicas="least_loaded")


@pytest.fixture(params=[SCENARIO, REPLICATED], ids=["uneven", "replicas"])
def workload(request: pytest.FixtureRequest) -> Workload:
    spec: ScenarioSpec = request.param
    return spec.build().draw(3)


def test_renaming_back_gives_the_same_workload(workload: Workload) -> None:
    order = np.random.default_rng(0).permutation(workload.num_gpus)
    renamed = workload.renamed(order)
    assert not np.array_equal(renamed.topk_ids, workload.topk_ids)
    back = renamed.renamed(np.argsort(order))
    assert np.array_equal(back.topk_ids, workload.topk_ids)
    assert np.array_equal(back.tokens_of_gpu, workload.tokens_of_gpu)
    assert np.array_equal(back.gpu_of_expert, workload.gpu_of_expert)


def test_demand_moves_with_the_gpus(workload: Workload) -> None:
    order = np.random.default_rng(1).permutation(workload.num_gpus)
    before, after = workload.demand, workload.renamed(order).demand
    for name in ("local_pairs", "remote_pairs", "pair_targets", "token_targets", "served"):
        assert np.array_equal(getattr(after, name), getattr(before, name)[order]), name
    assert np.array_equal(after.expert_tokens, before.expert_tokens)


def test_history_and_replicas_stay(workload: Workload) -> None:
    renamed = workload.renamed(np.arange(workload.num_gpus)[::-1])
    assert np.array_equal(renamed.past_loads, workload.past_loads)
    assert np.array_equal(renamed.placement.logical_of_expert, workload.placement.logical_of_expert)


@pytest.mark.parametrize("order", [[0, 1, 2, 2], [0, 1, 2], [1, 2, 3, 4]])
def test_an_order_that_is_none_is_refused(order: list[int]) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"order={order} must hold each of GPUs 0 to 3 once")):
        SCENARIO.build().draw(0).renamed(order)


@pytest.mark.parametrize(
    ("system", "gpus"), [("dgx-h100", 4), ("dgx-h100", 8), ("gh200-nvl32", 12), ("gh200-nvl32", 32)]
)
@pytest.mark.parametrize("slow_gpu", [1.0, 1.25])
def test_orders_keep_teams_together_and_a_slow_gpu_in_its_place(system: str, gpus: int, slow_gpu: float) -> None:
    machine = load_system(system, gpus).with_changes({"slow_gpu": slow_gpu})
    assert np.array_equal(gpu_order(machine, 0), np.arange(gpus))
    orders = [gpu_order(machine, renaming) for renaming in range(1, 9)]
    assert len({tuple(order) for order in orders}) > 4
    team = machine.switch.team_gpus
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(gpus))
        for first in range(0, gpus, team):
            assert len(set(order[first : first + team] // team)) == 1
    assert all(order[0] == 0 for order in orders) == (slow_gpu > 1)


@pytest.mark.parametrize("hardware", ["dynamic-multimem", "today"])
@pytest.mark.parametrize("slow_gpu", [1.0, 1.5])
def test_a_renamed_problem_has_the_same_bound(hardware: str, slow_gpu: float) -> None:
    machine = {"system": "gh200-nvl32", "gpus": 20, "slow_gpu": slow_gpu, "hardware": hardware}
    scenario = ScenarioSpec(**machine, model="olmoe", tokens=24, routing="dsv2-lite").build()
    problem = Problem.of(scenario.system, scenario.draw(1))
    renamed = problem.renamed(2)
    counted = LowerBound(scenario.system, scenario.layer, Costs.of(scenario.system, scenario.layer)).of(
        renamed.workload
    )
    assert counted == problem.bound == renamed.bound
    assert problem.renamed(0) is problem and renamed.renaming == 2


def test_names_of_gpus_move_a_makespan_a_little() -> None:
    scenario = ScenarioSpec(model="deepseek-v2-lite", tokens=64, routing="dsv2-lite").build()
    problem, schedule = Problem.of(scenario.system, scenario.draw(1)), load_schedule("dysharp")
    ends = [problem.renamed(renaming).run(schedule).engine.now_ps for renaming in range(4)]
    assert len(set(ends)) > 1 and max(ends) < 1.1 * min(ends)
