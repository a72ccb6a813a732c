"""Weights of copies that the twin's GPUs make in the layer: who sends which tiles, and what happens where they arrive.

Whoever issues tiles is a mover: the copy's GPU where it loads them, else that of the expert whose weights they are. A
copy that is copied from itself sends each tile on as it comes.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from dysharp_env.simulator.phases import Load
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NO_TIME
from dysharp_env.simulator.twin.parts import Segment
from dysharp_env.simulator.twin.routing import planes_of
from dysharp_env.simulator.twin.staffing import Site
from dysharp_env.simulator.twin.world import GEMM1, World
from dysharp_env.simulator.weights import WeightTile
from dysharp_env.workload.placement import NOWHERE


@dataclass(eq=False)
class Copy:
    """An expert whose weights come over the links; two-element lists are of GEMM-1's and GEMM-2's matrix."""

    expert: int
    gpu: int
    source: int  # the expert that sends them, or is asked for them
    source_gpu: int
    group: int  # of GPUs that one store reaches
    relays: list[Copy]  # copies that they are sent on to
    tiles_left: list[int]
    here_bytes: list[int] = field(default_factory=lambda: [0, 0])
    start_ps: list[int] = field(default_factory=lambda: [NO_TIME, NO_TIME])
    end_ps: list[int] = field(default_factory=lambda: [NO_TIME, NO_TIME])


@dataclass(eq=False, kw_only=True)
class TileSegment(Segment):
    """A tile of weights on its way to copies: to one, or to several of which the switch makes a replica each."""

    tile: WeightTile
    copies: Sequence[Copy]
    is_read: bool  # by itself: it was not just read for another copy


def copies_of(world: World) -> list[Copy]:
    """Returns the copies of a layer, by number."""
    placement, weights = world.workload.placement, world.weights
    if weights is None:
        return []
    tiles = Counter(tile.gemm for tile in weights.tiles)
    gpu_of, copied_from = placement.gpu_of_expert.tolist(), placement.copied_from.tolist()
    copies = {}
    for expert, source in enumerate(copied_from):
        if source == NOWHERE:
            continue
        # Only plain stores need relays.
        while copied_from[source] != NOWHERE and (weights.primitive.reads or weights.primitive.in_switch):
            source = copied_from[source]
        group = gpu_of[expert] // world.costs.team_gpus if weights.primitive.by_team else 0
        left = [tiles[0], tiles[1]]
        copies[expert] = Copy(expert, gpu_of[expert], source, gpu_of[source], group, [], left)
    for copy in copies.values():
        if copy.source in copies:
            copies[copy.source].relays.append(copy)
    return list(copies.values())


def stores_of(copies: Sequence[Copy], in_switch: bool) -> list[list[Copy]]:
    """Returns the copies of one source that each store reaches: one, or all of a group."""
    if not in_switch:
        return [[copy] for copy in copies]
    ordered = sorted(copies, key=lambda copy: copy.group)
    return [list(members) for _, members in groupby(ordered, key=lambda copy: copy.group)]


def gradients_ps(world: World) -> int:
    """Returns how long copies' gradients take to be added up, where their weights came from, on the busiest GPU."""
    weights, copies = world.weights, copies_of(world)
    if weights is None or not any(weights.gradients):
        return 0
    leaving, coming = Counter(copy.gpu for copy in copies), Counter[int]()
    for source in {copy.source for copy in copies}:
        mine = [copy for copy in copies if copy.source == source]
        coming[mine[0].source_gpu] += len(stores_of(mine, weights.primitive.in_switch))
    loads = [Load(copies=leaving[gpu], gradients=coming[gpu]) for gpu in range(world.num_gpus)]
    return max(weights.gradients.ps(load, world.costs.hbm_ps) for load in loads)


