"""Pending events come out in the order of time, kind and sequence, wherever they wait."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numba import njit

from dysharp_env.simulator.jit.rows import rows
from dysharp_env.simulator.kernel import events
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.lowering import WHEEL_SPAN_PS
from dysharp_env.simulator.state.records import ROOT
from tests.conftest import Case


@njit
def push_event(roots: np.ndarray, time_ps: int, kind: int, a: int, b: int, c: int) -> None:
    events.push(rows(roots.ctypes.data, ROOT)[0], time_ps, kind, a, b, c)


@njit
def pop_event(roots: np.ndarray) -> tuple[int, int, int, int, int]:
    s = rows(roots.ctypes.data, ROOT)[0]
    s.now_ps = events.next_ps(s)
    kind, a, b, c = events.pop(s)
    return s.now_ps, kind, a, b, c


@njit
def next_event_ps(roots: np.ndarray) -> int:
    return events.next_ps(rows(roots.ctypes.data, ROOT)[0])


@pytest.fixture
def roots(random_case: Callable[[int], Case]) -> Iterator[np.ndarray]:
    """The root of a layer whose first event, the only one, has been taken out."""
    engine = random_case(0).engine()
    assert pop_event(engine.state.root)[1] == codes.EV_GATE
    yield engine.state.root


# How far ahead events lie: within a slot, within a turn of the wheel, around its end, and far beyond.
SPANS_PS = (0, 3, 700, 40_000, WHEEL_SPAN_PS - 1, WHEEL_SPAN_PS + 5000, 40 * WHEEL_SPAN_PS)


@pytest.mark.parametrize("seed", range(6))
def test_events_come_in_order(roots: np.ndarray, seed: int) -> None:
    rng = random.Random(seed)
    expected: list[tuple[int, int, int, int, int, int]] = []
    now_ps, sequence = int(roots["now_ps"][0]), 0
    for _ in range(4000):
        if expected and (rng.random() < 0.5 or len(expected) > 500):
            time_ps, kind, _, a, b, c = heapq.heappop(expected)
            assert next_event_ps(roots) == time_ps
            assert pop_event(roots) == (time_ps, kind, a, b, c)
            now_ps = time_ps
        else:
            time_ps = now_ps + rng.randint(0, rng.choice(SPANS_PS))
            kind, a, b, c = rng.randrange(16), rng.randrange(1000), rng.randrange(-1, 1000), rng.randrange(1000)
            heapq.heappush(expected, (time_ps, kind, sequence, a, b, c))
            push_event(roots, time_ps, kind, a, b, c)
            sequence += 1
    assert roots["wheel_size"][0] > 0 and roots["heap_size"][0] > 0
    while expected:
        time_ps, kind, _, a, b, c = heapq.heappop(expected)
        assert pop_event(roots) == (time_ps, kind, a, b, c)
    assert next_event_ps(roots) == codes.NOTHING
    # Rows of the pool are used again.
    assert roots["pool_used"][0] < 1000


def test_equal_times_are_served_by_kind_and_then_in_turn(roots: np.ndarray) -> None:
    now_ps = int(roots["now_ps"][0])
    for kind, a in ((5, 0), (2, 1), (5, 2), (2, 3), (9, 4)):
        push_event(roots, now_ps + 10, kind, a, 0, 0)
    assert [pop_event(roots)[1:3] for _ in range(5)] == [(2, 1), (2, 3), (5, 0), (5, 2), (9, 4)]
