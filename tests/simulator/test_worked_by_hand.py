"""Small runs whose every time is worked out by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

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
    # The home GPU reads its token then: HBM is busy until 10,128. The local copy goes through memory and stays in L2.
    # Up: header, one target flit, 8 payload flits. The head cuts through the switch after a hop and goes on at once.
    at_switch = sent + 100_000
    stored = at_switch + 10 * 1000 + 100_000
    assert stored == 220_000
    # The algebraic index is not in the TLB yet: one memory access. The tile has its two tokens.
    arrived = stored + 50_000
    # HBM reads 8192 of weights; the two tokens are in L2. The SM waits for the weights, which take longer than its
    # 2 x 1000 ps.
    end1 = arrived + 8192
    # GEMM-2 starts at once, and its inputs are in L2 too.
    end2 = end1 + 8192
    assert (arrived, end1, end2) == (270_000, 278_192, 286_384)
    # Each GPU tells the other, two hops away; its own token was counted at once. Now both know both.
    known = end2 + 2 * 100_000
    # The request of 2 flits asks for the partial sum, behind the flit that acknowledges the counter update, two hops
    # away; there, one memory access (the TLB has it by now).
    responds = known + (1 + 2) * 1000 + 2 * 100_000 + 50_000
    # The response of 9 flits meets the reduction unit after a hop; it adds at half the line rate, and a cycle.
    summed = responds + 100_000 + 2 * 9000 + 640
    # The sum cuts through too: its last flit leaves the switch when it is added, and takes a hop.
    combined = summed + 100_000
    assert (known, responds, combined) == (486_384, 739_384, 958_024)
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
        "dispatch_done": [0, 0],
        "combine_request": [2, 2],
        "combine_data": [9, 9],
        "combine_ack": [0, 0],
        "notify": [3, 3],
        "eviction": [0, 0],
        **dict.fromkeys(("weight_request", "weight_data", "weight_ack", "replay"), [0, 0]),
    }


def test_unicast_in_phases_worked_by_hand(make_case: Callable[..., Case]) -> None:
    """The same layer with copies, pushed partial sums, and every stage behind the end of the one before it."""
    phases = (codes.GATE_PHASE,) * 3
    program = dataclasses.replace(ROUND_PROGRAM, gates=phases, pays_ps=(10_000, 1000, 2000, 3000))
    case = make_case(round_system(2), round_layer(2), np.array([[0, 1], [0, 1]]), program)
    engine, twin = case.engine().run(), case.twin().run()
    # 9 flits; a copy says where it goes, so no table is asked.
    arrived = 10_000 + 100_000 + 9000 + 100_000
    # All has arrived; GEMM-1 pays 1000 to start. HBM is idle then and reads weights of 8192; the tokens are in L2.
    start1 = arrived + 1000
    end1 = start1 + 8192
    # GEMM-2 waits longer for the acknowledgement of what this GPU sent, two hops after it was stored, and pays 2000.
    start2 = arrived + 2 * 100_000 + 2000
    end2 = start2 + 8192
    # Combine pays 3000, pushes 9 flits.
    pushed = end2 + 3000
    combined = pushed + 100_000 + 9000 + 100_000
    assert (start1, end1, start2, end2, pushed, combined) == (220_000, 228_192, 421_000, 429_192, 432_192, 641_192)
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


@pytest.mark.parametrize("parts", [2, 8])
def test_waves_of_experts_follow_each_other_without_a_pause(make_case: Callable[..., Case], parts: int) -> None:
    """Three tokens a GPU go to the other GPU's two experts: three copies of 9 flits to the first, then to the second.

    A GPU has no more waves than experts.
    """
    program = dataclasses.replace(ROUND_PROGRAM, copies_per_expert=True, parts=parts, parts_by=codes.BY_EXPERTS)
    topk_ids = np.array([[2, 3]] * 3 + [[0, 1]] * 3)
    case = make_case(round_system(2), round_layer(4, tile_tokens=128), topk_ids, program)
    engine, twin = case.engine().run(), case.twin().run()
    first_wave = 10_000 + 100_000 + 3 * 9000 + 100_000
    state = engine.state
    assert len(state.experts) == 4 and state.experts["part"].tolist() == [0, 1, 0, 1]
    ready = [int(state.tiles["rows"]["ready_ps"][x["tile0"], 0]) for x in state.experts]
    assert ready == [first_wave, first_wave + 3 * 9000] * 2
    assert engine.now_ps == twin.now_ps
    in_turn = case.with_program(parts=1).engine().run().state
    assert int(in_turn.tiles["rows"]["ready_ps"][in_turn.experts["tile0"][0], 0]) == first_wave + 2 * 9000


@pytest.mark.parametrize("team_gpus", [2, 3, 8])
def test_a_token_is_stored_once_for_every_group_that_has_teams(make_case: Callable[..., Case], team_gpus: int) -> None:
    """Four GPUs of one expert; GPU 0's token goes to all others, the others' stay with their home and one neighbour.

    Groups of 2 are {0, 1} and {2, 3}: a store to 1 alone, and one to 2 and 3. Groups of 3 are {0, 1, 2} and {3}. A
    store is a header and 8 data flits, whoever it is for; each receiver acknowledges it, and the switch merges that.
    """
    program = dataclasses.replace(ROUND_PROGRAM, dispatch=DISPATCH_PRIMITIVES["team"])
    layer = round_layer(4).with_changes({"top_k": 3})
    topk_ids = np.array([[1, 2, 3], [1, 0, 2], [2, 1, 3], [3, 2, 0]])
    system = round_system(4).with_changes({"switch.team_gpus": team_gpus})
    case = make_case(system, layer, topk_ids, program)
    engine, twin = case.engine().run(), case.twin().run()
    stores = {2: [2, 2, 2, 2], 3: [2, 1, 2, 1], 8: [1, 1, 1, 1]}[team_gpus]
    received = [2, 2, 3, 2]
    sent = engine.state.traffic.reshape(4, 2, -1)
    assert sent[:, codes.UP, codes.DISPATCH_DATA].tolist() == [9 * count for count in stores]
    assert sent[:, codes.DOWN, codes.DISPATCH_DATA].tolist() == [9 * count for count in received]
    assert sent[:, codes.UP, codes.DISPATCH_ACK].tolist() == received
    assert sent[:, codes.DOWN, codes.DISPATCH_ACK].tolist() == stores
    log = engine.state.log[(engine.state.log["gpu"] == 0) & (engine.state.log["purpose"] == codes.DISPATCH_DATA)]
    # The second store follows the first on the uplink.
    assert log["start_ps"][log["resource"] == codes.LOG_UP].tolist() == [10_000, 19_000][: stores[0]]
    # GPU 0 receives tokens 1 and 3. Both are sent at once but in groups of 2, where GPU 3's own group comes first.
    second = 110_000 + 9000
    assert log["start_ps"][log["resource"] == codes.LOG_DOWN].tolist() == [110_000, second]
    assert engine.now_ps == twin.now_ps
