"""Distilling: which values explain a policy, what is fitted, and what the command writes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import distil as command
from agents.distillation.fitting import MOST_VALUES, Weighing, choose_names, explained, fit
from agents.distillation.opening import Openings, drawn_layers
from agents.evaluation.contexts import Decisions, record_decisions
from agents.opponents.read import best_of, learned_of, read_contender
from agents.policies.candidate_policy import CandidatePolicy
from agents.policies.linear import FEATURES_OF_KIND
from agents.policies.rule import WISHES, Linear, Rule
from agents.training.genome import SHAPES
from agents.training.run_folder import RunFolder
from dysharp_env.bench.layers import random_network
from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, DISPATCH, FEATURES, GEMM, PLAN, REPLICATE
from dysharp_env.workload.suite import load_suite


def decisions(wanted: Callable[..., Any]) -> Decisions:
    """Returns decisions in random contexts, in which a policy got just what ``wanted`` says of each."""
    rng = np.random.default_rng(0)
    contexts = rng.uniform(0, 1, (500, len(CONTEXT))).astype(np.float32)
    columns = {name: contexts[:, place] for place, name in enumerate(CONTEXT)}
    return Decisions(contexts, np.stack(wanted(columns), axis=1), np.full(500, 1 / 500), np.array([*WISHES.values()]))


def test_a_linear_policy_is_found_again() -> None:
    seen = decisions(lambda c: (0.1 - 0.05 * c["sent"], 0.02 + 0.1 * c["gemm_done"], 0 * c["sent"]))
    names = choose_names(seen, 2)
    assert names == ["gemm_done", "sent"]  # 11 * 0.1 moves further than 16 * 0.05
    wishes = fit(seen, names)
    dispatch = wishes["split_dispatch"]
    assert isinstance(dispatch, Linear) and dispatch.constant == pytest.approx(0.1, abs=1e-4)
    assert dispatch.weights == pytest.approx({"gemm_done": 0.0, "sent": -0.05}, abs=1e-4)
    assert explained(seen, names) == pytest.approx(1, abs=1e-4)
    assert explained(seen, names[:1]) < 0.9


def test_every_workload_counts_the_same(steered_run: str) -> None:
    problems = Problem.of_suite(load_suite("smoke").draw())
    (policy,) = learned_of(read_contender(steered_run))
    seen = record_decisions(policy, problems)
    assert seen.weights.sum() == pytest.approx(1)
    assert len(np.unique(seen.chosen, axis=0)) > 2
    alone = [record_decisions(policy, [problem]) for problem in problems]
    assert seen.mean_context == pytest.approx(np.mean([one.mean_context for one in alone], axis=0))


def test_weights_that_kinds_share_are_found_again() -> None:
    """Least squares gives back a linear network's weights, and none that would change what split is taken."""
    rng = np.random.default_rng(0)
    contexts = rng.uniform(0, 1, (400, len(CONTEXT))).astype(np.float32)
    contexts[:, : len(DECISION_KINDS)] = np.eye(len(DECISION_KINDS))[rng.choice([DISPATCH, GEMM], 400)]
    seen = Decisions(contexts, np.zeros((400, 3)), np.full(400, 1 / 400), np.ones(3))
    linear = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
    order, ruled, waiting = map(FEATURES.index, ("order", "ruled", "waiting"))
    linear[[DISPATCH, GEMM], order], linear[[DISPATCH, GEMM], ruled], linear[GEMM, waiting] = (-1.0, 2.0), 1.0, 0.25
    linear[CONTEXT.index("sent"), order], linear[CONTEXT.index("l2_room"), waiting] = 0.5, -2.0
    network = replace(Network.nothing(), linear=linear)
    weighing = Weighing.of(network, ("dispatch", "gemm"), seen)
    names = weighing.choose_names(2)
    assert names == ["l2_room", "sent"]  # 2 in one kind moves further than 0.5 in two
    weights = weighing.fit(names)
    assert {kind: [*features] for kind, features in weights.items()} == {
        "dispatch": ["order", "ruled"],
        "gemm": ["order", "waiting", "ruled"],
    }
    of_order = weights["gemm"]["order"]
    assert of_order.constant == pytest.approx(2, abs=1e-4) and of_order.weights == pytest.approx(
        {"sent": 0.5}, abs=1e-4
    )
    assert weights["dispatch"]["order"].weights == of_order.weights
    assert weights["dispatch"]["ruled"].weights == weights["gemm"]["ruled"].weights == {}
    beside_splits = Weighing.of(network, ("split", "gemm"), seen).fit(names)["gemm"]
    assert beside_splits["order"].weights == {} and beside_splits["waiting"].weights
    # In the mean of the contexts it weighs as much as before.
    mean = seen.of_kind(GEMM).mean_context[CONTEXT.index("sent")]
    assert beside_splits["order"].constant == pytest.approx(2 + 0.5 * mean, abs=1e-4)


