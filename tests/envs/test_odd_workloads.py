"""Environments play workloads of any shape: idle GPUs, GPUs without experts, tokens with few experts or none."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv
from dysharp_env.workload.workload import NO_EXPERT, Workload
from tests.simulator.odd_shapes import draw_shape

SETTINGS = {"model": "small", "tokens": 24, "routing": "uniform", "gpus": 4, "exposed": ("dispatch", "gemm", "combine")}


def shape(env: TokenScheduleEnv, seed: int) -> Workload:
    return draw_shape(env.scenario.layer, env.scenario.system.num_gpus, np.random.default_rng(seed))


@pytest.mark.parametrize("mode", ["ansi", "rgb_array"])
def test_an_episode_of_any_shape_ends_and_shows_shares(mode: str) -> None:
    env = TokenScheduleEnv(**SETTINGS, render_mode=mode)
    for seed in range(6):
        rng = np.random.default_rng(seed)
        observation, info = env.reset(options={"workload": shape(env, seed)})
        done = False
        while not done:
            assert env.observation_space.contains(observation)
            observation, _, done, _, info = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
        assert info["makespan_us"] >= info["lower_bound_us"] > 0
        assert env.render() is not None


def test_an_episode_without_any_expert_is_over_with_the_launch() -> None:
    env = TokenScheduleEnv(**SETTINGS)
    some = shape(env, 0)
    env.reset(options={"workload": dataclasses.replace(some, topk_ids=np.full_like(some.topk_ids, NO_EXPERT))})
    done, info, steps = False, {}, 0
    while not done:
        _, _, done, _, info = env.step(int(np.flatnonzero(env.action_masks())[0]))
        steps += 1
    opened_us = env.run.engine.state.gates["pay_ps"][0] / 1e6
    assert info["makespan_us"] == opened_us > 0 and steps <= some.num_tokens


def test_copies_of_unlike_shapes_play_what_they_would_play_alone() -> None:
    env = TokenScheduleEnv(**SETTINGS)
    shapes = [shape(env, seed) for seed in range(5)]
    alone = []
    for workload in shapes:
        env.reset(options={"workload": workload})
        done, info = False, {}
        while not done:
            _, _, done, _, info = env.step(int(np.flatnonzero(env.action_masks())[0]))
        alone.append(info["makespan_us"])
    copies = TokenScheduleVectorEnv(len(shapes), **SETTINGS)
    for copy, workload in enumerate(shapes):
        copies.reset(options={"workload": workload, "reset_mask": np.arange(len(shapes)) == copy})
    together = np.zeros(len(shapes))
    while not together.all():
        *_, terminated, _, infos = copies.step(copies.action_masks().argmax(axis=1))
        ended = terminated & (together == 0)
        together[ended] = infos["makespan_us"][ended]
    assert together.tolist() == alone
