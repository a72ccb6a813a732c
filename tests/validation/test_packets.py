"""Both resolutions on small layers: the same flits to the last one, makespans close; and what the report covers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.validation import packets
from dysharp_env.validation.packets import COMPARISONS, Comparison, packet_rows, settled_flits
from dysharp_env.workload import ScenarioSpec

SMALL = tuple(
    Comparison("dgx-h100", 8, "olmoe", 8, 32, schedule, 1.0) for schedule in ("deepep", "nvls", "dysharp", "ccfuser")
)


def engines(schedule: str, **changes: int | str) -> list[Engine]:
    """Returns engines that have run a small layer at token and at packet resolution."""
    scenario = ScenarioSpec(system="gh200-nvl32", gpus=4, model="olmoe", tokens=16, routing="uniform").build()
    system = scenario.system.with_changes(changes)
    return [
        simulate(system, scenario.draw(0), load_schedule(schedule), compute_scale=0.001, resolution=each).engine
        for each in ("token", "packet")
    ]


@pytest.fixture
def small_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packets, "COMPARISONS", SMALL)


def test_rows_pass_and_come_in_pairs(small_comparisons: None) -> None:
    rows = list(packet_rows())
    assert [row for row in rows if not row.passes] == []
    assert {row.group for row in rows} == {"resolution"} and len(rows) == 2 * len(SMALL)
    assert [row.role for row in rows] == ["predicted", "exact"] * len(SMALL)
    assert rows[0].name == "makespan of deepep on 8 GPUs of dgx-h100: olmoe, top-8, 32 tokens, us"
    assert rows[0].tolerance == pytest.approx(0.02 * rows[0].expected)
    assert rows[1].expected == rows[1].simulated and rows[1].tolerance == 0


def test_a_flit_in_the_wrong_place_fails(small_comparisons: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(engine: Any) -> Any:
        flits = settled_flits(engine)
        if engine.costs.resolution == "token":
            flits[0, codes.UP, codes.DISPATCH_DATA] -= 1
            flits[1, codes.UP, codes.DISPATCH_DATA] += 1
        return flits

    monkeypatch.setattr(packets, "settled_flits", moved)
    assert [row.passes for row in packet_rows()] == [True, False] * len(SMALL)


@pytest.mark.parametrize("queueing", codes.QUEUEING)
@pytest.mark.parametrize("payload_bytes", [128, 256])
@pytest.mark.parametrize(
    "schedule", ["deepep", "nvls", "dysharp", "dysharp-push", "ccfuser", "mega-moe", "dysharp-team"]
)
def test_flits_are_the_same_whatever_the_queueing(schedule: str, payload_bytes: int, queueing: str) -> None:
    changes = {"link.payload_bytes": payload_bytes, "switch.queueing": queueing}
    token, packet = engines(schedule, **changes)
    np.testing.assert_array_equal(settled_flits(token), settled_flits(packet))


def test_only_evictions_may_differ() -> None:
    """With eight accumulator slots a plane, vectors of 32 packets are evicted whole, packets one by one."""
    changes = {"switch.reduction_buffer_bytes": 1024}
    token, packet = engines("dysharp-push", **changes)
    assert token.state.root["evictions"][0] > 0
    assert token.state.root["evictions"][0] != packet.state.root["evictions"][0]
    found, expected = settled_flits(token), settled_flits(packet)
    differs = np.unique(np.nonzero(found != expected)[2])
    assert set(differs) <= {codes.EVICTION, codes.COMBINE_ACK}


def test_the_report_covers_sizes_machines_and_primitives() -> None:
    assert len(set(COMPARISONS)) == len(COMPARISONS) >= 20
    assert {comparison.gpus for comparison in COMPARISONS} == {8, 32}
    schedules = [load_schedule(comparison.schedule) for comparison in COMPARISONS]
    assert {schedule.dispatch for schedule in schedules} == set(DISPATCH_PRIMITIVES)
    assert {schedule.combine for schedule in schedules} == set(COMBINE_PRIMITIVES)
    assert len({comparison.model for comparison in COMPARISONS}) >= 5
