"""SM groups that change size: nobody is lost, nothing is over its size for longer than it must be, and it pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.observation import COMBINE, DECISION_KINDS, DISPATCH, GEMM, SPLIT
from dysharp_env.simulator.state.state import State
from tests.conftest import Case
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system

GROUPS, CASES_PER_GROUP = 10, 20
FIRST_SEED = 70_000


def places_of(state: State, kind: int) -> np.ndarray:
    """Returns the places for SMs in a communication group, (gpu, place)."""
    most_dispatch = int(state.root["dispatch"]["most_sms"][0])
    places = state.sms.reshape(len(state.gpus), -1)
    return places[:, most_dispatch:] if kind == COMBINE else places[:, :most_dispatch]


def check_everyone_is_somewhere(case: Case, state: State) -> None:
    """All SMs are in a group, move weights or are on their way, and nobody waits for an SM that is free to come."""
    gpus, groups = state.gpus, state.gpus["groups"]
    at_once = case.costs.role_change_ps == 0
    changing = case.num_sms - groups["sms"][:, [DISPATCH, GEMM, COMBINE]].sum(axis=1) - state.movers["sms"]
    assert (changing == 0).all() if at_once else (changing >= 0).all()
    gemm_sms = groups["sms"][:, GEMM]
    assert (0 <= gpus["free_sms"]).all() and (gpus["free_sms"] <= gemm_sms).all()
    running = np.zeros(case.workload.num_gpus, int)
    np.add.at(running, state.experts["gpu"][state.tiles["expert"]], state.tiles["running"])
    assert (gemm_sms - gpus["free_sms"] == running).all()
    for kind, name in ((DISPATCH, "dispatch"), (COMBINE, "combine")):
        here, size, leaving = (groups[field][:, kind] for field in ("sms", "wanted_sms", "leaving"))
        assert ((here - leaving >= size) | (gpus["free_sms"] == 0)).all()
        # An SM on its way arrives before it is sent back.
        coming = (places_of(state, kind)["duty"] == codes.COMING).sum(axis=1)
        assert (here - leaving <= np.maximum(size, coming)).all() and not (at_once and coming.any())
        assert (groups["in_flight"][:, kind] <= here * int(state.root[name]["slots"][0])).all()
        places = places_of(state, kind)
        assert ((places["duty"] == codes.LEAVING).sum(axis=1) == leaving).all()
        assert ((places["duty"] != codes.AWAY).sum(axis=1) == here).all()
        is_idle = (places["token"] == codes.NOTHING) & (places["in_flight"] == 0)
        # Whoever has nothing left to do has gone.
        here = (places["duty"] != codes.ON_DUTY) & (places["duty"] != codes.COMING)
        assert (is_idle == (places["duty"] == codes.AWAY))[here].all() and is_idle[places["duty"] == codes.COMING].all()


@pytest.mark.parametrize("group", range(GROUPS))
def test_groups_add_up_at_every_decision(random_case: Callable[[int], Case], group: int) -> None:
    resized = 0
    for seed in range(FIRST_SEED + group * CASES_PER_GROUP, FIRST_SEED + (group + 1) * CASES_PER_GROUP):
        case = random_case(seed)
        if not case.program.splits:
            continue
        kinds = frozenset(range(len(DECISION_KINDS)))
        case = case.with_program(exposed=kinds, network=None, networked=frozenset(), max_candidates=32)
        engine, rng = case.engine(logging=False), np.random.default_rng(seed)
        # An engine in which nothing can happen any more, with tokens left, raises.
        while (asked := engine.advance()) is not None:
            if engine.state.root["split_done"][0]:
                check_everyone_is_somewhere(case, engine.state)
            choice = int(rng.choice(np.flatnonzero(asked.mask)))
            resized += asked.kind == SPLIT and engine.state.root["split_done"][0] and choice > 0
            engine.decide(choice)
        check_everyone_is_somewhere(case, engine.state)
    assert resized > 0


def test_whoever_keeps_the_first_row_has_the_schedule_as_it_is(random_case: Callable[[int], Case]) -> None:
    played = 0
    for seed in range(FIRST_SEED, FIRST_SEED + 150):
        case, rng = random_case(seed), np.random.default_rng(seed)
        program = case.program
        weights = program.weights.copy()
        weights[SPLIT] = 0
        early = program.min_partial_tokens if program.partial_tiles else case.workload.layer.tile_tokens
        own = program.dispatch_sms, program.combine_sms, early
        others = tuple((int(rng.integers(1, 3)), 1, early) for _ in range(3))
        gemm_sms = case.num_sms - program.dispatch_sms - program.combine_sms
        ruled = {"weights": weights, "gemm_sms": gemm_sms, "network": None, "networked": frozenset()}
        plain = case.with_program(**ruled, exposed=frozenset(), splits=(), split_moments=0).engine().run()
        asking = {"exposed": frozenset([SPLIT]), "splits": (own, *others), "split_moments": 4}
        for exposed in (frozenset(), frozenset([SPLIT])):
            engine = case.with_program(**ruled, **{**asking, "exposed": exposed}).engine()
            while (asked := engine.advance()) is not None:
                assert asked.kind == SPLIT and asked.num_candidates == min(4, program.max_candidates)
                assert engine.state.candidates["item"][0] == 0
                engine.decide(0)
                played += 1
            assert engine.state.tokens.tobytes() == plain.state.tokens.tobytes(), seed
            assert engine.now_ps == plain.now_ps
    assert played > 1000


def test_sms_that_have_sent_all_shorten_a_layer_by_a_wave(make_case: Callable[..., Case]) -> None:
    """Two GPUs with an expert each and two tokens each, all for both experts: GEMM-1 is one row of 5 thread blocks."""
    program = dataclasses.replace(
        ROUND_PROGRAM,
        dispatch_sms=4,
        gemm_sms=3,
        combine_sms=1,
        splits=((4, 1, 128), (1, 1, 128)),
        split_moments=1,
        exposed=frozenset([SPLIT]),
    )
    # A hundredth of the round machine's FLOP: a block of 4 tokens takes 400,000 ps in GEMM-1; in GEMM-2, with 5 times
    # the inner dimension and one block, 2,000,000 ps.
    slow = {"gpu.bf16_tflops": 8 * 2 * 64 * 64 / 100_000, "gpu.cold_exposure": 0.0}
    layer = round_layer(2, tile_tokens=128).with_changes({"moe_ff": 5 * 64})
    case = make_case(round_system(2, num_sms=8).with_changes(slow), layer, np.array([[0, 1]] * 4), program)
    late = case._replace(costs=dataclasses.replace(case.costs, role_change_ps=300_000))

    def run(*choices: int, case: Case = case) -> tuple[list[int], int]:
        engine, twin, left = case.engine(), case.twin(), list(choices)
        while (asked := engine.advance()) is not None:
            assert twin.advance().gpu == asked.gpu
            choice = left.pop(0) if left else 0
            engine.decide(choice)
            twin.decide(choice)
        assert twin.advance() is None and twin.now_ps == engine.now_ps
        tiles = engine.state.tiles[engine.state.tiles["count"] > 0]
        first, second = ([int(ps) for row in tile["rows"] for ps in (row["start_ps"], row["end_ps"])] for tile in tiles)
        assert first == second  # both GPUs do the same
        return list(first), engine.now_ps

    # Two SMs send a token each at 10,000; the second is here after 2 x 9 flits and two hops.
    start1 = 10_000 + 2 * 9000 + 2 * 100_000
    # Five blocks on three SMs are two waves.
    end1 = start1 + 2 * 400_000
    end2 = end1 + 2_000_000
    # 4 + 1 dispatch and combine SMs stay: what the decisions are not answered with is the first row.
    kept, kept_ps = run()
    assert kept == [start1, end1, end1, end2]
    # The first decision is for all; then each GPU has sent its last token and keeps one SM. Of the three that are too
    # many two never had a token and compute at once; the third waits for its acknowledgement until 419,000. Five blocks
    # on five SMs are one wave.
    joined, joined_ps = run(0, 1, 1)
    assert joined == [start1, end1 - 400_000, end1 - 400_000, end2 - 400_000]
    assert kept_ps - joined_ps == 400_000
    # Where changing over takes 300,000 the first three blocks start without the two, which take the others.
    assert run(0, 1, 1, case=late)[0][:2] == [start1, 10_000 + 300_000 + 400_000]
    # Back to four when the first sum is ready: nobody computes then, and nothing changes any more.
    assert run(0, 1, 1, 1, 1) == (joined, joined_ps)
