"""How many decisions the environments take a second.

Actions are drawn at random among the legal ones in a first pass. The second, timed pass replays them: the same episodes
without what choosing costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np

from dysharp_env.bench.timing import Row, Seconds, least, per_second, timed
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.envs.vector import TokenScheduleVectorEnv

_SEED = 0
_COPIES = 50  # each takes a millisecond or so


def single_rows(episodes: int, repeats: int) -> Iterator[Row]:
    """Yields decisions per second of one default environment, resets included."""
    env = TokenScheduleEnv()
    played = [record_episode(env, _SEED + index) for index in range(episodes)]

    def replay() -> None:
        for index, actions in enumerate(played):
            env.reset(seed=_SEED + index)
            for action in actions:
                env.step(action)

    _, took = least(lambda: timed(replay), repeats)
    decisions = sum(map(len, played))
    yield per_second("environment: decisions, resets included", decisions, took, "decisions")


def record_episode(env: TokenScheduleEnv, seed: int) -> list[int]:
    """Returns the random legal actions of one episode."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    actions = []
    done = False
    while not done:
        actions.append(int(rng.choice(np.flatnonzero(env.action_masks()))))
        _, _, terminated, truncated, _ = env.step(actions[-1])
        done = terminated or truncated
    return actions


def copy_rows(repeats: int) -> Iterator[Row]:
    """Yields how long copies of the default environment take in the middle of an episode, and one of its engine."""
    env = TokenScheduleEnv()
    actions = record_episode(env, _SEED)
    env.reset(seed=_SEED)
    for action in actions[: len(actions) // 2]:
        env.step(action)
    ways = {"environment: clone": env.clone, "environment: deepcopy": lambda: deepcopy(env)}
    for name, make in {**ways, "engine of the environment: clone": env.run.engine.clone}.items():
        _, took = least(lambda make=make: timed(lambda: [make() for _ in range(_COPIES)]), repeats)  # type: ignore[misc]
        yield Row(f"{name} in mid-episode", took.wall_s / _COPIES * 1e6, "us", took)


def vector_rows(copies: int, steps: int, threads: int, repeats: int) -> Iterator[Row]:
    """Yields decisions per second of the vector environment on one thread and, if that is more, on ``threads``."""
    for count in sorted({1, threads}):
        decisions, took = _vector(copies, steps, count, repeats)
        name = f"vector environment, {copies} copies, {count} thread{'s' if count > 1 else ''}"
        yield per_second(f"{name}: decisions, new layers included", decisions, took, "decisions")


def _vector(copies: int, steps: int, threads: int, repeats: int) -> tuple[int, Seconds]:
    """Returns decisions taken and how long the steps took; the reset before them is not timed."""
    envs = TokenScheduleVectorEnv(copies, threads=threads, copy=False)
    actions, decisions = record_steps(envs, steps)

    def step_all() -> None:
        for chosen in actions:
            envs.step(chosen)

    def replay() -> tuple[None, Seconds]:
        envs.reset(seed=_SEED)
        return timed(step_all)

    _, took = least(replay, repeats)
    envs.close()
    return decisions, took


def record_steps(envs: TokenScheduleVectorEnv, steps: int) -> tuple[list[np.ndarray], int]:
    """Returns the random legal actions of the first steps, and how many were decisions rather than new beginnings."""
    rng = np.random.default_rng(_SEED)
    envs.reset(seed=_SEED)
    actions, decisions = [], 0
    for _ in range(steps):
        mask = envs.action_masks()
        decisions += int(mask.any(axis=1).sum())
        actions.append((rng.random(mask.shape) * mask).argmax(axis=1))
        envs.step(actions[-1])
    return actions, decisions
