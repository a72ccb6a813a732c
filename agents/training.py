"""Training: collect, update, evaluate, save; the loop behind ``python -m agents.train``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from stable_baselines3.common.logger import Logger

from agents.learner import Learner, PpoSpec
from agents.metrics import EPISODE_COLUMNS, Clock, EpisodeRecorder, TensorBoard, kind_statistics
from agents.play import FIRST, RANDOM, play_policy, play_schedule, played
from agents.policy import CandidatePolicy, PolicySpec
from agents.run_folder import RunFolder
from agents.vec_env import ScheduleVecEnv
from agents.weights import load_policy
from dysharp_env.config import ConfigError, Spec, flat_keys, parse_spec, preset_names
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import load_schedule
from dysharp_env.workload.suite import load_suite

_EVALUATION_COLUMNS = ("decisions", "workload", "makespan_us", "lower_bound_us", "ratio_to_bound", "ratio_to_reference")
_TABLES = {"episodes.csv": EPISODE_COLUMNS, "evaluations.csv": _EVALUATION_COLUMNS}


class TrainSpec(Spec):
    """A training run."""

    name: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run, the first part of its folder's."""
    env: EnvSpec = EnvSpec()
    """What is trained on: scenario, base schedule and exposed decisions."""
    total_decisions: int = Field(default=1_000_000, ge=1)
    """Training ends at the first update that reaches so many decisions."""
    num_envs: int = Field(default=16, ge=1)
    """Environment copies."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds networks, choices and workloads."""
    torch_threads: int = Field(default=1, ge=1, le=256)
    """Threads for the networks."""
    ppo: PpoSpec = PpoSpec()
    """Hyper-parameters of the learner."""
    policy: PolicySpec = PolicySpec()
    """Size of the networks."""
    validation: str = "demo-validation"
    """Suite that chooses the best policy."""
    eval_every_decisions: int = Field(default=100_000, ge=1)
    """Decisions between validations; the last policy is always validated."""
    checkpoint_every_decisions: int = Field(default=200_000, ge=1)
    """Decisions between checkpoints; environments start fresh episodes there, so that resuming changes nothing."""
    reference: str = "dysharp"
    """Schedule that makespans are compared with; it is simulated once on every workload met in training."""
    baseline: bool = True
    """Whether rewards are relative to the reference on the same workload; see ``ScheduleVecEnv``."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        taken = [RANDOM, FIRST, *preset_names("schedules")]
        if name in taken:
            raise ValueError(f"a run must have a name of its own in comparisons, none of {taken}")
        return name

    @model_validator(mode="after")
    def _check_batch(self) -> TrainSpec:
        rollout = self.num_envs * self.ppo.n_steps
        if self.ppo.batch_size > rollout:
            raise ValueError(f"ppo.batch_size={self.ppo.batch_size} must be at most num_envs x ppo.n_steps = {rollout}")
        if rollout % self.ppo.batch_size == 1:
            # Advantages are normalised within a batch, and one number has no standard deviation.
            raise ValueError(
                f"ppo.batch_size={self.ppo.batch_size} leaves a last batch of 1 of num_envs x ppo.n_steps = {rollout};"
                " choose one that leaves none or more"
            )
        return self


@dataclass(frozen=True)
class Progress:
    """Where training is, for people who watch.

    Attributes:
        decisions: Decisions so far, of ``total``.
        total: Decisions in all.
        mean_return: Mean return of the last episodes; nan before the first.
        ratio: Mean makespan over lower bound of the last episodes; nan before the first.
        decisions_per_second: Over this process so far, everything included.
        validation_ratio: Best on the validation suite so far; None before the first validation.
    """

    decisions: int
    total: int
    mean_return: float
    ratio: float
    decisions_per_second: float
    validation_ratio: float | None


@dataclass(frozen=True)
class Validation:
    """A policy on the validation suite: mean makespan over lower bound, geometric mean over the reference."""

    ratio_to_bound: float
    ratio_to_reference: float


class Validator:
    """Plays the validation suite with the policy's most likely choices."""

    def __init__(self, spec: TrainSpec):
        """Draws the suite and simulates the reference on it.

        Raises:
            ConfigError: The suite or the reference is unknown or does not fit.
        """
        self._workloads = load_suite(spec.validation).draw()
        self._env = spec.env
        self._reference = play_schedule(load_schedule(spec.reference), self._workloads)

    def __call__(self, policy: CandidatePolicy, decisions: int, folder: RunFolder) -> Validation:
        """Returns how good the policy is, and adds a line for each workload to the run's ``evaluations.csv``."""
        mine = played(play_policy(policy, self._env, self._workloads), self._workloads)
        pairs = zip(mine, self._reference, strict=True)
        to_reference = [item.makespan_us / other.makespan_us for item, other in pairs]
        rows = [
            (decisions, item.workload, item.makespan_us, item.lower_bound_us, item.ratio, relative)
            for item, relative in zip(mine, to_reference, strict=True)
        ]
        folder.append_rows("evaluations.csv", _EVALUATION_COLUMNS, rows)
        return Validation(float(np.mean([item.ratio for item in mine])), float(np.exp(np.mean(np.log(to_reference)))))


