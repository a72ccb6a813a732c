"""Layers in which nobody exchanged counts: an expert's last tile waits until every GPU has said that it is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.schedules import load_schedule
from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.codes import BY_EXPERTS, GATE_FINE, GATE_PHASE
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES
from dysharp_env.system.primitives import DISPATCH_PRIMITIVES
from dysharp_env.workload.workload import NO_EXPERT, Workload
from tests.conftest import Case
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system
from tests.simulator.run_log import play as played
from tests.simulator.run_log import started
from tests.simulator.test_twin import assert_same_history, play

# GPU 0's token stays at home, GPU 1's goes to the experts of both.
ONE_SENDS = np.array([[0, NO_EXPERT], [0, 1]])
# Both GPUs may send from 10,000 on. GPU 0 has nothing to send and says so at once, which GPU 1 hears two hops later.
OPENS, HOPS = 10_000, 200_000
# GPU 1's copy: 9 flits and two hops. It learns two hops later that it is stored, and GPU 0 hears that after two more.
STORED = OPENS + HOPS + 9000
KNOWN = STORED + HOPS
HEARD = KNOWN + HOPS


def made(make_case: Callable[..., Case], tile_tokens: int, topk_ids: np.ndarray = ONE_SENDS, **changes: Any) -> Case:
    program = dataclasses.replace(ROUND_PROGRAM, **{"counted": False, **changes})
    return make_case(round_system(2), round_layer(2, tile_tokens), topk_ids, program)


def starts(case: Case) -> list[int]:
    """Returns when the GEMM-1 rows of the first tile of each expert start, the same in engine and twin."""
    engine, twin = play(case, 0)
    assert_same_history(engine.state, twin)
    return started(engine.state.tiles[engine.state.experts["tile0"]], 0).tolist()


def in_band(case: Case) -> Case:
    """Returns a case in which nobody knows counts, nor is told them by a gate before GEMM-1."""
    stores = case.program.dispatch if not case.program.dispatch.reads else DISPATCH_PRIMITIVES["unicast"]
    gates = (GATE_FINE, *case.program.gates[1:])
    return case.with_program(dispatch=stores, families=("", ""), gates=gates, counted=False)


def test_the_last_tile_waits_for_the_slowest_source_worked_by_hand(make_case: Callable[..., Case]) -> None:
    # With counts expert 0 starts with its second token, expert 1 when its only one has come through memory.
    local = OPENS + 50_000
    assert starts(made(make_case, 8, counted=True)) == [STORED, local]
    # Without, GPU 1 knows of GPU 0 from 210,000 on and of itself as it learns that its copy is stored.
    assert starts(made(make_case, 8)) == [HEARD, KNOWN] == [619_000, 419_000]


def test_full_tiles_and_those_closed_early_wait_for_nobody(make_case: Callable[..., Case]) -> None:
    assert starts(made(make_case, 2)) == [STORED, KNOWN]
    assert starts(made(make_case, 8, partial_tiles=True, min_partial_tokens=2)) == [STORED, KNOWN]
    local = OPENS + 50_000
    assert starts(made(make_case, 8, partial_tiles=True, min_partial_tokens=1)) == [local, local]


def test_flags_cross_links(make_case: Callable[..., Case]) -> None:
    engine = made(make_case, 8).engine().run()
    traffic = engine.state.traffic.reshape(2, 2, -1)
    assert traffic[:, :, codes.DISPATCH_DONE].tolist() == [[1, 1], [1, 1]]
    traffic = made(make_case, 8, counted=True).engine().run().state.traffic.reshape(2, 2, -1)
    assert not traffic[:, :, codes.DISPATCH_DONE].any()


def test_a_gpu_without_experts_is_told_nothing(make_case: Callable[..., Case]) -> None:
    case = made(make_case, 8, topk_ids=np.array([[0, NO_EXPERT], [0, NO_EXPERT]]))
    everything_on_0 = Workload.even(
        layer=case.workload.layer,
        num_gpus=2,
        topk_ids=case.workload.topk_ids,
        gpu_of_expert=np.zeros(2, np.int64),
        name="made",
    )
    case = case._replace(workload=everything_on_0)
    assert starts(case)[0] == HEARD
    traffic = case.engine().run().state.traffic.reshape(2, 2, -1)
    assert traffic[:, :, codes.DISPATCH_DONE].tolist() == [[0, 1], [1, 0]]


def test_nothing_after_gemm_1_opens_before_all_have_said_that_they_are_done(make_case: Callable[..., Case]) -> None:
    """All tiles are full long before, but a GPU cannot know that nothing more comes."""
    topk_ids = np.array([[0, 1], [0, 1]])
    gates = (GATE_FINE, GATE_PHASE, GATE_FINE)
    state = made(make_case, 2, topk_ids, gates=gates).engine().run().state
    # What GPUs store is known at 419,000, and to the other at 619,000.
    assert started(state.tiles[state.experts["tile0"]], 1).tolist() == [HEARD, HEARD]
    counted = made(make_case, 2, topk_ids, gates=gates, counted=True).engine().run().state
    assert started(counted.tiles[counted.experts["tile0"]], 1).tolist() == [KNOWN, KNOWN]


def test_what_is_shown_says_who_is_done_and_not_how_many_come(make_case: Callable[..., Case]) -> None:
    changes = {"exposed": frozenset([observation.GEMM]), "may_hold": frozenset([observation.GEMM])}
    engine = made(make_case, 2, **changes).engine()
    # Expert 0's tile is full at 219,000; GPU 0 has only heard of itself.
    asked = engine.advance()
    assert engine.now_ps == STORED and (asked.gpu, asked.mask.sum()) == (0, 2)
    assert asked.features[0, FEATURES.index("expert_left")] == 0.5
    shown = dict(zip(CONTEXT, asked.context.tolist(), strict=True))
    # Two tokens with two experts each, shared evenly: two for each GPU's expert, over themselves and a tile.
    assert (shown["received"], shown["gemm_done"], shown["tokens_per_expert"]) == (0.5, 0.0, 0.5)
    # It waits until it hears of the other GPU, and may wait no longer then: its only answer is taken.
    engine.decide(1)
    assert engine.advance() is None
    assert started(engine.state.tiles[engine.state.experts["tile0"]], 0).tolist() == [HEARD, KNOWN]


@pytest.mark.parametrize("group", range(10))
def test_twin_and_engine_agree(random_case: Callable[[int], Case], group: int) -> None:
    for seed in range(group * 10, group * 10 + 10):
        engine, twin = play(in_band(random_case(seed)), seed)
        assert_same_history(engine.state, twin)


def test_no_tile_is_both_partial_and_earlier_than_its_flags(random_case: Callable[[int], Case]) -> None:
    """The last tile of an expert closes early by a rule, or once all who send to its GPU have what they sent stored."""
    checked = 0
    for seed in range(100):
        case = in_band(random_case(seed))
        if case.program.may_close_early(case.workload.layer.tile_tokens) or case.program.parts_by == BY_EXPERTS:
            continue
        state = played(case, seed).state
        tiles = state.tiles[state.tiles["count"] > 0]
        last = tiles[tiles["count"] < case.workload.layer.tile_tokens]
        experts = state.experts[last["expert"]]
        sources = state.parts[experts["gpu"] * int(state.root["num_parts"][0]) + experts["part"]]
        assert (sources["sources_left"] == 0).all()
        checked += len(last)
    assert checked > 50


def test_flags_cost_time_but_for_the_order_of_rows(random_case: Callable[[int], Case]) -> None:
    """Without counts no row is ready earlier; that others come first then may be better, by a few per cent."""
    plain = {"exposed": frozenset(), "network": None, "networked": frozenset(), "partial_tiles": False, "splits": ()}
    plain |= {"weights": np.zeros((observation.NUM_KINDS, observation.NUM_FEATURES)), "prefetches": False}
    ratios = []
    for seed in range(150):
        case = in_band(random_case(seed)).with_program(**plain)
        now_ps = [case.with_program(counted=counted).engine(logging=False).run().now_ps for counted in (True, False)]
        ratios.append(now_ps[1] / now_ps[0])
    assert min(ratios) > 0.93 and np.mean(np.array(ratios) < 1) < 0.3 and np.mean(ratios) > 1.005


def test_whoever_reads_tokens_has_to_know_which(make_case: Callable[..., Case]) -> None:
    says = "'count_exchange' in pays.dispatch"
    with pytest.raises(ConfigError, match=says):
        load_schedule("flashdmoe").with_changes({"dispatch": "pull"})
    with pytest.raises(ValueError, match=says):
        made(make_case, 8, dispatch=DISPATCH_PRIMITIVES["pull"])
