"""Evolution of a policy of few weights: every generation nudges them and plays a batch of workloads either way.

What is made small is the mean log of makespan over the reference's on the same workload. On each workload pairs of
opposite random nudges say in which direction makespans fall (antithetic evolution strategies, Salimans et al., arXiv
1703.03864). A weight that depends on what shapes a layer is nudged as one number on each layer, and how each shape's
share in it is to change follows from the layers' shapes by the chain rule: so what is estimated from makespans stays
small however many shapes there are. Adam makes the steps; the policy is an average of where they have been.

All episodes run inside the engine; layers share nothing, so threads change no result.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from agents.opponents.rollouts import Playable, makespans_ps, play_networks
from agents.training.genome import GATED, GATES, SHAPES, Genome, Scale
from dysharp_env.config import Spec
from dysharp_env.schedules import Exposure, ScheduleSpec
from dysharp_env.simulator.layout import CONTEXT
from dysharp_env.simulator.network import Network

_MEAN_KEPT, _SQUARE_KEPT = 0.8, 0.97  # of Adam's averages of gradients and of their squares
_LEAST = 1e-4  # added to the root of the latter, logs of makespan per weight
_LAST_RATE = 0.1  # of the learning rate at the end of a cycle


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
    batch: int = Field(default=16, ge=1)
    """Workloads of a generation, in a random order of all, then another; all if there are no more."""
    tiny: int = Field(default=0, ge=0)
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


@dataclass(frozen=True)
class Generation:
    """What one generation came to.

    Attributes:
        ratio: Geometric mean of makespan over the reference's, over all nudges and workloads.
        worst: Largest ratio on a workload, as the geometric mean over its nudges.
        decisions: Decisions that the policies took.
    """

    ratio: float
    worst: float
    decisions: int


class Evolution:
    """Weights on their way, and what they play; what follows ``restart`` depends on them and the seed alone.

    Attributes:
        weights: (weight, 1 + shape) float64, where the steps are.
        average: The same, the policy.
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
        contexts = np.array([self._first_context(workload) for workload in workloads])
        scale = Scale.of(spec.shapes, contexts)
        self._shapes = scale.rows(contexts)  # (workload, 1 + shape)
        own = sizes if spec.start == "constant" else None
        self._genome = Genome(base, exposure, scale, spec.gated, spec.gates, own_split=own)
        self.weights, self.average = self._genome.start.copy(), self._genome.start.copy()

    def restart(self, seed: int) -> None:
        """Goes on at the present weights; the averages of gradients begin anew."""
        self._rng = np.random.default_rng(seed)
        self._order = np.empty(0, np.int64)
        self._steps, self._mean, self._square = 0, np.zeros_like(self.weights), np.zeros_like(self.weights)

    def network(self) -> Network:
        """Returns the policy."""
        return self._genome.network(self.average)

    def step(self, progress: float) -> Generation:
        """Plays a generation and moves the weights; ``progress`` is which part of the run is over."""
        spec, drawn = self._spec, self._draw()
        nudges = self._rng.normal(0, spec.sigma, (len(drawn), spec.pairs, len(self.weights)))
        with ThreadPoolExecutor(spec.threads) as pool:
            ends = pool.map(self._play, drawn, nudges)
        makespans, decisions = (np.array(numbers) for numbers in zip(*ends, strict=True))
        logs = np.log(makespans / self._reference_ps[drawn, None])  # (workload, nudge): those one way, those the other
        gained = np.clip(logs[:, : spec.pairs] - logs[:, spec.pairs :], -spec.clip, spec.clip) / 2
        slopes = np.einsum("wp,wpd->wd", gained, nudges) / (spec.pairs * spec.sigma**2)  # (workload, weight)
        gradient = slopes.T @ self._shapes[drawn] / len(drawn)
        gradient[~self._genome.depends, 1:] = 0.0
        self._move(gradient, spec.learning_rate * (1 - (1 - _LAST_RATE) * (progress * spec.cycles % 1.0)))
        worst = float(np.exp(logs.mean(axis=1).max()))
        return Generation(float(np.exp(logs.mean())), worst, int(decisions.sum()))

    def _play(self, workload: int, nudges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns makespans and decisions under (pair, weight) nudges, then under the opposite ones."""
        networks = [self._genome.network(self.weights, nudge) for nudge in (*nudges, *-nudges)]
        exposures = [replace(self._exposure, network=network) for network in networks]
        return play_networks(self._base, exposures, self._workloads[workload])

    def _move(self, gradient: np.ndarray, rate: float) -> None:
        """Makes a step of Adam."""
        self._steps += 1
        self._mean = _MEAN_KEPT * self._mean + (1 - _MEAN_KEPT) * gradient
        self._square = _SQUARE_KEPT * self._square + (1 - _SQUARE_KEPT) * gradient**2
        mean = self._mean / (1 - _MEAN_KEPT**self._steps)
        root = np.sqrt(self._square / (1 - _SQUARE_KEPT**self._steps))
        self.weights = self.weights - rate * mean / (root + _LEAST)
        self.average = self._spec.average * self.average + (1 - self._spec.average) * self.weights

    def _draw(self) -> np.ndarray:
        """Returns the (workload,) next ones of a random order of all; a new one begins where too few are left."""
        if len(self._order) < self._spec.batch:
            self._order = self._rng.permutation(len(self._workloads))
        drawn, self._order = np.sort(self._order[: self._spec.batch]), self._order[self._spec.batch :]
        return drawn

    def _first_context(self, workload: Playable) -> np.ndarray:
        """Returns the (context,) of a layer's first decision; zeros if there is none."""
        decision = workload.engine(self._base, self._exposure).advance()
        return np.zeros(len(CONTEXT)) if decision is None else decision.context.astype(float)
