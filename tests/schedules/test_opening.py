"""Decisions before the layer: which plans are legal, what is shown of plans and copies, and who answers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agents.check import fault_of
from agents.evaluation.decision_list import AskedSpec, DecisionList, routing_digest
from dysharp_env.config import ConfigError
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv
from dysharp_env.schedules import Exposure, LayerRun, Problem, ScheduleSpec, load_schedule
from dysharp_env.schedules.replication.choosing import SHOWN, Choosing, Work
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES, PLAN, REPLICATE
from dysharp_env.workload import ScenarioSpec, Workload
from dysharp_env.workload.placement import contiguous_placement
from dysharp_env.workload.suite import SuiteEntry
from tests.schedules.test_replication import layer_of

SCENARIO = {"system": "dgx-h200", "model": "olmoe", "gpus": 4, "tokens": 512, "routing": "dsv2-lite:1.9"}
BOTH = ("plan", "replicate")
FIRST = {"order": -1.0, "is_hold": -2.0}  # the first candidate until none is left
MOVE_ALL = {"planner": "rule", "slots": "any", "weights": "unicast"}


def copying(rule: dict[str, float], **changes: Any) -> ScheduleSpec:
    paid = ("launch", "fused_start", "count_exchange", "plan")
    base = load_schedule("fused-unicast")
    weights = {**base.rule.root, "replicate": rule}
    return base.with_changes(
        {"name": "copying", "replicate": MOVE_ALL, "pays.dispatch": paid, "rule": weights, **changes}
    )


def planning(*plans: Any, **changes: Any) -> ScheduleSpec:
    return copying(FIRST).with_changes({"name": "planning", "plans": plans, **changes})


def problem_of(**changes: Any) -> Problem:
    scenario = ScenarioSpec(**{**SCENARIO, **changes}).build()
    return Problem.of(scenario.system, scenario.draw(7))


def played(run: LayerRun, choose: Callable[[Any], int]) -> tuple[int, list[int]]:
    """Returns when a layer ends and what was chosen."""
    choices = []
    while (waiting := run.advance()) is not None:
        choices.append(choose(waiting))
        run.decide(choices[-1])
    return run.engine.now_ps, choices


def first_of(waiting: Any) -> int:
    return 0 if waiting.num_candidates > 1 else waiting.num_candidates - 1


def last_of(waiting: Any) -> int:
    return waiting.num_candidates - 1


def test_only_plans_that_the_machine_can_run_are_offered() -> None:
    schedule = planning("dysharp", "fused-unicast", {"schedule": "mega-moe", "chunk_tokens": 16})
    problem = problem_of()
    all_three = problem.offer(schedule, Exposure(("plan",))).plans
    assert [plan.schedule.name for plan in all_three] == ["dysharp", "fused-unicast", "planning[2]"]
    assert all_three[2].program.chunk_tokens == 16
    today = problem.system.with_changes({"switch.dispatch_primitives": ["unicast", "pull"]})
    fewer = Problem.of(today, problem.workload).offer(schedule, Exposure(("plan",))).plans
    assert [plan.schedule.name for plan in fewer] == ["fused-unicast", "planning[2]"]
    nothing = planning("dysharp", "dysharp-order")
    with pytest.raises(ConfigError, match="dgx-h200 can run none of its plans"):
        Problem.of(today, problem.workload).offer(nothing, Exposure(("plan",)))


def test_a_plan_is_asked_once_and_runs_as_its_schedule_would() -> None:
    problem, names = problem_of(), ("dysharp", "fused-unicast", "mega-moe")
    for place, name in enumerate(names):
        run = problem.start(planning(*names), Exposure(("plan",)))
        assert run.waiting is not None and run.waiting.kind == PLAN and run.waiting.num_candidates == 3
        with pytest.raises(RuntimeError, match="has not started"):
            _ = run.engine
        with pytest.raises(ValueError, match="masked"):
            run.decide(3)
        run.decide(place)
        assert played(run, first_of) == (problem.run(load_schedule(name)).engine.now_ps, [])
        assert run.schedule.name == name and run.offered.name == "planning"
        root = run.engine.state.root
        assert root["asked"][0] == 1 and root["decisions"][0] > 1


def test_what_is_shown_of_plans_tells_them_apart_and_knows_no_routing() -> None:
    schedule = planning("dysharp", "fused-unicast", "mega-moe", {})
    one, other = (problem_of(routing=routing) for routing in ("dsv2-lite:1.9", "uniform"))
    first, second = (problem.start(schedule, Exposure(("plan",))).waiting for problem in (one, other))
    assert first is not None and second is not None
    differ = {FEATURES[column] for column in np.flatnonzero((first.features != second.features).any(axis=0))}
    assert differ == {"copies_experts"}  # of an earlier batch
    rows = {name: first.features[:4, FEATURES.index(name)].tolist() for name in FEATURES}
    assert rows["multicasts"] == [1, 0, 0, 0] and rows["pulls"] == [0, 0, 1, 0] and rows["switch_sums"] == [1, 0, 0, 0]
    assert rows["per_expert"] == [0, 0, 1, 0] and rows["in_gemm"] == [0, 0, 1, 0]
    assert rows["paid"][3] > rows["paid"][1] > 0  # planning copies costs
    assert rows["links"][0] < rows["links"][1] < rows["links"][2]
    assert first.context[CONTEXT.index("is_plan")] == 1


def test_replicas_placed_before_are_a_plan_where_an_earlier_batch_is_known() -> None:
    placing = {"replicate": {"planner": "eplb", "slots": 1}}
    schedule = planning("fused-unicast", {"schedule": "fused-unicast", **placing}, "dysharp")
    known = problem_of(routing="deepseek-r1:0.5", model="deepseek-r1", tokens=128)
    unknown = replace(known, workload=replace(known.workload, history=None))
    for problem, legal in ((known, [0, 1, 2]), (unknown, [0, 2])):
        run = problem.start(schedule, Exposure(("plan",)))
        assert run.waiting is not None and run.waiting.num_candidates == 3
        assert np.flatnonzero(run.waiting.mask).tolist() == legal
        ends = [each.engine.run().now_ps for each in problem.under_each_plan(schedule, Exposure())]
        assert len(ends) == len(legal) and min(ends) >= problem.bound_under(schedule).total_ps
    placed = known.run(load_schedule("fused-unicast").with_changes(placing))
    assert (
        known.start(schedule, Exposure(("plan",))).waiting.features[:3, FEATURES.index("copies_experts")].argmax() == 1
    )
    (again,) = known.under_each_plan(schedule, Exposure(), [1])
    assert again.engine.run().now_ps == placed.engine.now_ps != known.run(load_schedule("fused-unicast")).engine.now_ps
    assert known.bound_under(schedule).total_ps == min(known.bound.total_ps, placed.lower_bound_ps)
    run = unknown.start(schedule, Exposure(("plan",)))
    with pytest.raises(ValueError, match="masked"):
        run.decide(1)
    # One that is left needs no asking; none that can be taken is told as the schedule alone would tell it.
    one = planning("fused-unicast", {"schedule": "fused-unicast", **placing})
    assert unknown.start(one, Exposure(("plan",))).waiting is None
    none = planning({"schedule": "fused-unicast", **placing}, {"schedule": "dysharp", **placing})
    with pytest.raises(ConfigError, match="planner=eplb needs the loads of an earlier batch"):
        unknown.start(none, Exposure(("plan",)))


def test_a_rule_or_a_network_chooses_the_plan_inside() -> None:
    problem = problem_of()
    schedule = planning("dysharp", "fused-unicast", "mega-moe", **{"rule": {"plan": {"pulls": 1.0}}})
    assert problem.run(schedule).schedule.name == "mega-moe"
    assert problem.run(schedule.with_changes({"rule": {}})).schedule.name == "dysharp"
    linear = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
    linear[CONTEXT.index("is_plan"), FEATURES.index("pulls")] = 1.0
    arrays = {name: np.zeros(shape, np.float32) for name, shape in Network.shapes(4).items()}
    network = Network(**{**arrays, "linear": linear})
    run = problem.start(schedule.with_changes({"rule": {}}), Exposure(("plan",), network=network))
    assert run.schedule.name == "mega-moe" and run.opening.asked == run.opening.decisions == 1


def three_gpus(*, stored_once: bool, slots: int = 6) -> Choosing:
    """Two experts a GPU; loads of 12, 2 and 4 tokens; a token takes 10 ps, weights cross a link in 90 ps."""
    wants = [0] * 5 + [1] * 3 + [0] * 3 + [1] + [2] * 2 + [4] * 4
    ids = np.array(wants)[:, None]
    workload = Workload(layer_of(6, 1), np.array([8, 6, 4]), ids, contiguous_placement(6, 3), "by hand")
    work = Work(np.arange(129) * 10, weights_ps=0, link_ps=90, stored_once=stored_once)
    return Choosing(workload, slots, work, bound_ps=1000)


@pytest.mark.parametrize("stored_once", [True, False])
def test_copies_by_hand(stored_once: bool) -> None:
    choosing = three_gpus(stored_once=stored_once)
    # The mean is 60 ps. GPU 0 has 60 more, GPU 1 room for 4 tokens and GPU 2 for 2; tokens of 0 and 1 live on GPU 1.
    shown = choosing.listed(31)
    assert choosing.moves.tolist() == [[0, 0, 1, 4], [1, 0, 1, 4]]
    values = dict(zip(SHOWN, shown.T.tolist(), strict=True))
    assert values["relief"] == pytest.approx([40 / 60] * 2) and values["room"] == pytest.approx([1, 1])
    assert values["gain"] == values["adds"] == pytest.approx([0.04**0.5] * 2)
    assert values["beyond"] == pytest.approx([0.06**0.5] * 2) and values["cost"] == pytest.approx([0.09**0.5] * 2)
    assert values["stays"] == [3 / 4, 1 / 4] and values["holders"] == pytest.approx([1 / 3] * 2)
    choosing.take(0)
    # GPU 0 has 20 ps more than the mean, GPU 2 room for them. Expert 0 has left its home already.
    shown = choosing.listed(31)
    assert choosing.moves.tolist() == [[0, 0, 2, 2], [1, 0, 2, 2]]
    crossings = (1, 2) if stored_once else (2, 2)
    assert shown[:, SHOWN.index("cost")] == pytest.approx([(0.09 * each) ** 0.5 for each in crossings])
    assert len(choosing.listed(1)) == 1
    choosing.take(0)
    assert len(choosing.listed(31)) == 0 and choosing.sharing.loads.tolist() == [6, 6, 6]
    assert choosing.sharing.copies == [(0, 1), (0, 2)]


def test_copies_need_a_slot_or_the_expert() -> None:
    choosing = three_gpus(stored_once=True, slots=0)
    assert len(choosing.listed(31)) == 0
    choosing.sharing.holds[1, 2] = True
    shown = choosing.listed(31)
    assert choosing.moves.tolist() == [[1, 0, 2, 2]] and shown[0, SHOWN.index("cost")] == 0


def test_few_tokens_of_an_expert_count_as_what_its_weights_take() -> None:
    choosing = three_gpus(stored_once=True)
    choosing._work = choosing._work._replace(weights_ps=50)
    # Work is 80 and 50, 50 and 50, of a mean of 76. Expert 1 may go whole. Weights take GPU 1 beyond the mean, however
    # few tokens of expert 0 come, so as many come as that time is enough for; what is left takes as long as weights do.
    shown = choosing.listed(31)
    assert choosing.moves.tolist() == [[1, 0, 1, 4], [0, 0, 1, 5]]
    assert shown[:, SHOWN.index("adds")] == pytest.approx([0.05**0.5] * 2)
    assert shown[:, SHOWN.index("gain")] == pytest.approx([0.05**0.5, 0.03**0.5])


def test_asked_copies_are_what_the_rule_would_choose() -> None:
    problem = problem_of()
    rule = {"gain": 1.0, "cost": -0.1, "stays": 0.1, "is_hold": -0.5}
    by_rule = problem.run(copying(rule))

    def best(waiting: Any) -> int:
        scores = sum(weight * waiting.features[:, FEATURES.index(name)].astype(float) for name, weight in rule.items())
        return int(np.where(waiting.mask, scores, -np.inf).argmax())

    run = problem.start(copying({}), Exposure(("replicate",)))
    assert run.waiting is not None and run.waiting.kind == REPLICATE
    end_ps, choices = played(run, best)
    assert end_ps == by_rule.engine.now_ps and len(choices) == run.opening.asked
    assert (run.engine.workload.topk_ids == by_rule.engine.workload.topk_ids).all()
    assert run.engine.workload.placement.num_copies > 0


def test_enough_at_once_leaves_the_layer_as_it_was() -> None:
    problem = problem_of()
    run = problem.start(copying(FIRST), Exposure(("replicate",)))
    end_ps, choices = played(run, last_of)
    assert len(choices) == 1 and run.engine.workload is problem.workload
    assert end_ps > problem.run(load_schedule("fused-unicast")).engine.now_ps  # planning is paid all the same


ENV = {**SCENARIO, "schedule": "", "exposed": BOTH}


@pytest.fixture
def env_settings(tmp_path: Any) -> dict[str, Any]:
    path = tmp_path / "planning.yaml"
    path.write_text(
        "name: planning\ndispatch: unicast\ncombine: unicast\nsms: {dispatch: 16, combine: 16}\n"
        "pays: {dispatch: [launch, count_exchange, plan]}\n"
        "replicate: {planner: rule, slots: any, weights: unicast}\n"
        "plans: [fused-unicast, {chunk_tokens: 16}, {chunk_tokens: 32}]\n"
    )
    return {**ENV, "schedule": str(path)}


def play_env(env: TokenScheduleEnv, choose: Callable[[np.ndarray], int]) -> list[tuple[float, int]]:
    told, over = [], False
    while not over:
        _, reward, over, _, info = env.step(choose(env.action_masks()))
        told.append((float(reward), info["kind"]))
    return told


def test_an_episode_of_plans_and_copies(env_settings: dict[str, Any]) -> None:
    env = TokenScheduleEnv(**env_settings)
    observation, info = env.reset(seed=3)
    assert info["kind"] == PLAN and info["action_mask"].sum() == 3 and info["time_us"] == 0
    assert env.observation_space.contains(observation)
    _, reward, over, _, info = env.step(1)
    assert reward == 0 and not over and info["kind"] == REPLICATE and info["asked"] == 1
    told = play_env(env, lambda mask: 0)
    assert all(reward == 0 for reward, _ in told[:-1]) and told[-1][0] < -1
    assert env.run.engine.workload.placement.num_copies > 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda env: pickle.loads(pickle.dumps(env))])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_copies_of_an_environment_play_on_alike(
    env_settings: dict[str, Any], copied: Callable[[Any], Any], steps: int
) -> None:
    env = TokenScheduleEnv(**env_settings)
    env.reset(seed=3)
    for _ in range(steps):
        env.step(1)
    other = copied(env)
    assert (other.action_masks() == env.action_masks()).all()
    expected = play_env(other, lambda mask: int(mask.argmax()))
    assert play_env(env, lambda mask: int(mask.argmax())) == expected  # the other has not moved it on


@pytest.mark.parametrize("copied", [lambda envs: envs, lambda envs: pickle.loads(pickle.dumps(envs))])
def test_the_vector_form_plays_the_same(env_settings: dict[str, Any], copied: Callable[[Any], Any]) -> None:
    envs = TokenScheduleVectorEnv(num_envs=3, **env_settings)
    singles = [TokenScheduleEnv(**env_settings) for _ in range(3)]
    envs.reset(seed=[1, 2, 3])
    for seed, single in enumerate(singles, start=1):
        single.reset(seed=seed)
    envs = copied(envs)
    rng, over = np.random.default_rng(0), np.zeros(3, bool)
    for _ in range(12):
        masks = envs.action_masks()
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        _, rewards, terminated, _, _ = envs.step(actions)
        for place, single in enumerate(singles):
            if not over[place]:
                assert (single.action_masks() == masks[place]).all()
                _, reward, ended, _, _ = single.step(int(actions[place]))
                assert reward == rewards[place] and ended == terminated[place]
        over |= terminated
        if over.any():
            break
    assert over.any()


def test_decision_lists_with_plans_and_copies_are_confirmed() -> None:
    exposure = Exposure((*BOTH, "gemm"))
    scenario = ScenarioSpec(**SCENARIO)
    workload = scenario.build().draw(7)
    problem = Problem.of(scenario.build().system, workload)
    run = problem.start(planning("fused-unicast", {}, {"chunk_tokens": 16}), exposure)
    rng = np.random.default_rng(1)
    end_ps, choices = played(run, lambda waiting: int(rng.choice(np.flatnonzero(waiting.mask))))
    decisions = DecisionList(
        policy="random",
        seed=None,
        workload=SuiteEntry(**scenario.model_dump()).name_of(scenario.build(), workload),
        scenario=scenario,
        workload_seed=7,
        routing_sha256=routing_digest(workload),
        schedule=run.offered,
        asked=AskedSpec.of(exposure),
        choices=tuple(choices),
        makespan_ps=end_ps,
    )
    assert fault_of(decisions) is None
    assert fault_of(decisions.with_changes({"makespan_ps": end_ps + 1})) is not None
