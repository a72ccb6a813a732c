"""A network scores the candidates of a decision; what its arrays are stands in simulator/network.py.

Arithmetic is float32, sums run in the order of the inputs, and products are not fused, so the twin computes the same
bits with numpy.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.jit.pointers import float_rows, floats
from dysharp_env.simulator.kernel.names import Root, Scorer
from dysharp_env.simulator.state.observation import NUM_CONTEXT, NUM_FEATURES
from dysharp_env.simulator.state.records import NETWORK_ROWS

# Scratch rows behind those of the candidates.
OF_CONTEXT, HIDDEN, MEAN, MOST, OF_POOL = range(NETWORK_ROWS)


@compiled
def numbers(s: Scorer, first: int, count: int) -> np.ndarray:
    """Returns some of the network's numbers."""
    return floats(s.network_at + 4 * first, count)


@compiled
def scratch_row(s: Scorer, row: int) -> np.ndarray:
    """Returns a (width,) row that the network works in, behind those of the candidates."""
    return floats(s.scratch_at + 4 * (s.max_candidates + row) * s.network_width, s.network_width)


@compiled
def add_product(s: Scorer, out: np.ndarray, inputs: np.ndarray, first: int) -> None:
    """Adds inputs . weights to ``out``; the weights begin at ``first``, (input, out)."""
    width = len(out)
    for i in range(len(inputs)):
        x = inputs[i]
        if x != 0.0:  # half of what a rectifier lets through is 0, and adding it would change nothing
            weights = numbers(s, first + i * width, width)
            for j in range(width):
                out[j] += x * weights[j]


@compiled
def rectify(x: np.ndarray) -> None:
    """Sets what is negative to 0."""
    for j in range(len(x)):
        x[j] = max(x[j], np.float32(0.0))


@compiled
def embed_candidates(s: Scorer, features: np.ndarray, embedded: np.ndarray) -> None:
    """Fills in the embedding of every candidate, and the mean and maximum of all in their scratch rows."""
    at = s.places
    width = s.network_width
    of_context = scratch_row(s, OF_CONTEXT)
    hidden = scratch_row(s, HIDDEN)
    mean = scratch_row(s, MEAN)
    most = scratch_row(s, MOST)
    of_context[:] = np.float32(0.0)
    add_product(s, of_context, floats(s.context_at, NUM_CONTEXT), at.context)
    row_bias = numbers(s, at.row_bias, width)
    for j in range(width):
        of_context[j] += row_bias[j]
    mean[:] = np.float32(0.0)
    most[:] = np.float32(0.0)
    for row in range(s.num_candidates):
        hidden[:] = of_context
        add_product(s, hidden, features[row], at.row)
        rectify(hidden)
        embedding = embedded[row]
        embedding[:] = numbers(s, at.embed_bias, width)
        add_product(s, embedding, hidden, at.embed)
        rectify(embedding)
        for j in range(width):
            mean[j] += embedding[j]
            most[j] = max(most[j], embedding[j])
    for j in range(width):
        mean[j] /= np.float32(s.num_candidates)


@compiled
def prepare_scores(s: Scorer) -> None:
    """Works out what the scores of a decision's candidates have in common; see ``score_of``."""
    at = s.places
    width = s.network_width
    features = float_rows(s.features_at, s.max_candidates, NUM_FEATURES)
    embed_candidates(s, features, float_rows(s.scratch_at, s.max_candidates, width))
    of_pool = scratch_row(s, OF_POOL)
    of_pool[:] = numbers(s, at.score_bias, width)
    add_product(s, of_pool, scratch_row(s, MEAN), at.score_pool)
    add_product(s, of_pool, scratch_row(s, MOST), at.score_pool + width * width)
    linear = rule_weights(s)
    linear[:] = np.float32(0.0)
    add_product(s, linear, floats(s.context_at, NUM_CONTEXT), at.linear)


@compiled
def rule_weights(s: Scorer) -> np.ndarray:
    """Returns the rule's (feature,) weights in this decision, which lie behind the rows."""
    return floats(s.scratch_at + 4 * (s.max_candidates + NETWORK_ROWS) * s.network_width, NUM_FEATURES)


@compiled
def score_of(s: Scorer, row: int) -> np.float32:
    """Returns the score of a candidate, once ``prepare_scores`` has been called."""
    width = s.network_width
    hidden = scratch_row(s, HIDDEN)
    hidden[:] = scratch_row(s, OF_POOL)
    add_product(s, hidden, float_rows(s.scratch_at, s.max_candidates, width)[row], s.places.score_row)
    rectify(hidden)
    weights = numbers(s, s.places.score, width)
    score = np.float32(0.0)
    for j in range(width):
        score += hidden[j] * weights[j]
    features = float_rows(s.features_at, s.max_candidates, NUM_FEATURES)
    linear = rule_weights(s)
    for i in range(NUM_FEATURES):
        score += features[row, i] * linear[i]
    return score


@compiled
def best_scored(s: Root) -> int:
    """Returns the legal candidate that the network scores highest, the first of equals."""
    prepare_scores(s)
    best = -1
    best_score = np.float32(0.0)
    for row in range(s.num_candidates):
        if not s.mask[row]:
            continue
        score = score_of(s, row)
        if best == -1 or score > best_score:
            best = row
            best_score = score
    return best
