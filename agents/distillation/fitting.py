"""Fits small rules to a policy: wishes for splits to what it chose, weights of candidates to what it weighs them with.

Both are linear in a few context values, those that explain most. What is decided before a layer is in opening.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, FEATURES

from ..evaluation.contexts import Decisions
from ..policies.linear import SHOWN_OF_KIND
from ..policies.rule import WISHES, Linear
from ..policies.steering import INPUTS, STEERED

# Ridge of the least squares, relative to the variance of a context value between 0 and 1: columns that hardly vary
# would get weights far beyond what the training suite can tell.
_RIDGE = 1e-6
_CANDIDATES = INPUTS[:-1]  # the last is the constant
MOST_VALUES = len(_CANDIDATES)


def choose_names(decisions: Decisions, count: int) -> list[str]:
    """Returns context values in the order in which they explain what was chosen: each adds most to those before it."""
    return by_error(_CANDIDATES, count, lambda names: _squared_error(decisions, names))


def by_error(known: Sequence[str], count: int, error: Callable[[Sequence[str]], float]) -> list[str]:
    """Returns at most so many names, one after the other those with which an error is least beside those before."""
    names: list[str] = []
    while len(names) < min(count, len(known)):
        left = [name for name in known if name not in names]
        names.append(min(left, key=lambda name: error([*names, name])))
    return names


def explained(decisions: Decisions, names: Sequence[str]) -> float:
    """Returns the part of the variance of the choices, in squared distance, that a linear rule explains; 1 is all."""
    spread = _squared_error(decisions, [])
    return 1 - _squared_error(decisions, names) / spread if spread > 0 else 1.0


def fit(decisions: Decisions, names: Sequence[str]) -> dict[str, Linear]:
    """Returns for each number of a split the linear function of context values that is nearest to the splits chosen."""
    solution = _solve(decisions, names)
    return {wish: _linear(names, column) for wish, column in zip(WISHES, solution.T, strict=True)}


def _linear(names: Sequence[str], column: np.ndarray) -> Linear:
    rounded = [round(float(weight), 6) for weight in column]
    return Linear(constant=rounded[-1], weights=dict(zip(names, rounded[:-1], strict=True)))


def _solve(decisions: Decisions, names: Sequence[str]) -> np.ndarray:
    """Returns the (name + 1, column) weights of least squares; the constants come last."""
    inputs, weights = _inputs(decisions, names), decisions.weights[:, None]
    ridge = _RIDGE * np.eye(len(names) + 1)
    ridge[-1, -1] = 0.0
    return np.linalg.solve(inputs.T @ (weights * inputs) + ridge, inputs.T @ (weights * decisions.chosen))


def _squared_error(decisions: Decisions, names: Sequence[str]) -> float:
    """Returns the mean squared distance of the choices from the best linear function of these context values."""
    away = decisions.chosen - _inputs(decisions, names) @ _solve(decisions, names)
    return float(decisions.weights @ ((away * decisions.distances) ** 2).sum(axis=1))


def _inputs(decisions: Decisions, names: Sequence[str]) -> np.ndarray:
    columns = decisions.contexts[:, [CONTEXT.index(name) for name in names]].astype(np.float64)
    return np.concatenate([columns, np.ones((len(columns), 1))], axis=1)


def is_linear(network: Network) -> bool:
    """Returns whether a network tells candidates apart by weights that are linear in the context, splits aside."""
    others = [feature for feature in range(len(FEATURES)) if feature not in STEERED]
    return not network.row[others].any()


@dataclass(frozen=True)
class Weighing:
    """What a network weighs candidates with, in kinds of decision that one network answers.

    What a feature's weight depends on is the same in all kinds that show it, and nothing in splits, which have wishes.

    Attributes:
        linear: (context, feature) its weights.
        moments: (context, context) second moments of the contexts in which it decides, by kind.
        fixed: Features whose weights may not depend on the context.
    """

    linear: np.ndarray
    moments: dict[str, np.ndarray]
    fixed: frozenset[str] = frozenset()

    @classmethod
    def of(cls, network: Network, kinds: Sequence[str], decisions: Decisions) -> Weighing:
        """Returns what a network weighs with in some kinds; its decisions are those of all kinds that it answers."""
        moments = {kind: _moments(decisions, DECISION_KINDS.index(kind)) for kind in kinds if kind != "split"}
        fixed = frozenset(SHOWN_OF_KIND["split"]) if "split" in kinds else frozenset()
        return cls(network.linear.astype(np.float64), moments, fixed)

    def choose_names(self, count: int) -> list[str]:
        """Returns context values in the order in which they explain the weights, as for splits."""
        return by_error(_CANDIDATES, count, self._squared_error)

    def fit(self, names: Sequence[str]) -> dict[str, dict[str, Linear]]:
        """Returns the weights nearest to the network's, by kind and feature; features that weigh 0 are left out."""
        fitted = {feature: self._solve(feature, names).round(6) + 0.0 for feature in FEATURES}
        values = [name for name in _CANDIDATES if name in names]
        weights: dict[str, dict[str, Linear]] = {}
        for kind in self.moments:
            weights[kind] = {}
            for feature in SHOWN_OF_KIND[kind]:
                numbers = dict(zip(CONTEXT, fitted[feature].tolist(), strict=True))
                slopes = {name: numbers[name] for name in values if numbers[name]}
                if slopes or numbers[f"is_{kind}"]:
                    weights[kind][feature] = Linear(constant=numbers[f"is_{kind}"], weights=slopes)
        return weights

    def _showing(self, feature: str) -> list[str]:
        return [kind for kind in self.moments if feature in SHOWN_OF_KIND[kind]]

    def _solve(self, feature: str, names: Sequence[str]) -> np.ndarray:
        """Returns (context,) weights of a feature that are nearest to the network's; those left out are 0."""
        found, showing = np.zeros(len(CONTEXT)), self._showing(feature)
        moments = sum((self.moments[kind] for kind in showing), np.zeros((len(CONTEXT), len(CONTEXT))))
        values = () if feature in self.fixed else names
        columns = [CONTEXT.index(name) for name in (*values, *(f"is_{kind}" for kind in showing))]
        ridge = _RIDGE * np.diag([1.0] * len(values) + [0.0] * len(showing))
        weights = self.linear[:, FEATURES.index(feature)]
        if weights.any() and showing:
            found[columns] = np.linalg.solve(moments[np.ix_(columns, columns)] + ridge, moments[columns] @ weights)
        return found

    def _squared_error(self, names: Sequence[str]) -> float:
        """Returns the mean squared distance of the weights from the nearest that depend on these values alone."""
        total = 0.0
        for feature in FEATURES:
            away = self.linear[:, FEATURES.index(feature)] - self._solve(feature, names)
            total += sum(float(away @ self.moments[kind] @ away) for kind in self._showing(feature))
        return total


def _moments(decisions: Decisions, kind: int) -> np.ndarray:
    """Returns the (context, context) mean products of context values in decisions of a kind, or in all if none is."""
    mine = decisions.contexts[:, kind] > 0
    contexts = decisions.contexts[mine if mine.any() else slice(None)].astype(np.float64)
    weights = decisions.weights[mine if mine.any() else slice(None)]
    contexts[:, : len(DECISION_KINDS)] = np.arange(len(DECISION_KINDS)) == kind
    return contexts.T @ (weights[:, None] / weights.sum() * contexts)
