"""Vectors as the segments that cross links: copies, stores that the switch replicates, partial sums and sums."""

from __future__ import annotations

from collections.abc import Sequence

from dysharp_env.simulator.layout import COMBINE_DATA, DISPATCH_DATA, REQUEST, RESPONSE
from dysharp_env.simulator.twin.parts import Pair, Segment, Token
from dysharp_env.simulator.twin.world import World


def is_target(world: World, pair: Pair) -> bool:
    """Returns whether dispatch sends this pair over links."""
    return pair.is_remote and (bool(pair.experts) or world.dispatch.to_all)


def is_summed(world: World, pair: Pair) -> bool:
    """Returns whether combine sends this pair over links."""
    return pair.is_remote and (bool(pair.experts) or world.combine.to_all)


def named_by_store(world: World, token: Token) -> int:
    """Returns how many experts a vector names that is dispatched to all its targets at once."""
    return sum(len(pair.experts) for pair in token.pairs if pair.is_remote) if world.dispatch.names_targets else 0


def copy_of(world: World, pair: Pair) -> list[Segment]:
    """Returns a dispatched vector for one GPU; a multicast replica names only the experts behind that port."""
    token, vc = pair.token, RESPONSE if world.dispatch.reads else REQUEST
    flits = dispatch_flits(world, len(pair.experts) if world.dispatch.names_targets else 0)
    return [
        Segment(
            name=("copy", token.number, pair.gpu, place),
            place=place,
            plane=token.dispatch_planes[place],
            purpose=DISPATCH_DATA,
            token=token,
            pair=pair,
            origin=token.home,
            flits_up=flits[place],
            flits_down=flits[place],
            packets=world.costs.dispatch_packets // len(flits),
            vc=vc,
        )
        for place in range(len(flits))
    ]


def store_of(world: World, token: Token, copies: list[list[Segment]]) -> list[Segment]:
    """Returns a vector dispatched to all its targets at once, of which the switch makes the copies."""
    flits = dispatch_flits(world, named_by_store(world, token))
    segments = []
    for place, replicas in enumerate(zip(*copies, strict=True)):
        whole = Segment(
            name=("store", token.number, token.home, place),
            place=place,
            plane=token.dispatch_planes[place],
            purpose=DISPATCH_DATA,
            token=token,
            pair=None,
            origin=token.home,
            flits_up=flits[place],
            flits_down=0,
            packets=world.costs.dispatch_packets // len(flits),
            replicas=list(replicas),
            replicas_left=len(replicas),
            acks_left=len(replicas),
        )
        for replica in replicas:
            replica.carrier = whole
        segments.append(whole)
    return segments


def partial_of(world: World, pair: Pair) -> list[Segment]:
    """Returns one GPU's partial sum of a token on its way home: a read response or a store."""
    token, vc = pair.token, RESPONSE if world.combine.reads else REQUEST
    flits = combine_flits(world)
    return [
        Segment(
            name=("partial", token.number, pair.gpu, place),
            place=place,
            plane=token.combine_planes[place],
            purpose=COMBINE_DATA,
            token=token,
            pair=pair,
            origin=pair.gpu,
            flits_up=flits[place],
            flits_down=flits[place],
            packets=world.costs.combine_packets // len(flits),
            vc=vc,
        )
        for place in range(len(flits))
    ]


def dispatch_flits(world: World, targets: int) -> list[int]:
    """Returns the flits of the segments of a dispatched vector that names so many experts."""
    return _segment_flits(world, world.costs.dispatch_bytes, targets)


def combine_flits(world: World) -> list[int]:
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


def sum_request_flits(world: World, pairs: Sequence[Pair]) -> int:
    """Returns the flits that ask for a segment of a sum, naming the pairs' experts unless the sum is static."""
    named = sum(len(pair.experts) for pair in pairs) if world.combine.names_targets else 0
    return world.costs.packet.ask_flits(world.costs.combine_bytes, named) // world.costs.combine_segments
