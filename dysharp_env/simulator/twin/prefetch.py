"""Which weights one of the twin's GPUs fetches ahead while its HBM has nothing to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from dysharp_env.simulator.state.codes import NO_TIME
from dysharp_env.simulator.twin.parts import Expert
from dysharp_env.simulator.twin.world import Memory, Progress, World


class Matrix(NamedTuple):
    """One matrix of an expert of this GPU."""

    expert: int
    stage: int
    tokens: int  # of the expert, as far as they are known
    is_needed: bool  # by a row that is still to start


class Prefetcher:
    """Fetches the matrix of the expert with the most tokens for which L2 has room, GEMM-1's first."""

    def __init__(
        self,
        world: World,
        memory: Memory,
        progress: Progress,
        experts: Iterable[Expert],
        is_here: Callable[[int, int], bool],
    ) -> None:
        """Takes what says whether the matrix of an (expert, stage) is on its GPU: a copy's may be yet to come."""
        self.world, self.memory, self.progress, self.is_here = world, memory, progress, is_here
        self.parts: dict[int, list[Expert]] = {}
        for expert in experts:
            self.parts.setdefault(expert.number, []).append(expert)
        if world.program.prefetches:
            memory.on_free = self.fetch

    def _matrices(self) -> list[Matrix]:
        found = []
        for number, parts in sorted(self.parts.items()):
            tokens = sum(part.total if self.world.program.counted else part.arrived for part in parts)
            for stage in (1, 2):
                tiles = [tile for part in parts for tile in part.tiles if tile.start_ps[stage - 1] != NO_TIME]
                is_needed = sum(len(tile.pairs) for tile in tiles) < sum(part.total for part in parts)
                # Without counts more may come for any expert until all sources are done.
                is_needed |= not self.world.program.counted and self.progress.more_comes
                found.append(Matrix(number, stage, tokens, is_needed))
        return found

    def row_started(self, expert: int, stage: int) -> None:
        """Lets a matrix that no row is still to use give way first, and fetches another."""
        if self.world.program.prefetches:
            if any(matrix[:2] == (expert, stage) and not matrix.is_needed for matrix in self._matrices()):
                self.memory.give_way_first(("weights", expert, stage))
            self.fetch()

    def fetch(self) -> None:
        """Fetches one, once the layer has begun; what no row is still to use goes first, as far as it is in the way."""
        memory = self.memory
        is_busy = memory.hbm_free_ps > self.world.clock.now_ps
        if not self.world.program.prefetches or not self.progress.has_begun or is_busy:
            return
        matrices = self._matrices()
        dead = [matrix for matrix in matrices if not matrix.is_needed]
        room = memory.room_bytes + sum(memory.held_bytes(("weights", *matrix[:2])) for matrix in dead)
        fitting = [
            matrix
            for matrix in matrices
            if matrix.is_needed and matrix.tokens > 0 and 0 < memory.missing_bytes(*matrix[:2]) <= room
            if self.is_here(*matrix[:2])
        ]
        if not fitting:
            return
        expert, stage = max(fitting, key=lambda matrix: matrix.tokens)[:2]
        while memory.room_bytes < memory.missing_bytes(expert, stage):
            memory.drop(("weights", *dead.pop(0)[:2]))
        memory.fetch_weights(expert, stage)
