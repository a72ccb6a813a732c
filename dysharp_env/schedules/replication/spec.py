"""What a schedule says of copies: who plans them, how many, and how their weights travel."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, PlainValidator, model_validator

from dysharp_env.config import ConfigError, Spec
from dysharp_env.simulator.program import require_copying
from dysharp_env.system import SystemSpec
from dysharp_env.system.primitives import DISPATCH_PRIMITIVES, FAMILIES, Primitive

Planner = Literal["none", "rule", "moonep", "ultraep", "llep", "eplb"]
Weights = Literal["pull", "unicast", "relay", "team", "multicast"]
PLANNERS: tuple[str, ...] = get_args(Planner)[2:]
_OF_PLANNERS = ("tolerance", "min_tokens", "threshold")  # settings of those that plan in the layer, 1 if left out
WEIGHTS: tuple[str, ...] = get_args(Weights)


def _check_slots(given: Any) -> int | Literal["experts", "any"]:
    if given in ("experts", "any") or (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
        return given
    raise ValueError("Input should be a number of slots, 1 at least, 'experts' or 'any'")


class ReplicateSpec(Spec):
    """Copies of experts, planned from the tokens of each (home GPU, expert); see ``planners.py`` for the rules."""

    planner: Planner = "none"
    """Who decides. ``rule``: the decisions ``replicate``, one copy after the other. ``eplb`` places replicas before the
    layer, from loads of an earlier batch, and nothing is moved in it; the others copy weights in the layer, once the
    counts are exchanged and the plan is paid for."""
    slots: Annotated[int | Literal["experts", "any"], PlainValidator(_check_slots)] = "experts"
    """Experts that a GPU has room for besides its own: a number, ``experts``, as many as it has without them (the share
    of a GPU, rounded up), or ``any``."""
    weights: Weights = "pull"
    """How weights travel. ``pull``: GPUs that want them read them. ``unicast``: GPUs that have them store them there.
    ``relay``: copies hand them on tile by tile as they come, so that no GPU sends an expert more than ``fan_out``
    times. ``team`` and ``multicast``: stored once, and the switch replicates them."""
    family: str = ""
    """Family of the kernels that move weights; empty: the one that usually issues the primitive. Bulk copies also store
    to what the switch replicates (``multimem.cp.async.bulk`` of the PTX ISA), for ``team``; that they may name targets,
    for ``multicast``, is assumed."""
    sms: int = Field(default=32, ge=1)
    """SMs of a GPU that moves weights, taken from its GEMMs while it does."""
    when: Literal["beside", "behind"] = "beside"
    """``beside``: weights travel from the start, beside tokens. ``behind``: a GPU moves weights once all that it
    dispatches is stored, so that no token waits for them on its links."""
    tile_kb: int = Field(default=16, ge=1, le=65536)
    """What one tile of weights holds, KiB. Set: a stage of bulk copies in shared memory, and what the multimem queue of
    one SM holds; larger ones keep tokens waiting on the links."""
    fan_out: int = Field(default=4, ge=1)
    """With ``relay``: copies that one GPU sends one expert to at most."""
    tolerance: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    """Load of the busiest GPU over the mean that is balanced enough; 1: exactly, up to one token."""
    min_tokens: int = Field(default=1, ge=1)
    """The fewest tokens that are worth a copy; for ``llep`` also the fewest that stay behind."""
    threshold: float = Field(default=1.0, ge=1, allow_inf_nan=False)
    """Load of the busiest GPU over the mean below which nothing is done at all."""
    replicas: Literal["nearest", "round_robin", "least_loaded"] = "round_robin"
    """With ``eplb``: which replica serves a token; see ``workload/replicas.py``."""

    @property
    def makes_copies(self) -> bool:
        """Whether weights may travel in the layer."""
        return self.planner not in ("none", "eplb")

    @property
    def primitive(self) -> Primitive:
        """What moves weights."""
        return DISPATCH_PRIMITIVES["unicast" if self.weights == "relay" else self.weights]

    @property
    def used_family(self) -> str:
        """The family of kernels that is asked for, if weights may travel."""
        return self.family if self.makes_copies else ""

    @property
    def most_sends(self) -> int | None:
        """Copies that a GPU sends one expert to at most; None: any number."""
        return self.fan_out if self.weights == "relay" else None

    def program(self) -> dict[str, Any]:
        """Returns the fields of a program that say how weights travel."""
        if not self.makes_copies:
            return {}
        return {
            "copying": self.primitive,
            "copying_family": self.family,
            "copy_sms": self.sms,
            "copies_behind": self.when == "behind",
            "weight_tile_bytes": self.tile_kb * 1024,
        }

    def require_fit(self, schedule: str, system: SystemSpec, gemm_sms: int) -> None:
        """Checks that a system can move weights so, beside a schedule that leaves so many SMs to GEMMs.

        Raises:
            ConfigError: The switch lacks the primitive, or GEMMs have too few SMs.
        """
        if not self.makes_copies:
            return
        known, primitive = system.switch.dispatch_primitives, self.primitive.name
        if primitive not in known:
            raise ConfigError(
                f"schedule='{schedule}' needs '{primitive}' for replicate.weights={self.weights};"
                f" {system.name} has {list(known)}"
            )
        if self.sms >= gemm_sms:
            raise ConfigError(
                f"schedule='{schedule}': replicate.sms={self.sms} leave none of the"
                f" {gemm_sms} SMs for GEMMs of {system.name}"
            )

    @model_validator(mode="after")
    def _check_settings_are_used(self) -> ReplicateSpec:
        if self.planner in ("none", "rule", "eplb"):
            given = [name for name in _OF_PLANNERS if getattr(self, name) != 1]
            if given:
                raise ValueError(f"{given[0]} does nothing with planner={self.planner}: leave it out")
        return self

    @model_validator(mode="after")
    def _check_family(self) -> ReplicateSpec:
        if self.family:
            if self.family not in FAMILIES:
                raise ValueError(f"'{self.family}' is not a family of kernels; choose from {list(FAMILIES)}")
            require_copying(self.primitive, self.family)
        return self


def replicate_defaults(planner: str, weights: str = "") -> dict[str, Any]:
    """Returns a planner's settings as it is published, by key of a schedule's ``replicate``.

    Args:
        planner: One of ``PLANNERS``.
        weights: How weights travel, if not as published.
    """
    settings = {"planner": planner, **_PUBLISHED[planner]}
    if weights and weights != settings.get("weights"):
        settings |= {"weights": weights, "family": "bulk"}
    return settings


# Sources stand in configs/schedules/PLANNER.yaml, whose sections these are (a test holds them to it).
_PUBLISHED: dict[str, dict[str, Any]] = {
    "moonep": {"slots": "experts", "weights": "pull", "family": "bulk", "sms": 32, "when": "behind"},
    "ultraep": {"slots": 2, "weights": "relay", "family": "bulk", "sms": 32, "fan_out": 4, "min_tokens": 1024},
    "llep": {
        "slots": "any",
        "weights": "unicast",
        "family": "warp_two_sided",
        "sms": 24,
        "min_tokens": 1024,
        "threshold": 1.3,
    },
    "eplb": {"slots": 1},
}
