"""Layers in a batch play what they play alone, whatever lies beside them, on one thread or two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dysharp_env.simulator.batch import Batch
from dysharp_env.simulator.state import codes
from tests.conftest import Case


def candidates_of(cases: list[Case], size: int) -> list[Case]:
    """Returns the first cases whose decisions show so many candidates."""
    return [case for case in cases if case.program.max_candidates == size]


def alone(case: Case, seed: int) -> tuple[Any, ...]:
    """Plays a case with random answers; returns the engine and what its decisions showed."""
    engine, rng, shown = case.engine(), np.random.default_rng(seed), []
    while (decision := engine.advance()) is not None:
        shown.append((decision.kind, decision.gpu, decision.features.copy(), decision.context.copy()))
        engine.decide(int(rng.choice(np.flatnonzero(decision.mask))))
    return engine, shown


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_of_unlike_layers_plays_each_as_it_would_play_alone(
    random_case: Callable[[int], Case], threads: int
) -> None:
    cases = candidates_of([random_case(seed) for seed in range(60)], 32)[:12]
    assert len({case.workload.num_gpus for case in cases}) > 2
    batch = Batch(len(cases), 32, threads)
    expected = [alone(case, seed) for seed, case in enumerate(cases)]
    streams = [np.random.default_rng(seed) for seed in range(len(cases))]
    places = [0] * len(cases)
    for copy, case in enumerate(cases):
        batch.place(copy, case.engine())
    batch.advance()
    while (batch.status == codes.ASK).any():
        waiting = batch.status == codes.ASK
        choices = np.zeros(len(cases), np.int64)
        for copy in np.flatnonzero(waiting):
            kind, gpu, features, context = expected[copy][1][places[copy]]
            assert (batch.kind[copy], batch.gpu[copy]) == (kind, gpu)
            np.testing.assert_array_equal(batch.features[copy], features)
            np.testing.assert_array_equal(batch.context[copy], context)
            choices[copy] = streams[copy].choice(np.flatnonzero(batch.mask[copy]))
            places[copy] += 1
        batch.answer(waiting, choices)
        batch.advance()
    for copy, (engine, shown) in enumerate(expected):
        assert places[copy] == len(shown)
        mine = batch.engines[copy]
        assert mine.done and mine.now_ps == engine.now_ps
        assert mine.state.tokens.tobytes() == engine.state.tokens.tobytes()
        assert mine.state.log[: mine.state.root["log_size"][0]].tobytes() == (
            engine.state.log[: engine.state.root["log_size"][0]].tobytes()
        )
    batch.close()


def test_a_layer_keeps_its_state_when_another_takes_its_seat(random_case: Callable[[int], Case]) -> None:
    case = next(case for case in map(random_case, range(60)) if case.program.exposed)
    batch = Batch(2, case.program.max_candidates)
    first = case.engine()
    batch.place(1, first)
    batch.advance()
    assert first.status == codes.ASK
    shown = batch.features[1].copy()
    batch.place(1, case.with_program(exposed=frozenset()).engine())
    batch.advance()
    assert batch.status[1] == codes.DONE and first.status == codes.ASK
    np.testing.assert_array_equal(first.state.features, shown)
    first.decide(0)
    while first.advance() is not None:
        first.decide(0)
    other = case.engine()
    while other.advance() is not None:
        other.decide(0)
    assert first.now_ps == other.now_ps


def test_a_stuck_layer_is_reported(random_case: Callable[[int], Case]) -> None:
    cases = (case.with_program(early_ps=0) for case in map(random_case, range(60)))  # whose event comes after the start
    case = next(case for case in cases if not case.program.exposed)
    engine = case.engine()
    engine.state.root["heap_size"] = 0
    batch = Batch(1, case.program.max_candidates)
    batch.place(0, engine)
    with pytest.raises(RuntimeError, match="the schedule is stuck at 0 ps"):
        batch.advance()
