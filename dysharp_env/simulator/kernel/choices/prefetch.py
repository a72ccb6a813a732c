"""Decisions on which expert matrix a GPU's HBM, which has nothing to do, brings into L2 ahead of its use.

Candidates are matrices that some row is still to use and that L2 lacks, but for those of copies that are yet to come
over the links; those of the expert with the most tokens first, GEMM-1's before GEMM-2's. Where nobody counted, any
expert may get tokens until all sources are done. Room for one is what is free
and what dead matrices hold; what it needs beyond that it takes from what L2 has used least recently. At such a price a
matrix is offered once until a row has used it: or two that do not fit together could give way to each other for ever.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.choices.gemm import add_sorted
from dysharp_env.simulator.kernel.memory import hbm_ps, is_here, missing_weights, weights_to_read
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.prefetch import (
    are_counts_known,
    fetch_ahead,
    fetches_from_ps,
    free_bytes,
    is_alive,
    known_tokens,
)
from dysharp_env.simulator.kernel.shares import fraction, rooted
from dysharp_env.simulator.kernel.sources import more_comes
from dysharp_env.simulator.state.codes import GEMM1, GEMM2, NOTHING
from dysharp_env.simulator.state.observation import PREFETCH


@compiled
def act_prefetch(s: Root, gpu: int) -> bool:
    """Returns whether a matrix to fetch has to be chosen: it is time, and HBM has nothing to do."""
    g = s.gpus[gpu]
    return (
        s.prefetches
        and s.now_ps >= fetches_from_ps(s, gpu)
        and g.hbm_free_ps <= s.now_ps
        and g.groups[PREFETCH].holding == 0
    )


@compiled
def list_matrices(s: Root, gpu: int, limit: int) -> int:
    """Lists a GPU's matrices that may be fetched, those of the expert with the most tokens first."""
    g = s.gpus[gpu]
    g.room_bytes = free_bytes(s, gpu)
    count = 0
    for i in range(g.first_expert, g.first_expert + g.num_experts):
        expert = s.gpu_experts[i]
        tokens = known_tokens(s, expert)
        if tokens == 0 and (are_counts_known(s, gpu) or not more_comes(s, gpu)):
            continue
        for gemm in (GEMM1, GEMM2):
            missing_bytes = missing_weights(s, expert, gemm)
            is_offered = missing_bytes <= g.room_bytes or not s.matrices[expert * 2 + gemm].at_price
            if missing_bytes > 0 and is_offered and is_here(s, expert, gemm) and is_alive(s, expert, gemm):
                count = add_sorted(s, count, limit, -tokens, expert * 2 + gemm, gemm)
    return count


@compiled
def is_wanted(s: Root, expert: int, gemm: int) -> bool:
    """Returns whether a row that is ready needs an expert's matrix (without its part)."""
    for part in range(expert * s.parts_per_expert, (expert + 1) * s.parts_per_expert):
        x = s.experts[part]
        if (x.rows_started < x.rows_ready) if gemm == GEMM1 else (x.second.head != NOTHING):
            return True
    return False


@compiled
def fraction_left(s: Root, gpu: int, expert: int) -> float:
    """Returns which fraction of an expert's tokens (of all parts) is to arrive; while that is unknown, of sources."""
    g = s.gpus[gpu]
    if not g.start_open:
        return 1.0
    if g.sources_left > 0:
        return g.sources_left / g.sources
    total, arrived = 0, 0
    for part in range(expert * s.parts_per_expert, (expert + 1) * s.parts_per_expert):
        total += s.experts[part].total
        arrived += s.experts[part].arrived
    return 1.0 - fraction(arrived, total)


@compiled
def describe_matrix(s: Root, gpu: int, row: int, walks: bool) -> None:
    """Describes a matrix that may be fetched."""
    f = s.features[row]
    expert, gemm = divmod(s.candidates[row].item, 2)
    missing_bytes = missing_weights(s, expert, gemm)
    f.size = min(1.0, known_tokens(s, expert) / s.tile_tokens)
    f.is_gemm2 = gemm
    f.expert_left = fraction_left(s, gpu, expert)
    f.wanted = 1.0 if is_wanted(s, expert, gemm) else 0.0
    f.drops = max(missing_bytes - s.gpus[gpu].room_bytes, 0) / missing_bytes
    if walks:
        f.cost = rooted(s, hbm_ps(s, weights_to_read(s, expert, gemm)))


@compiled
def take_matrix(s: Root, gpu: int, row: int) -> bool:
    """Fetches a matrix, or lets the GPU wait."""
    block = s.candidates[row].item
    if block == NOTHING:
        s.gpus[gpu].groups[PREFETCH].holding = 1
    else:
        fetch_ahead(s, gpu, block)
    return True
