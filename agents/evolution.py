"""Evolution of a policy of few weights by CMA-ES: every generation plays a batch of workloads under each set of them.

What is made small is the mean log of makespan over the reference's on the same workload. All episodes run inside the
engine; layers share nothing, so threads change no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import cma
import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from agents.genome import GATED, GATES, Genome
from agents.rollouts import Playable, makespans_ps, play_networks
from dysharp_env.config import Spec
from dysharp_env.schedules import Exposure, ScheduleSpec
from dysharp_env.simulator.network import Network


class EvolutionSpec(Spec):
    """Hyper-parameters of the evolution of a policy of few weights; see genome.py."""

    start: Literal["constant", "hand_written"] = "constant"
    """The splits it begins at: the schedule's own always, or the policy of that name in steering.py. Other kinds begin
    at the schedule's own rules."""
    gated: tuple[str, ...] = ("is_gemm2", "weights_in_l2", "size", "is_partial", "waiting", "is_hold")
    """Features whose weights depend on ``gates``, where other kinds than splits are decided on."""
    gates: tuple[str, ...] = (
        *("link_share", "gemm_share", "hbm_share", "tokens_per_expert", "l2_room"),
        *("received", "gemm_done", "all_sent", "free_sms", "hbm_backlog"),
    )
    """Context values that those weights are linear in: what shapes the layer, and how far a GPU is."""
    population: int = Field(default=16, ge=4, le=1024)
    """Sets of weights in a generation."""
    sigma: float = Field(default=0.15, gt=0, le=10)
    """First standard deviation of weights."""
    batch: int = Field(default=12, ge=1)
    """Workloads that a generation is compared on, in a random order of all, then another; all if there are no more."""
    tiny: int = Field(default=0, ge=0)
    """Plays so many tiny layers on the stripped machine of tiny.py in place of a suite, and chooses the best policy on
    as many others; ``env.suite`` and ``validation`` then do not matter."""
    threads: int = Field(default=2, ge=1, le=256)
    """Workloads played at a time."""

    @field_validator("gated", "gates")
    @classmethod
    def _check_names(cls, names: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        known = GATED if info.field_name == "gated" else GATES
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"{unknown} cannot be {info.field_name}; choose from {[*known]}")
        if len({*names}) < len(names):
            raise ValueError(f"{[*names]} names one twice")
        return names


@dataclass(frozen=True)
class Generation:
    """What one generation came to.

    Attributes:
        ratio: Geometric mean of makespan over the reference's, over all weights and workloads tried.
        worst: Largest ratio on a workload, as the geometric mean of the weights tried.
        decisions: Decisions that the policies took.
    """

    ratio: float
    worst: float
    decisions: int


class Evolution:
    """A strategy and what it plays; ``restart`` makes what follows depend on mean, spread and seed alone.

    Attributes:
        mean: (weight,) float64, the middle of the distribution: the policy.
        spread: (weight,) float64, the standard deviation of each weight.
    """

    def __init__(
        self,
        spec: EvolutionSpec,
        base: ScheduleSpec,
        exposure: Exposure,
        workloads: Sequence[Playable],
        reference: ScheduleSpec,
    ):
        """Plays the reference and takes a place to begin at.

        Raises:
            ConfigError: A schedule does not fit a system.
        """
        self._spec, self._base, self._exposure, self._workloads = spec, base, exposure, workloads
        self._reference_ps = makespans_ps([reference], workloads)[0]
        first = workloads[0]
        sizes = first.system.gpu.num_sms, first.workload.layer.tile_tokens
        own = sizes if spec.start == "constant" else None
        self._genome = Genome(base, exposure, spec.gated, spec.gates, own_split=own)
        self.mean = self._genome.start
        self.spread = np.full(len(self.mean), spec.sigma)

    def restart(self, seed: int) -> None:
        """Begins a new strategy at the present mean and spread; what it has learned of correlations is dropped."""
        self._rng = np.random.default_rng(seed)
        self._order = np.empty(0, np.int64)
        normal = np.random.default_rng([seed, 1])
        options = {
            "popsize": self._spec.population,
            "CMA_stds": self.spread,
            "randn": lambda *shape: normal.standard_normal(shape),  # its own numbers would come from the global stream
            "seed": np.nan,
            "verbose": -9,
        }
        self._strategy = cma.CMAEvolutionStrategy(self.mean, 1.0, options)

    def _draw(self) -> np.ndarray:
        """Returns the (workload,) next ones of a random order of all; a new one begins where too few are left."""
        if len(self._order) < self._spec.batch:
            self._order = self._rng.permutation(len(self._workloads))
        drawn, self._order = np.sort(self._order[: self._spec.batch]), self._order[self._spec.batch :]
        return drawn

    def network(self) -> Network:
        """Returns the network of the mean."""
        return self._genome.network(self.mean)

    def step(self) -> Generation:
        """Plays a generation and moves the distribution."""
        points = self._strategy.ask()
        networks = [self._genome.network(point) for point in points]
        drawn = self._draw()
        exposures = [replace(self._exposure, network=network) for network in networks]
        with ThreadPoolExecutor(self._spec.threads) as pool:
            ends = pool.map(lambda i: play_networks(self._base, exposures, self._workloads[i]), drawn)
        makespans, decisions = (np.array(numbers) for numbers in zip(*ends, strict=True))
        logs = np.log(makespans / self._reference_ps[drawn, None])  # (workload, point)
        self._strategy.tell(points, logs.mean(axis=0).tolist())
        self.mean = self._strategy.mean.copy()
        self.spread = self._strategy.sigma * self._strategy.sigma_vec.scaling * np.sqrt(self._strategy.sm.variances)
        worst = float(np.exp(logs.mean(axis=1).max()))
        return Generation(float(np.exp(logs.mean())), worst, int(decisions.sum()))
