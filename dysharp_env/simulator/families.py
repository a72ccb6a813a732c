"""Families of communication kernels as integer costs: how one SM works on vectors, and the packets it sends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from dysharp_env.config import ConfigError
from dysharp_env.simulator.phases import STAGES, START, PhaseKernel
from dysharp_env.system import FamilySpec
from dysharp_env.system.packet import PacketFormat
from dysharp_env.system.primitives import Primitive

UNLIMITED = 2**40
# (Stage, name, what it takes); see phases.py.
Kernels = tuple[tuple[int, str, PhaseKernel], ...]


@dataclass(frozen=True)
class SmCosts:
    """How one communication SM works on the vectors of one direction.

    A vector is at hand from when the SM takes it until its round trip is over: the acknowledgement is back, or what was
    asked for is here. It departs, or the request for it, when it has been at hand for as long as its share of the SM's
    work takes, less a round trip through an idle switch. So an SM whose places are full sends a vector off after each
    ``vector_ps``, or ``slots`` in each ``trip_ps`` where that is slower, and a lone vector takes ``slots * vector_ps``.

    Attributes:
        slots: Vectors at hand at once.
        vector_ps: Work on one vector.
        token_ps: Work on one token besides.
        trip_ps: Round trip of a vector through an idle switch.
        prepare_ps: Work of the whole SM on a stored token before any of its vectors is at hand.
        own_ps: Work on a vector that stays on its GPU.
    """

    slots: int = UNLIMITED
    vector_ps: int = 0
    token_ps: int = 0
    trip_ps: int = 0
    prepare_ps: int = 0
    own_ps: int = 0

    def delay_ps(self, token_ps: int = 0) -> int:
        """Returns how long a vector, with so much of a token's work, is at hand before it departs."""
        return max(0, self.slots * (self.vector_ps + token_ps) - self.trip_ps)


@dataclass(frozen=True)
class Families:
    """The families of communication kernels of a GPU.

    Attributes:
        specs: What they cost, by name; with none at all they cost nothing.
        packet: Packets of the links; a family may have a payload of its own.
        multimem_bytes: What MultimemQ of one SM holds; 0: any number of vectors.
        multimem_flits: What a packet has besides where the switch copies it or adds it up.
        experts: Experts of the layer.
    """

    specs: Mapping[str, FamilySpec] = field(hash=False)
    packet: PacketFormat
    multimem_bytes: int
    multimem_flits: int = 0
    experts: int = 0

    def packet_of(self, family: str, in_switch: bool) -> PacketFormat:
        """Returns the packets of a family of kernels."""
        spec, packet = self.specs.get(family), self.packet
        return replace(
            packet,
            payload_bytes=(spec.payload_bytes if spec else 0) or packet.payload_bytes,
            header_flits=packet.header_flits + self.multimem_flits * in_switch + (spec.extra_flits if spec else 0),
        )

    def packets_of(self, primitive: Primitive) -> list[PacketFormat]:
        """Returns the packets that a primitive may be issued in, by any family."""
        if primitive.in_switch:
            return [self.packet_of("multimem", in_switch=True)]
        return [self.packet_of(name, in_switch=False) for name in self.specs if name != "multimem"] or [self.packet]

    def sm_costs(self, family: str, vector_bytes: int, trip_ps: int) -> SmCosts:
        """Returns how an SM works on vectors of so many bytes and such a round trip.

        Raises:
            ConfigError: The GPU has families, and not this one.
        """
        name = self._named(family)
        if self.specs and name not in self.specs:
            raise ConfigError(f"family='{name}' is not in gpu.families; choose from {[*self.specs]}")
        spec = self.specs.get(name, FamilySpec())
        vector_ps, token_ps = round(spec.copy_ns * 1000 + vector_bytes * spec.byte_ps), round(spec.token_ns * 1000)
        if family != "multimem":
            if not self.specs:
                return SmCosts(trip_ps=trip_ps)
            prepare_ps = round(spec.prepare_ns * 1000 + vector_bytes * spec.prepare_byte_ps)
            return SmCosts(spec.vectors, vector_ps, token_ps, trip_ps, prepare_ps, vector_ps * spec.own_copies)
        if self.multimem_bytes == 0:
            return SmCosts(trip_ps=trip_ps)
        # A vector that the queue cannot hold takes as many round trips as it fills the queue.
        filled_ps = trip_ps * vector_bytes // self.multimem_bytes if vector_bytes > self.multimem_bytes else 0
        return SmCosts(max(1, self.multimem_bytes // vector_bytes), max(vector_ps, filled_ps), token_ps, trip_ps)

    def _named(self, family: str) -> str:
        """Returns the family that a family's costs are those of: a multimem instruction is a warp's."""
        return "warp_direct" if family == "multimem" and family not in self.specs else family

    def started(self, kernels: Kernels, out: str, home: str, sum_bytes: int) -> Kernels:
        """Returns what phases may pay with what kernels of two families take besides their vectors.

        Args:
            kernels: What else they may pay.
            out: The family that dispatches.
            home: The one that combines.
            sum_bytes: Of a sum.
        """
        others = [kernel for kernel in kernels if kernel[1] != START]
        dispatch, combine = (STAGES.index(stage) for stage in ("dispatch", "combine"))
        return (*others, (dispatch, START, self._start(out)), (combine, START, self._start(home, sum_bytes)))

    def _start(self, family: str, sum_bytes: int = 0) -> PhaseKernel:
        spec = self.specs.get(self._named(family), FamilySpec())
        start_ps = spec.start_us * 1e6 + spec.start_expert_ns * 1000 * self.experts + spec.sum_byte_ps * sum_bytes
        return PhaseKernel(launch_ps=round(start_ps), token_ps=round(spec.start_token_ns * 1000))
