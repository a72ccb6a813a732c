"""How good a policy is on the workloads that choose the best one of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from dysharp_env.schedules import Problem, load_schedule
from dysharp_env.simulator.costs import PS_PER_US
from dysharp_env.workers import Workers
from dysharp_env.workload.suite import SuiteSpec

from ..exact.tiny import VALIDATION_SEED, tiny_layers
from ..opponents.rollouts import makespans_ps, play_networks, size_of
from ..policies.candidate_policy import CandidatePolicy
from .held_out import validation_suite
from .run_folder import RunFolder
from .spec import TrainSpec

EVALUATION_COLUMNS = ("decisions", "workload", "makespan_us", "lower_bound_us", "ratio_to_bound", "ratio_to_reference")


def draw_problems(spec: TrainSpec, suite: SuiteSpec | None, seed: int) -> Sequence[Problem]:
    """Returns a suite's problems, or the tiny ones from a seed on that a run plays in their place.

    Raises:
        ConfigError: An entry of the suite is wrong.
    """
    if spec.evolution is not None and spec.evolution.tiny:
        return tiny_layers(seed, spec.evolution.tiny)
    assert suite is not None, "the spec has been checked"
    return Problem.of_suite(suite.draw())


class Validator:
    """Plays the validation workloads with the policy's most likely choices."""

    def __init__(self, spec: TrainSpec, workers: Workers) -> None:
        """Draws the workloads and has the reference simulated on them.

        Raises:
            ConfigError: The suite or the reference is unknown or does not fit.
        """
        self._problems = draw_problems(spec, validation_suite(spec), VALIDATION_SEED)
        self._schedule, self._exposure = load_schedule(spec.env.schedule), spec.env.exposure()
        self._reference_ps = makespans_ps([load_schedule(spec.reference)], self._problems, workers)[0]
        self._workers = workers

    def __call__(self, policy: CandidatePolicy, decisions: int, folder: RunFolder) -> tuple[float, float]:
        """Returns mean makespan over lower bound and its geometric mean over the reference's.

        A line for each workload is added to the run's ``evaluations.csv``.
        """
        exposure = replace(self._exposure, network=policy.scoring_network(), opening=policy.opening_network())
        play = partial(play_networks, self._schedule, [exposure])
        ends = self._workers.map(play, self._problems, size=size_of, constants=self._problems)
        mine_ps = np.array([makespans[0] for makespans, _ in ends])
        bounds_ps = np.array([each.bound.total_ps for each in self._problems])
        to_bound, to_reference = mine_ps / bounds_ps, mine_ps / self._reference_ps
        names = [each.name for each in self._problems]
        columns = (mine_ps / PS_PER_US, bounds_ps / PS_PER_US, to_bound, to_reference)
        rows = zip([decisions] * len(names), names, *(column.tolist() for column in columns), strict=True)
        folder.append_rows("evaluations.csv", EVALUATION_COLUMNS, list(rows))
        return float(to_bound.mean()), float(np.exp(np.log(to_reference).mean()))
