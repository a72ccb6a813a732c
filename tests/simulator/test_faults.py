"""Faults of a machine: none by default, each worked by hand; none hangs a layer or changes what it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from dysharp_env.config import ConfigError, preset_names
from dysharp_env.multimem import execute, random_tensors
from dysharp_env.schedules import LowerBound, Problem, load_schedule
from dysharp_env.schedules.opponent import ScheduleOpponent
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.faults import FaultCosts
from dysharp_env.simulator.record import record
from dysharp_env.simulator.state import codes
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.system.faults import read_faults
from dysharp_env.workload import LayerSpec, ScenarioSpec
from dysharp_env.workload.source import WorkloadSource
from tests.conftest import Case
from tests.multimem.small_layers import HIDDEN, INNER, SHIPPED, draw_workload, is_dense, played
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system
from tests.simulator.run_log import ended, started, uses

ALL_AT_ONCE = "slow_link=1.7,slow_plane=1.3,dead_planes=1,late_us=3,replay_every=7,taken_slots=0.9"
PRESETS = preset_names("faults")


def round_case(make_case: Callable[..., Case], meets: bool = False, **faults: float) -> Case:
    """Returns two GPUs with a token each, which goes to the expert of the other: both cross once, there and back."""
    system = round_system(2).with_changes({f"faults.{key}": value for key, value in faults.items()})
    layer = round_layer(2).model_copy(update={"top_k": 1})
    return make_case(system, layer, np.array([[1], [0]]), dataclasses.replace(ROUND_PROGRAM, meets=meets))


def ends(case: Case) -> tuple[list[int], list[int]]:
    """Returns when both tokens were seen by their experts and when they were home, by engine and twin alike."""
    engine, twin = case.engine().run(), case.twin().run()
    for name in ("dispatch_end", "combine_end"):
        assert engine.state.tokens[name][:-1].tolist() == [getattr(token, name) for token in twin.tokens]
    return engine.state.tokens["dispatch_end"][:-1].tolist(), engine.state.tokens["combine_end"][:-1].tolist()


def test_a_slow_link_holds_a_vector_up_once_on_its_way(make_case: Callable[..., Case]) -> None:
    """A packet of 9 flits takes 9000 ps more where GPU 0's links take twice as long; cutting through hides nothing."""
    (out, home), (slow_out, slow_home) = (ends(round_case(make_case, **faults)) for faults in ({}, {"slow_link": 2}))
    # GPU 0's own goes up slowly, and what comes down to GPU 0 does; either way one of the two links is sound.
    assert [after - before for before, after in zip(out, slow_out, strict=True)] == [9000, 9000]
    # An acknowledgement of one flit is before the sum on the slow links: on its way up from GPU 0, of GPU 1's token.
    assert slow_home[0] - home[0] == 2 * 9000
    assert slow_home[1] - home[1] in (2 * 9000, 2 * 9000 + 1000)


def test_a_slow_plane_is_every_link_where_planes_are_one(make_case: Callable[..., Case]) -> None:
    (out, home), (slow_out, slow_home) = (ends(round_case(make_case, **faults)) for faults in ({}, {"slow_plane": 2}))
    assert [after - before for before, after in zip(out, slow_out, strict=True)] == [9000, 9000]
    assert all(after - before >= 18_000 for before, after in zip(home, slow_home, strict=True))


def test_a_replayed_packet_stops_its_link_for_a_round_trip(make_case: Callable[..., Case]) -> None:
    """Every packet crosses again: 9 flits after two hops, on either link; the switch sends it on meanwhile."""
    sound = ends(round_case(make_case))
    case = round_case(make_case, replay_every=1)
    again = ends(case)
    lost_ps = 2 * 100_000 + 9000
    assert [after - before for before, after in zip(sound[0], again[0], strict=True)] == [lost_ps] * 2
    assert [after - before for before, after in zip(sound[1], again[1], strict=True)] == [2 * lost_ps] * 2
    traffic = case.engine().run().state.traffic.reshape(2, 2, codes.NUM_PURPOSES)
    # A copy and a sum up each link, and down.
    assert traffic[:, :, codes.REPLAY].tolist() == [[18, 18], [18, 18]]
    # Every second: of the two on each link the sum alone, which is the later one.
    seldom = ends(round_case(make_case, replay_every=2))
    assert seldom[0] == sound[0]
    assert [after - before for before, after in zip(sound[1], seldom[1], strict=True)] == [lost_ps] * 2
    assert ends(round_case(make_case, replay_every=3)) == sound


