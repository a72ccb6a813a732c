"""Sections of a schedule: readiness, parts, SM groups, families of kernels, what is paid, and the rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import ConfigDict, Field, PlainValidator, RootModel, model_validator

from dysharp_env.config import Spec, did_you_mean
from dysharp_env.simulator.phases import KERNEL_STAGES, STAGES
from dysharp_env.simulator.state.observation import DECISION_KINDS, FEATURES, NUM_FEATURES, NUM_KINDS, RULE_FEATURES
from dysharp_env.system.primitives import FAMILIES

# The overheads of a system and, besides, kernels whose time follows the layer and its routing.
Fixed = Literal["launch", "gap", "fused_start", "barrier", "count_exchange", "plan"]
Cost = Literal[Fixed, "quantise", "layout", "permute", "activation", "final_sum"]
Weights = dict[str, Annotated[float, Field(allow_inf_nan=False)]]


class ReadinessSpec(Spec):
    """When each stage may start on a part: as its own inputs arrive, or when the whole stage before it is over."""

    gemm1: Literal["tile", "gpu", "phase"] = "tile"
    """``tile``: a full tile has arrived. ``gpu``: all that comes to this GPU has. ``phase``: every dispatch is over."""
    gemm2: Literal["tile", "phase"] = "tile"
    """``tile``: the tile's GEMM-1 row is done. ``phase``: this GPU's GEMM-1 and dispatch are over."""
    combine: Literal["token", "gpu", "phase"] = "token"
    """``token``: the token's (or partial sum's) rows are done. ``gpu``: this GPU's GEMM-2 is over (pushed sums only).
    ``phase``: every GEMM-2 on every GPU is over."""


class PartsSpec(Spec):
    """Shares that every stage is cut into; a gate other than ``tile`` and ``token`` is each part's own."""

    count: int = Field(default=1, ge=1, le=256)
    """Parts; 1 means that stages are whole. By experts a GPU has at most as many as it has experts."""
    by: Literal["tokens", "peers", "experts"] = "tokens"
    """``tokens``: a part is a run of every home GPU's token chunks (chunked all-to-all). ``peers``: the exchange with a
    share of the other GPUs, nearest first (pairwise groups). ``experts``: what goes to a run of every GPU's own experts
    (waves of experts), the next dispatched as soon as the one before is issued; needs ``copies: expert``."""


def _check_sms(given: Any) -> int | Literal["all"]:
    if given == "all" or (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
        return given
    raise ValueError("Input should be a number of SMs, 1 at least, or 'all'")


SmCount = Annotated[int | Literal["all"], PlainValidator(_check_sms)]


class SmSpec(Spec):
    """SMs of each group, on every GPU."""

    dispatch: SmCount
    """SMs that issue dispatches; ``all`` that the GPU has."""
    combine: SmCount
    """SMs that issue combines; ``all`` that the GPU has."""
    in_gemm: bool = False
    """Whether the GEMMs' own thread blocks communicate: no SMs are taken from GEMMs, but the blocks lose the time."""

    def groups(self, num_sms: int) -> tuple[int, int]:
        """Returns the SMs that dispatch and that combine on a GPU of ``num_sms``."""
        dispatch = num_sms if self.dispatch == "all" else self.dispatch
        combine = num_sms if self.combine == "all" else self.combine
        return dispatch, combine


class FamiliesSpec(Spec):
    """Families of the kernels that communicate; what is not named is what usually issues the primitive."""

    dispatch: str = ""
    """``warp_direct`` for stores, ``warp_load`` for loads, ``multimem`` in the switch unless named."""
    combine: str = ""
    """The same for combine."""

    @model_validator(mode="after")
    def _check_names(self) -> FamiliesSpec:
        for name in filter(None, (self.dispatch, self.combine)):
            _require_known("family of kernels", name, FAMILIES)
        return self


def _require_known(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"'{name}' is not a {what}; choose from {list(known)}{did_you_mean(name, known)}")


class PaysSpec(Spec):
    """Costs paid before each stage of each part may start; a stage that overlaps the one before pays none.

    ``launch`` starts the first kernel of a layer, ``gap`` one right behind another; ``barrier``, ``count_exchange`` and
    ``plan`` (of copies of experts, from those counts) are the system's. The others are kernels of their own, launch
    included, that read and write HBM (see ``simulator/phases.py``): ``quantise``, a home GPU's tokens from BF16 into
    the format of dispatch, if that is another; ``layout``, counting where tokens go; ``permute``, copies into another
    order, of tokens, received rows or results, which at the end are added for each token; ``activation`` between the
    GEMMs. ``final_sum`` is that addition as the last part of a kernel, without a launch.

    Whoever does not pay ``count_exchange`` learns in band what comes: with readiness ``tile`` an expert's last tile, if
    it does not fill, closes only when every GPU has said that it has stored what it dispatches.
    """

    dispatch: tuple[Cost, ...] = ("launch",)
    """Before the first token is sent."""
    gemm1: tuple[Cost, ...] = ()
    """Before GEMM-1, where that waits for a GPU or for all."""
    gemm2: tuple[Cost, ...] = ()
    """Before GEMM-2, where that waits for GEMM-1 of its GPU."""
    combine: tuple[Cost, ...] = ()
    """Before results are sent home, where that waits for a GPU or for all."""
    end: tuple[Cost, ...] = ()
    """After the last token is home."""

    @model_validator(mode="after")
    def _check_kernels_fit(self) -> PaysSpec:
        for stage in STAGES:
            for cost in getattr(self, stage):
                stages = KERNEL_STAGES.get(cost, STAGES)
                if stage not in stages:
                    raise ValueError(f"{stage} cannot pay '{cost}'; it belongs to {' or '.join(stages)}")
        return self


# Rules of kinds that a schedule names no weights for. Prefetch takes the first matrix that drops nothing: to hold costs
# less than to drop one byte in a thousand million. A copy is made for the time that it takes off a GPU, against that
# which weights take of links; where the numbers come from stands in configs/schedules/dysharp-copies.yaml.
DEFAULT_RULES: dict[str, dict[str, float]] = {
    "prefetch": {"drops": -1.0, "is_hold": -1e-9},
    "replicate": {"gain": 1.3, "relief": 0.8, "beyond": 0.7, "cost": -1.0, "late": -0.3, "is_hold": -0.15},
}


class RuleSpec(RootModel[dict[str, Weights]]):
    """Scoring rule: for kinds of decision, weights by feature name; the highest score is taken, the first of equals.

    Of a kind without weights the first candidate is taken, but for those of ``DEFAULT_RULES``.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="after")
    def _check_names(self) -> RuleSpec:
        for kind, weights in self.root.items():
            _require_known("kind of decision", kind, DECISION_KINDS)
            for name in weights:
                _require_known("feature", name, RULE_FEATURES)
        return self

    def matrix(self) -> np.ndarray:
        """Returns the (kind, feature) weights."""
        weights = np.zeros((NUM_KINDS, NUM_FEATURES))
        for kind, named in {**DEFAULT_RULES, **self.root}.items():
            for name, weight in named.items():
                weights[DECISION_KINDS.index(kind), FEATURES.index(name)] = weight
        return weights
