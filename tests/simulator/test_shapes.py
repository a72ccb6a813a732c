"""Layers of any shape: GPUs without tokens or experts, tokens with few experts or none, experts that do not divide."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.record import record
from dysharp_env.simulator.result import STAGES, schedule_table, summarise
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.lowering import Lowering
from dysharp_env.simulator.state.observation import CONTEXT, DISPATCH, GEMM, NUM_FEATURES, NUM_KINDS
from dysharp_env.simulator.state.records import ARRAYS
from dysharp_env.simulator.state.state import State, point
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.workload.placement import Placement
from dysharp_env.workload.workload import NO_EXPERT, Workload
from tests.conftest import Case, costs_of
from tests.simulator.odd_shapes import draw_shape
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system

NONE = NO_EXPERT
GROUPS, CASES_PER_GROUP = 6, 25


def shaped(
    tokens: Sequence[int], topk_ids: Sequence[Sequence[int]], gpu_of_expert: Sequence[int], **changes: Any
) -> Case:
    """Returns a case of the round machine with so many tokens of each GPU and experts on those GPUs, in this order."""
    placement = Placement(len(tokens), np.array(gpu_of_expert))
    layer, system = round_layer(len(gpu_of_expert)), round_system(len(tokens))
    workload = Workload(layer, np.array(tokens), np.array(topk_ids), placement, "by hand")
    program = dataclasses.replace(ROUND_PROGRAM, **changes)
    costs = costs_of(program, Costs.of(system, layer))
    return Case(workload, costs, program, system.gpu.num_sms, Bound(10**6, 10**6, 10**6, 10**6))


def follows_order(case: Case) -> Case:
    """Returns the case with nobody who sees features, and in one part: whoever comes first is taken."""
    nobody: Any = {"weights": np.zeros((NUM_KINDS, NUM_FEATURES)), "network": None, "networked": frozenset()}
    return case.with_program(**nobody, exposed=frozenset(), parts=1, parts_by=codes.BY_TOKENS)


def odd_cases(random_case: Callable[[int], Case], group: int) -> list[tuple[Case, np.random.Generator]]:
    """Returns random cases of odd shapes that follow the order of what they list, each with a stream of its own."""
    cases = []
    for seed in range(70_000 + group * CASES_PER_GROUP, 70_000 + (group + 1) * CASES_PER_GROUP):
        case, rng = random_case(seed), np.random.default_rng(seed)
        workload = draw_shape(case.workload.layer, case.workload.num_gpus, rng)
        cases.append((follows_order(case._replace(workload=workload)), rng))
    return cases


def ends(case: Case) -> tuple[int, dict[str, list[int]]]:
    """Returns the end of a layer, and when its tokens with experts came to them and home."""
    engine = case.engine(logging=False).run()
    tokens = engine.state.tokens[:-1][case.workload.experts_of_token > 0]
    return engine.now_ps, {name: tokens[name].tolist() for name in ("dispatch_end", "combine_start", "combine_end")}


def test_a_gpu_without_tokens_and_one_without_experts_worked_by_hand() -> None:
    """GPU 0's token goes to its own expert and to GPU 1's, which has no tokens; GPU 2's token goes nowhere."""
    case = shaped([1, 0, 1], [[0, 1], [NONE, NONE]], [0, 1])
    engine = case.engine().run()
    # Through memory at home; 9 flits and two hops to GPU 1.
    arrived = 10_000 + 100_000 + 9000 + 100_000
    # Weights of 8192 B before either GEMM; the sum of GPU 1 goes home as the token came.
    end2 = arrived + 2 * 8192
    combined = end2 + 209_000
    tokens = engine.state.tokens[:-1]
    assert tokens["home"].tolist() == [0, 2] and tokens["num_experts"].tolist() == [2, 0]
    assert tokens["dispatch_end"].tolist() == [arrived, codes.NO_TIME]
    # The partial sum that is home already is there first.
    assert tokens["combine_start"].tolist() == [60_000 + 2 * 8192, codes.NO_TIME]
    assert tokens["combine_end"].tolist() == [combined, codes.NO_TIME]
    assert engine.now_ps == combined == 444_384
    assert engine.state.gpus["combined"].tolist() == [1, 0, 1]
    # Nothing crosses the links of GPU 2.
    assert not engine.state.traffic.reshape(3, -1)[2].any()