class Mover:
    """The SMs of one GPU that move weights, and what others ask of it and send it."""

    on_matrix: Callable[[int, int], None]  # is told of the (expert, stage) of a matrix that has come

    def __init__(self, site: Site, peers: Sequence[Mover], copies: Sequence[Copy]) -> None:
        """Takes the movers of all GPUs, which may be there only later, and all copies."""
        self.site, self.gpu, self.peers = site, site.number, peers
        self.world, self.clock, self.costs = site.world, site.world.clock, site.world.costs
        self.here = {copy.expert: copy for copy in copies if copy.gpu == self.gpu}
        self.matrices_left = 2 * len(self.here)
        site.progress.copies_left = len(self.here)
        self.queue: deque[TileSegment] = deque()  # that it may issue
        self.left = 0  # that it is to issue, those that have not come to it yet as well
        self.in_flight = self.sms = self.wanted_sms = self.next_ps = 0
        self._is_issuing = False  # whether it is to issue one at a known time
        if self.world.weights is not None:
            self._line_up(copies)

    def _line_up(self, copies: Sequence[Copy]) -> None:
        """Puts the tiles in the order in which they are issued, but for those that come here first."""
        weights = self.world.weights
        assert weights is not None
        if weights.primitive.reads:
            sent = [[copy] for copy in self.here.values()]
        else:
            sources = sorted({copy.source for copy in copies if copy.source_gpu == self.gpu})
            sent = [[copy for copy in copies if copy.source == source] for source in sources]
        for mine in sent:
            stores = stores_of(mine, weights.primitive.in_switch)
            self.left += len(stores) * len(weights.tiles)
            if mine[0].source not in self.here:
                for place in range(len(weights.tiles)):
                    self.queue.extend(self._segment(store, place, store is stores[0]) for store in stores)

    def _segment(self, store: list[Copy], place: int, is_read: bool) -> TileSegment:
        """Returns a tile on its way to the copies of a store."""
        weights = self.world.weights
        assert weights is not None
        if not weights.primitive.in_switch:
            return self._of_copies(("weights", store[0].expert, store[0].gpu, place), store, place, is_read)
        whole = self._of_copies(("weight_store", store[0].source, store[0].source_gpu, place), store, place, is_read)
        names = [("weights", copy.expert, copy.gpu, place) for copy in store]
        whole.split([self._of_copies(name, [copy], place, False) for name, copy in zip(names, store, strict=True)])
        return whole

    def _of_copies(self, name: tuple[str, int, int, int], copies: list[Copy], place: int, is_read: bool) -> TileSegment:
        weights, costs = self.world.weights, self.costs
        assert weights is not None
        tile, copy, primitive = weights.tiles[place], copies[0], weights.primitive
        # Addresses of weights come behind those of vectors: by number of the expert whose memory is addressed.
        vectors = self.world.workload.num_tokens * (costs.dispatch_segments + costs.combine_segments)
        addressed = copy.source if primitive.reads or primitive.in_switch else copy.expert
        address = vectors + addressed * len(weights.tiles) + place
        return TileSegment(
            name=name,
            purpose=codes.WEIGHT_DATA,
            place=place,
            plane=planes_of(address, 1, costs.planes)[0],
            origin=copy.source_gpu,
            target=copy.gpu,
            flits=weights.packet.data_flits(tile.num_bytes, len(copies) if primitive.names_targets else 0),
            packets=weights.packet.packets(tile.num_bytes),
            vc=codes.RESPONSE if primitive.reads else codes.REQUEST,
            reach=lambda segment: self.peers[copy.gpu].reach(segment),
            acknowledged=lambda segment: self.peers[copy.source_gpu].acknowledged(segment),
            tile=tile,
            copies=copies,
            is_read=is_read or primitive.reads,
        )

    def start(self) -> None:
        """Begins with the layer, unless weights go behind tokens."""
        if not self.world.program.copies_behind:
            self._begin()

    def dispatched(self) -> None:
        """Begins if weights go behind tokens, which are all stored, with SMs that change over."""
        if self.world.program.copies_behind:
            self.next_ps = self.clock.now_ps + self.costs.role_change_ps
            self._begin()
            self.issue_soon()

    def _begin(self) -> None:
        """Wants SMs of the GEMM group, as many as it has if that is fewer, if there is anything to issue."""
        if self.left > 0:
            assert self.world.weights is not None
            self.wanted_sms = max(1, min(self.world.weights.copy_sms, self.site.gemm_sms))
            self._hire()

    def _hire(self) -> None:
        hired = min(self.site.free_sms, self.wanted_sms - self.sms)
        self.sms += hired
        self.site.gemm_sms -= hired
        self.site.free_sms -= hired

    def offer(self) -> None:
        """Takes free SMs of the GEMM group if more are wanted."""
        if self.sms < self.wanted_sms:
            self._hire()
            self.issue_soon()

    def is_here(self, expert: int, stage: int) -> bool:
        """Returns whether all of an expert's matrix is on this GPU."""
        return expert not in self.here or self.here[expert].tiles_left[stage - 1] == 0

    def issue_soon(self) -> None:
        """Issues the next tile as soon as the SMs may."""
        weights = self.world.weights
        if not self.site.progress.has_begun:
            return
        if weights is None or not self.queue or self._is_issuing or self.in_flight >= weights.in_flight(self.sms):
            return
        self._is_issuing = True
        self.clock.at(max(self.clock.now_ps, self.next_ps), codes.EV_MOVE, self._issue)

    def _issue(self) -> None:
        """Sends a tile as soon as it is read, or asks for it."""
        weights, segment, now_ps = self.world.weights, self.queue.popleft(), self.clock.now_ps
        assert weights is not None
        self._is_issuing = False
        self.left -= 1
        self.in_flight += 1
        self.next_ps = now_ps + weights.pace_ps(self.sms)
        for copy in segment.copies:
            if copy.start_ps[segment.tile.gemm] == NO_TIME:
                copy.start_ps[segment.tile.gemm] = now_ps
        if weights.primitive.reads:
            uplink = self.site.uplinks[segment.plane]
            uplink.charge(segment.tile.ask_flits, codes.WEIGHT_REQUEST)
            asked_ps = uplink.free_ps + 2 * self.costs.hop_ps
            self.clock.at(asked_ps, codes.EV_REQUEST, self.peers[segment.origin]._asked, segment)
        else:
            self._read(segment)
        self.issue_soon()

    def _asked(self, segment: TileSegment) -> None:
        """Answers another GPU that asks for a tile."""
        self.site.downlinks[segment.plane].charge(segment.tile.ask_flits, codes.WEIGHT_REQUEST)
        self._read(segment)

    def _read(self, segment: TileSegment) -> None:
        """Reads a tile, of which L2 lacks as much as of all that is here of its matrix, and then sends it."""
        source, gemm = segment.copies[0].source, segment.tile.gemm
        if segment.is_read:
            whole = self.here[source].here_bytes[gemm] if source in self.here else self.costs.matrix_bytes[gemm]
            self.site.memory.read_part(("weights", source, gemm + 1), segment.tile.num_bytes, whole)
        enqueue = self.site.uplinks[segment.plane].enqueue
        self.clock.at(self.clock.now_ps + self.costs.memory_ps, codes.EV_RESPOND, enqueue, segment)

    def reach(self, segment: TileSegment) -> None:
        """Stores a tile of a copy that is here, and sends it on if others are to have it from here."""
        (copy,), tile, weights = segment.copies, segment.tile, self.world.weights
        assert weights is not None
        self.site.memory.write(("weights", copy.expert, tile.gemm + 1), tile.num_bytes)
        copy.here_bytes[tile.gemm] += tile.num_bytes
        copy.tiles_left[tile.gemm] -= 1
        if weights.primitive.reads:
            self._end_tile()
        else:
            self._acknowledge(segment)
        self.queue.extend(
            self._segment([relay], segment.place, is_read=relay is copy.relays[0]) for relay in copy.relays
        )
        self.issue_soon()
        if copy.tiles_left[tile.gemm] == 0:
            self._matrix_comes(copy, tile.gemm)

    def _acknowledge(self, segment: TileSegment) -> None:
        """Acknowledges a tile; the switch merges what comes back for a store: the last one counts."""
        ack_flits = segment.packets * self.costs.packet.ack_flits
        self.site.uplinks[segment.plane].charge(ack_flits, codes.WEIGHT_ACK)
        whole = segment.carrier or segment
        whole.acks_left -= 1
        if whole.acks_left == 0:
            known_ps = self.clock.now_ps + 2 * self.costs.hop_ps
            self.clock.at(known_ps, codes.EV_ACK, whole.acknowledged, whole)

    def acknowledged(self, segment: TileSegment) -> None:
        """Counts a tile that is stored everywhere."""
        ack_flits = segment.packets * self.costs.packet.ack_flits
        self.site.downlinks[segment.plane].charge(ack_flits, codes.WEIGHT_ACK)
        self._end_tile()

    def _end_tile(self) -> None:
        """Makes place for another tile; when nothing is left, the SMs go back."""
        self.in_flight -= 1
        self.issue_soon()
        if self.left == 0 and self.in_flight == 0:
            leaving, self.sms, self.wanted_sms = self.sms, 0, 0
            for _ in range(leaving):
                self.site.go_to_gemm()

    def _matrix_comes(self, copy: Copy, gemm: int) -> None:
        """Lets rows use a matrix, and with the other one there gates open that waited for the copy."""
        copy.end_ps[gemm] = self.clock.now_ps
        self.matrices_left -= 1
        self.world.matrices_left -= 1
        self.on_matrix(copy.expert, gemm + 1)
        if not any(copy.tiles_left):
            self.site.progress.copies_left -= 1
            for part in range(self.world.program.parts):
                self.site.progress.check(GEMM1, part)
