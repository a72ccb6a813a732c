"""How good a policy is on the workloads that choose the best one of a run, beside schedules that play them too."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Exposure, LayerRun, Problem, ScheduleSpec, load_schedule
from dysharp_env.simulator.hardware import PS_PER_US
from dysharp_env.workers import Workers
from dysharp_env.workload.suite import SuiteSpec

from ..exact.tiny import VALIDATION_SEED, tiny_layers
from ..opponents.rollouts import makespans_ps, play_networks, size_of
from ..policies.candidate_policy import CandidatePolicy
from .held_out import validation_suite
from .spec import TrainSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EVALUATION_COLUMNS = ("decisions", "workload", "makespan_us", "lower_bound_us", "ratio_to_bound", "ratio_to_reference")
_PICTURE_PX = 1200  # wide, which the legend needs


def draw_problems(spec: TrainSpec, suite: SuiteSpec | None, seed: int) -> Sequence[Problem]:
    """Returns a suite's problems, or the tiny ones from a seed on that a run plays in their place.

    Raises:
        ConfigError: An entry of the suite is wrong.
    """
    if spec.evolution is not None and spec.evolution.tiny:
        return tiny_layers(seed, spec.evolution.tiny)
    assert suite is not None, "the spec has been checked"
    return Problem.of_suite(suite.draw())


@dataclass(frozen=True)
class Validation:
    """What one validation found.

    Attributes:
        rows: A line of ``evaluations.csv`` for each workload, without the number of decisions.
        bounds: (workload,) makespan over lower bound.
        references: (workload,) makespan over the reference's.
    """

    rows: list[tuple[object, ...]]
    bounds: np.ndarray
    references: np.ndarray

    @property
    def to_bound(self) -> float:
        """Mean makespan over lower bound."""
        return float(self.bounds.mean())

    @property
    def to_reference(self) -> float:
        """Geometric mean of makespan over the reference's."""
        return float(np.exp(np.log(self.references).mean()))

    def curves(self) -> dict[str, float]:
        """Returns what TensorBoard shows of it."""
        return {
            "eval/ratio_to_bound": self.to_bound,
            "eval/ratio_to_reference": self.to_reference,
            "eval/worst_ratio_to_reference": float(self.references.max()),
        }


class Validator:
    """Plays the validation workloads with the policy's most likely choices.

    Attributes:
        opponents: Mean makespan over lower bound of schedules, by name: the reference, the one beneath, and those that
            the spec names, without those that some machine cannot run.
    """

    def __init__(self, spec: TrainSpec, workers: Workers) -> None:
        """Draws the workloads and has the reference simulated on them.

        Raises:
            ConfigError: The suite or a schedule is unknown, or the reference does not fit.
        """
        self._problems = draw_problems(spec, validation_suite(spec), VALIDATION_SEED)
        self._schedule, self._exposure = load_schedule(spec.env.schedule), spec.env.exposure()
        self._reference, self._workers = load_schedule(spec.reference), workers
        self._bounds_ps = np.array([each.bound.total_ps for each in self._problems])
        self._reference_ps = self._played_ps(self._reference)
        self._reference_run: LayerRun | None = None  # of the first workload, for pictures
        self.opponents = {spec.reference: float((self._reference_ps / self._bounds_ps).mean())}
        for name in (spec.env.schedule, *spec.opponents):
            opponent = load_schedule(name)
            if opponent.name not in self.opponents and name not in self.opponents:
                with suppress(ConfigError):
                    self.opponents[opponent.name] = float((self._played_ps(opponent) / self._bounds_ps).mean())

    def _played_ps(self, schedule: ScheduleSpec) -> np.ndarray:
        """Returns a schedule's (workload,) makespans."""
        return makespans_ps([schedule], self._problems, self._workers)[0]

    def __call__(self, policy: CandidatePolicy) -> Validation:
        """Returns what a policy does on all workloads."""
        play = partial(play_networks, self._schedule, [self._exposed(policy)])
        ends = self._workers.map(play, self._problems, size=size_of, constants=self._problems)
        mine_ps = np.array([makespans[0] for makespans, _ in ends])
        to_bound, to_reference = mine_ps / self._bounds_ps, mine_ps / self._reference_ps
        names = [each.name for each in self._problems]
        columns = (mine_ps / PS_PER_US, self._bounds_ps / PS_PER_US, to_bound, to_reference)
        rows = [*zip(names, *(column.tolist() for column in columns), strict=True)]
        return Validation(rows, to_bound, to_reference)

    def _exposed(self, policy: CandidatePolicy) -> Exposure:
        return replace(self._exposure, network=policy.scoring_network(), opening=policy.opening_network())

    def picture(self, policy: CandidatePolicy, decisions: int) -> Figure:
        """Returns the first workload as the policy schedules it, above the reference."""
        from dysharp_env.report.gantt import draw

        problem = self._problems[0]
        if self._reference_run is None:
            self._reference_run = problem.run(self._reference, logging=True)
        mine = problem.start(self._schedule, self._exposed(policy), logging=True)
        mine.engine.run()
        panels = (f"policy after {decisions:,} decisions", mine), (self._reference.name, self._reference_run)
        return draw(*panels, width=_PICTURE_PX)
