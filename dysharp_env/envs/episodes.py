"""Episodes: what an observation, a reward, an info and a masked action are, for any number of copies at once.

The environment is one copy, the vector environments are many. They differ in how they are called and in when a copy
that is over starts anew, and in nothing else.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, TypeVar, cast

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding

from dysharp_env.config import ConfigError, require_choice
from dysharp_env.envs.sources import Source, read_sources
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import LayerRun, load_schedule
from dysharp_env.simulator.batch import Batch
from dysharp_env.simulator.engine import masked
from dysharp_env.simulator.playing import Players
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.observation import SPLIT
from dysharp_env.simulator.warmup import ensure_compiled
from dysharp_env.workload import Workload

_UTILISATION = ("uplink", "downlink", "sm", "hbm")
# What an info says of a finished layer, 0 before, and its type.
_FINAL = {
    "makespan_us": np.float64,
    "ratio": np.float64,
    "wire_bytes_up": np.int64,
    "wire_bytes_down": np.int64,
    "payload_bytes": np.int64,
    **{f"{name}_utilisation": np.float64 for name in _UTILISATION},
}

RENDER_MODES = ("ansi", "rgb_array")
Copied = TypeVar("Copied")


def require_render_mode(mode: str | None) -> None:
    """Checks a render mode.

    Raises:
        ConfigError: There is none of the name.
    """
    if mode == "human":
        raise ConfigError(
            "render_mode='human' is that of gymnasium.make, which shows 'rgb_array' in a window: it needs pygame, and"
            " does so for one environment, not for many at once"
        )
    if mode is not None:
        require_choice("render_mode", mode, RENDER_MODES)


class Episodes:
    """Layers being scheduled, a copy each, in arrays that the next ``advance`` or ``step`` overwrites.

    Attributes:
        settings: What every copy is.
        sources: What workloads are drawn from: one, or a suite's entries.
        schedule: What is learned on top of.
        observation_space, action_space: Of one copy.
        batch: The layers and what their decisions show.
        is_over: (copy,) bool, whether the last token is combined and that has been told.
    """

    def __init__(self, settings: EnvSpec, num_copies: int, *, threads: int = 1, logging: bool = False) -> None:
        """Reads the scenarios and schedule, and says so if the engine must be compiled; ``place`` starts copies.

        Args:
            settings: What every copy is.
            num_copies: Copies.
            threads: Threads that advance them; see ``Batch``.
            logging: Whether engines record every use of a link and SM group even if the settings do not say so.

        Raises:
            ConfigError: The parts of the settings do not fit each other.
        """
        ensure_compiled()
        self.settings = settings
        self.schedule = load_schedule(settings.schedule)
        self.sources = read_sources(settings, self.schedule, settings.log or logging)
        size = settings.max_candidates
        self.observation_space = cast("spaces.Space[dict[str, np.ndarray]]", settings.observation_space())
        self.action_space = settings.action_space()
        self.batch = Batch(num_copies, size, threads)
        self.is_over = np.zeros(num_copies, bool)
        self._copies = np.arange(num_copies)
        self._runs: list[LayerRun | None] = [None] * num_copies
        self._source_of = [self.sources[0]] * num_copies
        self._streams: list[np.random.Generator | None] = [None] * num_copies
        self._bound_ps = np.ones(num_copies, np.int64)
        self._rewarded_ps = np.zeros(num_copies, np.int64)
        self._invalid = np.zeros(num_copies, np.int64)
        self._has_warned = False
        self._final = {name: np.zeros(num_copies, dtype) for name, dtype in _FINAL.items()}

    @property
    def observations(self) -> dict[str, np.ndarray]:
        """(copy, ...) arrays by the names of the observation space; zeros where nothing is asked."""
        return {"candidates": self.batch.rows, "context": self.batch.context}

    def clone(self, owner: Copied, *constants: object) -> Copied:
        """Returns a deep copy of what owns the episodes that shares what never changes.

        Args:
            owner: An environment, or the episodes themselves.
            constants: What never changes of the owner's own.
        """
        shared = (self.settings, self.schedule, *self.sources, *constants)
        return deepcopy(owner, {id(part): part for part in shared})

    def run(self, copy: int) -> LayerRun:
        """Returns the layer that a copy schedules.

        Raises:
            RuntimeError: It has none yet.
        """
        run = self._runs[copy]
        if run is None:
            raise RuntimeError("call reset first: no layer is being scheduled")
        return run

    def source(self, copy: int) -> Source:
        """Returns what the layer of a copy was drawn from, or before it has one, the first of all sources."""
        return self._source_of[copy]

    def draw(self, stream: np.random.Generator, options: Mapping[str, Any]) -> tuple[Source, Workload]:
        """Returns what the options of a reset choose: an entry of the suite and a workload of it.

        What they leave open is drawn from the stream, the entry before the workload's seed.

        Raises:
            ConfigError: An option is unknown, or the workload does not fit the scenario.
        """
        for key in options:
            require_choice("reset option", key, ("entry", "workload", "workload_seed"))
        source = self._choose_source(stream, options)
        if "workload" in options:
            return source, source.fitting(options["workload"])
        if "workload_seed" in options:
            seed = options["workload_seed"]
            if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**63:
                raise ConfigError(f"reset option workload_seed={seed!r} must be a whole number that is not negative")
            return source, source.scenario.draw(int(seed))
        return source, source.draw(stream)

    def _choose_source(self, stream: np.random.Generator, options: Mapping[str, Any]) -> Source:
        count = len(self.sources)
        if "entry" in options:
            entry = options["entry"]
            if isinstance(entry, bool) or not isinstance(entry, int | np.integer) or not 0 <= entry < count:
                raise ConfigError(f"reset option entry={entry!r} must be a whole number from 0 to {count - 1}")
            return self.sources[entry]
        if "workload" in options and count > 1:
            raise ConfigError(f"reset option workload needs entry, which of the suite's {count} entries it is of")
        # One source takes nothing from the stream.
        return self.sources[int(stream.integers(count)) if count > 1 else 0]

    def stream(self, copy: int) -> np.random.Generator:
        """Returns the random stream that ``restart`` draws a copy's workloads from."""
        return self._streams[copy] or self._seed(copy, None)

    def _seed(self, copy: int, seed: int | None) -> np.random.Generator:
        self._streams[copy], _ = seeding.np_random(seed)
        return self.stream(copy)

    def restart(self, copy: int, seed: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        """Places a new layer in a copy as ``reset`` of an environment does, from a stream of the copy's own.

        Args:
            copy: Whose layer it is.
            seed: Seeds the copy's stream; without one the stream goes on.
            options: See ``draw``.

        Raises:
            ConfigError: See ``draw``.
        """
        stream = self.stream(copy) if seed is None else self._seed(copy, seed)
        self.place(copy, *self.draw(stream, options or {}))

    def place(self, copy: int, source: Source, workload: Workload) -> None:
        """Gives a copy a new layer, which the next ``advance`` or ``step`` takes to its first decision."""
        run = source.starter.start(workload)
        self._runs[copy], self._source_of[copy] = run, source
        self._seat(copy, run)
        self._bound_ps[copy] = run.lower_bound_ps
        for array in (self.is_over, self._rewarded_ps, self._invalid, *self._final.values()):
            array[copy] = 0

    def _seat(self, copy: int, run: LayerRun) -> None:
        """Gives a copy the engine of its layer or, as long as that has none, the decision that comes before."""
        if run.waiting is None:
            self.batch.place(copy, run.engine)
        else:
            self.batch.show(copy, run.waiting, run.opening.asked, run.opening.decisions)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over what was copied or pickled; what waits before a layer is in no engine."""
        self.__dict__.update(state)
        for copy, run in enumerate(self._runs):
            if run is not None and run.waiting is not None:
                self._seat(copy, run)

    def advance(self) -> None:
        """Takes the layers placed to their first decisions."""
        self.batch.advance()
        self._offer_one_action()

    def _offer_one_action(self) -> None:
        """Lets layers that were done before they ever asked take one action, the first."""
        for copy in np.flatnonzero((self.batch.status == codes.DONE) & ~self.is_over).tolist():
            self._offer_one_action_in(copy)

    def _offer_one_action_in(self, copy: int) -> None:
        self._show_nothing(copy)
        self.batch.mask[copy, 0] = True

    def step(self, actions: np.ndarray, anew: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Lets copies act or start anew, and takes them to their next decisions.

        A masked action is never a way to wait: the first legal candidate is taken in its place, at a penalty. Whatever
        masked actions lead to, legal ones lead to as well, with a higher return wherever one stops.

        Args:
            actions: (copy,) whole numbers in the action space; those of copies that start anew are ignored.
            anew: (copy,) bool, which copies ``restart`` instead of acting, as those must whose episode is over.

        Returns:
            (copy,) float64 rewards, and (copy,) bool whether the episode is terminated; 0 and False for copies that
            start anew. The arrays are the caller's.

        Raises:
            ValueError: An action is masked and ``invalid_action`` is ``raise``; nothing has happened then.
            RuntimeError: A copy was never started.
        """
        if None in self._runs:
            self.run(self._runs.index(None))
        batch = self.batch
        acts = ~self.is_over
        starting = np.flatnonzero(anew).tolist() if anew is not None else []
        acts[starting] = False
        refused = acts & ~batch.mask[self._copies, actions]
        any_refused = refused.any()
        if any_refused:
            actions = self._replace(refused, actions)
        waits = acts & (batch.status == codes.ASK)
        early = waits & (batch.kind < SPLIT)  # of layers that have no engine yet
        batch.answer(waits & ~early, actions)
        for copy in np.flatnonzero(early).tolist():
            run = self.run(copy)
            run.decide(int(actions[copy]))
            self._seat(copy, run)
        for copy in starting:
            self.restart(copy)
        batch.advance()
        spent_ps = (batch.now_ps - self._rewarded_ps) * acts
        self._rewarded_ps += spent_ps
        rewards = -spent_ps / self._bound_ps
        terminated = acts & (batch.status == codes.DONE)
        if terminated.any():
            for copy in np.flatnonzero(terminated).tolist():
                self._end(copy)
        if starting:
            self._offer_one_action()
        if any_refused:
            rewards[refused] -= self.settings.invalid_penalty
        return rewards, terminated

    def play(self, copy: int, players: Players) -> bool:
        """Lets a player take a copy's decisions until the episode is over or it has no more room for them.

        The player keeps what ``step`` would show and give for the same actions. Other copies may be played at the same
        time by other threads.

        Args:
            copy: Whose decisions they are; its episode is not over.
            players: A player for each copy, which read the arrays of ``batch``.

        Returns:
            Whether the episode is over.
        """
        batch, player = self.batch, players.records[copy]
        player["rewarded_ps"], player["bound_ps"] = self._rewarded_ps[copy], self._bound_ps[copy]
        run = self.run(copy)
        while run.waiting is not None:
            players.settle(copy, 0)
            if player["taken"] == player["room"]:
                return False
            run.decide(players.choose(copy, early=True))
            self._seat(copy, run)
        batch.play(copy, players)
        is_done = bool(batch.status[copy] == codes.DONE)
        if is_done and players.length[copy] == 0:
            self._offer_one_action_in(copy)
            if player["taken"] == player["room"]:
                return False
            players.choose(copy)
            players.settle(copy, int(batch.now_ps[copy]))
        self._rewarded_ps[copy] = player["rewarded_ps"]
        if is_done:
            self._end(copy)
        return is_done

    def _replace(self, refused: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Returns the actions with the first legal ones where masked ones are refused, which it counts."""
        if self.settings.invalid_action == "raise":
            copy = int(refused.argmax())
            raise masked(int(actions[copy]), self.batch.mask[copy])
        if not self._has_warned:
            self._has_warned = True
            # The text is always the same, so that one line is shown for many environments in a process.
            warnings.warn(
                "a masked action was taken: the first legal candidate takes its place, and each costs invalid_penalty;"
                ' info["action_mask"] and action_masks() say what is legal',
                stacklevel=3,
            )
        self._invalid += refused
        return np.where(refused, self.batch.mask.argmax(axis=1), actions)

    def _end(self, copy: int) -> None:
        """Notes the result of a copy's layer, after which nothing is shown and nothing legal."""
        result = self.run(copy).result()
        values = {
            "makespan_us": result.makespan_us,
            "ratio": result.ratio,
            "wire_bytes_up": result.wire_bytes["up"],
            "wire_bytes_down": result.wire_bytes["down"],
            "payload_bytes": result.payload_bytes["up"] + result.payload_bytes["down"],
            **{f"{name}_utilisation": result.utilisation[name]["mean"] for name in _UTILISATION},
        }
        for name, value in values.items():
            self._final[name][copy] = value
        self.is_over[copy] = True
        self._show_nothing(copy)

    def _show_nothing(self, copy: int) -> None:
        for shown in (self.batch.features, self.batch.context, self.batch.mask):
            shown[copy] = 0

    def info(self) -> dict[str, np.ndarray]:
        """Returns (copy, ...) arrays of what an info holds, the caller's own."""
        return {"action_mask": self.batch.mask.astype(np.int8), **self._numbers(np.copy)}

    def info_of(self, copy: int) -> dict[str, Any]:
        """Returns the info of one copy: plain numbers, and its mask as an array."""
        return {
            "action_mask": self.batch.mask[copy].astype(np.int8),
            **self._numbers(lambda array: array.item(copy)),
        }

    def _numbers(self, read: Callable[[np.ndarray], Any]) -> dict[str, Any]:
        """Returns what an info holds besides the mask, as ``read`` takes it from (copy,) arrays."""
        batch = self.batch
        waiting = read(batch.status) == codes.ASK
        return {
            # No kind and no GPU is -1.
            "kind": waiting * (read(batch.kind) + 1) - 1,
            "gpu": waiting * (read(batch.gpu) + 1) - 1,
            "time_us": read(batch.now_ps) / 1e6,
            "decisions": read(batch.decisions),
            "asked": read(batch.asked),
            "invalid_actions": read(self._invalid),
            "lower_bound_us": read(self._bound_ps) / 1e6,
            **{name: read(array) for name, array in self._final.items()},
        }

    def render(self, copy: int, mode: str | None) -> str | np.ndarray | None:
        """Returns a copy's state as text (``ansi``) or a Gantt chart of links and SM groups (``rgb_array``, uint8)."""
        # Renderers are imported when they are used: training does not pay for matplotlib.
        if mode == "ansi":
            from dysharp_env.report.text import describe_state

            return describe_state(self.run(copy))
        if mode == "rgb_array":
            from dysharp_env.report.gantt import render

            run = self.run(copy)
            return render((self.schedule.name, run))
        return None
