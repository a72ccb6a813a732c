"""MaskablePPO as a loop that can be paused, timed and continued exactly.

Stable-Baselines3's ``learn`` owns its loop; training here needs to stop between updates to evaluate, to save, and to
continue later as if nothing had happened. So the loop is outside and this class offers its two halves.
"""

from __future__ import annotations

import time
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from sb3_contrib import MaskablePPO
from stable_baselines3.common.callbacks import BaseCallback

from agents.policies.candidate_policy import CandidatePolicy, PolicySpec
from agents.training.vec_env import ScheduleVecEnv
from dysharp_env.config import Spec


class PpoSpec(Spec):
    """Hyper-parameters of proximal policy optimisation."""

    n_steps: int = Field(default=256, ge=2)
    """Decisions of each environment copy between updates; about an episode, so that an update sees all of it."""
    batch_size: int = Field(default=1024, ge=2)
    """Decisions in one gradient step."""
    n_epochs: int = Field(default=4, ge=1)
    """Passes over the decisions of an update."""
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    """Step size at the start."""
    learning_rate_schedule: Literal["constant", "linear"] = "linear"
    """``linear`` falls to a twentieth of the start at the end of the run."""
    clip_range: float = Field(default=0.2, gt=0, le=1)
    """How far the probability of a choice may move in one update."""
    ent_coef: float = Field(default=0.001, ge=0, allow_inf_nan=False)
    """Weight of the entropy bonus."""
    vf_coef: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Weight of the value loss."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of a decision; 1, because an episode's return is its makespan."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """How far advantages trust what followed over what the value network expected.

    In single short runs of the demo 0.99 and 1 learned and 0.95 ended worse than random choices, perhaps because what
    an order costs shows only near the end of a layer, hundreds of decisions later.
    """
    max_grad_norm: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Longest gradient."""
    target_kl: float | None = Field(default=0.03, gt=0)
    """Ends an update early when the policy has moved that far; none never does."""

    def rate(self, progress_remaining: float) -> float:
        """Returns the learning rate when that fraction of the run is left."""
        if self.learning_rate_schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (0.05 + 0.95 * max(0.0, min(1.0, progress_remaining)))


class Learner(MaskablePPO):
    """MaskablePPO over ``CandidatePolicy``, driven one rollout and one update at a time."""

    def __init__(self, vec_env: ScheduleVecEnv, spec: PpoSpec, policy: PolicySpec, seed: int):
        """Makes the networks from ``seed``; it needs ``set_logger``, and ``begin`` starts the environments."""
        super().__init__(
            CandidatePolicy,  # type: ignore[arg-type]
            vec_env,
            learning_rate=spec.rate,
            n_steps=spec.n_steps,
            batch_size=spec.batch_size,
            n_epochs=spec.n_epochs,
            gamma=spec.gamma,
            gae_lambda=spec.gae_lambda,
            clip_range=spec.clip_range,
            ent_coef=spec.ent_coef,
            vf_coef=spec.vf_coef,
            max_grad_norm=spec.max_grad_norm,
            target_kl=spec.target_kl,
            policy_kwargs={"spec": policy},
            seed=seed,
            device="cpu",
        )
        self.vec_env = vec_env
        self.update_seconds = 0.0
        self.rollout_seconds = 0.0

    @property
    def network(self) -> CandidatePolicy:
        """The policy being trained."""
        assert isinstance(self.policy, CandidatePolicy)
        return self.policy

    def begin(self, callback: BaseCallback, seed: int) -> None:
        """Starts fresh episodes and random streams from ``seed``.

        What follows depends only on the weights, the optimiser, the number of decisions so far and this seed. Training
        calls it at every checkpoint, which is why a resumed run is the same as one that was never stopped.
        """
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - Stable-Baselines3 shuffles its buffers with the global stream
        self.vec_env.seed(seed)
        self._last_obs = None
        self._setup_learn(0, callback, reset_num_timesteps=False)

    def collect(self, callback: BaseCallback) -> None:
        """Fills the rollout buffer: ``n_steps`` decisions of every copy."""
        started = time.perf_counter()
        assert self.env is not None
        self.collect_rollouts(self.env, callback, self.rollout_buffer, self.n_steps)
        self.rollout_seconds += time.perf_counter() - started

    def update(self, progress_remaining: float) -> None:
        """Improves the policy on the rollout buffer."""
        started = time.perf_counter()
        self._current_progress_remaining = progress_remaining
        self.train()
        self.update_seconds += time.perf_counter() - started
