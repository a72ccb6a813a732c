"""The lower bound: below every simulated makespan, and equal to hand-worked cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError, preset_names
from dysharp_env.schedules import Exposure, LowerBound, Starter, load_schedule, simulate
from dysharp_env.simulator.costs import RESOLUTIONS, Costs
from dysharp_env.simulator.faults import FaultCosts
from dysharp_env.system import load_system
from dysharp_env.system.primitives import Primitive
from dysharp_env.workload import LayerSpec, ScenarioSpec, Workload, load_model
from dysharp_env.workload.placement import NOWHERE, Placement
from tests.conftest import Case, draw_system
from tests.random_workloads import Draw


def one_expert_each(num_gpus: int, tokens: int, target_of_home: Callable[..., Any]) -> Workload:
    """Returns a top-1 workload of one expert per GPU in which every token of GPU g goes to ``target_of_home(g)``."""
    layer = LayerSpec(
        name="one",
        hidden=1024,
        moe_ff=128,
        experts=num_gpus,
        top_k=1,
        ffn_matrices=2,
        compute_dtype="bf16",
        source="test",
    )
    ids = np.repeat([target_of_home(gpu) for gpu in range(num_gpus)], tokens)[:, None]
    return Workload.even(layer, num_gpus, ids, np.arange(num_gpus), "one expert each")


@pytest.mark.parametrize("schedule", preset_names("schedules"))
@pytest.mark.parametrize("compute_scale", [1.0, 0.001])
@pytest.mark.parametrize("model", ["small", "deepseek-v2-lite", "mixtral-8x7b"])
def test_no_schedule_beats_it(schedule: str, compute_scale: float, model: str) -> None:
    scenario = ScenarioSpec(model=model, tokens=48, routing="uniform").build()
    for seed in range(2):
        run = simulate(scenario.system, scenario.draw(seed), load_schedule(schedule), compute_scale=compute_scale)
        assert run.engine.now_ps >= run.lower_bound_ps


def test_random_choices_do_not_beat_it() -> None:
    rng = np.random.default_rng(0)
    exposure = Exposure(("split", "dispatch", "gemm", "combine"), True, True, ((1, 1), (8, 8), (40, 60)))
    for seed in range(10):
        scenario = ScenarioSpec(
            system="dgx-h200",
            gpus=int(rng.choice([2, 4, 8])),
            model="small",
            tokens=int(rng.integers(1, 40)),
            routing="dsv2-lite",
            compute_scale=float(rng.choice([1.0, 1e-4])),
        ).build()
        starter = Starter(
            scenario.system,
            scenario.layer,
            load_schedule("dysharp"),
            exposure=exposure,
            compute_scale=scenario.spec.compute_scale,
            resolution=RESOLUTIONS[seed % len(RESOLUTIONS)],
        )
        run = starter.start(scenario.draw(seed))
        while (decision := run.engine.advance()) is not None:
            run.engine.decide(int(rng.choice(np.flatnonzero(decision.mask))))
        assert run.engine.now_ps >= run.lower_bound_ps


def test_a_busy_uplink_sets_it() -> None:
    """Two GPUs send all tokens to each other: everything crosses once each way, whatever the primitive."""
    system = load_system("dgx-h100", 2)
    workload = one_expert_each(2, 4000, lambda gpu: 1 - gpu)
    costs = Costs.of(system, workload.layer, 1e-6)
    # A vector is 2048 B: 8 packets of bulk copies, 136 flits. Up go a store, the ack of the one received (8 flits), and
    # a partial sum of the other GPU's token: 280 flits of 16 B at 450 GB/s. Down come a store and a sum. One launch,
    # two hops.
    store_ps, ack_ps = 136 * 16 * 1000 // 450, 8 * 16 * 1000 // 450
    expected = costs.launch_ps + 4000 * (2 * store_ps + ack_ps) + 500_000
    bound = LowerBound(system, workload.layer, costs).of(workload)
    assert bound.total_ps == expected == costs.launch_ps + bound.links_ps
    assert max(bound.gemms_ps, bound.hbm_ps) < 0.01 * expected


def test_tokens_of_one_gpu_keep_its_links_busy() -> None:
    """A GPU with experts and no tokens, one with both and one with neither; every third token has no expert."""
    system = load_system("dgx-h100", 3)
    even = one_expert_each(3, 1, lambda gpu: gpu).layer
    layer = even.model_copy(update={"experts": 2})
    ids = np.tile([1, 0, -1], 2000)[:, None]
    workload = Workload(layer, np.array([6000, 0, 0]), ids, Placement(3, np.array([0, 1])), "of one GPU")
    costs = Costs.of(system, layer, 1e-6)
    bound = LowerBound(system, layer, costs).of(workload)
    # 2000 go out and 2000 come home, 136 flits each; the other GPU sends that and as many acknowledgements of 8.
    assert bound.links_ps == 2000 * (136 * 16 * 1000 // 450 + 8 * 16 * 1000 // 450) + 500_000
    # Before the last sum leaves the last token comes, which is all that is out of step.
    assert bound.total_ps == costs.launch_ps + bound.links_ps


def test_copies_wait_for_links_and_not_for_hbm() -> None:
    """One expert on one GPU; the second has a copy of it, the third one of that; every token is served at home."""
    layer = LayerSpec(
        name="one", hidden=2048, moe_ff=2048, experts=1, top_k=1, ffn_matrices=2, compute_dtype="bf16", source="test"
    )
    placement = Placement(3, np.arange(3), np.zeros(3, int), np.array([-1, 0, 1]))
    workload = Workload(layer, np.array([4, 4, 4]), np.repeat(np.arange(3), 4)[:, None], placement, "copied")
    # 2 x 8 MiB in the bulk copies' packets, of 16 flits and a header; others are smaller.
    expert_ps = 2 * (2**23 // 16 + 2**23 // 256) * 16 * 1000 // 450
    for primitives in (["unicast"], ["multicast", "unicast"]):
        system = load_system("dgx-h100", 3).with_changes({"switch.dispatch_primitives": primitives})
        costs = Costs.of(system, layer, 0.001)
        bound = LowerBound(system, layer, costs).of(workload)
        assert bound.links_ps == pytest.approx(expert_ps + 500_000, rel=1e-3)
        assert bound.total_ps == costs.launch_ps + bound.links_ps
        assert bound.hbm_ps == pytest.approx(costs.hbm_ps(2**24), abs=4)
    # Where the switch replicates nothing, the GPU that has it sends it once for each copy that is made of it.
    twice = dataclasses.replace(
        workload, placement=dataclasses.replace(placement, copied_from=np.array([-1, 0, 0])), name="twice"
    )
    plain = load_system("dgx-h100", 3).with_changes({"switch.dispatch_primitives": ["unicast", "pull"]})
    bound = LowerBound(plain, layer, Costs.of(plain, layer, 0.001)).of(twice)
    assert bound.links_ps == pytest.approx(2 * expert_ps + 500_000, rel=1e-3)


@pytest.mark.parametrize("hbm_gbps", [3350, 300])
def test_local_tokens_cost_no_link(hbm_gbps: int) -> None:
    system = load_system("dgx-h100", 2).with_changes({"gpu.hbm_gbps": hbm_gbps})
    workload = one_expert_each(2, 64, lambda gpu: gpu)
    costs = Costs.of(system, workload.layer, 1.0)
    # Four granules of 16 tokens in each GEMM and what its blocks take besides, spread over 132 SMs, after a launch and
    # one memory access, or the weights from HBM after the launch.
    sm_ps = 4 * (costs.blocks[0] * costs.granule_ps[0] + costs.blocks[1] * costs.granule_ps[1]) // system.gpu.num_sms
    hbm_ps = costs.hbm_ps(2 * 1024 * 128 * 2)
    bound = LowerBound(system, workload.layer, costs).of(workload)
    sm_ps += sum(costs.blocks) * costs.block_overhead_ps // system.gpu.num_sms
    assert bound.total_ps == pytest.approx(costs.launch_ps + max(costs.memory_ps + sm_ps, hbm_ps), abs=200)
    assert bound.links_ps == 0
    assert bound.gemms_ps == pytest.approx(sm_ps, abs=200)
    assert bound.hbm_ps == pytest.approx(hbm_ps, abs=200)


def test_a_tile_of_few_tokens_counts_its_reading_of_weights() -> None:
    system = load_system("dgx-h100", 2)
    workload = one_expert_each(2, 8, lambda gpu: gpu)
    costs = Costs.of(system, workload.layer, 1.0)
    # 8 tokens are a granule of 16: half its arithmetic for reading it, and that of 32 tokens for reading the weights.
    assert costs.operand_ps == pytest.approx([2 * granule_ps for granule_ps in costs.granule_ps], abs=1)
    sm_ps = sum(
        blocks * (operand_ps + granule_ps // 2 + costs.block_overhead_ps)
        for blocks, operand_ps, granule_ps in zip(costs.blocks, costs.operand_ps, costs.granule_ps, strict=True)
    )
    bound = LowerBound(system, workload.layer, costs).of(workload)
    assert bound.gemms_ps == sm_ps // system.gpu.num_sms
    rounded = system.with_changes({"gpu.row_granularity": 64, "gpu.operand_tokens": 0})
    assert LowerBound(rounded, workload.layer, Costs.of(rounded, workload.layer)).of(workload).gemms_ps > bound.gemms_ps


def test_in_switch_primitives_lower_it() -> None:
    """On hardware without in-switch operations the same workload needs more time on the links."""
    alike = {"link.multimem_flits": 0, "gpu.families": {}}
    full = load_system("dgx-h100").with_changes(alike)
    plain = full.with_changes({"switch.dispatch_primitives": ["unicast"], "switch.combine_primitives": ["unicast"]})
    layer = load_model("large", top_k=8)
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((8 * 64, 256)), axis=1)[:, :8]
    workload = Workload.even(layer, 8, ids, np.arange(256) // 32, "uniform")
    costs = Costs.of(full, layer, 1e-4)
    bound_ps = [LowerBound(system, layer, costs).of(workload).total_ps for system in (plain, full)]
    assert bound_ps[0] > 1.3 * bound_ps[1]


def test_kernels_with_large_packets_lower_it() -> None:
    """A bound for any schedule counts on the best packets that plain stores have: half of the headers here."""
    system = load_system("dgx-h100", 2)
    small = system.with_changes({"gpu.families.bulk.payload_bytes": 128})
    workload = one_expert_each(2, 4000, lambda gpu: 1 - gpu)
    links_ps = [
        LowerBound(each, workload.layer, Costs.of(each, workload.layer)).of(workload).links_ps
        for each in (small, system)
    ]
    # 2048 B are 128 flits, twice, with 16 or 8 headers each and as many acknowledgements of what the other sends.
    assert links_ps[0] / links_ps[1] == pytest.approx((2 * 144 + 16) / (2 * 136 + 8), rel=1e-3)


def test_it_counts_every_vector_request_and_acknowledgement(random_case: Callable[[int], Case]) -> None:
    """The links' share of it, added up token by token for each pair of primitives that hardware may have alone."""
    seen, copies = set(), 0
    for seed in range(150):
        case = random_case(seed)
        dispatch = case.program.dispatch.name
        combine = case.program.combine.name
        switch = {"switch.dispatch_primitives": [dispatch], "switch.combine_primitives": [combine]}
        switch["switch.reduction_dtypes"] = ["bf16", "fp8"]
        # Next to nothing is computed, and hops take no time, so that nothing but the links matters.
        free = {
            "granule_ps": (1, 1),
            "operand_ps": (0, 0),
            "block_overhead_ps": 0,
            "hbm_bytes_per_s": 10**18,
            "memory_ps": 0,
            "hop_ps": 0,
            "faults": FaultCosts(),
        }
        # Every primitive in one kind of packets: which of several is best is not what is added up.
        alike = dataclasses.replace(case.costs.families, specs={})
        costs = dataclasses.replace(case.costs, **free, families=alike)
        costs = costs.under(case.program.dispatch, case.program.combine)
        system = load_system("dgx-h100").with_changes(switch)
        first_ps, second_ps = (least_matrix_ps(costs, num_bytes) for num_bytes in costs.matrix_bytes)
        out, acks, home = link_needs(case.workload, costs, dispatch, combine)
        moved = weight_needs(case.workload, dispatch, first_ps + second_ps)
        # Rows and the way home come after whatever goes out, and rows before whatever comes home.
        rows_ps = costs.block_ps(1, 1) + costs.block_ps(2, 1)
        out_ps, home_ps = ways(costs, case.program.dispatch, case.program.combine)
        busiest_ps = (out + acks + home + moved).max()
        if out.any():
            busiest_ps = max(busiest_ps, out.max() + rows_ps + home_ps)
        if home.any():
            busiest_ps = max(busiest_ps, rows_ps + home.max())
        bound_ps = LowerBound(system, case.workload.layer, costs).of(case.workload).total_ps - costs.launch_ps
        assert bound_ps >= busiest_ps, (seed, dispatch, combine)
        if busiest_ps > max(out_ps, first_ps * moved.any()) + rows_ps + home_ps + 1000:
            assert bound_ps == busiest_ps, (seed, dispatch, combine)
            seen.add((dispatch, combine))
            copies += moved.any()
    assert len(seen) == 25, seen
    assert copies > 5


