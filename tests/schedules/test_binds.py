"""What binds a workload, by its lower bound."""

from __future__ import annotations

from typing import Any

import pytest

from dysharp_env.config import preset_names
from dysharp_env.schedules import Problem
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.suite import load_suite


def binds(compute_scale: float = 1.0, **settings: Any) -> str:
    scenario = ScenarioSpec(routing="uniform", **settings).build()
    return Problem.of(scenario.system, scenario.draw(0), compute_scale=compute_scale).binds


def test_what_binds_follows_machine_and_size() -> None:
    assert binds(model="olmoe", tokens=16) == "memory"
    assert binds(model="olmoe", tokens=16, compute_scale=0.01) == "software"
    assert binds(model="olmoe", tokens=1024) == "compute"
    assert binds(model="olmoe", tokens=1024, compute_scale=0.01) == "links"
    assert binds(model="olmoe", tokens=1024, system="dgx-h800") == "links"


def test_software_binds_what_takes_less_than_starting_a_kernel() -> None:
    scenario = ScenarioSpec(model="olmoe", tokens=16, routing="uniform").build()
    problem = Problem.of(scenario.system, scenario.draw(0))
    overheads = scenario.system.overheads
    fixed_us = overheads.launch_us + overheads.fused_start_us + overheads.count_exchange_us
    assert problem.bound.hbm_ps > fixed_us * 1e6
    slower = scenario.system.with_changes({"overheads.count_exchange_us": 1000})
    assert Problem.of(slower, problem.workload).binds == "software"


@pytest.mark.parametrize("name", preset_names("suites"))
def test_suites_say_what_binds(name: str) -> None:
    labelled = [item for item in load_suite(name).draw() if item.entry.binds is not None]
    wrong = [
        (problem.name, item.entry.binds, problem.binds)
        for item, problem in zip(labelled, Problem.of_suite(labelled), strict=True)
        if problem.binds != item.entry.binds
    ]
    assert not wrong
    assert len(labelled) > 20 or name not in ("training", "validation", "held-out")
