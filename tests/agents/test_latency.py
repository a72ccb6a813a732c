from __future__ import annotations

import json

import pytest

from agents import latency
from agents.evaluation.kernel_cost import decision_us, multiply_adds
from agents.opponents.players import best_row
from agents.policies.rule import Linear, linear_network
from dysharp_env.bench.layers import random_network
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
    assert all("width 64" in name for name in names[2:]) and len(names) == 7
    assert all(row["value"] > 0 for row in document["rows"])
    assert all(row["cpu_s"] > 0 for row in document["rows"] if "candidates" not in row["name"])


def test_it_measures_a_trained_policy(few: None, steered_run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main(["--policy", steered_run, "--json", "-"]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert len(names) == 5 and "width 6, 8 candidates" in names[-1]
    assert latency.main(["--policy", "dysharp"]) == 2
    assert capsys.readouterr().err == "error: policy='dysharp' must be one run folder or a rule's .json\n"


def test_a_lent_network_answers_what_it_would_in_a_layer() -> None:
    """What is timed in the engine is what the slow arithmetic chooses."""
    spec, network = ScenarioSpec(tokens=32), random_network(8)
    scenario = spec.build()
    schedule = load_schedule("dysharp")
    env = latency.EnvSpec(tokens=32)
    asked = Starter(scenario.system, scenario.layer, schedule, exposure=env.exposure()).start(scenario.draw(0)).engine
    exposure = latency.replace(env.exposure(), network=network)
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
    assert multiply_adds(network, 10) == 2 + 10 * 4 * 6
    # A read, one addition of the context, 24 of a candidate in each of two turns of lanes, and six shuffles.
    assert decision_us(network, 33) == pytest.approx((270 + 4 * (1 + 2 * 24) + 6 * 30) / 1.7e3)
    assert decision_us(network, 33) < decision_us(random_network(64), 33)
