"""What communication SMs keep in flight and what GEMM thread blocks take, worked by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dysharp_env.simulator.costs import UNLIMITED, Costs, Window
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.system import load_system
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.workload import LayerSpec, load_model
from tests.conftest import Case
from tests.simulator.run_log import ended, started

# Vectors of 128 B: a packet of 9 flits. A flit takes 1000 ps, a hop 100,000 ps; nothing else takes time.
LAYER = LayerSpec(
    name="small", hidden=64, moe_ff=64, experts=20, top_k=4, ffn_matrices=2, compute_dtype="bf16", source="test"
)
TRIP_PS = 4 * 100_000 + 9_000


@pytest.mark.parametrize(
    ("limit_bytes", "is_queue", "expected"),
    [
        (0, False, Window(UNLIMITED, 0)),
        (1000, False, Window(1, 0)),  # exactly one vector
        (4000, False, Window(4, 0)),
        (1500, False, Window(2, 333)),  # two vectors in flight, a third of a trip longer: 1500 B a trip
        (250, False, Window(1, 3000)),  # four windows, so four trips a vector
        (1500, True, Window(1, 0)),  # a queue is not overfilled
        (2500, True, Window(2, 0)),
        (250, True, Window(1, 3000)),
    ],
)
def test_windows_in_whole_vectors(limit_bytes: int, is_queue: bool, expected: Window) -> None:
    assert Window.of(limit_bytes, 1000, is_queue) == expected


def test_multimem_has_a_queue_and_plain_accesses_have_measured_windows() -> None:
    system = load_system("gh200-nvl32")
    costs = Costs.of(system, load_model("large"))
    assert costs.dispatch_window("multicast") == costs.combine_window("pull_reduce") == Window.of(16384, 14336, True)
    assert costs.dispatch_window("unicast") == Window.of(system.gpu.store_in_flight_bytes, 14336, False)
    assert costs.combine_window("pull") == Window.of(system.gpu.load_in_flight_bytes, 14336, False)


def one_sender(make_case: Callable[..., Case], sms: int, tokens: int, **windows: int) -> Case:
    """Returns a case in which only GPU 0's tokens leave home, each to all four others."""
    system = load_system("dgx-h100", 5).with_changes(
        {"link.gbps": 16, "link.latency_ns": 100, "gpu.memory_latency_ns": 0, "switch.queueing": "output_queued"}
    )
    # Four experts a GPU: the tokens of GPU 0 go to one of each other GPU, all others to those at home.
    ids = np.array(
        [[4, 8, 12, 16]] * tokens + [list(range(4 * gpu, 4 * gpu + 4)) for gpu in np.repeat(range(1, 5), tokens)]
    )
    program = Program(
        dispatch=DISPATCH_PRIMITIVES["unicast"],
        combine=COMBINE_PRIMITIVES["pull"],
        gates=(codes.GATE_PHASE, codes.GATE_PHASE, codes.GATE_PHASE),
        pays_ps=(0, 0, 0, 0),
        dispatch_sms=sms,
        gemm_sms=100,
        combine_sms=sms,
    )
    case = make_case(system, LAYER, ids, program)
    return case._replace(costs=dataclasses.replace(case.costs, **windows))


def starts(case: Case, resource: int, purpose: int, items: Any) -> list[int]:
    """Returns when GPU 0's uplink begins to send the named nodes."""
    engine = case.engine().run()
    log = engine.state.log[: engine.state.root["log_size"][0]]
    rows = log[(log["resource"] == resource) & (log["gpu"] == 0) & (log["purpose"] == purpose)]
    return sorted(row["start_ps"] for row in rows if row["item"] in items)


