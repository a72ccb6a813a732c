"""Dispatch on one of the twin's GPUs: what it sends or reads, and how that is stored at the other end."""

from __future__ import annotations

from functools import partial

from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.codes import NO_TIME
from dysharp_env.simulator.twin.gemm import GemmGroup
from dysharp_env.simulator.twin.parts import Chunk, Pair, Segment, Token, Trip
from dysharp_env.simulator.twin.site import Site, SmGroup
from dysharp_env.simulator.twin.vectors import copy_of, store_of, token_request_flits


class DispatchGroup(SmGroup):
    """The dispatch group of one GPU, and what it is asked for by others.

    Attributes:
        peers: The dispatch groups of all GPUs, which it joins.
        unsent: Chunks that no SM has taken from.
        tokens_sent, tokens_to_send: Tokens of which nothing is left to issue, and all that it dispatches.
    """

    def __init__(self, site: Site, gemm: GemmGroup, chunks: list[Chunk], peers: list[DispatchGroup]) -> None:
        super().__init__(site, observation.DISPATCH)
        self.gemm, self.unsent, self.peers = gemm, chunks, peers
        peers.append(self)
        self.crew = site.staff.crews[observation.DISPATCH]
        self.crew.group, self.crew.on_issued = self, self._count_token
        self.in_chunk: list[Token] = []  # of the chunk that is being sent
        for chunk in chunks:
            self.progress.sends_left[chunk.part] += len(chunk.tokens)
        self.tokens_sent, self.tokens_to_send = 0, sum(self.progress.sends_left)

    def in_turn(self, token: Token) -> list[Pair]:
        """Returns the pairs of a token that this GPU dispatches now: its own if it reads, else the part's."""
        if self.world.dispatch.reads:
            return [pair for pair in token.pairs if pair.gpu == self.gpu]
        return [pair for pair in token.pairs if not self.world.program.by_peers or pair.part == self.progress.part]

    def act(self) -> list[Chunk]:
        """Gives token after token of the chunk at hand to SMs that may take one, then offers the part's chunks."""
        while True:
            if not self.in_chunk:
                self._end_parts()
            if not self.crew.free:
                return []
            if not self.in_chunk:
                return [chunk for chunk in self.unsent if chunk.part == self.progress.part]
            self._take_token(self.in_chunk.pop(0))

    def take(self, chunk: Chunk) -> None:
        """Begins a chunk."""
        self.unsent.remove(chunk)
        self.in_chunk = list(chunk.tokens)

    def _end_parts(self) -> None:
        """Gives the next part its turn when all of the present one is stored."""
        progress, parts = self.progress, self.world.program.parts
        while progress.part < parts and progress.sends_left[progress.part] == 0 and self.crew.in_flight == 0:
            progress.part += 1
            self.gates.end_first_kernel(self.gpu, progress.part - 1)
            if self.world.program.exclusive and progress.part == parts:
                self.gemm.combine.mark()

    def _take_token(self, token: Token) -> None:
        """Gives a token to an SM; its home GPU's own experts get it at once."""
        if token.dispatch_start == NO_TIME:
            token.dispatch_start = self.clock.now_ps
        pairs = self.in_turn(token)
        for pair in pairs:
            if not pair.is_remote and pair.experts:
                self.clock.at(self.clock.now_ps + self.costs.memory_ps, codes.EV_ARRIVE, self.gemm.arrive, pair)
        copies = [self._copy(pair) for pair in pairs if pair.is_sent]
        if copies and self.world.dispatch.in_switch:
            copies = [store_of(self.world, token, copies)]
        self.crew.give([partial(self._issue, vector) for vector in copies])

    def _issue(self, vector: list[Segment], trip: Trip) -> None:
        """Stores a vector, or reads it from its home GPU."""
        for segment in vector:
            segment.trip = trip
        if not self.world.dispatch.reads:
            self.ports.send(vector)
            return
        home, planes = self.peers[vector[0].origin], vector[0].token.dispatch_planes
        asked_ps = self.ports.ask(planes, token_request_flits(self.world), codes.DISPATCH_REQUEST)
        self.clock.at(asked_ps, codes.EV_REQUEST, home._requested, vector)

    def _count_token(self) -> None:
        """Counts a token of which nothing is left to issue."""
        self.tokens_sent += 1
        self.sizes.count(self.tokens_sent - 1, self.tokens_sent, self.tokens_to_send)
        self.progress.sends_left[self.progress.part] -= 1

    def _copy(self, pair: Pair) -> list[Segment]:
        return copy_of(self.world, pair, self.peers[pair.gpu]._reach, self._acknowledged)

    def _requested(self, vector: list[Segment]) -> None:
        """Reads a token's vector of this GPU for another one, and responds with it."""
        planes = vector[0].token.dispatch_planes
        self.ports.be_asked(planes, token_request_flits(self.world), codes.DISPATCH_REQUEST)
        self.clock.at(self.clock.now_ps + self.costs.memory_ps, codes.EV_RESPOND, self.ports.send, vector)

    def _reach(self, copy: Segment) -> None:
        """Stores a segment; the first has the token's place found, the last completes it."""
        pair, dispatch = copy.pair, self.world.dispatch
        assert pair is not None
        is_first = pair.segments_left == self.costs.dispatch_segments
        pair.segments_left -= 1
        if not dispatch.reads:
            self._acknowledge(copy)
        if dispatch.names_targets and is_first:
            pair.translated_ps = self.clock.now_ps + self.memory.translate(pair)
        if pair.segments_left == 0:
            if not pair.experts:
                self.memory.use_hbm(self.costs.token_bytes[0])
            elif dispatch.names_targets:
                self.clock.at(max(self.clock.now_ps, pair.translated_ps), codes.EV_ARRIVE, self.gemm.arrive, pair)
            else:
                self.gemm.arrive(pair)
        if dispatch.reads:
            # The reader has what it asked for; nobody is told.
            self._end_segment(copy)

    def _acknowledge(self, copy: Segment) -> None:
        """Acknowledges a segment; the switch merges what comes back for a store: the last one counts."""
        acked_ps = self.ports.acknowledge(copy, codes.DISPATCH_ACK)
        whole = copy.carrier or copy
        whole.acks_left -= 1
        if whole.acks_left == 0:
            self.clock.at(acked_ps, codes.EV_ACK, whole.acknowledged, whole)

    def _acknowledged(self, whole: Segment) -> None:
        """Counts a segment that is stored."""
        self.ports.be_acknowledged(whole, codes.DISPATCH_ACK)
        self._end_segment(whole)

    def _end_segment(self, segment: Segment) -> None:
        """Counts a segment that is stored or read; with the last one of a vector a part may be over."""
        if self.crew.end_segment(segment.trip):
            self.mark()