@pytest.mark.parametrize("meets", [False, True])
def test_a_late_gpu_makes_those_wait_that_meet_it(make_case: Callable[..., Case], meets: bool) -> None:
    late_ps = 1_000_000
    case = round_case(make_case, meets, late_us=1)
    engine, twin = case.engine().run(), case.twin().run()
    starts = engine.state.tokens["dispatch_start"][:-1].tolist()
    assert starts == [10_000 + late_ps, 10_000 + late_ps * meets] == [token.dispatch_start for token in twin.tokens]
    tiles = engine.state.tiles[started(engine.state.tiles, 0) >= 0]
    of_late = tiles[engine.state.experts["gpu"][tiles["expert"]] == 0]
    assert started(of_late, 0).min() >= 10_000 + late_ps
    if not meets:
        # GPU 1's token had come to GPU 0 before that, and GPU 0's to GPU 1 as late as it was sent.
        out, _ = ends(round_case(make_case))
        assert engine.state.tokens["dispatch_end"][:-1].tolist() == [out[0] + late_ps, out[1]]
        assert engine.now_ps > ended(tiles, 1).max()


@pytest.mark.parametrize("resolution", ["token", "packet"])
def test_dead_planes_leave_the_rate_of_the_others(resolution: str) -> None:
    system = load_system("dgx-h100")
    layer = ScenarioSpec(model="small", routing="uniform").build().layer
    dead = system.with_changes({"faults.dead_planes": 1})
    sound, left = (Costs.of(each, layer, resolution=resolution) for each in (system, dead))
    if resolution == "packet":
        assert (left.planes, left.wire_ps(1000)) == (sound.planes - 1, sound.wire_ps(1000))
        # 13 of 18 ports are left of 4 planes, where 13.5 would be.
        assert left.credit_flits == pytest.approx(sound.credit_flits, rel=0.04)
        assert left.reduction_slots == pytest.approx(sound.reduction_slots, rel=0.04)
    else:
        assert left.wire_ps(3000) == pytest.approx(sound.wire_ps(4000), abs=2)
        assert left.credit_flits == sound.credit_flits * 13 // 18
        assert left.reduction_slots == sound.reduction_slots * 13 // 18


def test_packets_go_to_living_planes_only_and_wait_where_one_is_slow() -> None:
    scenario = ScenarioSpec(system="dgx-h100", gpus=4, model="small", tokens=8, routing="uniform").build()
    schedule, busy = load_schedule("dysharp"), {}
    for faults in ("none", "dead_planes=1", "slow_plane=3"):
        problem = Problem.of(scenario.with_faults(faults).system, scenario.draw(0), resolution="packet")
        state = problem.run(schedule).engine.state
        planes = int(state.root["planes"][0])
        assert planes == 4 - (faults == "dead_planes=1") and set(state.nodes["plane"].tolist()) == set(range(planes))
        busy[faults] = state.uplinks["busy_ps"].reshape(-1, planes).sum(axis=0)
    slow, sound = busy["slow_plane=3"] / busy["none"].mean(), busy["none"] / busy["none"].mean()
    assert slow[0] == pytest.approx(3 * sound[0], rel=0.1) and slow[1:] == pytest.approx(sound[1:], rel=0.1)


def test_taken_slots_evict_partial_sums() -> None:
    scenario = ScenarioSpec(system="dgx-h100", model="small", tokens=64, routing="uniform").build()
    evictions = []
    for faults in ("none", "taken_slots=0.999"):
        problem = Problem.of(scenario.with_faults(faults).system, scenario.draw(0))
        evictions.append(int(problem.run(load_schedule("dysharp")).engine.state.root["evictions"][0]))
    assert evictions[0] < evictions[1]


@pytest.mark.parametrize("resolution", ["token", "packet"])
def test_settings_of_no_fault_change_no_cost(resolution: str) -> None:
    system, layer = load_system("dgx-h100"), ScenarioSpec(model="small", routing="uniform").build().layer
    spelt = system.with_changes({"faults": read_faults("slow_link=1,slow_plane=1.0,late_us=0,replay_every=0")})
    assert spelt == system
    assert Costs.of(spelt, layer, resolution=resolution) == Costs.of(system, layer, resolution=resolution)