def test_an_sm_stores_one_token_s_copies_window_by_window(make_case: Callable[..., Case]) -> None:
    # A window of one vector: a copy leaves when the acknowledgement of the one before is back. The last is charged to
    # the downlink, which carries nothing else by then, and to no copy of this token.
    alone = one_sender(make_case, sms=1, tokens=1, store_bytes=128)
    sent = starts(alone, codes.LOG_UP, codes.DISPATCH_DATA, range(4))
    assert np.diff(sent).tolist() == [TRIP_PS] * 3
    # Half of one: a vector takes two trips, and 64 B are in flight in each.
    half = one_sender(make_case, sms=1, tokens=1, store_bytes=64)
    assert np.diff(starts(half, codes.LOG_UP, codes.DISPATCH_DATA, range(4))).tolist() == [2 * TRIP_PS] * 3
    # Two: pairs leave together, one behind the other on the wire.
    pair = one_sender(make_case, sms=1, tokens=1, store_bytes=256)
    sent = starts(pair, codes.LOG_UP, codes.DISPATCH_DATA, range(4))
    assert np.diff(sent).tolist() == [9_000, TRIP_PS - 9_000, 9_000]


def test_another_sm_takes_the_next_token_and_none_helps_with_the_first(make_case: Callable[..., Case]) -> None:
    # With three SMs the one token still leaves copy by copy; a second token leaves beside it.
    assert np.diff(starts(one_sender(make_case, 3, 1, store_bytes=128), 0, 1, range(4))).tolist() == [TRIP_PS] * 3
    sent = starts(one_sender(make_case, 3, 2, store_bytes=128), codes.LOG_UP, codes.DISPATCH_DATA, range(8))
    assert sent[:2] == [0, 9_000] and sent[2] >= TRIP_PS


# Two experts, one on each GPU, whose tiles of 64 tokens take 4 blocks of GEMM-1.
BLOCK_LAYER = LAYER.with_changes({"hidden": 1024, "moe_ff": 512, "experts": 2, "top_k": 1, "tile_tokens": 64})


def block_program(gate: int) -> Program:
    """Returns a program with 4 GEMM SMs, whose GEMM-1 is behind a gate."""
    return Program(
        dispatch=DISPATCH_PRIMITIVES["unicast"],
        combine=COMBINE_PRIMITIVES["unicast"],
        gates=(gate, codes.GATE_FINE, codes.GATE_PHASE),
        pays_ps=(0, 0, 0, 0),
        dispatch_sms=1,
        gemm_sms=4,
        combine_sms=1,
    )


def test_a_thread_block_has_a_fixed_cost_and_is_slower_while_its_weights_are_cold(
    make_case: Callable[..., Case],
) -> None:
    system = load_system("dgx-h100", 2).with_changes({"gpu.block_overhead_ns": 700, "gpu.cold_exposure": 0.5})
    case = make_case(system, BLOCK_LAYER, np.repeat([0, 1], 128)[:, None], block_program(codes.GATE_FINE))
    tiles = case.engine().run().state.tiles
    costs = case.costs
    assert costs.block_ps(1, 64) == 700_000 + 4 * costs.granule_ps[0] and costs.block_ps(1, 65) > costs.block_ps(1, 64)
    # 4 blocks of GEMM-1 on 4 SMs. The first tile's blocks lose half the time in which 1 MiB comes from HBM, which has
    # read the 128 vectors of 2048 B by then; the second tile finds the weights in L2.
    first, second = tiles[tiles["expert"] == 0][:2]
    assert 128 * costs.hbm_ps(2048) < costs.memory_ps
    cold_ps = costs.hbm_ps(2**20)
    assert ended(first, 0) - started(first, 0) == costs.block_ps(1, 64) + cold_ps // 1000 * 500
    assert ended(second, 0) - started(second, 0) == costs.block_ps(1, 64)


def test_thread_blocks_take_longer_on_a_slow_gpu_and_nowhere_else(make_case: Callable[..., Case]) -> None:
    changes = {"slow_gpu": 1.25, "gpu.block_overhead_ns": 700, "gpu.cold_exposure": 0.0, "gpu.hbm_gbps": 1e6}
    system = load_system("dgx-h100", 2).with_changes(changes)
    # Expert 0 is on GPU 0, the slow one; two tiles of each expert.
    case = make_case(system, BLOCK_LAYER, np.repeat([0, 1], 128)[:, None], block_program(codes.GATE_PHASE))
    tiles, costs = case.engine().run().state.tiles, case.costs
    assert costs.block_ps(1, 64, gpu=0) == costs.block_ps(1, 64) * 5 // 4
    for expert in (0, 1):
        _, second = tiles[tiles["expert"] == expert][:2]
        assert ended(second, 0) - started(second, 0) == costs.block_ps(1, 64, gpu=expert)
