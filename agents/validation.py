"""How good a policy is on the suite that chooses the best one of a run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agents.play import play_policy, play_schedule, played
from agents.policy import CandidatePolicy
from agents.run_folder import RunFolder
from agents.train_spec import TrainSpec
from dysharp_env.schedules import load_schedule
from dysharp_env.workload.suite import load_suite

EVALUATION_COLUMNS = ("decisions", "workload", "makespan_us", "lower_bound_us", "ratio_to_bound", "ratio_to_reference")


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
        folder.append_rows("evaluations.csv", EVALUATION_COLUMNS, rows)
        return Validation(float(np.mean([item.ratio for item in mine])), float(np.exp(np.mean(np.log(to_reference)))))
