"""Distilled rules: the arithmetic, the networks, the C header and the file all choose alike."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.distillation.header import header
from agents.evaluation.contexts import record_decisions
from agents.evaluation.table import evaluate
from agents.opponents.read import learned_of, learned_rule, read_contender
from agents.policies.rule import WISHES, Linear, Rule, SplitRule, definition, read_rule
from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, Problem
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURE_MEANINGS, FEATURES, GEMM
from dysharp_env.workload.suite import load_suite

# One of them twice: of equals the first is taken.
SPLITS = ((8, 11), (1, 1), (1, 11), (4, 4), (16, 1), (16, 20), (4, 20, 32), (16, 4, 64), (4, 4))
SMS, TILE = 132, 128
PROBLEMS = Problem.of_suite(load_suite("smoke").draw())


WANTED = {
    "split_dispatch": Linear(constant=0.11, weights={"sent": -0.1, "free_sms": 0.02}),
    "split_combine": Linear(constant=0.01, weights={"gemm_done": 0.13}),
    "split_early": Linear(constant=0.0, weights={"sent": 0.4, "gemm_done": 0.2}),
}
ROWS = {
    "is_hold": Linear(constant=-1.0, weights={}),
    "size": Linear(constant=0.3, weights={"sent": 0.5, "l2_room": -0.25}),
    "is_partial": Linear(constant=-0.7, weights={"sent": 0.6}),
}


def rule(wishes: dict[str, Linear], rows: dict[str, Linear] | None = None) -> Rule:
    parts = [*wishes.values(), *(rows or {}).values()]
    names = dict.fromkeys(name for part in parts for name in part.weights)
    return Rule(
        name="r",
        schedule="dysharp-order",
        hold=True,
        partial_tiles=True,
        context={name: definition(name) for name in names},
        features={name: FEATURE_MEANINGS[name] for name in rows or {}},
        weights={} if rows is None else {"gemm": rows},
        split=SplitRule(offered=SPLITS, moments=4, wishes=wishes),
    )


@pytest.fixture(scope="module")
def contexts(steered_run: str) -> np.ndarray:
    """A thousand contexts, recorded and drawn."""
    (policy,) = learned_of(read_contender(steered_run))
    found = record_decisions(policy, PROBLEMS).contexts
    drawn = np.random.default_rng(0).uniform(0, 1, (1000, len(CONTEXT))).astype(np.float32)
    return np.concatenate([found, drawn])[:1000]


def values(linear: Linear, contexts: np.ndarray) -> np.ndarray:
    """Returns what is wanted in (decision, context) float32, summed in the table's order in float32 as in C."""
    total: np.ndarray = np.full(len(contexts), linear.constant, np.float32)
    for name, weight in sorted(linear.weights.items(), key=lambda item: CONTEXT.index(item[0])):
        total = total + np.float32(weight) * contexts[:, CONTEXT.index(name)]
    return total


def offered(mine: Rule) -> np.ndarray:
    """Returns the (split, wish) float32 features of the splits on offer."""
    rows = [
        (dispatch / SMS, combine / SMS, max(0.0, 1 - fewest / TILE)) for dispatch, combine, fewest in mine.triples()
    ]
    return np.array(rows, np.float32)


def choose(mine: Rule, contexts: np.ndarray) -> np.ndarray:
    """Returns the (decision,) rows taken in (decision, context) float32."""
    assert mine.split is not None
    total = np.zeros((len(contexts), len(mine.split.offered)), np.float32)
    for column, (name, wish) in enumerate(mine.split.wishes.items()):
        away = np.abs(offered(mine)[None, :, column] - values(wish, contexts)[:, None])
        total = total + np.float32(mine.split.distance[name]) * away
    return total.argmin(axis=1)