class Counters(Spec):
    """What a checkpoint remembers besides weights and optimiser."""

    decisions: int = Field(ge=0)
    """Decisions so far."""
    updates: int = Field(ge=0)
    """Passes of the learner over its rollouts so far."""
    best_validation_ratio: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    """Lowest mean makespan over lower bound on the validation suite so far."""
    wall_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds of training so far."""


class Result(Spec):
    """What ``meta.json`` says of a finished run."""

    decisions: int = Field(ge=0)
    """Training decisions."""
    validation_ratio: float = Field(gt=0, allow_inf_nan=False)
    """Best mean makespan over lower bound on the validation suite."""
    wall_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds of training."""


def read_spec(folder: RunFolder) -> TrainSpec:
    """Returns what a run was made with.

    Raises:
        ConfigError: Its ``config.yaml`` is damaged. A setting that is missing is damage too: runs write all of them,
            and a default taken in its place could be another than the run's.
    """
    source = f"{folder.path}/config.yaml"
    data = folder.read_config()
    spec = parse_spec(TrainSpec, data, source=source)
    for dotted in flat_keys(TrainSpec):
        *parents, leaf = dotted.split(".")
        level = data
        for parent in parents:
            level = level.get(parent, {})
        if leaf not in level:
            raise ConfigError(f"{source}: key '{dotted}' is missing")
    return spec


def train(
    spec: TrainSpec,
    folder: RunFolder,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    watch: Callable[[Progress], None] = lambda _: None,
) -> float:
    """Trains into a run folder and returns the best validation ratio.

    Args:
        spec: The run.
        folder: Where everything is written, ``config.yaml`` included.
        resume: Whether to continue from the folder's newest checkpoint. Nothing is written before it is read.
        command: The command line, for ``command.txt``.
        watch: Called after every update.

    Raises:
        ConfigError: A name in the spec is unknown, or the checkpoint cannot be read.
    """
    torch.set_num_threads(spec.torch_threads)
    training = _Training(spec, folder, watch)
    if resume:
        training.restore()
    return training.run(command)


