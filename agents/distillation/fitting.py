"""Fits small rules to a policy: wishes for splits to what it chose, weights of rows to what it weighs them with.

Both are linear in a few context values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from agents.evaluation.contexts import Decisions
from agents.policies.linear import ROW_FEATURES
from agents.policies.rule import WISHES, Linear
from agents.policies.steering import INPUTS
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES

# Ridge of the least squares, relative to the variance of a context value between 0 and 1: columns that hardly vary
# would get weights far beyond what the training suite can tell.
_RIDGE = 1e-6
_CANDIDATES = INPUTS[:-1]  # the last is the constant
MOST_VALUES = len(_CANDIDATES)


def choose_names(decisions: Decisions, count: int) -> list[str]:
    """Returns context values in the order in which they explain what was chosen: each adds most to those before it."""
    names: list[str] = []
    while len(names) < min(count, len(_CANDIDATES)):
        left = [name for name in _CANDIDATES if name not in names]
        names.append(min(left, key=lambda name: _squared_error(decisions, [*names, name])))
    return names


def explained(decisions: Decisions, names: Sequence[str]) -> float:
    """Returns the part of the variance of the choices, in squared distance, that a linear rule explains; 1 is all."""
    spread = _squared_error(decisions, [])
    return 1 - _squared_error(decisions, names) / spread if spread > 0 else 1.0


def fit(decisions: Decisions, names: Sequence[str]) -> dict[str, Linear]:
    """Returns for each number of a split the linear function of context values that is nearest to the splits chosen."""
    solution = _solve(decisions, names)
    return {wish: _linear(names, column) for wish, column in zip(WISHES, solution.T, strict=True)}


def row_weights(network: Network, rows: Decisions) -> Decisions:
    """Returns decisions on GEMM rows whose ``chosen`` are the (decision, row feature) weights of a network's rule."""
    weighed = rows.contexts @ network.linear[:, [FEATURES.index(name) for name in ROW_FEATURES]]
    return replace(rows, chosen=weighed, distances=np.ones(len(ROW_FEATURES)))


def fit_rows(rows: Decisions, names: Sequence[str]) -> dict[str, Linear]:
    """Returns the linear functions nearest to the weights of ``row_weights``; features that weigh 0 are left out."""
    solution = _solve(rows, names)
    weights = {feature: _linear(names, column) for feature, column in zip(ROW_FEATURES, solution.T, strict=True)}
    return {feature: weight for feature, weight in weights.items() if weight.constant or any(weight.weights.values())}


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
