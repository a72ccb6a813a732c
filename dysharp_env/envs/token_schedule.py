"""``DySHARP/TokenSchedule-v0``: one MoE layer, scheduled decision by decision."""

from __future__ import annotations

from typing import Any, Literal, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from pydantic import Field, model_validator

from dysharp_env.config import ConfigError, parse_spec, require_choice
from dysharp_env.report.schedule import ScheduleTable
from dysharp_env.schedules import Exposure, LayerRun, load_schedule, start
from dysharp_env.simulator.engine import Decision
from dysharp_env.simulator.layout import CONTEXT, CONTEXT_MEANINGS, DECISION_KINDS, FEATURE_MEANINGS, FEATURES
from dysharp_env.simulator.result import LayerResult
from dysharp_env.workload import ScenarioSpec, Workload

_NO_KIND = -1


class EnvSpec(ScenarioSpec):
    """A scenario, the schedule that is learned on top of, and what is asked."""

    schedule: str = "dysharp"
    """A schedule preset or YAML file: primitives, readiness, costs, SM groups, and the rule of kinds not exposed."""
    exposed: tuple[Literal["split", "dispatch", "gemm", "combine"], ...] = ("dispatch", "gemm", "combine")
    """Decision kinds the agent is asked for."""
    hold: bool = True
    """Whether GEMM and combine decisions offer to wait."""
    partial_tiles: bool = True
    """Whether GEMM decisions offer open tiles."""
    splits: tuple[tuple[int, int], ...] = ((4, 4), (8, 8), (8, 16), (16, 16), (24, 24))
    """(dispatch SMs, combine SMs) that a split decision offers, where ``split`` is exposed."""
    max_candidates: int = Field(default=32, ge=2, le=4096)
    """Most candidates one decision shows; also the number of actions."""
    log: bool = False
    """Whether every use of a link and SM group is recorded, for timelines; ``rgb_array`` always records."""
    seeds: tuple[int, int] | None = None
    """Half-open range of workload seeds that resets draw from; none means any."""
    invalid_action: Literal["noop", "raise", "penalise"] = "noop"
    """What a masked action does."""
    invalid_penalty: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    """What ``penalise`` takes from the reward, in lower bounds."""
    max_invalid_actions: int = Field(default=1000, ge=1)
    """Masked actions in a row after which an episode is truncated."""

    @model_validator(mode="after")
    def _check(self) -> EnvSpec:
        if not self.exposed:
            raise ValueError("exposed must name at least one decision kind")
        if "split" in self.exposed and len(self.splits) < 2:
            raise ValueError("splits must offer at least two SM splits when 'split' is exposed")
        if len(set(self.exposed)) < len(self.exposed):
            raise ValueError(f"exposed={list(self.exposed)} names a decision kind twice")
        if self.seeds is not None and not 0 <= self.seeds[0] < self.seeds[1] <= 2**63:
            raise ValueError(f"seeds={list(self.seeds)} must be a range [first, last) with 0 <= first < last <= 2**63")
        return self

    def exposure(self) -> Exposure:
        """Returns what the engine asks."""
        return Exposure(self.exposed, self.hold, self.partial_tiles, self.splits, self.max_candidates)


