"""What a finished row means for the other rows of its tokens: which of them would be the last that is waited for."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.state.codes import COUNTED, NOTHING


@compiled
def count_slot(s: Root, first: int, count: int, tile: int, left: int) -> None:
    """Notes that the row of one of a token's (or pair's) slots is done; the row of the last one left would finish it.

    Args:
        s: The root.
        first: The token's or pair's first slot.
        count: Its slots.
        tile: The tile whose row is done.
        left: Its slots whose rows are not done.
    """
    rest = NOTHING
    for slot in range(first, first + count):
        if s.slot_tile[slot] == tile:
            s.slot_tile[slot] = COUNTED - tile
        elif s.slot_tile[slot] > COUNTED:
            rest = s.slot_tile[slot]
    # One that has not arrived is seen to when it does.
    if left == 1 and rest != NOTHING:
        s.tiles[rest].finishes += 1
