"""Opponents of every sort: what they play one decision at a time is what they play at once, and how it is counted."""

import numpy as np
import pytest

from agents.opponents.players import Chooser, best_row
from agents.opponents.read import learned_of, read_contender, read_contenders, run_folders
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.schedules import Problem
from dysharp_env.schedules.opponent import Contender
from dysharp_env.workload.suite import load_suite

ITEMS = load_suite("smoke").draw()
PROBLEMS = Problem.of_suite(ITEMS)


@pytest.fixture(params=["dysharp-l2", "tutel", "look-ahead:dysharp", "look-ahead:comet", "random", "first", "RUN"])
def contender(request: pytest.FixtureRequest, row_run: str) -> Contender:
    return read_contender(row_run if request.param == "RUN" else request.param, rollouts=20)


def test_replayed_it_ends_at_the_same_time_and_shows_what_was_asked(contender: Contender) -> None:
    played = iter(contender.play(PROBLEMS[:2]))
    for opponent in contender.opponents:
        for place, problem in enumerate(PROBLEMS[:2]):
            told, run = next(played), opponent.start(problem)
            assert (told.seed, told.workload) == (opponent.seed, problem.name)
            answer, asked = opponent.answers(problem, place), 0
            while (decision := run.engine.advance()) is not None:
                run.engine.decide(answer(decision))
                asked += 1
            assert len([*opponent.replay(problem, place)]) == asked == told.asked
            result = run.result()
            assert (told.makespan_us, told.lower_bound_us) == (result.makespan_us, result.lower_bound_us)
            assert told.decisions == result.decisions >= asked
            assert (asked > 0) == bool(opponent.exposure.kinds)


def test_decisions_are_those_of_all_who_decide() -> None:
    """The first legal candidate of everything, by rule for kinds that are not asked, is one schedule however asked."""
    natural = EnvSpec(exposed=("dispatch",), schedule="dysharp")
    (asked,), (ruled,) = Chooser(natural).play(PROBLEMS[:1]), read_contender("dysharp").play(PROBLEMS[:1])
    assert (asked.makespan_us, asked.decisions) == (ruled.makespan_us, ruled.decisions)
    assert 0 == ruled.asked < asked.asked < asked.decisions


def test_choices_are_those_of_the_environment() -> None:
    """Random choices in the environment, from the same streams, end where the opponent does."""
    spec = EnvSpec(max_candidates=16)
    streams = [np.random.default_rng(child) for child in np.random.SeedSequence(5).spawn(len(ITEMS))]
    for item, stream, told in zip(ITEMS, streams, Chooser(spec, 5).play(PROBLEMS), strict=True):
        env = TokenScheduleEnv(**item.entry.scenario_fields(), max_candidates=16)
        _, info = env.reset(options={"workload": item.workload})
        ended = False
        while not ended:
            _, _, ended, _, info = env.step(int(stream.choice(np.flatnonzero(info["action_mask"]))))
        assert (info["makespan_us"], info["lower_bound_us"]) == (told.makespan_us, told.lower_bound_us)


def test_choosers_are_asked_what_the_first_policy_is_asked(row_run: str) -> None:
    first, learned, _ = read_contenders(["first", row_run, "dysharp"], seeds=[7])
    (policy,), (chooser,) = learned_of(learned), first.opponents
    assert chooser.exposure == policy.exposure and chooser.base == policy.base
    (again,) = read_contenders(["random"], seeds=[7])
    assert [opponent.seed for opponent in again.opponents] == [7] and again.opponents[0].exposure.kinds != ("split",)


def test_a_run_says_all_of_itself_in_its_best_policy(row_run: str) -> None:
    contender = read_contender(row_run)
    assert contender.name == "steered" and [str(path) for path in run_folders(contender)] == [row_run]
    (policy,) = learned_of(contender)
    assert policy.seed == 0 and policy.env.exposed == ("split", "gemm")
    decision = next(policy.replay(PROBLEMS[0], 0))
    assert decision[1] == best_row(policy.network, decision[0])
