"""Every observation lies in its declared space: under every shipped schedule, with all kinds exposed that fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError, preset_names
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.schedules import load_schedule
from dysharp_env.simulator.state.observation import COMBINE, FEATURES

KINDS = ("dispatch", "gemm", "combine")
LAYERS: tuple[dict[str, Any], ...] = (
    {"model": "olmoe", "gpus": 4, "tokens": 40, "routing": "dsv2-lite"},  # 16 experts a GPU, many of a token on one
    {"model": "mixtral-8x7b", "tokens": 33, "routing": "uniform"},  # one expert a GPU
    {"model": "small", "gpus": 2, "tokens": 17, "routing": "uniform", "max_candidates": 8},
)


def make(schedule: str, layer: dict[str, Any]) -> TokenScheduleEnv:
    """Returns an environment that asks for all that the schedule decides, with as many candidates as it has plans."""
    spec = load_schedule(schedule)
    asks = {
        "plan": len(spec.options) > 1,
        "replicate": any(plan.replicate.planner == "rule" for plan in spec.options),
        "prefetch": spec.prefetch != "none" or len(spec.options) > 1,
    }
    kinds = (*(kind for kind, is_asked in asks.items() if is_asked), *KINDS)
    fewest = layer.get("max_candidates", 32)
    layer = {**layer, "schedule": schedule, "max_candidates": max(fewest, len(spec.options))}
    try:
        return TokenScheduleEnv(**layer, exposed=("split", *kinds), split_moments=2)
    except ConfigError as error:
        assert "exposed='split' does not fit" in str(error)
        return TokenScheduleEnv(**layer, exposed=kinds)


@pytest.mark.parametrize("schedule", preset_names("schedules"))
def test_observations_lie_in_their_space(schedule: str) -> None:
    rng, largest = np.random.default_rng(0), 0.0
    for layer in LAYERS:
        env = make(schedule, layer)
        observation, info = env.reset(seed=0)
        done = False
        while not done:
            assert env.observation_space.contains(observation)
            if info["kind"] == COMBINE:
                largest = max(largest, observation["candidates"][FEATURES.index("size") :: len(FEATURES)].max())
            # Mostly the last: hold, so that much gets ready.
            legal = np.flatnonzero(info["action_mask"])
            action = legal[-1] if rng.random() < 0.7 else rng.choice(legal)
            observation, _, done, _, info = env.step(int(action))
        assert env.observation_space.contains(observation)
    if load_schedule(schedule).copies == "expert":
        assert largest > 1 / 8  # it is no trivial bound
