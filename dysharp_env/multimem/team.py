"""Static multimem as today's hardware has it: one address, the same offset on every GPU of a fixed team.

``multimem.st`` stores to all replicas, ``multimem.red`` adds to each of them, ``multimem.ld_reduce`` loads from all and
returns the sum (PTX ISA, ``multimem``; float32 add only). The issuing GPU's own replica is reached without a link or,
with ``loopback``, through the switch like all others, as in NVLS collectives. The granularity of real multicast objects
(2 MB and more) is left out.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.multimem.fabric import Fabric, require_floats
from dysharp_env.multimem.faults import AddressFault, CountFault, PlainAccessFault, TargetFault
from dysharp_env.multimem.links import MULTIMEM_BASE
from dysharp_env.multimem.packets import Kind, Packet, Stage
from dysharp_env.multimem.switch import reply_key


class Team:
    """A multicast object: a fixed set of GPUs and a buffer of the same size on each.

    Attributes:
        base: Its first address.
        gpus: Members, as the switch's table lists them; they cannot change.
        memory: GPU -> (bytes,) uint8 replica.
    """

    def __init__(
        self, base: int, gpus: tuple[int, ...], size_bytes: int, fabric: Fabric, loopback: bool = False
    ) -> None:
        """Creates the object with all replicas zero."""
        num_gpus = fabric.switch.num_ports
        if len(set(gpus)) != len(gpus) or not gpus:
            raise ConfigError(f"team={list(gpus)} must name at least one GPU, each once")
        if not all(0 <= gpu < num_gpus for gpu in gpus):
            raise ConfigError(f"team={list(gpus)} names a GPU outside 0 to {num_gpus - 1}")
        self.base = base
        self.gpus = gpus
        self.memory = {gpu: np.zeros(size_bytes, np.uint8) for gpu in gpus}
        self._size_bytes, self._fabric, self._loopback = size_bytes, fabric, loopback

    def values(self, gpu: int, offset: int, length: int) -> np.ndarray:
        """Returns (values,) float32 of a member's replica, shared with the team; the member itself uses them here."""
        return self.memory[gpu][offset : offset + length].view("<f4")

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
        parts = [
            self._sum(Packet(Kind.MULTIMEM_LOAD, stage, address + start, gpu, size))
            for start, size in self._fabric.lengths(length)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _reach(self, gpu: int) -> tuple[bool, list[int]]:
        """Returns whether a GPU reaches a replica of its own without the switch, and the members behind the switch."""
        is_near = gpu in self.gpus and not self._loopback
        return is_near, [member for member in self.gpus if member != gpu or not is_near]

    def _write(self, kind: Kind, gpu: int, data: np.ndarray, address: int, stage: Stage) -> None:
        is_near, others = self._reach(gpu)
        for start, payload in self._fabric.cut(data):
            packet = Packet(kind, stage, address + start, gpu, len(payload), payload=payload)
            self._offset(packet)
            if is_near:
                self._apply(gpu, packet)
            if others:
                self._fabric.write(packet, lambda sent: [(member, sent) for member in others], self._apply)

    def _apply(self, gpu: int, packet: Packet) -> None:
        offset = self._offset(packet)
        if gpu not in self.memory:
            raise TargetFault(f"GPU {gpu} has no replica of this team", packet)
        into, values = self.values(gpu, offset, packet.length), np.frombuffer(packet.payload, "<f4")
        if packet.kind == Kind.MULTIMEM_RED:
            into += values
        else:
            into[:] = values

    def _sum(self, request: Packet) -> np.ndarray:
        """Returns the sum of one packet's worth; the switch adds what lies behind it, the requester what is near."""
        gpu, offset = request.source, self._offset(request)
        links, switch = self._fabric.links, self._fabric.switch
        total, counted = np.zeros(request.length // 4, np.float32), 0
        is_near, others = self._reach(gpu)
        if others:
            sent = links.up(gpu, request)
            switch.open_reduction(sent, len(others))
        for member in others:
            asked = links.down(member, sent)
            if member not in self.memory:
                raise TargetFault(f"GPU {member} has no replica of this team", asked)
            payload = self.values(member, self._offset(asked), asked.length).tobytes()
            response = replace(asked, kind=Kind.RESPONSE, count=1, payload=payload)
            for packet in switch.reduce(links.up(member, response)):
                arrived = links.down(gpu, packet)
                if reply_key(arrived) != reply_key(request):
                    raise CountFault("nobody waits for this sum", arrived)
                total += np.frombuffer(arrived.payload, "<f4")
                counted += arrived.count
        if counted != len(others):
            raise CountFault(f"only {counted} of {len(others)} replicas were summed", request)
        if is_near:
            total += self.values(gpu, offset, request.length)
        return total

    def _offset(self, packet: Packet) -> int:
        if packet.address < MULTIMEM_BASE:
            raise PlainAccessFault("multimem instruction on a plain address", packet)
        offset = packet.address - self.base
        if offset < 0 or offset + packet.length > self._size_bytes:
            raise AddressFault(f"address is outside the team's {self._size_bytes} B at {self.base:#x}", packet)
        require_floats(packet)
        return offset