def openings(linear: np.ndarray) -> Openings:
    """Returns decisions on plans and copies, of random features and contexts, by (context, feature) weights."""
    rng = np.random.default_rng(0)
    contexts = np.zeros((240, len(CONTEXT)), np.float32)
    contexts[:, [PLAN, REPLICATE]] = np.eye(2)[rng.integers(0, 2, 240)]
    contexts[:, [CONTEXT.index(name) for name in SHAPES]] = rng.uniform(0, 1, (240, len(SHAPES)))
    features = np.zeros((240, 6, len(FEATURES)), np.float32)
    for kind in ("plan", "replicate"):
        mine = contexts[:, DECISION_KINDS.index(kind)] > 0
        columns = [FEATURES.index(name) for name in FEATURES_OF_KIND[kind]]
        features[np.ix_(mine, range(5), columns)] = rng.uniform(0, 1, (mine.sum(), 5, len(columns)))
    scores = np.full((240, 6), -np.inf)
    scores[:, :5] = np.einsum("dcf,df->dc", features[:, :5], contexts @ linear)
    return Openings(("plan", "replicate"), features, contexts, scores)


def test_what_openings_depend_on_is_found_again() -> None:
    linear = np.zeros((len(CONTEXT), len(FEATURES)))
    links, order, relief = map(FEATURES.index, ("links", "order", "relief"))
    linear[[PLAN, PLAN, REPLICATE], [links, order, relief]] = 6.0, -4.0, 5.0
    linear[CONTEXT.index("l2_room"), links] = -12.0
    linear[CONTEXT.index("hbm_share"), [links, order]] = 3.0
    seen = openings(linear)
    assert {*seen.varying} == {*SHAPES}
    assert seen.choose_names(2) == ["l2_room", "hbm_share"]
    rule = Rule(
        name="r",
        schedule="dysharp",
        context=dict.fromkeys(SHAPES, "x"),
        features=dict.fromkeys(FEATURES, "x"),
        weights=seen.fit(["l2_room", "hbm_share"]),
    )
    network = rule.opening()
    assert network is not None and seen.agreement(network) > 0.97
    assert seen.agreement(Network.nothing()) < 0.5
    assert {*rule.weights["replicate"]} <= {*FEATURES_OF_KIND["replicate"]} and "ruled" not in rule.weights["plan"]
    found = network.linear[[PLAN, REPLICATE, CONTEXT.index("l2_room")], [links, relief, links]]
    np.testing.assert_allclose(found, (6, 5, -12), rtol=0.2)


def test_a_policy_is_watched_before_layers(plan_run: str) -> None:
    (policy,) = learned_of(read_contender(plan_run))
    layers = [*drawn_layers(load_suite("smoke"), 5, seed=3)]
    assert len(layers) == 5 and len({layer.size for layer in layers}) > 1
    seen = Openings.watch(policy, layers)
    assert seen.kinds == ("plan",) and len(seen.scores) == 5
    for layer, scores in zip(layers, seen.scores, strict=True):
        run = policy.run(layer)
        assert run.schedule == run.offered.options[int(scores.argmax())]
    assert len({*seen.scores.argmax(axis=1)}) > 1 and policy.opening
    assert seen.agreement(policy.opening) == 1


