"""Vectors as the segments that cross links, and how many flits those and the requests for them have."""

from __future__ import annotations

from collections.abc import Callable

from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin.parts import Pair, Segment, Token
from dysharp_env.simulator.twin.world import World

Effect = Callable[[Segment], None]


def copy_of(world: World, pair: Pair, reach: Effect, acknowledged: Effect) -> list[Segment]:
    """Returns a dispatched vector for one GPU; a multicast replica names only the experts behind that port."""
    flits = _token_flits(world, len(pair.experts))
    return _segments(world, "copy", codes.DISPATCH_DATA, pair.token, pair, flits, reach, acknowledged)


def store_of(world: World, token: Token, copies: list[list[Segment]]) -> list[Segment]:
    """Returns a vector dispatched to all its targets at once, of which the switch makes the copies."""
    flits, first = _token_flits(world, token.remote_experts), copies[0][0]
    store = _segments(world, "store", codes.DISPATCH_DATA, token, None, flits, first.reach, first.acknowledged)
    for whole, *replicas in zip(store, *copies, strict=True):
        whole.replicas = replicas
        whole.replicas_left = whole.acks_left = len(replicas)
        for replica in replicas:
            replica.carrier = whole
    return store


def partial_of(world: World, pair: Pair, reach: Effect, acknowledged: Effect) -> list[Segment]:
    """Returns one GPU's partial sum of a token on its way home: a read response or a store."""
    return _segments(world, "partial", codes.COMBINE_DATA, pair.token, pair, sum_flits(world), reach, acknowledged)


def _segments(
    world: World,
    what: str,
    purpose: int,
    token: Token,
    pair: Pair | None,
    flits: list[int],
    reach: Effect,
    acknowledged: Effect,
) -> list[Segment]:
    is_dispatched = purpose == codes.DISPATCH_DATA
    planes, packets, reads = (
        (token.dispatch_planes, world.costs.dispatch_packets, world.dispatch.reads)
        if is_dispatched
        else (token.combine_planes, world.costs.combine_packets, world.combine.reads)
    )
    gpu = pair.gpu if pair else token.home
    return [
        Segment(
            name=(what, token.number, gpu, place),
            purpose=purpose,
            token=token,
            pair=pair,
            place=place,
            plane=planes[place],
            origin=token.home if is_dispatched else gpu,
            flits=flits[place],
            packets=packets // len(flits),
            vc=codes.RESPONSE if reads else codes.REQUEST,
            reach=reach,
            acknowledged=acknowledged,
        )
        for place in range(len(flits))
    ]


def _token_flits(world: World, experts: int) -> list[int]:
    return _segment_flits(world, world.costs.dispatch_bytes, experts if world.dispatch.names_targets else 0)


def sum_flits(world: World) -> list[int]:
    """Returns the flits of the segments of a partial or reduced sum."""
    return _segment_flits(world, world.costs.combine_bytes, 0)


def _segment_flits(world: World, vector_bytes: int, targets: int) -> list[int]:
    packet = world.costs.packet
    if world.costs.resolution != "packet":
        return [packet.data_flits(vector_bytes, targets)]
    size = packet.payload_bytes
    return [packet.data_flits(min(size, vector_bytes - at), targets) for at in range(0, vector_bytes, size)]


def token_request_flits(world: World) -> int:
    """Returns the flits that ask for a segment of a token's vector."""
    return world.costs.packet.ask_flits(world.costs.dispatch_bytes) // world.costs.dispatch_segments


def sum_request_flits(world: World, experts: int) -> int:
    """Returns the flits that ask for a segment of a sum, naming so many experts unless the sum is static."""
    named = experts if world.combine.names_targets else 0
    return world.costs.packet.ask_flits(world.costs.combine_bytes, named) // world.costs.combine_segments