@pytest.mark.parametrize("gate", [codes.GATE_PHASE, codes.GATE_GPU])
def test_gates_do_not_wait_for_gpus_that_have_nothing(gate: int) -> None:
    """The same layer in phases, which cost nothing here but that GEMM-2 waits for the acknowledgement."""
    gates = (gate, codes.GATE_PHASE, gate)
    case = shaped([1, 0, 1], [[0, 1], [NONE, NONE]], [0, 1], gates=gates, exclusive=True)
    state = case.engine().run().state
    arrived = 219_000
    # GPU 1 has dispatched nothing; GPU 0 knows two hops later that its copy is stored.
    starts = state.tiles["rows"]["start_ps"][state.tiles["count"] > 0]
    own = arrived if gate == codes.GATE_PHASE else 60_000
    assert starts.tolist() == [[own, arrived + 200_000], [arrived, arrived + 8192]]
    # GPU 1 pushes at once, or when GPU 0 is through with GEMM-2 as well.
    pushed = arrived + 200_000 + 8192 if gate == codes.GATE_PHASE else arrived + 2 * 8192
    home = max(pushed + 209_000, arrived + 200_000 + 8192)
    assert state.tokens["combine_end"].tolist()[:2] == [home, codes.NO_TIME]


def test_chunks_and_units_of_uneven_gpus() -> None:
    """Five tokens, none and two, in chunks of two: three chunks, none and one."""
    ids = [[0, 1]] * 7
    case = shaped([5, 0, 2], ids, [1, 1], chunk_tokens=2, parts=2)
    state = case.engine().state
    assert state.tokens["chunk"][:-1].tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert state.gpus["first_chunk"].tolist() == [0, 3, 3] and state.gpus["num_chunks"].tolist() == [3, 0, 1]
    stored = [("gpu", [0, 0, 0, 2]), ("first", [0, 2, 4, 5]), ("last", [2, 4, 5, 7]), ("part", [0, 0, 1, 0])]
    assert all(state.chunks[name].tolist() == values for name, values in stored)
    assert state.gpus["unsent"]["head"].tolist() == [0, codes.NOTHING, 3]
    assert state.gpus["sends"].tolist() == [5, 0, 2]
    # A unit for each chunk on every GPU that may push sums of it.
    assert state.units["part"].tolist() == [0, 0, 1, 0] * 3


def test_readers_go_through_the_chunks_of_uneven_gpus_part_by_part() -> None:
    """GPU 1 reads of GPU 2 before GPU 0, a chunk of each in turn; the second part is GPU 0's last chunk alone."""
    case = shaped([5, 0, 2], [[0, 1]] * 7, [1, 1], chunk_tokens=2, parts=2, dispatch=DISPATCH_PRIMITIVES["pull"])
    state = case.engine().state
    mine = state.chunks[state.chunks["gpu"] == 1]
    assert mine["first"].tolist() == [5, 0, 2, 4] and mine["part"].tolist() == [0, 0, 0, 1]
    assert state.gpus["sends"].tolist() == [7, 7, 7]
    # In one part GPU 2's only chunk is read in the first round.
    whole = case.with_program(parts=1).engine().state.chunks
    assert whole["first"][whole["gpu"] == 2].tolist() == [5, 0, 2, 4]


def test_parts_of_experts_that_do_not_divide() -> None:
    """Three experts on two GPUs: the one that is alone on its GPU is all in the first part."""
    program: Any = {"copies_per_expert": True, "parts": 4, "parts_by": codes.BY_EXPERTS}
    case = shaped([2, 1], [[0, 2], [2, 1], [1, 0]], [0, 0, 1], **program)
    state = case.engine().run().state
    assert state.root["num_parts"][0] == 2
    assert state.experts["part"].tolist() == [0, 1, 0]
    assert state.gpus["first_expert"].tolist() == [0, 2] and state.gpus["num_experts"].tolist() == [2, 1]


