"""Masked actions never pay: not mixed with legal ones, not by stalling, not under a time limit, not in evaluation."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from agents.training.vec_env import ScheduleVecEnv
from dysharp_env.config import preset_names
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.schedules import load_schedule, simulate

ENV_ID = "DySHARP/TokenSchedule-v2"
TINY = {"model": "olmoe", "gpus": 4, "tokens": 12, "routing": "uniform", "max_candidates": 16}
LAYERS: tuple[dict[str, Any], ...] = (
    {},
    {"schedule": "mega-moe", "exposed": ("dispatch", "gemm", "combine")},
    {"exposed": ("split", "gemm"), "splits": ((8, 8), (4, 4, 9)), "split_moments": 2},
    {"schedule": "deepep", "exposed": ("dispatch", "combine"), "invalid_penalty": 0.01},
    {"gpus": 2, "tokens": 1, "exposed": ("dispatch",)},  # done before it asks
)
pytestmark = pytest.mark.filterwarnings("ignore:a masked action was taken")


def returns(env: TokenScheduleEnv, actions: Iterator[int] | None, chance: float, seed: int) -> Iterator[Any]:
    """Plays, each action masked with a chance unless they are given; yields what is played instead and all rewards."""
    rng, total, done = np.random.default_rng(seed), 0.0, False
    while not done:
        mask = env.action_masks()
        legal, hidden = np.flatnonzero(mask), np.flatnonzero(~mask)
        action = next(actions) if actions else int(rng.choice(hidden if rng.random() < chance else legal))
        _, reward, done, truncated, info = env.step(action)
        assert not truncated
        total += reward
        yield action if mask[action] else int(legal[0]), total, info


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("chance", [0.1, 0.5, 1.0])
def test_the_same_schedule_by_legal_actions_is_better_wherever_one_stops(layer: dict[str, Any], chance: float) -> None:
    mixed, legal = TokenScheduleEnv(**TINY | layer), TokenScheduleEnv(**TINY | layer)
    for seed in range(4):
        _, info = mixed.reset(seed=seed)
        _, before = legal.reset(seed=seed)
        played = list(returns(mixed, None, chance, seed))
        replayed = list(returns(legal, iter([action for action, _, _ in played]), 0.0, 0))
        assert len(played) == len(replayed)
        for (_, total, info), (_, most, same) in zip(played, replayed, strict=True):
            cost = mixed.settings.invalid_penalty * info["invalid_actions"]
            assert total == pytest.approx(most - cost, abs=1e-9) and total <= most
            assert (info["time_us"], info["asked"]) == (same["time_us"], same["asked"])
        assert before["lower_bound_us"] == info["lower_bound_us"]
        assert total == pytest.approx(-info["ratio"] - cost) and total <= -1.0
        assert chance < 1 or info["invalid_actions"] == len(played)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layer", LAYERS[:4])
def test_always_masked_is_worse_than_the_worst_shipped_schedule(layer: dict[str, Any], seed: int) -> None:
    env = TokenScheduleEnv(**TINY | layer | {"invalid_penalty": 1.0})
    env.reset(seed=seed)
    system, workload = env.scenario.system, env.run.engine.workload
    ratios = [simulate(system, workload, load_schedule(name)).result().ratio for name in preset_names("schedules")]
    *_, (_, total, _) = returns(env, None, 1.0, seed)
    assert total < -max(ratios)


def test_no_time_limit_makes_stalling_pay() -> None:
    for steps in (1, 5, 40):
        totals = []
        for action in (0, 15):
            env = TimeLimit(TokenScheduleEnv(**TINY), steps)
            env.reset(seed=0)
            rewards = []
            truncated = False
            while not truncated:
                _, reward, terminated, truncated, _ = env.step(action)
                rewards.append(reward)
                assert not terminated
            totals.append(sum(rewards))
        assert totals[1] == pytest.approx(totals[0] - steps) and totals[1] <= -1.0


class Constant(SimpleNamespace):
    """A model that always takes one action, for what evaluates models without a look at masks."""

    def predict(self, observations: dict[str, np.ndarray], **_: Any) -> tuple[np.ndarray, None]:
        return np.full(len(observations["context"]), self.action), None


def test_plain_evaluation_ranks_stalling_below_the_rule() -> None:
    def score(action: int) -> float:
        env = Monitor(gymnasium.make(ENV_ID, **TINY, seeds=(0, 3)))
        env.reset(seed=0)
        return float(evaluate_policy(Constant(action=action), env, n_eval_episodes=3, warn=False)[0])

    env = TokenScheduleEnv(**TINY, seeds=(0, 3))
    workloads = [env.scenario.draw(seed) for seed in range(3)]
    rule = [simulate(env.scenario.system, workload, env._episodes.schedule).result().ratio for workload in workloads]
    stalling, first = score(15), score(0)
    assert stalling < -max(rule)
    assert stalling < first < -1.0  # the first candidate is always legal


def test_copies_for_stable_baselines_end_and_none_is_cut_off() -> None:
    batch = ScheduleVecEnv(EnvSpec(**TINY), 2)
    batch.seed(0)
    batch.reset()
    for _ in range(1000):
        _, _, dones, infos = batch.step(np.array([15, 0]))
        if dones[0]:
            final = infos[0]["final_info"]
            assert final["invalid_actions"] == infos[0]["episode"]["l"] == final["asked"]
            assert infos[0]["episode"]["r"] == pytest.approx(-final["ratio"] - final["invalid_actions"])
            assert not infos[0].get("TimeLimit.truncated", False)
            return
    raise AssertionError("a stalling copy did not end")


def test_it_is_warned_of_once() -> None:
    env = TokenScheduleEnv(**TINY)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="a masked action was taken: the first legal candidate takes its place"):
        env.step(15)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.step(15)
        env.clone().step(15)
        _, info = env.reset(seed=1)
        assert info["invalid_actions"] == 0
        env.step(15)
