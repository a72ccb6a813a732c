"""Ordinary memory of all GPUs: plain stores and loads of one GPU's memory by another, and pushed sums that land there.

A pushed sum is a store that the switch may merge with others to the same address on its way (as ``red.cais`` in CAIS,
arXiv 2605.05628): it acknowledges each push itself, since it holds the sum then, and the home GPU adds what reaches it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from dysharp_env.multimem.fabric import Fabric, acknowledgement, require_floats
from dysharp_env.multimem.faults import AddressFault, CountFault, PlainAccessFault
from dysharp_env.multimem.links import MULTIMEM_BASE, WINDOW_BITS
from dysharp_env.multimem.packets import Kind, Packet, Stage


class PlainMemory:
    """Plain memory of every GPU.

    Attributes:
        memory: (GPU, bytes) uint8.
        pushed: Contributions that have arrived at each (home GPU, address) and are not checked yet.
    """

    def __init__(self, num_gpus: int, num_bytes: int, fabric: Fabric) -> None:
        """Sets up ``num_bytes`` of zeros on each of ``num_gpus``."""
        self.memory = np.zeros((num_gpus, num_bytes), np.uint8)
        self.pushed: Counter[tuple[int, int]] = Counter()
        self._fabric = fabric

    def values(self, gpu: int, offset: int, length: int) -> np.ndarray:
        """Returns (values,) float32 of a GPU's memory, shared with it; the GPU itself reads and writes here."""
        return self.memory[gpu, offset : offset + length].view("<f4")

    def st(self, gpu: int, data: np.ndarray, address: int, stage: Stage) -> None:
        """Plain store of (values,) float32 to one GPU's memory.

        Raises:
            PlainAccessFault: It is a multimem address.
            AddressFault: No GPU has the address, or it is not one of whole values.
        """
        for start, payload in self._fabric.cut(data):
            packet = Packet(Kind.WRITE, stage, address + start, gpu, len(payload), payload=payload)
            target, _ = self._place(packet)
            if target == gpu:
                self._store(gpu, packet)
            else:
                self._fabric.write(packet, lambda sent: [(self._place(sent)[0], sent)], self._store)

    def ld(self, gpu: int, length: int, address: int, stage: Stage) -> np.ndarray:
        """Plain load of ``length`` bytes from one GPU's memory, as (values,) float32.

        Raises:
            PlainAccessFault: It is a multimem address.
            AddressFault: No GPU has the address, or it is not one of whole values.
        """
        parts = []
        for start, size in self._fabric.lengths(length):
            packet = Packet(Kind.LOAD, stage, address + start, gpu, size)
            target, _ = self._place(packet)
            parts.append(self._load(gpu, packet) if target == gpu else self._fabric.read(packet, target, self._load))
        return np.frombuffer(b"".join(parts), "<f4").copy()

    def push_sum(self, gpu: int, data: np.ndarray, address: int, count: int, stage: Stage) -> None:
        """Pushes one of ``count`` GPUs' partial sums, (values,) float32, to another GPU; the switch merges them.

        Raises:
            PlainAccessFault, AddressFault: The address is not plain memory.
            CountFault: Other GPUs pushed to this address with another count.
        """
        fabric = self._fabric
        for start, payload in fabric.cut(data):
            packet = Packet(Kind.PUSH, stage, address + start, gpu, len(payload), count, payload=payload)
            home, _ = self._place(packet)
            fabric.issue(packet)
            sent = fabric.links.up(gpu, packet)
            leaving = fabric.switch.push(sent, home)
            fabric.retire(fabric.links.down(gpu, acknowledgement(sent)))
            for merged in leaving:
                # An evicted partial sum is another token's and carries its own address.
                fabric.switch.expect_acks(merged, 1)
                arrived = fabric.links.down(home, merged)
                self._add_pushed(home, arrived)
                fabric.switch.merge_ack(fabric.links.up(home, acknowledgement(arrived)))

    def check_pushed(self, gpu: int, length: int, address: int, count: int) -> None:
        """Checks that ``length`` bytes of pushed sums at an address of a GPU have all their ``count`` contributions.

        Raises:
            CountFault: They have not.
        """
        for start, _ in self._fabric.lengths(length):
            pushed = self.pushed.pop((gpu, address + start), 0)
            if pushed != count:
                raise CountFault(f"{pushed} of {count} sums were pushed to {address + start:#x} of GPU {gpu}")

    def check_idle(self) -> None:
        """Checks that nobody pushed a sum that its home GPU did not take.

        Raises:
            CountFault: Somebody did.
        """
        for (gpu, address), pushed in self.pushed.items():
            raise CountFault(f"{pushed} sums were pushed to {address:#x} of GPU {gpu}, which never took them")

    def _place(self, packet: Packet) -> tuple[int, int]:
        """Returns the GPU and the offset in its memory that a packet addresses."""
        if packet.address >= MULTIMEM_BASE:
            raise PlainAccessFault("plain access to a multimem address", packet)
        num_gpus, num_bytes = self.memory.shape
        gpu, offset = packet.address >> WINDOW_BITS, packet.address & ((1 << WINDOW_BITS) - 1)
        if gpu >= num_gpus or offset + packet.length > num_bytes:
            raise AddressFault(f"no GPU has this address; {num_gpus} GPUs have {num_bytes} B each", packet)
        require_floats(packet)
        return gpu, offset

    def _store(self, gpu: int, packet: Packet) -> None:
        _, offset = self._place(packet)
        self.memory[gpu, offset : offset + packet.length] = np.frombuffer(packet.payload, np.uint8)

    def _load(self, gpu: int, packet: Packet) -> bytes:
        _, offset = self._place(packet)
        return self.memory[gpu, offset : offset + packet.length].tobytes()

    def _add_pushed(self, home: int, packet: Packet) -> None:
        _, offset = self._place(packet)
        self.values(home, offset, packet.length)[:] += np.frombuffer(packet.payload, "<f4")
        self.pushed[home, packet.address] += packet.count
