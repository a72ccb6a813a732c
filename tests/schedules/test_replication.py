"""Planners: invariants on random counts, hand-worked small cases, and from quotas to tokens and trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dysharp_env.config import ConfigError
from dysharp_env.schedules import load_schedule
from dysharp_env.schedules.replication import ReplicateSpec, planned
from dysharp_env.schedules.replication.planners import plan
from dysharp_env.schedules.replication.serving import with_copies
from dysharp_env.schedules.replication.sharing import Sharing
from dysharp_env.system import load_system
from dysharp_env.system.primitives import DISPATCH_PRIMITIVES
from dysharp_env.workload import Workload
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.placement import NOWHERE, Placement, contiguous_placement
from dysharp_env.workload.workload import NO_EXPERT

COPYING = ("moonep", "ultraep", "llep")


def layer_of(experts: int, top_k: int) -> LayerSpec:
    sizes = {"hidden": 256, "moe_ff": 128, "ffn_matrices": 3, "compute_dtype": "bf16", "source": "made up"}
    return LayerSpec(name="tiny", experts=experts, top_k=top_k, **sizes)


def sharing_of(counts: list[list[int]], num_gpus: int, slots: int) -> Sharing:
    """Returns the state of (home GPU, expert) counts under a contiguous placement."""
    given = np.array(counts, np.int64)
    placement = contiguous_placement(given.shape[1], num_gpus)
    holds = placement.gpu_of_expert[:, None] == np.arange(num_gpus)
    quota = np.where(holds, given.sum(axis=0)[:, None], 0)
    return Sharing(given, quota, holds, np.full(num_gpus, slots))


def random_workload(seed: int) -> Workload:
    """Returns tokens of any number on each GPU, with any number of experts, skewed; replicas in one of three."""
    rng = np.random.default_rng(seed)
    num_gpus, top_k = int(rng.integers(2, 9)), int(rng.integers(1, 5))
    experts = int(rng.integers(max(top_k, num_gpus), 40))
    tokens = rng.integers(0, 120, num_gpus) * (rng.random(num_gpus) < 0.8)
    tokens[rng.integers(num_gpus)] += 5
    popularity = rng.dirichlet(np.full(experts, rng.choice([0.2, 1.0, 20.0])))
    ids = np.argsort(rng.gumbel(size=(tokens.sum(), experts)) + np.log(popularity + 1e-9), axis=1)[:, -top_k:]
    ids[np.arange(top_k) >= rng.integers(0, top_k + 1, len(ids))[:, None]] = NO_EXPERT
    if not (ids >= 0).any():
        ids[0, 0] = 0
    placement = contiguous_placement(experts, num_gpus)
    if seed % 3 == 0:
        twice = rng.choice(experts, experts // 3, replace=False)
        elsewhere = (placement.gpu_of_expert[twice] + 1) % num_gpus
        logical = np.concatenate([np.arange(experts), twice])
        placement = Placement(num_gpus, np.concatenate([placement.gpu_of_expert, elsewhere]), logical)
    return Workload(layer_of(experts, top_k), tokens, ids, placement, f"random {seed}")


def random_spec(seed: int, planner: str) -> ReplicateSpec:
    rng = np.random.default_rng([seed, 1])
    return ReplicateSpec(
        planner=planner,
        slots=[1, 2, 4, "experts", "any"][rng.integers(5)],
        weights=["pull", "relay"][rng.integers(2)],
        fan_out=int(rng.integers(1, 4)),
        tolerance=float(rng.choice([1.0, 1.1, 1.5])),
        min_tokens=int(rng.choice([1, 1, 8, 30])),
        threshold=float(rng.choice([1.0, 1.3])),
    )


def loads_of(workload: Workload) -> np.ndarray:
    return np.bincount(
        workload.gpu_of_expert, weights=workload.demand.expert_tokens, minlength=workload.num_gpus
    ).astype(int)


def tokens_of(workload: Workload) -> np.ndarray:
    """Returns (logical expert, gpu) tokens."""
    quota = np.zeros((workload.layer.experts, workload.num_gpus), int)
    place = (workload.placement.logical_of_expert, workload.gpu_of_expert)
    np.add.at(quota, place, workload.demand.expert_tokens)
    return quota


@pytest.mark.parametrize("planner", COPYING)
def test_plans_of_random_layers_keep_every_promise(planner: str) -> None:
    did_copy = 0
    for seed in range(120):
        workload, spec = random_workload(seed), random_spec(seed, planner)
        shared = planned(workload, spec)
        assert np.array_equal(np.sort(shared.logical_ids, axis=1), np.sort(workload.logical_ids, axis=1))
        before, after = tokens_of(workload), tokens_of(shared)
        assert np.array_equal(before.sum(axis=1), after.sum(axis=1))
        if loads_of(workload).max() < spec.threshold * loads_of(workload).mean():
            assert shared is workload
        # No more copies than slots, none where the expert is, none without tokens, none on an expert's own GPU.
        old = len(workload.placement)
        new, logical = shared.gpu_of_expert[old:], shared.placement.logical_of_expert[old:]
        most = {"experts": -(-workload.layer.experts // workload.num_gpus), "any": workload.layer.experts}
        assert np.bincount(new, minlength=1).max() <= most.get(spec.slots, spec.slots)
        assert (before[logical, new] == 0).all() and (after[logical, new] > 0).all()
        held = {*zip(workload.placement.logical_of_expert.tolist(), workload.gpu_of_expert.tolist(), strict=True)}
        pairs = [*zip(logical.tolist(), new.tolist(), strict=True)]
        assert len({*pairs}) == len(pairs) and not held & {*pairs}
        assert (after[logical, new] >= spec.min_tokens).all()
        # The busiest GPU never gets busier.
        assert loads_of(shared).max() <= loads_of(workload).max()
        sources = shared.placement.copied_from
        assert (sources[old:] != NOWHERE).all()
        if spec.weights == "relay":
            assert np.bincount(sources[old:], minlength=1).max() <= spec.fan_out
        elif len(pairs):
            assert (sources[old:] < old).all()
        did_copy += len(pairs)
    assert did_copy > 150


def test_moonep_is_exact_with_as_many_slots_as_experts() -> None:
    for seed in range(60):
        workload = random_workload(seed)
        if workload.layer.experts % workload.num_gpus or not workload.placement.is_plain:
            continue
        loads = loads_of(planned(workload, ReplicateSpec(planner="moonep")))
        each, more = divmod(loads.sum(), workload.num_gpus)
        assert loads.tolist() == [each + (gpu < more) for gpu in range(workload.num_gpus)]


def test_moonep_stops_within_the_tolerance_and_makes_no_more_copies_for_it() -> None:
    exact, bounded = 0, 0
    for seed in range(60):
        workload = random_workload(seed)
        spec = ReplicateSpec(planner="moonep", slots="any")
        first, second = planned(workload, spec), planned(workload, spec.with_changes({"tolerance": 1.25}))
        loads = loads_of(second)
        assert loads.max() <= max(1.25 * loads.mean(), np.ceil(loads.mean()))
        exact, bounded = exact + first.placement.num_copies, bounded + second.placement.num_copies
    assert bounded < 0.8 * exact


def test_moonep_pairs_the_fullest_with_the_emptiest_and_hands_out_the_largest_experts() -> None:
    # Loads 22, 2, 10, 6 of two experts each; 10 is everybody's share. GPU 0 fills 1 (8), then 3 (4).
    sharing = sharing_of([[12, 10, 1, 1, 5, 5, 3, 3], *[[0] * 8] * 3], num_gpus=4, slots=2)
    plan(sharing, ReplicateSpec(planner="moonep"))
    # 8 wanted: expert 0 has most (12). Then 4 wanted: expert 1 has most (10, of expert 0 there are 4 left).
    assert sharing.copies == [(0, 1), (1, 3)]
    assert sharing.quota[:2].tolist() == [[4, 8, 0, 0], [6, 0, 0, 4]]
    assert sharing.loads.tolist() == [10, 10, 10, 10]


def test_moonep_fills_a_gpu_up_even_if_its_partner_must_be_filled_up_then() -> None:
    # Loads 7, 6, 0 for shares of 5, 4, 4: GPU 0 gives 4 to GPU 2 though it has 2 too many, and gets 2 of GPU 1.
    sharing = sharing_of([[4, 3, 4, 2, 0, 0]] + [[0] * 6] * 2, num_gpus=3, slots=2)
    plan(sharing, ReplicateSpec(planner="moonep"))
    assert sharing.quota.tolist() == [[0, 0, 4], [3, 0, 0], [2, 2, 0], [0, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert sharing.loads.tolist() == [5, 4, 4]


def test_moonep_out_of_slots_levels_what_it_may() -> None:
    # GPU 0 has four experts of 6; one slot elsewhere takes one of them each: 12, 6, 6 where 8, 8, 8 would be right.
    sharing = sharing_of([[6, 6, 6, 6] + [0] * 8] + [[0] * 12] * 2, num_gpus=3, slots=1)
    plan(sharing, ReplicateSpec(planner="moonep", slots=1))
    assert sharing.loads.tolist() == [12, 6, 6] and sharing.slots.tolist() == [1, 0, 0]


def test_moonep_with_a_tolerance_gives_away_no_more_than_that_asks_for() -> None:
    counts = [[12, 10, 1, 1, 5, 5, 3, 3], *[[0] * 8] * 3]
    sharing = sharing_of(counts, num_gpus=4, slots=2)
    plan(sharing, ReplicateSpec(planner="moonep", tolerance=1.5))
    assert sharing.copies == [(0, 1)] and sharing.loads.tolist() == [14, 10, 10, 6]


def test_ultraep_finds_the_lowest_load_that_pieces_allow() -> None:
    # Loads 20, 4, 6, 2: mean 8. With pieces of 1 everybody gets 8; expert 0 keeps at least one token at home.
    counts = [[20, 0, 4, 0, 6, 0, 2, 0], *[[0] * 8] * 3]
    sharing = sharing_of(counts, num_gpus=4, slots=1)
    plan(sharing, ReplicateSpec(planner="ultraep", slots=1))
    assert sharing.loads.tolist() == [8, 8, 8, 8]
    # To the roomiest first: 6 to GPU 3, 4 to GPU 1, 2 to GPU 2.
    assert sharing.copies == [(0, 3), (0, 1), (0, 2)] and sharing.quota[0].tolist() == [8, 4, 2, 6]
    # Pieces of 6 at least fit GPU 3 at 8, and GPU 1 at 10: 20 - 6 - 6.
    sharing = sharing_of(counts, num_gpus=4, slots=1)
    plan(sharing, ReplicateSpec(planner="ultraep", slots=1, min_tokens=6))
    assert sharing.loads.max() == 10 and min(sharing.quota[0][sharing.quota[0] > 0]) >= 6


def test_ultraep_leaves_a_token_of_every_expert_at_home() -> None:
    sharing = sharing_of([[3, 3, 3, 0, 0, 0], [0] * 6], num_gpus=2, slots=3)
    plan(sharing, ReplicateSpec(planner="ultraep", slots=3))
    assert sharing.loads.tolist() == [5, 4] and (sharing.quota[:3, 0] >= 1).all()


def test_llep_keeps_what_fits_and_spills_to_the_least_loaded() -> None:
    # Loads 20, 4, 6, 2 and a capacity of 8: expert 0 (13) spills 12, to GPU 3 (6), GPU 1 (4), GPU 2 (2).
    counts = [[13, 7, 4, 0, 6, 0, 2, 0], *[[0] * 8] * 3]
    sharing = sharing_of(counts, num_gpus=4, slots=8)
    plan(sharing, ReplicateSpec(planner="llep", slots="any"))
    assert sharing.quota[:2].tolist() == [[1, 4, 2, 6], [7, 0, 0, 0]]
    # Pieces of 4 at least: 6 go to GPU 3, and 4 more would leave 3 of either expert at home.
    sharing = sharing_of(counts, num_gpus=4, slots=8)
    plan(sharing, ReplicateSpec(planner="llep", slots="any", min_tokens=4))
    assert sharing.quota[:2].tolist() == [[7, 0, 0, 6], [7, 0, 0, 0]]
    # Below the threshold it does nothing.
    sharing = sharing_of(counts, num_gpus=4, slots=8)
    plan(sharing, ReplicateSpec(planner="llep", slots="any", threshold=2.6))
    assert not sharing.copies


def test_llep_makes_no_gemm_smaller_than_it_may_by_moving() -> None:
    moved = 0
    for seed in range(80):
        workload = random_workload(3 * seed + 1)
        shared = planned(workload, ReplicateSpec(planner="llep", slots="any", min_tokens=20, threshold=1.3))
        before, after = tokens_of(workload), tokens_of(shared)
        changed = (before != after) & (after > 0)
        assert (after[changed] >= 20).all()
        moved += changed.sum()
    assert moved > 50


def test_candidates_say_what_relieves_the_busiest() -> None:
    # Loads 12, 2, 4; shares 6, 6, 6. GPU 1 has room for 4, GPU 2 for 2 and no slot.
    sharing = sharing_of([[8, 4, 2, 0, 4, 0], [0] * 6, [0] * 6], num_gpus=3, slots=1)
    sharing.slots[2] = 0
    found = sharing.candidates()
    assert found.expert.tolist() == [0, 1] and found.gpu.tolist() == [1, 1] and found.source.tolist() == [0, 0]
    assert found.tokens.tolist() == [4, 4]
    # An expert that is there already needs neither a slot nor weights.
    sharing.holds[1, 2] = True
    found = sharing.candidates(0)
    assert found.gpu.tolist() == [1, 1, 2]
    assert sharing_of([[1, 1], [1, 1]], num_gpus=2, slots=1).candidates().tokens.size == 0


def test_tokens_stay_on_their_home_gpu_first_and_the_rest_go_in_order() -> None:
    # Two GPUs, expert 0 on GPU 0; tokens 0 to 3 live on GPU 0, 4 to 9 on GPU 1, and all want it. Quotas 5 and 5.
    workload = Workload(
        layer_of(2, 1), np.array([4, 6]), np.zeros((10, 1), int), contiguous_placement(2, 2), "all want one"
    )
    shared = planned(workload, ReplicateSpec(planner="moonep"))
    assert shared.placement.gpu_of_expert.tolist() == [0, 1, 1] and shared.placement.copied_from.tolist() == [-1, -1, 0]
    # GPU 0 keeps its four and takes one more: of GPU 1's six, five stay, and the last goes.
    assert shared.topk_ids[:, 0].tolist() == [0, 0, 0, 0, 2, 2, 2, 2, 2, 0]
    assert planned(workload, ReplicateSpec(planner="moonep")) is shared  # planned once


def test_trees_of_relays_hang_as_high_as_they_can_from_who_sends_least() -> None:
    placement = contiguous_placement(2, 8)
    copies = [(0, gpu) for gpu in range(2, 8)] + [(1, gpu) for gpu in (2, 3)]
    tree = with_copies(placement, copies, most_sends=2)
    # Copies 2 to 7 of expert 0 are in GPUs 2 to 7: two hang from home, two from each of those.
    assert tree.copied_from[2:8].tolist() == [0, 0, 2, 3, 2, 3]
    assert tree.gpu_of_expert[2:8].tolist() == [2, 3, 4, 5, 6, 7]
    assert tree.copied_from[8:].tolist() == [1, 1]
    star = with_copies(placement, copies, most_sends=None)
    assert star.copied_from[2:].tolist() == [0] * 6 + [1] * 2
    chain = with_copies(placement, copies[:6], most_sends=1)
    assert chain.copied_from[2:].tolist() == [0, 2, 3, 4, 5, 6]
    # With two replicas before the layer both send.
    twice = Placement(8, [0, 1, 2], [0, 1, 0])
    assert with_copies(twice, [(0, 4), (0, 5)], most_sends=None).copied_from[3:].tolist() == [0, 2]


def test_relays_are_gpus_that_send_least() -> None:
    placement = Placement(6, [0, 1])
    # GPU 2 hands expert 0 on to GPU 4, so that of expert 1's copies the one on GPU 3 is the relay.
    tree = with_copies(placement, [(0, 2), (0, 4), (1, 2), (1, 3)], most_sends=1)
    assert tree.gpu_of_expert[2:].tolist() == [2, 4, 3, 2] and tree.copied_from[2:].tolist() == [0, 2, 1, 4]


def test_eplb_places_replicas_by_the_batch_before_and_moves_no_weights() -> None:
    ids = np.array([[0], [0], [0], [1], [2], [3], [0], [0]])
    past = np.array([90, 10, 10, 10])
    workload = Workload(layer_of(4, 1), np.array([4, 4]), ids, contiguous_placement(4, 2), "skewed", lambda: past)
    shared = planned(workload, ReplicateSpec(planner="eplb", slots=1))
    assert shared.placement.num_copies == 0 and shared.num_experts == 6
    assert np.bincount(shared.placement.logical_of_expert)[0] == 2
    assert loads_of(shared).max() < loads_of(workload).max()
    without = Workload(layer_of(4, 1), np.array([4, 4]), ids, contiguous_placement(4, 2), "skewed")
    with pytest.raises(ConfigError, match="planner=eplb needs the loads of an earlier batch, which workload 'skewed'"):
        planned(without, ReplicateSpec(planner="eplb"))


def test_copies_are_planned_once() -> None:
    workload = random_workload(1)
    shared = planned(workload, ReplicateSpec(planner="moonep"))
    assert shared.placement.num_copies
    with pytest.raises(ConfigError, match="planner=moonep: workload 'random 1' has copies already"):
        planned(shared, ReplicateSpec(planner="moonep"))
    assert planned(shared, ReplicateSpec()) is shared


def test_a_planner_behind_a_name_shares_out_that_schedule_s_work() -> None:
    schedule = load_schedule("dysharp-order+ultraep:multicast")
    base = load_schedule("dysharp-order")
    assert schedule.name == "dysharp-order+ultraep:multicast"
    assert schedule.pays.dispatch == ("launch", "fused_start", "count_exchange", "plan")
    published = load_schedule("ultraep").replicate
    assert published.weights == "relay" and published.min_tokens == 1024
    assert schedule.replicate == published.model_copy(update={"weights": "multicast"})
    assert schedule.with_changes({"name": base.name, "description": base.description}).rule == base.rule
    assert load_schedule("nvls+moonep").pays.dispatch[-2:] == ("count_exchange", "plan")
    assert load_schedule("deepep_v2+eplb").name == "deepep-v2+eplb"
    assert load_schedule("deepep+eplb").pays == load_schedule("deepep").pays


@pytest.mark.parametrize("planner", [*COPYING, "eplb"])
def test_planners_behind_names_are_set_as_in_their_own_schedules(planner: str) -> None:
    assert load_schedule(planner).replicate == load_schedule(f"deepep+{planner}").replicate


def test_a_schedule_file_may_have_a_planner_behind_it(tmp_path: Path) -> None:
    path = tmp_path / "a+b.yaml"
    path.write_text("{name: own, dispatch: unicast, combine: unicast, sms: {dispatch: 8, combine: 8}}")
    assert load_schedule(str(path)).replicate.planner == "none"
    assert load_schedule(f"{path}+llep:relay").name == "own+llep:relay"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("deepep+moonp", "schedule='deepep+moonp': planner='moonp' is unknown; choose from ['moonep', 'ultraep',"),
        ("deepep+moonep:mail", "schedule='deepep+moonep:mail': weights='mail' is unknown; choose from ['pull',"),
        ("deepeq+moonep", "schedule='deepeq' is unknown; choose from ["),
        ("moonep+ultraep", "schedule='moonep+ultraep': 'moonep' has a planner of its own, moonep"),
        ("deepep+eplb:pull", "schedule='deepep+eplb:pull': eplb moves no weights in the layer; leave ':pull' out"),
        ("deepep+", "schedule='deepep+': planner='' is unknown"),
    ],
)
def test_names_that_mean_nothing_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_schedule(name)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replicate.planner": "monep"}, "replicate.planner='monep'"),
        (
            {"replicate.planner": "llep", "pays.dispatch": ["launch", "plan"]},
            "replicate.planner=llep needs 'count_exch",
        ),
        ({"replicate.planner": "moonep"}, "replicate.planner=moonep needs 'plan' in pays.dispatch"),
        (
            {"replicate.slots": 0},
            "replicate.slots=0: Input should be a number of slots, 1 at least, 'experts' or 'any'",
        ),
        ({"replicate.tolerance": 0.9}, "replicate.tolerance=0.9: Input should be greater than or equal to 1"),
        ({"replicate.family": "bulky"}, "'bulky' is not a family of kernels; choose from"),
        (
            {"replicate.weights": "team", "replicate.family": "warp_direct"},
            "'warp_direct' does not issue team; choose from",
        ),
        ({"replicate.slot": 2}, "unknown key 'replicate.slot' (did you mean 'replicate.slots'?)"),
    ],
)
def test_sections_that_cannot_be_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_schedule("dysharp").with_changes(change)
    assert message in str(error.value)


def test_copies_need_what_the_system_has() -> None:
    system = load_system("dgx-h100")
    schedule = load_schedule("dysharp+moonep:multicast")
    with pytest.raises(ConfigError, match="replicate.sms=116 leave none of the 116 SMs for GEMMs of dgx-h100"):
        schedule.with_changes({"replicate.sms": 116}).program(system)
    without = system.with_changes({"switch.dispatch_primitives": ["unicast", "pull"]})
    with pytest.raises(ConfigError, match="needs 'multicast' for replicate.weights=multicast; dgx-h100 has"):
        load_schedule("deepep+moonep:multicast").program(without)
    program = schedule.program(system)
    assert program.copying == DISPATCH_PRIMITIVES["multicast"] and program.copy_sms == 32
    assert load_schedule("deepep+ultraep").program(system).copying == DISPATCH_PRIMITIVES["unicast"]
    assert load_schedule("deepep+eplb").program(system).copying is None


def test_a_plan_takes_longer_among_more_gpus() -> None:
    system = load_system("gb200-nvl72")
    small, large = (system.with_changes({"num_gpus": gpus}).overhead_us("plan") for gpus in (4, 64))
    assert (small, large) == (36.0, 96.0)
    paid = {name: load_schedule(name).program(system).pays_ps[0] for name in ("deepep", "deepep+moonep")}
    assert paid["deepep+moonep"] - paid["deepep"] == round(system.overhead_us("plan") * 1e6)


@pytest.mark.parametrize("planner", ["none", "rule", "eplb"])
@pytest.mark.parametrize("setting", ["tolerance", "min_tokens", "threshold"])
def test_settings_that_would_do_nothing_are_refused(planner: str, setting: str) -> None:
    """They are of planners that plan in the layer."""
    with pytest.raises(ValidationError, match=f"{setting} does nothing with planner={planner}: leave it out"):
        ReplicateSpec(planner=planner, **{setting: 2})
    assert getattr(ReplicateSpec(planner="llep", **{setting: 2}), setting) == 2
