"""``python -m agents.examples.rllib_masked``: PPO of RLlib's new API stack with masks, and two env runners.

Tried with ray 2.60.0. The network is the one that RLlib ships for masks; it reads the observations of
``DySHARP/TokenScheduleMasked-v2``.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch

from ..kit import Command, entry
from .task import MASKED_ID, SETTINGS, Choose, Env, Observation, command

if TYPE_CHECKING:
    from ray.rllib.algorithms.ppo import PPOConfig

ENV_RUNNERS = 2


def make(settings: dict[str, Any]) -> Env:
    """Returns an environment; RLlib calls this in its workers, where importing the module registers the id."""
    import dysharp_env  # noqa: F401

    return gymnasium.make(MASKED_ID, **settings)


def configuration(seed: int) -> PPOConfig:
    """Returns what to train with."""
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.rllib.examples.rl_modules.classes.action_masking_rlm import ActionMaskingTorchRLModule
    from ray.tune.registry import register_env

    register_env(MASKED_ID, make)
    return (
        PPOConfig()
        .environment(MASKED_ID, env_config=SETTINGS)
        .env_runners(num_env_runners=ENV_RUNNERS, num_envs_per_env_runner=4)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=ActionMaskingTorchRLModule,
                model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="tanh"),
            )
        )
        .training(
            train_batch_size_per_learner=2048,
            minibatch_size=256,
            num_epochs=6,
            lr=1e-3,
            gamma=1.0,  # the return is minus makespan over lower bound, undiscounted
            lambda_=1.0,
            entropy_coeff=0.005,
            use_kl_loss=False,
        )
        .debugging(seed=seed, log_level="ERROR")
    )


def train(minutes: float, seed: int) -> tuple[Env, Choose]:
    """Trains and returns an environment and the agent."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # An env runner takes a CPU each, and the learner this process.
    ray.init(
        address="local", num_cpus=ENV_RUNNERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )
    try:
        algorithm = configuration(seed).build_algo()
        end = time.monotonic() + 60 * minutes
        result: dict[str, Any] = {}
        while not result or time.monotonic() < end:
            result = algorithm.train()
        decisions = int(result["env_runners"]["num_env_steps_sampled_lifetime"])
        print(f"{decisions:,} decisions by {ENV_RUNNERS} env runners")
        module: Any = algorithm.get_module()
        algorithm.stop()
    finally:
        ray.shutdown()

    def choose(observation: Observation, mask: np.ndarray) -> int:
        with torch.no_grad():
            shown = {name: torch.from_numpy(part)[None] for name, part in observation.items()}
            logits = module.forward_inference({"obs": shown})["action_dist_inputs"]
        return int(logits.argmax())

    return gymnasium.make(MASKED_ID, **SETTINGS), choose


def build() -> Command:
    """Returns the options of the command."""
    return command("rllib_masked", __doc__, train)


main = entry(build, __name__)
