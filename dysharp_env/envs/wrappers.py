"""What other libraries want of an environment and Gymnasium's own wrappers do not give: the mask in the observation."""

from __future__ import annotations

from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

Observation = dict[str, np.ndarray]


class MaskInObservation(gymnasium.Wrapper[Observation, np.int64, Observation, np.int64], RecordConstructorArgs):
    """Shows one flat vector and, beside it, which actions are legal, as RLlib and TorchRL read masks.

    ``DySHARP/TokenScheduleMasked-v2`` is ``DySHARP/TokenSchedule-v2`` in this wrapper. Actions, rewards, infos and what
    a masked action does are the same.

    ## Observation space
    ``Dict`` of two float32 boxes in [0, 1], without units:

    - ``observations`` (max_candidates * features + context,): ``candidates`` and behind it ``context`` of
      ``TokenScheduleEnv``. It is flat, as RLlib has no encoder for a ``Dict`` within a ``Dict``.
    - ``action_mask`` (max_candidates,): 1 for legal actions, 0 for masked ones; ``info["action_mask"]`` as floats. No
      action is legal once the episode is over.

    ``ActionMaskingTorchRLModule`` of RLlib takes this as it is. TorchRL's ``ActionMask`` does too; its
    ``MaskedCategorical`` wants a bool mask, which ``DTypeCastTransform`` makes of it. Stable-Baselines3 needs no
    wrapper: sb3-contrib calls ``action_masks()``.

    Example:
        >>> import gymnasium, dysharp_env
        >>> env = gymnasium.make("DySHARP/TokenScheduleMasked-v2", model="small", tokens=32, routing="uniform")
        >>> observation, info = env.reset(seed=0)
        >>> {name: part.shape for name, part in observation.items()}
        {'observations': (1340,), 'action_mask': (32,)}
        >>> bool((observation["action_mask"] == info["action_mask"]).all())
        True
    """

    def __init__(self, env: gymnasium.Env[Observation, np.int64]) -> None:
        """Wraps an environment.

        Args:
            env: ``TokenScheduleEnv``, which other wrappers may be around.

        Raises:
            ValueError: Its actions are not ``Discrete``.
        """
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        actions = env.action_space
        if not isinstance(actions, spaces.Discrete):
            raise ValueError(f"MaskInObservation needs an environment with Discrete actions, not {actions}")
        shown: dict[str, spaces.Space[Any]] = {
            "observations": spaces.flatten_space(env.observation_space),
            "action_mask": spaces.Box(0.0, 1.0, (int(actions.n),), np.float32),
        }
        self.observation_space = cast("spaces.Space[Observation]", spaces.Dict(shown))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts a new layer; see ``TokenScheduleEnv.reset``."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._shown(observation, info), info

    def step(self, action: np.int64) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes a candidate and runs to the next decision; see ``TokenScheduleEnv.step``."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._shown(observation, info), float(reward), terminated, truncated, info

    def _shown(self, observation: Observation, info: dict[str, Any]) -> Observation:
        return {
            "observations": np.asarray(spaces.flatten(self.env.observation_space, observation)),
            "action_mask": info["action_mask"].astype(np.float32),
        }