@pytest.mark.parametrize("name", SHIPPED)
def test_no_fault_hangs_a_schedule_or_changes_what_it_computes(name: str) -> None:
    """Every preset and all at once for hangs; of those one after the other, schedule by schedule, for the function."""
    spec, kinds = load_schedule(name), [*PRESETS, ALL_AT_ONCE]
    chosen = kinds[SHIPPED.index(name) % len(kinds)]
    workload = draw_workload(SHIPPED.index(name), num_gpus=4, tokens_per_gpu=6)
    for faults in kinds:
        engine = played(spec, workload, "dgx-h100", faults=faults)
        assert engine.done
        if faults in (chosen, ALL_AT_ONCE):
            tensors = random_tensors(engine.workload, HIDDEN, INNER, 0)
            assert is_dense(execute(record(engine), engine.workload, tensors), engine.workload, tensors), faults


@pytest.mark.parametrize("faults", PRESETS)
def test_no_fault_lowers_a_bound_and_nobody_beats_it(faults: str) -> None:
    for options in (
        {"system": "dgx-h100", "model": "olmoe", "tokens": 16},
        {"system": "dgx-h20", "model": "small", "tokens": 200},
        {"system": "gb200-nvl72", "gpus": 8, "model": "qwen3-30b", "tokens": 64},
    ):
        scenario = ScenarioSpec(routing="paper-normal", **options).build()
        workload = scenario.draw(1)
        sound, broken = (Problem.of(each.system, workload) for each in (scenario, scenario.with_faults(faults)))
        assert broken.bound.total_ps >= sound.bound.total_ps
        for name in ("dysharp", "mega-moe", "deepep"):
            run = ScheduleOpponent(load_schedule(name)).run(broken)
            assert run.engine.now_ps >= run.family_bound().total_ps >= broken.bound.total_ps


def test_bounds_know_of_slow_links_and_of_a_late_gpu() -> None:
    """Where links bind the bound is as much higher as they are slow; rows of a late GPU wait for it."""
    layer = LayerSpec(
        **{"name": "wide", "hidden": 8192, "moe_ff": 64, "experts": 8, "top_k": 4, "ffn_matrices": 2},
        **{"compute_dtype": "bf16", "source": "test"},
    )
    scenario = ScenarioSpec(system="dgx-h100", model="small", tokens=128, routing="uniform").build()
    workload = WorkloadSource(layer, 8, 512, "uniform").draw(0)

    def bound(**faults: float) -> int:
        system: SystemSpec = scenario.system.with_changes({f"faults.{key}": value for key, value in faults.items()})
        return LowerBound(system, layer, Costs.of(system, layer)).of(workload).links_ps

    assert bound(slow_link=2) == pytest.approx(2 * bound(), rel=0.1)
    # Three planes of four as fast as ever, and one at half the rate, move as much as three and a half.
    assert bound(slow_plane=2) == pytest.approx(bound() * 4 / 3.5, rel=0.02)
    assert bound(dead_planes=1) == pytest.approx(bound() * 4 / 3, rel=0.02)
    total = [
        LowerBound(system, layer, Costs.of(system, layer)).of(workload).total_ps
        for system in (scenario.system, scenario.system.with_changes({"faults.late_us": 1000}))
    ]
    assert total[1] > total[0] and total[1] >= 1000 * 10**6


def test_a_fault_that_a_machine_cannot_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="faults.dead_planes=4 must be less than link.planes=4"):
        load_system("dgx-h100").with_changes({"faults.dead_planes": 4})


def test_logged_times_are_those_of_slow_links(make_case: Callable[..., Case]) -> None:
    case = round_case(make_case, slow_link=2.5)
    took = {
        (use.resource, use.gpu): use.end_ps - use.start_ps
        for use in uses(case.engine().run().state)
        if use.resource == codes.LOG_UP
    }
    assert took == {(codes.LOG_UP, 0): 22_500, (codes.LOG_UP, 1): 9000}


def test_random_machines_have_every_fault_alone_and_with_others(random_case: Callable[[int], Case]) -> None:
    """What twin, laws, bounds and functional machine are compared on elsewhere."""
    found = [random_case(seed).costs.faults for seed in range(200)]
    sound = FaultCosts()
    assert 80 < sum(faults == sound for faults in found) < 150
    for name in ("slow_link_permille", "slow_plane_permille", "replay_packets", "late_ps"):
        assert sum(getattr(faults, name) != getattr(sound, name) for faults in found) > 20, name
