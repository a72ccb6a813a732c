"""The compiled engine and its readable twin agree to the picosecond on random layers, machines and programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dysharp_env.simulator.engine import Decision, Engine
from dysharp_env.simulator.result import segment_name
from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.state import State
from dysharp_env.simulator.twin.parts import Candidate, Chunk, Matrix, Row, Split, Unit
from dysharp_env.simulator.twin.staffing import Crew
from dysharp_env.simulator.twin.twin import Twin
from dysharp_env.workload.workload import NO_EXPERT
from tests.conftest import Case
from tests.simulator.run_log import ended, started

GROUPS, CASES_PER_GROUP = 20, 10


def name_of_item(state: State, resource: int, item: int) -> tuple:
    """Returns what the twin's log calls an item of the engine's."""
    if resource == codes.LOG_HBM:
        return name_of_block(state, item)
    if resource == codes.LOG_SM:
        expert = state.experts[int(state.tiles["expert"][item])]
        return "tile", int(expert["number"]), int(expert["part"]), item - int(expert["tile0"])
    return tuple(segment_name(state, item)[:4])


def name_of_block(state: State, block: int) -> tuple:
    """Returns what the twin calls a block of memory."""
    tile_blocks, chunk_blocks = int(state.root["tile_blocks"][0]), int(state.root["chunk_blocks"][0])
    if block == codes.NOTHING:
        return ("none",)
    if block < tile_blocks:
        return "weights", block // 2, block % 2 + 1
    if block < chunk_blocks:
        tile, what = divmod(block - tile_blocks, codes.BLOCKS_PER_TILE)
        return ("in", "mid", "out")[what], *name_of_item(state, codes.LOG_SM, tile)[1:]
    chunk, what = divmod(block - chunk_blocks, codes.BLOCKS_PER_CHUNK)
    return ("input", "result")[what], *place_of(chunk, state.gpus["first_chunk"], state.gpus["num_chunks"])


def place_of(number: int, first: np.ndarray, count: np.ndarray) -> tuple[int, int]:
    """Returns the GPU of what GPUs have so many of, numbered GPU by GPU, and its place there."""
    gpu = int(np.searchsorted(first + count, number, side="right"))
    return gpu, number - int(first[gpu])


def name_of_candidate(state: State, kind: int, record: np.void) -> tuple:
    """Returns what the twin calls a candidate of the engine's."""
    candidate = int(record["item"])
    if candidate == codes.NOTHING:
        return ("hold",)
    if kind == observation.SPLIT:
        return "split", *state.splits[candidate].tolist()
    if kind == observation.PREFETCH:
        return "matrix", candidate // 2, candidate % 2 + 1
    if kind == observation.DISPATCH:
        first = int(state.chunks["first"][candidate])
        home, place = place_of(first, state.gpus["first_token"], state.gpus["num_tokens"])
        return "chunk", home, place // int(state.root["chunk_tokens"][0])
    if kind == observation.COMBINE:
        chunk = candidate % int(state.root["home_chunks"][0])
        return "unit", *place_of(chunk, state.gpus["first_chunk"], state.gpus["num_chunks"])
    what = "open" if state.tiles["count"][candidate] == 0 else "row"
    return what, *name_of_item(state, codes.LOG_SM, candidate)[1:], int(record["gemm"]) + 1


def name_in_twin(candidate: Candidate) -> tuple:
    """Returns the same of a candidate of the twin's."""
    match candidate:
        case Chunk():
            return "chunk", candidate.home, candidate.place
        case Unit():
            return "unit", candidate.home, candidate.place
        case Row(tile, stage, is_open):
            return "open" if is_open else "row", tile.expert.number, tile.expert.part, tile.place, stage
        case Matrix():
            return "matrix", candidate.expert, candidate.stage
        case Split():
            return "split", *candidate[1:]
    return ("hold",)


def assert_same_progress(engine: Engine, twin: Twin) -> None:
    root = engine.state.root[0]
    assert engine.now_ps == twin.now_ps
    assert (root["events"], root["sequence"]) == (twin.world.clock.served, twin.world.clock.pushed)
    assert (root["decisions"], root["evictions"]) == (twin.world.decisions, twin.world.evictions)


def num_sms(crew: Crew) -> int:
    return sum(sm.duty != codes.AWAY for sm in crew.places)


