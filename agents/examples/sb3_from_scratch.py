"""``python -m agents.examples.sb3_from_scratch``: MaskablePPO of sb3-contrib on the plain environment."""

from __future__ import annotations

import time

import gymnasium
import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from ..kit import Command, entry
from .task import ENV_ID, SETTINGS, Choose, Env, Observation, command


class StopAfter(BaseCallback):
    """Ends training once it has taken so many minutes."""

    def __init__(self, minutes: float) -> None:
        """The clock starts now."""
        super().__init__()
        self._end = time.monotonic() + 60 * minutes

    def _on_step(self) -> bool:
        return time.monotonic() < self._end


def learner(seed: int, num_envs: int = 8, num_steps: int = 256) -> MaskablePPO:
    """Returns a learner over copies of the environment; the mask comes by their ``action_masks()``."""
    return MaskablePPO(
        "MultiInputPolicy",
        make_vec_env(ENV_ID, n_envs=num_envs, seed=seed, env_kwargs=SETTINGS),
        n_steps=num_steps,
        batch_size=256,
        n_epochs=6,
        learning_rate=1e-3,
        gamma=1.0,  # the return is minus makespan over lower bound, undiscounted
        gae_lambda=1.0,
        ent_coef=0.005,
        seed=seed,
        device="cpu",
    )


def train(minutes: float, seed: int) -> tuple[Env, Choose]:
    """Trains and returns an environment and the agent."""
    model = learner(seed)
    model.learn(total_timesteps=2**31, callback=StopAfter(minutes))
    print(f"{model.num_timesteps:,} decisions")

    def choose(observation: Observation, mask: np.ndarray) -> int:
        return int(model.predict(observation, action_masks=mask, deterministic=True)[0])

    return gymnasium.make(ENV_ID, **SETTINGS), choose


def build() -> Command:
    """Returns the options of the command."""
    return command("sb3_from_scratch", __doc__, train)


main = entry(build, __name__)
