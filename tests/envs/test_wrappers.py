"""The mask in the observation is the environment's own, and nothing else differs."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.wrappers import MaskInObservation
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES

MASKED_ID = "DySHARP/TokenScheduleMasked-v2"
TINY = {"model": "small", "tokens": 24, "routing": "uniform", "gpus": 4, "max_candidates": 12}


def made(**settings: Any) -> gymnasium.Env[dict[str, np.ndarray], np.int64]:
    return gymnasium.make(MASKED_ID, **{**TINY, **settings})


def test_gymnasium_s_checker_passes_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # It takes actions without a look at the mask, and says of every wrapper that it is one.
        warnings.filterwarnings("ignore", message="a masked action was taken")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        check_env(made(), skip_render_check=True)


def test_spaces_have_the_documented_shapes() -> None:
    space = made().observation_space
    assert isinstance(space, gymnasium.spaces.Dict)
    shapes = {"observations": (12 * len(FEATURES) + len(CONTEXT),), "action_mask": (12,)}
    assert set(space) == set(shapes)
    for name, shape in shapes.items():
        assert space[name] == gymnasium.spaces.Box(0.0, 1.0, shape, np.float32)


def test_all_but_the_observation_is_as_without_it() -> None:
    env, plain = made(), TokenScheduleEnv(**TINY)
    rng, done = np.random.default_rng(0), False
    (shown, info), (bare, bare_info) = env.reset(seed=3), plain.reset(seed=3)
    widths = set()
    while not done:
        mask = plain.action_masks()
        widths.add(int(mask.sum()))
        np.testing.assert_array_equal(shown["action_mask"], mask.astype(np.float32))
        np.testing.assert_array_equal(shown["observations"], np.concatenate([bare["candidates"], bare["context"]]))
        assert env.observation_space.contains(shown)
        action = rng.choice(np.flatnonzero(shown["action_mask"]))
        shown, *result, info = env.step(action)
        bare, *expected, bare_info = plain.step(action)
        assert result == expected and info.keys() == bare_info.keys()
        np.testing.assert_array_equal(info.pop("action_mask"), bare_info.pop("action_mask"))
        assert info == bare_info
        done = result[1]
    assert len(widths) > 3  # masks differ from decision to decision
    assert info["invalid_actions"] == 0 and info["ratio"] > 1
    assert not shown["action_mask"].any()


def test_it_goes_around_other_wrappers_and_into_gymnasium_s_vectors() -> None:
    env = MaskInObservation(gymnasium.make("DySHARP/TokenSchedule-v2", max_episode_steps=2, **TINY))
    shown, _ = env.reset(seed=0)
    truncated = False
    while not truncated:
        shown, _, _, truncated, _ = env.step(np.int64(shown["action_mask"].argmax()))
    assert shown["action_mask"].any()  # a limit, not the end
    envs = gymnasium.make_vec(MASKED_ID, 2, **TINY)
    shown, infos = envs.reset(seed=0)
    np.testing.assert_array_equal(shown["action_mask"], infos["action_mask"])
    np.testing.assert_array_equal(shown["observations"][0], made().reset(seed=0)[0]["observations"])


def test_it_is_remade_from_its_spec() -> None:
    spec = made().spec
    assert spec is not None
    again = gymnasium.make(gymnasium.envs.registration.EnvSpec.from_json(spec.to_json()))
    assert again.observation_space == made().observation_space


def test_actions_that_no_mask_is_of_are_refused() -> None:
    with pytest.raises(ValueError, match="needs an environment with Discrete actions, not Box"):
        MaskInObservation(gymnasium.make("Pendulum-v1"))
