"""Which weights a GPU fetches ahead: what it is asked and when, what that shows, and that no layer waits for ever."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, load_schedule
from dysharp_env.schedules.sections import RuleSpec
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.observation import FEATURES, PREFETCH
from dysharp_env.simulator.state.state import State
from dysharp_env.system import load_system
from tests.conftest import Case
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system
from tests.simulator.run_log import uses

HOLD = codes.NOTHING
MATRIX_BYTES = 8192


def asking(**changes: object) -> dict[str, object]:
    """Returns settings of a program that asks for prefetch alone."""
    kinds = frozenset([PREFETCH])
    asks = {"prefetches": True, "exposed": kinds, "network": None, "networked": frozenset()}
    return {**asks, "may_hold": kinds, "max_candidates": 32, **changes}


@pytest.fixture
def two_experts(make_case: Callable[..., Case]) -> Case:
    """Two GPUs, two tokens each; GPU 0 has expert 0 with three tokens and 1 with two; L2 holds a matrix and a half."""
    program = dataclasses.replace(ROUND_PROGRAM, **asking(counted=True))
    case = make_case(round_system(2), round_layer(4), np.array([[0, 1], [0, 2], [0, 1], [2, 3]]), program)
    return case._replace(costs=dataclasses.replace(case.costs, l2_bytes=MATRIX_BYTES * 3 // 2))


def fetched(state: State, gpu: int) -> list[tuple[int, int, int]]:
    """Returns which matrices came from a GPU's HBM: (block, bytes, start)."""
    found = [use for use in uses(state) if use.resource == codes.LOG_HBM and use.gpu == gpu]
    return [(use.token, use.amount, use.start_ps) for use in found if use.purpose == codes.HBM_WEIGHTS]


def play(case: Case, choose: Callable[[np.ndarray], int]) -> tuple[Engine, dict[int, list[tuple[int, list[int]]]]]:
    """Runs a case, answering with what ``choose`` makes of the features; returns what each GPU was asked, and when."""
    engine, asked = case.engine(), {gpu: [] for gpu in range(case.workload.num_gpus)}
    while (decision := engine.advance()) is not None:
        assert decision.kind == PREFETCH and decision.mask[: decision.num_candidates].all()
        items = engine.state.candidates["item"][: decision.num_candidates].tolist()
        asked[decision.gpu].append((engine.now_ps, items))
        engine.decide(choose(decision.features[: decision.num_candidates]))
    return engine, asked


def first(features: np.ndarray) -> int:
    return 0


def hold(features: np.ndarray) -> int:
    return len(features) - 1


def by_rule(features: np.ndarray) -> int:
    """Takes the first that drops nothing, hold included, whose features are 0."""
    return int(np.flatnonzero(features[:, FEATURES.index("drops")] == 0)[0])


def test_the_first_decision_is_taken_as_the_layer_begins(two_experts: Case) -> None:
    """Expert 0 has the most tokens; behind its GEMM-1 two of GPU 0's own tokens are read for dispatch, 128 B each."""
    engine, asked = play(two_experts, by_rule)
    (begins_ps, at_first), (then_ps, after) = asked[0][:2]
    assert (begins_ps, at_first) == (10_000, [0, 1, 2, 3, HOLD])
    assert (then_ps, after) == (10_000 + MATRIX_BYTES + 2 * 128, [1, 2, 3, HOLD])
    assert fetched(engine.state, 0)[0] == (0, MATRIX_BYTES, 10_000)


def test_what_would_give_way_is_shown_and_does(two_experts: Case) -> None:
    engine = two_experts.engine()
    while (decision := engine.advance()) is not None and (decision.gpu, engine.now_ps) != (0, 18_448):
        engine.decide(0 if engine.now_ps == 10_000 else decision.num_candidates - 1)
    assert decision is not None
    shown = {name: decision.features[:4, FEATURES.index(name)].tolist() for name in FEATURES}
    # L2 holds 8192 B of weights and 256 B of tokens of its 12,288.
    drops = (MATRIX_BYTES - (12_288 - 8448)) / MATRIX_BYTES
    assert shown["drops"] == pytest.approx([drops] * 3 + [0])
    assert shown["is_hold"] == [0, 0, 0, 1]
    assert shown["is_gemm2"] == [1, 0, 1, 0]
    assert shown["order"] == pytest.approx([0, 1 / 32, 2 / 32, 0])
    assert shown["size"] == [1, 1, 1, 0]  # three tokens, and two, of tiles of two
    assert shown["expert_left"] == [1, 1, 1, 0]
    assert shown["wanted"] == [0, 0, 0, 0]
    assert shown["cost"] == pytest.approx([np.sqrt(MATRIX_BYTES / 10**6)] * 3 + [0])
    engine.decide(1)  # GEMM-1 of expert 1, which what was used least recently makes room for: the first matrix
    resident = engine.state.blocks["resident_bytes"]
    engine.advance()
    assert resident[:4].tolist() == [12_288 - MATRIX_BYTES - 256, 0, MATRIX_BYTES, 0]


