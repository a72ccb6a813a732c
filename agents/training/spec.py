"""What a training run is made of, and what its ``meta.json`` says of it in the end."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from agents.opponents.play import FIRST, RANDOM
from agents.policies.candidate_policy import PolicySpec
from agents.training.evolution import EvolutionSpec
from agents.training.imitation import ImitationSpec, teacher
from agents.training.learner import PpoSpec
from agents.training.run_folder import RunFolder
from dysharp_env.config import ConfigError, Spec, flat_keys, parse_spec, preset_names
from dysharp_env.envs.spec import EnvSpec


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
    """Hyper-parameters of MaskablePPO."""
    imitation: ImitationSpec | None = None
    """Has MaskablePPO begin at what look-ahead over the base schedule chooses, instead of at a fresh network."""
    evolution: EvolutionSpec | None = None
    """Trains by evolution instead, with these hyper-parameters; ``num_envs``, ``ppo``, ``policy`` and ``baseline`` then
    do not matter."""
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
    def _check_evolvable(self) -> TrainSpec:
        if self.evolution is None:
            return self
        if self.evolution.tiny and "split" in self.env.exposed:
            raise ValueError(f"env.exposed={list(self.env.exposed)} must leave out split: tiny GPUs have one SM")
        if not self.evolution.tiny and self.env.suite is None:
            raise ValueError("evolution plays a suite: env.suite=None must be the name of one")
        return self

    @model_validator(mode="after")
    def _check_imitable(self) -> TrainSpec:
        if self.imitation is None:
            return self
        if self.evolution is not None:
            raise ValueError("imitation is a start for MaskablePPO, and evolution has its own: leave out one of them")
        teacher(self.env, self.imitation)
        return self

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
        level: dict[str, Any] | None = data
        for parent in parents:
            level = level.get(parent, {}) if level is not None else None
        if level is not None and leaf not in level:
            raise ConfigError(f"{source}: key '{dotted}' is missing")
    return spec


class Result(Spec):
    """What ``meta.json`` says of a finished run."""

    decisions: int = Field(ge=0)
    """Training decisions."""
    validation_ratio: float = Field(gt=0, allow_inf_nan=False)
    """Best mean makespan over lower bound on the validation suite."""
    wall_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds of training."""


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
