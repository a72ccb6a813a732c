"""The native vector environment plays what copies of the environment play in Gymnasium's own vectoriser."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.vector.sync_vector_env import SyncVectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv

ENV_ID = "DySHARP/TokenSchedule-v2"
TINY = {"model": "olmoe", "gpus": 4, "tokens": 12, "routing": "uniform", "max_candidates": 16}
ALL_KINDS = {
    "exposed": ("split", "dispatch", "gemm", "combine"),
    "splits": ((4, 4), (8, 8, 9), (8, 16)),
    "split_moments": 2,
}


def native(num_envs: int, **settings: Any) -> TokenScheduleVectorEnv:
    return gymnasium.make_vec(ENV_ID, num_envs, "vector_entry_point", **{**TINY, **settings})


def loop(num_envs: int, **settings: Any) -> SyncVectorEnv:
    return gymnasium.make_vec(ENV_ID, num_envs, "sync", **{**TINY, **settings})


def choices(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns uniform legal actions, and 0 where an episode is over."""
    return (rng.random(masks.shape) * (masks > 0)).argmax(axis=1)


def assert_same(got: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Compares what reset or step returned: values, types and shapes, infos included."""
    for mine, other in zip(got, expected, strict=True):
        if isinstance(mine, dict):
            assert mine.keys() == other.keys()
            mine, other = list(mine.values()), [other[key] for key in mine]
        else:
            mine, other = [mine], [other]
        for a, b in zip(mine, other, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**ALL_KINDS, "resolution": "packet"},
        ALL_KINDS,
        {"exposed": ("gemm",), "hold": False},
        {"schedule": "deepep", "exposed": ("dispatch", "combine")},
    ],
)
def test_it_is_gymnasium_s_vector_of_copies_at_engine_speed(settings: dict[str, Any]) -> None:
    mine, other = native(3, **settings), loop(3, **settings)
    rng = np.random.default_rng(0)
    got, expected = mine.reset(seed=7), other.reset(seed=7)
    assert_same(got, expected)
    episodes = 0
    while episodes < 7:  # every copy ends twice, one three times: streams go on from episode to episode
        masks = mine.action_masks()
        np.testing.assert_array_equal(masks, got[1 if len(got) == 2 else 4]["action_mask"])
        actions = choices(masks, rng)
        got, expected = mine.step(actions), other.step(actions)
        assert_same(got, expected)
        episodes += int(got[2].sum())


@pytest.mark.filterwarnings("ignore:a masked action was taken")
@pytest.mark.parametrize("settings", [{}, {"invalid_penalty": 0.5}])
def test_masked_actions_have_the_outcome_they_have_alone(settings: dict[str, Any]) -> None:
    mine, other = native(3, **settings), loop(3, **settings)
    rng = np.random.default_rng(1)
    assert_same(mine.reset(seed=3), other.reset(seed=3))
    ended = 0
    for _ in range(600):
        # Copy 0 is stubborn, the others guess now and then.
        actions = np.where(rng.random(3) < [0.9, 0.2, 0.0], 15, choices(mine.action_masks(), rng))
        got, expected = mine.step(actions), other.step(actions)
        assert_same(got, expected)
        assert not got[3].any()
        ended += int(got[2].sum())
    assert ended > 2


def test_raise_leaves_every_copy_as_it_was() -> None:
    envs = native(2, invalid_action="raise")
    envs.reset(seed=0)
    before = envs.action_masks()
    with pytest.raises(ValueError, match="action 15 is masked; legal actions are"):
        envs.step(np.array([0, 15]))
    np.testing.assert_array_equal(envs.action_masks(), before)
    np.testing.assert_array_equal(envs.step(np.array([0, 0]))[4]["asked"], 1)


def test_threads_change_nothing() -> None:
    serial, threaded = native(5), native(5, threads=2)
    rng = np.random.default_rng(2)
    assert_same(serial.reset(seed=1), threaded.reset(seed=1))
    for _ in range(300):
        actions = choices(serial.action_masks(), rng)
        assert_same(serial.step(actions), threaded.step(actions))
    threaded.close()


def test_only_masked_copies_are_reset() -> None:
    mine, other = native(3), loop(3)
    rng = np.random.default_rng(3)
    assert_same(mine.reset(seed=[5, 1, 9]), other.reset(seed=[5, 1, 9]))
    for _ in range(20):
        actions = choices(mine.action_masks(), rng)
        assert_same(mine.step(actions), other.step(actions))
    mask = np.array([False, True, False])
    got = mine.reset(seed=[0, 4, 0], options={"reset_mask": mask})
    assert_same(got, other.reset(seed=[0, 4, 0], options={"reset_mask": mask.copy()}))
    assert got[1]["_kind"].tolist() == mask.tolist()
    for _ in range(20):
        actions = choices(mine.action_masks(), rng)
        assert_same(mine.step(actions), other.step(actions))


def test_a_layer_without_decisions_takes_one_action_in_every_copy() -> None:
    settings = {"gpus": 2, "tokens": 1, "exposed": ("dispatch",)}
    mine, other = native(2, **settings), loop(2, **settings)
    assert_same(mine.reset(seed=0), other.reset(seed=0))
    for _ in range(4):
        assert_same(mine.step(np.zeros(2, int)), other.step(np.zeros(2, int)))


def test_reset_options_reach_every_copy() -> None:
    envs = native(2)
    envs.reset(options={"workload_seed": 11})
    single = TokenScheduleEnv(**TINY)
    single.reset(options={"workload_seed": 11})
    for run in envs.runs:
        assert run.engine.workload.name == single.run.engine.workload.name


def test_what_is_returned_is_the_caller_s_own_unless_asked_otherwise() -> None:
    for copy in (True, False):
        envs = native(2, copy=copy)
        first, _ = envs.reset(seed=0)
        kept = first["candidates"].copy()
        assert first in envs.observation_space
        envs.step(envs.action_masks().argmax(axis=1))
        assert np.array_equal(first["candidates"], kept) == copy
        assert np.shares_memory(envs.action_masks(), envs.action_masks()) != copy


def test_metadata_spaces_and_pictures() -> None:
    envs = native(2, render_mode="ansi")
    assert envs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert envs.unwrapped.spec.id == ENV_ID
    assert envs.action_space == loop(2).action_space
    assert envs.observation_space == loop(2).observation_space
    envs.reset(seed=0)
    assert all("GPU" in text for text in envs.render())
    assert native(1).render() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_envs": 0}, "num_envs=0 must be a whole number of at least 1"),
        ({"threads": 0}, "threads=0 must be a whole number of at least 1"),
        ({"tokns": 3}, "unknown key 'tokns' (did you mean 'tokens'?)"),
        ({"render_mode": "human"}, "render_mode='human' is that of gymnasium.make"),
    ],
)
def test_bad_settings_give_one_clear_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        TokenScheduleVectorEnv(**{**TINY, **settings})


def test_seeds_are_of_random_choices_too() -> None:
    envs, drawn = native(3), []
    for seed in (0, 0, 1, [0, 5, 7]):
        envs.reset(seed=seed)
        drawn.append([envs.action_space.sample().tolist(), int(envs.single_action_space.sample())])
    assert drawn[0] == drawn[1] == drawn[3] != drawn[2]


def test_bad_calls_are_refused() -> None:
    envs = native(2)
    with pytest.raises(RuntimeError, match="call reset first"):
        envs.step(np.zeros(2, int))
    with pytest.raises(ValueError, match="3 seeds were given for 2 environments"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": np.zeros(2, bool)})
    envs.reset(seed=0)
    for actions in (np.array([0, 16]), np.array([-1, 0]), np.zeros(3, int), np.zeros(2)):
        with pytest.raises(ValueError, match="are not in MultiDiscrete"):
            envs.step(actions)


def test_gymnasium_s_vector_wrappers_count_its_episodes() -> None:
    # Apart: what gymnasium 1.1 adds to infos when it counts, its own DictInfoToList cannot read.
    counted, listed = RecordEpisodeStatistics(native(2)), DictInfoToList(native(2))
    counted.reset(seed=0)
    listed.reset(seed=0)
    rng = np.random.default_rng(0)
    ended = 0
    while ended < 3:
        actions = choices(counted.unwrapped.action_masks(), rng)
        _, _, terminated, _, infos = counted.step(actions)
        *_, lists = listed.step(actions)
        for index in np.flatnonzero(terminated):
            assert infos["episode"]["r"][index] == pytest.approx(-infos["ratio"][index])
            assert lists[index]["ratio"] == infos["ratio"][index]
        ended += int(terminated.sum())
    assert len(counted.return_queue) == ended


def test_copies_of_a_suite_play_what_they_would_play_alone() -> None:
    settings = {"suite": "smoke", "max_candidates": 16}
    mine = gymnasium.make_vec(ENV_ID, 3, "vector_entry_point", **settings)
    other = gymnasium.make_vec(ENV_ID, 3, "sync", **settings)
    rng = np.random.default_rng(4)
    got, expected = mine.reset(seed=2), other.reset(seed=2)
    assert_same(got, expected)
    sizes = set()
    episodes = 0
    while episodes < 9:
        actions = choices(mine.action_masks(), rng)
        got, expected = mine.step(actions), other.step(actions)
        assert_same(got, expected)
        episodes += int(got[2].sum())
        sizes |= {scenario.system.num_gpus for scenario in mine.scenarios}
    assert sizes == {4, 8}  # both entries have been played