def test_tokens_without_experts_alone_take_what_is_paid_at_the_start_and_the_end() -> None:
    for dispatch in DISPATCH_PRIMITIVES.values():
        case = shaped([2, 0], [[NONE, NONE]] * 2, [0, 1], dispatch=dispatch, pay_end_ps=7)
        engine = case.engine().run()
        assert engine.done and engine.now_ps == 10_000 + 7
        phases_us = summarise(engine, lower_bound_ps=1).phases_us
        assert phases_us == {**dict.fromkeys(STAGES, (0.0, 0.0)), "dispatch": (0.01, 0.0)}


def test_more_pulled_tokens_than_copies() -> None:
    """Nine tokens of which one has an expert: the list of what is ready has room for every token."""
    case = shaped([9, 0], [[NONE, NONE]] * 8 + [[1, NONE]], [0, 1], combine=COMBINE_PRIMITIVES["pull"])
    state = case.engine().run().state
    assert len(state.pairs) == 1 and len(state.item_links) == 9
    assert (state.tokens["combine_end"][:-1] >= 0).tolist() == [False] * 8 + [True]


def test_a_static_store_of_a_token_without_experts_goes_everywhere() -> None:
    """GPU 0's second token has no expert. A broadcast sends it all the same: another 9 flits; nothing comes home."""
    kinds = {"dispatch": DISPATCH_PRIMITIVES["broadcast"], "combine": COMBINE_PRIMITIVES["reduce_scatter"]}
    sent = shaped([2, 0, 0], [[1, 2], [NONE, NONE]], [0, 1, 2], **kinds).engine().run().state
    alone = shaped([1, 0, 0], [[1, 2]], [0, 1, 2], **kinds).engine().run().state
    up, before = (state.traffic.reshape(3, 2, -1)[:, codes.UP] for state in (sent, alone))
    assert (up - before)[0, codes.DISPATCH_DATA] == 9
    assert up[:, codes.COMBINE_DATA].tolist() == before[:, codes.COMBINE_DATA].tolist() == [0, 9, 9]
    multicast = {**kinds, "dispatch": DISPATCH_PRIMITIVES["multicast"]}
    named = shaped([2, 0, 0], [[1, 2], [NONE, NONE]], [0, 1, 2], **multicast).engine().run().state
    assert named.traffic.reshape(3, 2, -1)[0, codes.UP, codes.DISPATCH_DATA] == 10, "one store, which names its experts"


def test_every_gpu_has_its_own_shared_experts_to_wait_for() -> None:
    """GPU 0 has three tokens, GPU 1 one: weights of 16 KiB, and for each token 4 vectors of 128 B, at 1 ps a byte."""
    system = round_system(2).with_changes({"overheads.launch_gap_us": 1})
    layer = round_layer(2).with_changes({"shared_experts": 1})
    case = shaped([3, 1], [[0, 1]] * 4, [0, 1], hides_shared=True, gates=(codes.GATE_GPU, codes.GATE_FINE, 0))
    case = case._replace(
        workload=dataclasses.replace(case.workload, layer=layer),
        costs=costs_of(case.program, Costs.of(system, layer)),
    )
    gates = case.engine().state.gates
    ends_ps = [10_000 + 2_000_000 + 2 * 8192 + tokens * 4 * 128 for tokens in (3, 1)]
    assert gates["not_before_ps"][gates["stage"] == codes.OPENS_GEMM1].tolist() == [ends_ps[0], ends_ps[1], 0][:2]
    phases = case.with_program(gates=(codes.GATE_PHASE, codes.GATE_FINE, 0)).engine().state.gates
    assert phases["not_before_ps"][phases["stage"] == codes.OPENS_GEMM1].tolist() == [max(ends_ps)]


def test_kernels_pay_for_the_copies_of_a_gpu_s_own_tokens() -> None:
    """The last sum reads what comes back of a GPU's tokens and writes their results: 128 B each, a copy an expert."""
    case = shaped([3, 1, 0], [[0, 1], [1, NONE], [NONE, NONE], [1, 0]], [0, 1], copies_per_expert=True)
    system = round_system(3).with_changes({"overheads.launch_gap_us": 1})
    costs = costs_of(case.program, Costs.of(system, case.workload.layer))
    case = case._replace(costs=costs).with_program(kernels=((), (), (), (), ("final_sum",)))
    # GPU 0: 3 results of 3 copies.
    assert case.engine().state.root["pay_end_ps"][0] == 128 * (3 + 3)


