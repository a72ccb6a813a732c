"""Combine on one of the twin's GPUs: what becomes ready, what it asks for or pushes, and how sums come home."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.codes import NO_TIME
from dysharp_env.simulator.twin.parts import Pair, Token, TokenSegment, Unit, Vector
from dysharp_env.simulator.twin.routing import part_of
from dysharp_env.simulator.twin.staffing import Crew, Site, Sizes
from dysharp_env.simulator.twin.world import COMBINING


class CombineGroup(Crew):
    """The combine group of one GPU, and what it is asked for by others."""

    def __init__(self, site: Site, peers: Sequence[CombineGroup], sizes: Sizes, tokens: list[Token]) -> None:
        super().__init__(site, observation.COMBINE, peers, sizes, site.world.combine)
        self.units: dict[tuple[int, int], Unit] = {}
        self.ready: list[Unit] = []  # units with something that may be combined
        self.issuing: deque[Token | Pair] = deque()
        # Tokens or partial sums that this GPU combines, and those of them that are not ready yet.
        if self.primitive.reads:
            self.items = sum(token.home == self.gpu and token.num_experts > 0 for token in tokens)
        else:
            pairs = [pair for token in tokens for pair in token.pairs if pair.gpu == self.gpu]
            self.items = sum(pair.is_remote and bool(pair.experts) for pair in pairs)
        self.items_waiting = self.items
        self.outputs_live = 0  # tokens of this GPU with results that it was told of and has not combined
        # Tokens of this GPU; those without experts are over from the start.
        self.combined = sum(token.home == self.gpu and token.num_experts == 0 for token in tokens)

    def expert_done(self, token: Token) -> None:
        """Counts one finished expert of a token of this GPU; after the last one it may be combined."""
        token.experts_done += 1
        self.outputs_live += self.world.notifies and token.experts_done == 1
        if token.experts_done == token.num_experts:
            if self.world.notifies and self.outputs_live > self.costs.output_readiness_entries:
                spilled_ps = self.clock.now_ps + self.costs.memory_ps
                self.clock.at(spilled_ps, codes.EV_READY, self._item_ready, token, token)
            else:
                self._item_ready(token, token)

    def partial_ready(self, pair: Pair) -> None:
        """Makes this GPU's partial sum of a token ready to be pushed, or adds it at once if it is home already."""
        if pair.is_remote:
            self._item_ready(pair, pair.token)
            return
        if pair.token.combine_start == NO_TIME:
            pair.token.combine_start = self.clock.now_ps
        pair.token.pieces_left = [left - 1 for left in pair.token.pieces_left]
        self._end_if_whole(pair.token)

    def _item_ready(self, item: Token | Pair, token: Token) -> None:
        """Adds a token or partial sum to the unit it is combined with."""
        key, part = (token.home, token.place), part_of(self.world, token, self.gpu)
        unit = self.units.setdefault(key, Unit(token.home, token.place, part))
        if not unit.items:
            unit.ready_ps = self.clock.now_ps
            if self.progress.is_open[COMBINING, part]:
                self.ready.append(unit)
        unit.items.append(item)
        self.items_waiting -= 1
        done = self.items - self.items_waiting
        if done == 1 and self.world.program.split_moments > 0:
            self.sizes.wake()
        self.sizes.count(done - 1, done, self.items)
        self.wake()

    def open_part(self, part: int) -> None:
        """Lists ready units as a combine kernel that starts late walks its buffer: chunk by chunk, neighbour first."""
        late = [unit for unit in self.units.values() if unit.part == part and unit.items]
        late.sort(key=lambda unit: (unit.place, (unit.home - self.gpu) % self.world.num_gpus))
        self.ready.extend(late)
        self.wake()

    def act(self) -> list[Unit]:
        """Issues what was chosen as SMs may take it, then offers the ready units."""
        while (
            self.progress.has_begun and self.free and (self.progress.is_dispatched or not self.world.program.exclusive)
        ):
            if self.issuing:
                self._begin(self.issuing.popleft())
            else:
                return [] if self.holds else self.ready
        return []

    def may_hold(self) -> bool:
        """Returns whether tokens or partial sums are yet to become ready."""
        # Who pushes does not know of sums of tokens that may be yet to come.
        return self.items_waiting > 0 or not (self.primitive.reads or self.progress.is_told)

    def take(self, unit: Unit) -> None:
        """Begins a unit."""
        self.ready.remove(unit)
        self.issuing.extend(unit.items)
        unit.items = []

    def _begin(self, item: Token | Pair) -> None:
        """Asks the experts' GPUs for a token's sum (pull), or pushes one partial sum home."""
        token = item.token if isinstance(item, Pair) else item
        if token.combine_start == NO_TIME:
            token.combine_start = self.clock.now_ps
        pairs = [item] if isinstance(item, Pair) else [pair for pair in token.pairs if pair.is_summed]
        partials = [self.vector_of(token, pair) for pair in pairs]
        if not partials:
            self._end_if_whole(token)
        elif self.world.combine.in_switch:
            # One instruction asks the switch for a sum; plain loads ask every GPU for its part.
            self.give([partials], self._token_ps(item))
        else:
            self.give([[vector] for vector in partials], self._token_ps(item))

    def _token_ps(self, item: Token | Pair) -> int:
        """Returns an SM's work on a token itself; partial sums are pushed one by one, so each bears a share of it."""
        if isinstance(item, Pair):
            own = sum(bool(pair.experts) and not pair.is_remote for pair in item.token.pairs)
            summed = sum(pair.is_summed for pair in item.token.pairs)
            return (self.work.token_ps + own * self.work.own_ps) // summed
        return self.work.token_ps

    def read_ps(self, vector: Vector) -> int:
        """Reads a partial sum; returns the delay with which it responds with it."""
        pair = vector[0].pair
        assert pair is not None
        result_bytes = self.costs.token_bytes[3]
        for tile in pair.tiles:
            self.memory.read_part(tile.block("out"), result_bytes, len(tile.pairs) * result_bytes)
        if not pair.experts:
            # A static reduce-scatter reads one vector from every GPU, whether it holds a result or not.
            self.memory.use_hbm(result_bytes, codes.HBM_READ)
        return self.costs.memory_ps + (self.memory.translate(pair) if self.world.combine.names_targets else 0)

    def reach(self, segment: TokenSegment) -> None:
        """Takes a segment of a partial or reduced sum in at its home GPU."""
        token, place, combine = segment.token, segment.place, self.world.combine
        if not combine.reads:
            self.acknowledge(segment)
        token.pieces_left[place] -= segment.pieces
        self._end_if_whole(token)
        # What was asked of the switch is here with its last piece.
        if combine.reads and (token.pieces_left[place] == 0 or not combine.in_switch):
            self.end_segment(segment)

    def _end_if_whole(self, token: Token) -> None:
        """Ends a token of this GPU once all partial sums are added to all segments of its result."""
        if any(token.pieces_left):
            return
        token.combine_end = self.clock.now_ps
        self.memory.write(("result", token.home, token.place), self.costs.token_bytes[3])
        self.world.tokens_left -= 1
        self.combined += 1
        self.outputs_live -= self.world.notifies
