"""What L2 holds, what HBM is used for, and what fetching weights ahead is worth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.state import State
from dysharp_env.system import load_system
from dysharp_env.workload import ScenarioSpec
from tests.conftest import Case
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system
from tests.simulator.run_log import Use, play, uses


def hbm_uses(state: State) -> list[Use]:
    return [use for use in uses(state) if use.resource == codes.LOG_HBM]


def hbm_bytes(state: State, *purposes: int) -> int:
    return sum(use.amount for use in hbm_uses(state) if use.purpose in purposes)


def blocks_in_order(state: State, gpu: int) -> Iterator[int]:
    """Yields what a GPU's L2 holds, the least recently used first."""
    block = int(state.gpus["l2"]["head"][gpu])
    while block != codes.NOTHING:
        yield block
        block = int(state.blocks["next"][block])


def written_bytes(case: Case, state: State) -> int:
    """Returns what all GPUs have written: tokens that came, two outputs of each that a row took, results, copies."""
    token_in, mid, _, out = case.costs.token_bytes
    experts = case.workload.experts_of_token
    nobodys = state.pairs[(state.pairs["segments_left"] == 0) & (state.pairs["num_experts"] == 0)]
    copies = case.workload.placement.num_copies * sum(case.costs.matrix_bytes)
    return experts.sum() * (token_in + mid + out) + len(nobodys) * token_in + np.count_nonzero(experts) * out + copies


@pytest.mark.parametrize("group", range(5))
def test_every_byte_that_is_written_is_in_l2_or_in_hbm(random_case: Callable[[int], Case], group: int) -> None:
    for seed in range(500 + 20 * group, 520 + 20 * group):
        case = random_case(seed)
        state = play(case, seed).state
        held = state.blocks
        for gpu in range(case.workload.num_gpus):
            inside = list(blocks_in_order(state, gpu))
            used = int(state.gpus["l2_used_bytes"][gpu])
            assert int(held["resident_bytes"][inside].sum()) == used <= case.costs.l2_bytes, seed
            assert (held["resident_bytes"][inside] > 0).all()
            spent = [use.end_ps - use.start_ps for use in hbm_uses(state) if use.gpu == gpu]
            assert sum(spent) == state.gpus["hbm_busy_ps"][gpu]
        assert (held["dirty_bytes"] <= held["resident_bytes"]).all()
        kept = hbm_bytes(state, codes.HBM_WRITE) + held["dirty_bytes"].sum()
        # Who fetches ahead may drop copies that no row is to use any more.
        most_dropped = case.workload.placement.num_copies * sum(case.costs.matrix_bytes) * case.program.prefetches
        assert 0 <= written_bytes(case, state) - kept <= most_dropped, seed


def test_random_runs_fetch_ahead(random_case: Callable[[int], Case]) -> None:
    """Weights are read before any row could want them in some of the cases on which engine and twin agree."""
    ahead = 0
    for seed in range(40):
        case = random_case(seed)
        state = play(case, seed).state
        first = [use.start_ps for use in hbm_uses(state) if use.purpose == codes.HBM_WEIGHTS]
        assert first
        ahead += min(first) < state.root["gemm1_first"][0]
        assert case.program.prefetches or min(first) >= state.root["gemm1_first"][0]
    assert ahead >= 5


def two_tiles(make_case: Callable[..., Case], l2_bytes: int) -> Engine:
    """Runs two GPUs of which each has two tiles of two tokens of one expert, and both GPUs' tokens."""
    case = make_case(round_system(2), round_layer(2), np.array([[0, 1]] * 4), ROUND_PROGRAM)
    return case._replace(costs=dataclasses.replace(case.costs, l2_bytes=l2_bytes)).engine().run()


def test_activations_use_no_hbm_while_they_fit(make_case: Callable[..., Case]) -> None:
    state = two_tiles(make_case, 2**20).state
    # On each GPU two matrices of 8192 B once, and its two tokens of 128 B.
    assert hbm_bytes(state, codes.HBM_WEIGHTS) == 2 * 2 * 8192
    assert hbm_bytes(state, codes.HBM_READ) == 2 * 2 * 128
    assert hbm_bytes(state, codes.HBM_WRITE) == 0


def test_a_matrix_that_fills_l2_sends_activations_to_hbm_and_back(make_case: Callable[..., Case]) -> None:
    state = two_tiles(make_case, 8192).state
    uses_of_gpu = [use for use in hbm_uses(state) if use.gpu == 0]
    # Its own two tokens, 128 B each. The first row's matrix then has all of L2: what is there is written back, and read
    # again behind the weights.
    own, *rest = [(use.purpose, use.amount) for use in uses_of_gpu]
    assert own == (codes.HBM_READ, 128)
    first = rest.index((codes.HBM_WEIGHTS, 8192))
    assert rest[first - 1][0] == codes.HBM_WRITE
    assert rest[first + 1] == (codes.HBM_READ, 256)
    # Of a matrix that gave way to activations only what gave way is read again.
    weights = [amount for purpose, amount in rest if purpose == codes.HBM_WEIGHTS]
    assert len(weights) == 4 and min(weights) <= 8192
    assert hbm_bytes(state, codes.HBM_WRITE) > 0


def test_what_every_sm_reads_takes_its_room_more_than_once() -> None:
    gpu = load_system("dgx-h100").gpu
    assert gpu.l2_bytes * 2 == 50 * 2**20
    with pytest.raises(ConfigError, match=r"gpu\.l2_copies=0\.5"):
        load_system("dgx-h100").with_changes({"gpu.l2_copies": 0.5})


def test_fetching_ahead_shortens_decode_and_reads_no_more() -> None:
    scenario = ScenarioSpec(system="dgx-h100", model="deepseek-v2-lite", tokens=64, routing="uniform").build()
    plain = load_schedule("dysharp")
    ahead = plain.model_copy(update={"prefetch": "ahead"})
    runs = [simulate(scenario.system, scenario.draw(0), schedule, logging=True) for schedule in (plain, ahead)]
    before, after = [run.engine.state for run in runs]
    assert runs[1].engine.now_ps < 0.95 * runs[0].engine.now_ps
    every = range(len(codes.HBM_PURPOSES))
    assert hbm_bytes(after, *every) <= hbm_bytes(before, *every)
    # HBM starts on weights as soon as the layer begins, the fullest expert's first.
    first = next(use for use in hbm_uses(after) if use.gpu == 0 and use.purpose == codes.HBM_WEIGHTS)
    here = after.experts[after.experts["gpu"] == 0]
    assert here["number"][here["total"].argmax()] == first.token // 2
    assert first.start_ps <= after.root["dispatch_first"][0]
