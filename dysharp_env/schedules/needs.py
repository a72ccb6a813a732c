"""What links and reduction units must carry of a workload under each primitive, whatever the schedule.

Only what somebody waits for is counted, and only where it is before other data on its link: acknowledgements of tokens
whose partial sums follow them; requests on their way up, which data answers. A static store that reaches no expert of
its token may still be under way when the layer ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dysharp_env.simulator.costs import Costs
from dysharp_env.system.primitives import Primitive

# What a primitive's needs are made of, counted for each GPU: pairs of its own tokens with other GPUs, pairs of others'
# tokens with it, its own tokens, everybody else's, what everybody else adds to its own, its own that any other GPU must
# see, and the stores to teams that these take; in picoseconds: its multicast stores and in-switch requests on its
# uplink, and what of the stores comes down to it; and its experts of which copies are made, how many are made of these
# themselves (a relay is a copy), and its copies. Tokens without any expert need nothing and are in none of them.
SENT, RECEIVED, OWN, OTHERS, ADDED, AWAY, TEAMS, STORES, REQUESTS, STORED, SOURCES, COPIED, COPIES = range(13)
NUM_COUNTS = 13
# Weights move in tiles of 1 KiB at least (``tile_kb`` of schedules), or in few: that many times may be rounded down.
LEAST_TILE_BYTES, FEW_TILES = 1024, 16
Needs = tuple[dict[int, int], dict[int, int], dict[int, int]]


def weights(needs: Needs) -> np.ndarray:
    """Returns what uplinks, downlinks and reduction units need, (3, count) picoseconds of each count."""
    table = np.zeros((len(needs), NUM_COUNTS), np.int64)
    for row, need in enumerate(needs):
        for count, ps in need.items():
            table[row, count] = ps
    return table


class Moved(NamedTuple):
    """What a vector keeps links busy for at least, in the packets of whichever kernels may move it."""

    data_ps: int
    ask_ps: int
    ack_ps: int
    reduce_ps: int

    @classmethod
    def by(cls, primitive: Primitive, costs: Costs, num_bytes: int) -> Moved:
        """Returns what a primitive takes for a vector that names no expert."""
        packets = costs.families.packets_of(primitive)
        data_flits = min(packet.data_flits(num_bytes) for packet in packets)
        return cls(
            costs.wire_ps(data_flits),
            costs.wire_ps(min(packet.ask_flits(num_bytes) for packet in packets)),
            costs.wire_ps(min(packet.acknowledge_flits(num_bytes) for packet in packets)),
            costs.reduce_ps(data_flits),
        )


def dispatch_needs(primitive: Primitive, costs: Costs, *, acknowledged: bool) -> Needs:
    """Returns the least times of dispatch by a primitive, picoseconds of each count, perhaps with acknowledgements."""
    data_ps, ask_ps, ack_ps, _ = Moved.by(primitive, costs, costs.dispatch_bytes)
    if primitive.reads:
        return {SENT: data_ps, RECEIVED: ask_ps}, {RECEIVED: data_ps}, {}
    acks = {RECEIVED: ack_ps} if acknowledged else {}
    if primitive.names_targets:
        return {STORES: 1, **acks}, {STORED: 1}, {}
    stores = AWAY if primitive.to_all else TEAMS if primitive.by_team else SENT
    return {stores: data_ps, **acks}, {RECEIVED: data_ps}, {}


def weight_needs(primitives: Sequence[Primitive], costs: Costs) -> Needs:
    """Returns the least times of copying an expert's weights by the best of some primitives, as ``dispatch_needs``.

    An in-switch store may serve all copies of an expert at once.
    """
    expert_ps = sum(matrix_ps(primitives, costs, num_bytes) for num_bytes in costs.matrix_bytes)
    sends = SOURCES if any(primitive.in_switch for primitive in primitives) else COPIED
    return {sends: expert_ps}, {COPIES: expert_ps}, {}


def matrix_ps(primitives: Sequence[Primitive], costs: Costs, num_bytes: int) -> int:
    """Returns what a matrix keeps a link busy for at least, by the best of some primitives, cut into any tiles."""
    whole_ps = min(Moved.by(primitive, costs, num_bytes).data_ps for primitive in primitives)
    return max(0, whole_ps - max(FEW_TILES, -(-num_bytes // LEAST_TILE_BYTES)) * costs.quantum_ps)


def combine_needs(primitive: Primitive, costs: Costs) -> Needs:
    """Returns the least times of combine by a primitive, as picoseconds of each count."""
    data_ps, ask_ps, _, reduce_ps = Moved.by(primitive, costs, costs.combine_bytes)
    if primitive.to_all:
        return {OTHERS: data_ps, OWN: ask_ps}, {OWN: data_ps}, {ADDED: reduce_ps}
    if primitive.names_targets:
        return {RECEIVED: data_ps, REQUESTS: 1}, {AWAY: data_ps}, {SENT: reduce_ps}
    if primitive.in_switch:
        return {RECEIVED: data_ps}, {AWAY: data_ps}, {SENT: reduce_ps}
    if primitive.reads:
        return {RECEIVED: data_ps, SENT: ask_ps}, {SENT: data_ps}, {}
    return {RECEIVED: data_ps}, {SENT: data_ps}, {}
