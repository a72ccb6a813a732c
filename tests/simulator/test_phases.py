"""Kernels between phases: what each costs, worked out by hand, and who waits for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.phases import SHARED, STAGES, WEIGHT_GRADIENTS, Load
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.system import load_system
from dysharp_env.workload import WorkloadSource, load_model
from tests.conftest import Case
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system

GAP = 1_000_000
PHASES = (codes.GATE_PHASE,) * 3
# Two GPUs with two experts and two tokens each. GPU 0 gets 7 rows of 4 tokens, GPU 1 one; GPU 0's tokens go to one GPU
# each, GPU 1's to 2 and 1.
UNEVEN = np.array([[0, 1], [0, 1], [0, 2], [0, 1]])


def times(state: Any) -> dict[str, list[int]]:
    """Returns when GEMM rows start, in the order of tiles, and when tokens are sent and home."""
    rows = state.tiles["rows"]["start_ps"]
    starts = {f"start{stage + 1}": [int(ps) for ps in rows[:, stage] if ps >= 0] for stage in (0, 1)}
    return {**starts, **{name: state.tokens[name][:-1].tolist() for name in ("dispatch_start", "combine_end")}}


def kernel_us(costs: Costs, stage: str, name: str, load: Load, sms: tuple[int, int] = (1, 1)) -> float:
    kernels = costs.phase_kernels(STAGES.index(stage), (name,))
    return sum(kernel.ps(load, costs.hbm_ps, sms) for kernel in kernels) / 1e6


def made(make_case: Callable[..., Case], topk_ids: np.ndarray, experts: int = 4, **changes: Any) -> Case:
    """Returns a case on the round machine, 1 ps a byte of HBM, whose kernels take 1 us to start."""
    system = round_system(2).with_changes({"overheads.launch_gap_us": 1})
    return make_case(system, round_layer(experts), topk_ids, dataclasses.replace(ROUND_PROGRAM, **changes))


def paid(state: Any) -> dict[tuple[int, int, int], int]:
    """Returns what gates pay, by stage, part and GPU."""
    gates = [gate for gate in state.gates if gate["stage"] != codes.OPENS_ALL]
    return {(int(gate["stage"]), int(gate["part"]), int(gate["gpu"])): int(gate["pay_ps"]) for gate in gates}


def test_deepseek_v3_on_h200_by_hand() -> None:
    """8192 tokens of 8 experts each, spread evenly: 65536 rows a GPU."""
    system, layer = load_system("dgx-h200"), load_model("deepseek-v3")
    costs = Costs.of(system, layer)
    load, gbps = Load(tokens=8192, sent=43_000, received=43_000, rows=65_536, experts=32), 4800 * 0.8
    gap_us = system.overheads.launch_gap_us
    # 14336 B in BF16 read, 7392 B in FP8 written.
    assert kernel_us(costs, "dispatch", "quantise", load) == pytest.approx(gap_us + 8192 * 21_728 / gbps / 1e3)
    # GEMM-1 writes 8192 B in BF16 instead of what it is charged for, they are read, and 2112 B are written in FP8.
    row_bytes = 8192 - costs.token_bytes[1] + 8192 + 2112
    assert kernel_us(costs, "gemm2", "activation", load) == pytest.approx(gap_us + 65_536 * row_bytes / gbps / 1e3)
    # Read once and written for every GPU; read by GPU and written by expert; and back, in BF16.
    assert kernel_us(costs, "dispatch", "permute", load) == pytest.approx(gap_us + 51_192 * 7392 / gbps / 1e3)
    assert kernel_us(costs, "gemm1", "permute", load) == pytest.approx(gap_us + 108_536 * 7392 / gbps / 1e3)
    assert kernel_us(costs, "combine", "permute", load) == pytest.approx(gap_us + 108_536 * 14_336 / gbps / 1e3)
    assert kernel_us(costs, "end", "permute", load) == pytest.approx(gap_us + 51_192 * 14_336 / gbps / 1e3)
    # DeepEP's own log: 0.054 ms at 4096 tokens (issue 261), 0.049 elsewhere.
    assert 49 <= kernel_us(costs, "dispatch", "layout", Load(tokens=4096)) <= 54
    assert not Costs.of(system, load_model("large")).phase_kernels(0, ("quantise",)), "what is in BF16 is not cast"


def test_mega_moe_s_last_sum_takes_what_deepgemm_says() -> None:
    """8192 tokens of 6 results each, 7168 values: 126 us on B200, by DeepGEMM's own account (its test, and PR 323).

    It takes these bytes at 6.5 TB/s; here they go at the rate at which Mega MoE reads weights, 5.96 TB/s.
    """
    costs = Costs.of(load_system("dgx-b200"), load_model("deepseek-v4-pro"))
    final_us = kernel_us(costs, "end", "final_sum", Load(tokens=8192, sent=6 * 8192))
    assert final_us == pytest.approx(126.5 * 6.5 / 5.96, rel=0.01)


def test_shared_experts_and_weight_gradients_by_hand() -> None:
    system = load_system("dgx-h200")
    layer = load_model("deepseek-v3", weight_gradients="deferred", direction="backward")
    costs, gap_us = Costs.of(system, layer), system.overheads.launch_gap_us
    flops, rate = 2 * 3 * 2048 * 7168, system.gpu.gemm_tflops("fp8") * 1e6  # FLOP/us
    gradients_us = kernel_us(costs, "end", WEIGHT_GRADIENTS, Load(rows=65_536, experts=32))
    assert gradients_us == pytest.approx(2 * gap_us + 65_536 * flops / rate, rel=1e-4)
    # With few rows FP32 gradients bind: 176 MB an expert.
    few_us = kernel_us(costs, "end", WEIGHT_GRADIENTS, Load(rows=32, experts=32))
    # Vectors have four bytes of scale for 128 values, weights for 128 x 128.
    vectors = (4096 + 7168 + 7168 + 2048) * 132 // 128
    assert few_us == pytest.approx(2 * gap_us + (32 * 4 * 3 * 2048 * 7168 + 32 * vectors) / 3840e3, rel=1e-6)
    # Both gradients of the shared expert; a third of the SMs take three times as long.
    assert kernel_us(costs, "end", SHARED, Load(tokens=8192)) == pytest.approx(
        2 * gap_us + 2 * 8192 * flops / rate, rel=1e-4
    )
    assert kernel_us(costs, "dispatch", SHARED, Load(tokens=8192), (44, 132)) == pytest.approx(
        2 * gap_us + 3 * 2 * 8192 * flops / rate, rel=1e-4
    )
    forward = Costs.of(system, load_model("deepseek-v3"))
    one_us = kernel_us(forward, "dispatch", SHARED, Load(tokens=1))
    assert one_us == pytest.approx(2 * gap_us + (3 * 2048 * 7168 * 4097 // 4096 + vectors) / 3840e3, rel=1e-6), (
        "weights bind"
    )
    assert not forward.phase_kernels(4, (WEIGHT_GRADIENTS,))
    assert not Costs.of(system, load_model("mixtral-8x7b")).phase_kernels(4, (SHARED,))


def test_gates_of_one_gpu_pay_for_its_rows_and_those_of_all_for_the_most(make_case: Callable[..., Case]) -> None:
    kernels = (("permute",), ("permute",), ("activation",), ("permute",), ("final_sum",))
    case = made(make_case, UNEVEN, gates=PHASES, pays_ps=(10_000, 1, 2, 3), pay_end_ps=4, kernels=kernels)
    state = case.engine().state
    # Vectors of 128 B. Dispatch waits for GPU 1, which reads 2 and writes 3, as the last sum reads 3 and writes 2.
    assert state.heap["time_ps"][0] == 10_000 + GAP + 128 * 5
    assert state.root["pay_end_ps"][0] == 4 + 128 * 5
    # An activation reads 128 B and writes 128 B a row.
    assert paid(state) == {
        (codes.OPENS_GEMM1, 0, NOTHING): 1 + GAP + 128 * (4 + 7),
        (codes.OPENS_GEMM2, 0, 0): 2 + GAP + 256 * 7,
        (codes.OPENS_GEMM2, 0, 1): 2 + GAP + 256,
        (codes.OPENS_COMBINE, 0, NOTHING): 3 + GAP + 128 * (4 + 7),
    }
    own = case.with_program(gates=(codes.GATE_GPU, codes.GATE_PHASE, codes.GATE_GPU)).engine().state
    assert paid(own)[codes.OPENS_GEMM1, 0, 1] == 1 + GAP + 128 * (1 + 1)
    assert paid(own)[codes.OPENS_COMBINE, 0, 1] == 3 + GAP + 128 * (1 + 1)
    # A copy for every expert: as many copies as rows, and 4 of them of GPU 1's tokens.
    each = case.with_program(copies_per_expert=True).engine().state
    assert paid(each)[codes.OPENS_GEMM1, 0, NOTHING] == 1 + GAP + 128 * (7 + 7)
    assert each.heap["time_ps"][0] == 10_000 + GAP + 128 * (2 + 4)


def test_a_part_pays_for_its_own_rows(make_case: Callable[..., Case]) -> None:
    kernels = ((), (), ("activation", "activation"), (), ())
    state = made(make_case, UNEVEN, gates=PHASES, kernels=kernels, parts=2, chunk_tokens=1).engine().state
    # Tokens 0 and 2 are the first part, 1 and 3 the second.
    rows = {(0, 0): 3, (0, 1): 1, (1, 0): 4, (1, 1): 0}
    assert {key[1:]: ps for key, ps in paid(state).items() if key[0] == codes.OPENS_GEMM2} == {
        key: 2 * (GAP + 256 * number) for key, number in rows.items()
    }


def test_phases_with_kernels_worked_by_hand(make_case: Callable[..., Case]) -> None:
    """One token a GPU, one expert a GPU, all chosen: 2 rows, 2 copies and 2 sums everywhere."""
    kernels = (("permute",), ("permute",), ("activation",), ("permute",), ("final_sum",))
    topk_ids = np.array([[0, 1], [0, 1]])
    case = made(make_case, topk_ids, 2, gates=PHASES, pays_ps=(10_000, 1000, 2000, 3000), kernels=kernels)
    engine, twin = case.engine().run(), case.twin().run()
    sent = 10_000 + GAP + 128 * 3
    arrived = sent + 100_000 + 9000 + 100_000
    start1 = arrived + 1000 + GAP + 128 * 4
    # Weights come from HBM; what arrived is in L2, and what is between the GEMMs.
    end1 = start1 + 8192
    # The kernel before took longer than acknowledgements.
    start2 = end1 + 2000 + GAP + 256 * 2
    end2 = start2 + 8192
    pushed = end2 + 3000 + GAP + 128 * 4
    combined = pushed + 100_000 + 9000 + 100_000
    found = times(engine.state)
    assert (found["dispatch_start"], found["start1"], found["start2"]) == ([sent] * 2, [start1] * 2, [start2] * 2)
    assert found["combine_end"] == [combined] * 2
    assert engine.now_ps == twin.now_ps == combined + 128 * 3


def test_gemm_1_waits_for_shared_experts_that_hide(make_case: Callable[..., Case]) -> None:
    topk_ids = np.array([[0, 1], [0, 1]])
    case = made(make_case, topk_ids, 2, gates=PHASES, pays_ps=(10_000, 1000, 0, 0), hides_shared=True)
    alone = case.engine().run()
    arrived, two_gaps = 10_000 + 209_000, 2 * GAP
    assert times(alone.state)["start1"] == [arrived + 1000] * 2, "the layer has none"
    layer = round_layer(2).with_changes({"shared_experts": 1})
    system = round_system(2).with_changes({"overheads.launch_gap_us": 1})
    case = make_case(system, layer, topk_ids, case.program)
    engine, twin = case.engine().run(), case.twin().run()
    # 1000 ps a block on one of 4 SMs, two blocks: 500 ps at all, 667 at the 3 that dispatch leaves. Weights bind:
    # 2 x 8192 B; and 4 vectors of 128 B.
    shared_end = 10_000 + two_gaps + 2 * 8192 + 4 * 128
    assert times(engine.state)["start1"] == [shared_end + 1000] * 2
    assert engine.now_ps == twin.now_ps
    # Hidden behind a slow dispatch they cost nothing.
    slow = case._replace(costs=dataclasses.replace(case.costs, hop_ps=2_000_000))
    assert slow.engine().run().now_ps == slow.with_program(hides_shared=False).engine().run().now_ps


@pytest.mark.parametrize("when", ["before", "after"])
def test_shared_experts_of_a_schedule_are_paid_whole(when: str) -> None:
    system, layer = load_system("dgx-h200"), load_model("deepseek-v3")
    workload = WorkloadSource(layer, system.num_gpus, 64, "uniform").draw(0)
    schedule = load_schedule("deepep")
    plain, paying = (simulate(system, workload, each) for each in (schedule, with_shared(schedule, when)))
    shared_us = kernel_us(Costs.of(system, layer), "end", SHARED, Load(tokens=64))
    assert paying.result().makespan_us - plain.result().makespan_us == pytest.approx(shared_us, rel=1e-6)
    hidden = simulate(system, workload, with_shared(schedule, "hidden")).result()
    assert plain.result().makespan_us <= hidden.makespan_us < paying.result().makespan_us


def with_shared(schedule: Any, when: str) -> Any:
    return schedule.with_changes({"shared_experts": when})


def test_hidden_shared_experts_need_sms() -> None:
    schedule = load_schedule("deepep").with_changes({"shared_experts": "hidden", "sms.dispatch": 132})
    with pytest.raises(ConfigError) as error:
        schedule.program(load_system("dgx-h200"))
    assert str(error.value) == (
        "schedule='deepep': shared_experts=hidden needs SMs beside sms.dispatch=132 of the 132 that dgx-h200 has"
    )


def test_deferred_weight_gradients_come_after_the_last_token() -> None:
    system = load_system("dgx-h200")
    layer = load_model("deepseek-v3", direction="backward", weight_gradients="deferred")
    workload = WorkloadSource(layer, system.num_gpus, 64, "uniform").draw(0)
    run = simulate(system, workload, load_schedule("dysharp"))
    rows = np.zeros(8, np.int64)
    np.add.at(rows, workload.gpu_of_expert, workload.demand.expert_tokens)
    experts = np.bincount(workload.gpu_of_expert, workload.demand.expert_tokens > 0)
    loads = [Load(rows=int(own), experts=int(chosen)) for own, chosen in zip(rows, experts, strict=True)]
    last_us = max(kernel_us(Costs.of(system, layer), "end", WEIGHT_GRADIENTS, load) for load in loads)
    ended_us = run.engine.state.tokens["combine_end"][:-1].max() / 1e6
    assert run.result().makespan_us == pytest.approx(ended_us + last_us)


def test_a_machine_may_leave_kernels_out() -> None:
    system = load_system("dgx-h200").with_changes({"overheads.phase_kernels": False})
    costs = Costs.of(system, load_model("deepseek-v3"))
    assert [name for _, name, kernel in costs.kernels if any(kernel)] == [SHARED, SHARED]
