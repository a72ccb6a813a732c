"""``DySHARP/TokenSchedule-v2``: one MoE layer, scheduled decision by decision."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, Self

import gymnasium
import numpy as np

from dysharp_env.config import parse_spec
from dysharp_env.envs.episodes import RENDER_MODES, Episodes, require_render_mode
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.report.schedule import ScheduleTable
from dysharp_env.schedules import LayerRun
from dysharp_env.simulator.state.observation import (
    CANDIDATE_MEANINGS,
    CONTEXT,
    CONTEXT_MEANINGS,
    FEATURE_MEANINGS,
    FEATURES,
)
from dysharp_env.workload import Scenario


class TokenScheduleEnv(gymnasium.Env[dict[str, np.ndarray], np.int64]):
    """Schedules the communication and computation of one MoE layer on GPUs joined by an NVSwitch.

    ## Decision point
    The engine runs until a free SM group has more than one thing it could do; then it asks. Decisions with one legal
    answer are taken without asking, and kinds that are not exposed follow the base schedule's rule. Where sizes of SM
    groups change, an SM changes over when it has nothing to do: one that communicates when its last vector has made
    the round trip, one that computes at the end of its thread block.

    ## Action space
    ``Discrete(max_candidates)``: the index of a candidate.

    {actions}

    ``action_masks()`` (bool) and ``info["action_mask"]`` (int8) tell which indices are legal; they are one mask. A
    masked action is answered by the first legal candidate, takes ``invalid_penalty`` (1, what a perfect schedule of
    the whole layer costs) off the reward, is counted in ``info["invalid_actions"]``, and the first one is warned of;
    with ``invalid_action="raise"`` it is a ValueError. So nobody gains by masked actions or stalls with them: the same
    schedule by legal actions has a higher return, at its end and at every step before.

    ## Observation space
    ``Dict`` of two float32 boxes in [0, 1]. "Root" means the square root of a time over the lower bound, cut at 1, so
    meanings do not depend on size.

    ``candidates`` (max_candidates * {num_features},), one row of {num_features} after the other, to be read with
    ``reshape(max_candidates, -1)``; Stable-Baselines3 takes a two-dimensional box for a broken image. Rows beyond the
    last candidate are 0.

    {features}

    ``context`` ({num_context},), of the GPU that decides:

    {context}

    ## Reward
    ``-(time advanced) / (lower bound)``, less ``invalid_penalty`` for a masked action: the return of an episode of
    legal actions is minus makespan over lower bound, and -1 is the bound itself. Discount 1.

    ## Starting state and end
    ``reset`` draws a workload; ``options={{"workload_seed": n}}`` or ``options={{"workload": Workload}}`` choose it.
    Its ``seed`` seeds the action space too: the same seed and samples are the same episode.
    With ``suite="NAME"`` it first draws an entry of the suite, or takes ``options={{"entry": n}}``.
    The episode terminates when the last token is combined. It is never truncated, but by wrappers.

    ## Info
    The same keys at every step: ``action_mask``, ``kind`` (0 split, 1 dispatch, 2 gemm, 3 combine, -1 at the end),
    ``gpu``, ``time_us``, ``decisions`` (with more than one legal answer, whoever took them, so far), ``asked`` (those
    of them that the agent answered), ``invalid_actions``, ``lower_bound_us``; and, 0 before the end, ``makespan_us``,
    ``ratio`` (makespan over lower bound), ``wire_bytes_up``, ``wire_bytes_down``, ``payload_bytes``, and the mean
    utilisation of ``uplink``, ``downlink``, ``sm``, ``hbm`` as ``NAME_utilisation``.

    ## Arguments
    The fields of ``EnvSpec``, which are those of ``ScenarioSpec`` (or a ``suite`` in their place) and a few more;
    ``render_mode`` is ``ansi``, ``rgb_array`` or None. ``gymnasium.make(..., render_mode="human")`` shows what
    ``rgb_array`` gives in a window, by Gymnasium's wrapper ``HumanRendering``, which needs pygame.

    ## Many at once
    ``gymnasium.make_vec`` with ``vectorization_mode="vector_entry_point"`` gives ``TokenScheduleVectorEnv``, whose
    copies advance together in one compiled call.

    ## Example
    >>> import gymnasium, dysharp_env
    >>> env = gymnasium.make("DySHARP/TokenSchedule-v2", model="small", tokens=32, routing="uniform")
    >>> observation, info = env.reset(seed=0)
    >>> done = False
    >>> while not done:
    ...     action = env.action_space.sample(info["action_mask"])
    ...     observation, reward, terminated, truncated, info = env.step(action)
    ...     done = terminated or truncated
    >>> info["ratio"] > 1
    True

    ## Search
    ``clone()`` of the unwrapped environment is one of its own in the same state, a waiting decision included; of the
    default environment it takes half a millisecond or so, of which ``python -m dysharp_env bench`` tells. ``deepcopy``,
    ``pickle`` and ``cloudpickle`` make such copies too, with wrappers around it as well; they take longer, for they
    copy also what never changes.

    >>> def look_ahead(env, steps):
    ...     # Returns the highest reward that so many steps can bring, and the action that they begin with.
    ...     tried = []
    ...     for action in env.action_masks().nonzero()[0].tolist():
    ...         ahead = env.clone()
    ...         _, reward, terminated, truncated, _ = ahead.step(action)
    ...         is_last = steps == 1 or terminated or truncated
    ...         tried.append((reward if is_last else reward + look_ahead(ahead, steps - 1)[0], action))
    ...     return max(tried)
    >>> _, info = env.reset(seed=0)
    >>> reward, action = look_ahead(env.unwrapped, 2)
    >>> bool(info["action_mask"][action])
    True
    """

    metadata: dict[str, Any] = {"render_modes": [*RENDER_MODES], "render_fps": 4}

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        """Reads the scenario and schedule.

        Args:
            render_mode: ``ansi``, ``rgb_array`` or None.
            **settings: Fields of ``EnvSpec``.

        Raises:
            ConfigError: A setting is unknown or wrong, or the parts do not fit each other.
        """
        require_render_mode(render_mode)
        self.render_mode = render_mode
        self.settings = parse_spec(EnvSpec, settings, source="DySHARP/TokenSchedule-v2")
        self._episodes = Episodes(self.settings, 1, logging=render_mode == "rgb_array")
        self.observation_space = self._episodes.observation_space
        self.action_space = self._episodes.action_space

    @property
    def scenario(self) -> Scenario:
        """What the layer being scheduled was drawn from; of a suite the first entry's, before there is a layer."""
        return self._episodes.source(0).scenario

    @property
    def run(self) -> LayerRun:
        """The layer being scheduled.

        Raises:
            RuntimeError: ``reset`` has not been called.
        """
        return self._episodes.run(0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts a new layer and runs it to its first decision.

        Args:
            seed: Seeds the stream that entries of the suite and workload seeds are drawn from, and ``action_space``,
                so that random choices repeat too.
            options: ``entry`` chooses an entry of the suite by its place in it, ``workload_seed`` the routing by its
                seed; ``workload`` gives it.

        Raises:
            ConfigError: An option is unknown, or the workload does not fit the scenario.
        """
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
        self._episodes.place(0, *self._episodes.draw(self.np_random, options or {}))
        self._episodes.advance()
        return self._observation(), self._episodes.info_of(0)

    def step(self, action: np.int64 | int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Takes a candidate and runs to the next decision; see the class for reward and masked actions.

        Raises:
            ValueError: The action is outside the action space, or it is masked and ``invalid_action`` is ``raise``.
            RuntimeError: The episode is over.
        """
        if self._episodes.is_over[0]:
            raise RuntimeError("the episode is over; call reset")
        try:
            choice = operator.index(action)
        except TypeError:
            choice = -1
        if not 0 <= choice < self.settings.max_candidates:
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        rewards, terminated = self._episodes.step(np.array([choice]))
        return self._observation(), float(rewards[0]), bool(terminated[0]), False, self._episodes.info_of(0)

    def action_masks(self) -> np.ndarray:
        """Returns which actions are legal now, (max_candidates,) bool, a copy.

        A layer that is done before it ever asked still takes one action, the first.
        """
        return self._episodes.batch.mask[0].copy()

    def clone(self) -> Self:
        """Returns an environment in the same state that goes its own way; what never changes is shared."""
        return self._episodes.clone(self, self.spec)

    def __copy__(self) -> Self:
        return self.clone()

    def schedule(self) -> ScheduleTable:
        """Returns the schedule so far as a table that saves as CSV and as a timeline."""
        return ScheduleTable.of(self.run.engine)

    def render(self) -> str | np.ndarray | None:
        """Returns the state as text (``ansi``) or a Gantt chart of links and SM groups (``rgb_array``, uint8)."""
        return self._episodes.render(0, self.render_mode)

    def _observation(self) -> dict[str, np.ndarray]:
        return {name: array[0].copy() for name, array in self._episodes.observations.items()}


def markdown_table(header: tuple[str, str], meanings: Mapping[Any, str], indexed: bool = False) -> str:
    """Returns names and meanings as a Markdown table; the class docstring and the guide hold the same ones."""
    rows = [
        f"| {f'{index} ' if indexed else ''}`{name}` | {text.replace('``', '`')} |"
        for index, (name, text) in enumerate(meanings.items())
    ]
    return "\n".join([f"| {header[0]} | {header[1]} |", "|---|---|", *rows])


def _document() -> None:
    """Writes the tables into the class docstring, which is thereby always what the code does."""
    tables = {
        "actions": markdown_table(("kind", "the candidates are"), CANDIDATE_MEANINGS),
        "features": markdown_table(("column", "meaning"), FEATURE_MEANINGS, indexed=True),
        "context": markdown_table(("index", "meaning"), CONTEXT_MEANINGS, indexed=True),
    }
    text = TokenScheduleEnv.__doc__ or ""
    indented = {name: table.replace("\n", "\n    ") for name, table in tables.items()}
    TokenScheduleEnv.__doc__ = text.format(num_features=len(FEATURES), num_context=len(CONTEXT), **indented)


_document()