def test_it_writes_a_rule_that_plays(linear_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "rule", tmp_path / "d.json"
    suites = ["--suite", "smoke", "--validation", "smoke"]
    assert command.main([linear_run, *suites, "--values", "4", "--out", str(out), "--json", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "explained" in shown and "CPU seconds" in shown
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 5 and sum(row["chosen"] for row in rows) == 1
    best = min(rows, key=lambda row: row["rule_ratio"])
    assert best["chosen"] and [len(row["names"]) for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["agrees"] is None for row in rows)
    rule = read_contender(str(out / "rule.json")).identity
    assert isinstance(rule, Rule) and rule.split and [*rule.split.wishes] == [*WISHES] and rule.name == "steered-rule"
    assert "dysharp_split(" in (out / "rule.h").read_text()


def test_rows_are_weighed_as_the_policy_weighs_them(row_run: str) -> None:
    (policy,) = learned_of(read_contender(row_run))
    problems = Problem.of_suite(load_suite("smoke").draw())
    rule = command.Teacher(policy, [], problems, 2).rule(2, "r")
    assert rule.hold and rule.partial_tiles and rule.split and rule.kinds == ["split", "gemm"]
    assert {*rule.weights["gemm"]} == {"size", "is_hold"}
    contexts = record_decisions(policy, problems).of_kind(GEMM).contexts
    np.testing.assert_allclose(contexts @ rule.network().linear, contexts @ policy.network.linear, atol=1e-3)


def test_plans_are_chosen_as_the_policy_chooses_them(plan_run: str, tmp_path: Path) -> None:
    out, file = tmp_path / "rule", tmp_path / "d.json"
    suites = ["--suite", "smoke", "--layers-of", "smoke", "--validation", "smoke", "--layers", "16"]
    assert command.main([plan_run, *suites, "--values", "2", "--out", str(out), "--json", str(file)]) == 0
    document = json.loads(file.read_text())
    assert document["config"]["layers"] == 16
    rows = document["rows"]
    assert [row["explained"] for row in rows] == [None] * 3 and rows[2]["agrees"] == 1 > rows[0]["agrees"]
    assert rows[2]["rule_ratio"] == pytest.approx(rows[2]["policy_ratio"], abs=1e-4)
    (policy,), (rule,) = (learned_of(read_contender(given)) for given in (plan_run, str(out / "rule.json")))
    assert rule.env.exposed == ("plan", "gemm") and rule.opening is not None
    # Each plan's own rule is still what is refined.
    ruled = FEATURES.index("ruled")
    assert rule.network.linear[GEMM, ruled] == policy.network.linear[GEMM, ruled] == 1
    text = (out / "rule.h").read_text()
    assert all(part in text for part in ("dysharp_plan_score(", "dysharp_gemm_score(", " * 15 mega-moe\n"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--values", "-1"), f"values=-1 must be 0 to {MOST_VALUES}"),
        (("--layers", "0"), "layers=0 must be at least 1"),
        (("--layers-of", "smokey"), "suite='smokey' is unknown"),
    ],
)
def test_a_mistake_is_one_line(
    given: tuple[str, str], message: str, linear_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([linear_run, *given, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_what_is_never_asked_cannot_be_distilled(linear_run: str) -> None:
    """Where all SMs communicate there are no groups, so no splits: the plan decides that."""
    (policy,) = learned_of(read_contender(linear_run))
    problems = Problem.of_suite(load_suite("smoke").draw())[:1]
    env = policy.env.model_copy(update={"schedule": "dysharp-tuned"})
    played = problems[0].run(load_schedule("dysharp-tuned")).schedule
    assert played.sms.in_gemm
    with pytest.raises(ConfigError, match="over 'dysharp-tuned' the policy is asked nothing in these 1 layers"):
        command.Teacher(replace(policy, env=env), [], problems, 1)
    more = replace(policy, env=env.model_copy(update={"exposed": ("split", "gemm")}))
    with pytest.raises(ConfigError, match="asked for no split in the layers it plays"):
        command.Teacher(more, [], problems, 1)


def test_what_is_no_rule_is_refused(row_run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "network"
    shutil.copytree(row_run, folder)
    card = best_of(row_run)[1]
    deep = CandidatePolicy.of_network(random_network(4), card.env)
    RunFolder(folder).save_best(deep, card.model_copy(update={"policy": deep.spec}))
    assert command.main([str(folder), "--out", str(tmp_path / "x")]) == 2
    assert "weighs rows or chunks by a network; a rule holds linear weights" in capsys.readouterr().err
