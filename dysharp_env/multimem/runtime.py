"""What a program calls: create and bind a dynamic multimem region, exchange counts, and the instructions themselves.

A region is created with its block size, stages and base, for the tokens of all GPUs, then bound with how many of them
each expert will receive (the roles of ``cuDyMulticastCreate`` and ``cuDyMulticastBindAddr``, DySHARP, arXiv
2605.05607). ``dymultimem.st`` and ``dymultimem.ld_reduce`` take data (a register: here the values, or their number of
bytes), address, target count and target list. Targets on the issuing GPU are served by its own Hub and use no link.

Nothing here knows time: a store is acknowledged before the next is issued, and all GPUs that were asked for a sum
answer together in ``respond``. Left out: what an SM does before there are packets (a warp's vector accesses, target
lists fetched from memory, the MultimemQ where instructions wait for them); and fences of the memory model, of which
``check_idle`` keeps only that all is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.multimem.fabric import FLOAT_BYTES, Fabric
from dysharp_env.multimem.faults import AddressFault, BindFault, CountFault, PlainAccessFault, TargetFault
from dysharp_env.multimem.hub import Hub, Region
from dysharp_env.multimem.links import MAX_GPUS, MULTIMEM_BASE, STATIC_BASE, WINDOW_BITS, Links
from dysharp_env.multimem.packets import Kind, Packet, Stage
from dysharp_env.multimem.plain import PlainMemory
from dysharp_env.multimem.switch import ReplyKey, Switch, reply_key
from dysharp_env.multimem.team import Team
from dysharp_env.multimem.wire import check_format
from dysharp_env.system.packet import PacketFormat


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
        num_experts: Physical experts of all GPUs together.
        links, switch, fabric, hubs: The parts; ``hubs`` is empty until a region is bound.
        plain: Plain memory of all GPUs, with the plain instructions.
        region: The dynamic region, or None.
        pulls: Sums that GPUs have asked for and not taken yet, one for each packet.
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
        self.num_experts = len(gpu_of_expert)
        self.num_gpus = num_gpus
        self.links = Links()
        self.switch = Switch(gpu_of_expert, num_gpus, reduction_slots)
        self.fabric = Fabric(self.links, self.switch, packet.payload_bytes)
        self.plain = PlainMemory(num_gpus, plain_bytes, self.fabric)
        self.region: Region | None = None
        self.hubs: list[Hub] = []
        self.pulls: dict[ReplyKey, Pull] = {}
        self._gpu_of_expert = np.array(gpu_of_expert, np.int64)
        self._al_tlb_entries = al_tlb_entries
        self._static_end = STATIC_BASE
        self._asked: list[tuple[int, Packet]] = []  # requests at the GPUs that will answer them

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
        if base < MULTIMEM_BASE or region.end > STATIC_BASE or base % FLOAT_BYTES:
            raise ConfigError(
                f"region {base:#x} to {region.end:#x} must lie between {MULTIMEM_BASE:#x} and {STATIC_BASE:#x}, at a"
                f" multiple of {FLOAT_BYTES}"
            )
        self.region = region
        return region

    def exchange_counts(self, ids_of_gpu: Sequence[np.ndarray]) -> np.ndarray:
        """Returns (experts,) int64 tokens each expert will receive.

        Every GPU counts its own tokens, every expert's GPU adds the counts of all.

        Args:
            ids_of_gpu: (token, k) experts of each GPU's own tokens, -1 where a token has fewer.
        """
        per_gpu = [np.bincount(ids[ids >= 0], minlength=self.num_experts) for ids in ids_of_gpu]
        return np.sum(per_gpu, axis=0)

    def bind(self, nactive: np.ndarray) -> None:
        """Gives every expert memory for the tokens it will receive, on its GPU.

        Raises:
            BindFault: No region has been created, or an expert's count is missing, negative or above all tokens.
        """
        if self.region is None:
            raise BindFault("no dynamic multimem region has been created")
        if len(nactive) != self.num_experts:
            raise BindFault(f"{len(nactive)} counts were bound for {self.num_experts} experts")
        if min(nactive) < 0 or max(nactive) > self.region.num_tokens:
            raise BindFault(f"bound counts must be from 0 to the region's {self.region.num_tokens} tokens")
        self.hubs = [
            Hub(
                gpu,
                self.region,
                {int(e): int(nactive[e]) for e in np.flatnonzero(self._gpu_of_expert == gpu)},
                self._al_tlb_entries,
            )
            for gpu in range(self.num_gpus)
        ]

    def create_team(self, gpus: tuple[int, ...], size_bytes: int, loopback: bool = False) -> Team:
        """Returns a static multimem object over a fixed team, at addresses behind those of earlier ones."""
        team = Team(self._static_end, gpus, size_bytes, self.fabric, loopback)
        self._static_end += size_bytes
        return team

    def dymultimem_st(
        self, gpu: int, data: np.ndarray, address: int, count: int, targets: tuple[int, ...], stage: Stage
    ) -> None:
        """``dymultimem.st``: stores (values,) float32 in the block of every target expert.

        Raises:
            MultimemFault: An operand is wrong; see ``faults``.
        """
        for start, payload in self.fabric.cut(data):
            packet = Packet(
                Kind.DYNAMIC_STORE, stage, address + start, gpu, len(payload), count, tuple(targets), payload
            )
            local, remote = self._split(packet)
            if local:
                self._store(gpu, _naming(packet, local))
            if remote:
                self.fabric.write(_naming(packet, remote), self.switch.replicate, self._store)

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
        for start, size in self.fabric.lengths(length):
            packet = Packet(Kind.DYNAMIC_LOAD, stage, address + start, gpu, size, count, tuple(targets))
            local, remote = self._split(packet)
            if reply_key(packet) in self.pulls:
                raise CountFault("this sum has been asked for already", packet)
            own = self.hubs[gpu].load_sum(_naming(packet, local))
            self.pulls[reply_key(packet)] = Pull(packet, own, len(local), done=not remote)
            keys.append(reply_key(packet))
            if not remote:
                continue
            sent = self.links.up(gpu, _naming(packet, remote))
            replicas = self.switch.replicate(sent)
            self.switch.open_reduction(sent, len(replicas))
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

    def take_sum(self, keys: list[ReplyKey]) -> np.ndarray:
        """Returns the finished sum of an earlier request, (values,) float32.

        Raises:
            CountFault: Contributions are missing.
        """
        pulls = [self.pulls.pop(key) for key in keys]
        for pull in pulls:
            if not pull.done or pull.counted != pull.request.count:
                raise CountFault(f"only {pull.counted} of {pull.request.count} experts were summed", pull.request)
        return np.concatenate([pull.total for pull in pulls])

    def check_idle(self) -> None:
        """Checks that nothing is under way or left over, and every expert received what it was bound for.

        Raises:
            CountFault: Something is.
        """
        self.fabric.check_idle()
        self.plain.check_idle()
        for pull in self.pulls.values():
            raise CountFault("this sum was never taken", pull.request)
        for hub in self.hubs:
            hub.check_complete()

    def _store(self, gpu: int, packet: Packet) -> None:
        for expert in packet.targets:
            self.hubs[gpu].store(packet, expert)

    def _receive(self, packet: Packet) -> None:
        """Adds a result or an evicted partial sum to what its requester waits for."""
        pull = self.pulls.get(reply_key(packet))
        if pull is None or pull.done:
            raise CountFault("nobody waits for this sum", packet)
        pull.total += np.frombuffer(packet.payload, "<f4")
        pull.counted += packet.count
        pull.done = packet.kind == Kind.RESPONSE

    def _split(self, packet: Packet) -> tuple[list[int], list[int]]:
        """Returns a dynamic packet's local and remote targets, having checked its operands."""
        if packet.address < MULTIMEM_BASE:
            raise PlainAccessFault("dynamic multimem instruction on a plain address", packet)
        if self.region is None or packet.address >= STATIC_BASE:
            raise AddressFault("no dynamic multimem region holds this address", packet)
        if not self.hubs:
            raise BindFault("the region is used before it is bound", packet)
        self.region.locate(packet)
        if packet.count != len(packet.targets) or not packet.targets:
            raise CountFault(f"target count {packet.count}, but {len(packet.targets)} targets are listed", packet)
        for target in packet.targets:
            if not 0 <= target < self.num_experts:
                raise TargetFault(f"target {target} is no expert; there are {self.num_experts}", packet)
        if len(set(packet.targets)) != len(packet.targets):
            raise TargetFault("a target is named twice", packet)
        local = [target for target in packet.targets if self.hubs[packet.source].holds(target)]
        return local, [target for target in packet.targets if target not in local]


def _naming(packet: Packet, targets: list[int]) -> Packet:
    """Returns the packet with only these targets."""
    return replace(packet, targets=tuple(targets), count=len(targets))
