from __future__ import annotations

import json
from dataclasses import replace

import pytest

from agents import latency
from agents.evaluation.kernel_cost import decision_us, multiply_adds
from agents.opponents.players import best_row
from agents.policies.linear import FEATURES_OF_KIND
from agents.policies.rule import Linear, Rule, linear_network
from agents.training.genome import SHAPES
from dysharp_env.bench.layers import random_network
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Starter, load_schedule
from dysharp_env.workload import ScenarioSpec


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_SHOWN", 3)


def test_it_measures_every_way_to_answer(few: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main(["--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "dysharp/latency/1"
    names = [row["name"] for row in document["rows"]]
    assert names[:2] == ["one answer, predict of Stable-Baselines3", "one answer, the scorer in torch"]
    # Of each kind that the first decisions are of: in the engine, multiply-adds, and the estimate.
    assert all("width 64" in name for name in names[2:]) and len(names) > 4 and len(names) % 3 == 1
    assert all(row["value"] > 0 for row in document["rows"])
    assert all(row["cpu_s"] > 0 for row in document["rows"] if "candidates" not in row["name"])


def test_it_measures_a_trained_policy(few: None, steered_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main(["--policy", steered_run, "--json", "-"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert len(names) == 5 and "split, network of width 6, 8 candidates" in names[-1]
    assert latency.main(["--policy", "dysharp"]) == 2
    assert capsys.readouterr().err == "error: policy='dysharp' must be one run folder or a rule's .json\n"


def test_it_measures_what_decides_on_plans(
    monkeypatch: pytest.MonkeyPatch, plan_run: str, rule_file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "_SHOWN", 3)
    for given in (plan_run, rule_file):
        assert latency.main(["--policy", given, "--json", "-"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"][-6:]
        # The plan is one decision, and rows come after it.
        assert [row["name"].split(", ")[1] for row in rows] == ["plan"] * 3 + ["gemm"] * 3
        assert rows[0]["value"] > 0 and 0.2 < rows[2]["value"] < 0.5
        assert "16 candidates" in rows[2]["name"]


def test_a_lent_network_answers_what_it_would_in_a_layer() -> None:
    """What is timed in the engine is what the slow arithmetic chooses."""
    spec, network = ScenarioSpec(tokens=32), random_network(8)
    scenario = spec.build()
    schedule = load_schedule("dysharp")
    env = EnvSpec(tokens=32)
    asked = Starter(scenario.system, scenario.layer, schedule, exposure=env.exposure()).start(scenario.draw(0)).engine
    exposure = replace(env.exposure(), network=network)
    state = Starter(scenario.system, scenario.layer, schedule, exposure=exposure).start(scenario.draw(0)).engine.state
    for _ in range(50):
        decision = asked.advance()
        assert decision is not None
        state.features[:], state.context[:], state.mask[:] = decision.features, decision.context, decision.mask
        state.root["num_candidates"] = decision.num_candidates
        row = best_row(network, decision)
        assert latency.answer_often(state.root, 3) == 3 * row
        asked.decide(row)


def test_an_estimate_counts_what_is_not_zero() -> None:
    network = linear_network([Linear(constant=0.1, weights={"sent": 0.5}), *[Linear(constant=0.1, weights={})] * 2])
    # One weight of the context both ways; for each candidate six features, distances both ways and their sum.
    assert multiply_adds(network, "split", 10) == 2 + 10 * 4 * 6
    # A read, one addition of the context, 24 of a candidate in each of two turns of lanes, and six shuffles.
    assert decision_us(network, "split", 33) == pytest.approx((270 + 4 * (1 + 2 * 24) + 6 * 30) / 1.7e3)
    assert decision_us(network, "split", 33) < decision_us(random_network(64), "split", 33)
    # Wishes tell no two rows apart, so a kernel that chooses rows leaves them out: a read, and shuffles for the best.
    assert multiply_adds(network, "gemm", 10) == 0
    assert decision_us(network, "gemm", 10) == pytest.approx((270 + 5 * 30) / 1.7e3)


def test_a_distilled_choice_of_plans_takes_less_than_half_a_microsecond() -> None:
    """Every feature of a plan, each weighed by all that is known of a layer: 6 values for 21 weights."""
    values = dict.fromkeys((*SHAPES, "imbalance"), 1.0)
    names = FEATURES_OF_KIND["plan"]
    weights = dict.fromkeys(names, Linear(constant=1.0, weights=values))
    described = {"context": dict.fromkeys(values, "x"), "features": dict.fromkeys([*names, "size"], "x")}
    size = {"size": Linear(constant=1.0, weights={})}
    rule = Rule(name="r", schedule="dysharp-tuned", weights={"plan": weights, "gemm": size}, **described)
    opening = rule.opening()
    assert opening is not None and len(names) == 21
    assert multiply_adds(opening, "plan", 32) == 6 * 21 + 32 * 21
    # A read, a weight a lane, which lanes tell each other, a candidate a lane, and five shuffles for the best.
    assert decision_us(opening, "plan", 32) == pytest.approx((270 + 4 * (6 + 21) + (1 + 5) * 30) / 1.7e3)
    assert decision_us(opening, "plan", 32) < 0.5
    # Rows are another network's, and what a kind does not show costs it nothing: of what plans show, rows have four.
    assert multiply_adds(rule.network(), "gemm", 32) == 32 and multiply_adds(opening, "gemm", 32) == 4 * (6 + 32)
