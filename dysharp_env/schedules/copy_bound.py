"""What no schedule can beat even if it copies weights of any experts to any GPUs and shares their tokens among them.

Whoever shares tokens before the layer knows all of its routing; nothing is assumed of how many copies there are, which
primitive moves them, and which token goes where. What remains, from the time at which all that it pays is paid:

* SM time of all experts together, each in as few tiles as its tokens need, spread over all GPUs; the slow one does less
  in the same time. A GPU starts with its first token and, until the first matrix of a copy can have crossed a link,
  has only the experts that it holds; where no token lives, the last one there still has its way home before it.
* Weights of each GPU that holds the only replica of experts with tokens: whoever computes them, HBM reads them there
  for a row or, if all tokens go elsewhere, its uplink sends them away at least once.
* Links, by what copies save against what they cost. A token leaves home and a sum comes back unless all its experts are
  at home; it visits each other GPU with experts of it unless all of these are elsewhere. Either takes copies, and every
  copy brings its weights down a link. Let each expert away from home bear an equal share of what its token takes, and
  each expert of a pair one of the pair: then it needs the smaller of its shares and the copies that save them. (It is
  the weak dual of choosing copies; the shares could be chosen better.) That holds of the mean over all GPUs, of every
  GPU for its own tokens, and of means of uplinks or reduction units with downlinks: the busiest is no less.

Left out, beside what the bound of any schedule leaves out: whether the weights that it takes to keep all GPUs busy can
have come in time, and that tokens sent to be computed elsewhere take links as well.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dysharp_env.native import native
from dysharp_env.schedules.needs import ADDED, AWAY, OTHERS, OWN, RECEIVED, REQUESTS, SENT, STORED, STORES, TEAMS
from dysharp_env.schedules.times import CopyTimes, Times, work_ps
from dysharp_env.simulator.costs import Bound
from dysharp_env.workload.placement import NOWHERE, Placement
from dysharp_env.workload.workload import NO_EXPERT, Workload

DOWN = 1  # of the kinds of links in needs.py
# Weights of a downlink's time in means of two kinds of links: copies cost little in small ones, and save most.
DOWN_SHARES = (1 / 32, 1 / 4)
# What sums of shares in floating point lose at most, and more.
ROUNDING = 1e-9


class Asked(NamedTuple):
    """What tokens ask for by logical expert, whichever physical one serves them.

    Attributes:
        tokens: (logical,) tokens of each.
        held: (logical, gpu) bool, where it is before the layer.
        served: (gpu,) tokens that live there and have an expert.
        away: (logical, gpu) of every token that lives there and has experts which are not, an equal share for each.
        paired: (logical,) of every pair of a token and another GPU with the only replicas of experts of it, likewise.
        is_placed: Whether every expert is there once, so that without copies there is nothing to share.
    """

    tokens: np.ndarray
    held: np.ndarray
    served: np.ndarray
    away: np.ndarray
    paired: np.ndarray
    is_placed: bool

    @classmethod
    def of(cls, workload: Workload) -> Asked:
        """Counts what a workload asks for, its copies left out."""
        placement, num_gpus = workload.placement, workload.num_gpus
        logical, experts = placement.logical_of_expert, placement.num_logical
        there = ~placement.is_copy
        held = np.zeros((experts, num_gpus), bool)
        held[logical[there], placement.gpu_of_expert[there]] = True
        only = np.where(np.count_nonzero(held, axis=1) == 1, held.argmax(axis=1), NOWHERE)
        away, paired = np.zeros((experts, num_gpus)), np.zeros(experts)
        _share(workload.logical_ids, workload.first_token, held, only, away, paired)
        return cls(
            tokens=np.bincount(logical, workload.demand.expert_tokens, experts).astype(np.int64),
            held=held,
            served=workload.demand.served,
            away=away,
            paired=paired,
            is_placed=np.count_nonzero(there) == experts,
        )


@native
def _share(
    logical_ids: np.ndarray,
    first_token: np.ndarray,
    held: np.ndarray,
    only: np.ndarray,
    away: np.ndarray,
    paired: np.ndarray,
) -> None:
    """Adds up the shares of ``Asked``; ``only``, (logical,), is the GPU of an expert that is on no other."""
    for home in range(held.shape[1]):
        for token in range(first_token[home], first_token[home + 1]):
            ids = logical_ids[token]
            count = 0
            for expert in ids:
                count += expert != NO_EXPERT and not held[expert, home]
            for expert in ids:
                if expert == NO_EXPERT or held[expert, home]:
                    continue
                away[expert, home] += 1 / count
                if only[expert] != NOWHERE:
                    alike = 0
                    for other in ids:
                        alike += other != NO_EXPERT and only[other] == only[expert]
                    paired[expert] += 1 / alike


def without_copies(workload: Workload) -> Workload:
    """Returns a workload as it is placed, of which every logical expert is there once and all others are copies."""
    placement = workload.placement
    there = np.flatnonzero(~placement.is_copy)
    logical = placement.logical_of_expert[there]
    placed = Placement(placement.num_gpus, placement.gpu_of_expert[there], logical)
    ids = np.where(workload.topk_ids == NO_EXPERT, NO_EXPERT, np.argsort(logical)[workload.logical_ids])
    return workload.served_by(ids, placed)


def shared_bound(
    asked: Asked, wires_ps: int, times: Times, copy_times: CopyTimes, pays_ps: int, *, copies: bool
) -> Bound:
    """Returns a time that no schedule can beat which shares tokens among replicas.

    Args:
        asked: What tokens ask for.
        wires_ps: What ``links_ps`` says of that.
        times: Least times.
        copy_times: Those of copies.
        pays_ps: What is paid before anything moves.
        copies: Whether a copy made in the layer has tokens, or else there may be none.
    """
    works_ps = np.array([work_ps(int(tokens), times) for tokens in asked.tokens])
    # On the slow GPU each thread block's time is rounded down; no tile has less than a token.
    lost_ps = int(asked.tokens.sum()) * times.blocks * (times.slow_permille > 1000)
    all_ps = max(0, int(works_ps.sum()) - lost_ps)
    idle_ps = _idle_ps(asked, works_ps, times, times.first_copy_ps * copies)
    gemms_ps = spread_ps(all_ps, times.num_sms, times.slow_permille, idle_ps)
    hbm_ps, leaves_ps = _weights_ps(asked, times, copy_times)
    links_ps = wires_ps + 2 * times.hop_ps * (wires_ps > 0)
    copied_ps = (copy_times.wire_ps + 2 * times.hop_ps + copy_times.last_row_ps) * copies
    total_ps = pays_ps + max(links_ps, gemms_ps, leaves_ps, copied_ps)
    return Bound(total_ps, links_ps, all_ps // (times.num_sms * len(idle_ps)), hbm_ps)


def _weights_ps(asked: Asked, times: Times, copy_times: CopyTimes) -> tuple[int, int]:
    """Returns what HBM needs on the GPU with most experts, and what that and its uplink need if they share the work."""
    is_read = (asked.tokens > 0) & (np.count_nonzero(asked.held, axis=1) == 1)
    read = np.arange(np.count_nonzero(asked.held[is_read], axis=0).max() + 1)
    # An expert's two matrices are an access each, which rounds down by less than a picosecond; so does the sum.
    hbm_ps = np.maximum(0, np.floor(read * times.weight_bytes * times.byte_ps).astype(np.int64) - 2 * read - 1)
    sent_ps = read[::-1] * copy_times.wire_ps
    return int(hbm_ps[-1]), int(np.maximum(hbm_ps, sent_ps).min())


def _idle_ps(asked: Asked, works_ps: np.ndarray, times: Times, first_copy_ps: int) -> list[int]:
    """Returns how long each GPU's SMs have nothing to do at least, at either end or before copies can have come."""
    own_ps = np.where(asked.held, works_ps[:, None], 0).sum(axis=0)
    own_ps[0] = own_ps[0] * times.slow_permille // 1000
    idle_ps = []
    for served, gpu_ps in zip(asked.served.tolist(), own_ps.tolist(), strict=True):
        # Where no token lives, the first comes from elsewhere and the last goes home.
        head_ps, tail_ps = (times.local_arrival_ps, 0) if served else (times.arrival_ps, times.home_ps)
        alone_ps = max(0, first_copy_ps - tail_ps - head_ps)
        idle_ps.append(head_ps + tail_ps + max(0, alone_ps - gpu_ps // times.num_sms - 1))
    return idle_ps


def links_ps(asked: Asked, dispatch: np.ndarray, combine: np.ndarray, least_ps: tuple[int, int], expert_ps: int) -> int:
    """Returns what the busiest link needs at least under the best pair of primitives, with any copies.

    Args:
        asked: What tokens ask for.
        dispatch: (primitive, kind of link, count) picoseconds, see needs.py; what moves weights is passed over.
        combine: The same.
        least_ps: Of a multicast store and of an in-switch request that name one expert.
        expert_ps: Of an expert's weights.
    """
    busiest_ps = (
        _busiest_ps(asked.away, asked.paired, asked.served, first + second, *least_ps, expert_ps)
        for first in dispatch
        for second in combine
    )
    return int(min(busiest_ps) * (1 - ROUNDING))


@native
def _busiest_ps(
    away: np.ndarray,
    paired: np.ndarray,
    served: np.ndarray,
    needs: np.ndarray,
    store_ps: int,
    request_ps: int,
    expert_ps: int,
) -> float:
    """Returns what ``links_ps`` does for one pair of primitives, of which ``needs`` is the sum."""
    num_gpus, busiest_ps = len(served), 0.0
    for kind in range(len(needs)):
        for down_share in DOWN_SHARES:
            mean = (1 - down_share) * needs[kind] + down_share * needs[DOWN]
            weights_ps = (1.0 if kind == DOWN else down_share) * expert_ps
            pair_ps = mean[SENT] + mean[RECEIVED] + mean[STORED] * store_ps
            token_ps = mean[AWAY] + mean[TEAMS] + mean[STORES] * store_ps + mean[REQUESTS] * request_ps
            # Static sums are those of all tokens, wherever their experts are.
            fixed_ps = served * (mean[OWN] + mean[ADDED] * (num_gpus - 1)) + (served.sum() - served) * mean[OTHERS]
            # A token that leaves home has a pair.
            own_ps = np.minimum(away * (token_ps + mean[SENT]), weights_ps).sum(axis=0) + fixed_ps
            all_ps = _all_ps(away * token_ps, paired * pair_ps, weights_ps) + fixed_ps.sum()
            busiest_ps = max(busiest_ps, own_ps.max(), all_ps / num_gpus)
    return busiest_ps


@native
def _all_ps(away_ps: np.ndarray, pair_ps: np.ndarray, expert_ps: float) -> float:
    """Returns what all GPUs need together for pairs, tokens that leave home, and copies in their place.

    A token stays at home for copies there, a pair is saved by a copy anywhere.

    Args:
        away_ps: (logical, gpu) of tokens that leave home.
        pair_ps: (logical,) of pairs.
        expert_ps: Of a copy.
    """
    all_ps = 0.0
    for expert in range(len(pair_ps)):
        away = away_ps[expert]
        copied_ps = np.minimum(away, expert_ps).sum() + max(expert_ps - away.max(), 0.0)
        all_ps += min(pair_ps[expert] + away.sum(), copied_ps)
    return all_ps


def spread_ps(work_ps: int, num_sms: int, slow_permille: int, idle_ps: list[int]) -> int:
    """Returns how long GPUs take at least for work that they may share as they like.

    Args:
        work_ps: SM time on a GPU that is not slow.
        num_sms: SMs of each.
        slow_permille: SM time on GPU 0 over that on others.
        idle_ps: (gpu,) how long each does nothing.
    """
    if work_ps == 0:
        return 0
    rates = [num_sms * (1000 if gpu == 0 else slow_permille) for gpu in range(len(idle_ps))]
    ends_ps, rate, done = [], 0, work_ps * slow_permille
    # Whoever could help for no time at all does not count: the least of all groups of the earliest.
    for gpu in sorted(range(len(idle_ps)), key=lambda gpu: idle_ps[gpu]):
        rate, done = rate + rates[gpu], done + rates[gpu] * idle_ps[gpu]
        ends_ps.append(done // rate)
    return min(ends_ps)
