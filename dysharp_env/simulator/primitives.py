"""What a program's primitives mean for its pairs: who sends, who asks, what crosses links and what the switch sums."""

from __future__ import annotations

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.layout import (
    BROADCAST,
    MULTICAST,
    PULL,
    PULL_REDUCE,
    PULL_UNICAST,
    PUSH_REDUCE,
    REDUCE_SCATTER,
)
from dysharp_env.simulator.views import Root


@compiled
def stores_once(s: Root) -> bool:
    """Returns whether a token leaves its home GPU once and the switch makes the copies."""
    return s.dispatch_primitive == MULTICAST or s.dispatch_primitive == BROADCAST


@compiled
def is_pull(s: Root) -> bool:
    """Returns whether home GPUs pull sums, rather than expert GPUs pushing theirs."""
    primitive = s.combine_primitive
    return primitive == PULL_REDUCE or primitive == REDUCE_SCATTER or primitive == PULL_UNICAST


@compiled
def sums_in_switch(s: Root) -> bool:
    """Returns whether partial sums meet in a reduction unit."""
    primitive = s.combine_primitive
    return primitive == PULL_REDUCE or primitive == REDUCE_SCATTER or primitive == PUSH_REDUCE


@compiled
def is_remote(s: Root, pair: int) -> bool:
    """Returns whether a pair's vector crosses links; with loopback a home GPU's own does too."""
    return s.loopback == 1 or s.pairs[pair].gpu != s.pairs[pair].home


@compiled
def is_target(s: Root, pair: int) -> bool:
    """Returns whether dispatch moves this pair over links."""
    return is_remote(s, pair) and (s.pairs[pair].num_experts > 0 or s.dispatch_primitive == BROADCAST)


@compiled
def is_summed(s: Root, pair: int) -> bool:
    """Returns whether combine moves this pair over links."""
    return is_remote(s, pair) and (s.pairs[pair].num_experts > 0 or s.combine_primitive == REDUCE_SCATTER)


@compiled
def is_in_turn(s: Root, gpu: int, pair: int) -> bool:
    """Returns whether a GPU that dispatches a token moves this pair now.

    One that pulls takes its own share of every token. One that stores sends its own tokens' copies: all of them, or
    those to the peers of the part at hand.
    """
    if s.dispatch_primitive == PULL:
        return s.pairs[pair].gpu == gpu
    return s.by_peers == 0 or s.pairs[pair].part == s.gpus[gpu].part