def ways(costs: Costs, dispatch: Primitive, combine: Primitive) -> tuple[int, int]:
    """Returns how long a vector is at hand and on the wire, out and home, where hops and memory take no time."""
    named = int(dispatch.names_targets)
    out_ps = costs.wire_ps(costs.dispatch_flits(named))
    if dispatch.reads:
        out_ps += costs.wire_ps(costs.dispatch_packet.ask_flits(costs.dispatch_bytes))
    home_ps = costs.wire_ps(costs.combine_flits()) + costs.cycle_ps * combine.in_switch
    if combine.reads:
        home_ps += costs.wire_ps(costs.request_flits(int(combine.names_targets)))
    out_sm, home_sm = costs.dispatch_sm, costs.combine_sm
    out_ps += out_sm.delay_ps(out_sm.token_ps * (dispatch.in_switch and not dispatch.by_team))
    return out_ps, home_ps + home_sm.delay_ps(home_sm.token_ps * (combine.in_switch and combine.reads))


def link_needs(workload: Workload, costs: Costs, dispatch: str, combine: str) -> np.ndarray:
    """Returns what uplinks, downlinks and reduction units must carry at least, (3, gpu) ps.

    Of dispatch, of its acknowledgements, and of combine, (3, 3, gpu). What only goes where no expert is is left out:
    nobody waits for it.
    """
    num_gpus = workload.num_gpus
    needs = np.zeros((3, 3, num_gpus), np.int64)
    (up, down, _), (acks, _, _), (home_up, home_down, reduction) = needs
    packet, wire_ps = costs.dispatch_packet, costs.wire_ps
    data_ps, sum_ps = wire_ps(costs.dispatch_flits()), wire_ps(costs.combine_flits())
    ack_ps = wire_ps(packet.acknowledge_flits(costs.dispatch_bytes))
    ask_ps, ask_sum_ps = wire_ps(packet.ask_flits(costs.dispatch_bytes)), wire_ps(costs.request_flits())
    for home, chosen, count in zip(
        workload.home_of_token.tolist(), workload.topk_ids, workload.experts_of_token.tolist(), strict=True
    ):
        gpus = workload.gpu_of_expert[chosen[:count]]
        others = {gpu: int((gpus == gpu).sum()) for gpu in gpus.tolist() if gpu != home}
        everyone = [gpu for gpu in range(num_gpus) if gpu != home]
        targets = sum(others.values())
        if dispatch == "broadcast" and others:
            up[home] += data_ps
        if dispatch == "multicast" and others:
            up[home] += wire_ps(costs.dispatch_flits(targets))
        if dispatch == "team":
            up[home] += len({gpu // costs.team_gpus for gpu in others}) * data_ps
        if combine == "reduce_scatter" and count:
            home_up[everyone] += sum_ps
            home_up[home] += ask_sum_ps
            home_down[home] += sum_ps
            reduction[home] += len(everyone) * costs.reduce_ps(costs.combine_flits())
        if combine in ("push_reduce", "pull_reduce") and others:
            home_down[home] += sum_ps
            home_up[home] += wire_ps(costs.request_flits(targets)) * (combine == "pull_reduce")
        for gpu, named in others.items():
            if dispatch in ("unicast", "pull"):
                up[home] += data_ps
                down[gpu] += data_ps
            if dispatch == "multicast":
                down[gpu] += wire_ps(costs.dispatch_flits(named))
            if dispatch in ("broadcast", "team"):
                down[gpu] += data_ps
            if dispatch == "pull":
                up[gpu] += ask_ps
            else:
                acks[gpu] += ack_ps
            if combine == "reduce_scatter":
                continue
            home_up[gpu] += sum_ps
            if combine in ("unicast", "pull"):
                home_down[home] += sum_ps
            else:
                reduction[home] += costs.reduce_ps(costs.combine_flits())
            if combine == "pull":
                home_up[home] += ask_sum_ps
    return needs


def least_matrix_ps(costs: Costs, num_bytes: int) -> int:
    """Returns what a matrix takes in tiles of 1 KiB or, if it is small, in 16, each of them rounded down."""
    tiles = max(16, -(-num_bytes // 1024))
    return max(0, int(costs.wire_ps(costs.dispatch_packet.data_flits(num_bytes))) - tiles * costs.quantum_ps)


def weight_needs(workload: Workload, primitive: str, expert_ps: int) -> np.ndarray:
    """Returns what links must carry of weights at least, (3, gpu) ps: down for each copy, up from where chains begin.

    A switch that replicates stores needs one for all copies; a copy may be made of another.
    """
    needs = np.zeros((3, workload.num_gpus), np.int64)
    placement, sent = workload.placement, set()
    for copy, source in enumerate(placement.copied_from.tolist()):
        if source == NOWHERE:
            continue
        needs[1, placement.gpu_of_expert[copy]] += expert_ps
        once = source in sent and primitive in ("multicast", "team", "broadcast")
        if placement.copied_from[source] == NOWHERE and not once:
            needs[0, placement.gpu_of_expert[source]] += expert_ps
            sent.add(source)
    return needs


def test_no_random_program_on_a_random_machine_beats_it(random_case: Callable[[int], Case]) -> None:
    """The cases on which engine and twin agree: every primitive, gate, discipline, buffer size and rule."""
    for seed in range(200):
        case = random_case(seed).with_program(exposed=frozenset())
        bound_ps = any_bound(case, seed).of(case.workload).total_ps
        assert case.engine(logging=False).run().now_ps >= bound_ps, seed


def any_bound(case: Case, seed: int) -> LowerBound:
    """Returns what bounds layers on a random case's machine, whose programs pay what stands first."""
    system = draw_system(Draw(seed), case.workload.num_gpus)
    system = system.with_changes({"overheads.count_exchange_us": 0, "overheads.plan_us": 0})
    costs = Costs.of(system, case.workload.layer)
    costs = dataclasses.replace(costs, launch_ps=case.program.pays_ps[0], slow_permille=case.costs.slow_permille)
    return LowerBound(system, case.workload.layer, costs)


@pytest.mark.parametrize("compute_scale", [0.9, 0.7, 0.333, 0.03, 1e-6])
def test_any_compute_scale_keeps_picoseconds_exact(compute_scale: float) -> None:
    scenario = ScenarioSpec(model="small", tokens=16, routing="uniform").build()
    run = simulate(scenario.system, scenario.draw(0), load_schedule("dysharp"), compute_scale=compute_scale)
    assert run.engine.now_ps >= run.lower_bound_ps


def test_what_would_leave_int64_is_refused() -> None:
    system = load_system("dgx-h100").with_changes({"gpu.hbm_gbps": 0.001})
    layer = LayerSpec(
        name="huge", hidden=10**6, moe_ff=10**6, experts=8, top_k=2, ffn_matrices=2, compute_dtype="bf16", source="test"
    )
    ids = np.tile([0, 1], (8 * 64, 1))
    workload = Workload.even(layer, 8, ids, np.arange(8), "huge")
    with pytest.raises(ConfigError, match="tokens=64 of 'huge' are too many for exact picoseconds"):
        simulate(system, workload, load_schedule("dysharp"))


@pytest.mark.parametrize("schedule", preset_names("schedules"))
def test_nothing_is_busy_for_longer_than_the_layer(schedule: str) -> None:
    """HBM stores and acknowledgements still under way at the end are not in the makespan."""
    scenario = ScenarioSpec(
        system="gh200-nvl32",
        gpus=2,
        model="small",
        tokens=130,
        routing="uniform",
        direction="backward",
        compute_scale=100,
    ).build()
    result = simulate(scenario.system, scenario.draw(0), load_schedule(schedule), compute_scale=100).result()
    assert all(0 <= use["mean"] <= use["max"] <= 1 for use in result.utilisation.values())
