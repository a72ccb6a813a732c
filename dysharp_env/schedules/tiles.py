"""What the GEMMs of every GPU must do under one program: SM time, tiles, and how few SMs can be busy at either end.

A tile keeps at most as many SMs busy as one of its rows has thread blocks, so SMs idle while few tiles can have closed,
and again while few can still be unfinished: tokens of a tile must have come down before it and partial sums must go up
after it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dysharp_env.native import native
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state.codes import GEMM1, GEMM2

# More tiles than this keep all SMs busy on machines there are; on others what is left out makes the bound lower.
MOST_TILES = 16


class Tiles(NamedTuple):
    """The tiles of experts (or of their parts), (expert,) each, and what their rows take.

    Attributes:
        total: Tokens.
        full: The fewest tokens of a tile but for the last one of an expert.
        least: The fewest tokens that any of its tiles can have.
        first: The fewest tokens of the tile that closes first.
        sm_ps: (GEMM, expert) SM time of all rows at least.
        row_ps: (GEMM, expert) time of a row of a tile with ``least`` tokens.
    """

    total: np.ndarray
    full: int
    least: np.ndarray
    first: np.ndarray
    sm_ps: np.ndarray
    row_ps: np.ndarray

    @classmethod
    def of(cls, total: np.ndarray, gpu: np.ndarray, costs: Costs, program: Program, tile_tokens: int) -> Tiles:
        """Returns the tiles of experts with so many tokens on those GPUs."""
        full = program.smallest_tile(tile_tokens)
        is_exact = full == tile_tokens and not program.may_close_early(tile_tokens)
        rest = total % tile_tokens
        if is_exact:
            least = np.where(rest > 0, rest, np.minimum(total, tile_tokens))
        else:
            least = np.minimum(total, 1)
        shape = (2, len(total))
        sm_ps, row_ps = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for expert in np.flatnonzero(total):
            tokens = int(total[expert])
            for gemm in (GEMM1, GEMM2):
                blocks = costs.blocks[gemm]
                if is_exact:
                    counts = [tile_tokens] * (tokens // tile_tokens) + [tokens % tile_tokens] * (
                        tokens % tile_tokens > 0
                    )
                    each = {count: costs.block_ps(gemm + 1, count, int(gpu[expert])) for count in set(counts)}
                    sm_ps[gemm, expert] = blocks * sum(each[count] for count in counts)
                else:
                    sm_ps[gemm, expert] = least_sm_ps(costs, gemm, tokens, tile_tokens, int(gpu[expert]))
                row_ps[gemm, expert] = costs.block_ps(gemm + 1, int(least[expert]), int(gpu[expert]))
        return cls(total, full, least, np.minimum(total, full), sm_ps, row_ps)


def least_sm_ps(costs: Costs, gemm: int, tokens: int, tile_tokens: int, gpu: int) -> int:
    """Returns the SM time of an expert's rows of one GEMM however its tokens are cut into tiles.

    Every tile takes the longer of two times, hence all tiles together no less than the longer of the sums. On the slow
    GPU a thread block's time is rounded down.
    """
    granules, tiles = -(-tokens // costs.row_granularity), -(-tokens // tile_tokens)
    granule_ps = costs.granule_ps[gemm]
    reading_ps = tiles * costs.operand_ps[gemm] + granules * (granule_ps // 2)
    ps = costs.blocks[gemm] * (max(granules * granule_ps, reading_ps) + tiles * costs.block_overhead_ps)
    return ps if gpu else max(0, ps * costs.slow_permille // 1000 - costs.blocks[gemm] * tokens)


def fewest_vectors_ps(slots: int, vectors: np.ndarray, ps: np.ndarray) -> int:
    """Returns the least wire time of vectors that together are of so many (token, expert)s.

    Args:
        slots: (token, expert)s.
        vectors: (top_k + 1,) vectors there are, by the experts they are for.
        ps: (top_k + 1,) wire time of each.
    """
    spent_ps = 0
    kinds = [named for named in range(1, len(vectors)) if vectors[named]]
    for named in sorted(kinds, key=lambda named: ps[named] / named):
        taken = min(slots, named * int(vectors[named]))
        spent_ps += taken * int(ps[named]) // named
        slots -= taken
    return spent_ps


def fewest_slots(first: np.ndarray, full: int, total: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Returns the fewest (token, expert)s of other GPUs' tokens in 1, 2, ... tiles of a GPU's experts.

    Args:
        first: (expert,) tokens of its smallest tile, or of that which must be the first.
        full: The fewest tokens of its other tiles, but for the last.
        total: (expert,) tokens.
        local: (expert,) those of them that are home there already.
    """
    most = int(min(MOST_TILES, (-(-(total - first) // full) + 1)[total > 0].sum()))
    fewest = np.full(most + 1, np.iinfo(np.int64).max // 4)
    fewest[0] = 0
    for expert in np.flatnonzero(total):
        own = int(-(-(total[expert] - first[expert]) // full)) + 1
        tokens = np.minimum(first[expert] + np.arange(min(own, most)) * full, total[expert])
        needs = np.maximum(tokens - local[expert], 0)
        best = fewest.copy()
        for count, need in enumerate(needs, 1):
            best[count:] = np.minimum(best[count:], fewest[: most + 1 - count] + need)
        fewest = best
    return fewest[1:]


@native
def least_end_ps(
    work_ps: int,
    sms: int,
    opens_ps: np.ndarray,
    closes_ps: np.ndarray,
    blocks1: int,
    blocks2: int,
    row1: int,
    row2: int,
) -> int:
    """Returns the first time by which SMs can have done all work and what must follow it.

    Args:
        work_ps: SM time.
        sms: SMs of the GPU that compute.
        opens_ps: (tile,) no more tiles than its place have closed before each time.
        closes_ps: (tile,) no more tiles than its place are unfinished so long before the end.
        blocks1: Thread blocks of a row of GEMM-1.
        blocks2: Those of a row of GEMM-2.
        row1: The least time of a row of GEMM-1.
        row2: That of a row of GEMM-2.
    """
    low = opens_ps[0] + closes_ps[0] - 1
    high = low + 1 + work_ps + row1 + row2 + opens_ps[-1] - opens_ps[0] + closes_ps[-1]
    while high - low > 1:
        middle = (low + high) // 2
        if _room_ps(middle, sms, opens_ps, closes_ps, blocks1, blocks2, row1, row2) >= work_ps:
            high = middle
        else:
            low = middle
    return high


@native
def _room_ps(
    end_ps: int, sms: int, opens_ps: np.ndarray, closes_ps: np.ndarray, blocks1: int, blocks2: int, row1: int, row2: int
) -> int:
    """Returns the most SM time that there can be before an end."""
    most = max(blocks1, blocks2)
    times = np.empty(len(opens_ps) + len(closes_ps) + 2, np.int64)
    times[: len(opens_ps)] = opens_ps
    times[len(opens_ps) : -2] = end_ps - closes_ps
    # Before the first row of GEMM-1 is over there is no GEMM-2, after the last of GEMM-2 has begun no GEMM-1.
    times[-2], times[-1] = opens_ps[0] + row1, end_ps - closes_ps[0] - row2
    times.sort()
    room_ps = 0
    for i in range(len(times) - 1):
        start_ps = times[i]
        opened, unfinished = 0, 0
        for k in range(len(opens_ps)):
            opened += opens_ps[k] <= start_ps
        for k in range(len(closes_ps)):
            unfinished += closes_ps[k] <= end_ps - times[i + 1]
        early = blocks1 if start_ps < opens_ps[0] + row1 else most
        late = blocks2 if times[i + 1] > end_ps - closes_ps[0] - row2 else most
        busy = sms
        if opened < len(opens_ps):
            busy = min(busy, opened * early)
        if unfinished < len(closes_ps):
            busy = min(busy, unfinished * late)
        room_ps += busy * (times[i + 1] - start_ps)
    return room_ps
