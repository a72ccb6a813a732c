"""``DySHARP/TokenSchedule-v2`` as a native Gymnasium vector environment: all copies advance in one compiled call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from gymnasium.spaces import MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from dysharp_env.config import ConfigError, parse_spec
from dysharp_env.envs.episodes import Episodes, require_render_mode
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.envs.token_schedule import TokenScheduleEnv
from dysharp_env.schedules import LayerRun
from dysharp_env.workload import Scenario

Observations = dict[str, np.ndarray]


class TokenScheduleVectorEnv(VectorEnv[Observations, np.ndarray, np.ndarray]):
    """Many layers scheduled side by side; see ``TokenScheduleEnv`` for what one of them is.

    Copy ``i`` plays exactly what ``TokenScheduleEnv`` plays when it is reset with seed ``seed + i``. A copy that is
    over starts a new layer at the next step, which ignores its action and gives it reward 0 (``NEXT_STEP``).

    Infos hold the keys of ``TokenScheduleEnv`` as arrays with a row for every copy, and for each key ``_key``, which
    copies it is of: all of them, except after a reset of some.

    Example:
        >>> import gymnasium, dysharp_env
        >>> envs = gymnasium.make_vec(
        ...     "DySHARP/TokenSchedule-v2", num_envs=8, model="small", tokens=32, routing="uniform",
        ...     vectorization_mode="vector_entry_point",
        ... )
        >>> observations, infos = envs.reset(seed=0)
        >>> actions = envs.action_masks().argmax(axis=1)
        >>> observations, rewards, terminated, truncated, infos = envs.step(actions)
        >>> observations["candidates"].shape
        (8, 1312)
    """

    metadata: dict[str, Any] = {**TokenScheduleEnv.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self, num_envs: int = 1, render_mode: str | None = None, *, threads: int = 1, copy: bool = True, **settings: Any
    ) -> None:
        """Reads the scenario and schedule.

        Args:
            num_envs: Copies.
            render_mode: ``ansi``, ``rgb_array`` or None.
            threads: Threads that advance the copies, with the same results. More than one pays only where that many
                cores are idle.
            copy: Whether observations and masks are the caller's own. Otherwise they are the arrays that the engine
                writes to, which the next step or reset overwrites.
            **settings: Fields of ``EnvSpec``.

        Raises:
            ConfigError: A setting is unknown or wrong, or the parts do not fit each other.
        """
        for name, value in (("num_envs", num_envs), ("threads", threads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r} must be a whole number of at least 1")
        require_render_mode(render_mode)
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.settings = parse_spec(EnvSpec, settings, source="DySHARP/TokenSchedule-v2")
        self._episodes = Episodes(self.settings, num_envs, threads=threads, logging=render_mode == "rgb_array")
        self.single_observation_space = self._episodes.observation_space
        self.single_action_space = self._episodes.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = MultiDiscrete(np.full(num_envs, self.settings.max_candidates))
        self._copy = copy
        self._autoreset = np.zeros(num_envs, bool)

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """What the layers being scheduled were drawn from."""
        return tuple(self._episodes.source(index).scenario for index in range(self.num_envs))

    @property
    def runs(self) -> tuple[LayerRun, ...]:
        """The layers being scheduled.

        Raises:
            RuntimeError: ``reset`` has not been called.
        """
        return tuple(self._episodes.run(index) for index in range(self.num_envs))

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Starts new layers and runs them to their first decisions.

        Args:
            seed: Copy ``i`` is seeded with ``seed + i``; a sequence seeds each copy with its own. The first of them
                seeds the action spaces, so that random choices repeat too.
            options: As those of ``TokenScheduleEnv``, for every copy; and ``reset_mask``, (num_envs,) bool, which
                copies are reset, the others staying as they are.

        Raises:
            ValueError: There are not as many seeds as copies.
            ConfigError: An option is unknown, or the workload does not fit the scenario.
        """
        chosen = {**(options or {})}
        mask = self._read_mask(chosen.pop("reset_mask", None))
        seeds = self._read_seeds(seed)
        first = next((each for each in seeds if each is not None), None)
        if first is not None:
            self.action_space.seed(first)
            self.single_action_space.seed(first)
        for index in np.flatnonzero(mask).tolist():
            self._episodes.restart(index, seeds[index], chosen)
        self._episodes.advance()
        self._autoreset[mask] = False
        return self._observations(), self._infos(mask)

    def step(self, actions: np.ndarray) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes a candidate in every copy and runs to the next decisions; see ``TokenScheduleEnv.step``.

        Raises:
            ValueError: An action is outside the action space, or it is masked and ``invalid_action`` is ``raise``.
            RuntimeError: ``reset`` has not been called.
        """
        actions = np.asarray(actions)
        is_whole = actions.shape == (self.num_envs,) and actions.dtype.kind in "iu"
        if not is_whole or actions.min() < 0 or actions.max() >= self.settings.max_candidates:
            raise ValueError(f"actions {actions!r} are not in {self.action_space}")
        rewards, terminated = self._episodes.step(actions, self._autoreset)
        self._autoreset = terminated.copy()
        return self._observations(), rewards, terminated, np.zeros(self.num_envs, bool), self._infos()

    def action_masks(self) -> np.ndarray:
        """Returns which actions are legal now, (num_envs, max_candidates) bool; none where an episode is over."""
        mask = self._episodes.batch.mask
        return mask.copy() if self._copy else mask

    def clone(self) -> Self:
        """Returns a vector environment in the same state that goes its own way, with threads of its own."""
        return self._episodes.clone(self, self.spec)

    def __copy__(self) -> Self:
        return self.clone()

    def render(self) -> tuple[Any, ...] | None:
        """Returns what ``TokenScheduleEnv.render`` shows of every copy."""
        if self.render_mode is None:
            return None
        return tuple(self._episodes.render(index, self.render_mode) for index in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the threads."""
        if hasattr(self, "_episodes"):  # gymnasium 1.1 and 1.2 also close what was never made, for a wrong setting
            self._episodes.batch.close()

    def _read_mask(self, mask: object) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, bool)
        if not isinstance(mask, np.ndarray) or mask.shape != (self.num_envs,) or mask.dtype != bool or not mask.any():
            raise ConfigError(
                f"reset option reset_mask={mask!r} must be ({self.num_envs},) bool with at least one True"
            )
        return mask

    def _read_seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + index for index in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ValueError(f"{len(seed)} seeds were given for {self.num_envs} environments")
        return seed

    def _observations(self) -> Observations:
        shown = self._episodes.observations
        return {name: array.copy() for name, array in shown.items()} if self._copy else dict(shown)

    def _infos(self, of: np.ndarray | None = None) -> dict[str, Any]:
        """Returns infos as Gymnasium batches them: zeros for copies that they are not of."""
        infos: dict[str, Any] = self._episodes.info()
        if of is None:
            of = np.ones(self.num_envs, bool)
        elif not of.all():
            for array in infos.values():
                array[~of] = 0
        return infos | {f"_{name}": of for name in infos}
