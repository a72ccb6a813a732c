"""Problems: what is started from one is what a starter starts."""

import pytest

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, Problem, Starter, load_schedule, simulate
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.suite import load_suite

SCENARIO = ScenarioSpec(model="olmoe", gpus=4, tokens=24, routing="uniform").build()


@pytest.mark.parametrize("resolution", ["token", "packet"])
def test_a_problem_starts_what_a_starter_starts(resolution: str) -> None:
    system, workload, schedule = SCENARIO.system, SCENARIO.draw(3), load_schedule("dysharp")
    problem = Problem.of(system, workload, compute_scale=0.5, resolution=resolution)
    starter = Starter(system, workload.layer, schedule, compute_scale=0.5, resolution=resolution)
    mine, theirs = problem.start(schedule), starter.start(workload)
    for run in (mine, theirs):
        run.engine.run()
    assert mine.result() == theirs.result()
    assert mine.result() == simulate(system, workload, schedule, compute_scale=0.5, resolution=resolution).result()
    assert problem.name == workload.name


def test_the_bound_is_that_of_tokens_at_every_resolution() -> None:
    bounds = {
        Problem.of(SCENARIO.system, SCENARIO.draw(0), resolution=each).bound.total_ps for each in ("token", "packet")
    }
    assert len(bounds) == 1


def test_a_suite_s_problems_have_its_names_and_scales() -> None:
    items = load_suite("smoke").draw()
    for item, problem in zip(items, Problem.of_suite(items), strict=True):
        assert problem.name == item.name and problem.workload is item.workload
        scale = item.entry.compute_scale
        assert problem.costs == Problem.of(item.scenario.system, item.workload, compute_scale=scale).costs


def test_what_is_exposed_is_asked() -> None:
    engine = Problem.of(SCENARIO.system, SCENARIO.draw(0)).engine(load_schedule("dysharp"), Exposure(("dispatch",)))
    assert engine.advance() is not None


def test_there_is_no_such_resolution() -> None:
    with pytest.raises(ConfigError, match="resolution='flit' is unknown"):
        Problem.of(SCENARIO.system, SCENARIO.draw(0), resolution="flit")
