"""Vectors on their way: the segments that cross links, requests for them and acknowledgements of them."""

from __future__ import annotations

from collections.abc import Sequence

from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.observation import DISPATCH
from dysharp_env.simulator.twin.parts import Load, Pair, Segment, Token, Trip, Vector
from dysharp_env.simulator.twin.staffing import Crew, Site, Sizes


class Sender(Crew):
    """A communication group as all GPUs have one, which send each other vectors.

    Attributes:
        peers: Those of all GPUs.
        sizes: Who is told how much of its work is done.
    """

    def __init__(self, site: Site, kind: int, peers: Sequence[Sender], sizes: Sizes) -> None:
        super().__init__(site, kind)
        self.peers, self.sizes = peers, sizes

    def vector_of(self, token: Token, pair: Pair | None) -> Vector:
        """Returns a token's vector for one GPU, or that GPU's partial sum; without a pair, one store for all targets.

        A multicast replica names only the experts behind its port.
        """
        way, is_dispatched = self.way, self.kind == DISPATCH
        experts = len(pair.experts) if pair else token.remote_experts
        gpu = pair.gpu if pair else token.home
        origin, target = (token.home, gpu) if is_dispatched else (gpu, token.home)
        what = "partial" if not is_dispatched else "copy" if pair else "store"
        return [
            Segment(
                name=(what, token.number, gpu, place),
                purpose=way.data,
                token=token,
                pair=pair,
                place=place,
                plane=token.planes[self.kind][place],
                origin=origin,
                flits=flits,
                packets=way.packets // way.segments,
                vc=codes.RESPONSE if way.primitive.reads else codes.REQUEST,
                reach=self.peers[target].reach,
                acknowledged=self.peers[origin].acknowledged,
            )
            for place, flits in enumerate(self._flits(experts if is_dispatched and way.primitive.names_targets else 0))
        ]

    def _flits(self, targets: int) -> list[int]:
        """Returns the flits of a vector's segments, so many experts named in each packet."""
        packet, total = self.costs.packet, self.way.vector_bytes
        if self.costs.resolution != "packet":
            return [packet.data_flits(total, targets)]
        size = packet.payload_bytes
        return [packet.data_flits(min(size, total - at), targets) for at in range(0, total, size)]

    def launch(self, load: Load, trip: Trip) -> None:
        """Stores vectors, or asks for them together: with one request for each segment."""
        for vector in load:
            for segment in vector:
                segment.trip = trip
        if not self.way.primitive.reads:
            for vector in load:
                self.read_ps(vector)
                self._send(vector)
            return
        asked_ps, flits = self.clock.now_ps, self._request_flits(load)
        for segment in load[0]:
            uplink = self.uplinks[segment.plane]
            uplink.charge(flits, self.way.request)
            asked_ps = max(asked_ps, uplink.free_ps)
        for vector in load:
            asked = self.peers[vector[0].origin]
            self.clock.at(asked_ps + 2 * self.costs.hop_ps, codes.EV_REQUEST, asked._requested, vector)

    def _request_flits(self, load: Load) -> int:
        """Returns the flits that ask for a segment of vectors, naming the experts unless the primitive is static."""
        experts = sum(len(vector[0].pair.experts) for vector in load if vector[0].pair)
        named = experts if self.way.primitive.names_targets else 0
        return self.costs.packet.ask_flits(self.way.vector_bytes, named) // self.way.segments

    def _requested(self, vector: Vector) -> None:
        """Reads a vector that another GPU asks for, and responds with it."""
        flits = self._request_flits([vector])
        for segment in vector:
            self.downlinks[segment.plane].charge(flits, self.way.request)
        self.clock.at(self.clock.now_ps + self.read_ps(vector), codes.EV_RESPOND, self._send, vector)

    def read_ps(self, vector: Vector) -> int:
        """Reads a vector of this GPU; returns the delay with which it responds with it."""
        return self.costs.memory_ps

    def _send(self, vector: Vector) -> None:
        for segment in vector:
            self.uplinks[segment.plane].enqueue(segment)

    def reach(self, segment: Segment) -> None:
        """Takes a segment in."""
        raise NotImplementedError

    def acknowledge(self, segment: Segment) -> None:
        """Acknowledges a segment; the switch merges what comes back for a store: the last one counts."""
        self.uplinks[segment.plane].charge(segment.packets * self.costs.packet.ack_flits, self.way.ack)
        whole = segment.carrier or segment
        whole.acks_left -= 1
        # What went into a reduced sum is acknowledged by the switch.
        if whole.acks_left == 0 and segment.pair is not None:
            self.clock.at(self.clock.now_ps + 2 * self.costs.hop_ps, codes.EV_ACK, whole.acknowledged, whole)

    def acknowledged(self, segment: Segment) -> None:
        """Counts a segment that is stored, or in the switch."""
        self.downlinks[segment.plane].charge(segment.packets * self.costs.packet.ack_flits, self.way.ack)
        self.end_segment(segment)