def test_at_a_price_a_matrix_is_fetched_once_until_a_row_uses_it(two_experts: Case) -> None:
    """All four matrices of GPU 0 give way to each other; with each fetched HBM rests until the first row starts."""
    engine, asked = play(two_experts, first)
    state = engine.state
    begins_ps = min(state.tiles["rows"]["start_ps"][state.tiles["rows"]["start_ps"] != codes.NO_TIME].min(), 60_000)
    before = [(block, amount) for block, amount, start_ps in fetched(state, 0) if start_ps < begins_ps]
    # The first one, for which there was room, gave way in part and comes again.
    assert before == [(0, 8192), (1, 8192), (0, 4352), (2, 8192), (3, 8192)]
    assert asked[0][5][0] >= begins_ps


def test_a_ready_row_is_what_a_gpu_that_waits_is_asked_at(two_experts: Case) -> None:
    """Expert 0's first tile closes with GPU 0's own two tokens, after a memory access; before it starts, GPU 0 asks."""
    wanted = []

    def note(features: np.ndarray) -> int:
        wanted.append(features[:, FEATURES.index("wanted")].tolist())
        return hold(features)

    _, asked = play(two_experts, note)
    assert [now_ps for now_ps, _ in asked[0][:2]] == [10_000, 60_000]
    assert [shown for shown in wanted if any(shown)][0] == [1, 0, 0, 0, 0]


def test_who_always_waits_runs_as_if_nothing_were_fetched_ahead(two_experts: Case) -> None:
    roomy = two_experts._replace(costs=dataclasses.replace(two_experts.costs, l2_bytes=2**20))
    plain = roomy.with_program(prefetches=False, exposed=frozenset())
    assert play(roomy, hold)[0].now_ps == plain.engine().run().now_ps > play(roomy, by_rule)[0].now_ps


@pytest.mark.parametrize("choose", [first, hold])
def test_layers_end_whether_a_gpu_always_waits_or_never(random_case: Callable[[int], Case], choose: Callable) -> None:
    """An engine in which nothing can happen any more, with tokens left, raises."""
    for seed in range(100, 140):
        case = random_case(seed).with_program(**asking())
        engine, asked = play(case, choose)
        state = engine.state
        rows = int((state.tiles["rows"]["start_ps"] != codes.NO_TIME).sum())
        # What a decision needs: a row that got ready or started, the start, a first token, a copy's weights, a fetch.
        events = 2 * rows + len(state.experts) + len(state.matrices)
        fetches = rows + 2 * len(state.matrices)
        assert sum(map(len, asked.values())) <= 2 * (events + fetches), seed


def test_a_rule_decides_and_by_default_nothing_that_is_used_gives_way(two_experts: Case) -> None:
    def fetched_by(rule: dict[str, dict[str, float]]) -> list[tuple[int, int, int]]:
        ruled = two_experts.with_program(exposed=frozenset(), weights=RuleSpec(rule).matrix())
        return fetched(ruled.engine().run().state, 0)

    rules = {by_rule: {}, hold: {"prefetch": {"is_hold": 1.0}}, first: {"prefetch": {"order": -1.0, "is_hold": -1.0}}}
    runs = [fetched_by(rule) for rule in rules.values()]
    assert runs == [fetched(play(two_experts, choose)[0].state, 0) for choose in rules]
    assert runs[0] != runs[1] != runs[2] != runs[0]


def test_only_a_schedule_that_fetches_ahead_can_be_asked_what() -> None:
    system, schedule = load_system("dgx-h100"), load_schedule("dysharp")
    with pytest.raises(
        ConfigError, match=r"exposed='prefetch' does not fit schedule='dysharp', whose prefetch is 'none'"
    ):
        schedule.program(system, Exposure(("prefetch",)))
    program = schedule.with_changes({"prefetch": "ahead"}).program(system, Exposure(("prefetch",)))
    # To wait is always offered, whatever is said of other groups.
    assert program.exposed == program.may_hold == {PREFETCH}
