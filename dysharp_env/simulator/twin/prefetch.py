"""Which weights one of the twin's GPUs fetches ahead while its HBM has nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dysharp_env.simulator.state.codes import NO_TIME
from dysharp_env.simulator.state.observation import PREFETCH
from dysharp_env.simulator.twin.parts import Expert, Matrix
from dysharp_env.simulator.twin.staffing import Group, Site


class PrefetchGroup(Group):
    """What brings matrices of one GPU's experts into L2 ahead of their use."""

    def __init__(self, site: Site, experts: Iterable[Expert], is_here: Callable[[int, int], bool]) -> None:
        """Takes what says whether the matrix of an (expert, stage) is on its GPU: a copy's may be yet to come."""
        super().__init__(site, PREFETCH)
        self.is_here = is_here
        self.parts: dict[int, list[Expert]] = {}
        for expert in experts:
            self.parts.setdefault(expert.number, []).append(expert)
        # (expert, stage)s that were fetched at the price of something else, and that no row has used since.
        self.at_price: set[tuple[int, int]] = set()
        if self.world.program.prefetches:
            self.memory.on_free = self.mark

    def wake(self) -> None:
        """Looks for what to fetch because of something new, if anything is ever fetched ahead."""
        if self.world.program.prefetches:
            super().wake()

    def row_started(self, expert: int, stage: int) -> None:
        """Lets a matrix that no row is still to use give way first, and fetches another."""
        if self.world.program.prefetches:
            self.at_price.discard((expert, stage))
            if not self._is_needed(expert, stage):
                self.memory.give_way_first(("weights", expert, stage))
            self.wake()

    def act(self) -> list[Matrix]:
        """Offers what may be fetched, if the layer has begun and HBM has nothing to do."""
        is_idle = self.memory.hbm_free_ps <= self.clock.now_ps
        if not self.world.program.prefetches or self._is_early or not is_idle or self.holds:
            return []
        matrices = [Matrix(number, stage, tuple(parts)) for number, parts in self.parts.items() for stage in (1, 2)]
        found = [matrix for matrix in matrices if self._may_be_fetched(matrix)]
        return sorted(found, key=lambda matrix: (-self.known_tokens(matrix), matrix.expert, matrix.stage))

    def _may_be_fetched(self, matrix: Matrix) -> bool:
        """Returns whether it is of use, and here but not in L2; for a price it is offered once until a row uses it."""
        place = matrix.expert, matrix.stage
        may_get_some = self.known_tokens(matrix) > 0 or self._is_unknown
        if not may_get_some or not self._is_needed(*place) or not self.is_here(*place):
            return False
        is_missing = self.memory.missing_bytes(*place) > 0
        return is_missing and (self.drops_bytes(matrix) == 0 or place not in self.at_price)

    def known_tokens(self, matrix: Matrix) -> int:
        """Returns the tokens of its expert, as far as they are known."""
        return sum(part.total if self._are_known else part.arrived for part in matrix.parts)

    def drops_bytes(self, matrix: Matrix) -> int:
        """Returns what would give way to it of what is still to be used."""
        return max(0, self.memory.missing_bytes(matrix.expert, matrix.stage) - self._room_bytes())

    def _room_bytes(self) -> int:
        """Returns what is free of L2 or held by dead matrices."""
        return self.memory.room_bytes + sum(self.memory.held_bytes(("weights", *place)) for place in self._dead())

    def _dead(self) -> list[tuple[int, int]]:
        """Returns the (expert, stage)s of matrices that no row is still to use."""
        places = [(number, stage) for number in sorted(self.parts) for stage in (1, 2)]
        return [place for place in places if not self._is_needed(*place)]

    def _is_needed(self, expert: int, stage: int) -> bool:
        """Returns whether a row is still to start that uses a matrix."""
        parts = self.parts[expert]
        tiles = [tile for part in parts for tile in part.tiles if tile.start_ps[stage - 1] != NO_TIME]
        return self._is_unknown or sum(len(tile.pairs) for tile in tiles) < sum(part.total for part in parts)

    @property
    def _is_unknown(self) -> bool:
        """Whether more may come for any expert, as counts are not known and not all sources are done."""
        return not self._are_known and self.progress.more_comes

    @property
    def _are_known(self) -> bool:
        """Whether counts were exchanged, and that is over."""
        return self.world.program.counted and self.progress.has_begun

    @property
    def _is_early(self) -> bool:
        """Whether it is not yet time to fetch anything."""
        return self.clock.now_ps < self.world.fetches_from_ps[self.gpu]

    def may_hold(self) -> bool:
        """Returns True: rows fetch what they need themselves."""
        return True

    def take(self, matrix: Matrix) -> None:
        """Fetches a matrix; what no row is still to use goes first, as far as it is in the way."""
        place, memory, dead = (matrix.expert, matrix.stage), self.memory, self._dead()
        if self.drops_bytes(matrix) > 0:
            self.at_price.add(place)
        while dead and memory.room_bytes < memory.missing_bytes(*place):
            memory.drop(("weights", *dead.pop(0)))
        memory.fetch_weights(*place)
