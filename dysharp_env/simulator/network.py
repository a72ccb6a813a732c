"""A small network that scores candidates in the engine, so that a learned policy plays with no Python per decision.

Every candidate's features and the decision's context give an embedding; the mean and maximum of the embeddings tell
each candidate what it competes with; embedding and pool give its score. To the score a rule is added that is linear in
the features, with weights linear in the context, so that a network can refine a rule and say where it holds.
Arithmetic is float32, sums run in the order of the inputs, and products are not fused, so the twin computes the same
bits with numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.layout import CONTEXT, FEATURES, NETWORK_ROWS
from dysharp_env.simulator.views import (
    Root,
    context_numbers,
    feature_table,
    network_numbers,
    rule_numbers,
    scratch_rows,
)

NUM_FEATURES = len(FEATURES)
NUM_CONTEXT = len(CONTEXT)
# Scratch rows behind those of the candidates.
OF_CONTEXT, HIDDEN, MEAN, MOST, OF_POOL = range(NETWORK_ROWS)


@dataclass(frozen=True)
class Network:
    """Weights of a scorer of any width; all are float32 and finite.

    Attributes:
        row: (feature, width) and ``row_bias`` (width,): from a candidate's features.
        context: (context, width): from the context, added to that.
        embed: (width, width) and ``embed_bias`` (width,): from what of the sum is positive to the embedding.
        score_row: (width, width) and ``score_bias`` (width,): from a candidate's embedding.
        score_pool: (2 * width, width): from the mean and maximum of all embeddings, added to that.
        score: (width,): from what of that sum is positive to the score.
        linear: (context, feature): a rule that is added to the score; what it weighs a feature with is linear in the
            context, which begins with a 1 for the kind of decision.
    """

    row: np.ndarray
    row_bias: np.ndarray
    context: np.ndarray
    embed: np.ndarray
    embed_bias: np.ndarray
    score_row: np.ndarray
    score_bias: np.ndarray
    score_pool: np.ndarray
    score: np.ndarray
    linear: np.ndarray

    def __post_init__(self) -> None:
        for (name, shape), array in zip(_shapes(self.width), self, strict=True):
            if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"network: '{name}' must be finite float32 numbers of shape {shape}")

    def __iter__(self) -> Iterator[np.ndarray]:
        return (getattr(self, field.name) for field in fields(self))

    @property
    def width(self) -> int:
        """Width of the embedding and of the scoring layer."""
        return len(self.row_bias)

    @cached_property
    def numbers(self) -> np.ndarray:
        """All weights one after the other, as the engine reads them."""
        return np.concatenate([array.reshape(-1) for array in self])

    def scores(self, features: np.ndarray, context: np.ndarray) -> np.ndarray:
        """Returns (candidate,) float32 scores, slowly: the engine's arithmetic written with numpy.

        Args:
            features: (candidate, feature) float32, the candidates that are shown and no empty rows.
            context: (context,) float32.
        """
        of_context = _product(np.zeros((1, self.width), np.float32), context[None], self.context)
        hidden = np.maximum(_product(self.row_bias + of_context, features, self.row), 0)
        embedded = np.maximum(_product(self.embed_bias, hidden, self.embed), 0)
        total = np.zeros(self.width, np.float32)
        for row in embedded:
            total = total + row
        pool = np.concatenate([total / np.float32(len(embedded)), embedded.max(axis=0)])
        of_pool = _product(self.score_bias, pool[None], self.score_pool)
        hidden = _product(of_pool, embedded, self.score_row)
        scores = _product(0, np.maximum(hidden, 0), self.score[:, None])[:, 0]
        for feature, weight in enumerate(_product(0, context[None], self.linear)[0]):
            scores = scores + features[:, feature] * weight
        return scores


def _shapes(width: int) -> list[tuple[str, tuple[int, ...]]]:
    """Returns names and shapes of a network's weights, in the order in which the engine reads them."""
    square, flat = (width, width), (width,)
    return [
        ("row", (NUM_FEATURES, width)),
        ("row_bias", flat),
        ("context", (NUM_CONTEXT, width)),
        ("embed", square),
        ("embed_bias", flat),
        ("score_row", square),
        ("score_bias", flat),
        ("score_pool", (2 * width, width)),
        ("score", flat),
        ("linear", (NUM_CONTEXT, NUM_FEATURES)),
    ]


