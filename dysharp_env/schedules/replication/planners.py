"""Planners as rules over the same candidates: each takes experts and GPUs until it has enough.

All see counts only (``Sharing``) and are written from what is published of them, for any placement and any tokens on a
GPU. A GPU's load is the (token, expert)s that it computes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dysharp_env.schedules.replication.sharing import Sharing
from dysharp_env.schedules.replication.spec import ReplicateSpec

# A threshold is found to this share of the mean load (ULTRA_EP_QUOTA_ORACLE_EPS of Dots-Infra/UltraEP).
PRECISION = 0.01
Move = tuple[int, int, int, int]  # expert, the GPU that it leaves, the one that it goes to, tokens


def plan(sharing: Sharing, spec: ReplicateSpec) -> None:
    """Plans copies and quotas, as the planner of ``spec`` does; nothing below its threshold of imbalance."""
    if sharing.imbalance >= spec.threshold:
        _RULES[spec.planner](sharing, spec)


def plan_moonep(sharing: Sharing, spec: ReplicateSpec) -> None:
    """Gives every GPU exactly its share (MoonshotAI/MoonEP, ``tests/planning_reference.py``).

    The GPU with most too many is paired with the one with most room, which it fills up whole, until nobody has too
    many; so each GPU takes from one other, and as many slots as that has experts are always enough. Then, for each GPU
    that gives, its expert with most tokens left goes to the GPU that is to get most, again and again. Where slots run
    out MoonEP reads the weights of the smallest experts from afar; here what is left goes wherever there is room, the
    largest move first. No move is smaller than ``min_tokens``. With a tolerance it stops at that, as asked for in
    MoonEP issue 30: pairs move no more than the one has too many, and a GPU gives no further expert away once it is
    within the tolerance.
    """
    most = sharing.most(spec.tolerance)
    for source, wanted in enumerate(_pairs(sharing, most, exact=spec.tolerance == 1)):
        _hand_out(sharing, source, wanted, most if spec.tolerance > 1 else None, spec.min_tokens)
    _level(sharing, most, spec.min_tokens)


def _pairs(sharing: Sharing, most: np.ndarray, *, exact: bool) -> np.ndarray:
    """Returns how many tokens each GPU is to hand to each other, (gpu, gpu) int64."""
    moves = np.zeros((sharing.num_gpus, sharing.num_gpus), np.int64)
    shares, loads = sharing.shares, sharing.loads.copy()
    while True:
        source, gpu = int((loads - shares).argmax()), int((loads - shares).argmin())
        if loads[source] <= most[source]:
            return moves
        room = shares[gpu] - loads[gpu]
        tokens = room if exact else min(room, loads[source] - shares[source])
        moves[source, gpu] += tokens
        loads[source] -= tokens
        loads[gpu] += tokens


def _hand_out(sharing: Sharing, source: int, wanted: np.ndarray, enough: np.ndarray | None, min_tokens: int) -> None:
    """Moves experts of one GPU to those that want (gpu,) tokens of it; stops at (gpu,) loads that are enough."""
    left = sharing.quota[:, source].copy()
    wanted = wanted.copy()
    while wanted.any() and (enough is None or sharing.loads[source] > enough[source]):
        gpu = int(wanted.argmax())
        may = np.where(sharing.may_take(gpu), left, 0)
        expert = int(may.argmax())
        tokens = int(min(may[expert], wanted[gpu]))
        if tokens < min_tokens:
            wanted[gpu] = 0
            continue
        sharing.take(expert, source, gpu, tokens)
        left[expert] -= tokens
        wanted[gpu] -= tokens


def _level(sharing: Sharing, most: np.ndarray, min_tokens: int) -> None:
    """Relieves whoever has most above ``most``, by the largest move there is, as long as there is one."""
    stuck = np.zeros(sharing.num_gpus, bool)
    while True:
        over = np.where(stuck, 0, sharing.loads - most)
        source = int(over.argmax())
        if over[source] <= 0:
            return
        found = sharing.candidates(source)
        if not len(found.tokens) or found.tokens[0] < min_tokens:
            stuck[source] = True
            continue
        sharing.take(int(found.expert[0]), source, int(found.gpu[0]), int(found.tokens[0]))


def plan_ultraep(sharing: Sharing, spec: ReplicateSpec) -> None:
    """Finds the lowest load to which all GPUs can be brought, as UltraEP does (arXiv 2606.04101, section 5).

    A threshold between the mean (times the tolerance) and the highest load is halved in; a greedy oracle says whether
    it can be met: GPUs by excess over it, their experts by tokens, each time to the GPU with most room below it that
    has a free slot, with at least ``min_tokens`` for a copy, while the expert's home keeps one token at least. What the
    oracle did at the lowest threshold met is the plan. Unlike there, a piece that would be smaller than ``min_tokens``
    is made as large as that if there is room.
    """
    low, high = int(np.ceil(max(sharing.loads.mean() * spec.tolerance, sharing.shares.max()))), int(sharing.loads.max())
    best: list[Move] = []
    step = max(1, int(PRECISION * sharing.loads.mean()))
    threshold = low
    while low < high:
        moves = _moves_below(sharing, threshold, spec.min_tokens)
        if moves is None:
            low = threshold + 1
        else:
            best, high = moves, threshold
        if high - low < step:
            break
        threshold = (low + high) // 2
    for move in best:
        sharing.take(*move)


def _moves_below(sharing: Sharing, threshold: int, min_tokens: int) -> list[Move] | None:
    """Returns moves after which no GPU has more than ``threshold``; None if the oracle finds none."""
    room = [threshold - load for load in sharing.loads.tolist()]
    slots, holds = sharing.slots.tolist(), sharing.holds.copy()
    moves: list[Move] = []
    for source in sorted((gpu for gpu, each in enumerate(room) if each < 0), key=lambda gpu: room[gpu]):
        need = -room[source]
        column = sharing.quota[:, source]
        for expert in np.argsort(-column, kind="stable").tolist():
            left = int(column[expert]) - 1
            while need > 0 and left >= min_tokens:
                held = holds[expert]
                gpus = [gpu for gpu, each in enumerate(room) if each >= min_tokens and (held[gpu] or slots[gpu] > 0)]
                gpu = max(gpus, key=room.__getitem__, default=None)
                if gpu is None:
                    break
                tokens = min(max(need, min_tokens), room[gpu], left)
                moves.append((expert, source, gpu, tokens))
                slots[gpu] -= not held[gpu]
                held[gpu] = True
                room[gpu] -= tokens
                need -= tokens
                left -= tokens
            if need <= 0 or left < 0:
                break
        if need > 0:
            return None
    return moves


def plan_llep(sharing: Sharing, spec: ReplicateSpec) -> None:
    """Lets the least loaded GPUs take what is above capacity (LLEP, arXiv 2601.17111; its gpt_oss_llep.py at 0349746).

    Capacity is the tolerance times the mean. Experts come in order of their tokens, largest first, and each keeps at
    home what fits beside what home has been given and its experts yet to come; the rest goes to the GPU with the least
    of both, as much as that has room for, and so on, each time at least ``min_tokens``. Unlike there, what no GPU has
    room for stays at home, and no fewer than ``min_tokens`` of an expert do, or none.
    """
    capacity = max(1, int(spec.tolerance * (int(sharing.loads.sum()) // sharing.num_gpus)))
    # What a GPU has been given and what is yet to come of its own are one number, its load, as nothing else moves.
    experts, homes = np.nonzero(sharing.quota)
    for item in np.argsort(-sharing.quota[experts, homes], kind="stable").tolist():
        expert, home = int(experts[item]), int(homes[item])
        while sharing.loads[home] > capacity and _spill(sharing, expert, home, capacity, spec.min_tokens):
            pass


def _spill(sharing: Sharing, expert: int, home: int, capacity: int, min_tokens: int) -> bool:
    """Moves what of an expert is above its home's capacity to the least loaded GPU; returns whether it could."""
    here = int(sharing.quota[expert, home])
    free = np.where(sharing.holds[expert] | (sharing.slots > 0), capacity - sharing.loads, 0)
    free[home] = 0
    gpu = int(free.argmax())
    above = min(here, int(sharing.loads[home]) - capacity)
    if 0 < here - above < min_tokens:
        above = here
    tokens = min(above, int(free[gpu]))
    if 0 < here - tokens < min_tokens:
        tokens = here - min_tokens
    if tokens < min_tokens:
        return False
    sharing.take(expert, home, gpu, tokens)
    return True


_RULES: dict[str, Callable[[Sharing, ReplicateSpec], None]] = {
    "moonep": plan_moonep,
    "ultraep": plan_ultraep,
    "llep": plan_llep,
}
