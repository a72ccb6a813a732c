"""The memory of one of the twin's GPUs: HBM, expert matrices in L2, and the AL TLB of its Hub."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from dysharp_env.simulator.twin.parts import Pair
from dysharp_env.simulator.twin.world import World


@dataclass(eq=False)
class Matrix:
    """One expert matrix in L2."""

    size_bytes: int
    loaded_ps: int


class Memory:
    """HBM as a queue of accesses, L2 as the matrices used last, the AL TLB as the translations made last.

    Attributes:
        hbm_free_ps: When HBM has served all accesses so far.
    """

    def __init__(self, world: World) -> None:
        self.costs, self.clock = world.costs, world.clock
        self.hbm_free_ps = 0
        self._l2: OrderedDict[tuple[int, int], Matrix] = OrderedDict()  # (expert, stage), least recently used first
        self._al_tlb: OrderedDict[tuple[int, int], None] = OrderedDict()  # (token, expert), first in first out

    def use_hbm(self, num_bytes: int) -> int:
        """Puts an access behind all earlier ones and returns when it is over."""
        self.hbm_free_ps = max(self.hbm_free_ps, self.clock.now_ps) + self.costs.hbm_ps(num_bytes)
        return self.hbm_free_ps

    def translate(self, pair: Pair) -> int:
        """Returns the delay of looking up a token's experts in the AL TLB: one memory latency if any misses."""
        delay_ps = 0
        for expert in pair.experts:
            key = (pair.token.number, expert)
            if key not in self._al_tlb:
                delay_ps = self.costs.memory_ps
                self._al_tlb[key] = None
                if len(self._al_tlb) > self.costs.al_tlb_entries:
                    self._al_tlb.popitem(last=False)
        return delay_ps

    def has_weights(self, expert: int, stage: int) -> bool:
        """Returns whether an expert's matrix is in L2, or on its way there."""
        return (expert, stage) in self._l2

    def fetch_weights(self, expert: int, stage: int) -> int:
        """Returns when an expert's matrix is in L2, read from HBM if it was not; one larger than L2 fills it."""
        costs, key = self.costs, (expert, stage)
        if key not in self._l2:
            size_bytes = min(costs.matrix_bytes[stage - 1], costs.l2_bytes)
            while self._l2 and sum(held.size_bytes for held in self._l2.values()) + size_bytes > costs.l2_bytes:
                self._l2.popitem(last=False)
            self._l2[key] = Matrix(size_bytes, self.use_hbm(costs.weight_bytes[stage - 1]))
        self._l2.move_to_end(key)
        return self._l2[key].loaded_ps
