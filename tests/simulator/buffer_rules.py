"""What the switch's input buffers hold, read from a run's log, against their credits."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.state import codes
from tests.conftest import Case
from tests.simulator.run_log import Use, group_of


def share_past(first_ps: int, last_ps: int, at_ps: np.ndarray) -> np.ndarray:
    """Returns which share of what passes evenly between two times has passed at others."""
    return np.where(at_ps >= last_ps, 1.0, np.clip((at_ps - first_ps) / max(last_ps - first_ps, 1), 0.0, 1.0))


def is_one_packet(costs: Costs, up: Use) -> bool:
    """Returns whether a segment is a single packet."""
    if up.what == "partial":
        return costs.combine_packets == costs.combine_segments
    return costs.dispatch_packets == costs.dispatch_segments


def flits_in_buffer(costs: Costs, up: Use, leaving: list[Use], at_ps: np.ndarray) -> np.ndarray:
    """Returns how many flits of a segment are at the switch: arrived, and not gone yet by its last way out."""
    first_ps, last_ps = up.start_ps + costs.hop_ps, up.end_ps + costs.hop_ps
    if is_one_packet(costs, up) or costs.store_and_forward:
        # One packet, or what waits for its tail, has its space from its head's arrival until all of it is gone.
        return up.amount * ((first_ps <= at_ps) & (at_ps < max(use.end_ps for use in leaving)))
    gone = np.min([share_past(use.start_ps, use.end_ps, at_ps) for use in leaving], axis=0)
    return up.amount * np.maximum(share_past(first_ps, last_ps, at_ps) - gone, 0.0)


def flits_given_back_early(costs: Costs, up: Use, leaving: list[Use], at_ps: np.ndarray) -> np.ndarray:
    """Returns how many of a segment's flits may be at the switch beyond those that its sender counts as there.

    That is modelled on average, for packets that give back their space one by one. What leaves more slowly than it
    came, through a unit that reduces at half the line rate, gives back all its space ``(entering + leaving) / 2``
    before its tail has left; ``entering`` later, when the next one's tail may be there, ``(leaving - entering) / 2`` of
    ``leaving`` of it still are. And where whole segments leave a rest of the buffer free, each gives back its space
    earlier by the rest's share of the time that it held it.
    """
    if costs.store_and_forward or is_one_packet(costs, up):
        return np.zeros(len(at_ps))
    entering_ps, last = up.end_ps - up.start_ps, max(leaving, key=lambda use: use.end_ps)
    leaving_ps = max(last.end_ps - last.start_ps, 1)
    is_leaving = (last.start_ps <= at_ps) & (at_ps < last.end_ps)
    slower = is_leaving * up.amount * max(0.0, 1 - entering_ps / leaving_ps) / 2
    rest_flits = costs.credit_flits - max(costs.credit_flits // up.amount, 1) * up.amount
    sooner_ps = (last.end_ps - up.start_ps) * max(rest_flits, 0) / costs.credit_flits
    given_back_ps = last.end_ps - min(leaving_ps, (entering_ps + leaving_ps) / 2) - sooner_ps
    here = flits_in_buffer(costs, up, leaving, at_ps)
    return np.maximum(slower, here * ((sooner_ps > 0) & (given_back_ps <= at_ps)))


def check_buffers_hold_their_credits(case: Case, log: list[Use]) -> None:
    """The flits of a class that are in the switch's buffer behind a link are never more than it holds."""
    costs = case.costs
    if costs.queueing == "output_queued" or case.program.copies_per_expert:
        return  # no buffers; or copies to one GPU share a name, so which of them has left is not in the log
    leaving = defaultdict(list)  # by (what, token, peer, place, group) of what went up: how it leaves the switch
    is_unicast = not case.program.dispatch.in_switch
    for use in log:
        leaves = use.resource == codes.LOG_REDUCE or (use.resource == codes.LOG_DOWN and use.what != "sum")
        if leaves and use.purpose not in (codes.EVICTION, codes.WEIGHT_DATA):
            home, group = int(case.workload.home_of_token[use.token]), group_of(case, use.peer)
            whole = "store", use.token, home, use.place, group
            leaving[use[3:8] if use.what == "partial" or is_unicast else whole].append(use)
    sent = defaultdict(list)
    for use in log:
        if use.resource == codes.LOG_UP and use[3:8] in leaving:
            is_response = case.program.combine.reads if use.what == "partial" else case.program.dispatch.reads
            sent[use.gpu, use.plane, is_response].append(use)
    for found in sent.values():
        # Between these times flits arrive and leave evenly, so there are most of them at one of them.
        moments = {(use.start_ps + costs.hop_ps, use.end_ps + costs.hop_ps) for use in found}
        moments |= {(use.start_ps, use.end_ps) for up in found for use in leaving[up[3:8]]}
        at_ps = np.unique(list(moments))
        flits = sum(flits_in_buffer(costs, up, leaving[up[3:8]], at_ps) for up in found)
        early = sum(flits_given_back_early(costs, up, leaving[up[3:8]], at_ps) for up in found)
        # A vector that is larger than the buffer passes alone, but the next one may follow before its last packet left.
        largest = max(up.amount for up in found)
        assert (flits <= costs.credit_flits + early + largest * (largest > costs.credit_flits) + 1e-6).all()
