"""A small network that scores candidates in the engine, so that a learned policy plays with no Python per decision.

Every candidate's features and the decision's context give an embedding; the mean and maximum of the embeddings tell
each candidate what it competes with; embedding and pool give its score. To the score a rule is added that is linear in
the features, with weights linear in the context, so that a network can refine a rule and say where it holds.
Arithmetic is float32, sums run in the order of the inputs, and products are not fused; kernel/network.py does it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from dysharp_env.simulator.state.observation import NUM_CONTEXT, NUM_FEATURES


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
        for name, shape in self.shapes(self.width).items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"network: '{name}' must be finite float32 numbers of shape {shape}")

    def __iter__(self) -> Iterator[np.ndarray]:
        return (getattr(self, field.name) for field in fields(self))

    @staticmethod
    def shapes(width: int) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each array."""
        square, flat = (width, width), (width,)
        return {
            "row": (NUM_FEATURES, width),
            "row_bias": flat,
            "context": (NUM_CONTEXT, width),
            "embed": square,
            "embed_bias": flat,
            "score_row": square,
            "score_bias": flat,
            "score_pool": (2 * width, width),
            "score": flat,
            "linear": (NUM_CONTEXT, NUM_FEATURES),
        }

    @classmethod
    def nothing(cls, width: int = 1) -> Network:
        """Returns a network that scores all candidates alike, so that the first is taken."""
        return cls(**{name: np.zeros(shape, np.float32) for name, shape in cls.shapes(width).items()})

    @classmethod
    def mean_of(cls, members: Sequence[Network]) -> Network:
        """Returns a network whose scores are the mean of those of others, up to rounding: as wide as all together."""
        count = len(members)

        def beside(name: str) -> np.ndarray:
            return np.concatenate([getattr(member, name) for member in members], axis=-1)

        def apart(arrays: Sequence[np.ndarray]) -> np.ndarray:
            rows, columns = np.cumsum([[0, 0], *(array.shape for array in arrays)], axis=0).T
            whole = np.zeros((rows[-1], columns[-1]), np.float32)
            for place, array in enumerate(arrays):
                whole[rows[place] : rows[place + 1], columns[place] : columns[place + 1]] = array
            return whole

        pools = [np.split(member.score_pool, 2) for member in members]  # mean, maximum
        return cls(
            **{name: beside(name) for name in ("row", "row_bias", "context", "embed_bias", "score_bias")},
            **{name: apart([getattr(member, name) for member in members]) for name in ("embed", "score_row")},
            score_pool=np.concatenate([apart([halves[half] for halves in pools]) for half in range(2)]),
            score=beside("score") / np.float32(count),
            linear=np.stack([member.linear for member in members]).mean(axis=0, dtype=np.float32),
        )

    @property
    def width(self) -> int:
        """Width of the embedding and of the scoring layer."""
        return len(self.row_bias)

    @cached_property
    def numbers(self) -> np.ndarray:
        """All weights one after the other, as the engine reads them."""
        return np.concatenate([array.reshape(-1) for array in self])

    @cached_property
    def places(self) -> dict[str, int]:
        """Where each array begins in ``numbers``."""
        starts = np.cumsum([0, *(array.size for array in self)])
        return {field.name: int(start) for field, start in zip(fields(self), starts, strict=False)}

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
        hidden = np.maximum(_product(of_pool, embedded, self.score_row), 0)
        scores = _product(0, hidden, self.score[:, None])[:, 0]
        for feature, weight in enumerate(_product(0, context[None], self.linear)[0]):
            scores = scores + features[:, feature] * weight
        return scores

    def best(self, features: np.ndarray, context: np.ndarray, mask: np.ndarray) -> int:
        """Returns the legal row that scores highest, the first of equals, as the engine does.

        Args:
            features: (candidate, feature) float32, as for ``scores``.
            context: (context,) float32.
            mask: (candidate,) bool.
        """
        return int(np.where(mask, self.scores(features, context), -np.inf).argmax())


def _product(start: np.ndarray | int, inputs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns start + inputs . weights, each product added in the order of the inputs and rounded to float32."""
    total = np.zeros((len(inputs), weights.shape[1]), np.float32) + start
    for i in range(len(weights)):
        total = total + inputs[:, i : i + 1] * weights[i]
    return total
