"""A distilled rule: what counts in a candidate of each kind of decision, and what split is wanted.

A candidate is weighed by its features, with weights that are sums of weighted context values; the highest sum is
taken, the first of equals. For each number of a split the rule says what it wants, as such a sum; the split on offer
nearest to that, by the sum of weighted distances, is taken, the first of equals. All of it is networks of the engine
as well, so that whatever plays a policy plays a rule. Its file names values and features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from dysharp_env.config import Spec, parse_spec
from dysharp_env.envs.spec import EnvSpec
from dysharp_env.files import read_mapping
from dysharp_env.schedules import load_schedule
from dysharp_env.schedules.exposure import SplitRow
from dysharp_env.schedules.spec import NEVER_EARLY
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.state.observation import (
    CONTEXT,
    CONTEXT_MEANINGS,
    DECISION_KINDS,
    ENGINE_KINDS,
    FEATURES,
    OPENING_KINDS,
    DecisionKind,
)

from .linear import SHOWN_OF_KIND
from .steering import INPUTS, STEERED, network_of

WISHES = {
    FEATURES[feature]: weight for feature, weight in STEERED.items()
}  # feature of a split: weight of its distance
TIE = "the first of the nearest splits"
WEIGHED_KINDS = tuple(kind for kind in DECISION_KINDS if kind != "split")


# So that sums of products of some fit in the engine's float32.
Weight = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]


def definition(name: str) -> str:
    """Returns what a context value is, so that it can stand alone."""
    meaning, before = CONTEXT_MEANINGS[name], [*CONTEXT[: CONTEXT.index(name)]]
    if not meaning.startswith("the same"):
        return meaning
    last = next(other for other in reversed(before) if not CONTEXT_MEANINGS[other].startswith("the same"))
    return f"{meaning} as {last}: {CONTEXT_MEANINGS[last]}"


class Linear(Spec):
    """A weight or a wish that is a sum of weighted context values."""

    constant: Weight
    """What it is where all of them are 0."""
    weights: dict[str, Weight]
    """Weight of each context value, by name."""

    @property
    def slopes(self) -> dict[str, float]:
        """The weights that are not 0."""
        return {name: weight for name, weight in self.weights.items() if weight}


class SplitRule(Spec):
    """What split is wanted, and which there are."""

    offered: tuple[SplitRow, ...] = Field(min_length=2)
    """Splits on offer; see ``EnvSpec.splits``."""
    moments: int = Field(ge=0, le=64)
    """How often each GPU decides again; see ``EnvSpec.split_moments``."""
    wishes: dict[str, Linear]
    """What is wanted of each feature of a split."""
    distance: dict[str, float] = WISHES
    """What the distance in each of these features is multiplied with."""
    tie: str = TIE
    """What is taken where several splits are nearest."""

    @model_validator(mode="after")
    def _check(self) -> SplitRule:
        for key, fixed, given in (("distance", WISHES, self.distance), ("tie", TIE, self.tie)):
            if given != fixed:
                raise ValueError(f"{key}={given} must be {fixed}")
        if [*self.wishes] != [*WISHES]:
            raise ValueError(f"wishes={[*self.wishes]} must be {[*WISHES]}, in that order")
        return self


class Rule(Spec):
    """A rule with all that is needed to play it."""

    format: Literal["dysharp/rule/3"] = "dysharp/rule/3"
    """What the file is."""
    name: str = Field(min_length=1)
    """Name shown in results."""
    description: str = ""
    """Where it comes from."""
    schedule: str
    """The schedule beneath: a preset or YAML file, whose own rule takes the kinds that are not named here."""
    hold: bool = False
    """Whether to wait is a candidate where it can be; see ``EnvSpec``. Of several plans each says so itself."""
    partial_tiles: bool = False
    """Whether open tiles are candidates; likewise."""
    max_candidates: int = Field(default=32, ge=2, le=4096)
    """Most candidates that a decision shows; places in the list (``order``) are shown over it."""
    context: dict[str, str]
    """The context values that the rule looks at, and what each is."""
    features: dict[str, str]
    """The features of candidates that it weighs, and what each is."""
    weights: dict[str, dict[str, Linear]] = {}
    """By kind of decision the weight of each feature; the first candidate is taken where there is none."""
    split: SplitRule | None = None
    """What split is wanted; none leaves splits to the schedule."""

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if unknown := sorted(self.weights.keys() - {*WEIGHED_KINDS}):
            raise ValueError(f"weights name {unknown}, no kind that is weighed; choose from {[*WEIGHED_KINDS]}")
        for kind, weights in self.weights.items():
            if unknown := sorted(weights.keys() - {*SHOWN_OF_KIND[kind]}):
                shown = [*SHOWN_OF_KIND[kind]]
                raise ValueError(f"weights.{kind} names {unknown}, which it does not show; choose from {shown}")
        if not self.kinds:
            raise ValueError("weights and split say nothing, so the rule decides nothing")
        if self.split and len(self.split.offered) > self.max_candidates:
            raise ValueError(f"max_candidates={self.max_candidates} must be at least {len(self.split.offered)} splits")
        named = {name for part in self._parts() for name in part.weights}
        if unknown := sorted((named | self.context.keys()) - {*INPUTS[:-1]}):
            raise ValueError(f"the rule looks at {unknown}, which is no context value; choose from {[*INPUTS[:-1]]}")
        weighed = {name for weights in self.weights.values() for name in weights}
        for key, told, needed in (("context", self.context, named), ("features", self.features, weighed)):
            if missing := sorted(needed - told.keys()):
                raise ValueError(f"{key} says nothing of {missing}, which the rule looks at")
        for answered in (OPENING_KINDS, ENGINE_KINDS):
            self._check_shared([kind for kind in self.kinds if kind in answered])
        return self

    def _check_shared(self, kinds: Sequence[str]) -> None:
        """Checks that kinds which one network answers let a feature depend on the context alike."""
        for feature in FEATURES:
            showing = [kind for kind in kinds if feature in SHOWN_OF_KIND[kind]]
            slopes = [self._slopes(kind, feature) for kind in showing]
            if any(each != slopes[0] for each in slopes):
                raise ValueError(
                    f"weights: '{feature}' must depend on the context alike in {showing}: one network answers"
                )

    def _slopes(self, kind: str, feature: str) -> dict[str, float]:
        weight = self.weights.get(kind, {}).get(feature)
        return weight.slopes if weight else {}

    def _parts(self) -> Iterator[Linear]:
        for weights in self.weights.values():
            yield from weights.values()
        yield from self.split.wishes.values() if self.split else ()

    @property
    def kinds(self) -> list[DecisionKind]:
        """The kinds of decision that it takes."""
        return [kind for kind in DECISION_KINDS if kind in self.weights or (kind == "split" and self.split)]

    def env(self) -> EnvSpec:
        """Returns the environment that asks what the rule answers."""
        splits: dict[str, Any] = {}
        if self.split:
            splits = {"splits": self.split.offered, "split_moments": self.split.moments}
        return EnvSpec(
            schedule=self.schedule,
            exposed=tuple(self.kinds),
            hold=self.hold,
            partial_tiles=self.partial_tiles,
            max_candidates=self.max_candidates,
            **splits,
        )

    def triples(self) -> list[tuple[int, int, int]]:
        """Returns dispatch SMs, combine SMs and fewest tokens of a tile closed early of every split on offer."""
        schedule = load_schedule(self.schedule)
        fewest = schedule.min_partial_tokens if schedule.partial_tiles else NEVER_EARLY
        offered = self.split.offered if self.split else ()
        return [(split[0], split[1], (*split, fewest)[2]) for split in offered]

    def network(self) -> Network:
        """Returns what the engine plays it with, which differs from the header where two are alike up to rounding."""
        network = linear_network([*self.split.wishes.values()]) if self.split else Network.nothing()
        return replace(network, linear=self._linear(ENGINE_KINDS))

    def opening(self) -> Network | None:
        """Returns what decides before a layer starts; None if the rule leaves that to the schedule."""
        if not self.weights.keys() & {*OPENING_KINDS}:
            return None
        return replace(Network.nothing(), linear=self._linear(OPENING_KINDS))

    def _linear(self, kinds: Sequence[str]) -> np.ndarray:
        """Returns the (context, feature) float32 weights of some kinds."""
        linear = np.zeros((len(CONTEXT), len(FEATURES)), np.float32)
        for kind in kinds:
            for name, weight in self.weights.get(kind, {}).items():
                column = linear[:, FEATURES.index(name)]
                column[CONTEXT.index(f"is_{kind}")] = weight.constant
                for value, factor in weight.weights.items():
                    column[CONTEXT.index(value)] = factor
        return linear


def read_rule(path: Path) -> Rule:
    """Returns the rule of a JSON file.

    Raises:
        ConfigError: It is missing, damaged, or no rule.
    """
    return parse_spec(Rule, read_mapping(path), source=str(path))


def linear_network(wishes: Sequence[Linear]) -> Network:
    """Returns sums, one for each of ``WISHES``, as the network that takes the nearest split."""
    weights = np.zeros((len(WISHES), len(INPUTS)))
    for row, (wish, distance) in enumerate(zip(wishes, WISHES.values(), strict=True)):
        weights[row, -1] = distance * wish.constant
        for name, weight in wish.weights.items():
            weights[row, INPUTS.index(name)] = distance * weight
    return network_of(weights)
