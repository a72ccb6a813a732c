"""Tables of plans: what playing each by hand takes, losses worked by hand, and that what is learnable is learned."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agents.policies.linear import FEATURES_OF_KIND
from agents.training.plan_table import PlanTable, Promising, choose, fit_plans, fit_rule, losses_of, play_plans
from dysharp_env.schedules import Exposure, Problem, ScheduleSpec, load_schedule
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES
from dysharp_env.workers import Threads
from dysharp_env.workload import ScenarioSpec

PLANS = ("dysharp", "fused-unicast", {"schedule": "mega-moe", "chunk_tokens": 16})


def planning(*plans: Any) -> ScheduleSpec:
    return load_schedule("fused-unicast").with_changes({"name": "planning", "plans": plans})


def problems() -> list[Problem]:
    """Returns a layer on the modelled machine, and one on a machine whose switch replicates nothing."""
    scenario = ScenarioSpec(model="olmoe", gpus=4, tokens=24, routing="dsv2-lite").build()
    today = scenario.system.with_changes({"switch.dispatch_primitives": ["unicast", "pull"]})
    return [
        Problem.of(scenario.system, scenario.draw(0), name="one"),
        Problem.of(today, scenario.draw(1), name="today"),
    ]


def test_a_table_holds_what_each_plan_takes_by_itself() -> None:
    schedule, layers = planning(*PLANS), problems()
    table = play_plans(layers, schedule, Exposure())
    alone = [load_schedule("dysharp"), load_schedule("fused-unicast")]
    alone += [load_schedule("mega-moe").with_changes({"chunk_tokens": 16, "best_of": ()})]
    able = (alone, alone[1:])
    ends = [[problem.run(each).engine.now_ps for each in plans] for problem, plans in zip(layers, able, strict=True)]
    # The machine of today has one plan less, and its rows close up.
    assert table.names == ("one", "today") and table.makespans_ps[:, :3].tolist() == [ends[0], [*ends[1], 0]]
    assert table.makespans_ps.shape == (2, Exposure().max_candidates)
    assert table.legal.sum(axis=1).tolist() == [3, 2]
    for row, problem in enumerate(layers):
        waiting = problem.start(schedule, Exposure(("plan",))).waiting
        assert waiting is not None
        np.testing.assert_array_equal(table.features[row], waiting.features)
        np.testing.assert_array_equal(table.context[row], waiting.context)
    with Threads(2) as workers:
        again = play_plans(layers, schedule, Exposure(), workers)
    assert (again.makespans_ps == table.makespans_ps).all() and (again.features == table.features).all()


def test_where_one_plan_is_left_there_is_nothing_to_show() -> None:
    table = play_plans(problems()[1:], planning("dysharp", "fused-unicast"), Exposure())
    expected = problems()[1].run(load_schedule("fused-unicast")).engine.now_ps
    assert table.makespans_ps[0, 0] == expected and table.legal.sum() == 1
    assert not table.features.any() and not table.losses.any()


def made_up(makespans_ps: Any, features: np.ndarray, context: np.ndarray | None = None) -> PlanTable:
    rows = len(makespans_ps)
    told = np.zeros((rows, len(CONTEXT)), np.float32) if context is None else context
    return PlanTable(tuple(map(str, range(rows))), features, told, np.array(makespans_ps))


def nothing_shown(rows: int, plans: int) -> np.ndarray:
    return np.zeros((rows, plans, len(FEATURES)), np.float32)


def test_losses_are_logs_above_the_best_plan_s() -> None:
    table = made_up([[100, 200, 0], [450, 150, 300]], nothing_shown(2, 3))
    expected = np.log([[1, 2, 1], [3, 1, 2]])
    np.testing.assert_allclose(table.losses, expected, atol=1e-12)
    np.testing.assert_allclose(losses_of(table, lambda row: 1), expected[:, 1], atol=1e-12)
    both = table.joined(made_up([[5, 10, 20]], nothing_shown(1, 3)))
    assert both.names == ("0", "1", "0") and both.makespans_ps.tolist()[2] == [5, 10, 20]
    np.testing.assert_allclose(both.losses, [*expected, *np.log([[1, 2, 4]])], atol=1e-12)


def by_context() -> PlanTable:
    """Returns layers of which the long ones want the plan that pulls, the others another; some have a third plan."""
    rng = np.random.default_rng(0)
    features, context = nothing_shown(12, 4), rng.random((12, len(CONTEXT))).astype(np.float32)
    features[:, 1, FEATURES.index("pulls")] = features[:, 2, FEATURES.index("in_gemm")] = 1
    is_long = np.arange(12) % 2 == 0
    context[:, CONTEXT.index("link_share")] = np.where(is_long, 0.8, 0.2)
    makespans_ps = np.zeros((12, 4), np.int64)
    makespans_ps[:, 0], makespans_ps[:, 1] = 1000, np.where(is_long, 800, 1300)
    makespans_ps[:4, 2] = 2000
    return made_up(makespans_ps, features, context)


def test_a_network_learns_what_depends_on_the_layer() -> None:
    table = by_context()
    fit = fit_plans(table, width=8, seed=1, steps=150)
    assert fit.loss == fit.worst == 0
    assert [choose(fit.network, table, row) for row in range(12)] == [1, 0] * 6
    untaught = fit_plans(table, width=8, seed=1, steps=1, rate=1e-9)
    lost = losses_of(table, lambda row: choose(untaught.network, table, row))
    assert untaught.loss == pytest.approx(lost.mean()) and untaught.worst == lost.max() > 0


def test_a_rule_learns_what_depends_on_the_plan_alone() -> None:
    rng = np.random.default_rng(2)
    features = nothing_shown(40, 6)
    columns = [FEATURES.index(name) for name in ("links", "paid")]
    features[:, :, columns] = rng.random((40, 6, 2))
    worth = features[:, :, columns].astype(float) @ [3.0, 1.0]
    makespans_ps = np.round(1e6 * np.exp(worth)).astype(np.int64)
    makespans_ps[:20, 4:] = 0
    rule, fit = fit_rule(made_up(makespans_ps, features), seed=0, restarts=2, generations=120)
    assert fit.worst < 0.03 and {*rule} <= {*FEATURES_OF_KIND["plan"]}
    assert rule["links"] < rule["paid"] < 0 and max(map(abs, rule.values())) == 1
    # Of layers that want different plans of one look, it can only serve most.
    _, blind = fit_rule(by_context(), seed=0, restarts=2, generations=20)
    assert blind.loss == pytest.approx(np.log(1000 / 800) / 2)


def test_promising_plans_are_those_that_score_highest_and_a_few_more() -> None:
    schedule, layers = planning(*PLANS), problems()
    whole = play_plans(layers, schedule, Exposure())
    links = FEATURES.index("links")
    linear = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
    linear[CONTEXT.index("is_plan"), links] = -1.0
    by_links = replace(Network.nothing(1), linear=linear)
    (first,) = np.argsort(whole.features[0, :3, links])[:1].tolist()
    some = play_plans(layers, schedule, Exposure(), promising=Promising(by_links, 1, 0, (0,)))
    assert np.flatnonzero(some.legal[0]).tolist() == [first]
    np.testing.assert_array_equal(some.makespans_ps[0, first], whole.makespans_ps[0, first])
    np.testing.assert_array_equal(some.features, whole.features)
    # One more at random, the same again for the same seed, not always the same.
    drawn = [np.flatnonzero(_played(layers, schedule, by_links, seed).legal[0]).tolist() for seed in (0, 0, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] and all(len(each) == 2 and first in each for each in drawn)
    assert len({*map(tuple, drawn)}) == 2
    everything = play_plans(layers, schedule, Exposure(), promising=Promising(by_links, 1, 9, (0,)))
    assert (everything.makespans_ps == whole.makespans_ps).all()


def _played(layers: list[Problem], schedule: ScheduleSpec, network: Network, seed: int) -> PlanTable:
    return play_plans(layers[:1], schedule, Exposure(), promising=Promising(network, 1, 1, (seed,)))


def test_of_plans_that_nobody_played_none_is_chosen() -> None:
    table = made_up([[100, 0, 200]], np.ones((1, 3, len(FEATURES)), np.float32))
    linear = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
    assert choose(replace(Network.nothing(1), linear=linear), table, 0) == 0
    table.features[0, :, 0] = [0, 2, 1]
    linear[0, 0], table.context[0, 0] = 1.0, 1.0
    assert choose(replace(Network.nothing(1), linear=linear), table, 0) == 2  # the second scores highest
    assert table.losses[0].tolist() == [0, 0, pytest.approx(np.log(2))]
