"""Linear rules and schedule settings as a vector: what a search moves, and the schedule that a point stands for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dysharp_env.schedules import ScheduleSpec

# Features that differ among the candidates of a decision and matter. Left out: what is the same for all of them or 0,
# and what chunks of one size hardly differ in.
FEATURES_OF_KIND = {
    "dispatch": ("order", "tile_fill", "expert_progress", "fan_out", "backlog"),
    "gemm": (
        *("is_gemm2", "weights_in_l2", "order", "size", "is_partial"),
        *("waiting", "expert_left", "finishes", "cost", "is_hold"),
    ),
    "combine": ("order", "size", "waiting", "fan_out", "is_hold"),
}


@dataclass(frozen=True)
class _Setting:
    """A whole number that is searched by its logarithm to base 2."""

    name: str
    least: int
    most: int

    def value(self, coordinate: float) -> int:
        """Returns the number at a coordinate, the nearest allowed one."""
        return int(np.clip(round(2.0 ** min(coordinate, 20.0)), self.least, self.most))


# A quarter of an H100's SMs for each communication group is the most that any shipped schedule takes and more than the
# links can use. Chunks end where a GPU of the smallest suites has only a few left to choose from.
_SETTINGS = (
    _Setting("dispatch_sms", 1, 32),
    _Setting("combine_sms", 1, 32),
    _Setting("chunk_tokens", 1, 32),
    _Setting("min_partial_tokens", 1, 128),
)
_DIGITS = 3  # of a weight relative to the largest of its kind
_RELUCTANCE = -2.0  # of hold, where the start never waits: below every score of the start
# Of an open tile, where the start closes none early: so far below hold that nothing else outweighs it. A search can
# then find which tiles to close.
_BELOW_HOLD = -2.0
_FEWEST_TOKENS = 32  # of a tile closed early, where the start closes none


def start_weights(base: ScheduleSpec, kind: str, below_hold: float) -> list[float]:
    """Returns a schedule's weights of a kind; one that has none takes the first candidate, as it does without.

    Args:
        base: The schedule.
        kind: Of ``FEATURES_OF_KIND``, whose features the weights belong to.
        below_hold: What an open tile has less than hold, where the schedule closes none early.
    """
    given = {"is_hold": 0.0 if base.hold else _RELUCTANCE, **(getattr(base.rule, kind) or {"order": -1.0})}
    if not base.partial_tiles:
        given["is_partial"] = given["is_hold"] + below_hold
    return [given.get(feature, 0.0) for feature in FEATURES_OF_KIND[kind]]


class SearchSpace:
    """Every weight of the kinds a linear rule decides, and the settings that go with them.

    A point is a vector: weights by kind in the order of ``FEATURES_OF_KIND``, then settings. Everything else is the
    base schedule's. Weights are scaled and rounded before they are used, so what is tried is what is written.

    Attributes:
        start: (dimension,) float64, the base schedule.
    """

    def __init__(self, base: ScheduleSpec):
        """Begins at a schedule."""
        self._base = base
        partial = base.min_partial_tokens if base.partial_tiles else _FEWEST_TOKENS
        settings = (base.sms.dispatch, base.sms.combine, base.chunk_tokens, partial)
        weights = [weight for kind in FEATURES_OF_KIND for weight in start_weights(base, kind, _BELOW_HOLD)]
        self.start = np.array([*weights, *np.log2(settings)])

    def schedule(self, point: np.ndarray, name: str, description: str = "") -> ScheduleSpec:
        """Returns the schedule of a point."""
        rule, at = {}, 0
        for kind, features in FEATURES_OF_KIND.items():
            weights = point[at : at + len(features)]
            at += len(features)
            scaled = np.round(weights / max(np.abs(weights).max(), 1e-9), _DIGITS)
            rule[kind] = {feature: float(weight) for feature, weight in zip(features, scaled, strict=True) if weight}
        values = {
            setting.name: setting.value(coordinate) for setting, coordinate in zip(_SETTINGS, point[at:], strict=True)
        }
        changes = {
            "name": name,
            "description": description or self._base.description,
            "sms": {
                **self._base.sms.model_dump(),
                "dispatch": values["dispatch_sms"],
                "combine": values["combine_sms"],
            },
            "chunk_tokens": values["chunk_tokens"],
            "partial_tiles": True,
            "min_partial_tokens": values["min_partial_tokens"],
            "hold": True,
            "rule": rule,
        }
        return ScheduleSpec.model_validate({**self._base.model_dump(), **changes})