class _Training:
    """A run under way."""

    def __init__(self, spec: TrainSpec, folder: RunFolder, watch: Callable[[Progress], None]):
        self._spec, self._folder, self._watch = spec, folder, watch
        self._validator = Validator(spec)
        self._episodes = EpisodeRecorder(spec.reference)
        vec_env = ScheduleVecEnv(spec.env, spec.num_envs, spec.reference, spec.baseline)
        self._learner = Learner(vec_env, spec.ppo, spec.policy, spec.seed)
        self._kept: dict[str, list[list[str]]] = {}  # lines of the tables that a resumed run keeps
        self._best: float | None = None
        self._clock = Clock(self._learner)

    def restore(self) -> None:
        """Goes back to the newest checkpoint; what was recorded after it will be recorded again.

        It only reads: a run that cannot be resumed stays as it is.
        """
        folder, learner = self._folder, self._learner
        source = f"{folder.newest_checkpoint()}/counters.json"
        counters = parse_spec(Counters, folder.restore_checkpoint(learner.network), source=source)
        if counters.decisions != int(folder.newest_checkpoint().name):
            raise ConfigError(f"{source}: decisions={counters.decisions} must be the number of its folder")
        learner.num_timesteps, self._best = counters.decisions, counters.best_validation_ratio
        learner._n_updates = counters.updates
        if self._best is not None:
            load_policy(folder.best, self._spec.env)  # it may stay the best, so it must be whole
        for table, columns in _TABLES.items():
            rows = folder.read_rows(table, columns)
            self._kept[table] = [row for row in rows if int(row[0]) <= counters.decisions]
        self._clock = Clock(learner, counters.wall_s)

    def run(self, command: Sequence[str]) -> float:
        """Trains to the end and returns the best validation ratio."""
        spec, folder, learner = self._spec, self._folder, self._learner
        meta = folder.read_meta()
        if command:
            folder.add_command(command)
        for table, rows in self._kept.items():
            folder.replace_rows(table, _TABLES[table], rows)
        folder.write_config(spec)
        folder.write_meta({"seed": spec.seed, "started": meta.get("started", _now()), "finished": None})
        board = TensorBoard(folder.path, learner.num_timesteps or None)
        learner.set_logger(Logger(None, [board]))
        self._begin()
        while learner.num_timesteps < spec.total_decisions:
            self._iterate()
        if self._best is None:  # a checkpoint from before the first validation already had all decisions
            self._validate()
        best = self._best
        assert best is not None
        learner.vec_env.close()
        board.close()
        result = {"decisions": learner.num_timesteps, "validation_ratio": best, "wall_s": self._clock.wall_s()}
        folder.write_meta({"finished": _now(), **result})
        return best

    def _begin(self) -> None:
        decisions = self._learner.num_timesteps
        # Stable-Baselines3 adds the copy's index to the seed, so it stays clear of 2**31.
        seed = int(np.random.SeedSequence([self._spec.seed, decisions]).generate_state(1)[0] % 2**30)
        self._learner.begin(self._episodes, seed)

    def _iterate(self) -> None:
        """Collects, updates, and where it is time validates and saves."""
        spec, learner, episodes = self._spec, self._learner, self._episodes
        before = learner.num_timesteps
        learner.collect(episodes)
        statistics = kind_statistics(learner)
        learner.update(1.0 - learner.num_timesteps / spec.total_decisions)
        done = learner.num_timesteps
        last = done >= spec.total_decisions
        self._folder.append_rows("episodes.csv", EPISODE_COLUMNS, episodes.take_rows())
        record = {**episodes.means(), **statistics, **self._clock.shares()}
        if last or _crossed(before, done, spec.eval_every_decisions):
            record |= self._validate()
        for name, value in record.items():
            learner.logger.record(name, value)
        learner.logger.dump(done)
        if last or _crossed(before, done, spec.checkpoint_every_decisions):
            counters = Counters(
                decisions=done,
                updates=learner._n_updates,
                best_validation_ratio=self._best,
                wall_s=self._clock.wall_s(),
            )
            self._folder.save_checkpoint(learner.network, counters, done)
            if not last:
                self._begin()
        means = episodes.recent("return"), episodes.recent("ratio")
        self._watch(Progress(done, spec.total_decisions, *means, self._clock.rate(), self._best))

    def _validate(self) -> dict[str, float]:
        """Keeps the policy if it is the best so far, and returns what TensorBoard shows of it."""
        decisions = self._learner.num_timesteps
        validation = self._validator(self._learner.network, decisions, self._folder)
        if self._best is None or validation.ratio_to_bound < self._best:
            self._best = validation.ratio_to_bound
            self._folder.save_best(self._learner.network, decisions, self._best)
        return {
            "eval/ratio_to_bound": validation.ratio_to_bound,
            f"eval/ratio_to_{self._spec.reference}": validation.ratio_to_reference,
        }


def _crossed(before: int, after: int, every: int) -> bool:
    return before // every != after // every


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def describe_result(folder: RunFolder) -> str:
    """Returns one line on a finished run from its ``meta.json``.

    Raises:
        ConfigError: It is damaged.
    """
    meta = folder.read_meta()
    found: dict[str, Any] = {name: meta[name] for name in Result.model_fields if name in meta}
    result = parse_spec(Result, found, source=f"{folder.path}/meta.json")
    return (
        f"{result.decisions:,} decisions in {result.wall_s:.0f} s,"
        f" best validation ratio {result.validation_ratio:.3f} times the lower bound"
    )
