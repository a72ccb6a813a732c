"""What evolution moves: a policy's wishes for splits and its rules for the other kinds, as one vector of weights.

First come the wishes (steering.py), where splits are decided on; then for each other kind that is its rule's weights,
by feature as in ``FEATURES_OF_KIND``; then what each context value of ``gates`` adds to the weight of each feature of
``gated``, so that one policy can read weights first on one layer and finish tokens first on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from agents.search_space import FEATURES_OF_KIND, start_weights
from agents.steering import INPUTS, STEERED, constant, hand_written, network_of, size
from dysharp_env.schedules import Exposure, ScheduleSpec
from dysharp_env.simulator.layout import (
    CONTEXT,
    DECISION_KINDS,
    F_SPLIT_COMBINE,
    F_SPLIT_DISPATCH,
    F_SPLIT_EARLY,
    FEATURES,
)
from dysharp_env.simulator.network import Network

ROW_FEATURES = FEATURES_OF_KIND["gemm"]
"""Features that a rule for rows weighs."""
GATED = tuple(dict.fromkeys(name for features in FEATURES_OF_KIND.values() for name in features))
"""Features whose weights may depend on the context; where several kinds have one, gates add the same in all of them."""
GATES = INPUTS[:-1]
"""Context values that a weight may depend on."""
# Of an open tile, where the base schedule closes none early: so little below hold that other features can outweigh it.
# A search that begins with no tile closed early is slow to find which to close.
_BELOW_HOLD = -0.3


class Genome:
    """Vectors of weights for one schedule and what is asked of it.

    Attributes:
        start: (weight,) float64: the schedule's own rules and, for splits, where the search is to begin.
    """

    def __init__(
        self,
        base: ScheduleSpec,
        exposure: Exposure,
        gated: Sequence[str] = (),
        gates: Sequence[str] = (),
        *,
        own_split: tuple[int, int] | None = None,
    ):
        """Lays out the vector.

        Args:
            base: The schedule beneath.
            exposure: What is asked.
            gated: Features whose weights depend on the context.
            gates: Context values that they depend on.
            own_split: SMs of a GPU and tokens of a tile; wishes then begin at the schedule's own split. None begins at
                the hand-written ones.
        """
        # Splits that leave early closing alone leave no wish for it.
        self._wishes = max((len(split) for split in exposure.splits), default=2) if "split" in exposure.kinds else 0
        ruled = [kind for kind in FEATURES_OF_KIND if kind in exposure.kinds]
        self._gated = [FEATURES.index(name) for name in gated]
        self._gates = [CONTEXT.index(name) for name in gates]
        # Where each weight of a rule is in a network's.
        self._kinds = [DECISION_KINDS.index(kind) for kind in ruled for _ in FEATURES_OF_KIND[kind]]
        self._features = [FEATURES.index(name) for kind in ruled for name in FEATURES_OF_KIND[kind]]
        wishes = hand_written() if own_split is None else constant(_features_of(base, *own_split))
        rules = [weight for kind in ruled for weight in start_weights(base, kind, _BELOW_HOLD)]
        gates_of = [0.0] * len(gated) * len(gates) if ruled else []
        self.start = np.concatenate([wishes[: size(self._wishes)], rules, gates_of])

    def network(self, point: np.ndarray) -> Network:
        """Returns the policy of (weight,)."""
        of_wishes = size(self._wishes)
        # Without wishes there is a wish for a split of no size, which changes no choice of another kind.
        network = network_of(point[:of_wishes] if of_wishes else np.zeros(size(1)))
        if not self._kinds:
            return network
        linear = np.zeros((len(CONTEXT), len(FEATURES)))
        of_gates = of_wishes + len(self._kinds)
        linear[self._kinds, self._features] = point[of_wishes:of_gates]
        linear[np.ix_(self._gates, self._gated)] = point[of_gates:].reshape(len(self._gated), len(self._gates)).T
        return replace(network, linear=linear.astype(np.float32))


def _features_of(base: ScheduleSpec, num_sms: int, tile_tokens: int) -> dict[int, float]:
    """Returns the features of a schedule's own split."""
    early = max(0.0, 1 - base.min_partial_tokens / tile_tokens) if base.partial_tiles else 0.0
    own = {
        F_SPLIT_DISPATCH: base.sms.dispatch / num_sms,
        F_SPLIT_COMBINE: base.sms.combine / num_sms,
        F_SPLIT_EARLY: early,
    }
    assert own.keys() == STEERED.keys()
    return own