def assert_same_groups(state: State, twin: Twin) -> None:
    for kind, values in (
        (observation.DISPATCH, [num_sms(gpu.dispatch) for gpu in twin.gpus]),
        (observation.COMBINE, [num_sms(gpu.combine) for gpu in twin.gpus]),
        (observation.GEMM, [gpu.gemm_sms for gpu in twin.gpus]),
    ):
        assert state.gpus["groups"]["sms"][:, kind].tolist() == values, kind
    assert state.gpus["free_sms"].tolist() == [gpu.free_sms for gpu in twin.gpus]


def assert_same_decision(state: State, asked: Decision, expected: Any) -> None:
    assert (asked.kind, asked.gpu, asked.num_candidates) == (expected.kind, expected.gpu, expected.num_candidates)
    shown = state.candidates[: asked.num_candidates]
    names = [name_of_candidate(state, asked.kind, candidate) for candidate in shown]
    assert names == [name_in_twin(candidate) for candidate in expected.candidates]
    np.testing.assert_array_equal(asked.mask, expected.mask)
    np.testing.assert_allclose(asked.features, expected.features, rtol=0, atol=1e-6)
    np.testing.assert_allclose(asked.context, expected.context, rtol=0, atol=1e-6)


def assert_same_history(state: State, twin: Twin) -> None:
    for name in ("dispatch_start", "dispatch_end", "combine_start", "combine_end"):
        assert state.tokens[name][:-1].tolist() == [getattr(token, name) for token in twin.tokens], name
    for copy in twin.copies:
        matrices = state.matrices[2 * copy.expert : 2 * copy.expert + 2]
        for name in ("start_ps", "end_ps", "here_bytes", "tiles_left"):
            assert matrices[name].tolist() == getattr(copy, name), name
    for record, expert in zip(state.experts, twin.experts.values(), strict=True):
        assert (record["number"], record["part"]) == (expert.number, expert.part)
        tiles = state.tiles[record["tile0"] : record["tile0"] + record["tiles_open"]]
        for stage in (0, 1):
            assert started(tiles, stage).tolist() == [tile.start_ps[stage] for tile in expert.tiles]
            assert ended(tiles, stage).tolist() == [tile.end_ps[stage] for tile in expert.tiles]
    np.testing.assert_array_equal(state.traffic.reshape(twin.world.traffic.shape), twin.world.traffic)
    for field, values in (
        ("hbm_free_ps", [gpu.memory.hbm_free_ps for gpu in twin.gpus]),
        ("sm_busy_ps", [gpu.gemm.busy_ps for gpu in twin.gpus]),
    ):
        assert state.gpus[field].tolist() == values, field
    assert state.uplinks["busy_ps"].tolist() == [link.busy_ps for gpu in twin.gpus for link in gpu.uplinks]
    downlinks = state.ports["busy_ps"][: len(state.uplinks)]
    assert downlinks.tolist() == [link.busy_ps for gpu in twin.gpus for link in gpu.downlinks]
    log = state.log[: state.root["log_size"][0]].tolist()
    assert [(*row[:3], name_of_item(state, row[0], row[3]), *row[4:]) for row in log] == twin.log


def play(case: Case, seed: int) -> tuple:
    """Runs both with the same random answers, comparing them at every decision; returns them at the end."""
    rng = np.random.default_rng(seed)
    engine, twin = case.engine(), case.twin()
    while True:
        asked, expected = engine.advance(), twin.advance()
        assert_same_progress(engine, twin)
        assert (asked is None) == (expected is None)
        if asked is None:
            return engine, twin
        if engine.state.root["split_done"][0]:
            assert_same_groups(engine.state, twin)
        assert_same_decision(engine.state, asked, expected)
        choice = int(rng.choice(np.flatnonzero(asked.mask)))
        engine.decide(choice)
        twin.decide(choice)


