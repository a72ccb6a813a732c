"""What evolution moves: a policy's wishes for splits and its rules for the other kinds, as few weights.

First come the wishes (steering.py), where splits are decided on: each a constant and what each value of ``PROGRESS``
adds. Then for each other kind that is asked its rule's weights, by feature as in ``FEATURES_OF_KIND``. Then what each
context value of ``gates`` adds to the weight of each feature of ``gated``.

Over a schedule with plans, each of which has a rule of its own, what is moved comes on top of that: the candidate that
the rule takes begins ``RULED`` ahead of the others, and all weights begin at 0.

Constants and rules can depend on what shapes a layer: beside its own column a weight has one for each of ``shapes``,
for how much one standard deviation of that value adds. So one policy can read weights first on one layer and finish
tokens first on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dysharp_env.schedules import Exposure, ScheduleSpec
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, DECISION_KINDS, ENGINE_KINDS, FEATURES

from ..policies.linear import FEATURES_OF_KIND, start_weights
from ..policies.steering import (
    INPUTS,
    SPLIT_COMBINE,
    SPLIT_DISPATCH,
    SPLIT_EARLY,
    STEERED,
    constant,
    hand_written,
    network_of,
)

SHAPES = ("link_share", "gemm_share", "hbm_share", "tokens_per_expert", "l2_room")
"""Context values that are the same all through a layer."""
PROGRESS = ("sent", "all_sent", "gemm_done", "ready", "any_ready")
"""Context values that wishes are moved by."""
GATED = tuple(dict.fromkeys(name for features in FEATURES_OF_KIND.values() for name in features))
"""Features whose weights may depend on the context; where several kinds have one, gates add the same in all of them."""
GATES = tuple(name for name in INPUTS[:-1] if name not in SHAPES)
"""Context values that such a weight may depend on."""
# Of an open tile, where the base schedule closes none early: so little below hold that other features can outweigh it.
# A search that begins with no tile closed early is slow to find which to close.
_BELOW_HOLD = -0.3
RULED = 1.0
"""Score that what the rule of a plan takes begins ahead, about as much as a rule's largest weight."""
_ONE = len(INPUTS) - 1  # the constant among what wishes are linear in
_ROUNDING = 1e-9  # deviations that equal numbers may have


@dataclass(frozen=True)
class Scale:
    """What the columns of a genome are measured in.

    Attributes:
        names: Of ``SHAPES``, one a column after the first.
        means: (shape,) values at which they add nothing.
        deviations: (shape,) how much more of a value one of a column stands for; above 0.
    """

    names: tuple[str, ...]
    means: np.ndarray
    deviations: np.ndarray

    @classmethod
    def of(cls, names: Sequence[str], contexts: np.ndarray) -> Scale:
        """Returns the scale on which the shapes in (layer, context) contexts have mean 0 and deviation 1."""
        values = contexts[:, [CONTEXT.index(name) for name in names]]
        deviations = values.std(axis=0)
        return cls(tuple(names), values.mean(axis=0), np.where(deviations > _ROUNDING, deviations, 1.0))

    def rows(self, contexts: np.ndarray) -> np.ndarray:
        """Returns the (layer, 1 + shape) factors of the columns in (layer, context) contexts; the first is 1."""
        values = contexts[:, [CONTEXT.index(name) for name in self.names]]
        return np.column_stack([np.ones(len(contexts)), (values - self.means) / self.deviations])


@dataclass(frozen=True)
class _Place:
    """Where a weight is in a network: wish and input, or context value and feature."""

    in_wishes: bool
    row: int
    column: int
    depends: bool


class Genome:
    """The layout of (weight, 1 + shape) arrays for one schedule and the decisions that are asked.

    Attributes:
        start: The schedule's own rules and, for splits, where the search is to begin; all shapes alike.
        depends: (weight,) whether a weight can depend on shapes; the others have 0 in those columns.
    """

    def __init__(
        self,
        base: ScheduleSpec,
        exposure: Exposure,
        scale: Scale,
        gated: Sequence[str] = (),
        gates: Sequence[str] = (),
        *,
        own_split: tuple[int, int] | None = None,
    ) -> None:
        """Lays out the weights; those of the ``gated`` features depend on the context values ``gates``.

        ``own_split`` is SMs of a GPU and tokens of a tile; wishes then begin at the schedule's own split. None begins
        at the hand-written ones.
        """
        self._scale = scale
        # Splits that leave early closing alone leave no wish for it.
        num_wishes = max((len(split) for split in exposure.splits), default=2) if "split" in exposure.kinds else 0
        wishes = hand_written() if own_split is None else constant(_features_of(base, *own_split))
        self._wishes = wishes[:num_wishes]
        ruled = [kind for kind in FEATURES_OF_KIND if kind in exposure.kinds and kind in ENGINE_KINDS]
        self._ruled = RULED if base.plans else 0.0
        moved = [_ONE, *(INPUTS.index(name) for name in PROGRESS)]
        self._places = [_Place(True, wish, column, column == _ONE) for wish in range(num_wishes) for column in moved]
        start = [self._wishes[place.row, place.column] for place in self._places]
        for kind in ruled:
            row = DECISION_KINDS.index(kind)
            self._places += [_Place(False, row, FEATURES.index(name), True) for name in FEATURES_OF_KIND[kind]]
            start += [0.0] * len(FEATURES_OF_KIND[kind]) if base.plans else start_weights(base, kind, _BELOW_HOLD)
        if ruled:
            products = [(CONTEXT.index(gate), FEATURES.index(name)) for name in gated for gate in gates]
            self._places += [_Place(False, row, column, False) for row, column in products]
            start += [0.0] * len(products)
        self.depends = np.array([place.depends for place in self._places])
        self.start = np.zeros((len(start), 1 + len(scale.names)))
        self.start[:, 0] = start

    def network(self, weights: np.ndarray, more: np.ndarray | float = 0.0) -> Network:
        """Returns the network of a (weight, 1 + shape) array, with a (weight,) array added to its first column."""
        scale = self._scale
        of_shapes = weights[:, 1:] / scale.deviations
        constants = weights[:, 0] - of_shapes @ scale.means + more
        # Without wishes there is a wish for a split of no size, which changes no choice of another kind.
        wishes = self._wishes.copy() if len(self._wishes) else np.zeros((1, len(INPUTS)))
        linear = np.zeros((len(CONTEXT), len(FEATURES)))
        linear[[DECISION_KINDS.index(kind) for kind in ENGINE_KINDS], FEATURES.index("ruled")] = self._ruled
        for place, number in zip(self._places, constants, strict=True):
            (wishes if place.in_wishes else linear)[place.row, place.column] = number
        for name, column in zip(scale.names, of_shapes.T, strict=True):
            for place, number in zip(self._places, column, strict=True):
                if place.depends and place.in_wishes:
                    wishes[place.row, INPUTS.index(name)] = number
                elif place.depends:
                    linear[CONTEXT.index(name), place.column] += number
        return replace(network_of(wishes), linear=linear.astype(np.float32))


def _features_of(base: ScheduleSpec, num_sms: int, tile_tokens: int) -> dict[int, float]:
    """Returns the features of a schedule's own split."""
    early = max(0.0, 1 - base.min_partial_tokens / tile_tokens) if base.partial_tiles else 0.0
    dispatch_sms, combine_sms = base.sms.groups(num_sms)
    own = {
        SPLIT_DISPATCH: dispatch_sms / num_sms,
        SPLIT_COMBINE: combine_sms / num_sms,
        SPLIT_EARLY: early,
    }
    assert own.keys() == STEERED.keys()
    return own
