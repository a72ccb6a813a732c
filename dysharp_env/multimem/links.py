"""The links of a functional machine: packets cross them as bytes, every flit is counted, and none is lost or damaged.

Addresses: bit 47 marks multimem, bit 46 a fixed team's region rather than a dynamic one; below that, bits 38 and up
name the GPU whose plain memory is meant. This map is a choice of this model; the published format only gives 48 bits.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from dysharp_env.multimem.packets import Kind, Packet, Stage
from dysharp_env.multimem.wire import FLIT_BYTES, decode, encode

MULTIMEM_BASE = 1 << 47
STATIC_BASE = MULTIMEM_BASE | 1 << 46
WINDOW_BITS = 38
MAX_GPUS = 1 << (47 - WINDOW_BITS)


class LinkUse(NamedTuple):
    """What flits are counted by: ``direction`` is ``up`` (GPU to switch) or ``down``."""

    gpu: int
    direction: str
    kind: Kind
    stage: Stage


class Links:
    """Uplink and downlink of every GPU.

    Attributes:
        flits: Flits sent so far.
    """

    def __init__(self) -> None:
        self.flits: Counter[LinkUse] = Counter()

    def up(self, gpu: int, packet: Packet) -> Packet:
        """Sends a packet from a GPU to the switch and returns it as decoded there."""
        return self._send(gpu, "up", packet)

    def down(self, gpu: int, packet: Packet) -> Packet:
        """Sends a packet from the switch to a GPU and returns it as decoded there."""
        return self._send(gpu, "down", packet)

    def _send(self, gpu: int, direction: str, packet: Packet) -> Packet:
        data = encode(packet)
        self.flits[LinkUse(gpu, direction, packet.kind, packet.stage)] += len(data) // FLIT_BYTES
        return decode(data)


def plain_address(gpu: int, offset: int) -> int:
    """Returns the address of a byte of one GPU's plain memory."""
    return gpu << WINDOW_BITS | offset
