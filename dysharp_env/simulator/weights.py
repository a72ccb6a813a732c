"""What it costs to copy experts' weights while a layer runs: tiles, their packets, SMs, and the gradients' way home.

A matrix moves in tiles, GEMM-1's before GEMM-2's; a tile is one segment at either resolution. An SM works on tiles as
the kernels of some family do on vectors (families.py); the SMs of a GPU that move weights issue them in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from dysharp_env.config import ConfigError
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.families import SmCosts
from dysharp_env.simulator.phases import COPY_GRADIENTS, STAGES, PhaseKernel
from dysharp_env.simulator.program import Program
from dysharp_env.system.packet import PacketFormat
from dysharp_env.system.primitives import Primitive
from dysharp_env.workload.workload import Workload


class WeightTile(NamedTuple):
    """A tile of any expert's weights.

    Attributes:
        gemm: Whose matrix it is of: 0 for GEMM-1, 1 for GEMM-2.
        num_bytes: Its bytes.
        packets: Packets that carry it.
        payload_flits: Data flits in them.
        ask_flits: Flits that ask for it.
    """

    gemm: int
    num_bytes: int
    packets: int
    payload_flits: int
    ask_flits: int


@dataclass(frozen=True)
class WeightCosts:
    """How weights move under one program.

    Attributes:
        primitive: What moves them.
        packet: Their packets.
        sm: How one SM works on a full tile.
        copy_sms: SMs of a GPU that issues some, if it has so many.
        tiles: Those of an expert, in the order in which they are issued.
        gradients: What the end of a backward pass takes, links included; nothing in a forward pass.
    """

    primitive: Primitive
    packet: PacketFormat
    sm: SmCosts
    copy_sms: int
    tiles: tuple[WeightTile, ...]
    gradients: PhaseKernel

    @classmethod
    def of(cls, costs: Costs, program: Program, workload: Workload) -> WeightCosts | None:
        """Returns how a workload's copies get their weights; None if it has none.

        Raises:
            ConfigError: The program says nothing of copies, the GPU has no such family of kernels, or there is more
                to move than exact picoseconds can say.
        """
        num_copies = workload.placement.num_copies
        if num_copies == 0:
            return None
        primitive = program.copying
        if primitive is None:
            raise ConfigError(
                f"the placement has {num_copies} copies made in the layer, which the schedule cannot make"
            )
        family = program.copying_family or primitive.usual_family
        packet = costs.families.packet_of(family, primitive.in_switch)
        tiles = _tiles(costs.matrix_bytes, program.weight_tile_bytes, packet)
        tile_bytes = max(tile.num_bytes for tile in tiles)
        trip_ps = costs.trip_ps(primitive, packet, tile_bytes)
        gradients = PhaseKernel()
        for kernel in costs.phase_kernels(STAGES.index("end"), (COPY_GRADIENTS,)):
            gradients = kernel._replace(link_ps=costs.spread_ps(packet.data_flits(kernel.copy_bytes)))
        sm = costs.families.sm_costs(family, tile_bytes, trip_ps)
        found = cls(primitive, packet, sm, program.copy_sms, tiles, gradients)
        found._require_exact(costs, num_copies)
        return found

    def head_flits(self, copies: int) -> int:
        """Returns the flits of a packet before its data, where it is for so many copies at once."""
        return self.packet.header_flits + self.packet.target_flits(copies * self.primitive.names_targets)

    def pace_ps(self, sms: int) -> int:
        """Returns the time between two tiles that so many SMs issue."""
        return self.sm.vector_ps // sms

    def in_flight(self, sms: int) -> int:
        """Returns how many tiles so many SMs have under way at most."""
        return self.sm.slots * sms

    def _require_exact(self, costs: Costs, num_copies: int) -> None:
        """Checks that no sum of times leaves int64: all copies through one link, or through one HBM, thrice over."""
        flits = num_copies * sum(tile.packets * self.head_flits(num_copies) + tile.payload_flits for tile in self.tiles)
        num_bytes = num_copies * sum(tile.num_bytes for tile in self.tiles)
        largest = max(
            2 * flits * costs.flit_ps[0],
            3 * costs.hbm_ps(num_bytes),
            max(tile.num_bytes for tile in self.tiles) * max(costs.matrix_bytes),
            num_copies * (self.gradients.link_ps + 3 * costs.hbm_ps(self.gradients.gradient_bytes)),
        )
        if largest >= 2**62:
            raise ConfigError(f"{num_copies} copies are too many for exact picoseconds on this system")


def _tiles(matrix_bytes: tuple[int, int], tile_bytes: int, packet: PacketFormat) -> tuple[WeightTile, ...]:
    tiles: list[WeightTile] = []
    for gemm, whole in enumerate(matrix_bytes):
        full, rest = divmod(whole, tile_bytes)
        for num_bytes, count in ((tile_bytes, full), (rest, 1 if rest else 0)):
            sizes = packet.packets(num_bytes), packet.payload_flits(num_bytes), packet.ask_flits(num_bytes)
            tiles += [WeightTile(gemm, num_bytes, *sizes)] * count
    return tuple(tiles)
