"""What an environment is made of: a scenario or suite, the schedule that is learned on top of, and what is asked."""

from __future__ import annotations

from typing import Literal

import numpy as np
from gymnasium import spaces
from pydantic import Field, model_validator

from dysharp_env.schedules import Exposure
from dysharp_env.schedules.exposure import SplitRow
from dysharp_env.simulator.costs import Resolution
from dysharp_env.simulator.state.observation import CONTEXT, FEATURES, DecisionKind
from dysharp_env.workload import ScenarioSpec
from dysharp_env.workload.suite import Seeds


class EnvSpec(ScenarioSpec):
    """A scenario or a suite, the schedule that is learned on top of, and what is asked."""

    suite: str | None = None
    """A suite preset or YAML file whose entries take the place of the scenario: each episode draws one of them, and one
    of its seeds. None plays the scenario that the other settings describe."""
    drawn_faults: tuple[str, ...] = ()
    """Faults of which each episode draws one, each as likely as the others, in place of ``faults``: presets of
    ``faults``, YAML files, settings such as slow_link=2, or ``none``."""
    schedule: str = "dysharp"
    """A schedule preset or YAML file: primitives, readiness, costs, SM groups, and the rule of kinds not exposed."""
    exposed: tuple[DecisionKind, ...] = ("dispatch", "gemm", "combine")
    """Decision kinds the agent is asked for."""
    hold: bool = True
    """Whether GEMM and combine decisions offer to wait."""
    partial_tiles: bool = True
    """Whether GEMM decisions offer open tiles."""
    splits: tuple[SplitRow, ...] = ((4, 4), (8, 8), (8, 16), (16, 16), (24, 24))
    """(dispatch SMs, combine SMs) that a split decision offers, where ``split`` is exposed; a third number is the
    fewest tokens of an open tile that may be closed early from then on."""
    split_moments: int = Field(default=0, ge=0, le=64)
    """How often each GPU decides on its split again: after every such share of the tokens it dispatches and of the sums
    that it may combine, and at the first of those. 0: one split for all GPUs and the whole layer."""
    max_candidates: int = Field(default=32, ge=2, le=4096)
    """Most candidates one decision shows; also the number of actions."""
    resolution: Resolution = "token"
    """What moves as one: a vector, or a packet (slow). Policies are evaluated with vectors, whatever they were trained
    with."""
    log: bool = False
    """Whether every use of a link and SM group is recorded, for timelines; ``rgb_array`` always records."""
    seeds: Seeds | None = None
    """First of the workload seeds that resets draw from, and how many; none means any."""
    invalid_action: Literal["replace", "raise"] = "replace"
    """What a masked action does: the first legal candidate is taken in its place and the reward is less by
    ``invalid_penalty``, or it is an error."""
    invalid_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """What a masked action takes from the reward, in lower bounds: by default as much as a perfect schedule takes."""

    @model_validator(mode="after")
    def _check(self) -> EnvSpec:
        if not self.exposed:
            raise ValueError("exposed must name at least one decision kind")
        if "split" in self.exposed and len(self.splits) < 2:
            raise ValueError("splits must offer at least two SM splits when 'split' is exposed")
        if len(set(self.exposed)) < len(self.exposed):
            raise ValueError(f"exposed={list(self.exposed)} names a decision kind twice")
        if self.drawn_faults and self.faults is not None:
            raise ValueError(f"faults={self.faults!r} has no effect with drawn_faults, which take its place")
        if self.suite is not None:
            for name in (*ScenarioSpec.model_fields, "seeds"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name}={getattr(self, name)!r} has no effect with a suite, whose entries say it")
        return self

    def observation_space(self) -> spaces.Dict:
        """Returns the observation space of one copy."""
        return spaces.Dict(
            {
                "candidates": spaces.Box(0.0, 1.0, (self.max_candidates * len(FEATURES),), np.float32),
                "context": spaces.Box(0.0, 1.0, (len(CONTEXT),), np.float32),
            }
        )

    def action_space(self) -> spaces.Discrete:
        """Returns the action space of one copy."""
        return spaces.Discrete(self.max_candidates)

    def exposure(self) -> Exposure:
        """Returns what the engine asks."""
        return Exposure(
            self.exposed, self.hold, self.partial_tiles, self.splits, self.split_moments, self.max_candidates
        )
