"""What a training run is made of: the hyper-parameters of every algorithm, and what ``meta.json`` says in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from dysharp_env.config import ConfigError, Spec, parse_spec, read_yaml
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import load_schedule
from dysharp_env.simulator.state.observation import OPENING_KINDS

from ..opponents.lookahead import KINDS, LookAhead
from ..policies.candidate_policy import PolicySpec
from ..policies.card import RunName, without_gone
from .genome import GATED, GATES, SHAPES
from .run_folder import RunFolder
from .zoo import translate_ppo, translate_run


class PpoSpec(Spec):
    """Hyper-parameters of proximal policy optimisation, by the names that Stable-Baselines3 gives them."""

    n_steps: int = Field(default=256, ge=2, le=10**9)
    """Decisions of each environment copy between updates; about an episode, so that an update sees all of it."""
    batch_size: int = Field(default=1024, ge=2)
    """Decisions in one gradient step."""
    n_epochs: int = Field(default=4, ge=1, le=1000)
    """Passes over the decisions of an update."""
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    """Step size at the start; ``lin_X``, as RL Zoo writes it, is X with the schedule ``linear_to_zero``."""
    learning_rate_schedule: Literal["constant", "linear", "linear_to_zero"] = "linear"
    """``linear`` falls to a twentieth of the start at the end of the run, ``linear_to_zero`` to nothing."""
    clip_range: float = Field(default=0.2, gt=0, le=1)
    """How far the probability of a choice may move in one update, at the start."""
    clip_range_schedule: Literal["constant", "linear_to_zero"] = "constant"
    """What becomes of it, as of the learning rate."""
    clip_range_vf: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """How far a value may move in one update; none does not limit it."""
    normalize_advantage: bool = True
    """Whether the advantages of a gradient step are brought to mean 0 and deviation 1."""
    ent_coef: float = Field(default=0.001, ge=0, allow_inf_nan=False)
    """Weight of the entropy bonus."""
    vf_coef: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    """Weight of the value loss."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount of a decision; 1, because an episode's return is its makespan."""
    gae_lambda: float = Field(default=1.0, ge=0, le=1)
    """How far advantages trust what followed over what the value network expected.

    In single short runs of the demo 0.99 and 1 learned and 0.95 ended worse than random choices, perhaps because what
    an order costs shows only near the end of a layer, hundreds of decisions later.
    """
    max_grad_norm: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """Longest gradient."""
    target_kl: float | None = Field(default=0.03, gt=0)
    """Ends an update early when the policy has moved that far; none never does."""

    @model_validator(mode="before")
    @classmethod
    def _read_zoo(cls, data: Any) -> Any:
        return translate_ppo(data) if isinstance(data, dict) else data

    def rate(self, progress_remaining: float) -> float:
        """Returns the learning rate when that fraction of the run is left."""
        left = max(0.0, min(1.0, progress_remaining))
        if self.learning_rate_schedule == "constant":
            return self.learning_rate
        return self.learning_rate * (0.05 + 0.95 * left if self.learning_rate_schedule == "linear" else left)

    def clip(self, progress_remaining: float) -> float:
        """Returns the clip range when that fraction of the run is left."""
        return self.clip_range * (progress_remaining if self.clip_range_schedule == "linear_to_zero" else 1.0)


