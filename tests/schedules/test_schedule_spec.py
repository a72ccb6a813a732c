"""Schedules as data: presets, validation, and the paper's story told by them."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError, find_config, parse_spec, preset_names, read_yaml
from dysharp_env.schedules import Exposure, ScheduleSpec, load_schedule, schedule_names, simulate
from dysharp_env.schedules.spec import NEVER_EARLY
from dysharp_env.simulator.state import observation
from dysharp_env.system import load_system
from dysharp_env.workload import ScenarioSpec

BASE = {"name": "x", "dispatch": "unicast", "combine": "unicast", "sms": {"dispatch": 8, "combine": 8}}
BY_EXPERTS = {"copies": "expert", "parts": {"count": 2, "by": "experts"}}


@pytest.mark.parametrize("name", preset_names("schedules"))
def test_every_preset_runs_and_says_what_is_real_and_what_simplified(name: str) -> None:
    schedule = load_schedule(name)
    assert schedule.name == name and schedule.description
    assert find_config("schedules", name).read_text(encoding="utf-8").startswith("# ")
    scenario = ScenarioSpec(system="dgx-h100", model="small", tokens=40, routing="uniform").build()
    run = simulate(scenario.system, scenario.draw(0), schedule)
    assert run.result().ratio >= 1.0
    assert (run.engine.state.tokens["combine_end"][:-1] > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dispatch": "multicst"}, "dispatch='multicst'"),
        ({"rule": {"gemm": {"is_gem2": 1.0}}}, "'is_gem2' is not a feature; choose from"),
        # What a rule takes, which it would have to know before it has chosen.
        ({"rule": {"gemm": {"ruled": 1.0}}}, "'ruled' is not a feature; choose from"),
        ({"pays": {"dispatch": ["launch"], "gemm1": ["barrier"]}}, "pays.gemm1 must be empty"),
        ({"pays": {"dispatch": []}}, "pays.dispatch must name 'launch'"),
        ({"pays": {"end": ["quantise"]}}, "end cannot pay 'quantise'; it belongs to dispatch"),
        ({"pays": {"dispatch": ["launch", "activation"]}}, "dispatch cannot pay 'activation'; it belongs to gemm2"),
        ({"pays": {"dispatch": ["launch", "final_sum"]}}, "dispatch cannot pay 'final_sum'; it belongs to end"),
        ({"pays": {"dispatch": ["lunch"]}}, "pays.dispatch.0='lunch'"),
        ({"shared_experts": "hidden"}, "shared_experts=hidden needs readiness.gemm1 gpu or phase"),
        ({"shared_experts": "beside"}, "shared_experts='beside'"),
        (
            {"sms": {"dispatch": 0, "combine": 8}},
            "sms.dispatch=0: Input should be a number of SMs, 1 at least, or 'all'",
        ),
        ({"sms": {"dispatch": 8, "combine": "al"}}, "sms.combine='al': Input should be a number of SMs"),
        ({"sms": {"dispatch": True, "combine": 8}}, "sms.dispatch=True: Input should be a number of SMs"),
        ({"dispatch": "multicast", "copies": "expert"}, "copies=expert needs unicast or pull both ways"),
        ({"loopback": True}, "loopback needs dispatch broadcast and combine reduce_scatter"),
        ({"combine": "pull", "readiness": {"combine": "gpu"}}, "readiness.combine=gpu needs pushed sums"),
        ({"dispatch": "pull", "parts": {"count": 2, "by": "peers"}}, "parts.by=peers needs unicast both ways"),
        ({"parts": {"count": 0}}, "parts.count=0"),
        ({"parts": {"count": 2, "by": "experts"}}, "parts.by=experts needs copies=expert"),
        (
            {**BY_EXPERTS, "readiness": {"combine": "phase"}, "pays": {"dispatch": ["launch"], "combine": ["launch"]}},
            "parts.by=experts needs readiness.combine=token",
        ),
        ({**BY_EXPERTS, "combine": "push_reduce"}, "copies=expert needs unicast or pull both ways"),
        ({"dispatch": "pull"}, "needs 'count_exchange' in pays.dispatch: who reads"),
        ({"token_order": "expert_waves"}, "token_order=expert_waves needs 'count_exchange' in pays.dispatch"),
        ({"families": {"dispatch": "warp_que"}}, "'warp_que' is not a family of kernels; choose from"),
        ({"families": {"dispatch": "multimem"}}, "'multimem' does not issue unicast; choose from ['warp_queue'"),
        (
            {"dispatch": "multicast", "families": {"dispatch": "bulk"}},
            "'bulk' does not issue multicast; choose from ['multimem']",
        ),
        (
            {"best_of": [{"sms.dispatch": 4, "sms.combine": 8}]},
            "sms.dispatch=8 contradicts best_of[0], which says 4; leave one out",
        ),
        ({"best_of": [{"chunk_tokens": 8}, {"chunk_tokens": 0}]}, "best_of[1]: chunk_tokens=0: Input should be"),
        ({"best_of": [{"chunk_tokens": 8}, {"sms.dispatch": 8}]}, "best_of[1] must set what best_of[0] does"),
        ({"best_of": [{"chunk_tokens": 8}, {}]}, "best_of[1]={} must map settings to values"),
        (
            {"best_of": [{"chunk_tokens": 8}, {"parts": {"count": 2}}]},
            "best_of[1]: parts={'count': 2} must be one value",
        ),
        ({"best_of": [{"name": "y"}]}, "best_of[0]: 'name' is not a setting to choose"),
        ({"best_of": [{"dispatch.most": 8}]}, "best_of[0]: 'dispatch.most' is not a setting"),
        ({"best_of": [{"sms.dispach": 8}]}, "unknown key 'sms.dispach' (did you mean 'sms.dispatch'?)"),
        ({"best_of": {"chunk_tokens": 8}}, "best_of={'chunk_tokens': 8} must be a list of changes"),
        (
            {**BY_EXPERTS, "best_of": [{"combine": "unicast"}, {"combine": "push_reduce"}]},
            "best_of[1]: copies=expert needs unicast or pull both ways",
        ),
        ({"readines": {}}, "unknown key 'readines' (did you mean 'readiness'?)"),
    ],
)
def test_mistakes_give_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        parse_spec(ScheduleSpec, {**BASE, **change}, source="schedule")
    assert "\n" not in str(error.value)


def test_variants_are_the_schedule_with_their_changes_and_the_first_is_its_own() -> None:
    given = [{"chunk_tokens": 4, "parts.count": 2}, {"chunk_tokens": 16, "parts.count": 1}]
    schedule = parse_spec(ScheduleSpec, {**BASE, "best_of": given}, "schedule")
    assert (schedule.chunk_tokens, schedule.parts.count) == (4, 2)
    first, second = schedule.variants()
    assert (second.chunk_tokens, second.parts.count, second.best_of) == (16, 1, ({**given[1]},))
    assert first == schedule.with_changes({"best_of": given[:1]}) and first.variants() == (first,)
    assert parse_spec(ScheduleSpec, schedule.model_dump(), "schedule") == schedule
    with pytest.raises(ConfigError, match=re.escape("chunk_tokens=2 contradicts best_of[0]")):
        schedule.with_changes({"chunk_tokens": 2})
    assert schedule.with_changes({"chunk_tokens": 2, "best_of": ()}).chunk_tokens == 2


def test_a_variant_that_does_not_fit_the_system_is_refused_before_any_runs() -> None:
    given = {"best_of": [{"sms.dispatch": 8}, {"sms.dispatch": 130}], "sms": {"combine": 8}}
    with pytest.raises(ConfigError, match="sms.dispatch=130 and sms.combine=8 leave no SM for GEMMs"):
        parse_spec(ScheduleSpec, {**BASE, **given}, "schedule").program(load_system("dgx-h100"))


def test_sms_left_for_gemms_depend_on_what_runs_beside_them() -> None:
    readiness = {"gemm1": "phase", "gemm2": "phase", "combine": "phase"}
    phases = parse_spec(ScheduleSpec, {**BASE, "readiness": readiness}, "schedule")
    fused = parse_spec(ScheduleSpec, BASE, "schedule")
    two_kernels = parse_spec(
        ScheduleSpec, {**BASE, "readiness": {"gemm2": "phase"}, "sms": {"dispatch": 20, "combine": 30}}, "schedule"
    )
    assert (phases.gemm_sms(132), fused.gemm_sms(132), two_kernels.gemm_sms(132)) == (132, 116, 102)
    inside = parse_spec(ScheduleSpec, {**BASE, "sms": {"dispatch": 132, "combine": 8, "in_gemm": True}}, "schedule")
    assert inside.gemm_sms(132) == 132
    chunks = {**BASE, "readiness": readiness, "parts": {"count": 4}, "sms": {"dispatch": 20, "combine": 30}}
    merged = parse_spec(ScheduleSpec, chunks, "schedule")
    in_turn = parse_spec(ScheduleSpec, {**chunks, "communication": "exclusive"}, "schedule")
    assert (merged.gemm_sms(132), in_turn.gemm_sms(132)) == (82, 102)


def test_a_system_without_the_primitive_or_the_sms_refuses() -> None:
    system = load_system("dgx-h100")
    plain = system.with_changes({"switch.dispatch_primitives": ["unicast"]})
    with pytest.raises(ConfigError, match="schedule='dysharp' needs dispatch 'multicast'"):
        load_schedule("dysharp").program(plain)
    few = system.with_changes({"gpu.families": {"warp_direct": {}}})
    with pytest.raises(ConfigError, match=r"schedule='mega-moe' needs family 'bulk'; gpu.families of dgx-h100 are \["):
        load_schedule("mega-moe").program(few)
    greedy = parse_spec(ScheduleSpec, {**BASE, "sms": {"dispatch": 66, "combine": 66}}, "schedule")
    with pytest.raises(ConfigError, match="leave no SM for GEMMs"):
        greedy.program(system)
    with pytest.raises(ConfigError, match=re.escape("split (100, 40) must leave some of 132 SMs")):
        load_schedule("dysharp").program(system, Exposure(("split",), splits=((8, 8), (100, 40))))


@pytest.mark.parametrize(
    ("schedule", "sms"),
    [
        ("deepep", "64 dispatch, 64 combine and 132"),
        ("comet", "26 dispatch, 26 combine and 106"),
        ("mega-moe", "132 d"),
    ],
)
def test_groups_that_share_sms_are_not_split(schedule: str, sms: str) -> None:
    with pytest.raises(ConfigError, match=f"exposed='split' does not fit schedule='{schedule}': its {sms}"):
        load_schedule(schedule).program(load_system("dgx-h100"), Exposure(("split",), splits=((8, 8), (4, 4))))


def test_a_split_without_a_third_number_leaves_early_tiles_to_the_schedule() -> None:
    def early_tokens(schedule: str, kinds: tuple[str, ...], partial_tiles: bool) -> list[int]:
        exposure = Exposure(kinds, partial_tiles=partial_tiles, splits=((8, 8), (8, 8, 5)))
        return [split[2] for split in load_schedule(schedule).program(load_system("dgx-h100"), exposure).splits]

    assert early_tokens("dysharp", ("split",), True) == [NEVER_EARLY, 5]  # whose rule closes none early
    assert early_tokens("dysharp", ("split", "gemm"), True) == [load_schedule("dysharp").min_partial_tokens, 5]
    closes = load_schedule("dysharp").with_changes({"partial_tiles": True, "min_partial_tokens": 24})
    program = closes.program(load_system("dgx-h100"), Exposure(("split",), splits=((8, 8), (4, 4, 5))))
    assert program.splits == ((8, 8, 24), (4, 4, 5))


def test_rules_become_weights_by_feature_name() -> None:
    program = load_schedule("dysharp-l2").program(load_system("dgx-h100"))
    gemm = program.weights[observation.GEMM]
    assert (
        gemm[observation.FEATURES.index("weights_in_l2")] == 1.0 and gemm[observation.FEATURES.index("is_gemm2")] == 1.0
    )
    assert np.count_nonzero(gemm) == 2
    # Prefetch and copies have weights without being named.
    unnamed = [observation.PREFETCH, observation.REPLICATE]
    others = np.delete(program.weights, [observation.GEMM, *unnamed], axis=0)
    assert program.weights[unnamed].any(axis=1).all() and not others.any()


def test_phases_do_not_overlap_and_fusion_does() -> None:
    scenario = ScenarioSpec(model="small", tokens=512, routing="uniform").build()
    workload = scenario.draw(0)
    for name in ("deepep", "nvls", "dysharp-basic"):
        phases = simulate(scenario.system, workload, load_schedule(name)).result().phases_us
        assert phases["dispatch"][1] < phases["gemm1"][0] and phases["gemm2"][1] < phases["combine"][0]
    comet = simulate(scenario.system, workload, load_schedule("comet")).result().phases_us
    assert comet["gemm1"][0] < comet["dispatch"][1] < comet["combine"][0] < comet["gemm2"][1]
    fused = simulate(scenario.system, workload, load_schedule("dysharp")).result().phases_us
    assert fused["combine"][0] < fused["gemm1"][1]


def test_the_paper_s_story_when_communication_binds() -> None:
    """Saved bytes become saved time only under fusion (the paper's machine, large, top-8, GEMM time near zero)."""
    scenario = ScenarioSpec(
        system="gh200-nvl32", model="large", top_k=8, tokens=1024, routing="uniform", compute_scale=0.001
    ).build()
    workload = scenario.draw(0)
    system = scenario.system.with_changes(read_yaml(find_config("calibrations", "paper"))["changes"])
    results = {
        name: simulate(system, workload, load_schedule(name), compute_scale=0.001).result()
        for name in ("deepep", "dysharp-basic", "dysharp", "nvls")
    }
    time = {name: result.makespan_us for name, result in results.items()}
    payload = {name: sum(result.payload_bytes[way] for way in ("up", "down")) for name, result in results.items()}
    assert 0.97 <= time["dysharp-basic"] / time["deepep"] <= 1.05
    assert 1 - payload["dysharp-basic"] / payload["deepep"] == pytest.approx(0.43, abs=0.01)
    # Flits a direction per 128 B of own tokens at R = 7.04: 20 R against 12 R + 10.
    ideal = 20 * 7.04 / (12 * 7.04 + 10)
    assert time["deepep"] / time["dysharp"] >= 0.9 * ideal
    assert time["nvls"] == max(time.values())


def test_all_sms_are_those_that_the_gpu_has() -> None:
    for system in map(load_system, ("dgx-h20", "dgx-h100", "vera-rubin-nvl72")):
        for name in preset_names("schedules"):
            program = load_schedule(name).program(system)
            if load_schedule(name).sms.dispatch == "all":
                assert (program.dispatch_sms, program.combine_sms) == (system.gpu.num_sms,) * 2
    fused = parse_spec(ScheduleSpec, {**BASE, "sms": {"dispatch": "all", "combine": 1}}, "schedule")
    with pytest.raises(ConfigError, match="sms.dispatch=all and sms.combine=1 leave no SM for GEMMs of the 132"):
        fused.program(load_system("dgx-h100"))


ALIASES = {
    "deepep_high_throughput": "deepep",
    "deepep_low_latency": "deepep-ll",
    "deepep_v2": "deepep-v2",
    "flashinfer_nvlink_one_sided": "trtllm-one-sided",
    "flashinfer_nvlink_two_sided": "trtllm-two-sided",
    "allgather_reducescatter": "nvls",
    "deep_gemm_mega_moe": "mega-moe",
}


def test_names_of_serving_systems_stand_for_presets() -> None:
    assert {alias: load_schedule(alias).name for alias in ALIASES} == ALIASES
    assert schedule_names() == preset_names("schedules") + sorted(ALIASES)
    assert {alias for name in preset_names("schedules") for alias in load_schedule(name).aliases} == set(ALIASES)
    with pytest.raises(ConfigError, match=re.escape("(did you mean 'deepep_low_latency'?)")):
        load_schedule("deepep_low_latencey")


def test_the_switch_sums_only_formats_that_the_system_names() -> None:
    scenario = ScenarioSpec(model="small", tokens=8, routing="uniform").build()
    system, layer = scenario.system, scenario.layer.with_changes({"combine_dtype": "fp8"})
    workload = dataclasses.replace(scenario.draw(0), layer=layer)
    with pytest.raises(ConfigError) as error:
        simulate(system, workload, load_schedule("nvls"))
    assert str(error.value) == (
        "schedule='nvls' sums in the switch (reduce_scatter); dgx-h100 does so for ['bf16'], not for"
        " combine_dtype='fp8'"
    )
    both = system.with_changes({"switch.reduction_dtypes": ["bf16", "fp8"]})
    times = {
        (machine, name): simulate(machine, workload, load_schedule(name)).result().makespan_us
        for machine, name in ((both, "nvls"), (both, "deepep"), (system, "deepep"))
    }
    assert times[both, "deepep"] == times[system, "deepep"]
    in_switch_only = system.with_changes({"switch.combine_primitives": ["reduce_scatter"]})
    with pytest.raises(ConfigError, match="combine_dtype='fp8' cannot be summed: "):
        simulate(in_switch_only, workload, load_schedule("nvls").with_changes({"combine": "unicast"}))


def test_fp4_gemms_need_fp4_arithmetic() -> None:
    scenario = ScenarioSpec(model="small", tokens=8, routing="uniform").build()
    workload = dataclasses.replace(scenario.draw(0), layer=scenario.layer.with_changes({"compute_dtype": "fp4"}))
    with pytest.raises(ConfigError, match=r"^compute_dtype='fp4' needs gpu.fp4_tflops, which is 0: "):
        simulate(scenario.system, workload, load_schedule("deepep"))
    assert simulate(load_system("dgx-b200"), workload, load_schedule("deepep")).result().ratio >= 1
