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


def test_the_fastest_variant_runs_and_the_first_of_equals() -> None:
    problem = Problem.of(SCENARIO.system, SCENARIO.draw(1))
    sms = [{"sms.dispatch": count, "sms.combine": count} for count in (1, 20, 3)]
    plain = load_schedule("dysharp").with_changes({"sms": {"dispatch": 1, "combine": 1}})
    choice = plain.with_changes({"best_of": sms})
    alone = [problem.run(plain.with_changes(each)).engine.now_ps for each in sms]
    assert len(set(alone)) == 3 and min(alone) == alone[1]
    run = problem.run(choice)
    assert (run.engine.now_ps, run.variant, run.schedule) == (alone[1], sms[1], choice.variants()[1])
    assert problem.best(choice) == run.schedule and problem.best(plain) is plain
    assert simulate(SCENARIO.system, SCENARIO.draw(1), choice).result() == run.result()
    assert problem.run(plain).variant is None
    # Fewest tokens of tiles closed early, where none is: all are equal.
    equal = plain.with_changes({"best_of": [{"min_partial_tokens": tokens} for tokens in (16, 8, 4)]})
    assert problem.run(equal).variant == {"min_partial_tokens": 16}


def test_whoever_is_asked_is_asked_of_the_first_variant() -> None:
    exposure, workload = Exposure(("dispatch",)), SCENARIO.draw(0)
    sms = [{"sms.dispatch": count} for count in (3, 20)]
    choice = load_schedule("dysharp").with_changes({"sms.dispatch": 3, "best_of": sms})
    runs = [
        Problem.of(SCENARIO.system, workload).start(choice, exposure),
        Starter(SCENARIO.system, workload.layer, choice, exposure=exposure).start(workload),
    ]
    assert [run.engine.program.dispatch_sms for run in runs] == [3, 3]
    assert [run.variant for run in runs] == [sms[0]] * 2


def test_what_is_exposed_is_asked() -> None:
    engine = Problem.of(SCENARIO.system, SCENARIO.draw(0)).engine(load_schedule("dysharp"), Exposure(("dispatch",)))
    assert engine.advance() is not None


def test_there_is_no_such_resolution() -> None:
    with pytest.raises(ConfigError, match="resolution='flit' is unknown"):
        Problem.of(SCENARIO.system, SCENARIO.draw(0), resolution="flit")
