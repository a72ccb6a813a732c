"""Ablations: what is held is what is said, and the whole policy is the policy."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents import ablate as command
from agents.ablate import GROUPS, WHOLE, ablations, hold
from agents.evaluation.table import evaluate
from agents.opponents.players import LateLearned, Learned
from agents.opponents.read import read_contender
from agents.policies.rule import Linear, linear_network
from dysharp_env.bench.layers import random_network
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import Problem
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES
from dysharp_env.workload.suite import load_suite


def test_groups_hold_every_context_value_once() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(CONTEXT[len(DECISION_KINDS) :])


def test_a_held_value_is_what_it_is_held_at() -> None:
    rng, network = np.random.default_rng(0), random_network(8)
    features, context = (rng.uniform(0, 1, shape).astype(np.float32) for shape in ((6, len(FEATURES)), len(CONTEXT)))
    context[: len(DECISION_KINDS)] = np.eye(len(DECISION_KINDS))[0]
    means = rng.uniform(0, 1, len(CONTEXT))
    held = hold(network, ("sent", "l2_room"), means)
    told, other = context.copy(), context.copy()
    for name in ("sent", "l2_room"):
        told[CONTEXT.index(name)] = means[CONTEXT.index(name)]
        other[CONTEXT.index(name)] = 0.123
    expected = network.scores(features, told)
    assert held.scores(features, context) == pytest.approx(expected, rel=1e-4)
    assert held.scores(features, other).tolist() == held.scores(features, context).tolist()
    assert network.scores(features, context) != pytest.approx(expected, rel=1e-4)


def test_what_can_be_taken_away_is() -> None:
    env = EnvSpec(exposed=("split",), splits=((8, 11), (4, 4), (4, 4, 32)), split_moments=2)
    policy = Learned(None, env, random_network(8))
    names = [*ablations(policy, np.zeros(len(CONTEXT)))]
    assert names == [WHOLE, *(f"{group} held" for group in GROUPS), "no early closing", "first split only"]
    late = policy.env.model_copy(update={"splits": ((8, 11), (4, 4)), "split_moments": 0})
    assert [*ablations(replace(policy, env=late), np.zeros(len(CONTEXT)))] == names[:-2]
    rows = env.model_copy(update={"exposed": ("split", "gemm"), "hold": True, "partial_tiles": True})
    found = ablations(replace(policy, env=rows), np.zeros(len(CONTEXT)))
    assert [*found][len(names) - 2 :] == [
        *("no early closing", "no waiting", "first split only", "no split decisions", "no gemm decisions")
    ]
    assert found["no split decisions"].env.exposed == ("gemm",) and not found["no waiting"].env.hold
    assert not found["no early closing"].env.partial_tiles and found["no early closing"].env.splits == ((8, 11), (4, 4))


# With few tokens a layer is over before a split that comes late is missed.
SUITE = """
name: one
description: One layer of many tokens.
workloads:
  - {system: dgx-h100, model: deepseek-v2-lite, tokens: 256, routing: uniform, seeds: [0, 1]}
"""


def test_table_and_json(steered_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, suite = tmp_path / "a.json", tmp_path / "one.yaml"
    suite.write_text(SUITE)
    assert command.main([steered_run, "--suite", str(suite), "--means", "smoke", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "progress held" in out and "first split only" in out and "CPU seconds" in out
    document = json.loads(file.read_text())
    played = {
        name: [row["makespan_us"] for row in document["rows"] if row["policy"] == name]
        for name in (line["policy"] for line in document["summary"])
    }
    assert played["one moment late"] != played[WHOLE]
    assert played["progress held"] != played[WHOLE] != played["first split only"]
    # The whole policy is the policy, and one that is asked once for all GPUs answers once.
    contender = read_contender(steered_run)
    rows = evaluate(Problem.of_suite(load_suite(str(suite)).draw()), [contender], read_contender("dysharp"))
    assert played[WHOLE] == [row.makespan_us for row in rows if row.policy == contender.name]
    assert {row["asked"] for row in document["rows"] if row["policy"] == "first split only"} == {1}


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["dysharp", "--suite", "smoke"]) == 2
    expected = "error: policy='dysharp' has not learned; name a run folder or a rule's .json\n"
    assert capsys.readouterr().err == expected


def test_late_splits_are_those_of_the_moment_before() -> None:
    """A policy that always wants one split is never late; one that wants another at each moment is."""
    problems = Problem.of_suite(load_suite("smoke").draw()[:1])
    env = EnvSpec(exposed=("split",), splits=((8, 11), (2, 2)), split_moments=2)
    always = [Linear(constant=0.1, weights={})] * 3
    changing = [Linear(constant=0.1, weights={"sent": -0.1})] * 2 + always[:1]
    for wishes, is_late in ((always, False), (changing, True)):
        policy = Learned(None, env, linear_network(wishes))
        late = LateLearned(None, env, policy.network)
        assert (late.play(problems) != policy.play(problems)) == is_late


def test_plans_are_taken_off_the_offer() -> None:
    env = EnvSpec(schedule="dysharp-open", exposed=("plan",), model="olmoe", gpus=4, tokens=16)
    problem = Problem.of_suite(load_suite("smoke").draw())[0]
    wants_pulls = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
    wants_pulls[CONTEXT.index("is_plan"), FEATURES.index("in_gemm")] = 1.0
    opening = replace(Network.nothing(1), linear=wants_pulls)
    policy = Learned(0, env, Network.nothing(1), opening)
    found = ablations(policy, np.zeros(len(CONTEXT)))
    assert policy.run(problem).schedule.sms.in_gemm
    barred = found["no plan with GEMMs that communicate"].run(problem)
    assert not barred.schedule.sms.in_gemm and barred.opening.asked == 1
    assert found["no plan with bulk copies"].run(problem).schedule == policy.run(problem).schedule
    assert "no plan with replicas or copies" not in found  # there is none in this schedule
