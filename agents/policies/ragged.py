"""What a policy does with decisions of many lengths, whose candidate rows follow each other in one table.

Torch can do the same with tables that are padded to the longest decision, or by gathering and scattering rows; either
takes several times as long as the policy's matrix products. Gradients are exact, as torch's are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dysharp_env.native import native

# Sums may be added in any order that is fast, which is always the same one.
_compiled = native(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})


class Pool(torch.autograd.Function):
    """Maps (row, width) numbers that are not negative to the mean and maximum of each decision, (decision, 2 * width).

    Decisions without rows have 0. Where several rows have the maximum, the first answers for it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: Tensor) -> Tensor:
        """Takes the rows, and (decision,) int64 how many of them each decision has."""
        pooled = rows.new_empty(len(counts), 2 * rows.shape[1])
        _pool(rows.detach().numpy(), counts.numpy(), pooled.numpy())
        ctx.save_for_backward(rows, pooled)
        ctx.counts = counts.numpy()
        return pooled

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Returns the gradient of the rows."""
        rows, pooled = ctx.saved_tensors
        of_rows = torch.empty_like(rows)
        given = gradients[0].contiguous().numpy()
        _spread(given, rows.detach().numpy(), pooled.detach().numpy(), ctx.counts, of_rows.numpy())
        return of_rows, None


class RectifiedSum(torch.autograd.Function):
    """Maps (row, width) and (decision, width) numbers to what of their sums is positive, in the place of the former."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, of_decisions: Tensor, counts: Tensor) -> Tensor:
        """Takes what rows have, what the rows of a decision have in common, and (decision,) int64 rows of each."""
        _add_rectified(rows.detach().numpy(), of_decisions.detach().numpy(), counts.numpy())
        ctx.mark_dirty(rows)
        ctx.save_for_backward(rows)
        ctx.counts = counts.numpy()
        return rows

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Returns the gradients of both."""
        (sums,) = ctx.saved_tensors
        of_rows = torch.empty_like(sums)
        of_decisions = sums.new_empty(len(ctx.counts), sums.shape[1])
        given = gradients[0].contiguous().numpy()
        _spread_rectified(given, sums.detach().numpy(), ctx.counts, of_rows.numpy(), of_decisions.numpy())
        return of_rows, of_decisions, None


class Weigh(torch.autograd.Function):
    """Maps (decision, feature) weights to (row,) weighted sums of the features of each decision's rows."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
        """Takes the weights, the (row, feature) rows, and (decision,) int64 rows of each."""
        sums = weights.new_empty(len(rows))
        _weigh(weights.detach().numpy(), rows.numpy(), counts.numpy(), sums.numpy())
        ctx.shape, ctx.rows, ctx.counts = weights.shape, rows.numpy(), counts.numpy()
        return sums

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Returns the gradient of the weights; the rows are what was observed."""
        of_weights = gradients[0].new_empty(ctx.shape)
        _gather_weighed(gradients[0].contiguous().numpy(), ctx.rows, ctx.counts, of_weights.numpy())
        return of_weights, None, None


class Choice(torch.autograd.Function):
    """Maps (row,) scores to the log-probabilities of actions and the entropies of decisions, (decision,) each.

    They are those of a softmax over legal candidates.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, counts: Tensor, masks: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Takes scores, rows of each decision, (decision, size) bool masks and (decision,) int64 legal candidates."""
        log_probs, entropies = scores.new_empty(len(counts)), scores.new_empty(len(counts))
        chances = np.empty(len(scores), np.float32)
        taken = counts.numpy(), masks.numpy(), actions.numpy()
        _choose(scores.detach().numpy(), *taken, chances, log_probs.numpy(), entropies.numpy())
        ctx.kept = counts.numpy(), actions.numpy(), chances, entropies.numpy()
        return log_probs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """Returns the gradient of the scores."""
        counts, actions, chances, entropies = ctx.kept
        of_log_probs, of_entropies = (gradient.contiguous().numpy() for gradient in gradients)
        of_scores = gradients[0].new_empty(len(chances))
        _spread_choice(of_log_probs, of_entropies, counts, actions, chances, entropies, of_scores.numpy())
        return of_scores, None, None, None


# What the classes above do, as functions.
pool: Callable[..., Tensor] = Pool.apply
rectified_sum: Callable[..., Tensor] = RectifiedSum.apply
weigh: Callable[..., Tensor] = Weigh.apply
choice: Callable[..., tuple[Tensor, Tensor]] = Choice.apply


@_compiled
def pack(table: np.ndarray, rows: np.ndarray, counts: np.ndarray, places: np.ndarray) -> int:
    """Moves candidates to the beginning of ``rows`` and returns how many there are.

    Args:
        table: (decision, size, feature), candidates up to the last row that is not all 0.
        rows: (decision * size, feature), where they go.
        counts: (decision,) int64, is told how many each has.
        places: (decision * size,) int64, is told where in the table each row was, decision * size + candidate.
    """
    decisions, size, width = table.shape
    total = 0
    for decision in range(decisions):
        count = size
        while count > 0 and not table[decision, count - 1].any():
            count -= 1
        counts[decision] = count
        for i in range(count):
            for j in range(width):
                rows[total, j] = table[decision, i, j]
            places[total] = decision * size + i
            total += 1
    return total


@_compiled
def _pool(rows: np.ndarray, counts: np.ndarray, pooled: np.ndarray) -> None:
    width = rows.shape[1]
    pooled[:] = np.float32(0.0)
    row = 0
    for decision in range(len(counts)):
        total, most = pooled[decision, :width], pooled[decision, width:]
        for _ in range(counts[decision]):
            numbers = rows[row]
            for j in range(width):
                total[j] += numbers[j]
                most[j] = max(most[j], numbers[j])
            row += 1
        for j in range(width):
            total[j] /= np.float32(max(counts[decision], 1))


@_compiled
def _spread(
    gradients: np.ndarray, rows: np.ndarray, pooled: np.ndarray, counts: np.ndarray, of_rows: np.ndarray
) -> None:
    width = of_rows.shape[1]
    left = np.empty(width, np.float32)
    row = 0
    for decision in range(len(counts)):
        of_mean, most = gradients[decision, :width], pooled[decision, width:]
        left[:] = gradients[decision, width:]
        share = np.float32(1.0) / np.float32(max(counts[decision], 1))
        for _ in range(counts[decision]):
            for j in range(width):
                given = left[j] if rows[row, j] == most[j] else np.float32(0.0)
                of_rows[row, j] = of_mean[j] * share + given
                left[j] -= given
            row += 1


@_compiled
def _add_rectified(rows: np.ndarray, of_decisions: np.ndarray, counts: np.ndarray) -> None:
    row = 0
    for decision in range(len(counts)):
        for _ in range(counts[decision]):
            for j in range(rows.shape[1]):
                rows[row, j] = max(rows[row, j] + of_decisions[decision, j], np.float32(0.0))
            row += 1


@_compiled
def _spread_rectified(
    gradients: np.ndarray, sums: np.ndarray, counts: np.ndarray, of_rows: np.ndarray, of_decisions: np.ndarray
) -> None:
    of_decisions[:] = np.float32(0.0)
    row = 0
    for decision in range(len(counts)):
        for _ in range(counts[decision]):
            for j in range(sums.shape[1]):
                gradient = gradients[row, j] if sums[row, j] > 0.0 else np.float32(0.0)
                of_rows[row, j] = gradient
                of_decisions[decision, j] += gradient
            row += 1


@_compiled
def _weigh(weights: np.ndarray, rows: np.ndarray, counts: np.ndarray, sums: np.ndarray) -> None:
    row = 0
    for decision in range(len(counts)):
        own = weights[decision]
        for _ in range(counts[decision]):
            numbers = rows[row]
            total = np.float32(0.0)
            for j in range(len(own)):
                total += own[j] * numbers[j]
            sums[row] = total
            row += 1


@_compiled
def _gather_weighed(gradients: np.ndarray, rows: np.ndarray, counts: np.ndarray, of_weights: np.ndarray) -> None:
    of_weights[:] = np.float32(0.0)
    row = 0
    for decision in range(len(counts)):
        total = of_weights[decision]
        for _ in range(counts[decision]):
            gradient, numbers = gradients[row], rows[row]
            for j in range(len(total)):
                total[j] += gradient * numbers[j]
            row += 1


@_compiled
def _choose(
    scores: np.ndarray,
    counts: np.ndarray,
    masks: np.ndarray,
    actions: np.ndarray,
    probabilities: np.ndarray,
    log_probs: np.ndarray,
    entropies: np.ndarray,
) -> None:
    first = 0
    for decision in range(len(counts)):
        count, mask = counts[decision], masks[decision]
        own = scores[first : first + count]
        chances = probabilities[first : first + count]
        best = -np.inf
        for i in range(count):
            if mask[i]:
                best = max(best, own[i])
        total = weighed = 0.0
        for i in range(count):
            weight = math.exp(own[i] - best) if mask[i] else 0.0
            chances[i] = weight
            total += weight
            weighed += weight * (own[i] - best)
        for i in range(count):
            chances[i] /= total
        log_total = math.log(total)
        log_probs[decision] = own[actions[decision]] - best - log_total
        entropies[decision] = log_total - weighed / total
        first += count


@_compiled
def _spread_choice(
    of_log_probs: np.ndarray,
    of_entropies: np.ndarray,
    counts: np.ndarray,
    actions: np.ndarray,
    probabilities: np.ndarray,
    entropies: np.ndarray,
    of_scores: np.ndarray,
) -> None:
    row = 0
    for decision in range(len(counts)):
        gain, spread, entropy = of_log_probs[decision], of_entropies[decision], entropies[decision]
        for i in range(counts[decision]):
            chance = probabilities[row]
            bend = spread * (math.log(chance) + entropy) if chance > 0.0 else 0.0
            of_scores[row] = (gain if i == actions[decision] else 0.0) - chance * (gain + bend)
            row += 1
