"""What bounds whoever may copy weights: below any choice of copies, and equal to hand-worked cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import combinations, product

import numpy as np
import pytest

from dysharp_env.schedules import LowerBound, Problem, load_schedule
from dysharp_env.schedules.copy_bound import Asked, links_ps, spread_ps, without_copies
from dysharp_env.schedules.needs import combine_needs, dispatch_needs, weights
from dysharp_env.schedules.replication import WEIGHTS
from dysharp_env.simulator.costs import Costs
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.system.primitives import Primitive
from dysharp_env.workload import LayerSpec, ScenarioSpec, Workload
from dysharp_env.workload.placement import NOWHERE, Placement
from tests.conftest import Case
from tests.schedules.test_bound import link_needs, one_expert_each, weight_needs

PAYS_US = {"overheads.launch_us": 4, "overheads.count_exchange_us": 7, "overheads.plan_us": 36}


def system_of(num_gpus: int, **changes: object) -> SystemSpec:
    settings = {**PAYS_US, **{key.replace("__", "."): value for key, value in changes.items()}}
    return load_system("dgx-h100", num_gpus).with_changes(settings)


def both_bounds(system: SystemSpec, workload: Workload, scale: float = 1.0) -> tuple[int, int]:
    """Returns the bound of whoever leaves experts where they are, and of whoever may copy them."""
    bound = LowerBound(system, workload.layer, Costs.of(system, workload.layer, scale))
    return bound.of(workload).total_ps, bound.of(workload, copies_allowed=True).total_ps


def test_work_is_spread_over_all_gpus() -> None:
    system = system_of(4)
    workload = one_expert_each(4, 6400, lambda gpu: 0)
    costs = Costs.of(system, workload.layer, 10.0)
    # 25600 tokens are 1600 granules of 16 in each GEMM and 200 tiles, more work than anything else, on one GPU or four.
    sm_ps = sum(
        blocks * (1600 * granule_ps + 200 * costs.block_overhead_ps)
        for blocks, granule_ps in zip(costs.blocks, costs.granule_ps, strict=True)
    )
    # Tokens are there after one memory access. Others begin with one more, the first matrix, 1024 x 128 BF16 in packets
    # of 2048 flits and headers at 450 GB/s, and two hops; three of the four GPUs lose that.
    matrix_ps = (2048 * 8 + 1024 * 128 * 2 // 256) * 16 * 1000 // 450
    first_copy_ps = costs.memory_ps + matrix_ps + 500_000
    placed_ps, copies_ps = both_bounds(system, workload, 10.0)
    assert placed_ps == pytest.approx(4_000_000 + costs.memory_ps + sm_ps / 132, abs=2000)
    lost_ps = (costs.memory_ps + 3 * first_copy_ps) / 4
    assert copies_ps == pytest.approx(47_000_000 + lost_ps + sm_ps / 132 / 4, abs=2000)
    assert copies_ps < 0.4 * placed_ps


def test_a_slow_gpu_has_its_part_of_the_work() -> None:
    # 10 SMs each. GPU 0 takes twice as long, so that 3000 are 200 each for both.
    assert spread_ps(3000, 10, 2000, [0, 0]) == 200
    # The other one begins 50 late: it has 1500 to do when it does so.
    assert spread_ps(3000, 10, 1000, [0, 50]) == 175
    # Whoever comes when all is done does not help: GPU 0 alone.
    assert spread_ps(3000, 10, 2000, [0, 10**9]) == 600
    assert spread_ps(3000, 10, 1000, [10**9, 7, 10**9]) == 307


def test_nobody_copies_for_less_than_it_costs() -> None:
    """With little to do the bound is that of the layer as it is placed; with more the plan is worth its time."""
    system = system_of(4)
    few, many = (one_expert_each(4, tokens, lambda gpu: 0) for tokens in (64, 6400))
    placed_ps, copies_ps = both_bounds(system, few)
    assert copies_ps == placed_ps < 47_000_000
    placed_ps, copies_ps = both_bounds(system, many, 10.0)
    assert 47_000_000 < copies_ps < 0.5 * placed_ps


def test_weights_leave_hbm_or_the_gpu() -> None:
    """24 experts of one token each on one of two GPUs: as many are read there as are sent away meanwhile."""
    layer = LayerSpec(
        name="many", hidden=1024, moe_ff=1024, experts=24, top_k=1, ffn_matrices=2, compute_dtype="bf16", source="test"
    )
    # 2 x 1024 x 1024 BF16, 4 MiB, are 9.9 us of a link's payload and headers; HBM takes half of that.
    system = system_of(2, gpu__hbm_gbps=900 * 128 / 136, gpu__hbm_efficiency=1.0, overheads__plan_us=0)
    workload = Workload(layer, np.array([12, 12]), np.arange(24)[:, None], Placement(2, np.zeros(24, int)), "many")
    expert_ps = 4 * 2**20 * (136 / 128) * 1000 / 450
    placed_ps, copies_ps = both_bounds(system, workload)
    assert placed_ps == pytest.approx(4_000_000 + 24 * expert_ps / 2, rel=1e-3)
    assert copies_ps == pytest.approx(11_000_000 + 16 * expert_ps / 2, rel=1e-3)


def test_copies_in_a_workload_change_nothing(random_case: Callable[[int], Case]) -> None:
    """Who may copy anything may also drop copies: a bound for all plans of a workload."""
    seen = 0
    for seed in range(200):
        workload = random_case(seed).workload
        system = system_of(workload.num_gpus)
        if workload.placement.num_copies == 0 or not Asked.of(workload).is_placed:
            continue
        placed = without_copies(workload)
        assert np.array_equal(np.sort(placed.logical_ids), np.sort(workload.logical_ids))
        assert not placed.placement.num_copies
        assert both_bounds(system, workload)[1] == both_bounds(system, placed)[1] <= both_bounds(system, placed)[0]
        seen += 1
    assert seen > 20


def test_tokens_without_experts_need_nothing(random_case: Callable[[int], Case]) -> None:
    for seed in range(60):
        case = random_case(seed)
        workload = case.workload
        bare = np.full((workload.num_gpus * 3, workload.layer.top_k), -1)
        where = np.repeat(workload.first_token[1:], 3)
        more = dataclasses.replace(
            workload,
            tokens_of_gpu=workload.tokens_of_gpu + 3,
            topk_ids=np.insert(workload.topk_ids, where, bare, axis=0),
        )
        system = system_of(workload.num_gpus)
        # Replicas are chosen for tokens by their order in these layers, so that only their own have the same bound.
        assert both_bounds(system, more) == both_bounds(system, workload), seed


def plans(workload: Workload) -> Iterator[Workload]:
    """Yields a layer of two GPUs with every set of copies, and with every choice of who serves which token."""
    home = workload.gpu_of_expert
    experts, slots = workload.num_experts, workload.topk_ids.size
    for count in range(experts + 1):
        for copied in combinations(range(experts), count):
            sources = np.append(np.full(experts, NOWHERE), copied).astype(int)
            gpus = np.append(home, 1 - home[list(copied)])
            logical = np.append(np.arange(experts), copied).astype(int)
            placement = Placement(2, gpus, logical, sources)
            copy_of = {expert: experts + place for place, expert in enumerate(copied)}
            places = [place for place in range(slots) if workload.topk_ids.flat[place] in copy_of]
            for moved in product((False, True), repeat=len(places)):
                ids = np.array(workload.topk_ids)
                for place, moves in zip(places, moved, strict=True):
                    if moves:
                        ids.flat[place] = copy_of[ids.flat[place]]
                yield workload.served_by(ids, placement)


def test_no_choice_of_copies_needs_less_of_the_links(random_case: Callable[[int], Case]) -> None:
    """Every plan of tiny layers under random primitives: what the best leaves its busiest link with."""
    shares, seen = [], set()
    for seed in range(75):
        case, rng = random_case(seed), np.random.default_rng(seed)
        dispatch, combine = case.program.dispatch, case.program.combine
        costs = dataclasses.replace(case.costs, families=dataclasses.replace(case.costs.families, specs={}))
        costs = costs.under(dispatch, combine)
        layer = case.workload.layer.model_copy(update={"experts": 3, "top_k": 2})
        ids = np.argsort(rng.random((4, 3)), axis=1)[:, :2]
        placement = Placement(2, rng.permutation([0, 1, rng.integers(2)]))
        workload = Workload(layer, rng.multinomial(4, [0.5, 0.5]), ids, placement, "tiny")
        # From next to nothing to more than all tokens take.
        expert_ps = int(costs.wire_ps(costs.dispatch_flits()) * rng.choice([0.1, 0.5, 1, 3, 100]))
        out, home = (
            weights(needs)[None]
            for needs in (dispatch_needs(dispatch, costs, acknowledged=True), combine_needs(combine, costs))
        )
        least_ps = int(costs.wire_ps(costs.dispatch_flits(1))), int(costs.wire_ps(costs.request_flits(1)))
        least_ps = links_ps(Asked.of(workload), out, home, least_ps, expert_ps)
        best_ps = min(busiest_ps(plan, costs, dispatch, combine, expert_ps) for plan in plans(workload))
        assert least_ps <= best_ps, (seed, dispatch.name, combine.name)
        seen.add((dispatch.name, combine.name))
        shares.append(least_ps / max(best_ps, 1))
    assert len(seen) > 20
    assert np.median(shares) > 0.7
    assert max(shares) > 0.99


def busiest_ps(workload: Workload, costs: Costs, dispatch: Primitive, combine: Primitive, expert_ps: int) -> int:
    """Returns what the busiest link or reduction unit needs of a plan, weights replicated in the switch if possible."""
    needs = link_needs(workload, costs, dispatch.name, combine.name).sum(axis=0)
    return int((needs + weight_needs(workload, "multicast", expert_ps)).max())


@pytest.mark.parametrize("schedule", ["dysharp", "deepep"])
@pytest.mark.parametrize("planner", ["moonep", "ultraep", "llep"])
def test_no_planner_beats_it(schedule: str, planner: str) -> None:
    scenario = ScenarioSpec(
        system="dgx-h200", model="deepseek-v2-lite", tokens=512, routing="power-law:1.5", compute_scale=20
    ).build()
    problem = Problem.of(scenario.system, scenario.draw(0), compute_scale=20)
    for way in WEIGHTS:
        run = problem.run(load_schedule(f"{schedule}+{planner}:{way}"))
        assert run.lower_bound_ps == problem.copies_bound.total_ps
        assert run.engine.now_ps >= run.family_bound().total_ps >= run.lower_bound_ps


def test_it_is_near_to_perfect_balance_where_there_is_much_to_do() -> None:
    scenario = ScenarioSpec(system="dgx-h200", model="deepseek-v3", tokens=2048, routing="deepseek-v3-skewed").build()
    workload = scenario.draw(0)
    bound = LowerBound(scenario.system, workload.layer, Costs.of(scenario.system, workload.layer))
    placed, copied = bound.of(workload), bound.of(workload, copies_allowed=True)
    paid_ps = sum(scenario.system.overhead_us(cost) for cost in ("launch", "count_exchange", "plan")) * 1e6
    # The GEMMs of all experts spread over all GPUs.
    assert copied.gemms_ps < 0.7 * placed.gemms_ps
    assert copied.total_ps - paid_ps == pytest.approx(copied.gemms_ps, rel=0.01)
