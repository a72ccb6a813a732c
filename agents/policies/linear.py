"""The features that a linear rule weighs, for each kind of decision, and a schedule's own weights of them."""

from __future__ import annotations

from dysharp_env.schedules import ScheduleSpec
from dysharp_env.simulator.state.observation import DECISION_KINDS, FEATURE_TABLE, FEATURES, RULE_FEATURES

SHOWN_OF_KIND: dict[str, tuple[str, ...]] = {
    kind: tuple(feature.name for feature in FEATURE_TABLE if kind in feature.kinds) for kind in DECISION_KINDS
}
"""All that is shown of a kind's candidates."""


def _features_of(kind: str) -> tuple[str, ...]:
    """Returns all that a rule sees of a kind's candidates."""
    return tuple(name for name in SHOWN_OF_KIND[kind] if name in RULE_FEATURES)


# Features that differ among the candidates of a decision and matter. Left out: what is the same for all of them or 0,
# and what chunks of one size hardly differ in.
FEATURES_OF_KIND: dict[str, tuple[str, ...]] = {
    "plan": _features_of("plan"),
    "replicate": _features_of("replicate"),
    "dispatch": ("order", "tile_fill", "expert_progress", "fan_out", "backlog"),
    "prefetch": _features_of("prefetch"),
    "gemm": (
        *("is_gemm2", "weights_in_l2", "order", "size", "is_partial"),
        *("waiting", "expert_left", "finishes", "cost", "is_hold"),
    ),
    "combine": ("order", "size", "waiting", "fan_out", "is_hold"),
}
_RELUCTANCE = -2.0  # of hold, where the start never waits: below every score of the start


def kinds_ruled(schedule: ScheduleSpec) -> list[str]:
    """Returns the kinds of decision that a schedule's rule takes, of those in ``FEATURES_OF_KIND``."""
    idle = {
        "plan": len(schedule.plans) < 2,
        "replicate": all(option.replicate.planner != "rule" for option in schedule.options),
        "prefetch": all(option.prefetch == "none" for option in schedule.options),
    }
    return [kind for kind in FEATURES_OF_KIND if not idle.get(kind)]


def start_weights(base: ScheduleSpec, kind: str, below_hold: float) -> list[float]:
    """Returns a schedule's weights of a kind; one that has none takes the first candidate, as it does without.

    They belong to the features in ``FEATURES_OF_KIND``. Where the schedule closes no tile early, an open one has
    ``below_hold`` less than hold.
    """
    row = base.rule.matrix()[DECISION_KINDS.index(kind)]
    given = dict(zip(FEATURES, row.tolist(), strict=True)) if row.any() else {"order": -1.0}
    if "is_hold" not in (base.rule.root.get(kind) or {}) and kind in ("gemm", "combine"):
        given["is_hold"] = 0.0 if base.hold else _RELUCTANCE
    if not base.partial_tiles:
        given["is_partial"] = given.get("is_hold", 0.0) + below_hold
    return [given.get(feature, 0.0) for feature in FEATURES_OF_KIND[kind]]
