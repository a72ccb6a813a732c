"""Stable-Baselines3's rollout buffer over what players have kept, without a copy of it.

Players keep a row of decisions for each copy, which is the order in which Stable-Baselines3 flattens a buffer before it
draws minibatches from it: all of its arrays are views.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableDictRolloutBufferSamples

from dysharp_env.simulator.playing import Players
from dysharp_env.simulator.state.observation import NUM_FEATURES

from ..policies.candidate_policy import CandidatePolicy

_AT_A_TIME = 1024  # decisions whose values are worked out together


class EngineRollouts(MaskableDictRolloutBuffer):
    """Decisions that were taken inside the engine, as MaskablePPO's ``train`` reads them.

    Minibatches hold as many candidate rows as their longest list of candidates fills; masks likewise.
    """

    def __init__(self, *args: Any, players: Players, **kwargs: Any) -> None:
        """Takes the players, and what Stable-Baselines3 makes a buffer from."""
        self._players = players
        super().__init__(*args, **kwargs)

    def reset(self) -> None:
        """Shows what the players have kept, (step, copy, ...), and zeros for what follows from it."""
        super().reset()
        kept = self._players
        self.observations = {"candidates": _by_step(kept.candidates), "context": _by_step(kept.contexts)}
        self.action_masks, self.actions = _by_step(kept.masks), _by_step(kept.actions)[..., None]
        self.log_probs, self.rewards = _by_step(kept.log_probs), _by_step(kept.rewards)
        self.episode_starts = _by_step(kept.starts)

    def take_over(self, policy: CandidatePolicy, waiting: dict[str, np.ndarray]) -> None:
        """Takes what the players have kept as a full rollout, and works out values and advantages.

        Args:
            policy: Whose critic says what to expect.
            waiting: (copy, ...) observations of the decisions after the last kept ones.
        """
        self.reset()
        kept = self._players
        flat = self.buffer_size * self.n_envs
        contexts, candidates = kept.contexts.reshape(flat, -1), kept.candidates.reshape(flat, -1)
        values = np.empty(flat, np.float32)
        for first in range(0, flat, _AT_A_TIME):
            some = slice(first, first + _AT_A_TIME)
            wide = kept.counts.reshape(-1)[some].max() * NUM_FEATURES
            values[some] = _values(policy, candidates[some, :wide], contexts[some])
        self.values = _by_step(values.reshape(self.n_envs, -1))
        self.pos, self.full = self.buffer_size, True
        last = torch.from_numpy(_values(policy, waiting["candidates"], waiting["context"]))
        self.compute_returns_and_advantage(last, kept.starting.copy())

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: Any = None
    ) -> MaskableDictRolloutBufferSamples:
        longest = int(self._players.counts.reshape(-1)[batch_inds].max())
        arrays = self.observations, self.action_masks
        candidates = self.observations["candidates"]
        self.observations = {**self.observations, "candidates": candidates[:, : longest * NUM_FEATURES]}
        self.action_masks, self.mask_dims = self.action_masks[:, :longest], longest
        samples = super()._get_samples(batch_inds, env)
        self.observations, self.action_masks = arrays
        return samples


def _by_step(array: np.ndarray) -> np.ndarray:
    """Returns a view of a (copy, step, ...) array as (step, copy, ...)."""
    return array.swapaxes(0, 1)


def _values(policy: CandidatePolicy, candidates: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """Returns (decision,) float32 values."""
    observation = {"candidates": torch.from_numpy(candidates), "context": torch.from_numpy(contexts)}
    with torch.no_grad():
        return policy.predict_values(observation)[:, 0].numpy()
