"""Small runs whose every time is worked out by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.state import State
from dysharp_env.system import FamilySpec
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from tests.conftest import Case
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system
from tests.simulator.run_log import ended, started


def times(state: State) -> dict[str, list[int]]:
    """Returns the times of both tokens and of the tile of each of the two experts."""
    tiles = state.tiles[state.tiles["count"] > 0]
    tokens = {name: state.tokens[name][:-1].tolist() for name in ("dispatch_start", "dispatch_end", "combine_start")}
    return {
        **tokens,
        "combine_end": state.tokens["combine_end"][:-1].tolist(),
        **{f"start{gemm + 1}": started(tiles, gemm).tolist() for gemm in (0, 1)},
        **{f"end{gemm + 1}": ended(tiles, gemm).tolist() for gemm in (0, 1)},
    }


def test_multicast_and_pull_worked_by_hand(make_case: Callable[..., Case]) -> None:
    """Two GPUs, each with one token and one expert; both tokens go to both experts, so both GPUs do the same."""
    program = dataclasses.replace(
        ROUND_PROGRAM, dispatch=DISPATCH_PRIMITIVES["multicast"], combine=COMBINE_PRIMITIVES["pull_reduce"]
    )
    case = make_case(round_system(2), round_layer(2), np.array([[0, 1], [0, 1]]), program)
    engine, twin = case.engine().run(), case.twin().run()
    # Start: what is paid first.
    sent = 10_000
    # The local copy goes through memory and is written: HBM is busy from 60,000 to 60,128.
    # Up: header, one target flit, 8 payload flits. The head cuts through the switch after a hop and goes on at once.
    at_switch = sent + 100_000
    stored = at_switch + 10 * 1000 + 100_000
    assert stored == 220_000
    # The algebraic index is not in the TLB yet: one memory access. The tile has its two tokens.
    arrived = stored + 50_000
    # HBM: write the token 128, read weights 8192, read two tokens 256, write their results 256. The SM waits for the
    # inputs, which take longer than its 2 x 1000 ps.
    end1 = arrived + 128 + 8192 + 256
    hbm_free = end1 + 256
    # GEMM-2 starts at once, but its weights queue behind that write.
    end2 = hbm_free + 8192 + 256
    assert (arrived, end1, end2) == (270_000, 278_576, 287_280)
    # Each GPU tells the other, two hops away; its own token was counted at once. Now both know both.
    known = end2 + 2 * 100_000
    # The request of 2 flits asks for the partial sum, behind the flit that acknowledges the counter update, two hops
    # away; there, one memory access (the TLB has it by now).
    responds = known + (1 + 2) * 1000 + 2 * 100_000 + 50_000
    # The response of 9 flits meets the reduction unit after a hop; it adds at half the line rate, and a cycle.
    summed = responds + 100_000 + 2 * 9000 + 640
    # The sum cuts through too: its last flit leaves the switch when it is added, and takes a hop.
    combined = summed + 100_000
    assert (known, responds, combined) == (487_280, 740_280, 958_920)
    assert times(engine.state) == {
        "dispatch_start": [sent] * 2,
        "dispatch_end": [arrived] * 2,
        "combine_start": [known] * 2,
        "combine_end": [combined] * 2,
        "start1": [arrived] * 2,
        "end1": [end1] * 2,
        "start2": [end1] * 2,
        "end2": [end2] * 2,
    }
    assert engine.now_ps == twin.now_ps == combined
    # Flits of one GPU: store 10 up and replica 10 down; an ack of 1 each way; counter update of 2 and its ack of 1 each
    # way; request of 2 each way; partial sum of 9 up; sum of 9 down.
    traffic = dict(zip(codes.PURPOSES, engine.state.traffic.reshape(2, 2, -1)[0].T.tolist(), strict=True))
    assert traffic == {
        "dispatch_request": [0, 0],
        "dispatch_data": [10, 10],
        "dispatch_ack": [1, 1],
        "combine_request": [2, 2],
        "combine_data": [9, 9],
        "combine_ack": [0, 0],
        "notify": [3, 3],
        "eviction": [0, 0],
    }


def test_unicast_in_phases_worked_by_hand(make_case: Callable[..., Case]) -> None:
    """The same layer with copies, pushed partial sums, and every stage behind the end of the one before it."""
    phases = (codes.GATE_PHASE,) * 3
    program = dataclasses.replace(ROUND_PROGRAM, gates=phases, pays_ps=(10_000, 1000, 2000, 3000))
    case = make_case(round_system(2), round_layer(2), np.array([[0, 1], [0, 1]]), program)
    engine, twin = case.engine().run(), case.twin().run()
    # 9 flits; a copy says where it goes, so no table is asked.
    arrived = 10_000 + 100_000 + 9000 + 100_000
    # All has arrived; GEMM-1 pays 1000 to start. HBM is idle then: weights 8192, two tokens 256, results 256.
    start1 = arrived + 1000
    end1 = start1 + 8192 + 256
    # GEMM-2 waits longer for the acknowledgement of what this GPU sent, two hops after it was stored, and pays 2000.
    start2 = arrived + 2 * 100_000 + 2000
    end2 = start2 + 8192 + 256
    # Combine pays 3000, pushes 9 flits.
    pushed = end2 + 3000
    combined = pushed + 100_000 + 9000 + 100_000
    assert (start1, end1, start2, end2, pushed, combined) == (220_000, 228_448, 421_000, 429_448, 432_448, 641_448)
    assert times(engine.state) == {
        "dispatch_start": [10_000] * 2,
        "dispatch_end": [arrived] * 2,
        # The partial sum that is home already is added as soon as it is there.
        "combine_start": [end2] * 2,
        "combine_end": [combined] * 2,
        "start1": [start1] * 2,
        "end1": [end1] * 2,
        "start2": [start2] * 2,
        "end2": [end2] * 2,
    }
    assert engine.now_ps == twin.now_ps == combined


def test_too_few_slots_evict_the_oldest_sum(make_case: Callable[..., Case]) -> None:
    """GPU 1 pushes its sums of tokens 0 and 1 while GPU 2 has others to do: with one slot, they push each other out."""
    program = dataclasses.replace(ROUND_PROGRAM, combine=COMBINE_PRIMITIVES["push_reduce"])
    topk_ids = np.array([[1, 2], [1, 2], [0, 2], [0, 2], [0, 2], [0, 2]])
    case = make_case(round_system(3), round_layer(3), topk_ids, program)
    roomy = case.engine().run().state
    tight = case._replace(costs=dataclasses.replace(case.costs, reduction_slots=1)).engine().run().state
    assert roomy.root["evictions"][0] == 0 and tight.root["evictions"][0] > 0
    assert (tight.sums["pieces_left"] == 0).all() and (tight.sums["contributions_left"] == 0).all()
    down = tight.traffic.reshape(3, 2, -1)[:, codes.DOWN].sum(axis=0)
    assert down[codes.EVICTION] == tight.root["evictions"][0] * case.costs.combine_flits()


def test_an_sm_sends_its_next_token_when_it_knows_that_the_one_before_is_stored(make_case: Callable[..., Case]) -> None:
    case = make_case(round_system(2), round_layer(2), np.array([[0, 1]] * 8), ROUND_PROGRAM)
    one = dataclasses.replace(case.costs.families, specs={"warp_direct": FamilySpec(vectors=1)})
    costs = dataclasses.replace(case.costs, families=one)
    tokens = case._replace(costs=costs).with_program(dispatch_sms=2, chunk_tokens=2).engine().run().state.tokens
    # Two SMs of one vector each: 9,000 ps on the wire, 100,000 a hop, and as long back.
    assert tokens["dispatch_start"][:4].tolist() == [10_000, 10_000, 419_000, 428_000]
    assert tokens["dispatch_end"][:4].tolist() == [219_000, 228_000, 628_000, 637_000]