def scores_of(weights: dict[str, Linear], features: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Returns the (row,) float32 scores of (row, feature), each in its (row, context), summed in the table's order."""
    total: np.ndarray = np.zeros(len(features), np.float32)
    for name in sorted(weights, key=FEATURES.index):
        total = total + values(weights[name], contexts) * features[:, FEATURES.index(name)]
    return total


def test_a_worked_choice() -> None:
    context = np.zeros((2, len(CONTEXT)), np.float32)
    context[0, CONTEXT.index("sent")] = 1.0
    context[1, CONTEXT.index("gemm_done")] = 1.0
    # Wants 0.01 (1.3 of 132), 0.01 (1.3) and 0.4 early, then 0.11 (14.5), 0.14 (18.5) and 0.2: (1, 1) is 16 * 0.002 +
    # 11 * 0.002 + 0.4 away, (4, 4) 16 * 0.020 + 11 * 0.020 + 0.4; and then (16, 20) 16 * 0.011 + 11 * 0.012 + 0.2.
    assert choose(rule(WANTED), context).tolist() == [1, 5]


def test_the_network_takes_what_the_rule_takes(contexts: np.ndarray) -> None:
    mine = rule(WANTED)
    features = np.zeros((len(SPLITS), len(FEATURES)), np.float32)
    features[:, [FEATURES.index(name) for name in WISHES]] = offered(mine)
    network, chosen = mine.network(), choose(mine, contexts)
    assert len(np.unique(chosen)) >= 3
    for context, row in zip(contexts, chosen, strict=True):
        scores = network.scores(features, context)
        # Rounding may turn a tie of two splits.
        assert scores[row] >= scores.max() - 2e-5
        assert scores.argmax() == row or np.sort(scores)[-1] - np.sort(scores)[-2] < 0.01


def run_header(mine: Rule, main: str, given: np.ndarray, folder: Path) -> bytes:
    """Returns what a C program prints that includes a rule's header and reads float32 numbers."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (folder / "rule.h").write_text(header(mine))
    start = '#include <stdio.h>\n#include "rule.h"\nint main(void) {\n    struct dysharp_context c;\n'
    (folder / "main.c").write_text(f"{start}{main}    return 0;\n}}\n")
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O2", "-ffp-contract=off"]
    subprocess.run([compiler, *flags, "main.c", "-o", "main", "-lm"], cwd=folder, check=True)
    numbers = np.ascontiguousarray(given, np.float32).tobytes()
    return subprocess.run([str(folder / "main")], input=numbers, capture_output=True, check=True).stdout


def in_c(mine: Rule, *kinds: str) -> list[int]:
    """Returns the columns of what the structs of a rule's header hold: of the context, or of kinds' features."""
    if not kinds:
        return [place for place, name in enumerate(CONTEXT) if name in mine.context]
    return [place for kind in kinds for place, name in enumerate(FEATURES) if name in mine.weights[kind]]


def test_the_header_takes_what_the_rule_takes(contexts: np.ndarray, tmp_path: Path) -> None:
    mine = rule(WANTED)
    main = f'    while (fread(&c, sizeof c, 1, stdin) == 1) printf("%d\\n", dysharp_split(&c, {SMS}, {TILE}));\n'
    out = run_header(mine, main, contexts[:, in_c(mine)], tmp_path)
    assert [int(line) for line in out.split()] == choose(mine, contexts).tolist()


SCORING = """    struct dysharp_KIND_features f, w;
    while (fread(&c, sizeof c, 1, stdin) == 1 && fread(&f, sizeof f, 1, stdin) == 1) {
        w = dysharp_KIND_weights(&c);
        float score = dysharp_KIND_score(&w, &f);
        fwrite(&score, sizeof score, 1, stdout);
    }
"""


@pytest.mark.parametrize("kind", ["plan", "gemm"])
def test_the_header_scores_candidates_as_the_engine_does(
    kind: str, plan_rule: Rule, contexts: np.ndarray, tmp_path: Path
) -> None:
    features = np.random.default_rng(1).uniform(0, 1, (len(contexts), len(FEATURES))).astype(np.float32)
    told = contexts.copy()
    told[:, : len(DECISION_KINDS)] = np.arange(len(DECISION_KINDS)) == DECISION_KINDS.index(kind)
    given = np.concatenate([told[:, in_c(plan_rule)], features[:, in_c(plan_rule, kind)]], axis=1)
    out = run_header(plan_rule, SCORING.replace("KIND", kind), given, tmp_path)
    expected = scores_of(plan_rule.weights[kind], features, told)
    np.testing.assert_array_equal(np.frombuffer(out, np.float32), expected)
    # Without splits there is nothing beside the sum, so to the bit.
    network = plan_rule.opening() if kind == "plan" else plan_rule.network()
    assert network is not None
    pairs = zip(features[:200], told[:200], expected[:200], strict=True)
    assert all(network.scores(row[None], context) == score for row, context, score in pairs)


def test_the_header_scores_rows_beside_splits(contexts: np.ndarray, tmp_path: Path) -> None:
    mine = rule(WANTED, ROWS)
    features = np.random.default_rng(1).uniform(0, 1, (len(contexts), len(FEATURES))).astype(np.float32)
    given = np.concatenate([contexts[:, in_c(mine)], features[:, in_c(mine, "gemm")]], axis=1)
    out = run_header(mine, SCORING.replace("KIND", "gemm"), given, tmp_path)
    np.testing.assert_array_equal(np.frombuffer(out, np.float32), scores_of(ROWS, features, contexts))


def test_the_header_lists_plans_and_holds_rules_that_look_at_nothing(tmp_path: Path) -> None:
    bare = Rule(
        name="bare",
        schedule="dysharp-open",
        context={},
        features={"paid": "what is paid"},
        weights={"plan": {"paid": Linear(constant=-1.0, weights={})}, "combine": {}},
    )
    lines = header(bare).splitlines()
    assert [line for line in lines if line in (" *  0 pull-reduce", " * 15 mega-moe")] == [
        " *  0 pull-reduce",
        " * 15 mega-moe",
    ]
    assert "/* Of candidates of kind combine the first is taken. */" in lines
    main = """    c.none = 0.0f;
    struct dysharp_plan_features w = dysharp_plan_weights(&c), f = w;
    printf("%g", dysharp_plan_score(&w, &f));
"""
    assert run_header(bare, main, np.zeros(0), tmp_path) == b"1"


def test_the_network_scores_rows_as_the_rule_does(contexts: np.ndarray) -> None:
    features = np.zeros((6, len(FEATURES)), np.float32)
    columns = [FEATURES.index(name) for name in ROWS]
    features[:, columns] = np.random.default_rng(1).uniform(0, 1, (6, len(columns)))
    network = rule(WANTED, ROWS).network()
    for context in contexts[:50]:
        told = context.copy()
        told[: len(DECISION_KINDS)] = np.arange(len(DECISION_KINDS)) == GEMM
        scores = network.scores(features, told)
        expected = scores_of(ROWS, features, np.repeat(told[None], 6, axis=0))
        np.testing.assert_allclose(scores - scores[0], expected - expected[0], atol=1e-4)


def test_a_rule_takes_the_plan_that_it_scores_highest(plan_rule: Rule, rule_file: str) -> None:
    (player,) = learned_of(read_contender(rule_file))
    assert player.env.exposed == ("plan", "gemm") and plan_rule.kinds == ["plan", "gemm"]
    taken = set()
    for problem in PROBLEMS:
        waiting = problem.start(player.base, Exposure(("plan",))).waiting
        assert waiting is not None
        features = waiting.features[: waiting.num_candidates]
        scores = scores_of(plan_rule.weights["plan"], features, waiting.context[None])
        run = player.run(problem)
        assert run.schedule == run.offered.options[int(scores.argmax())]
        taken.add(int(scores.argmax()))
        assert run.engine.asked > 1  # rows too
    assert 0 not in taken


def test_a_file_is_a_contender(tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_text(json.dumps(rule(WANTED).model_dump(mode="json")))
    contender = read_contender(str(path))
    assert contender.identity == rule(WANTED) and contender.is_same_as(read_contender(str(path)))
    rows = evaluate(PROBLEMS, [contender], read_contender("dysharp-order"))
    assert len(rows) == 8 and all(row.makespan_us >= row.lower_bound_us for row in rows)
    again = record_decisions(learned_rule(rule(WANTED)), PROBLEMS)
    assert sum(row.asked for row in rows if row.policy == "r") == len(again.contexts)


CONSTANT = {"constant": 0.5, "weights": {}}
SENT = {"constant": 0.5, "weights": {"sent": 1.0}}
SPLIT = rule(WANTED).model_dump(mode="json")["split"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": {**SPLIT, "tie": "the last"}}, "tie=the last must be the first of the nearest splits"),
        ({"split": {**SPLIT, "distance": {}}}, "distance={} must be"),
        (
            {"split": {**SPLIT, "wishes": {"split_early": CONSTANT}}},
            "wishes=['split_early'] must be ['split_dispatch', ",
        ),
        ({"context": {}}, "context says nothing of ['free_sms', 'gemm_done', 'sent'], which the rule looks at"),
        ({"context": {"sennt": "x"}}, "the rule looks at ['sennt'], which is no context value"),
        ({"format": "dysharp/rule/2"}, "format='dysharp/rule/2'"),
        ({"split": None}, "weights and split say nothing, so the rule decides nothing"),
        ({"max_candidates": 8}, "max_candidates=8 must be at least 9 splits"),
        ({"weights": {"split": {}}}, "weights name ['split'], no kind that is weighed; choose from ['plan', "),
        ({"weights": {"gemm": {"paid": CONSTANT}}}, "weights.gemm names ['paid'], which it does not show; choose from"),
        ({"weights": {"gemm": {"size": CONSTANT}}}, "features says nothing of ['size'], which the rule looks at"),
        (
            {"weights": {"gemm": {"size": SENT}, "combine": {"size": CONSTANT}}, "features": {"size": "x"}},
            "weights: 'size' must depend on the context alike in ['gemm', 'combine']",
        ),
        (
            {"weights": {"dispatch": {"order": SENT}}, "features": {"order": "x"}},
            "weights: 'order' must depend on the context alike in ['split', 'dispatch']",
        ),
    ],
)
def test_a_mistake_in_a_file_is_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_text(json.dumps({**rule(WANTED).model_dump(mode="json"), **changes}))
    with pytest.raises(ConfigError) as error:
        read_rule(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_definition_stands_alone() -> None:
    assert definition("combine_in_flight").startswith("the same for the combine group as dispatch_in_flight: fraction")
    assert definition("sent") == "fraction of this GPU's tokens dispatched"
