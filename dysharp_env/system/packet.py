"""Packet arithmetic of NVLink with static and dynamic multimem: how many flits each transaction puts on each link.

A packet is ``header_flits``, then target flits (dynamic multimem only), then up to ``payload_bytes`` of data. A write
is acknowledged with ``ack_flits``; a read asks with ``request_flits``. All vectors, requests and acknowledgements that
the simulator charges to a link come from here, so wire traffic is an exact count. CRC and byte enables are taken as
part of the header; the byte-enable flits that real packets may have are not charged.

Sources: the format and its 16-bit targets, DySHARP (arXiv 2605.05607), sections on addressing; the 128 B payload, 16 B
flit and 1-flit header and acknowledgement are the only sizes that give that paper's 80.0 % and 69.2 %.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PacketFormat:
    """Sizes of one packet, in bytes and flits."""

    flit_bytes: int = 16
    payload_bytes: int = 128
    header_flits: int = 1
    ack_flits: int = 1
    request_flits: int = 1
    target_bytes: int = 2
    multimem_request_bytes: int | None = None
    """Bytes that one dynamic-multimem request asks for, answered in packets; None: those of one packet."""

    @property
    def targets_per_flit(self) -> int:
        """Returns how many expert ids one target flit holds."""
        return self.flit_bytes // self.target_bytes

    def packets(self, vector_bytes: int) -> int:
        """Returns how many packets carry a vector."""
        return -(-vector_bytes // self.payload_bytes)

    def payload_flits(self, vector_bytes: int) -> int:
        """Returns how many data flits carry a vector; the last one may be part empty."""
        return -(-vector_bytes // self.flit_bytes)

    def target_flits(self, targets: int) -> int:
        """Returns how many target flits one packet with this many target experts has (0 targets: none)."""
        return -(-targets // self.targets_per_flit)

    def data_flits(self, vector_bytes: int, targets: int = 0) -> int:
        """Returns the flits of a vector sent as stores or read responses, ``targets`` experts named in each packet."""
        per_packet = self.header_flits + self.target_flits(targets)
        return self.packets(vector_bytes) * per_packet + self.payload_flits(vector_bytes)

    def segment_flits(self, vector_bytes: int, segments: int) -> list[int]:
        """Returns the data flits of a vector's segments: all of it, or one for each packet, the last maybe shorter."""
        if segments == 1:
            return [self.payload_flits(vector_bytes)]
        full = self.payload_bytes // self.flit_bytes
        return [full] * (segments - 1) + [self.payload_flits(vector_bytes) - full * (segments - 1)]

    def ask_flits(self, vector_bytes: int, targets: int = 0) -> int:
        """Returns the flits of the read requests for a vector, ``targets`` experts named in each of them."""
        asked_bytes = (self.multimem_request_bytes if targets else None) or self.payload_bytes
        requests = -(-vector_bytes // asked_bytes)
        return requests * (self.request_flits + self.target_flits(targets))

    def acknowledge_flits(self, vector_bytes: int) -> int:
        """Returns the flits that acknowledge a stored vector to one sender."""
        return self.packets(vector_bytes) * self.ack_flits

    def multicast_efficiency(self, destinations: int, address_flits: int = 0) -> float:
        """Returns payload over wire flits, in and out of the switch, of one multicast store packet and its acks.

        The store enters the switch once and leaves ``destinations`` times; each destination acknowledges, the switch
        merges. Payload is the data of the original and of every replica, which gives the paper's 72 of 90 flits.
        ``address_flits`` take the place of one flit in the request and in the merged response (explicit addressing).
        """
        data = self.payload_bytes // self.flit_bytes
        copies = destinations + 1
        explicit = max(address_flits - 1, 0)
        wire = copies * (data + self.header_flits) + (destinations + 1) * self.ack_flits + 2 * explicit
        return copies * data / wire
