"""What a policy saw and chose on a suite: what rules are distilled from, and ablations take means of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.schedules import Problem

from ..opponents.players import Learned
from ..policies.steering import STEERED


@dataclass(frozen=True)
class Decisions:
    """Every decision of a policy on some problems.

    Attributes:
        contexts: (decision, context) float32.
        chosen: (decision, wish) float32: the features of ``STEERED`` of the row taken; 0 where none is a split.
        weights: (decision,) such that every workload that asks counts the same and all sum up to 1.
        distances: (wish,) what a distance in each of them is multiplied with.
    """

    contexts: np.ndarray
    chosen: np.ndarray
    weights: np.ndarray
    distances: np.ndarray

    def of_kind(self, kind: int) -> Decisions:
        """Returns the decisions of one kind, every workload counting as much as it does here."""
        mine = self.contexts[:, kind] > 0
        weights = self.weights[mine]
        return replace(self, contexts=self.contexts[mine], chosen=self.chosen[mine], weights=weights / weights.sum())

    @property
    def mean_context(self) -> np.ndarray:
        """The (context,) mean of contexts, every workload counting the same."""
        return self.weights @ self.contexts


def record_decisions(policy: Learned, problems: Sequence[Problem]) -> Decisions:
    """Returns the contexts that a policy decides in on each problem, and the features of the rows that it takes.

    Raises:
        ConfigError: The schedule beneath does not fit a system, or the policy is asked nothing.
    """
    steered = [*STEERED]
    contexts: list[np.ndarray] = []
    chosen: list[np.ndarray] = []
    weights: list[float] = []
    for place, problem in enumerate(problems):
        before = len(contexts)
        for decision, row in policy.replay(problem, place):
            contexts.append(decision.context.copy())
            chosen.append(decision.features[row, steered])
        asked = len(contexts) - before
        weights += [1 / max(asked, 1)] * asked
    if not contexts:
        raise ConfigError(f"over '{policy.base.name}' the policy is asked nothing in these {len(problems)} layers")
    each = np.array(weights)
    return Decisions(np.array(contexts), np.array(chosen), each / each.sum(), np.array([*STEERED.values()]))