def shown(engine: Engine, kind: int) -> dict[int, dict[str, float]]:
    """Returns the context of the first decision of a kind that each GPU is asked for, the first candidate taken."""
    found: dict[int, dict[str, float]] = {}
    while (asked := engine.advance()) is not None:
        if asked.kind == kind:
            found.setdefault(asked.gpu, dict(zip(CONTEXT, asked.context.tolist(), strict=True)))
        engine.decide(0)
    return found


def test_a_gpu_without_tokens_has_sent_all_and_one_without_experts_has_computed_all() -> None:
    ids = [[1, 2], [2, 1], [1, NONE], [2, NONE], [NONE, NONE]]
    asks: Any = {"exposed": frozenset({DISPATCH, GEMM}), "chunk_tokens": 1, "gates": (codes.GATE_PHASE,) * 3}
    case = shaped([5, 0], ids, [1, 1, 1], **asks)
    own, other = shown(case.engine(), DISPATCH)[0], shown(case.engine(), GEMM)[1]
    assert {name: own[name] for name in ("received", "gemm_done", "tokens_per_expert", "l2_room")} == {
        "received": 1.0,
        "gemm_done": 1.0,
        "tokens_per_expert": 0.0,
        "l2_room": 1.0,
    }
    assert {name: other[name] for name in ("sent", "combined", "all_sent")} == {
        "sent": 1.0,
        "combined": 1.0,
        "all_sent": 1.0,
    }
    # A token without experts is combined from the start; the first of five is sent when the second is asked for.
    assert (own["combined"], own["all_combined"]) == pytest.approx((0.2, 0.2))
    # Six rows of three experts, whose tiles have two tokens.
    assert other["tokens_per_expert"] == pytest.approx(6 / (6 + 3 * 2))
    assert other["l2_room"] == pytest.approx(2**20 / (2**20 + 3 * 2 * 8192))


def test_tables_of_a_layer_with_tokens_without_experts() -> None:
    """Chunks of two: one whose second token has no expert, and one of such tokens alone."""
    case = shaped([2, 2], [[0, 1], [NONE, NONE], [NONE, NONE], [NONE, NONE]], [0, 1], chunk_tokens=2)
    engine = case.engine().run()
    rows = [(row.item, row.gpu, row.stage, row.tokens) for row in schedule_table(engine) if "chunk" in row.item]
    assert rows == [("chunk 0", 0, "dispatch", 2), ("chunk 1", 1, "dispatch", 2), ("chunk 0", 0, "combine", 2)]
    assert not any(np.isnan(row.end_us) for row in schedule_table(engine))
    assert [chunk.tolist() for chunk in record(engine).chunks] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("group", range(GROUPS))
def test_a_gpu_that_has_nothing_changes_nothing(random_case: Callable[[int], Case], group: int) -> None:
    """A GPU more, without tokens and experts: where nothing addresses all GPUs, everything takes what it took."""
    for case, _ in odd_cases(random_case, group):
        if case.program.static or case.program.in_band:
            continue
        before, placement = case.workload, case.workload.placement
        more = Placement(placement.num_gpus + 1, placement.gpu_of_expert, placement.logical_of_expert)
        tokens = np.append(before.tokens_of_gpu, 0)
        other = case._replace(workload=dataclasses.replace(before, tokens_of_gpu=tokens, placement=more))
        assert ends(other) == ends(case)


@pytest.mark.parametrize("group", range(GROUPS))
def test_replicas_that_no_token_has_change_nothing(random_case: Callable[[int], Case], group: int) -> None:
    for case, rng in odd_cases(random_case, group):
        before, placement = case.workload, case.workload.placement
        gpus = np.append(placement.gpu_of_expert, rng.integers(before.num_gpus, size=3))
        logical = np.append(placement.logical_of_expert, rng.integers(before.layer.experts, size=3))
        more = Placement(before.num_gpus, gpus, logical)
        assert ends(case._replace(workload=before.served_by(before.topk_ids, more))) == ends(case)


