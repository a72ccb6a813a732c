"""What communication SMs keep in flight and what GEMM thread blocks take, worked by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.families import UNLIMITED, SmCosts
from dysharp_env.simulator.phases import STAGES, START
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.system import FamilySpec, load_system
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.workload import LayerSpec, load_model
from tests.conftest import Case
from tests.simulator.run_log import ended, started

# Vectors of 128 B: a packet of 9 flits. A flit takes 1000 ps, a hop 100,000 ps; nothing else takes time.
LAYER = LayerSpec(
    name="small", hidden=64, moe_ff=64, experts=20, top_k=4, ffn_matrices=2, compute_dtype="bf16", source="test"
)
TRIP_PS = 4 * 100_000 + 9_000


def costs_with(families: dict[str, Any], dispatch: str, combine: str, **changes: Any) -> Costs:
    system = load_system("gh200-nvl32").with_changes({"gpu.families": families, **changes})
    return Costs.of(system, load_model("large")).under(DISPATCH_PRIMITIVES[dispatch], COMBINE_PRIMITIVES[combine])


def test_a_family_is_how_an_sm_works_on_vectors() -> None:
    slow = {"token_ns": 100, "copy_ns": 30, "byte_ps": 20, "vectors": 8}
    families = {"warp_direct": slow, "warp_load": {"vectors": 3}}
    plain = costs_with(families, "unicast", "pull")
    wire_ps = plain.wire_ps(plain.packet.data_flits(14336))
    assert plain.dispatch_sm == SmCosts(8, 30_000 + 14336 * 20, 100_000, 4 * plain.hop_ps + wire_ps)
    asked_ps = plain.memory_ps + plain.wire_ps(plain.packet.ask_flits(14336))
    assert plain.combine_sm == SmCosts(3, 0, 0, 4 * plain.hop_ps + wire_ps + asked_ps)
    # Multimem has as many at hand as its queue holds; what a vector costs is a warp's, or its own.
    multimem = costs_with(families, "multicast", "pull_reduce").dispatch_sm
    assert (multimem.slots, multimem.vector_ps) == (16384 // 14336, plain.dispatch_sm.vector_ps)
    own = costs_with({**families, "multimem": {"byte_ps": 1}}, "multicast", "pull_reduce")
    assert own.dispatch_sm.vector_ps == 14336
    # A vector of three and a half queues takes as many round trips.
    full = costs_with({"multimem": {}}, "multicast", "push_reduce", **{"gpu.multimem_queue_entries": 8})
    assert full.dispatch_sm == SmCosts(1, full.dispatch_sm.trip_ps * 14336 // 4096, 0, full.dispatch_sm.trip_ps)
    # The switch acknowledges what it merges: two hops less.
    assert full.combine_sm.trip_ps == 2 * full.hop_ps + full.wire_ps(full.combine_flits())
    assert costs_with({}, "unicast", "unicast").dispatch_sm.slots == UNLIMITED


def test_a_family_has_packets_of_its_own_and_the_switch_s_operations_a_flit_more() -> None:
    system = load_system("gh200-nvl32").with_changes({"link.multimem_flits": 1})
    costs = Costs.of(system, load_model("large"))
    bulk = costs.under(DISPATCH_PRIMITIVES["pull"], COMBINE_PRIMITIVES["pull_reduce"], ("bulk", ""))
    # 14336 B: 896 data flits in 56 packets of 256 B or 112 of 128 B.
    assert (bulk.dispatch_packets, bulk.dispatch_flits(), bulk.combine_flits()) == (56, 896 + 56, 896 + 2 * 112)
    assert bulk.under(DISPATCH_PRIMITIVES["pull"], COMBINE_PRIMITIVES["pull_reduce"], ("bulk", "")) == bulk
    plain = bulk.under(DISPATCH_PRIMITIVES["multicast"], COMBINE_PRIMITIVES["unicast"])
    assert (plain.dispatch_flits(3), plain.combine_flits()) == (896 + 3 * 112, 896 + 112)
    with pytest.raises(ConfigError, match=r"family='bulk' is not in gpu.families; choose from \['warp_direct'\]"):
        few = dataclasses.replace(costs.families, specs={"warp_direct": FamilySpec()})
        dataclasses.replace(costs, families=few).under(
            DISPATCH_PRIMITIVES["pull"], COMBINE_PRIMITIVES["pull"], ("bulk", "bulk")
        )


def one_sender(
    make_case: Callable[..., Case], sms: int, tokens: int, to: tuple[int, ...] = (4, 8, 12, 16), **family: float
) -> Case:
    """Returns a case in which only GPU 0's tokens leave home, each to experts of all four others, or those named."""
    system = load_system("dgx-h100", 5).with_changes(
        {
            "link.gbps": 16,
            "link.latency_ns": 100,
            "gpu.memory_latency_ns": 0,
            "switch.queueing": "output_queued",
            "gpu.families": {"warp_direct": family, "warp_load": {}},
        }
    )
    # Four experts a GPU: the tokens of GPU 0 go to one of each other GPU, all others to those at home.
    ids = np.array([list(to)] * tokens + [list(range(4 * gpu, 4 * gpu + 4)) for gpu in np.repeat(range(1, 5), tokens)])
    program = Program(
        dispatch=DISPATCH_PRIMITIVES["unicast"],
        combine=COMBINE_PRIMITIVES["pull"],
        gates=(codes.GATE_PHASE, codes.GATE_PHASE, codes.GATE_PHASE),
        pays_ps=(0, 0, 0, 0),
        dispatch_sms=sms,
        gemm_sms=100,
        combine_sms=sms,
    )
    return make_case(system, LAYER, ids, program)


