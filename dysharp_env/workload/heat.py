"""One expert that becomes hot in mid-layer: from somewhere in every GPU's tokens on, so many of them choose it.

Which expert it is follows from the seed. Whoever looks at an earlier batch, as placements and planners do, sees nothing
of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dysharp_env.workload.choices import NO_EXPERT
from dysharp_env.workload.drawing import Batch, Drawing

_HOT = 3  # tells its stream from those of other batches


class Heated:
    """Draws from another drawing, of whose later tokens some have the hot expert in place of their last choice.

    Args:
        drawing: What tokens choose before.
        experts: Of the layer.
        share: Of the later tokens that have an expert, those that choose the hot one; what chose it before counts.
        begins: Share of each GPU's tokens that come before it is hot.
    """

    def __init__(self, drawing: Drawing, experts: int, share: float, begins: float) -> None:
        self._drawing, self._experts, self._share, self._begins = drawing, experts, share, begins
        self.tokens_of_gpu = drawing.tokens_of_gpu
        self.layers: Sequence[int] = drawing.layers
        self.chosen: Sequence[int] = drawing.chosen

    def draw(self, seed: int, is_all: bool = False) -> list[Batch]:
        """Returns the batches of a seed, one or all."""
        return [self._heated(batch, seed) for batch in self._drawing.draw(seed, is_all)]

    def _heated(self, batch: Batch, seed: int) -> Batch:
        rng = np.random.default_rng([seed, 0 if batch.layer is None else batch.layer + 1, _HOT])
        hot = int(rng.integers(self._experts))
        place = np.concatenate([np.arange(count) for count in self.tokens_of_gpu.tolist()])
        first = np.repeat(np.ceil(self.tokens_of_gpu * self._begins), self.tokens_of_gpu)
        counts = np.count_nonzero(batch.ids != NO_EXPERT, axis=1)
        later = np.flatnonzero((place >= first) & (counts > 0))
        has = (batch.ids[later] == hot).any(axis=1)
        lacking = max(0, round(self._share * len(later)) - int(np.count_nonzero(has)))
        taken = np.sort(rng.permutation(later[~has])[:lacking])
        ids = np.array(batch.ids)
        ids[taken, counts[taken] - 1] = hot
        return replace(batch, ids=ids, label=f"{batch.label} hot={self._share:g} from={self._begins:g}")
