"""Runs with random answers, and their logs read back: what moved where and when."""

from typing import NamedTuple

import numpy as np

from dysharp_env.simulator import layout
from dysharp_env.simulator.result import segment_name


class Use(NamedTuple):
    """A log row whose item is spelt out: ``store`` (whole token), ``copy``, ``partial``, ``sum`` or ``tile``."""

    resource: int
    gpu: int
    purpose: int
    what: str
    token: int
    peer: int  # the expert GPU of a copy or partial sum
    place: int  # in its vector
    plane: int
    amount: int
    start_ps: int
    end_ps: int
    vectors: int  # more than one for a bundle


def play(case, seed: int):
    """Returns the engine after a run in which random answers are given to what it asks."""
    rng = np.random.default_rng(seed)
    engine = case.engine()
    while (asked := engine.advance()) is not None:
        engine.decide(int(rng.choice(np.flatnonzero(asked.mask))))
    return engine


def uses(state) -> list[Use]:
    """Returns the rows of the log; at chunk resolution a bundle has one."""
    found = []
    for resource, gpu, purpose, item, amount, start_ps, end_ps in state.log[: state.root["log_size"][0]].tolist():
        name = ("tile", item, gpu, 0, 0) if resource == layout.LOG_SM else segment_name(state, item)
        is_bundle = state.root["by_chunk"][0] and resource != layout.LOG_SM
        vectors = len(followers(state, name[0], int(state.nodes["owner"][item]))) if is_bundle else 1
        found.append(Use(resource, gpu, purpose, *name, amount, start_ps, end_ps, vectors))
    return found


def vector_uses(state) -> list[Use]:
    """Returns the rows of the log, each vector of a bundle with one of its own; an eviction is never many."""
    if not state.root["by_chunk"][0]:
        return uses(state)
    found = []
    for use, (resource, _, purpose, item, *_) in zip(uses(state), state.log.tolist(), strict=False):
        if resource == layout.LOG_SM or purpose == layout.EVICTION:
            found.append(use)
            continue
        for other in followers(state, use.what, int(state.nodes["owner"][item])):
            token, peer = other, use.peer
            if use.what in ("copy", "partial"):
                token, peer = int(state.pairs["token"][other]), int(state.pairs["gpu"][other])
            found.append(use._replace(token=token, peer=peer))
    return found


def followers(state, what: str, carrier: int) -> list[int]:
    """Returns the pairs or tokens of a bundle, the carrier first."""
    links = {
        "copy": state.copy_next,
        "partial": state.partial_next,
        "store": state.stores["next"],
        "sum": state.item_next,
    }[what]
    # Sums that are pushed are no bundles, and tokens are in no lists then.
    found = [carrier]
    while (what != "sum" or is_pulled(state)) and links[found[-1]] != layout.NOTHING:
        found.append(int(links[found[-1]]))
    return found


def is_pulled(state) -> bool:
    """Returns whether home GPUs ask for sums."""
    return state.root["combine_primitive"][0] in (layout.PULL_REDUCE, layout.REDUCE_SCATTER, layout.PULL_UNICAST)
