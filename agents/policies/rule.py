"""A distilled rule for splits and GEMM rows: what is wanted and what counts, from a handful of context values.

For each number of a split the rule says what it wants, as a sum of weighted context values; the split on offer nearest
to that, by the sum of weighted distances, is taken, the first of equals. For a row it weighs features, with weights
that are sums of weighted context values; the highest sum is taken, the first of equals. All of it is a network of the
engine as well, so that whatever plays a policy plays a rule. Its file names values and features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from agents.policies.card import read_json
from agents.policies.linear import ROW_FEATURES
from agents.policies.steering import INPUTS, STEERED, network_of
from dysharp_env.config import Spec, parse_spec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.schedules import load_schedule
from dysharp_env.schedules.spec import NEVER_EARLY
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import CONTEXT, CONTEXT_MEANINGS, FEATURES, GEMM

WISHES = {
    FEATURES[feature]: weight for feature, weight in STEERED.items()
}  # feature of a split: weight of its distance
TIE = "the first of the nearest splits"


def definition(name: str) -> str:
    """Returns what a context value is, so that it can stand alone."""
    meaning, before = CONTEXT_MEANINGS[name], [*CONTEXT[: CONTEXT.index(name)]]
    if not meaning.startswith("the same"):
        return meaning
    last = next(other for other in reversed(before) if not CONTEXT_MEANINGS[other].startswith("the same"))
    return f"{meaning} as {last}: {CONTEXT_MEANINGS[last]}"


class Linear(Spec):
    """A wish that is a sum of weighted context values."""

    constant: float = Field(allow_inf_nan=False)
    """What is wanted where all of them are 0."""
    weights: dict[str, float]
    """Weight of each context value, by name."""


class RowRule(Spec):
    """What counts in a GEMM row, and which rows there are."""

    hold: bool
    """Whether to wait is one of them."""
    partial_tiles: bool
    """Whether open tiles are among them."""
    features: dict[str, str]
    """The features of a row that are weighed, and what each is."""
    weights: dict[str, Linear]
    """Weight of each."""

    @model_validator(mode="after")
    def _check(self) -> RowRule:
        if unknown := self.weights.keys() - {*ROW_FEATURES}:
            raise ValueError(f"weights name {sorted(unknown)}, no feature of a row; choose from {[*ROW_FEATURES]}")
        if missing := sorted(self.weights.keys() - self.features.keys()):
            raise ValueError(f"features says nothing of {missing}, which weights name")
        return self


class Rule(Spec):
    """A rule with all that is needed to play it."""

    format: Literal["dysharp/rule/2"] = "dysharp/rule/2"
    """What the file is."""
    name: str = Field(min_length=1)
    """Name shown in results."""
    description: str = ""
    """Where it comes from."""
    schedule: str
    """The schedule beneath: a preset or YAML file."""
    splits: tuple[tuple[int, ...], ...] = Field(min_length=2)
    """Splits on offer; see ``EnvSpec``."""
    split_moments: int = Field(ge=0, le=64)
    """How often each GPU decides again; see ``EnvSpec``."""
    context: dict[str, str]
    """The context values that the rule looks at, and what each is."""
    wishes: dict[str, Linear]
    """What is wanted of each feature of a split."""
    rows: RowRule | None = None
    """What counts in a row; none leaves rows to the schedule."""
    distance: dict[str, float] = WISHES
    """What the distance in each of these features is multiplied with."""
    tie: str = TIE
    """What is taken where several splits are nearest."""

    @model_validator(mode="after")
    def _check(self) -> Rule:
        for key, fixed, given in (("distance", WISHES, self.distance), ("tie", TIE, self.tie)):
            if given != fixed:
                raise ValueError(f"{key}={given} must be {fixed}")
        if [*self.wishes] != [*WISHES]:
            raise ValueError(f"wishes={[*self.wishes]} must be {[*WISHES]}, in that order")
        parts = [*self.wishes.values(), *(self.rows.weights.values() if self.rows else ())]
        named = {name for part in parts for name in part.weights}
        unknown = (named | self.context.keys()) - {*INPUTS[:-1]}
        if unknown:
            raise ValueError(
                f"the rule looks at {sorted(unknown)}, which is no context value; choose from {[*INPUTS[:-1]]}"
            )
        if missing := sorted(named - self.context.keys()):
            raise ValueError(f"context says nothing of {missing}, which the rule looks at")
        return self

    def env(self) -> EnvSpec:
        """Returns the environment that asks what the rule answers."""
        return EnvSpec(
            schedule=self.schedule,
            exposed=("split", "gemm") if self.rows else ("split",),
            hold=self.rows is not None and self.rows.hold,
            partial_tiles=self.rows is not None and self.rows.partial_tiles,
            splits=self.splits,
            split_moments=self.split_moments,
            max_candidates=max(2, len(self.splits)),
        )

    def triples(self) -> list[tuple[int, int, int]]:
        """Returns dispatch SMs, combine SMs and fewest tokens of a tile closed early of every split on offer."""
        schedule = load_schedule(self.schedule)
        fewest = schedule.min_partial_tokens if schedule.partial_tiles else NEVER_EARLY
        return [(split[0], split[1], (*split, fewest)[2]) for split in self.splits]

    def network(self) -> Network:
        """Returns the rule as the engine plays it, which differs from the header where two are alike up to rounding."""
        network = linear_network([*self.wishes.values()])
        return replace(network, linear=_row_weights(self.rows)) if self.rows else network


def read_rule(path: Path) -> Rule:
    """Returns the rule of a JSON file.

    Raises:
        ConfigError: It is missing, damaged, or no rule.
    """
    return parse_spec(Rule, read_json(path), source=str(path))


def linear_network(wishes: Sequence[Linear]) -> Network:
    """Returns sums, one for each of ``WISHES``, as the network that takes the nearest split."""
    weights = np.zeros((len(WISHES), len(INPUTS)))
    for row, (wish, distance) in enumerate(zip(wishes, WISHES.values(), strict=True)):
        weights[row, -1] = distance * wish.constant
        for name, weight in wish.weights.items():
            weights[row, INPUTS.index(name)] = distance * weight
    return network_of(weights)


def _row_weights(rows: RowRule) -> np.ndarray:
    """Returns the (context, feature) float32 weights of a rule for rows."""
    linear = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
    for name, weight in rows.weights.items():
        column = linear[:, FEATURES.index(name)]
        column[GEMM] = weight.constant
        for value, factor in weight.weights.items():
            column[CONTEXT.index(value)] = factor
    return linear
