"""Static multimem as today's hardware has it: one address, the same offset on every GPU of a fixed team.

``multimem.st`` stores to all replicas, ``multimem.red`` adds to each of them, ``multimem.ld_reduce`` loads from all and
returns the sum (PTX ISA, ``multimem``; float32 add only). The issuing GPU's own replica is reached without a link.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.multimem.faults import AddressFault, CountFault, PlainAccessFault
from dysharp_env.multimem.links import MULTIMEM_BASE, STATIC_BASE, Links
from dysharp_env.multimem.switch import Switch
from dysharp_env.multimem.wire import Kind, Packet, Stage


class Team:
    """A multicast object: a fixed set of GPUs and a buffer of the same size on each.

    Attributes:
        gpus: Members; they cannot change.
        memory: (member, bytes) uint8 replicas.
    """

    def __init__(
        self, gpus: tuple[int, ...], size_bytes: int, links: Links, switch: Switch, payload_bytes: int
    ) -> None:
        """Creates the object with all replicas zero."""
        if len(set(gpus)) != len(gpus) or not gpus:
            raise ConfigError(f"team={list(gpus)} must name at least one GPU, each once")
        if not all(0 <= gpu < switch.num_ports for gpu in gpus):
            raise ConfigError(f"team={list(gpus)} names a GPU outside 0 to {switch.num_ports - 1}")
        self.gpus = gpus
        self.memory = np.zeros((len(gpus), size_bytes), np.uint8)
        self._links, self._switch, self._payload_bytes = links, switch, payload_bytes

    def replica(self, gpu: int) -> np.ndarray:
        """Returns a member's buffer, (bytes,) uint8, shared with the team."""
        return self.memory[self.gpus.index(gpu)]

    def st(self, gpu: int, data: np.ndarray, address: int, stage: Stage = Stage.DISPATCH) -> None:
        """``multimem.st``: stores (values,) float32 to every replica.

        Raises:
            AddressFault, PlainAccessFault: The address is not the team's.
        """
        self._write(Kind.MULTIMEM_STORE, gpu, data, address, stage)

    def red(self, gpu: int, data: np.ndarray, address: int, stage: Stage = Stage.COMBINE) -> None:
        """``multimem.red``: adds (values,) float32 to every replica.

        Raises:
            AddressFault, PlainAccessFault: The address is not the team's.
        """
        self._write(Kind.MULTIMEM_RED, gpu, data, address, stage)

    def ld_reduce(self, gpu: int, length: int, address: int, stage: Stage = Stage.COMBINE) -> np.ndarray:
        """``multimem.ld_reduce``: returns (values,) float32, the sum of ``length`` bytes over all replicas.

        Raises:
            AddressFault, PlainAccessFault: The address is not the team's.
        """
        parts = []
        for start in range(0, length, self._payload_bytes):
            size = min(self._payload_bytes, length - start)
            request = Packet(Kind.MULTIMEM_LOAD, stage, address + start, gpu, size)
            offset = self._offset(request)
            parts.append(self._sum(self._links.up(gpu, request), offset))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _write(self, kind: Kind, gpu: int, data: np.ndarray, address: int, stage: Stage) -> None:
        raw = np.ascontiguousarray(data, "<f4").tobytes()
        for start in range(0, len(raw), self._payload_bytes):
            payload = raw[start : start + self._payload_bytes]
            packet = Packet(kind, stage, address + start, gpu, len(payload), payload=payload)
            offset = self._offset(packet)
            if gpu in self.gpus:
                self._apply(self.replica(gpu), offset, packet)
            others = [member for member in self.gpus if member != gpu]
            if not others:
                continue
            sent = self._links.up(gpu, packet)
            self._switch.expect_acks(sent, len(others))
            for member in others:
                self._apply(self.replica(member), offset, self._links.down(member, sent))
                ack = replace(sent, kind=Kind.ACK, payload=b"")
                merged = self._switch.merge_ack(self._links.up(member, ack))
                if merged is not None:
                    self._links.down(gpu, merged)

    def _apply(self, buffer: np.ndarray, offset: int, packet: Packet) -> None:
        into = buffer[offset : offset + packet.length].view("<f4")
        values = np.frombuffer(packet.payload, "<f4")
        if packet.kind == Kind.MULTIMEM_RED:
            into += values
        else:
            into[:] = values

    def _sum(self, request: Packet, offset: int) -> np.ndarray:
        """Returns the sum of one packet's worth; the switch adds the others' replicas, the requester its own."""
        gpu = request.source
        total = np.zeros(request.length // 4, np.float32)
        others = [member for member in self.gpus if member != gpu]
        if others:
            self._switch.open_reduction(request, len(others))
        for member in others:
            asked = self._links.down(member, request)
            payload = self.replica(member)[offset : offset + asked.length].tobytes()
            response = replace(asked, kind=Kind.RESPONSE, count=1, payload=payload)
            for packet in self._switch.reduce(self._links.up(member, response)):
                total += np.frombuffer(self._links.down(gpu, packet).payload, "<f4")
        if gpu in self.gpus:
            total += self.replica(gpu)[offset : offset + request.length].view("<f4")
        return total

    def _offset(self, packet: Packet) -> int:
        if packet.address < MULTIMEM_BASE:
            raise PlainAccessFault("multimem instruction on a plain address", packet)
        offset = packet.address - STATIC_BASE
        if offset < 0 or offset + packet.length > self.memory.shape[1]:
            raise AddressFault(f"address is outside the team's {self.memory.shape[1]} B", packet)
        if packet.length % 4 or offset % 4:
            raise CountFault("data must be whole float32 values", packet)
        return offset