def _product(start: np.ndarray | int, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns start + inputs . weights, each product added in the order of the inputs and rounded to float32."""
    total = np.zeros((len(inputs), weights.shape[1]), np.float32) + start
    for i in range(len(weights)):
        total = total + inputs[:, i : i + 1] * weights[i]
    return total


@compiled
def add_product(s: Root, out: np.ndarray, inputs: np.ndarray, first: int) -> None:
    """Adds inputs . weights to ``out``; the weights begin at ``first``, (input, out)."""
    width = len(out)
    for i in range(len(inputs)):
        x = inputs[i]
        if x != 0.0:  # half of what a rectifier lets through is 0, and adding it would change nothing
            weights = network_numbers(s, first + i * width, width)
            for j in range(width):
                out[j] += x * weights[j]


@compiled
def rectify(x: np.ndarray) -> None:
    """Sets what is negative to 0."""
    for j in range(len(x)):
        x[j] = max(x[j], np.float32(0.0))


@compiled
def best_scored(s: Root) -> int:
    """Returns the legal candidate that the network scores highest, the first of equals."""
    width = s.network_width
    count = s.num_candidates
    rows = scratch_rows(s)
    features = feature_table(s)
    of_context = rows[s.max_candidates + OF_CONTEXT]
    hidden = rows[s.max_candidates + HIDDEN]
    mean = rows[s.max_candidates + MEAN]
    most = rows[s.max_candidates + MOST]
    of_pool = rows[s.max_candidates + OF_POOL]
    # Where each array of ``Network`` begins.
    row_bias_at = NUM_FEATURES * width
    context_at = row_bias_at + width
    embed_at = context_at + NUM_CONTEXT * width
    embed_bias_at = embed_at + width * width
    score_row_at = embed_bias_at + width
    score_bias_at = score_row_at + width * width
    score_pool_at = score_bias_at + width
    score_at = score_pool_at + 2 * width * width

    of_context[:] = np.float32(0.0)
    add_product(s, of_context, context_numbers(s), context_at)
    row_bias = network_numbers(s, row_bias_at, width)
    for j in range(width):
        of_context[j] += row_bias[j]
    mean[:] = np.float32(0.0)
    most[:] = np.float32(0.0)
    for row in range(count):
        hidden[:] = of_context
        add_product(s, hidden, features[row], 0)
        rectify(hidden)
        embedded = rows[row]
        embedded[:] = network_numbers(s, embed_bias_at, width)
        add_product(s, embedded, hidden, embed_at)
        rectify(embedded)
        for j in range(width):
            mean[j] += embedded[j]
            most[j] = max(most[j], embedded[j])
    for j in range(width):
        mean[j] /= np.float32(count)
    of_pool[:] = network_numbers(s, score_bias_at, width)
    add_product(s, of_pool, mean, score_pool_at)
    add_product(s, of_pool, most, score_pool_at + width * width)

    weights = network_numbers(s, score_at, width)
    linear = rule_numbers(s)
    linear[:] = np.float32(0.0)
    add_product(s, linear, context_numbers(s), score_at + width)
    best = -1
    best_score = np.float32(0.0)
    for row in range(count):
        if not s.mask[row]:
            continue
        hidden[:] = of_pool
        add_product(s, hidden, rows[row], score_row_at)
        rectify(hidden)
        score = np.float32(0.0)
        for j in range(width):
            score += hidden[j] * weights[j]
        for i in range(NUM_FEATURES):
            score += features[row, i] * linear[i]
        if best == -1 or score > best_score:
            best = row
            best_score = score
    return best