def stores(case: Case) -> list[int]:
    """Returns when GPU 0's uplink begins to send its copies."""
    engine = case.engine().run()
    log = engine.state.log[: engine.state.root["log_size"][0]]
    rows = log[(log["resource"] == codes.LOG_UP) & (log["gpu"] == 0) & (log["purpose"] == codes.DISPATCH_DATA)]
    return sorted(rows["start_ps"].tolist())


def test_an_sm_whose_work_is_short_waits_for_acknowledgements(make_case: Callable[..., Case]) -> None:
    # With one at hand a copy leaves when the acknowledgement of the one before is back.
    assert np.diff(stores(one_sender(make_case, 1, 1, vectors=1))).tolist() == [TRIP_PS] * 3
    # Two: pairs leave together, one behind the other on the wire.
    assert np.diff(stores(one_sender(make_case, 1, 1, vectors=2))).tolist() == [9_000, TRIP_PS - 9_000, 9_000]
    # Work that is shorter than the round trip changes nothing: 2 x 200 ns.
    assert np.diff(stores(one_sender(make_case, 1, 1, vectors=2, copy_ns=200))).tolist() == [
        9_000,
        TRIP_PS - 9_000,
        9_000,
    ]


def test_an_sm_sends_as_fast_as_it_works(make_case: Callable[..., Case]) -> None:
    # 500 ns a copy and 1 ns a byte: one after the other, 628 ns each. The first is back after as long.
    alone = stores(one_sender(make_case, 1, 2, vectors=1, copy_ns=500, byte_ps=1000))
    assert alone[0] == 628_000 - TRIP_PS and np.diff(alone).tolist() == [628_000] * 7
    # Of four at hand each takes four times as long, and as many leave.
    four = stores(one_sender(make_case, 1, 4, vectors=4, copy_ns=500, byte_ps=1000))
    assert four[0] == 4 * 628_000 - TRIP_PS
    assert [later - sooner for sooner, later in zip(four[:-4], four[4:], strict=True)] == [4 * 628_000] * 12
    # Two SMs send two tokens' copies.
    two = stores(one_sender(make_case, 2, 2, vectors=1, copy_ns=500, byte_ps=1000))
    assert np.diff(two).tolist() == [9_000, 619_000] * 3 + [9_000]


def test_the_first_copy_of_a_token_bears_the_token(make_case: Callable[..., Case]) -> None:
    sent = stores(one_sender(make_case, 1, 2, vectors=1, copy_ns=500, token_ns=300))
    assert sent[0] == 800_000 - TRIP_PS
    assert np.diff(sent).tolist() == [500_000, 500_000, 500_000, 800_000, 500_000, 500_000, 500_000]


def test_pushed_sums_share_the_work_on_their_token(make_case: Callable[..., Case]) -> None:
    # Each of four GPUs pushes a partial sum of GPU 0's one token: 500 ns and a quarter of 400 ns.
    case = one_sender(make_case, 1, 1, vectors=1, copy_ns=500, token_ns=400).with_primitives("unicast", "unicast")
    engine = case.engine().run()
    log = engine.state.log[: engine.state.root["log_size"][0]]
    rows = log[(log["resource"] == codes.LOG_UP) & (log["purpose"] == codes.COMBINE_DATA)]
    started_ps = engine.state.tokens["combine_start"][0]
    assert (rows["start_ps"] - started_ps).tolist() == [600_000 - TRIP_PS] * 4


