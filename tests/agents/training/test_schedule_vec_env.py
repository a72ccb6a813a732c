"""The Stable-Baselines3 adaptor plays exactly what its copies would play alone."""

import numpy as np

from agents.training.vec_env import ScheduleVecEnv
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.workload.suite import load_suite

SPEC = EnvSpec(model="olmoe", gpus=4, tokens=12, routing="uniform", max_candidates=16)


def test_every_copy_plays_what_it_would_play_alone_across_episodes() -> None:
    batch = ScheduleVecEnv(SPEC, 3)
    batch.seed(7)
    observations = batch.reset()
    singles = [TokenScheduleEnv(**SPEC.model_dump()) for _ in range(3)]
    expected = [env.reset(seed=7 + index)[0] for index, env in enumerate(singles)]
    rng = np.random.default_rng(0)
    finished = 0
    for _ in range(900):
        masks = batch.env_method("action_masks")
        assert masks.shape == (3, 16) and masks.dtype == bool
        for index, env in enumerate(singles):
            assert np.array_equal(masks[index], env.action_masks())
            for name in ("candidates", "context"):
                assert np.array_equal(observations[name][index], expected[index][name])
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        observations, rewards, dones, infos = batch.step(actions)
        for index, env in enumerate(singles):
            observation, reward, terminated, truncated, info = env.step(actions[index])
            assert rewards[index] == np.float32(reward)
            assert dones[index] == (terminated or truncated)
            if dones[index]:
                finished += 1
                final = infos[index]["final_info"]
                assert final["makespan_us"] == info["makespan_us"] > 0
                assert np.isclose(infos[index]["episode"]["r"], -final["ratio"])
                assert infos[index]["workload"] == env.run.engine.workload.name
                observation, _ = env.reset()
            expected[index] = observation
    assert finished >= 9  # second episodes of every copy included


def test_what_is_returned_is_the_callers_own() -> None:
    batch = ScheduleVecEnv(SPEC, 2)
    batch.seed(0)
    first = batch.reset()
    kept = {name: array.copy() for name, array in first.items()}
    mask = batch.env_method("action_masks")
    batch.step(mask.argmax(axis=1))
    for name, array in first.items():
        assert np.array_equal(array, kept[name])
    mask[:] = False
    assert batch.env_method("action_masks").any()


def test_seeding_again_plays_the_same_again() -> None:
    batch = ScheduleVecEnv(SPEC, 2)
    starts = []
    for _ in range(2):
        batch.seed(3)
        starts.append(batch.reset()["candidates"])
        batch.step(batch.env_method("action_masks").argmax(axis=1))
    assert np.array_equal(*starts)
    assert not np.array_equal(starts[0], batch.reset()["candidates"])  # no new seed: the streams go on


def test_what_stable_baselines_asks_of_a_vec_env() -> None:
    batch = ScheduleVecEnv(SPEC, 2)
    assert batch.has_attr("action_masks") and not batch.has_attr("no_such_thing")
    assert batch.get_attr("render_mode") == [None, None]
    assert batch.env_is_wrapped(object) == [False, False]
    batch.close()


def test_the_baseline_is_the_reference_on_the_same_workload_and_only_in_the_last_reward() -> None:
    plain, relative = ScheduleVecEnv(SPEC, 1), ScheduleVecEnv(SPEC, 1, "deepep", baseline=True)
    for batch in (plain, relative):
        batch.seed(11)
        batch.reset()
    for _ in range(250):
        action = plain.env_method("action_masks").argmax(axis=1)
        _, reward, done, _ = plain.step(action)
        workload = relative.episodes.run(0).engine.workload
        _, other, _, infos = relative.step(action)
        if done[0]:
            scenario = relative.episodes.source(0).scenario
            expected = simulate(scenario.system, workload, load_schedule("deepep")).result()
            assert infos[0]["reference_us"] == expected.makespan_us
            assert np.isclose(other[0] - reward[0], expected.ratio)
            assert np.isclose(infos[0]["episode"]["r"], -infos[0]["final_info"]["ratio"])
            return
        assert other[0] == reward[0]
    raise AssertionError("the episode did not end")


def test_references_of_a_suite_are_those_of_each_entry() -> None:
    """Workloads of two entries may have one name, so a makespan is remembered for the entry as well."""
    batch = ScheduleVecEnv(EnvSpec(suite="smoke", max_candidates=16), 4, "dysharp")
    batch.seed(0)
    batch.reset()
    found: dict[str, float] = {}
    while len(found) < 4:
        _, _, dones, infos = batch.step(batch.env_method("action_masks").argmax(axis=1))
        for index in np.flatnonzero(dones):
            found[infos[index]["workload"]] = infos[index]["reference_us"]
    expected = {
        item.name: simulate(item.scenario.system, item.workload, load_schedule("dysharp")).result().makespan_us
        for item in load_suite("smoke").draw()
    }
    assert found == expected