class EvolutionSpec(Spec):
    """Hyper-parameters of the evolution of a policy of few weights; see genome.py."""

    start: Literal["constant", "hand_written"] = "constant"
    """The splits it begins at: the schedule's own always, or the policy of that name in steering.py. Other kinds begin
    at the schedule's own rules."""
    shapes: tuple[str, ...] = SHAPES
    """What of a layer's shape weights may depend on."""
    gated: tuple[str, ...] = ("is_gemm2", "is_partial", "is_hold")
    """Features whose weights depend on ``gates``, where other kinds than splits are decided on."""
    gates: tuple[str, ...] = ("all_sent", "free_sms")
    """Context values that those weights are linear in: how far a GPU is."""
    pairs: int = Field(default=10, ge=1, le=1024)
    """Pairs of opposite nudges on each workload of a generation."""
    sigma: float = Field(default=0.12, gt=0, le=10)
    """Standard deviation of a nudge to a weight."""
    learning_rate: float = Field(default=0.03, gt=0, le=1)
    """Step of a weight in one generation; it falls to a tenth over a cycle."""
    cycles: int = Field(default=1, ge=1, le=1024)
    """Parts of the run, each of which begins at the learning rate again (warm restarts, arXiv 1608.03983)."""
    clip: float = Field(default=0.06, gt=0, le=10)
    """Most that one pair's difference in log makespan counts, so that a nudge that ruins a layer decides nothing."""
    average: float = Field(default=0.9, ge=0, lt=1)
    """What the policy keeps of itself in one generation; the rest is where the steps are."""
    batch: int = Field(default=16, ge=1, le=100_000)
    """Workloads of a generation, in a random order of all, then another; all if there are no more."""
    tiny: int = Field(default=0, ge=0, le=100_000)
    """Plays so many tiny layers on the stripped machine of tiny.py in place of a suite, and chooses the best policy on
    as many others; ``env.suite`` and ``validation`` then do not matter."""
    threads: int = Field(default=2, ge=1, le=256)
    """Workloads played at a time."""

    @field_validator("shapes", "gated", "gates")
    @classmethod
    def _check_names(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = {"shapes": SHAPES, "gated": GATED, "gates": GATES}[str(info.field_name)]
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{unknown} cannot be {info.field_name}; choose from {[*known]}")
        if len({*names}) < len(names):
            raise ValueError(f"{[*names]} names one twice")
        return names


class PlanningSpec(Spec):
    """Hyper-parameters of learning which plan a layer wants; see planning.py."""

    width: int = Field(default=32, ge=1, le=4096)
    """Width of the network's layers."""
    members: int = Field(default=4, ge=1, le=64)
    """Fits whose mean is the policy, as one network that is so many times as wide."""
    steps: int = Field(default=800, ge=1, le=1_000_000)
    """Gradient steps of a fit."""
    batch: int = Field(default=96, ge=1, le=100_000)
    """Layers that are played between fits, at most one of each entry of the suite."""
    best: int = Field(default=10, ge=2, le=4096)
    """Plans that are played on a layer, after the first batch, of those that the network scores highest."""
    others: int = Field(default=4, ge=0, le=4096)
    """Plans that are played on it besides, at random."""
    scales: tuple[float, ...] = (0.5, 1.0, 1.0, 2.0)
    """What the tokens of an entry are multiplied with, one of them at random."""
    mixed: float = Field(default=0.5, ge=0, le=1)
    """Part of the layers that are moved to the machine of another entry, where that can run them."""
    most: int = Field(default=1024, ge=1, le=1_000_000)
    """Tokens of a GPU beyond which they are not multiplied."""
    threads: int = Field(default=2, ge=1, le=256)
    """Layers played at a time."""


class ImitationSpec(Spec):
    """Hyper-parameters of the warm start at look-ahead's choices."""

    layers: int = Field(default=32, ge=1, le=100_000)
    """Layers that look-ahead plays, drawn as training draws them."""
    rollouts: int = Field(default=200, ge=1, le=1_000_000)
    """Simulations that look-ahead may spend on each."""
    epochs: int = Field(default=8, ge=1, le=1000)
    """Passes over all their decisions."""
    batch_size: int = Field(default=256, ge=1)
    """Decisions in one gradient step."""
    learning_rate: float = Field(default=2e-3, gt=0, le=1)
    """Step size of Adam, one of its own; reinforcement learning starts another."""

    def teacher(self, env: EnvSpec) -> LookAhead:
        """Returns look-ahead with the environment's base schedule, which plays on with its rule, and exposed decisions.

        Raises:
            ConfigError: Look-ahead does not know an exposed kind, or its rule would not see what decisions show.
        """
        if unknown := [kind for kind in env.exposed if kind not in KINDS]:
            raise ConfigError(
                f"imitation: env.exposed={list(env.exposed)} must leave out {unknown}: look-ahead is of {list(KINDS)}"
            )
        schedule = load_schedule(env.schedule)
        for name in ("hold", "partial_tiles") if "gemm" in env.exposed else ():
            shown, own = getattr(env, name), getattr(schedule, name)
            if shown != own:
                raise ConfigError(
                    f"imitation: env.{name}={shown} must be {own}, which look-ahead's rule '{schedule.name}' has"
                )
        return LookAhead(schedule, self.rollouts, kinds=env.exposed)


class TrainSpec(Spec):
    """A training run."""

    name: RunName = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run, the first part of its folder's."""
    env: EnvSpec = EnvSpec()
    """What is trained on: scenario, base schedule and exposed decisions."""
    total_decisions: int = Field(default=1_000_000, ge=1, le=10**12)
    """Training ends at the first update that reaches so many steps of the environments: decisions that are asked, so
    neither those with one legal answer nor those of the schedule's own rule."""
    num_envs: int = Field(default=16, ge=1, le=65536)
    """Environment copies."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seeds networks, choices and workloads."""
    torch_threads: int = Field(default=1, ge=1, le=256)
    """Threads that play copies and work on pieces of a batch, under MaskablePPO; what is learned is the same for any
    number, as each operation of the networks runs on one."""
    ppo: PpoSpec = PpoSpec()
    """Hyper-parameters of MaskablePPO; a block of RL Zoo can stand here, whose ``n_envs``, ``n_timesteps`` and
    ``policy_kwargs`` then take the place of ``num_envs``, ``total_decisions`` and widths of ``policy``."""
    imitation: ImitationSpec | None = None
    """Has MaskablePPO begin at what look-ahead over the base schedule chooses, instead of at a fresh network."""
    evolution: EvolutionSpec | None = None
    """Trains by evolution instead, with these hyper-parameters; ``num_envs``, ``ppo``, ``policy`` and ``baseline`` then
    do not matter."""
    planning: PlanningSpec | None = None
    """Learns which plan a layer wants instead, with these hyper-parameters, and nothing else; ``num_envs``, ``ppo``,
    ``policy`` and ``baseline`` then do not matter."""
    opening: str = ""
    """Run folder whose best policy takes what evolution leaves alone: decisions before a layer, ``plan`` among them."""
    policy: PolicySpec = PolicySpec()
    """Size of the networks."""
    validation: str | None = None
    """Suite that chooses the best policy; none means workloads like those of training that are not among them: of a
    trace its validation split, of a generator other seeds."""
    eval_every_decisions: int = Field(default=100_000, ge=1)
    """Decisions between validations; the last policy is always validated."""
    checkpoint_every_decisions: int = Field(default=200_000, ge=1)
    """Decisions between checkpoints; environments start fresh episodes there, so that resuming changes nothing."""
    checkpoint_minutes: float = Field(default=5.0, ge=0, le=1e6, allow_inf_nan=False)
    """Most minutes between checkpoints: another is made at the next update, which changes nothing that is learned."""
    reference: str = "dysharp"
    """Schedule that makespans are compared with; it is simulated once on every workload met in training."""
    opponents: tuple[str, ...] = ("dysharp", "mega-moe", "deepep")
    """Schedules that TensorBoard draws as lines beside the policy, with ``reference`` and ``env.schedule``; each is
    simulated once on the validation workloads."""
    pictures: bool = True
    """Whether every validation draws the first workload as the policy schedules it; a fifth of a second for 8 GPUs."""
    baseline: bool = True
    """Whether rewards are relative to the reference on the same workload; see ``ScheduleVecEnv``."""

    @model_validator(mode="before")
    @classmethod
    def _read_zoo(cls, data: Any) -> Any:
        return translate_run(data) if isinstance(data, dict) else data

    @property
    def section(self) -> Literal["ppo", "evolution", "planning"]:
        """The section whose hyper-parameters it trains with."""
        if self.planning is not None:
            return "planning"
        return "ppo" if self.evolution is None else "evolution"

    @property
    def trainer(self) -> str:
        """How it trains: PPO, evolution or planning."""
        return "PPO" if self.section == "ppo" else self.section

    @model_validator(mode="after")
    def _check_evolvable(self) -> TrainSpec:
        if self.evolution is None:
            return self
        if self.evolution.tiny and "split" in self.env.exposed:
            raise ValueError(f"env.exposed={list(self.env.exposed)} must leave out split: tiny GPUs have one SM")
        self._refuse_drawn_faults("evolution")
        if not self.evolution.tiny and self.env.suite is None:
            raise ValueError("evolution plays a suite: env.suite=None must be the name of one")
        return self

    @model_validator(mode="after")
    def _check_plannable(self) -> TrainSpec:
        if self.planning is None:
            return self
        if self.evolution is not None or self.imitation is not None:
            raise ValueError("planning is a way to train of its own: leave out evolution and imitation")
        self._refuse_drawn_faults("planning")
        if self.env.exposed != ("plan",) or self.env.suite is None:
            raise ValueError(f"planning is of plans, on a suite: env.exposed={list(self.env.exposed)} must be [plan]")
        return self

    def _refuse_drawn_faults(self, trainer: str) -> None:
        if self.env.drawn_faults:
            given = f"env.drawn_faults={list(self.env.drawn_faults)}"
            raise ValueError(f"{given} has no effect with {trainer}: give entries of env.suite faults of their own")

    @model_validator(mode="after")
    def _check_opening(self) -> TrainSpec:
        before = [kind for kind in self.env.exposed if kind in OPENING_KINDS]
        if self.opening and (self.evolution is None or not before):
            raise ValueError(f"opening='{self.opening}' is for evolution with plan or replicate in env.exposed")
        if self.evolution is not None and before and not self.opening:
            raise ValueError(f"evolution leaves {before} alone: opening must name the run that decides on them")
        return self

    @model_validator(mode="after")
    def _check_imitable(self) -> TrainSpec:
        if self.imitation is None:
            return self
        if self.evolution is not None:
            raise ValueError("imitation is a start for MaskablePPO, and evolution has its own: leave out one of them")
        self.imitation.teacher(self.env)
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


# Every version has written these; without them a file is not what a run was made with.
_ALWAYS = ("name", "env", "seed")


def read_spec(folder: RunFolder) -> TrainSpec:
    """Returns what a run is made with; settings that are younger than the run have their defaults.

    Raises:
        ConfigError: Its ``config.yaml`` is damaged, or asks for what there is no more.
    """
    return read_settings(folder.path)


def read_settings(folder: Path) -> TrainSpec:
    """Returns what ``config.yaml`` of a run, or of a checkpoint, says; see ``read_spec``."""
    source = f"{folder}/config.yaml"
    data = without_gone(read_yaml(Path(source)), source)
    if missing := [key for key in _ALWAYS if key not in data]:
        raise ConfigError(f"{source}: key '{missing[0]}' is missing")
    return parse_spec(TrainSpec, data, source=source)


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
