"""What decisions show is what the tables say: each feature for its kinds, and every value in its range."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, ENGINE_KINDS, FEATURE_TABLE, KINDS
from tests.conftest import Case


def test_the_engine_shows_a_feature_for_its_kinds_and_no_other(random_case: Callable[[int], Case]) -> None:
    seen = {kind: np.zeros(len(FEATURE_TABLE), bool) for kind in ENGINE_KINDS}
    for seed in range(60):
        kinds = frozenset(range(len(DECISION_KINDS)))
        asking = {"exposed": kinds, "network": None, "networked": frozenset(), "max_candidates": 32}
        case, rng = random_case(seed).with_program(**asking), np.random.default_rng(seed)
        engine = case.engine(logging=False)
        while (asked := engine.advance()) is not None:
            shown = asked.features[: asked.num_candidates]
            assert (shown >= 0).all() and (shown <= 1).all() and (asked.features[asked.num_candidates :] == 0).all()
            assert (asked.context >= 0).all() and (asked.context <= 1).all()
            seen[DECISION_KINDS[asked.kind]] |= (shown != 0).any(axis=0)
            engine.decide(int(rng.choice(np.flatnonzero(asked.mask))))
    for kind, found in seen.items():
        expected = {feature.name for feature in FEATURE_TABLE if kind in feature.kinds}
        assert {feature.name for feature, is_there in zip(FEATURE_TABLE, found, strict=True) if is_there} == expected


def test_tables_name_each_thing_once_and_kinds_come_first_in_the_context() -> None:
    names = [feature.name for feature in FEATURE_TABLE]
    assert len(set(names)) == len(names) and len(set(CONTEXT)) == len(CONTEXT)
    assert CONTEXT[: len(DECISION_KINDS)] == tuple(f"is_{kind}" for kind in DECISION_KINDS)
    assert list(KINDS) == list(DECISION_KINDS)
    assert all(feature.kinds and set(feature.kinds) <= set(DECISION_KINDS) for feature in FEATURE_TABLE)
