"""What a program, or a broken table, can do wrong with multimem; every fault names the packet it happened on, if any.

Hardware would raise these as link or memory faults on the GPU that issued the packet. PTX leaves a plain access to a
multimem address undefined (PTX ISA, ``multimem``); here it is a fault like the others.
"""

from __future__ import annotations

from dysharp_env.multimem.packets import Packet


class MultimemFault(RuntimeError):
    """Something a multimem packet asked for cannot be done.

    Attributes:
        packet: The packet, or None where the mistake was found before one was built or decoded.
    """

    def __init__(self, reason: str, packet: Packet | None = None) -> None:
        super().__init__(reason if packet is None else f"{reason} [{packet.describe()}]")
        self.packet = packet


class WireFault(MultimemFault):
    """Bytes that are no packet, or a packet whose fields do not fit their bits."""


class AddressFault(MultimemFault):
    """An address outside its region, or data that crosses the end of a block."""


class TargetFault(MultimemFault):
    """A target that is no expert, is named twice, or is not on the GPU that the packet reached."""


class CountFault(MultimemFault):
    """A count that contradicts what it counts: targets in a list, or contributions to a sum."""


class BindFault(MultimemFault):
    """More tokens for an expert than were bound, or an address region used before it was bound."""


class UndispatchedFault(MultimemFault):
    """A combine that names a token its target expert never received."""


class PlainAccessFault(MultimemFault):
    """A plain load or store of a multimem address, or a multimem instruction on a plain one."""


class ScheduleFault(MultimemFault):
    """A schedule that uses data before it exists, moves it twice, or ends without all of it."""
