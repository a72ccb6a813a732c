"""What a program calls: create and bind a dynamic multimem region, exchange counts, and the instructions themselves.

A region is created with its block size, stages and base, for the tokens of all GPUs, then bound with how many of them
each expert will receive (the roles of ``cuDyMulticastCreate`` and ``cuDyMulticastBindAddr``, DySHARP, arXiv
2605.05607). ``dymultimem.st`` and ``dymultimem.ld_reduce`` take data (a register: here the values, or their number of
bytes), address, target count and target list. Targets on the issuing GPU are served by its own Hub and use no link.
Nothing here knows time: packets arrive in the order in which they are sent.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.multimem.faults import (
    AddressFault,
    BindFault,
    CountFault,
    PlainAccessFault,
    TargetFault,
)
from dysharp_env.multimem.hub import Hub, Region
from dysharp_env.multimem.links import MAX_GPUS, MULTIMEM_BASE, STATIC_BASE, WINDOW_BITS, Links, plain_place
from dysharp_env.multimem.packet import PacketFormat
from dysharp_env.multimem.switch import ReplyKey, Switch, reply_key
from dysharp_env.multimem.team import Team
from dysharp_env.multimem.wire import Kind, Packet, Stage, check_format

FLOAT_BYTES = 4


@dataclass
class Pull:
    """One packet's worth of a sum that a GPU waits for.

    Attributes:
        request: The instruction's packet, all targets in it.
        total: (values,) float32 what has come so far.
        counted: Target experts summed in it.
        done: Whether the switch has sent the last of it.
    """

    request: Packet
    total: np.ndarray
    counted: int
    done: bool


class Runtime:
    """A functional machine: GPUs with Hubs and plain memory, joined by one switch.

    Attributes:
        gpu_of_expert: (experts,) int64; the switch has a routing table of its own.
        links, switch, hubs: The parts; ``hubs`` is empty until a region is bound.
        plain: (GPU, bytes) uint8 plain memory.
        region: The dynamic region, or None.
    """

    def __init__(
        self,
        gpu_of_expert: np.ndarray,
        num_gpus: int,
        *,
        packet: PacketFormat = PacketFormat(),  # noqa: B008 (frozen)
        reduction_slots: int = 65536 // 128,  # 64 KB a port in 128 B packets (DySHARP, arXiv 2605.05607)
        al_tlb_entries: int = 512,  # DySHARP, arXiv 2605.05607
        plain_bytes: int = 0,
    ) -> None:
        """Sets up a machine whose GPUs have ``plain_bytes`` of plain memory each.

        Raises:
            ConfigError: A size is out of range.
        """
        check_format(packet)
        for name, value, lowest, highest in (
            ("gpus", num_gpus, 1, MAX_GPUS),
            ("reduction_slots", reduction_slots, 1, 2**31),
            ("al_tlb_entries", al_tlb_entries, 1, 2**31),
            ("plain_bytes", plain_bytes, 0, 1 << WINDOW_BITS),
            ("payload_bytes modulo 4", packet.payload_bytes % FLOAT_BYTES, 0, 0),
        ):
            if not lowest <= value <= highest:
                raise ConfigError(f"{name}={value} must be from {lowest} to {highest}")
        self.gpu_of_expert = np.array(gpu_of_expert, np.int64)
        self.num_gpus = num_gpus
        self.packet = packet
        self.links = Links()
        self.switch = Switch(self.gpu_of_expert, num_gpus, reduction_slots)
        self.plain = np.zeros((num_gpus, plain_bytes), np.uint8)
        self.region: Region | None = None
        self.hubs: list[Hub] = []
        self._al_tlb_entries = al_tlb_entries
        self._asked: list[tuple[int, Packet]] = []
        self._pulls: dict[ReplyKey, Pull] = {}
        self._pushed: Counter[tuple[int, int]] = Counter()  # contributions by home GPU and address

    def create_region(self, block_bytes: int, num_tokens: int, stages: int = 2, base: int = MULTIMEM_BASE) -> Region:
        """Creates the dynamic region and returns it.

        Raises:
            ConfigError: A size is out of range, or the region does not fit the addresses of dynamic multimem.
        """
        if block_bytes < FLOAT_BYTES or block_bytes % FLOAT_BYTES:
            raise ConfigError(f"block_bytes={block_bytes} must be a positive multiple of {FLOAT_BYTES}")
        if num_tokens < 1 or stages not in (1, 2):
            raise ConfigError(f"num_tokens={num_tokens} must be at least 1, and stages={stages} 1 or 2")
        region = Region(base, block_bytes, num_tokens, stages)
        if base < MULTIMEM_BASE or region.end > STATIC_BASE:
            raise ConfigError(
                f"region {base:#x} to {region.end:#x} must lie between {MULTIMEM_BASE:#x} and {STATIC_BASE:#x}"
            )
        self.region = region
        return region

    def exchange_counts(self, topk_ids: np.ndarray) -> np.ndarray:
        """Returns (experts,) int64 tokens each expert will receive; ``topk_ids`` is (token, k), home GPUs in order.

        Every GPU counts its own tokens, every expert's GPU adds the counts of all.
        """
        per_gpu = [
            np.bincount(ids.ravel(), minlength=len(self.gpu_of_expert)) for ids in np.split(topk_ids, self.num_gpus)
        ]
        return np.sum(per_gpu, axis=0)

    def bind(self, nactive: np.ndarray) -> None:
        """Gives every expert memory for the tokens it will receive, on its GPU.

        Raises:
            BindFault: No region has been created, or an expert's count is missing, negative or above all tokens.
        """
        if self.region is None:
            raise BindFault("no dynamic multimem region has been created")
        if len(nactive) != len(self.gpu_of_expert):
            raise BindFault(f"{len(nactive)} counts were bound for {len(self.gpu_of_expert)} experts")
        if min(nactive) < 0 or max(nactive) > self.region.num_tokens:
            raise BindFault(f"bound counts must be from 0 to the region's {self.region.num_tokens} tokens")
        self.hubs = [
            Hub(
                gpu,
                self.region,
                {int(e): int(nactive[e]) for e in np.flatnonzero(self.gpu_of_expert == gpu)},
                self._al_tlb_entries,
            )
            for gpu in range(self.num_gpus)
        ]

    def create_team(self, gpus: tuple[int, ...], size_bytes: int) -> Team:
        """Returns a static multimem object over a fixed team; its first address is ``STATIC_BASE``."""
        return Team(gpus, size_bytes, self.links, self.switch, self.packet.payload_bytes)

    def st(self, gpu: int, data: np.ndarray, address: int, stage: Stage) -> None:
        """Plain store of (values,) float32 to one GPU's memory.

        Raises:
            PlainAccessFault: It is a multimem address.
            AddressFault: No GPU has the address.
        """
        for start, payload in self._cut(data):
            packet = Packet(Kind.WRITE, stage, address + start, gpu, len(payload), payload=payload)
            target, offset = plain_place(packet, *self.plain.shape)
            if target != gpu:
                packet = self.links.down(target, self.links.up(gpu, packet))
                ack = replace(packet, kind=Kind.ACK, payload=b"")
                self.links.down(gpu, self.links.up(target, ack))
            self.plain[target, offset : offset + packet.length] = np.frombuffer(packet.payload, np.uint8)

    def ld(self, gpu: int, length: int, address: int, stage: Stage) -> np.ndarray:
        """Plain load of ``length`` bytes, at most one packet, from one GPU's memory, as (values,) float32.

        Raises:
            PlainAccessFault: It is a multimem address.
            AddressFault: No GPU has the address.
        """
        packet = Packet(Kind.LOAD, stage, address, gpu, length)
        target, offset = plain_place(packet, *self.plain.shape)
        payload = self.plain[target, offset : offset + length].tobytes()
        if target != gpu:
            asked = self.links.down(target, self.links.up(gpu, packet))
            response = replace(asked, kind=Kind.RESPONSE, payload=payload)
            payload = self.links.down(gpu, self.links.up(target, response)).payload
        return np.frombuffer(payload, "<f4").copy()

    def dymultimem_st(
        self, gpu: int, data: np.ndarray, address: int, count: int, targets: tuple[int, ...], stage: Stage
    ) -> None:
        """``dymultimem.st``: stores (values,) float32 in the block of every target expert.

        Raises:
            MultimemFault: An operand is wrong; see ``faults``.
        """
        for start, payload in self._cut(data):
            packet = Packet(
                Kind.DYNAMIC_STORE, stage, address + start, gpu, len(payload), count, tuple(targets), payload
            )
            local, remote = self._split(packet)
            for expert in local:
                self.hubs[gpu].store(packet, expert)
            if not remote:
                continue
            replicas = self.switch.replicate(self.links.up(gpu, _naming(packet, remote)))
            self.switch.expect_acks(packet, len(replicas))
            for port, replica in replicas:
                arrived = self.links.down(port, replica)
                for expert in arrived.targets:
                    self.hubs[port].store(arrived, expert)
                ack = replace(arrived, kind=Kind.ACK, payload=b"", targets=(), count=0)
                merged = self.switch.merge_ack(self.links.up(port, ack))
                if merged is not None:
                    self.links.down(gpu, merged)

    def dymultimem_ld_reduce(
        self, gpu: int, length: int, address: int, count: int, targets: tuple[int, ...], stage: Stage
    ) -> np.ndarray:
        """``dymultimem.ld_reduce``: returns (values,) float32, the sum over the blocks of all target experts.

        Raises:
            MultimemFault: An operand is wrong; see ``faults``.
        """
        keys = self.request_sum(gpu, length, address, count, targets, stage)
        self.respond()
        return self.take_sum(keys)

    def request_sum(
        self, gpu: int, length: int, address: int, count: int, targets: tuple[int, ...], stage: Stage
    ) -> list[ReplyKey]:
        """Issues a ``dymultimem.ld_reduce`` without waiting; returns what ``take_sum`` needs.

        Raises:
            MultimemFault: An operand is wrong; see ``faults``.
        """
        keys = []
        for start in range(0, length, self.packet.payload_bytes):
            size = min(self.packet.payload_bytes, length - start)
            packet = Packet(Kind.DYNAMIC_LOAD, stage, address + start, gpu, size, count, tuple(targets))
            local, remote = self._split(packet)
            own = self.hubs[gpu].load_sum(_naming(packet, local))
            if reply_key(packet) in self._pulls:
                raise CountFault("this sum has been asked for already", packet)
            self._pulls[reply_key(packet)] = Pull(packet, own, len(local), done=not remote)
            keys.append(reply_key(packet))
            if not remote:
                continue
            replicas = self.switch.replicate(self.links.up(gpu, _naming(packet, remote)))
            self.switch.open_reduction(packet, len(replicas))
            self._asked += [(port, self.links.down(port, replica)) for port, replica in replicas]
        return keys

    def respond(self) -> None:
        """Lets all GPUs answer what they were asked, one GPU after the other, and the switch sum it.

        Raises:
            MultimemFault: A block is not there, or a table contradicts itself.
        """
        asked, self._asked = sorted(self._asked, key=lambda item: item[0]), []
        for port, request in asked:
            payload = self.hubs[port].load_sum(request).astype("<f4").tobytes()
            response = replace(request, kind=Kind.RESPONSE, targets=(), payload=payload)
            for packet in self.switch.reduce(self.links.up(port, response)):
                self._receive(self.links.down(packet.source, packet))

    def push_sum(self, gpu: int, data: np.ndarray, address: int, count: int, stage: Stage) -> None:
        """Pushes one of ``count`` GPUs' partial sums, (values,) float32, to another GPU; the switch merges them.

        The switch acknowledges the push, since it holds the sum now; the home GPU acknowledges what it receives.

        Raises:
            PlainAccessFault, AddressFault: The address is not plain memory.
            CountFault: Other GPUs pushed to this address with another count.
        """
        for start, payload in self._cut(data):
            packet = Packet(Kind.PUSH, stage, address + start, gpu, len(payload), count, payload=payload)
            home, _ = plain_place(packet, *self.plain.shape)
            leaving = self.switch.push(self.links.up(gpu, packet), home)
            self.links.down(gpu, replace(packet, kind=Kind.ACK, count=0, payload=b""))
            for merged in leaving:
                # An evicted partial sum is another token's and carries its own address.
                arrived = self.links.down(home, merged)
                _, offset = plain_place(arrived, *self.plain.shape)
                self.add_plain(home, offset, np.frombuffer(arrived.payload, "<f4"))
                self._pushed[home, arrived.address] += arrived.count
                self.links.up(home, replace(arrived, kind=Kind.ACK, count=0, payload=b""))

    def add_plain(self, gpu: int, offset: int, values: np.ndarray) -> None:
        """Adds (values,) float32 to a GPU's plain memory, on that GPU."""
        self.plain[gpu, offset : offset + FLOAT_BYTES * len(values)].view("<f4")[:] += values

    def check_pushed(self, gpu: int, length: int, address: int, count: int) -> None:
        """Checks that ``length`` bytes of pushed sums at an address of a GPU have all their ``count`` contributions.

        Raises:
            CountFault: They have not.
        """
        for start in range(0, length, self.packet.payload_bytes):
            pushed = self._pushed.pop((gpu, address + start), 0)
            if pushed != count:
                raise CountFault(f"{pushed} of {count} sums were pushed to {address + start:#x} of GPU {gpu}")

    def take_sum(self, keys: list[ReplyKey]) -> np.ndarray:
        """Returns the finished sum of an earlier request, (values,) float32.

        Raises:
            CountFault: Contributions are missing.
        """
        pulls = [self._pulls.pop(key) for key in keys]
        for pull in pulls:
            if not pull.done or pull.counted != pull.request.count:
                raise CountFault(f"only {pull.counted} of {pull.request.count} experts were summed", pull.request)
        return np.concatenate([pull.total for pull in pulls])

    def _receive(self, packet: Packet) -> None:
        """Adds a result or an evicted partial sum to what its requester waits for."""
        pull = self._pulls[reply_key(packet)]
        pull.total += np.frombuffer(packet.payload, "<f4")
        pull.counted += packet.count
        pull.done = packet.kind == Kind.RESPONSE

    def _cut(self, data: np.ndarray) -> list[tuple[int, bytes]]:
        """Returns (offset, payload) of each packet of a vector."""
        raw = np.ascontiguousarray(data, "<f4").tobytes()
        size = self.packet.payload_bytes
        return [(start, raw[start : start + size]) for start in range(0, len(raw), size)]

    def _split(self, packet: Packet) -> tuple[list[int], list[int]]:
        """Returns a dynamic packet's local and remote targets, having checked its operands."""
        if packet.address < MULTIMEM_BASE:
            raise PlainAccessFault("dynamic multimem instruction on a plain address", packet)
        if self.region is None or packet.address >= STATIC_BASE:
            raise AddressFault("no dynamic multimem region holds this address", packet)
        if not self.hubs:
            raise BindFault("the region is used before it is bound", packet)
        if packet.length % FLOAT_BYTES:
            raise AddressFault("data must be whole float32 values", packet)
        self.region.locate(packet)
        if packet.count != len(packet.targets) or not packet.targets:
            raise CountFault(f"target count {packet.count}, but {len(packet.targets)} targets are listed", packet)
        for target in packet.targets:
            if not 0 <= target < len(self.gpu_of_expert):
                raise TargetFault(f"target {target} is no expert; there are {len(self.gpu_of_expert)}", packet)
        if len(set(packet.targets)) != len(packet.targets):
            raise TargetFault("a target is named twice", packet)
        local = [target for target in packet.targets if self.gpu_of_expert[target] == packet.source]
        return local, [target for target in packet.targets if target not in local]


def _naming(packet: Packet, targets: list[int]) -> Packet:
    """Returns the packet with only these targets."""
    return replace(packet, targets=tuple(targets), count=len(targets))
