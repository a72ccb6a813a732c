"""What a policy saw and chose on a suite: what rules are distilled from, and ablations take means of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agents.evaluation.recording import best_row
from agents.opponents.contender import Learned
from agents.policies.steering import STEERED
from dysharp_env.schedules import Starter, load_schedule
from dysharp_env.workload.suite import SuiteWorkload


@dataclass(frozen=True)
class Decisions:
    """Every decision of some plays.

    Attributes:
        contexts: (decision, context) float32.
        chosen: (decision, wish) float32: the features of ``STEERED`` of the row taken; 0 where none is a split.
        weights: (decision,) such that every workload counts the same and all sum up to 1.
        distances: (wish,) what a distance in each of them is multiplied with.
    """

    contexts: np.ndarray
    chosen: np.ndarray
    weights: np.ndarray
    distances: np.ndarray

    def of_kind(self, kind: int) -> Decisions:
        """Returns those of a kind of decision, every workload counting as much as it does here."""
        mine = self.contexts[:, kind] > 0
        weights = self.weights[mine]
        return replace(self, contexts=self.contexts[mine], chosen=self.chosen[mine], weights=weights / weights.sum())

    @property
    def mean_context(self) -> np.ndarray:
        """The (context,) mean, every workload counting the same."""
        return self.weights @ self.contexts


def record_decisions(policy: Learned, workloads: Sequence[SuiteWorkload]) -> Decisions:
    """Returns what a policy sees and takes on each workload.

    Raises:
        ConfigError: The schedule beneath does not fit a scenario.
    """
    schedule, steered = load_schedule(policy.env.schedule), [*STEERED]
    contexts: list[np.ndarray] = []
    chosen: list[np.ndarray] = []
    weights: list[float] = []
    for item in workloads:
        system, layer, scale = item.scenario.system, item.scenario.layer, item.entry.compute_scale
        starter = Starter(system, layer, schedule, exposure=policy.env.exposure(), compute_scale=scale)
        engine = starter.start(item.workload).engine
        before = len(contexts)
        while (decision := engine.advance()) is not None:
            row = best_row(policy.network, decision)
            contexts.append(decision.context.copy())
            chosen.append(decision.features[row, steered])
            engine.decide(row)
        asked = len(contexts) - before
        weights += [1 / (asked * len(workloads))] * asked
    return Decisions(np.array(contexts), np.array(chosen), np.array(weights), np.array([*STEERED.values()]))
