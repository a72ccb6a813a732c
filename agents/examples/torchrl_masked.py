"""``python -m agents.examples.torchrl_masked``: PPO from the parts of TorchRL, with masks.

Tried with torchrl 0.14.1. The environment is ``DySHARP/TokenScheduleMasked-v2``; ``ActionMask`` keeps its mask in the
action's spec, and ``MaskedCategorical`` samples from what it leaves.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import torch
from torch import nn

from ..kit import Command, entry
from .task import MASKED_ID, SETTINGS, Choose, Env, Observation, command

if TYPE_CHECKING:
    from torchrl.envs import TransformedEnv

NUM_ENVS, STEPS_AT_ONCE = 8, 2048


def make_envs(count: int = NUM_ENVS) -> TransformedEnv:
    """Returns copies of the environment as one, whose mask is bool, as ``MaskedCategorical`` takes it."""
    from torchrl.envs import ActionMask, Compose, DTypeCastTransform, GymWrapper, SerialEnv, TransformedEnv

    def make_one() -> GymWrapper:
        return GymWrapper(gymnasium.make(MASKED_ID, **SETTINGS), categorical_action_encoding=True)

    to_bool = DTypeCastTransform(torch.float32, torch.bool, in_keys=["action_mask"])
    return TransformedEnv(SerialEnv(count, make_one), Compose(to_bool, ActionMask()))


def networks(envs: TransformedEnv) -> tuple[Any, Any]:
    """Returns an actor and a critic, of two layers each."""
    from tensordict.nn import TensorDictModule
    from torchrl.modules import MLP, MaskedCategorical, ProbabilisticActor, ValueOperator

    num_inputs, num_actions = envs.observation_spec["observations"].shape[-1], envs.action_spec.n
    shape = {"num_cells": [64, 64], "activation_class": nn.Tanh}
    logits = TensorDictModule(MLP(num_inputs, num_actions, **shape), in_keys=["observations"], out_keys=["logits"])
    actor = ProbabilisticActor(
        logits,
        in_keys={"logits": "logits", "mask": "action_mask"},
        distribution_class=MaskedCategorical,
        return_log_prob=True,
    )
    return actor, ValueOperator(MLP(num_inputs, 1, **shape), in_keys=["observations"])


class Learner:
    """An actor, a critic, and what they learn by."""

    def __init__(self, seed: int) -> None:
        """Makes copies of the environment and draws weights."""
        from torchrl.objectives import ClipPPOLoss
        from torchrl.objectives.value import GAE

        torch.manual_seed(seed)
        self.envs = make_envs()
        self.envs.set_seed(seed)
        self.actor, critic = networks(self.envs)
        # The return is minus makespan over lower bound, undiscounted.
        self.advantage = GAE(gamma=1.0, lmbda=1.0, value_network=critic, average_gae=False)
        self.loss = ClipPPOLoss(self.actor, critic, entropy_coeff=0.005, critic_coeff=0.5, normalize_advantage=True)
        self.optimizer = torch.optim.Adam(self.loss.parameters(), lr=1e-3)

    def learn(self, minutes: float, epochs: int = 6, minibatch: int = 256) -> int:
        """Collects and updates in turns until time is up, at least once; returns the decisions taken."""
        from torchrl.collectors import Collector

        end, decisions = time.monotonic() + 60 * minutes, 0
        collector = Collector(
            self.envs,
            self.actor,
            frames_per_batch=STEPS_AT_ONCE,
            total_frames=-1,
            auto_register_policy_transforms=False,  # the actor keeps no state from step to step
        )
        for batch in collector:
            decisions += batch.numel()
            with torch.no_grad():
                self.advantage(batch)
            steps = batch.reshape(-1)
            for _ in range(epochs):
                for rows in torch.randperm(len(steps)).split(minibatch):
                    losses = self.loss(steps[rows])
                    loss = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                    self.optimizer.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(self.loss.parameters(), 0.5)
                    self.optimizer.step()
            if time.monotonic() >= end:
                break
        collector.shutdown()
        return decisions


def train(minutes: float, seed: int) -> tuple[Env, Choose]:
    """Trains and returns an environment and the agent."""
    from tensordict import TensorDict

    learner = Learner(seed)
    print(f"{learner.learn(minutes):,} decisions")

    def choose(observation: Observation, mask: np.ndarray) -> int:
        shown = {"observations": torch.from_numpy(observation["observations"]), "action_mask": torch.from_numpy(mask)}
        with torch.no_grad():
            return int(learner.actor.get_dist(TensorDict(shown)).logits.argmax())

    return gymnasium.make(MASKED_ID, **SETTINGS), choose


def build() -> Command:
    """Returns the options of the command."""
    return command("torchrl_masked", __doc__, train)


main = entry(build, __name__)
