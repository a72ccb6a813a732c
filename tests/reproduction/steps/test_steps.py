from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from dysharp_env.reproduction.steps.inference import decode_us, prefill_two_batch_us, prefill_us
from dysharp_env.reproduction.steps.layers import LayerCase, LayerTimes, simulate_case
from dysharp_env.reproduction.steps.parts import BlockParts, StepSpec, around_ps, block_parts
from dysharp_env.reproduction.steps.roofline import ffn_work
from dysharp_env.reproduction.steps.streams import Op, makespan_ps
from dysharp_env.reproduction.steps.training import training_ops
from dysharp_env.system import load_system
from dysharp_env.workload import load_model

MICRO = 10**6  # ps
FORWARD = BlockParts(around_ps=2 * MICRO, moe_ps=10 * MICRO, cut_ps=(3 * MICRO, 4 * MICRO, 3 * MICRO))
BACKWARD = BlockParts(around_ps=4 * MICRO, moe_ps=14 * MICRO, cut_ps=(3 * MICRO, 8 * MICRO, 3 * MICRO))


def case(schedule: str = "deepep", tokens: int = 64, direction: str = "forward", model: str = "small") -> LayerCase:
    layer = load_model(model, direction=direction)
    return LayerCase(load_system("gh200-nvl32", 8), layer, tokens, "uniform", 0, schedule)


def times(makespan_us: float) -> LayerTimes:
    phases = {"dispatch": (0, 3 * MICRO), "gemm1": (4 * MICRO, 5 * MICRO), "gemm2": (5 * MICRO, 7 * MICRO)}
    phases["combine"] = (8 * MICRO, round(makespan_us * MICRO))
    return LayerTimes(round(makespan_us * MICRO), 1, phases, 0, {})


def busy_us(ops: list[Op]) -> float:
    """Returns what the busiest node works."""
    busy_ps: Counter[str] = Counter()
    for op in ops:
        busy_ps[op.stream] += op.duration_ps
    return max(busy_ps.values()) / MICRO


def test_a_training_step_is_paced_by_the_fullest_stage() -> None:
    ops = training_ops(StepSpec(stages=4, micro_batches=6), 10, FORWARD, BACKWARD)  # 3 layers in a stage
    assert busy_us(ops) == 6 * 3 * (12 + 18)
    assert makespan_ps(ops) / MICRO - busy_us(ops) == 3 * 3 * (12 + 18)


def test_a_paired_training_step_by_hand() -> None:
    spec = StepSpec(stages=2, micro_batches=4, overlap_sms=1)
    ops = training_ops(spec, 2, FORWARD, BACKWARD, paired_sms=10**9)
    # Two nodes: forward passes of either end (12 + 12), one backward pass (18), one pair (19) of which the last node's
    # partner is done first, then three backward passes, of which two put gradients of weights, (4 + 8) / 2, to the end.
    pair_us, forward_us, backward_us = 19, 12, 18  # the pair as in the test of streams
    assert busy_us(ops) == 3 * forward_us + pair_us + 3 * backward_us
    assert makespan_ps(ops) / MICRO >= busy_us(ops)
    shared = training_ops(StepSpec(stages=2, micro_batches=4, overlap_sms=66), 2, FORWARD, BACKWARD, paired_sms=132)
    assert busy_us(shared) > busy_us(ops)


def test_micro_batches_too_few_for_dualpipe() -> None:
    with pytest.raises(ValueError, match="two or more a stage, not 4 and 6"):
        training_ops(StepSpec(stages=4, micro_batches=6), 4, FORWARD, BACKWARD, paired_sms=132)


def test_a_layer_is_cut_where_its_stages_end() -> None:
    assert times(10).cut() == (3 * MICRO, 4 * MICRO, 3 * MICRO)
    simulated = simulate_case(case())
    assert simulated.is_phased and sum(simulated.cut()) == simulated.makespan_ps
    fused = simulate_case(case("dysharp"))
    assert not fused.is_phased
    with pytest.raises(ValueError, match="only a layer run in phases"):
        fused.cut()


def test_equal_cases_give_equal_times_and_passes_share_their_routing() -> None:
    forward, backward = case(), case(direction="backward")
    assert simulate_case(forward) == simulate_case(case())
    assert (forward.workload().topk_ids == backward.workload().topk_ids).all()
    assert backward.workload().layer.work_factor == 2
    cuts = [simulate_case(each).cut() for each in (forward, backward)]
    assert cuts[0][0] == cuts[1][0]  # the same dispatch
    assert cuts[0][1] < cuts[1][1]


def test_communication_can_be_given_fewer_sms() -> None:
    few = dataclasses.replace(case(tokens=256), schedule_changes=(("sms.dispatch", 2), ("sms.combine", 2)))
    assert simulate_case(few).cut()[0] > simulate_case(case(tokens=256)).cut()[0]


def test_prefill_sums_layers() -> None:
    one = case(tokens=2048)
    expected_ps = 64 * (around_ps(one, 1, 2048) + 10 * MICRO)
    assert prefill_us(one, times(10)) == pytest.approx(expected_ps / MICRO)
    assert block_parts(one, times(10)).total_ps == around_ps(one, 1, 2048) + 10 * MICRO
    two = prefill_two_batch_us(one, times(10), StepSpec(overlap_sms=1))
    assert prefill_us(one, times(10)) < two < 2 * prefill_us(one, times(10))


def test_dense_layers_come_instead_of_moe_layers() -> None:
    one = case(model="deepseek-v3", tokens=64)
    without = one.layer.with_changes({"transformer.dense_layers": 0, "transformer.dense_ff": 0})
    all_moe = LayerCase(one.system, without, 64, "uniform", 0, "deepep")
    shared, dense = (ffn_work(one.layer, width, 64).time_ps(one.system.gpu) / MICRO for width in (2048, 18432))
    expected_us = 3 * (1000 + shared - dense)
    assert prefill_us(all_moe, times(1000)) - prefill_us(one, times(1000)) == pytest.approx(expected_us)


def test_decoding_grows_with_the_cache() -> None:
    one = case(tokens=32)  # 32 sequences
    spec = StepSpec(decode_tokens=2)
    expected_ps = sum(64 * (around_ps(one, 32, 1, cached) + 10 * MICRO) for cached in (500, 501))
    assert decode_us(one, times(10), spec, prompt_tokens=500) == pytest.approx(expected_ps / MICRO)
    assert around_ps(one, 32, 1, 4000) > around_ps(one, 32, 1, 500)


def test_a_backward_pass_doubles_what_is_around() -> None:
    assert around_ps(case(direction="backward"), 1, 64) == 2 * around_ps(case(), 1, 64)
