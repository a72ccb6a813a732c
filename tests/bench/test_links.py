"""The four writings of the links move the same and end together; two by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dysharp_env.bench import links
from dysharp_env.bench.links import (
    LinkProblem,
    Moved,
    link_rows,
    link_workload,
    run_engine,
    run_heap,
    run_lean_simpy,
    run_simpy,
    start_engine,
)

needs_simpy = pytest.mark.skipif(not links.has_simpy(), reason="SimPy comes with the dev extra")

# 10 ps a vector, 100 ps a hop, from 5 ps on.
ALONE = LinkProblem(targets=[[1], []], vector_ps=10, hop_ps=100, start_ps=5)
# Vectors leave GPU 0 at 5 and 15 and GPU 2 at 5, and are at the switch at 105, 115 and 105: downlink 1 sends until 135.
MET = LinkProblem(targets=[[1, 1], [], [1]], vector_ps=10, hop_ps=100, start_ps=5)
# The downlink of GPU 1 is idle from 115 to 125: GPU 0 first sends to GPU 2 twice.
IDLE = LinkProblem(targets=[[1, 2, 1], [], []], vector_ps=10, hop_ps=100, start_ps=5)
BY_HAND = [
    (ALONE, Moved(2, 5 + 100 + 10 + 100)),
    (MET, Moved(6, 135 + 100)),
    (IDLE, Moved(6, 25 + 100 + 10 + 100)),
    (LinkProblem([[], []], 10, 100, 5), Moved(0, 0)),
]


@pytest.mark.parametrize(("problem", "expected"), BY_HAND)
@pytest.mark.parametrize(
    "model", [run_heap, *(pytest.param(run, marks=needs_simpy) for run in (run_simpy, run_lean_simpy))]
)
def test_models_by_hand(model: Callable[..., Any], problem: LinkProblem, expected: Moved) -> None:
    assert model(problem) == expected


@pytest.mark.parametrize(("num_gpus", "tokens"), [(2, 5), (4, 16), (8, 64)])
def test_models_and_engine_move_the_same_and_end_together(num_gpus: int, tokens: int) -> None:
    run = start_engine(link_workload(num_gpus, tokens))
    problem = LinkProblem.of(run)
    moved = run_heap(problem)
    if links.has_simpy():
        assert run_simpy(problem) == run_lean_simpy(problem) == moved
    assert moved.transfers == 2 * sum(map(len, problem.targets)) > 0
    assert run_engine(run) == moved


def test_without_simpy_the_heap_loop_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "has_simpy", lambda: False)
    names = [row.name for row in link_rows(4, 16, 1)]
    assert [name.partition(": ")[2] for name in names] == [
        "engine",
        "heap loop",
        "engine over heap loop, transfers per CPU second",
    ]
