"""What a primitive is: who starts it, where vectors multiply or add up, and what its packets name.

One table for the engine, its twin, the lower bound and the functional machine; nobody compares names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

DispatchPrimitive = Literal["unicast", "multicast", "broadcast", "team", "pull"]
CombinePrimitive = Literal["unicast", "pull_reduce", "push_reduce", "reduce_scatter", "pull"]
# What moves vectors in a communication kernel: warps that copy through ring buffers (DeepEP's normal kernels), that
# cast and store straight to an expert's slots (its low-latency ones) or to where a vector belongs (one-sided stores),
# that load, or that pass vectors through FIFOs with a partner on either side; bulk copies (TMA: HybridEP, Mega MoE);
# and multimem instructions.
Family = Literal["warp_queue", "warp_low_latency", "warp_direct", "warp_load", "warp_two_sided", "bulk", "multimem"]
FAMILIES: tuple[str, ...] = get_args(Family)
_LOADING, _STORING = ("warp_load", "bulk"), tuple(name for name in FAMILIES if name not in ("warp_load", "multimem"))
# What a system's switch is taken to have: all that its preset says, or of that what can be bought.
Hardware = Literal["dynamic-multimem", "today"]


@dataclass(frozen=True)
class Primitive:
    """How the vectors of one direction move.

    Attributes:
        name: What systems, schedules and results call it.
        reads: The GPU that wants a vector asks for it, rather than the one that has it storing it there.
        in_switch: The switch copies one store to many GPUs (dispatch), or adds up what several hold (combine).
        names_targets: Packets name the experts they are for: dynamic multimem, sent through its queue.
        to_all: It addresses every GPU, whether that has an expert of the token or not: static multimem.
        by_team: A store reaches any subset of a group of neighbouring GPUs, for each of which there is a team made
            beforehand; a vector is stored once for every group in which it has a target.
        is_proposed: Only hardware that papers propose has it.
    """

    name: str
    reads: bool = False
    in_switch: bool = False
    names_targets: bool = False
    to_all: bool = False
    by_team: bool = False
    is_proposed: bool = False

    @property
    def usual_family(self) -> Family:
        """The family of kernels that issues it, unless a schedule says which other does."""
        if self.in_switch:
            return "multimem"
        return "warp_load" if self.reads else "warp_direct"

    @property
    def families(self) -> tuple[str, ...]:
        """The families of kernels that can issue it: bulk copies go either way, warps load or store."""
        if self.in_switch:
            return ("multimem",)
        return _LOADING if self.reads else _STORING

    def require_family(self, family: str) -> None:
        """Checks that a family of kernels can issue this primitive.

        Raises:
            ValueError: It cannot.
        """
        if family not in self.families:
            raise ValueError(f"'{family}' does not issue {self.name}; choose from {[*self.families]}")


def _by_name(*primitives: Primitive) -> dict[str, Primitive]:
    return {primitive.name: primitive for primitive in primitives}


DISPATCH_PRIMITIVES = _by_name(
    Primitive("unicast"),
    Primitive("multicast", in_switch=True, names_targets=True, is_proposed=True),  # dymultimem.st
    Primitive("broadcast", in_switch=True, to_all=True),  # NVLS multimem.st
    Primitive("team", in_switch=True, by_team=True),  # NVLS multimem.st, a multicast object for every subset
    Primitive("pull", reads=True),
)
COMBINE_PRIMITIVES = _by_name(
    Primitive("unicast"),
    Primitive("pull_reduce", reads=True, in_switch=True, names_targets=True, is_proposed=True),  # dymultimem.ld_reduce
    Primitive("push_reduce", in_switch=True, is_proposed=True),  # partial sums merged: CAIS, arXiv 2605.05628
    Primitive("reduce_scatter", reads=True, in_switch=True, to_all=True),  # NVLS multimem.ld_reduce
    Primitive("pull", reads=True),
)
