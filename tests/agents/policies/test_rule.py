"""Distilled rules: the arithmetic, the network, the C header and the file all choose alike."""

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
from agents.opponents.players import Learned
from agents.opponents.read import learned_of, read_contender
from agents.policies.rule import WISHES, Linear, RowRule, Rule, definition, read_rule
from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES, GEMM
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
ROWS = RowRule(
    hold=True,
    partial_tiles=True,
    features={"is_hold": "1 for hold", "size": "tokens", "is_partial": "1 for an open tile"},
    weights={
        "is_hold": Linear(constant=-1.0, weights={}),
        "size": Linear(constant=0.3, weights={"sent": 0.5, "l2_room": -0.25}),
        "is_partial": Linear(constant=-0.7, weights={"sent": 0.6}),
    },
)


def rule(wishes: dict[str, Linear], rows: RowRule | None = None) -> Rule:
    parts = [*wishes.values(), *(rows.weights.values() if rows else ())]
    names = dict.fromkeys(name for part in parts for name in part.weights)
    return Rule(
        name="r",
        schedule="dysharp-order",
        splits=SPLITS,
        split_moments=4,
        context={name: definition(name) for name in names},
        wishes=wishes,
        rows=rows,
    )


@pytest.fixture(scope="module")
def contexts(steered_run: str) -> np.ndarray:
    """A thousand contexts, recorded and drawn."""
    (policy,) = learned_of(read_contender(steered_run))
    found = record_decisions(policy, PROBLEMS).contexts
    drawn = np.random.default_rng(0).uniform(0, 1, (1000, len(CONTEXT))).astype(np.float32)
    return np.concatenate([found, drawn])[:1000]


def values(linear: Linear, contexts: np.ndarray) -> np.ndarray:
    """Returns what is wanted in (decision, context) float32, summed in order in float32 as in C."""
    total: np.ndarray = np.full(len(contexts), linear.constant, np.float32)
    for name, weight in linear.weights.items():
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
    total = np.zeros((len(contexts), len(mine.splits)), np.float32)
    for column, (name, wish) in enumerate(mine.wishes.items()):
        away = np.abs(offered(mine)[None, :, column] - values(wish, contexts)[:, None])
        total = total + np.float32(mine.distance[name]) * away
    return total.argmin(axis=1)


def scores_of(rows: RowRule, features: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Returns the (row,) float32 scores of (row, feature), each in its (row, context)."""
    total: np.ndarray = np.zeros(len(features), np.float32)
    for name, weight in rows.weights.items():
        total = total + values(weight, contexts) * features[:, FEATURES.index(name)]
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


def test_the_header_takes_what_the_rule_takes(contexts: np.ndarray, tmp_path: Path) -> None:
    mine = rule(WANTED)
    main = f'    while (fread(&c, sizeof c, 1, stdin) == 1) printf("%d\\n", dysharp_split(&c, {SMS}, {TILE}));\n'
    columns = contexts[:, [CONTEXT.index(name) for name in mine.context]]
    out = run_header(mine, main, columns, tmp_path)
    assert [int(line) for line in out.split()] == choose(mine, contexts).tolist()


def test_the_header_scores_rows_as_the_rule_does(contexts: np.ndarray, tmp_path: Path) -> None:
    main = (
        "    struct dysharp_row r;\n"
        "    while (fread(&c, sizeof c, 1, stdin) == 1 && fread(&r, sizeof r, 1, stdin) == 1) {\n"
        "        float score = dysharp_row_score(&c, &r);\n        fwrite(&score, sizeof score, 1, stdout);\n    }\n"
    )
    mine = rule(WANTED, ROWS)
    features = np.random.default_rng(1).uniform(0, 1, (len(contexts), len(FEATURES))).astype(np.float32)
    columns = contexts[:, [CONTEXT.index(name) for name in mine.context]]
    given = np.concatenate([columns, features[:, [FEATURES.index(name) for name in ROWS.features]]], axis=1)
    out = run_header(mine, main, given, tmp_path)
    np.testing.assert_array_equal(np.frombuffer(out, np.float32), scores_of(ROWS, features, contexts))


def test_the_network_scores_rows_as_the_rule_does(contexts: np.ndarray) -> None:
    features = np.zeros((6, len(FEATURES)), np.float32)
    columns = [FEATURES.index(name) for name in ROWS.features]
    features[:, columns] = np.random.default_rng(1).uniform(0, 1, (6, len(columns)))
    network = rule(WANTED, ROWS).network()
    for context in contexts[:50]:
        told = context.copy()
        told[: len(DECISION_KINDS)] = np.arange(len(DECISION_KINDS)) == GEMM
        scores = network.scores(features, told)
        expected = scores_of(ROWS, features, np.repeat(told[None], 6, axis=0))
        np.testing.assert_allclose(scores - scores[0], expected - expected[0], atol=1e-4)


def test_a_file_is_a_contender(tmp_path: Path) -> None:
    path = tmp_path / "rule.json"
    path.write_text(json.dumps(rule(WANTED).model_dump(mode="json")))
    contender = read_contender(str(path))
    assert contender.identity == rule(WANTED) and contender.is_same_as(read_contender(str(path)))
    rows = evaluate(PROBLEMS, [contender], read_contender("dysharp-order"))
    assert len(rows) == 8 and all(row.makespan_us >= row.lower_bound_us for row in rows)
    network = rule(WANTED).network()
    again = record_decisions(Learned(None, rule(WANTED).env(), network), PROBLEMS)
    assert sum(row.asked for row in rows if row.policy == "r") == len(again.contexts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie": "the last"}, "tie=the last must be the first of the nearest splits"),
        ({"distance": {}}, "distance={} must be"),
        (
            {"wishes": {"split_early": {"constant": 0.5, "weights": {}}}},
            "wishes=['split_early'] must be ['split_dispatch', ",
        ),
        ({"context": {}}, "context says nothing of ['free_sms', 'gemm_done', 'sent'], which the rule looks at"),
        ({"context": {"sennt": "x"}}, "the rule looks at ['sennt'], which is no context value"),
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
