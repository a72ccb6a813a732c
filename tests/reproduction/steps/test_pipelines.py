from __future__ import annotations

from collections import Counter

import pytest

from dysharp_env.reproduction.steps.pipelines import PassTimes, dualpipe, one_forward_one_backward
from dysharp_env.reproduction.steps.streams import makespan_ps, run_streams


def test_one_forward_one_backward_by_hand() -> None:
    spans = run_streams(one_forward_one_backward(stages=2, micro_batches=3, forward_ps=1, backward_ps=2))
    first = {name: span for name, span in spans.items() if name[1] == "0"}
    last = {name: span for name, span in spans.items() if name[1] == "1"}
    assert last == {
        "F1.0": (1, 2),
        "B1.0": (2, 4),
        "F1.1": (4, 5),
        "B1.1": (5, 7),
        "F1.2": (7, 8),
        "B1.2": (8, 10),
    }
    assert first == {
        "F0.0": (0, 1),
        "F0.1": (1, 2),
        "B0.0": (4, 6),
        "F0.2": (6, 7),
        "B0.1": (7, 9),
        "B0.2": (10, 12),
    }


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 1), (1, 5), (4, 2), (4, 4), (16, 120)])
def test_one_forward_one_backward_has_the_known_bubble(stages: int, micro_batches: int) -> None:
    ops = one_forward_one_backward(stages, micro_batches, forward_ps=3, backward_ps=5)
    assert makespan_ps(ops) == (micro_batches + stages - 1) * (3 + 5)


def test_dualpipe_by_hand() -> None:
    spans = run_streams(dualpipe(2, 4, PassTimes(forward_ps=10, backward_ps=20, weights_ps=8, pair_ps=22)))
    # A node holds stage 0 of its own end and stage 1 of the other; both nodes do the same at the same time.
    for node in range(2):
        assert [spans[f"node {node}, {position}"] for position in range(8)] == [
            (0, 10),  # forward, near end
            (10, 20),  # forward, far end: the other node finished it at 10
            (20, 30),  # forward near, not yet overlapped ...
            (30, 50),  # ... with backward far
            (50, 72),  # forward far with backward near
            (72, 92),  # backward far
            (92, 104),  # backward near, without gradients of weights
            (104, 112),
        ]
    assert len(spans) == 2 * 8


@pytest.mark.parametrize(("stages", "micro_batches"), [(2, 4), (4, 8), (8, 20), (16, 120)])
def test_dualpipe_runs_every_pass_once_and_has_the_published_bubble(stages: int, micro_batches: int) -> None:
    times = PassTimes(forward_ps=10, backward_ps=20, weights_ps=10, pair_ps=30)
    ops = list(dualpipe(stages, micro_batches, times))
    # Pairs that cost what their passes cost: every node is busy for its share, and waits what the report says.
    busy = Counter()
    for op in ops:
        busy[op.stream] += op.duration_ps
    assert set(busy.values()) == {micro_batches * (10 + 20)}
    bubble = (stages // 2 - 1) * (times.pair_ps + times.backward_ps - 3 * times.weights_ps)
    assert makespan_ps(ops) == micro_batches * 30 + bubble


def test_dualpipe_pairs_all_but_what_fills_and_drains() -> None:
    times = PassTimes(forward_ps=10, backward_ps=20, weights_ps=8, pair_ps=25)
    pairs = Counter(op.stream for op in dualpipe(8, 20, times) if op.duration_ps == times.pair_ps)
    # By the published order: 2 (10 - 8 + place + 1) + (4 - place - 1), one fewer in the middle.
    assert [pairs[f"node {node}"] for node in range(8)] == [9, 10, 11, 11, 11, 11, 10, 9]


@pytest.mark.parametrize(("stages", "micro_batches"), [(3, 8), (4, 9), (4, 6)])
def test_dualpipe_needs_even_and_enough(stages: int, micro_batches: int) -> None:
    with pytest.raises(ValueError, match=f"not {stages} and {micro_batches}"):
        next(dualpipe(stages, micro_batches, PassTimes(1, 2, 1, 3)))
