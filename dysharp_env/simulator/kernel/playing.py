"""A network plays a layer so that somebody can learn from it: it draws candidates by its scores and keeps what it saw.

A candidate's probability is the softmax of its score over the legal ones. It is drawn with a number in [0, 1) that was
there before the layer began, so what is played depends on nothing but the network, that number and the decision.
Weights of candidates are float64 and summed in the order of rows; kept log-probabilities are float32.
"""

from __future__ import annotations

import math

import numpy as np

from dysharp_env.native import native
from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.jit.pointers import bytes_at, doubles, float_rows, floats, longs
from dysharp_env.simulator.jit.rows import rows
from dysharp_env.simulator.kernel.names import Player, Root
from dysharp_env.simulator.kernel.network import prepare_scores, score_of
from dysharp_env.simulator.state.codes import DONE
from dysharp_env.simulator.state.observation import NUM_CONTEXT, NUM_FEATURES
from dysharp_env.simulator.state.records import PLAYER


@compiled
def settle(p: Player, now_ps: int) -> None:
    """Rewards the last choice for what has passed since the one before, where that is owed."""
    if p.owes == 0:
        return
    reward = -(now_ps - p.rewarded_ps) / p.bound_ps
    floats(p.rewards_at, p.room)[p.taken - 1] = reward
    p.total += reward
    p.rewarded_ps = now_ps
    p.owes = 0


@compiled
def keep(p: Player) -> None:
    """Keeps what the next decision shows."""
    wide = p.max_candidates * NUM_FEATURES
    float_rows(p.kept_candidates_at, p.room, wide)[p.taken] = floats(p.features_at, wide)
    float_rows(p.kept_contexts_at, p.room, NUM_CONTEXT)[p.taken] = floats(p.context_at, NUM_CONTEXT)
    size = p.max_candidates
    bytes_at(p.kept_masks_at + p.taken * size, size)[:] = bytes_at(p.mask_at, size)
    floats(p.starts_at, p.room)[p.taken] = p.starts


@compiled
def count_candidates(p: Player) -> int:
    """Returns how many rows a decision fills; those behind hold nothing and are not legal."""
    features = floats(p.features_at, p.max_candidates * NUM_FEATURES)
    mask = bytes_at(p.mask_at, p.max_candidates)
    for row in range(p.max_candidates - 1, -1, -1):
        if mask[row]:
            return row + 1
        for i in range(row * NUM_FEATURES, (row + 1) * NUM_FEATURES):
            if features[i] > 0.0:
                return row + 1
    return 0


@compiled
def draw(p: Player) -> int:
    """Returns a legal candidate, drawn by the network's scores, and keeps its log-probability."""
    mask = bytes_at(p.mask_at, p.max_candidates)
    scores = doubles(p.scores_at, p.max_candidates)
    p.num_candidates = count_candidates(p)
    prepare_scores(p)
    best = -math.inf
    for row in range(p.num_candidates):
        if mask[row]:
            scores[row] = score_of(p, row)
            best = max(best, scores[row])
    total = 0.0
    for row in range(p.num_candidates):
        if mask[row]:
            total += math.exp(scores[row] - best)
    left = doubles(p.uniforms_at, p.room)[p.taken] * total
    choice = 0
    for row in range(p.num_candidates):
        if mask[row]:
            choice = row
            left -= math.exp(scores[row] - best)
            if left < 0.0:
                break
    floats(p.log_probs_at, p.room)[p.taken] = scores[choice] - best - math.log(total)
    return choice


@compiled
def choose(p: Player) -> int:
    """Takes the decision that is shown and returns the chosen row; its reward is owed until ``settle``."""
    keep(p)
    choice = draw(p)
    longs(p.counts_at, p.room)[p.taken] = p.num_candidates
    longs(p.actions_at, p.room)[p.taken] = choice
    p.taken += 1
    p.length += 1
    p.starts = 0
    p.owes = 1
    return choice


@compiled
def answer(s: Root, p: Player) -> bool:
    """Answers a layer's waiting decision, if there is room to keep it."""
    settle(p, s.now_ps)
    if p.taken == p.room:
        return False
    s.choice = choose(p)
    return True


@compiled
def end(s: Root, p: Player) -> None:
    """Settles the last reward of a layer that is done."""
    if s.status == DONE:
        settle(p, s.now_ps)


@native(nogil=True, error_model="numpy")
def choose_once(players: np.ndarray) -> int:
    """Takes the decision that is shown to the first player, whoever asked it, and returns the chosen row."""
    return choose(rows(players.ctypes.data, PLAYER)[0])


@native(nogil=True, error_model="numpy")
def settle_once(players: np.ndarray, now_ps: int) -> None:
    """Rewards the last choice of the first player, where that is owed."""
    settle(rows(players.ctypes.data, PLAYER)[0], now_ps)
