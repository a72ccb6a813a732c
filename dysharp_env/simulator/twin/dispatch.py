"""Dispatch on one of the twin's GPUs: what it sends or reads, and how that is stored at the other end."""

from __future__ import annotations

from collections.abc import Sequence

from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.codes import BY_EXPERTS, NO_TIME
from dysharp_env.simulator.twin.gemm import GemmGroup
from dysharp_env.simulator.twin.parts import Chunk, Pair, Token, TokenSegment, Vector
from dysharp_env.simulator.twin.staffing import Crew, Site, Sizes


class DispatchGroup(Crew):
    """The dispatch group of one GPU, and what it is asked for by others."""

    def __init__(
        self, site: Site, peers: Sequence[DispatchGroup], sizes: Sizes, gemm: GemmGroup, chunks: list[Chunk]
    ) -> None:
        super().__init__(site, observation.DISPATCH, peers, sizes, site.world.dispatch)
        self.gemm, self.everywhere = gemm, peers
        self.unsent = chunks  # that no SM has taken from
        self.in_chunk: list[Token] = []  # of the chunk that is being sent
        for chunk in chunks:
            self.progress.sends_left[chunk.part] += len(chunk.tokens)
        self.tokens_sent = 0  # of which nothing is left to issue
        self.tokens_to_send = sum(self.progress.sends_left)

    def in_turn(self, token: Token) -> list[Pair]:
        """Returns the pairs of a token that this GPU dispatches in the part at hand: only its own if it reads."""
        pairs = [pair for pair in token.pairs if pair.part == self.progress.part]
        return [pair for pair in pairs if pair.gpu == self.gpu] if self.world.dispatch.reads else pairs

    def act(self) -> list[Chunk]:
        """Gives token after token of the chunk at hand to SMs that may take one, then offers the part's chunks."""
        while self.progress.has_begun:
            if not self.in_chunk:
                self._end_parts()
            if not self.free:
                return []
            if not self.in_chunk:
                return [chunk for chunk in self.unsent if chunk.part == self.progress.part]
            self._take_token(self.in_chunk.pop(0))
        return []

    def take(self, chunk: Chunk) -> None:
        """Begins a chunk."""
        self.unsent.remove(chunk)
        self.in_chunk = list(chunk.tokens)

    def _end_parts(self) -> None:
        """Gives the next part its turn when all of the present one is stored; a wave of experts, when it is issued."""
        progress, parts, are_waves = self.progress, self.world.program.parts, self.world.program.parts_by == BY_EXPERTS
        while progress.part < parts and progress.sends_left[progress.part] == 0:
            if self.in_flight > 0 and not (are_waves and progress.part + 1 < parts):
                return
            progress.part += 1
            progress.end_first_kernel(progress.part - 1)
            if self.world.program.in_band and (progress.part == parts or not are_waves):
                self._say_done(progress.part - 1)
            if progress.part == parts:
                if self.world.program.exclusive:
                    self.gemm.combines[self.gpu].mark()
                self.site.mover.dispatched()

    def _say_done(self, part: int) -> None:
        """Says to every GPU with experts that all of a part is stored; of waves of experts, at the end of all."""
        told = [peer.gemm for peer in self.everywhere if peer.gemm.is_told_by(self.gpu, part)]
        others = [gemm for gemm in told if gemm.gpu != self.gpu]
        for gemm in others:
            self.uplinks[gemm.gpu % self.costs.planes].charge(codes.DONE_FLITS, codes.DISPATCH_DONE)
        for delay_ps, gemms in ((0, [gemm for gemm in told if gemm.gpu == self.gpu]), (2 * self.costs.hop_ps, others)):
            self.clock.at(self.clock.now_ps + delay_ps, codes.EV_SAID, self._heard, part, gemms)

    def _heard(self, part: int, gemms: list[GemmGroup]) -> None:
        """Has GPUs learn that this one is done with a part."""
        for gemm in gemms:
            gemm.hear_done(self.gpu, part)

    def _take_token(self, token: Token) -> None:
        """Gives a token to an SM; its home GPU's own experts get it at once."""
        if token.dispatch_start == NO_TIME:
            token.dispatch_start = self.clock.now_ps
        pairs, own = self.in_turn(token), 0
        if not self.world.dispatch.reads:
            self._read_input(token)
        for pair in pairs:
            if not pair.is_remote and pair.experts:
                self._read_input(token)
                self.clock.at(self.clock.now_ps + self.costs.memory_ps, codes.EV_ARRIVE, self.gemm.arrive, pair)
                own += 1
        copies = [self.vector_of(token, pair) for pair in pairs if pair.is_sent]
        if self.world.dispatch.in_switch:
            copies = [self._store_of(token, members) for members in self.in_groups(copies)]
        self.give([[vector] for vector in copies], self.work.token_ps + own * self.work.own_ps)

    def in_groups(self, copies: list[Vector]) -> list[list[Vector]]:
        """Returns copies by the store that reaches them: one for all, or one for each group of GPUs that has teams.

        Groups follow each other as their GPUs do, from this GPU's own on.
        """
        size = self.costs.team_gpus if self.world.dispatch.by_team else self.world.num_gpus
        groups: dict[int, list[Vector]] = {group: [] for group in range(-(-self.world.num_gpus // size))}
        for vector in copies:
            assert vector[0].pair is not None
            groups[vector[0].pair.gpu // size].append(vector)
        own = self.gpu // size
        ring = [*range(own, len(groups)), *range(own)]
        return [groups[group] for group in ring if groups[group]]

    def _read_input(self, token: Token) -> None:
        """Reads a token of this GPU from HBM, the first time that it is dispatched or asked for."""
        if not token.is_read:
            token.is_read = True
            self.memory.read_more(("input", token.home, token.place), self.costs.token_bytes[0])

    def read_ps(self, vector: Vector) -> int:
        """Reads a token; returns the delay with which it is sent to who asks for it."""
        self._read_input(vector[0].token)
        return super().read_ps(vector)

    def _store_of(self, token: Token, copies: list[Vector]) -> Vector:
        """Returns a vector dispatched to several targets at once, of which the switch makes the copies."""
        store = self.vector_of(token, None)
        for whole, *replicas in zip(store, *copies, strict=True):
            whole.split(replicas)
        return store

    def end_token(self) -> None:
        """Counts a token of which nothing is left to issue."""
        self.tokens_sent += 1
        self.sizes.count(self.tokens_sent - 1, self.tokens_sent, self.tokens_to_send)
        self.progress.sends_left[self.progress.part] -= 1
        if self.progress.sends_left[self.progress.part] == 0 and self.world.program.parts_by == BY_EXPERTS:
            self.mark()

    def reach(self, copy: TokenSegment) -> None:
        """Stores a segment; the first has the token's place found, the last completes it."""
        pair, dispatch = copy.pair, self.world.dispatch
        assert pair is not None
        is_first = pair.segments_left == self.costs.dispatch_segments
        pair.segments_left -= 1
        if not dispatch.reads:
            self.acknowledge(copy)
        if dispatch.names_targets and is_first:
            pair.translated_ps = self.clock.now_ps + self.memory.translate(pair)
        if pair.segments_left == 0:
            if not pair.experts:
                self.memory.use_hbm(self.costs.token_bytes[0], codes.HBM_WRITE)
            elif dispatch.names_targets:
                self.clock.at(max(self.clock.now_ps, pair.translated_ps), codes.EV_ARRIVE, self.gemm.arrive, pair)
            else:
                self.gemm.arrive(pair)
        if dispatch.reads:
            # The reader has what it asked for; nobody is told.
            self.end_segment(copy)

    def end_segment(self, segment: TokenSegment) -> bool:
        """Counts a segment that is stored or read; with the last one of a vector a part may be over."""
        is_last = super().end_segment(segment)
        if is_last:
            self.mark()
        return is_last
