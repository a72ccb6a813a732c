"""How a store or load crosses the machine: up to the switch, down to its receivers, and what answers it back again.

Used alike by plain memory, fixed teams and dynamic multimem, which differ in how the switch routes a packet and in what
its receivers do with it. A GPU keeps every store until it is acknowledged, as its memory system must before a fence can
pass; ``check_idle`` is that fence. Packets arrive in the order in which they are sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from dysharp_env.multimem.faults import AddressFault, CountFault
from dysharp_env.multimem.links import Links
from dysharp_env.multimem.packets import Kind, Packet
from dysharp_env.multimem.switch import ReplyKey, Switch, reply_key

FLOAT_BYTES = 4


class Fabric:
    """The links and the switch, and the stores that GPUs have under way.

    Attributes:
        links, switch: The parts.
        payload_bytes: Most bytes that one packet carries.
        unacknowledged: Stores that their GPUs wait for.
    """

    def __init__(self, links: Links, switch: Switch, payload_bytes: int) -> None:
        self.links = links
        self.switch = switch
        self.payload_bytes = payload_bytes
        self.unacknowledged: dict[ReplyKey, Packet] = {}

    def cut(self, data: np.ndarray) -> Iterator[tuple[int, bytes]]:
        """Yields (offset, payload) of each packet of (values,) float32."""
        raw = np.ascontiguousarray(data, "<f4").tobytes()
        for start, length in self.lengths(len(raw)):
            yield start, raw[start : start + length]

    def lengths(self, length: int) -> Iterator[tuple[int, int]]:
        """Yields (offset, bytes) of each packet of ``length`` bytes."""
        for start in range(0, length, self.payload_bytes):
            yield start, min(self.payload_bytes, length - start)

    def write(
        self,
        packet: Packet,
        route: Callable[[Packet], list[tuple[int, Packet]]],
        store: Callable[[int, Packet], None],
    ) -> None:
        """Sends a store to its receivers, whose acknowledgements the switch merges into one.

        ``route`` gives (GPU, replica) of each receiver; ``store`` is what a receiver does with its replica.

        Raises:
            MultimemFault: A table contradicts itself, or what ``route`` and ``store`` raise.
        """
        self.issue(packet)
        sent = self.links.up(packet.source, packet)
        replicas = route(sent)
        self.switch.expect_acks(sent, len(replicas))
        for port, replica in replicas:
            arrived = self.links.down(port, replica)
            store(port, arrived)
            merged = self.switch.merge_ack(self.links.up(port, acknowledgement(arrived)))
            if merged is not None:
                self.retire(self.links.down(merged.source, merged))

    def read(self, packet: Packet, gpu: int, load: Callable[[int, Packet], bytes]) -> bytes:
        """Returns what GPU ``gpu`` answers to a load, which ``load`` finds for the request as it arrives.

        Raises:
            CountFault: The response does not answer the request.
        """
        asked = self.links.down(gpu, self.links.up(packet.source, packet))
        payload = load(gpu, asked)
        response = replace(asked, kind=Kind.RESPONSE, length=len(payload), payload=payload)
        came = self.links.down(packet.source, self.links.up(gpu, response))
        if (reply_key(came), came.length, came.count) != (reply_key(packet), packet.length, packet.count):
            raise CountFault(f"no load of {packet.length} B waits for this response", came)
        return came.payload

    def issue(self, packet: Packet) -> None:
        """Notes a store that its GPU sends.

        Raises:
            CountFault: An earlier store of this GPU to the same address is still under way.
        """
        if reply_key(packet) in self.unacknowledged:
            raise CountFault("an earlier store to this address is not acknowledged yet", packet)
        self.unacknowledged[reply_key(packet)] = packet

    def retire(self, ack: Packet) -> None:
        """Ends the store that an acknowledgement answers.

        Raises:
            CountFault: No store of this length waits for it.
        """
        store = self.unacknowledged.pop(reply_key(ack), None)
        if store is None or store.length != ack.length:
            raise CountFault("no store of this length waits for this acknowledgement", ack)

    def check_idle(self) -> None:
        """Checks that nothing is under way any more.

        Raises:
            CountFault: A store is not acknowledged, or the switch waits for something.
        """
        self.switch.check_idle()
        for store in self.unacknowledged.values():
            raise CountFault("this store was never acknowledged", store)


def acknowledgement(store: Packet) -> Packet:
    """Returns what says that a store is stored."""
    return replace(store, kind=Kind.ACK, payload=b"", targets=(), count=0)


def require_floats(packet: Packet) -> None:
    """Checks that a packet moves whole float32 values.

    Raises:
        AddressFault: Its length or address is not a multiple of 4.
    """
    if packet.length % FLOAT_BYTES or packet.address % FLOAT_BYTES:
        raise AddressFault("data must be whole float32 values", packet)
