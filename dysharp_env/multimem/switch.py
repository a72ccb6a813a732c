"""The switch's part of multimem: replicate by target, merge acknowledgements, sum responses in bounded slots.

A dynamic packet is routed by expert: expert -> GPU -> output port (a port is a GPU here; planes carry equal shares).
One replica leaves per distinct port, with only the targets behind it (DySHARP, arXiv 2605.05607, switch). A reduction
is opened by its request, or by the first partial sum pushed to an address (as ``red.cais`` in CAIS, arXiv 2605.05628),
with the number of contributions to come; each of them takes or finds an accumulator at the home GPU's port. When no
slot is free the oldest partial sum goes home early (as in CAIS) and its count stays, so the last contribution is still
recognised. Sums are float32.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

import numpy as np

from dysharp_env.multimem.faults import CountFault, TargetFault
from dysharp_env.multimem.wire import Kind, Packet, Stage

ReplyKey = tuple[int, Stage, int, int]  # source, stage, address, tag: what a reply answers


@dataclass
class Reduction:
    """One open reduction.

    Attributes:
        expected: Contributions still to come.
        pushed: Contributions that each push announced; 0 if this one was asked for.
        summed: Contributions in the accumulator.
        total: The accumulator, (values,) float32, or None while it holds no slot.
    """

    expected: int
    pushed: int = 0
    summed: int = 0
    total: np.ndarray | None = None


class Switch:
    """One switch; the port of a GPU has the GPU's number.

    Attributes:
        port_of_expert: (experts,) int64 routing table.
        reductions: For each open reduction its record, by output port and then by what the reply answers.
        acks: Acknowledgements still to come for each multicast store.
        evictions: Partial sums sent home early so far.
    """

    def __init__(self, port_of_expert: np.ndarray, num_ports: int, slots_per_port: int) -> None:
        """Sets up the tables of a switch whose reduction units have ``slots_per_port`` accumulators of one packet."""
        self.port_of_expert = np.array(port_of_expert, np.int64)
        self.num_ports = num_ports
        self.slots_per_port = slots_per_port
        self.reductions: list[dict[ReplyKey, Reduction]] = [{} for _ in range(num_ports)]
        # Reductions that hold a slot, oldest first.
        self._holding: list[OrderedDict[ReplyKey, Reduction]] = [OrderedDict() for _ in range(num_ports)]
        self.acks: dict[ReplyKey, int] = {}
        self.evictions = 0

    def replicate(self, packet: Packet) -> list[tuple[int, Packet]]:
        """Returns (port, replica) of a dynamic packet, ports in the order in which the list first names them.

        Raises:
            CountFault: It names no target.
            TargetFault: A target is no expert, or is named twice.
        """
        if not packet.targets:
            raise CountFault("a dynamic packet needs at least one target", packet)
        if len(set(packet.targets)) != len(packet.targets):
            raise TargetFault("a target is named twice", packet)
        behind: dict[int, list[int]] = {}
        for target in packet.targets:
            if target >= len(self.port_of_expert):
                raise TargetFault(f"target {target} is no expert; there are {len(self.port_of_expert)}", packet)
            behind.setdefault(int(self.port_of_expert[target]), []).append(target)
        return [(port, replace(packet, targets=tuple(targets), count=len(targets))) for port, targets in behind.items()]

    def expect_acks(self, packet: Packet, copies: int) -> None:
        """Notes how many acknowledgements of a store are to be merged into one."""
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
        port, key = response.source, reply_key(response)
        reduction = self.reductions[port].get(key)
        if reduction is None:
            raise CountFault("no open reduction waits for this response", response)
        leaving = []
        values = np.frombuffer(response.payload, "<f4")
        if reduction.total is None:
            if len(self._holding[port]) == self.slots_per_port:
                leaving.append(self._evict(port))
            reduction.total = np.zeros(len(values), np.float32)
            self._holding[port][key] = reduction
        reduction.total += values
        reduction.summed += response.count
        reduction.expected -= 1
        if reduction.expected == 0:
            del self.reductions[port][key], self._holding[port][key]
            leaving.append(_sum_packet(Kind.RESPONSE, port, key, reduction))
        return leaving

    def push(self, packet: Packet, home: int) -> list[Packet]:
        """Adds one pushed partial sum for GPU ``home``; returns what leaves for it, as ``reduce`` does.

        Raises:
            CountFault: Another push to the same address announced another count.
        """
        contribution = replace(packet, kind=Kind.RESPONSE, source=home, count=1)
        opened = self.reductions[home].setdefault(reply_key(contribution), Reduction(packet.count, packet.count))
        if opened.pushed != packet.count:
            raise CountFault(f"another push to this address announced {opened.pushed} contributions", packet)
        return self.reduce(contribution)

    def _evict(self, port: int) -> Packet:
        """Frees the oldest slot of a port and returns its partial sum as a packet."""
        key, reduction = self._holding[port].popitem(last=False)
        packet = _sum_packet(Kind.PARTIAL, port, key, reduction)
        reduction.total, reduction.summed = None, 0
        self.evictions += 1
        return packet


def reply_key(packet: Packet) -> ReplyKey:
    """Returns what ties a reply to the packet it answers."""
    return packet.source, packet.stage, packet.address, packet.tag


def _sum_packet(kind: Kind, port: int, key: ReplyKey, reduction: Reduction) -> Packet:
    assert reduction.total is not None
    payload = reduction.total.astype("<f4").tobytes()
    source, stage, address, tag = key
    assert source == port
    return Packet(kind, stage, address, source, len(payload), reduction.summed, payload=payload, tag=tag)
