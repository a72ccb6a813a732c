"""Chunk resolution beside token resolution: what the report covers and finds, and traffic to the last flit."""

import json

import numpy as np
import pytest

from dysharp_env.config import preset_names
from dysharp_env.report import chunks
from dysharp_env.report.chunks import LAYERS, Layer, chunk_rows
from dysharp_env.report.resolution import settled_flits
from dysharp_env.report.timeline import chrome_trace
from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.simulator import layout
from dysharp_env.workload import ScenarioSpec


@pytest.fixture
def few_layers(monkeypatch):
    monkeypatch.setattr(
        chunks, "LAYERS", (Layer("dgx-h100", 8, "large", 4, 32), Layer("gh200-nvl32", 4, "small", 2, 64))
    )


def test_rows_pass_one_a_layer_and_one_for_the_order(few_layers):
    *makespans, order = chunk_rows()
    assert [row for row in (*makespans, order) if not row.passes] == []
    assert {row.group for row in (*makespans, order)} == {"resolution"} and len(makespans) == 2
    assert [row.role for row in makespans] == ["predicted"] * 2 and order.role == "exact"
    assert makespans[0].name.endswith(" on 8 GPUs of dgx-h100: large, top-4, 32 tokens, us")
    assert makespans[0].tolerance == pytest.approx(0.03 * makespans[0].expected)


def test_a_schedule_that_changes_places_fails(few_layers, monkeypatch):
    def swapped(layer, seed):
        return {"first": (100.0, 102.0), "second": (102.0, 101.0), "third": (100.5, 103.0)}

    monkeypatch.setattr(chunks, "_makespans_us", swapped)
    # First and third are too close to have an order; second changes places with both.
    order = list(chunk_rows())[-1]
    assert (order.expected, order.simulated, order.passes) == (2 * len(chunks.LAYERS), 0, False)


def test_the_report_covers_thirty_layers_of_all_sizes():
    assert len(set(LAYERS)) == len(LAYERS) == 30
    assert {layer.gpus for layer in LAYERS} == {8, 32} and len({layer.model for layer in LAYERS}) >= 5
    assert min(layer.tokens for layer in LAYERS) == 64 and max(layer.tokens for layer in LAYERS) == 1024


@pytest.mark.parametrize("queueing", layout.QUEUEING)
@pytest.mark.parametrize("schedule", preset_names("schedules"))
def test_flits_are_those_of_token_resolution(schedule, queueing):
    scenario = ScenarioSpec(system="gh200-nvl32", gpus=4, model="olmoe", tokens=20, routing="uniform").build()
    system = scenario.system.with_changes({"switch.queueing": queueing})
    token, chunk = (
        simulate(system, scenario.draw(0), load_schedule(schedule), compute_scale=0.001, resolution=each).engine
        for each in ("token", "chunk")
    )
    np.testing.assert_array_equal(settled_flits(token), settled_flits(chunk))
    assert token.state.root["transfers"][0] > chunk.state.root["transfers"][0]


def test_a_timeline_names_the_first_token_of_a_bundle():
    scenario = ScenarioSpec(system="gh200-nvl32", gpus=4, model="olmoe", tokens=20, routing="uniform").build()
    run = simulate(scenario.system, scenario.draw(0), load_schedule("deepep"), resolution="chunk", logging=True)
    events = json.loads(chrome_trace(run.engine, "a title"))["traceEvents"]
    args = [event["args"] for event in events if "bytes" in event.get("args", {})]
    assert args and all("first token" in each and "token" not in each for each in args)