class TokenScheduleEnv(gymnasium.Env[dict[str, np.ndarray], np.int64]):
    """Schedules the communication and computation of one MoE layer on GPUs joined by an NVSwitch.

    ## Decision point
    The engine runs until a free SM group has more than one thing it could do; then it asks. Decisions with one legal
    answer are taken without asking, and kinds that are not exposed follow the base schedule's rule.

    ## Action space
    ``Discrete(max_candidates)``: the index of a candidate.

    {actions}

    ``action_masks()`` (bool) and ``info["action_mask"]`` (int8) tell which indices are legal; they are one mask. A
    masked action leaves everything as it is and is counted in ``info["invalid_actions"]``; with
    ``invalid_action="penalise"`` it also costs ``invalid_penalty``, with ``"raise"`` it is a ValueError.
    ``max_invalid_actions`` in a row truncate.

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
    ``-(time advanced) / (lower bound)``: the return of an episode is minus makespan over lower bound, and -1 is the
    bound itself. Discount 1.

    ## Starting state and end
    ``reset`` draws a workload; ``options={{"workload_seed": n}}`` or ``options={{"workload": Workload}}`` choose it.
    The episode terminates when the last token is combined; it is truncated only by masked actions.

    ## Info
    The same keys at every step: ``action_mask``, ``kind`` (0 split, 1 dispatch, 2 gemm, 3 combine, -1 at the end),
    ``gpu``, ``time_us``, ``decisions``, ``invalid_actions``, ``lower_bound_us``; and, 0 before the end,
    ``makespan_us``, ``ratio`` (makespan over lower bound), ``wire_bytes_up``, ``wire_bytes_down``, ``payload_bytes``,
    and the mean utilisation of ``uplink``, ``downlink``, ``sm``, ``hbm`` as ``NAME_utilisation``.

    ## Arguments
    The fields of ``EnvSpec``, which are those of ``ScenarioSpec`` and a few more; ``render_mode`` is ``ansi``,
    ``rgb_array`` or None.

    ## Example
    >>> import gymnasium, dysharp_env
    >>> env = gymnasium.make("DySHARP/TokenSchedule-v0", model="small", tokens=32, routing="uniform")
    >>> observation, info = env.reset(seed=0)
    >>> done = False
    >>> while not done:
    ...     action = env.action_space.sample(info["action_mask"])
    ...     observation, reward, terminated, truncated, info = env.step(action)
    ...     done = terminated or truncated
    >>> info["ratio"] > 1
    True
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "rgb_array"], "render_fps": 4}

    def __init__(self, render_mode: str | None = None, **settings: Any):
        """Reads the scenario and schedule.

        Args:
            render_mode: ``ansi``, ``rgb_array`` or None.
            **settings: Fields of ``EnvSpec``.

        Raises:
            ConfigError: A setting is unknown or wrong, or the parts do not fit each other.
        """
        if render_mode is not None:
            require_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self.settings = parse_spec(EnvSpec, settings, source="DySHARP/TokenSchedule-v0")
        self.scenario = self.settings.build()
        self.base_schedule = load_schedule(self.settings.schedule)
        self.base_schedule.program(self.scenario.system, self.settings.exposure())
        size = self.settings.max_candidates
        self._shapes = {"candidates": (size * len(FEATURES),), "context": (len(CONTEXT),)}
        boxes: dict[str, spaces.Space[Any]] = {
            name: spaces.Box(0.0, 1.0, shape, np.float32) for name, shape in self._shapes.items()
        }
        self.observation_space = cast("spaces.Space[dict[str, np.ndarray]]", spaces.Dict(boxes))
        self.action_space = spaces.Discrete(size)
        self._run: LayerRun | None = None
        self._decision: Decision | None = None
        self._result: LayerResult | None = None
        self._rewarded_ps = 0
        self._invalid_actions = 0
        self._invalid_in_a_row = 0

    @property
    def run(self) -> LayerRun:
        """The layer being scheduled.

        Raises:
            RuntimeError: ``reset`` has not been called.
        """
        if self._run is None:
            raise RuntimeError("call reset first: no layer is being scheduled")
        return self._run

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Starts a new layer and runs it to its first decision.

        Args:
            seed: Seeds the stream that workload seeds are drawn from.
            options: ``workload_seed`` chooses the routing by its seed, ``workload`` gives it.

        Raises:
            ConfigError: An option is unknown, or the workload does not fit the scenario.
        """
        super().reset(seed=seed)
        self._run = start(
            self.scenario.system,
            self._workload(options or {}),
            self.base_schedule,
            exposure=self.settings.exposure(),
            compute_scale=self.settings.compute_scale,
            logging=self.settings.log or self.render_mode == "rgb_array",
        )
        self._rewarded_ps = 0
        self._invalid_actions = self._invalid_in_a_row = 0
        self._result = None
        self._decision = self._run.engine.advance()
        return self._observation(), self._info()

    def step(self, action: np.int64 | int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Takes a candidate and runs to the next decision; see the class for reward and masked actions.

        Raises:
            ValueError: The action is outside the action space, or it is masked and ``invalid_action`` is ``raise``.
            RuntimeError: The episode is over.
        """
        run = self.run
        if self._result is not None:
            raise RuntimeError("the episode is over; call reset")
        if not self.action_space.contains(np.int64(action) if isinstance(action, int) else action):
            raise ValueError(f"action {action!r} is not in {self.action_space}")
        if self._decision is not None:
            if not self.action_masks()[int(action)]:
                return self._refuse(int(action))
            self._invalid_in_a_row = 0
            run.engine.decide(int(action))
            self._decision = run.engine.advance()
        reward = -(run.engine.now_ps - self._rewarded_ps) / run.lower_bound_ps
        self._rewarded_ps = run.engine.now_ps
        if self._decision is None:
            self._result = run.result()
        return self._observation(), reward, self._decision is None, False, self._info()

    def action_masks(self) -> np.ndarray:
        """Returns which actions are legal now, (max_candidates,) bool, a copy.

        A layer that is done before it ever asked still takes one action, the first.
        """
        if self._decision is not None:
            return self._decision.mask.copy()
        mask = np.zeros(self.settings.max_candidates, bool)
        mask[0] = self._result is None
        return mask

    def schedule(self) -> ScheduleTable:
        """Returns the schedule so far as a table that saves as CSV and as a timeline."""
        return ScheduleTable.of(self.run.engine)

    def render(self) -> str | np.ndarray | None:  # type: ignore[override]
        """Returns the state as text (``ansi``) or a Gantt chart of links and SM groups (``rgb_array``, uint8)."""
        # Renderers are imported when they are used: training does not pay for matplotlib.
        if self.render_mode == "ansi":
            from dysharp_env.report.text import describe_state

            return describe_state(self.run)
        if self.render_mode == "rgb_array":
            from dysharp_env.report.gantt import draw_schedule

            return draw_schedule(self.run.engine, self.base_schedule.name, self.run.lower_bound_ps / 1e6)
        return None

    def _workload(self, options: dict[str, Any]) -> Workload:
        for key in options:
            require_choice("reset option", key, ("workload", "workload_seed"))
        if "workload" in options:
            workload = options["workload"]
            if not isinstance(workload, Workload):
                raise ConfigError(f"reset option workload={workload!r} must be a Workload")
            if workload.num_gpus != self.scenario.system.num_gpus:
                raise ConfigError(
                    f"the workload has {workload.num_gpus} GPUs, the system {self.scenario.system.num_gpus}"
                )
            if workload.layer != self.scenario.layer:
                raise ConfigError(f"the workload's layer '{workload.layer.name}' is not the environment's")
            return workload
        if "workload_seed" in options:
            seed = options["workload_seed"]
            if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
                raise ConfigError(f"reset option workload_seed={seed!r} must be a whole number that is not negative")
            return self.scenario.draw(int(seed))
        first, last = self.settings.seeds or (0, 2**31)
        return self.scenario.draw(int(self.np_random.integers(first, last)))

    def _refuse(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        if self.settings.invalid_action == "raise":
            raise ValueError(
                f"action {action} is masked; legal actions are {np.flatnonzero(self.action_masks()).tolist()}"
            )
        self._invalid_actions += 1
        self._invalid_in_a_row += 1
        reward = -self.settings.invalid_penalty if self.settings.invalid_action == "penalise" else 0.0
        truncated = self._invalid_in_a_row >= self.settings.max_invalid_actions
        return self._observation(), reward, False, truncated, self._info()

    def _observation(self) -> dict[str, np.ndarray]:
        if self._decision is None:
            return {name: np.zeros(shape, np.float32) for name, shape in self._shapes.items()}
        return {"candidates": self._decision.features.flatten(), "context": self._decision.context.copy()}

    def _info(self) -> dict[str, Any]:
        run, decision, result = self.run, self._decision, self._result
        info = {
            "action_mask": self.action_masks().astype(np.int8),
            "kind": decision.kind if decision else _NO_KIND,
            "gpu": decision.gpu if decision else _NO_KIND,
            "time_us": run.engine.now_ps / 1e6,
            "decisions": run.engine.asked,
            "invalid_actions": self._invalid_actions,
            "lower_bound_us": run.lower_bound_ps / 1e6,
            "makespan_us": result.makespan_us if result else 0.0,
            "ratio": result.ratio if result else 0.0,
            "wire_bytes_up": result.wire_bytes["up"] if result else 0,
            "wire_bytes_down": result.wire_bytes["down"] if result else 0,
            "payload_bytes": result.payload_bytes["up"] + result.payload_bytes["down"] if result else 0,
        }
        for name in ("uplink", "downlink", "sm", "hbm"):
            info[f"{name}_utilisation"] = result.utilisation[name]["mean"] if result else 0.0
        return info


ACTION_MEANINGS = {
    "split": "once, at the start: the SM-group sizes of all GPUs, from ``splits``",
    "dispatch": "which unsent token chunk a GPU's dispatch group takes next",
    "gemm": "which ready row (GEMM-1, GEMM-2, or an open tile closed early) a GPU's free GEMM SMs take next; or hold",
    "combine": "which chunk with ready tokens a GPU's combine group takes next; or hold",
}


def markdown_table(header: tuple[str, str], meanings: dict[str, str], indexed: bool = False) -> str:
    """Returns names and meanings as a Markdown table; the class docstring and the README hold the same ones."""
    rows = [
        f"| {f'{index} ' if indexed else ''}`{name}` | {text.replace('``', '`')} |"
        for index, (name, text) in enumerate(meanings.items())
    ]
    return "\n".join([f"| {header[0]} | {header[1]} |", "|---|---|", *rows])


def _document() -> None:
    """Writes the tables into the class docstring, which is thereby always what the code does."""
    tables = {
        "actions": markdown_table(
            ("kind", "the candidates are"), {kind: ACTION_MEANINGS[kind] for kind in DECISION_KINDS}
        ),
        "features": markdown_table(("column", "meaning"), FEATURE_MEANINGS, indexed=True),
        "context": markdown_table(("index", "meaning"), CONTEXT_MEANINGS, indexed=True),
    }
    text = TokenScheduleEnv.__doc__ or ""
    indented = {name: table.replace("\n", "\n    ") for name, table in tables.items()}
    TokenScheduleEnv.__doc__ = text.format(num_features=len(FEATURES), num_context=len(CONTEXT), **indented)


_document()
