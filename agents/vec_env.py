"""Many copies of the environment as one Stable-Baselines3 ``VecEnv``, in one process and without pickling.

Copies that finish are reset in the same step, as Stable-Baselines3 expects; what the episode ended with is in the info
of that step under ``final_info``. Masks always describe the observation returned last.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from dysharp_env.envs.token_schedule import EnvSpec, TokenScheduleEnv
from dysharp_env.schedules import load_schedule, simulate

_MOST_REFERENCES = 100_000  # remembered makespans, some hundred bytes each


class ScheduleVecEnv(VecEnv):
    """``num_envs`` copies of ``TokenScheduleEnv`` that draw workloads from streams of their own.

    Attributes:
        copies: The environments. Everything else here only moves their rows in and out of shared arrays.
        env_seconds: Wall time spent inside the environments so far.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, reference: str | None = None, baseline: bool = False):
        """Makes the copies; ``seed`` and ``reset`` start them.

        Args:
            spec: What every copy is.
            num_envs: Copies.
            reference: A schedule that is simulated once on every workload; the info of a finished episode says its
                makespan as ``reference_us``.
            baseline: Whether the reference's makespan over the lower bound is added to the last reward. It is constant
                for a workload, so it changes no preference, and learning sees what choices did rather than how hard
                the workload was. The return in ``episode`` is without it.

        Raises:
            ConfigError: A setting is wrong, or there is no such schedule.
        """
        self.copies = [TokenScheduleEnv(**spec.model_dump()) for _ in range(num_envs)]
        first = self.copies[0]
        super().__init__(num_envs, first.observation_space, first.action_space)
        self._observations = {
            name: np.zeros((num_envs, *box.shape), np.float32)  # type: ignore[misc]
            for name, box in first.observation_space.items()  # type: ignore[attr-defined]
        }
        self._masks = np.zeros((num_envs, int(first.action_space.n)), np.bool_)  # type: ignore[attr-defined]
        self._actions = np.zeros(num_envs, np.int64)
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._nothing: dict[str, Any] = {}
        self._reference = load_schedule(reference) if reference else None
        self._reference_us: dict[str, float] = {}  # by workload
        self._baseline = baseline
        self.env_seconds = 0.0

    def reset(self) -> dict[str, np.ndarray]:
        """Starts an episode in every copy, with the seeds given to ``seed`` if they are new."""
        for index, env in enumerate(self.copies):
            observation, info = env.reset(seed=self._seeds[index], options=self._options[index])
            self._store(index, observation, info)
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._reset_seeds()
        self._reset_options()
        return self._copied()

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions for ``step_wait``."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Steps every copy; the arrays returned are the caller's own."""
        started = time.perf_counter()
        rewards = np.zeros(self.num_envs, np.float32)
        dones = np.zeros(self.num_envs, bool)
        infos = [self._nothing] * self.num_envs
        for index, env in enumerate(self.copies):
            observation, reward, terminated, truncated, info = env.step(self._actions[index])
            rewards[index] = reward
            self._returns[index] += reward
            self._lengths[index] += 1
            if terminated or truncated:
                dones[index] = True
                reference_us = self._simulate_reference(env)
                if self._baseline and terminated:
                    rewards[index] += reference_us / info["lower_bound_us"]
                infos[index] = {
                    "final_info": info,
                    "reference_us": reference_us,
                    "workload": env.run.engine.workload.name,
                    "episode": {"r": float(self._returns[index]), "l": int(self._lengths[index])},
                    "terminal_observation": observation,
                    "TimeLimit.truncated": truncated and not terminated,
                }
                self._returns[index], self._lengths[index] = 0.0, 0
                observation, info = env.reset()
            self._store(index, observation, info)
        self.env_seconds += time.perf_counter() - started
        return self._copied(), rewards, dones, infos

    def _simulate_reference(self, env: TokenScheduleEnv) -> float:
        """Returns the reference's makespan on the workload that a copy has finished, 0 without a reference."""
        if self._reference is None:
            return 0.0
        workload = env.run.engine.workload
        if workload.name not in self._reference_us:
            if len(self._reference_us) >= _MOST_REFERENCES:
                self._reference_us.clear()
            done = simulate(env.scenario.system, workload, self._reference, compute_scale=env.settings.compute_scale)
            self._reference_us[workload.name] = done.result().makespan_us
        return self._reference_us[workload.name]

    def close(self) -> None:
        """Closes the copies."""
        for env in self.copies:
            env.close()

    def has_attr(self, attr_name: str) -> bool:
        """Returns whether the environments have an attribute."""
        return hasattr(self.copies[0], attr_name)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns the attribute of each copy."""
        return [getattr(self.copies[index], attr_name) for index in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets an attribute of each copy."""
        for index in self._get_indices(indices):
            setattr(self.copies[index], attr_name, value)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        """Calls a method of each copy; ``action_masks`` of all copies comes as one (copy, action) array."""
        if method_name == "action_masks" and indices is None:
            return self._masks.copy()
        return [
            getattr(self.copies[index], method_name)(*method_args, **method_kwargs)
            for index in self._get_indices(indices)
        ]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Returns False for each copy: none is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def _store(self, index: int, observation: dict[str, np.ndarray], info: dict[str, Any]) -> None:
        for name, array in self._observations.items():
            array[index] = observation[name]
        self._masks[index] = info["action_mask"]

    def _copied(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self._observations.items()}
