"""The switch's part of multimem: replicate by target, merge acknowledgements, sum responses in bounded slots.

A dynamic packet is routed by expert: expert -> GPU -> output port (a port is a GPU here; planes carry equal shares).
One replica leaves per distinct port, with only the targets behind it (DySHARP, arXiv 2605.05607, switch). A reduction
is opened by its request, or by the first partial sum pushed to an address (as ``red.cais`` in CAIS, arXiv 2605.05628),
with the number of contributions to come; each of them takes or finds an accumulator at the home GPU's port. When no
slot is free the oldest partial sum goes home early (as in CAIS) and its count stays, so the last contribution is still
recognised. Sums are float32, in the order in which contributions come.

The paper routes by dividing the expert id by the experts of a GPU, which fits contiguous placements only; hence a
table. How it merges acknowledgements is not published: here an entry for every store counts them down, also for stores
to a single GPU.
Left out: any bound on how many reductions or stores are open at once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from dysharp_env.multimem.faults import CountFault, TargetFault
from dysharp_env.multimem.packets import Kind, Packet, Stage

ReplyKey = tuple[int, Stage, int, int]  # source, stage, address, tag: what a reply answers


@dataclass
class Reduction:
    """One open reduction.

    Attributes:
        expected: Contributions still to come.
        announced: Contributions that each push of it announces; 0 if it was asked for.
    """

    expected: int
    announced: int = 0


@dataclass
class Slot:
    """One accumulator of the reduction buffer.

    Attributes:
        total: (values,) float32 what has been added.
        summed: Contributions in it, as the responses count them.
    """

    total: np.ndarray
    summed: int = 0


class Switch:
    """One switch; the port of a GPU has the GPU's number.

    Attributes:
        port_of_expert: (experts,) int64 routing table.
        reductions: Open reductions, by output port and then by what the reply answers.
        slots: Accumulators in use, likewise, oldest first; an open reduction need not have one.
        acks: Acknowledgements still to come for each store.
        evictions: Partial sums sent home early so far.
    """

    def __init__(self, port_of_expert: np.ndarray, num_ports: int, slots_per_port: int) -> None:
        """Sets up the tables of a switch whose reduction units have ``slots_per_port`` accumulators of one packet."""
        self.port_of_expert = np.array(port_of_expert, np.int64)
        self.num_ports = num_ports
        self.slots_per_port = slots_per_port
        self.reductions: list[dict[ReplyKey, Reduction]] = [{} for _ in range(num_ports)]
        self.slots: list[OrderedDict[ReplyKey, Slot]] = [OrderedDict() for _ in range(num_ports)]
        self.acks: dict[ReplyKey, int] = {}
        self.evictions = 0

    def replicate(self, packet: Packet) -> list[tuple[int, Packet]]:
        """Returns (port, replica) of a dynamic packet, ports in the order in which the list first names them.

        Raises:
            CountFault: It names no target.
            TargetFault: A target is no expert, is named twice, or is on the GPU that the packet came from.
        """
        if not packet.targets:
            raise CountFault("a dynamic packet needs at least one target", packet)
        if len(set(packet.targets)) != len(packet.targets):
            raise TargetFault("a target is named twice", packet)
        behind: dict[int, list[int]] = {}
        for target in packet.targets:
            if target >= len(self.port_of_expert):
                raise TargetFault(f"target {target} is no expert; there are {len(self.port_of_expert)}", packet)
            port = int(self.port_of_expert[target])
            if port == packet.source:
                raise TargetFault(f"expert {target} is on GPU {port}, which should have served it itself", packet)
            behind.setdefault(port, []).append(target)
        return [(port, replace(packet, targets=tuple(targets), count=len(targets))) for port, targets in behind.items()]

    def expect_acks(self, packet: Packet, copies: int) -> None:
        """Notes how many acknowledgements of a store are to be merged into one.

        Raises:
            CountFault: A store with the same address and tag still waits for its own.
        """
        key = reply_key(packet)
        if key in self.acks:
            raise CountFault("a store with this address and tag still waits for acknowledgements", packet)
        self.acks[key] = copies

    def merge_ack(self, ack: Packet) -> Packet | None:
        """Returns the acknowledgement for the sender if this was the last one of its store.

        Raises:
            CountFault: No store waits for it.
        """
        key = reply_key(ack)
        if key not in self.acks:
            raise CountFault("no store waits for this acknowledgement", ack)
        self.acks[key] -= 1
        if self.acks[key]:
            return None
        del self.acks[key]
        return ack

    def open_reduction(self, request: Packet, contributions: int) -> None:
        """Opens the reduction that a request asks for.

        Raises:
            CountFault: The same request is open already.
        """
        table = self.reductions[request.source]
        key = reply_key(request)
        if key in table:
            raise CountFault("this reduction is open already", request)
        table[key] = Reduction(expected=contributions)

    def reduce(self, response: Packet) -> list[Packet]:
        """Adds one contribution; returns what leaves for the requester: evicted partial sums, or the result.

        Raises:
            CountFault: No open reduction waits for it.
        """
        return self._add(response, announced=0)

    def push(self, packet: Packet, home: int) -> list[Packet]:
        """Adds one pushed partial sum for GPU ``home``; returns what leaves for it, as ``reduce`` does.

        Raises:
            CountFault: Another push to the same address announced another count.
        """
        contribution = replace(packet, kind=Kind.RESPONSE, source=home, count=1)
        self.reductions[home].setdefault(reply_key(contribution), Reduction(packet.count, packet.count))
        return self._add(contribution, announced=packet.count)

    def check_idle(self) -> None:
        """Checks that no store waits for acknowledgements and no reduction is open.

        Raises:
            CountFault: Something is left, so a packet never came.
        """
        for port in range(self.num_ports):
            for (_, stage, address, _), reduction in self.reductions[port].items():
                raise CountFault(
                    f"a {stage.name} reduction for GPU {port} at {address:#x} still waits for {reduction.expected}"
                    " contributions"
                )
        for (source, stage, address, _), copies in self.acks.items():
            raise CountFault(
                f"a {stage.name} store of GPU {source} to {address:#x} still waits for {copies} acknowledgements"
            )

    def _add(self, response: Packet, announced: int) -> list[Packet]:
        port, key = response.source, reply_key(response)
        reduction = self.reductions[port].get(key) if 0 <= port < self.num_ports else None
        if reduction is None:
            raise CountFault("no open reduction waits for this response", response)
        if reduction.announced != announced:
            raise CountFault(f"another push to this address announced {reduction.announced} contributions", response)
        leaving = []
        slots = self.slots[port]
        values = np.frombuffer(response.payload, "<f4")
        if key not in slots:
            if len(slots) == self.slots_per_port:
                leaving.append(self._evict(port))
            slots[key] = Slot(np.zeros(len(values), np.float32))
        slots[key].total += values
        slots[key].summed += response.count
        reduction.expected -= 1
        if reduction.expected == 0:
            del self.reductions[port][key]
            leaving.append(_sum_packet(Kind.RESPONSE, key, slots.pop(key)))
        return leaving

    def _evict(self, port: int) -> Packet:
        """Frees the oldest slot of a port and returns its partial sum as a packet."""
        key, slot = self.slots[port].popitem(last=False)
        self.evictions += 1
        return _sum_packet(Kind.PARTIAL, key, slot)


def reply_key(packet: Packet) -> ReplyKey:
    """Returns what ties a reply to the packet it answers."""
    return packet.source, packet.stage, packet.address, packet.tag


def _sum_packet(kind: Kind, key: ReplyKey, slot: Slot) -> Packet:
    payload = slot.total.astype("<f4").tobytes()
    source, stage, address, tag = key
    return Packet(kind, stage, address, source, len(payload), slot.summed, payload=payload, tag=tag)
