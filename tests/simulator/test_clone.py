"""A clone plays on as its original would have, and neither notices the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dysharp_env.simulator.batch import Batch
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes, records
from dysharp_env.simulator.state.state import CONSTANT_ARRAYS
from tests.conftest import Case


def play_on(engine: Engine, rng: np.random.Generator, most: int = 10**9) -> list[Any]:
    """Answers at most so many decisions at random; returns what was shown of each."""
    shown = []
    waiting = engine.advance() if engine.status == codes.RUN else engine.status == codes.ASK
    while waiting and len(shown) < most:
        mask = engine.state.mask
        shown.append((engine.state.features.copy(), engine.state.context.copy(), mask.copy(), engine.now_ps))
        engine.decide(int(rng.choice(np.flatnonzero(mask))))
        waiting = engine.advance()
    return shown


def assert_same_story(mine: list[Any], other: list[Any]) -> None:
    assert len(mine) == len(other)
    for ours, theirs in zip(mine, other, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def assert_same_state(mine: Engine, other: Engine) -> None:
    for name in ("root", *records.ARRAYS):
        if name not in ("root", "heap"):
            assert getattr(mine.state, name).tobytes() == getattr(other.state, name).tobytes(), name
    addresses = [name for name in records.ROOT.names if name.endswith("_at")]
    for name in records.ROOT.names:
        if name not in addresses:
            assert mine.state.root[name].tobytes() == other.state.root[name].tobytes(), name


@pytest.mark.parametrize("group", range(6))
def test_a_clone_equals_its_original_step_for_step(random_case: Callable[[int], Case], group: int) -> None:
    cases = [random_case(seed) for seed in range(group * 12, group * 12 + 12)]
    for seed, case in enumerate(case for case in cases if case.program.exposed):
        engine = case.engine()
        play_on(engine, np.random.default_rng(seed), most=int(np.random.default_rng(seed).integers(0, 12)))
        clone = engine.clone()
        assert_same_state(engine, clone)
        # The clone runs to its end before the original moves; then the original must not have noticed.
        of_clone = play_on(clone, np.random.default_rng(99))
        assert_same_story(of_clone, play_on(engine, np.random.default_rng(99)))
        assert_same_state(engine, clone)
        assert engine.done and clone.done


def test_only_what_never_changes_is_shared(random_case: Callable[[int], Case]) -> None:
    engine = next(case for case in map(random_case, range(60)) if case.program.exposed).engine()
    engine.advance()
    clone = engine.clone()
    for name in ("root", *records.ARRAYS):
        mine, other = getattr(engine.state, name), getattr(clone.state, name)
        assert (mine is other) == (name in CONSTANT_ARRAYS), name
    before = {name: getattr(engine.state, name).tobytes() for name in CONSTANT_ARRAYS}
    play_on(engine, np.random.default_rng(0))
    assert {name: getattr(engine.state, name).tobytes() for name in CONSTANT_ARRAYS} == before


def test_a_layer_left_to_its_rule_ends_as_if_nothing_had_been_asked(random_case: Callable[[int], Case]) -> None:
    asked = 0
    for case in (case for case in map(random_case, range(60)) if case.program.exposed and not case.program.network):
        engine = case.engine()
        asked += engine.advance() is not None
        engine.follow_rule()
        if engine.status == codes.RUN:
            engine.advance()
        alone = case.with_program(exposed=frozenset()).engine().run()
        assert engine.done and engine.now_ps == alone.now_ps
        assert engine.state.tokens.tobytes() == alone.state.tokens.tobytes()
    assert asked > 10


def test_clones_of_a_waiting_layer_may_be_seated_in_a_batch(random_case: Callable[[int], Case]) -> None:
    case = next(case for case in map(random_case, range(60)) if case.program.exposed)
    engine = case.engine()
    engine.advance()
    batch = Batch(3, case.program.max_candidates)
    for copy in range(3):
        batch.place(copy, engine.clone())
    choice = int(np.flatnonzero(engine.state.mask)[0])
    batch.answer(np.ones(3, bool), np.full(3, choice))
    batch.advance()
    engine.decide(choice)
    engine.advance()
    assert (batch.now_ps == engine.now_ps).all() and (batch.status == engine.status).all()
    np.testing.assert_array_equal(batch.features[2], engine.state.features)
