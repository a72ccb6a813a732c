"""What thread blocks, weights and single tokens take at least, whatever the schedule and by the quickest kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dysharp_env.native import native
from dysharp_env.schedules.needs import matrix_ps
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.hardware import PS_PER_S
from dysharp_env.system import SystemSpec
from dysharp_env.system.primitives import Primitive
from dysharp_env.workload.layer import LayerSpec


class Times(NamedTuple):
    """Least times, and what they are made of."""

    hop_ps: int
    arrival_ps: int  # of a token from another GPU
    local_arrival_ps: int
    rows_ps: int  # of a tile of one token in both GEMMs
    home_ps: int  # from the end of a row to the sum at another GPU
    granule_tokens: int
    granule_ps: int  # of SM time, both GEMMs
    half_granule_ps: int
    operand_ps: int  # of SM time of a tile that is bound by reading, beside that of half its granules
    tile_tokens: int
    tile_ps: int  # of SM time beside that of its granules
    blocks: int  # of a tile, both GEMMs
    slow_permille: int  # SM time on GPU 0 over that on others
    late_ps: int  # how much later GPU 0 starts
    num_sms: int
    weight_bytes: int  # of an expert, as its rows read them
    byte_ps: float  # of HBM
    first_copy_ps: int  # until a copy's first matrix is there


class CopyTimes(NamedTuple):
    """Least times of copying an expert's weights; apart, because each field costs whoever compiles a call."""

    wire_ps: int  # of a link
    last_row_ps: int  # of a tile of one token in GEMM-2

    @classmethod
    def of(cls, costs: Costs, dispatches: Sequence[Primitive]) -> CopyTimes:
        """Returns the least times by the best of some primitives."""
        return cls(
            wire_ps=sum(matrix_ps(dispatches, costs, num_bytes) for num_bytes in costs.matrix_bytes),
            last_row_ps=min(costs.block_ps(2, 1, gpu) for gpu in (0, 1)),
        )


def least_times(
    system: SystemSpec, layer: LayerSpec, costs: Costs, dispatches: Sequence[Primitive], combines: Sequence[Primitive]
) -> Times:
    """Returns the least times of a layer on a system that has those primitives."""
    arrival_ps = min(_out_ps(each, costs, combines[0]) for each in dispatches)
    return Times(
        hop_ps=_hop_ps(costs),
        arrival_ps=arrival_ps,
        local_arrival_ps=min(costs.memory_ps, arrival_ps),
        rows_ps=min(costs.block_ps(1, 1, gpu) + costs.block_ps(2, 1, gpu) for gpu in (0, 1)),
        home_ps=min(_home_ps(each, costs, dispatches[0]) for each in combines),
        granule_tokens=costs.row_granularity,
        granule_ps=_of_row(costs, costs.granule_ps),
        half_granule_ps=_of_row(costs, [granule_ps // 2 for granule_ps in costs.granule_ps]),
        operand_ps=_of_row(costs, costs.operand_ps),
        tile_tokens=layer.tile_tokens,
        tile_ps=sum(costs.blocks) * costs.block_overhead_ps,
        blocks=sum(costs.blocks),
        slow_permille=costs.slow_permille,
        late_ps=costs.faults.late_ps,
        num_sms=system.gpu.num_sms,
        weight_bytes=sum(costs.weight_bytes),
        byte_ps=PS_PER_S / costs.hbm_bytes_per_s,
        # Read, sent off, and two hops.
        first_copy_ps=costs.memory_ps + matrix_ps(dispatches, costs, costs.matrix_bytes[0]) + 2 * _hop_ps(costs),
    )


@native
def work_ps(tokens: int, times: Times) -> int:
    """Returns the SM time of an expert's tokens in both GEMMs, however they are cut into tiles, on a GPU not slow."""
    granules, tiles = -(-tokens // times.granule_tokens), -(-tokens // times.tile_tokens)
    # Every tile takes the longer of two times, hence all tiles together no less than the longer of the sums.
    reading_ps = tiles * times.operand_ps + granules * times.half_granule_ps
    return max(granules * times.granule_ps, reading_ps) + tiles * times.tile_ps


def _of_row(costs: Costs, block_ps: Sequence[int]) -> int:
    """Returns what all thread blocks of a row in both GEMMs take, each so long."""
    return sum(blocks * ps for blocks, ps in zip(costs.blocks, block_ps, strict=True))


def _hop_ps(costs: Costs) -> int:
    """Returns a hop in whole quanta, to which deliveries are rounded down."""
    return costs.hop_ps // costs.quantum_ps * costs.quantum_ps


def _families(primitive: Primitive, costs: Costs) -> list[str]:
    """Returns the families that may issue a primitive; the usual one where a GPU has none."""
    if primitive.in_switch or not costs.families.specs:
        return [primitive.usual_family]
    return [name for name in costs.families.specs if name in primitive.families]


def _out_ps(primitive: Primitive, costs: Costs, combine: Primitive) -> int:
    """Returns how soon a token can be at an expert GPU, by whichever kernels issue a dispatch primitive."""
    return min(
        _way_ps(costs.under(primitive, combine, (family, "")), primitive, True)
        for family in _families(primitive, costs)
    )


def _home_ps(primitive: Primitive, costs: Costs, dispatch: Primitive) -> int:
    """Returns how soon a sum can be home, by whichever kernels issue a combine primitive."""
    return min(
        _way_ps(costs.under(dispatch, primitive, ("", family)), primitive, False)
        for family in _families(primitive, costs)
    )


def _way_ps(costs: Costs, primitive: Primitive, is_dispatch: bool) -> int:
    """Returns how long a vector is at hand and on its way at least, through an idle network, at either resolution."""
    sm, num_bytes = (
        (costs.dispatch_sm, costs.dispatch_bytes) if is_dispatch else (costs.combine_sm, costs.combine_bytes)
    )
    packet = costs.dispatch_packet if is_dispatch else costs.combine_packet
    named = int(primitive.names_targets)
    way_ps = costs.wire_ps(packet.data_flits(num_bytes, named if is_dispatch else 0))
    if is_dispatch and primitive.names_targets:
        # A first look into the AL TLB misses; packets behind the first pass it meanwhile.
        way_ps = max(way_ps, costs.memory_ps)
    if primitive.reads:
        way_ps += costs.wire_ps(packet.ask_flits(num_bytes, named)) + 2 * _hop_ps(costs) + costs.memory_ps
    if not is_dispatch and primitive.in_switch:
        way_ps += costs.cycle_ps
    # Only the first of a token's vectors bears the work on the token itself, so all do where there is one of them.
    is_only = primitive.in_switch and not primitive.by_team and (is_dispatch or primitive.reads)
    return sm.delay_ps(sm.token_ps * is_only) + way_ps + 2 * _hop_ps(costs)
