"""Look-ahead: never later than the rule, within its budget, and made of decisions that anybody can play again."""

from __future__ import annotations

import numpy as np
import pytest

from agents import evaluate as command
from agents.opponents.lookahead import LookAhead, look_ahead, play_ahead, rank
from agents.opponents.rollouts import makespans_ps
from dysharp_env.schedules import Exposure, Problem, ScheduleSpec, load_schedule
from dysharp_env.schedules.sections import RuleSpec
from dysharp_env.simulator.state.observation import FEATURES, RULE_FEATURES
from dysharp_env.workload.suite import SuiteSpec, load_suite

ENTRIES = [
    {"model": "olmoe", "gpus": 4, "tokens": 40, "routing": "dsv2-lite", "seeds": [0, 2]},
    {"model": "deepseek-v2-lite", "gpus": 8, "tokens": 48, "routing": "uniform", "seeds": [0, 1]},
]
WORKLOADS = Problem.of_suite(SuiteSpec(name="tiny", workloads=ENTRIES).draw())


def random_rule(seed: int) -> ScheduleSpec:
    """Returns DySHARP with a random rule that may hold and close tiles early; some weights are 0, so scores tie."""
    rng = np.random.default_rng(seed)
    rule = {
        kind: {feature: round(float(weight), 1) for feature, weight in zip(RULE_FEATURES, weights, strict=True)}
        for kind, weights in zip(("dispatch", "gemm", "combine"), rng.normal(size=(3, len(RULE_FEATURES))), strict=True)
    }
    base = load_schedule("dysharp")
    return base.model_copy(
        update={"rule": RuleSpec(**rule), "hold": bool(seed % 2), "partial_tiles": True, "chunk_tokens": 4}
    )


@pytest.mark.parametrize("schedule", [load_schedule("dysharp"), random_rule(0), random_rule(1)])
def test_it_never_ends_later_than_its_rule_and_often_sooner(schedule: ScheduleSpec) -> None:
    rule_ps = makespans_ps([schedule], WORKLOADS)[0]
    ends = [look_ahead(workload, LookAhead(schedule, rollouts=200)) for workload in WORKLOADS]
    for end, alone_ps in zip(ends, rule_ps, strict=True):
        assert end.rule_ps == alone_ps and end.makespan_ps <= alone_ps
        assert 0 < end.rollouts <= 200
        assert (end.makespan_ps < alone_ps) == (end.improvements > 0)
    assert sum(end.improvements for end in ends) > 0


@pytest.mark.parametrize("seed", range(4))
def test_without_alternatives_it_is_the_rule_bit_for_bit(seed: int) -> None:
    schedule = random_rule(seed)
    for workload in WORKLOADS:
        engine = workload.engine(schedule).run()
        ahead = LookAhead(schedule, candidates=1)
        played = workload.engine(schedule, ahead.exposure())
        end = play_ahead(played, ahead)
        assert (end.makespan_ps, played.decisions) == (engine.now_ps, engine.decisions)
        assert end.rollouts == end.improvements == 0


def test_its_choices_played_again_give_its_makespan() -> None:
    schedule = random_rule(1)
    ahead = LookAhead(schedule, rollouts=100, kinds=("gemm",))
    end = look_ahead(WORKLOADS[0], ahead)
    engine = WORKLOADS[0].engine(schedule, Exposure(("gemm",), hold=schedule.hold, partial_tiles=True))
    for choice in end.choices:
        assert engine.advance() is not None
        engine.decide(choice)
    assert engine.advance() is None and engine.now_ps == end.makespan_ps


def test_rollouts_are_spread_over_the_layer() -> None:
    few, many = (look_ahead(WORKLOADS[0], LookAhead(load_schedule("dysharp"), rollouts=n)) for n in (10, 10_000))
    assert 5 <= few.rollouts <= 10 < many.rollouts


def test_candidates_are_ranked_by_score_and_equals_by_place() -> None:
    engine = WORKLOADS[0].engine(load_schedule("dysharp"), Exposure(("dispatch",)))
    decision = engine.advance()
    assert decision is not None
    weights = np.zeros((4, len(FEATURES)))
    assert rank(weights, decision).tolist() == np.flatnonzero(decision.mask).tolist()
    weights[:, FEATURES.index("order")] = 1.0
    assert rank(weights, decision).tolist() == np.flatnonzero(decision.mask).tolist()[::-1]


def test_evaluate_takes_it_as_a_policy(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--suite", "smoke", "--policy", "look-ahead:dysharp-l2", "--policy", "dysharp-l2", "--rollouts", "20"]
    assert command.main(argv) == 0
    assert "look-ahead:dysharp-l2" in capsys.readouterr().out
    assert command.main([*argv, "--rollouts", "0"]) == 2
    assert capsys.readouterr().err == "error: rollouts=0 must be at least 1\n"
    assert command.main(["--suite", "smoke", "--policy", "look-ahead:dyshap"]) == 2
    assert "did you mean 'dysharp'?" in capsys.readouterr().err


def test_over_plans_it_plays_on_with_the_rule_of_the_plan() -> None:
    problem = Problem.of_suite(load_suite("smoke").draw())[0]
    schedule = load_schedule("dysharp-tuned")
    found = look_ahead(problem, LookAhead(schedule, rollouts=60))
    assert found.rule_ps == problem.run(schedule).engine.now_ps
    assert found.makespan_ps <= found.rule_ps and 0 < found.rollouts <= 60
