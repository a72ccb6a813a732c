"""What a network makes of candidates, in numpy: the referee of the engine's arithmetic.

All numbers are float32. A sum starts from its bias and takes one product after the other, in the order of the inputs
and each rounded: no sum in another order, nor a fused product, has the same bits.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.network import Network


def scores_of(network: Network, features: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Returns the scores of a decision's candidates, (candidate,); no row of their features is empty."""
    of_context = _add(0, context[None], network.context)
    hidden = _rectified(_add(network.row_bias + of_context, features, network.row))
    embedded = _rectified(_add(network.embed_bias, hidden, network.embed))
    total = np.zeros(network.width, np.float32)
    for of_candidate in embedded:
        total = total + of_candidate
    pool = np.concatenate([total / np.float32(len(embedded)), embedded.max(axis=0)])
    of_pool = _add(network.score_bias, pool[None], network.score_pool)
    hidden = _rectified(_add(of_pool, embedded, network.score_row))
    by_network = _add(0, hidden, network.score[:, None])
    # The rule's weights depend on the context; what it says is added feature by feature.
    rule = _add(0, context[None], network.linear)[0]
    return _add(by_network, features, rule[:, None])[:, 0]


def _add(start: np.ndarray | int, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns start + inputs . weights, (candidate, out), each product added in the order of the inputs."""
    total = np.zeros((len(inputs), weights.shape[1]), np.float32) + start
    for i in range(len(weights)):
        total = total + inputs[:, i : i + 1] * weights[i]
    return total


def _rectified(values: np.ndarray) -> np.ndarray:
    return np.maximum(values, 0)
