"""What a schedule's primitives mean for one pair: whether its vector crosses links, and whose turn it is.

What a primitive is stands in the root, as system/primitives.py has it: ``s.dispatch`` and ``s.combine``.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled_in_place
from dysharp_env.simulator.kernel.names import Root


@compiled_in_place
def is_remote(s: Root, pair: int) -> bool:
    """Returns whether a pair's vector crosses links; with loopback a home GPU's own does too."""
    return s.loopback == 1 or s.pairs[pair].gpu != s.pairs[pair].home


@compiled_in_place
def is_target(s: Root, pair: int) -> bool:
    """Returns whether dispatch moves this pair over links."""
    return is_remote(s, pair) and (s.pairs[pair].num_experts > 0 or s.dispatch.to_all == 1)


@compiled_in_place
def is_summed(s: Root, pair: int) -> bool:
    """Returns whether combine moves this pair over links."""
    return is_remote(s, pair) and (s.pairs[pair].num_experts > 0 or s.combine.to_all == 1)


@compiled_in_place
def store_of(s: Root, pair: int) -> int:
    """Returns the store that a pair's dispatched vector is a replica of."""
    q = s.pairs[pair]
    if s.stores_per_token == 1:
        return q.token
    return q.token * s.stores_per_token + q.gpu // s.team_gpus


@compiled_in_place
def token_of_store(s: Root, store: int) -> int:
    """Returns the token that a store is of."""
    # Divisions are slow.
    return store if s.stores_per_token == 1 else store // s.stores_per_token


@compiled_in_place
def is_in_turn(s: Root, gpu: int, part: int, pair: int) -> bool:
    """Returns whether a GPU that dispatches a part moves this pair of one of its tokens.

    One that pulls takes its own share of every token, one that stores sends its own tokens' copies; of what is in the
    part: all of them, or those to its peers or experts.
    """
    return s.pairs[pair].part == part and (s.dispatch.reads == 0 or s.pairs[pair].gpu == gpu)
