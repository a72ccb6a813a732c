"""Many copies of the environment as one Stable-Baselines3 ``VecEnv``, in one process and without pickling.

Copies that finish are reset in the same step, as Stable-Baselines3 expects; what the episode ended with is in the info
of that step under ``final_info``. Masks always describe the observation returned last.
"""

from __future__ import annotations

import time
from itertools import chain
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from dysharp_env.envs.episodes import Episodes
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import ScheduleSpec, Starter, load_schedule
from dysharp_env.simulator.hardware import PS_PER_US
from dysharp_env.simulator.playing import Players

from ..policies.pieces import Map
from .finite import Drawn

_MOST_REFERENCES = 100_000  # remembered makespans, some hundred bytes each


class ScheduleVecEnv(VecEnv):
    """``num_envs`` copies of ``TokenScheduleEnv`` that draw workloads from streams of their own.

    Observations are copied once, out of the arrays that the engine writes to: Stable-Baselines3 keeps what it was given
    until after the next step.

    Attributes:
        episodes: The copies.
        env_seconds: Wall time spent inside the environments so far.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, reference: str | None = None, baseline: bool = False) -> None:
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
        self.episodes = Episodes(spec, num_envs)
        super().__init__(num_envs, self.episodes.observation_space, self.episodes.action_space)
        self._actions = np.zeros(num_envs, np.int64)
        self._returns = np.zeros(num_envs)
        self._lengths = np.zeros(num_envs, np.int64)
        self._nothing: dict[str, Any] = {}
        self._reference = load_schedule(reference) if reference else None
        self._reference_us: dict[str, float] = {}  # by workload
        self._starters: dict[str, list[Starter]] = {}  # of the reference's variants, by the label of a source
        self._baseline = baseline
        self.env_seconds = 0.0

    def reset(self) -> dict[str, np.ndarray]:
        """Starts an episode in every copy, with the seeds given to ``seed`` if they are new."""
        for index in range(self.num_envs):
            self.episodes.restart(index, self._seeds[index], self._options[index])
        self.episodes.advance()
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
        infos = [self._nothing] * self.num_envs
        exact_rewards, dones = self.episodes.step(self._actions)
        rewards = exact_rewards.astype(np.float32)
        self._returns += exact_rewards
        self._lengths += 1
        if dones.any():
            for index in np.flatnonzero(dones).tolist():
                infos[index] = self._finish(index)
                rewards[index] += self._baseline_in(infos[index])
                self.episodes.restart(index)
            self.episodes.advance()
        observations = self._copied()
        self.env_seconds += time.perf_counter() - started
        return observations, rewards, dones, infos

    def play(self, players: Players, mapping: Map) -> list[tuple[int, int, dict[str, Any]]]:
        """Lets players take decisions until none has more room: what as many steps with the same actions would do.

        Args:
            players: A player for each copy, which read the arrays of ``episodes.batch``.
            mapping: Does what ``map`` does, perhaps by several threads; what comes of it is the same.

        Returns:
            Decision of its player, copy and info of each episode that ended, in the order in which steps would have
            ended them.
        """
        started = time.perf_counter()
        ended = [*chain.from_iterable(mapping(lambda copy: self._play(copy, players), range(self.num_envs)))]
        self.env_seconds += time.perf_counter() - started
        return sorted(ended, key=lambda each: each[:2])

    def seat(self, players: Players) -> None:
        """Lets players go on in the present episodes, of which ``step`` has played what came before."""
        players.starting[:] = self._lengths == 0
        players.length[:], players.total[:] = self._lengths, self._returns

    def _play(self, index: int, players: Players) -> list[tuple[int, int, dict[str, Any]]]:
        """Plays one copy; see ``play``."""
        ended: list[tuple[int, int, dict[str, Any]]] = []
        while True:
            is_over = self.episodes.play(index, players)
            self._returns[index], self._lengths[index] = players.total[index], players.length[index]
            if not is_over:
                return ended
            info = self._finish(index)
            last = int(players.taken[index]) - 1
            players.rewards[index, last] += self._baseline_in(info)
            ended.append((last, index, info))
            self.episodes.restart(index)
            players.begin(index)

    def _baseline_in(self, info: dict[str, Any]) -> float:
        """Returns what is added to the last reward of an episode with that info."""
        return info["reference_us"] / info["final_info"]["lower_bound_us"] if self._baseline else 0.0

    def _finish(self, index: int) -> dict[str, Any]:
        """Returns the info of an episode that is over, and begins the count of the next one."""
        info = {
            "final_info": self.episodes.info_of(index),
            "reference_us": self._simulate_reference(index),
            "workload": self._name(index),
            "drawn": self._drawn(index),
            "episode": {"r": float(self._returns[index]), "l": int(self._lengths[index])},
            "terminal_observation": {name: array[index].copy() for name, array in self.episodes.observations.items()},
        }
        self._returns[index], self._lengths[index] = 0.0, 0
        return info

    def _simulate_reference(self, index: int) -> float:
        """Returns the reference's makespan on the workload that a copy has finished, 0 without a reference."""
        if self._reference is None:
            return 0.0
        name = self._name(index)
        if name not in self._reference_us:
            if len(self._reference_us) >= _MOST_REFERENCES:
                self._reference_us.clear()
            self._reference_us[name] = self._run_reference(index, self._reference)
        return self._reference_us[name]

    def _run_reference(self, index: int, reference: ScheduleSpec) -> float:
        """Returns the reference's makespan on the workload of a copy, that of its fastest variant."""
        source, workload = self.episodes.source(index), self.episodes.run(index).routed
        if source.label not in self._starters:
            scenario = source.scenario
            scale = scenario.spec.compute_scale
            self._starters[source.label] = [
                Starter(scenario.system, scenario.layer, variant, compute_scale=scale)
                for variant in reference.variants()
            ]
        runs = [starter.start(workload) for starter in self._starters[source.label]]
        return min(run.engine.run().now_ps for run in runs) / PS_PER_US

    def _name(self, index: int) -> str:
        """Returns the name of a copy's workload, which no other workload of a suite has."""
        return self.episodes.source(index).name(self.episodes.run(index).engine.workload)

    def drawn(self) -> list[Drawn]:
        """Returns what the present layers of all copies were drawn from."""
        return [self._drawn(index) for index in range(self.num_envs)]

    def _drawn(self, index: int) -> Drawn:
        return self.episodes.source(index).scenario.spec, self.episodes.run(index).routed.seed

    def close(self) -> None:
        """Does nothing: there are neither windows nor processes."""

    def has_attr(self, attr_name: str) -> bool:
        """Returns whether ``get_attr`` or ``env_method`` knows an attribute of a copy."""
        return attr_name in ("render_mode", "action_masks")

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Returns ``render_mode`` of each copy: None.

        Raises:
            AttributeError: It is something else.
        """
        if attr_name != "render_mode":
            raise AttributeError(f"copies have no attribute '{attr_name}'")
        return [None for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Raises AttributeError: copies have nothing to set."""
        raise AttributeError(f"copies have no attribute '{attr_name}' to set")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> Any:
        """Returns ``action_masks`` of the copies as one (copy, action) bool array, the caller's own.

        Raises:
            AttributeError: It is another method.
        """
        if method_name != "action_masks":
            raise AttributeError(f"copies have no method '{method_name}'")
        return self.episodes.batch.mask[list(self._get_indices(indices))]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Returns False for each copy: none is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def _copied(self) -> dict[str, np.ndarray]:
        return {name: array.copy() for name, array in self.episodes.observations.items()}
