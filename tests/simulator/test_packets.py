"""Packets on planes: their hash, two runs by hand, what does not depend on resolution, and the flow through buffers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.result import SegmentName, segment_name, summarise
from dysharp_env.simulator.state.planes import plane_of, vector_planes
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.workload import ScenarioSpec
from tests.conftest import Case
from tests.simulator.round_machine import ROUND_PROGRAM, round_layer, round_system


@pytest.mark.parametrize("planes", [1, 2, 4, 9, 18])
def test_every_aligned_run_of_addresses_uses_every_plane_once(planes: int) -> None:
    runs = plane_of(np.arange(planes * 1000), planes).reshape(-1, planes)
    assert (np.sort(runs, axis=1) == np.arange(planes)).all()
    # Runs start anywhere: no plane is first much more often than another.
    starts = np.bincount(runs[:, 0], minlength=planes)
    assert starts.min() > 0.7 * 1000 / planes and starts.max() < 1.3 * 1000 / planes


def round_costs(resolution: str, *, hidden: int = 192, planes: int = 2, **changes: int) -> tuple:
    """Returns a round system, layer and costs: 1000 ps a flit on all planes, vectors of packets of 9 flits."""
    system = round_system(2).with_changes({"link.planes": planes, **changes})
    layer = round_layer(2).with_changes({"hidden": hidden})
    return system, layer, Costs.of(system, layer, resolution=resolution)


def test_vectors_follow_each_other_and_sums_follow_tokens() -> None:
    _, _, costs = round_costs("packet")
    dispatch, combine = vector_planes(costs, 2)
    assert dispatch.shape == combine.shape == (2, 3)
    np.testing.assert_array_equal(np.concatenate([dispatch, combine]).ravel(), plane_of(np.arange(12), 2))
    _, _, together = round_costs("token")
    assert [planes.tolist() for planes in vector_planes(together, 2)] == [[[0], [0]], [[0], [0]]]


def test_unknown_resolution_is_refused() -> None:
    with pytest.raises(ConfigError, match="^resolution='flit' is unknown; choose from .'token', 'packet'.$"):
        round_costs("flit")


def case_of(
    make_case: Callable[..., Case], resolution: str, program: Program, topk_ids: np.ndarray, **changes: int
) -> Case:
    system, layer, costs = round_costs(resolution, **changes)
    return make_case(system, layer, topk_ids, program)._replace(costs=costs)


@pytest.mark.parametrize(("resolution", "stored"), [("token", 237_000), ("packet", 246_000)])
def test_copies_and_pushed_sums_worked_by_hand(make_case: Callable[..., Case], resolution: str, stored: int) -> None:
    """Vectors of three packets on two planes of 2000 ps a flit: one plane has two of them, 36,000 ps.

    On all planes together a vector is 27 flits of 1000 ps. Paid at 10,000; a hop of 100,000 up, cut through, and down.
    """
    case = case_of(make_case, resolution, ROUND_PROGRAM, np.array([[0, 1], [0, 1]]))
    engine, twin = case.engine().run(), case.twin().run()
    assert engine.state.tokens["dispatch_end"][:-1].tolist() == [stored] * 2
    # Partial sums of as many flits go home the same way.
    assert engine.now_ps - engine.state.root["combine_first"][0] == stored - 10_000
    assert engine.now_ps == twin.now_ps


@pytest.mark.parametrize(("resolution", "visible"), [("token", 290_000), ("packet", 280_000)])
def test_the_first_packet_has_a_token_translated(make_case: Callable[..., Case], resolution: str, visible: int) -> None:
    """A packet names one expert, 10 flits. The first is stored at 230,000, the last at 250,000; a miss takes 50,000."""
    program = dataclasses.replace(
        ROUND_PROGRAM, dispatch=DISPATCH_PRIMITIVES["multicast"], combine=COMBINE_PRIMITIVES["pull_reduce"]
    )
    case = case_of(make_case, resolution, program, np.array([[0, 1], [0, 1]]))
    engine, twin = case.engine().run(), case.twin().run()
    assert engine.state.tokens["dispatch_end"][:-1].tolist() == [visible] * 2
    assert engine.now_ps == twin.now_ps


def test_one_packet_on_one_plane_is_a_vector(make_case: Callable[..., Case]) -> None:
    """Where vectors are single packets and there is one plane, both resolutions are the same run."""
    for program in (
        ROUND_PROGRAM,
        dataclasses.replace(
            ROUND_PROGRAM, dispatch=DISPATCH_PRIMITIVES["multicast"], combine=COMBINE_PRIMITIVES["push_reduce"]
        ),
    ):
        topk_ids = np.tile([[0, 1], [1, 0]], (16, 1))
        token, packet = (
            case_of(make_case, resolution, program, topk_ids, hidden=64, planes=1).engine().run().state
            for resolution in ("token", "packet")
        )
        assert token.root["sequence"] == packet.root["sequence"]
        for name in ("tokens", "tiles", "nodes", "uplinks", "ports", "traffic", "log"):
            assert getattr(token, name).tobytes() == getattr(packet, name).tobytes(), name


def test_segments_of_a_vector_weigh_what_it_weighs(make_case: Callable[..., Case]) -> None:
    """Flits and data of every vector, the last packet part empty; and what nodes are called."""
    program = dataclasses.replace(
        ROUND_PROGRAM, dispatch=DISPATCH_PRIMITIVES["multicast"], combine=COMBINE_PRIMITIVES["pull_reduce"]
    )
    # 400 B: three packets of 128 B and one of 16 B.
    token, packet = (
        case_of(make_case, resolution, program, np.array([[0, 1], [0, 1]]), hidden=200).engine().state
        for resolution in ("token", "packet")
    )
    assert len(packet.nodes) == 4 * len(token.nodes)
    for field in ("flits", "payload_flits"):
        np.testing.assert_array_equal(packet.nodes[field].reshape(-1, 4).sum(axis=1), token.nodes[field])
    assert packet.nodes["payload_flits"][:4].tolist() == [8, 8, 8, 1]
    places = [segment_name(packet, node) for node in range(len(packet.nodes))]
    # Pairs of token 0 are at its home GPU 0 and at GPU 1, those of token 1 the other way round.
    assert [(name.what, name.token, name.gpu) for name in places[::4]] == [
        *[("copy", 0, 0), ("copy", 0, 1), ("copy", 1, 1), ("copy", 1, 0)],
        *[("partial", 0, 0), ("partial", 0, 1), ("partial", 1, 1), ("partial", 1, 0)],
        *[("store", 0, 0), ("store", 1, 1), ("sum", 0, 0), ("sum", 1, 1)],
    ]
    assert [name.place for name in places] == list(range(4)) * 12
    assert places[5] == SegmentName("copy", 0, 1, 1, int(packet.nodes["plane"][5]))


def test_full_buffers_pass_as_many_vectors_as_packets(make_case: Callable[..., Case]) -> None:
    """A buffer of 10 packets, 2.5 vectors of 36 flits, and a round trip of 209,000 ps: 90 flits each time.

    A packet holds its space for two hops and its own 9 flits at the output. The wire alone takes 36,000 ps a vector.
    """
    program = dataclasses.replace(ROUND_PROGRAM, dispatch_sms=1)
    changes = {"hidden": 256, "planes": 1, "link.ack_flits": 0, "gpu.multimem_queue_entries": 0}
    case = case_of(make_case, "token", program, np.array([[1, 0]] * 20 + [[0, 1]] * 20), **changes)
    case = case._replace(costs=dataclasses.replace(case.costs, credit_flits=90))
    ends_ps = np.sort(case.engine().run().state.tokens["dispatch_end"][:20])
    # Two vectors every 72 / 90 of a round trip.
    assert set(np.diff(ends_ps)[1::2] + np.diff(ends_ps)[:-1:2]) == {209_000 * 72 // 90}


def test_utilisation_and_payload_do_not_depend_on_resolution() -> None:
    scenario = ScenarioSpec(system="dgx-h100", gpus=4, model="olmoe", tokens=32, routing="uniform").build()
    workload = scenario.draw(0)
    token, packet = (
        simulate(scenario.system, workload, load_schedule("dysharp"), resolution=resolution)
        for resolution in ("token", "packet")
    )
    assert token.lower_bound_ps == packet.lower_bound_ps
    results = [summarise(run.engine, run.lower_bound_ps) for run in (token, packet)]
    assert results[0].payload_bytes == results[1].payload_bytes
    for link in ("uplink", "downlink"):
        assert results[0].utilisation[link]["mean"] == pytest.approx(results[1].utilisation[link]["mean"], rel=0.02)