def test_an_sm_prepares_one_token_after_the_other(make_case: Callable[..., Case]) -> None:
    # Four copies of each of two tokens leave with their token, 700 ns and 128 x 1 ns after the one before.
    family = {"vectors": 8, "prepare_ns": 700, "prepare_byte_ps": 1000}
    sent = stores(one_sender(make_case, 1, 2, **family))
    assert sent == [828_000 + 9_000 * i for i in range(4)] + [2 * 828_000 + 9_000 * i for i in range(4)]
    # Two SMs prepare a token each.
    assert max(stores(one_sender(make_case, 2, 2, **family))) == 828_000 + 9_000 * 7


def test_a_copy_that_stays_is_work_where_the_family_says_so(make_case: Callable[..., Case]) -> None:
    # The first of three copies bears 500 ns for a fourth, which stays; expert 1's is no copy of its own.
    family = {"vectors": 1, "copy_ns": 500}
    free, borne = (stores(one_sender(make_case, 1, 1, (0, 1, 4, 8), own_copies=own, **family)) for own in (False, True))
    assert [after - before for after, before in zip(borne, free, strict=True)] == [500_000] * 2


def test_a_family_s_start_is_paid_with_its_stage(make_case: Callable[..., Case]) -> None:
    plain = one_sender(make_case, 1, 3, vectors=8)
    layer = plain.workload.layer
    start = {"start_us": 0.5, "start_expert_ns": 2, "start_token_ns": 10}
    later = one_sender(make_case, 1, 3, vectors=8, **start)
    paid_ps = 500_000 + 2_000 * layer.experts + 10_000 * 3
    assert [after - before for after, before in zip(stores(later), stores(plain), strict=True)] == [paid_ps] * 12


def test_the_last_sum_s_latency_is_paid_before_a_combine_that_waits() -> None:
    costs = costs_with({"warp_direct": {"sum_byte_ps": 10, "extra_flits": 2}, "warp_load": {}}, "unicast", "unicast")
    (start,) = costs.phase_kernels(STAGES.index("combine"), (START,))
    assert start.launch_ps == 10 * 14336 and costs.phase_kernels(0, (START,)) == []
    # Each of its packets has two flits more.
    plain = costs_with({"warp_direct": {}, "warp_load": {}}, "unicast", "unicast")
    assert costs.combine_flits() == plain.combine_flits() + 2 * plain.combine_packets


def test_another_sm_takes_the_next_token_and_none_helps_with_the_first(make_case: Callable[..., Case]) -> None:
    # With three SMs the one token still leaves copy by copy; a second token leaves beside it.
    assert np.diff(stores(one_sender(make_case, 3, 1, vectors=1))).tolist() == [TRIP_PS] * 3
    sent = stores(one_sender(make_case, 3, 2, vectors=1))
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


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_thread_blocks_lose_the_time_in_which_they_communicate(make_case: Callable[..., Case], share: float) -> None:
    """What SMs work on vectors taken while blocks run is lost by the blocks that start next, or not yet."""
    family = {"vectors": 1, "copy_ns": 700}
    changes = {
        "gpu.in_gemm_share": share,
        "gpu.cold_exposure": 0.0,
        "gpu.hbm_gbps": 1e6,
        "gpu.families": {"warp_direct": family},
    }
    # Half of each GPU's tokens are for the other's expert, so tiles fill while the rest is still being sent.
    ids = np.tile([0, 1], 512)[:, None]
    system = load_system("dgx-h100", 2).with_changes(changes)
    program = dataclasses.replace(block_program(codes.GATE_FINE), in_gemm=True)
    case = make_case(system, BLOCK_LAYER, ids, program)
    engine = case.engine().run()
    costs, state = engine.costs, engine.state
    tiles = state.tiles[state.tiles["count"] > 0]
    for gpu in (0, 1):
        counts = tiles["count"][state.experts["gpu"][tiles["expert"]] == gpu]
        own_ps = sum(
            costs.blocks[stage - 1] * costs.block_ps(stage, int(count)) for stage in (1, 2) for count in counts
        )
        debt_ps = int(state.gpus["sm_busy_ps"][gpu]) - own_ps + int(state.gpus["debt_ps"][gpu])
        vectors, rest_ps = divmod(debt_ps, max(round(700_000 * share), 1))
        assert rest_ps == 0 and vectors <= 256 + 256 and (vectors > 0) == (share > 0)
    assert case.twin().run().now_ps == engine.now_ps