@pytest.mark.parametrize("group", range(GROUPS))
def test_numbers_of_physical_experts_mean_nothing(random_case: Callable[[int], Case], group: int) -> None:
    """Experts numbered otherwise, in the same order on each GPU: everything takes what it took."""
    for case, rng in odd_cases(random_case, group):
        before, placement = case.workload, case.workload.placement
        gpus = rng.permutation(placement.gpu_of_expert)
        # The first of a GPU before is its first now, and so on.
        number = np.empty(len(gpus), np.int64)
        number[np.argsort(placement.gpu_of_expert, kind="stable")] = np.argsort(gpus, kind="stable")
        logical = np.empty(len(gpus), np.int64)
        logical[number] = placement.logical_of_expert
        ids = np.where(before.topk_ids == NONE, NONE, number[before.topk_ids])
        other = before.served_by(ids, Placement(before.num_gpus, gpus, logical))
        assert ends(case._replace(workload=other)) == ends(case)


@pytest.mark.parametrize("group", range(GROUPS))
def test_slots_that_no_token_fills_change_nothing(random_case: Callable[[int], Case], group: int) -> None:
    """A layer whose tokens could have three experts more, and have not."""
    for case, _ in odd_cases(random_case, group):
        before = case.workload
        layer = before.layer.with_changes({"experts": before.layer.experts + 3, "top_k": before.layer.top_k + 3})
        gpus, logical = (np.append(ids, [0] * 3) for ids in (before.gpu_of_expert, before.placement.logical_of_expert))
        logical[-3:] = before.layer.experts + np.arange(3)
        ids = np.pad(before.topk_ids, ((0, 0), (0, 3)), constant_values=NONE)
        wide = Workload(layer, before.tokens_of_gpu, ids, Placement(before.num_gpus, gpus, logical), "wide")
        assert ends(case._replace(workload=wide)) == ends(case)


@pytest.mark.parametrize("group", range(GROUPS))
def test_tokens_without_experts_are_not_pulled(random_case: Callable[[int], Case], group: int) -> None:
    """As the last of every GPU they change nothing, where one SM takes a GPU's tokens in turn.

    Kernels between phases are left out, which go over all tokens; by the packet, planes follow from their numbers.
    """
    for case, rng in odd_cases(random_case, group):
        if case.costs.resolution == "packet" or case.program.combine.to_all:
            continue
        bare = dataclasses.replace(case.costs.families, specs={})
        case = case._replace(costs=dataclasses.replace(case.costs, families=bare, kernels=()))
        own = {"dispatch": DISPATCH_PRIMITIVES["pull"], "counted": True, "families": ("", ""), "loopback": False}
        case = case.with_program(**own, dispatch_sms=1, splits=())
        before = case.workload
        more = rng.integers(0, 4, before.num_gpus)
        ids = np.insert(before.topk_ids, np.repeat(before.first_token[1:], more), NONE, axis=0)
        other = dataclasses.replace(before, tokens_of_gpu=before.tokens_of_gpu + more, topk_ids=ids)
        assert ends(case._replace(workload=other)) == ends(case)


def contents(state: State) -> dict[str, bytes]:
    """Returns the arrays of a state, without where they lie."""
    root = state.root.copy()
    point(root, [0] * len(ARRAYS))
    return {name: array.tobytes() for name, array in vars(state.having(root=root)).items()}


def test_what_layers_share_is_that_of_their_shape(random_case: Callable[[int], Case]) -> None:
    """One lowering for layers of one model: tokens and experts elsewhere, as many in all, and back again."""
    for seed in range(80_000, 80_030):
        case, rng = random_case(seed), np.random.default_rng(seed)
        workload = draw_shape(case.workload.layer, case.workload.num_gpus, rng)
        placement = workload.placement
        turned = Placement(placement.num_gpus, rng.permutation(placement.gpu_of_expert), placement.logical_of_expert)
        elsewhere = dataclasses.replace(workload, tokens_of_gpu=workload.tokens_of_gpu[::-1])
        layers = [workload, elsewhere, workload.served_by(workload.topk_ids, turned), workload, case.workload]
        shared = Lowering(case.costs, case.program, case.num_sms)
        for each in layers:
            alone = Lowering(case.costs, case.program, case.num_sms).lower(each, case.bound)
            assert contents(shared.lower(each, case.bound)) == contents(alone), seed