def test_the_twin_knows_every_feature_and_context_value(random_case: Callable[[int], Case]) -> None:
    features, context = set(), set()
    for seed in range(8):
        kinds = frozenset(range(len(observation.DECISION_KINDS)))
        asking = {
            "may_hold": frozenset([observation.GEMM, observation.PREFETCH]),
            "prefetches": True,
            "splits": ((1, 1, 3), (1, 2, 3)),
            "exposed": kinds,
            "max_candidates": 32,
        }
        twin = random_case(seed).with_program(**asking, network=None, networked=frozenset()).twin()
        while (decision := twin.advance()) is not None:
            gpu = twin.gpus[decision.gpu]
            for candidate in decision.candidates:
                features |= set(twin.shown.values_of(gpu, candidate, 0))
            context |= set(twin.shown.context_of(gpu, decision.kind))
            twin.decide(0)
    of_engine = set(observation.ENGINE_KINDS)
    features.add("ruled")  # which the twin works out from the others
    assert features == {feature.name for feature in observation.FEATURE_TABLE if of_engine & set(feature.kinds)}
    assert context == set(observation.CONTEXT)


@pytest.mark.parametrize("group", range(GROUPS))
def test_twin_and_engine_agree(random_case: Callable[[int], Case], group: int) -> None:
    for seed in range(group * CASES_PER_GROUP, (group + 1) * CASES_PER_GROUP):
        engine, twin = play(random_case(seed), seed)
        assert_same_history(engine.state, twin)


def test_random_cases_are_of_all_shapes(random_case: Callable[..., Case]) -> None:
    """What the twin is compared on: about half of the cases are even, and the others have all that a shape may have."""
    workloads = [random_case(seed).workload for seed in range(GROUPS * CASES_PER_GROUP)]
    before = [~workload.placement.is_copy for workload in workloads]  # what is there when the layer begins
    held = [np.bincount(w.gpu_of_expert[b], minlength=w.num_gpus) for w, b in zip(workloads, before, strict=True)]
    experts = [w.experts_of_token for w in workloads]
    uneven = [np.ptp(w.tokens_of_gpu) > 0 or np.ptp(h) > 0 for w, h in zip(workloads, held, strict=True)]
    assert 0.3 < np.mean(uneven) < 0.7
    for name, are in {
        "60 experts on 8 GPUs": [(w.layer.experts, w.num_gpus) == (60, 8) for w in workloads],
        "a GPU without tokens": [w.tokens_of_gpu.min() == 0 for w in workloads],
        "a GPU without experts": [h.min() == 0 for h in held],
        "a replica": [b.sum() > w.layer.experts for w, b in zip(workloads, before, strict=True)],
        "a copy": [not b.all() for b in before],
        "a dropped slot": [((0 < e) & (e < w.layer.top_k)).any() for w, e in zip(workloads, experts, strict=True)],
        "a token without experts": [(e == 0).any() for e in experts],
    }.items():
        assert 5 <= sum(are) <= 0.5 * len(workloads), name
    assert all(e.any() for e in experts)


def test_layers_without_any_expert_end_alike(random_case: Callable[..., Case]) -> None:
    for seed in range(20):
        case = random_case(seed)
        bare = dataclasses.replace(case.workload, topk_ids=np.full_like(case.workload.topk_ids, NO_EXPERT))
        engine, twin = play(case._replace(workload=bare), seed)
        assert_same_history(engine.state, twin)
        assert twin.now_ps > 0 and not twin.world.tokens_left


@pytest.mark.parametrize("dispatch", ["broadcast", "multicast"])
def test_a_token_s_store_and_sum_in_the_switch_keep_their_own_times(
    random_case: Callable[[int], Case], dispatch: str
) -> None:
    """GPUs so fast that a token's first sums are pushed while its store still waits for other downlinks."""
    case = random_case(311).with_primitives(dispatch, "push_reduce", gates=(codes.GATE_FINE,) * 3, prefetches=False)
    free = dataclasses.replace(case.costs.families, specs={}, multimem_flits=0)
    fast = {"granule_ps": (1, 1), "operand_ps": (0, 0), "block_overhead_ps": 0, "memory_ps": 0, "hop_ps": 1000}
    fast |= {"families": free}
    case = case._replace(costs=dataclasses.replace(case.costs, queueing="input_fifo", **fast))
    engine, twin = play(case, 327)
    assert_same_history(engine.state, twin)
    pushed_ps, last_copy_ps = {}, {}
    for use in twin.log:
        if use.resource == codes.LOG_REDUCE:
            pushed_ps.setdefault(use.item[1], use.start_ps)
        elif use.item[0] == "copy":
            last_copy_ps[use.item[1]] = use.start_ps
    assert any(pushed_ps[token] < last_copy_ps[token] for token in pushed_ps)
