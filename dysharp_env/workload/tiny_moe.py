"""A tiny Mixture-of-Experts language model, trained only so that its router can be recorded.

Four pre-norm transformer layers, 128 wide; the first has a dense feed-forward network and the others have routed
experts, as in the DeepSeek models. The model reads windows of 128 tokens. It is far too small to write good code, but
its router learns what routers of large models learn: experts specialise on kinds of tokens and on kinds of text.

This module imports torch when it is loaded; ``recording`` loads it only when a recording is made.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 128
HEADS = 4
LAYERS = 4  # the first is dense
EXPERT_WIDTH = 64  # hidden units of one routed expert
WINDOW_TOKENS = 128
BATCH_WINDOWS = 16
BALANCE_WEIGHT = 0.01  # weight of the load-balancing loss, Switch Transformer, arXiv 2101.03961, section 2.2
LEARNING_RATE = 2e-3


class RoutedExperts(nn.Module):
    """A feed-forward layer of which every token uses ``top_k`` of ``experts`` networks."""

    def __init__(self, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(WIDTH, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, WIDTH, EXPERT_WIDTH) * WIDTH**-0.5)
        self.down = nn.Parameter(torch.randn(experts, EXPERT_WIDTH, WIDTH) * EXPERT_WIDTH**-0.5)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Returns the output for ``hidden``, both (tokens, WIDTH), the balancing loss, and what was chosen.

        That is experts' ids (tokens, top_k), largest gate first, and their gate weights, which sum to one.
        """
        probabilities = self.router(hidden).softmax(dim=-1)
        experts = probabilities.shape[-1]
        weights, ids = probabilities.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        order = ids.flatten().argsort(stable=True)
        counts = torch.bincount(ids.flatten(), minlength=experts)
        token_of_slot = order // self.top_k
        # unbind(0) rather than up[expert]: the backward of a select would write a gradient of the full size per expert.
        outputs = [
            F.gelu(rows @ up) @ down
            for rows, up, down in zip(
                hidden[token_of_slot].split(counts.tolist()), self.up.unbind(0), self.down.unbind(0), strict=True
            )
        ]
        scaled = torch.cat(outputs) * weights.flatten()[order, None]
        share = counts.to(probabilities.dtype) / ids.numel()
        balance = experts * (share * probabilities.mean(dim=0)).sum()
        return torch.zeros_like(hidden).index_add(0, token_of_slot, scaled), balance, ids, weights


class Block(nn.Module):
    """Causal self-attention and a dense or routed feed-forward network."""

    def __init__(self, feed_forward: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.feed_forward_norm = nn.LayerNorm(WIDTH)
        self.feed_forward = feed_forward

    def attend(self, hidden: Tensor) -> Tensor:
        """Returns ``hidden`` (windows, tokens, WIDTH) plus what causal attention adds to it."""
        windows, tokens, _ = hidden.shape
        packed = self.query_key_value(self.attention_norm(hidden)).view(windows, tokens, 3, HEADS, WIDTH // HEADS)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return hidden + self.projection(mixed.transpose(1, 2).reshape(windows, tokens, WIDTH))


class TinyMoe(nn.Module):
    """The language model; ``forward`` also returns what its routers chose."""

    def __init__(self, vocabulary: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        self.position = nn.Embedding(WINDOW_TOKENS, WIDTH)
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)
        dense = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
        routed = [Block(RoutedExperts(experts, top_k)) for _ in range(LAYERS - 1)]
        self.blocks = nn.ModuleList([Block(dense), *routed])
        self.final_norm = nn.LayerNorm(WIDTH)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Returns next-token logits, the summed balancing loss, and (ids, weights) of every routed layer."""
        hidden = self.embedding(tokens) + self.position.weight[: tokens.shape[1]]
        balance = hidden.new_zeros(())
        routing = []
        for block in self.blocks:
            assert isinstance(block, Block)
            hidden = block.attend(hidden)
            normed = block.feed_forward_norm(hidden)
            if isinstance(block.feed_forward, RoutedExperts):
                added, loss, ids, weights = block.feed_forward(normed.flatten(0, 1))
                balance = balance + loss
                routing.append((ids, weights))
                hidden = hidden + added.view_as(hidden)
            else:
                hidden = hidden + block.feed_forward(normed)
        return self.final_norm(hidden) @ self.embedding.weight.T, balance, routing


def train(
    tokens: np.ndarray,
    vocabulary: int,
    experts: int,
    top_k: int,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None],
) -> TinyMoe:
    """Returns a model trained for ``steps`` batches of random windows of (tokens,) ids below ``vocabulary``.

    ``seed`` fixes initial weights and windows; ``on_step`` is given the steps done and the loss in nats per token.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = TinyMoe(vocabulary, experts, top_k)
    optimiser = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=max(steps, 2), pct_start=0.1)
    for step in range(steps):
        starts = rng.integers(0, len(tokens) - WINDOW_TOKENS, size=BATCH_WINDOWS)
        batch = torch.from_numpy(tokens[starts[:, None] + np.arange(WINDOW_TOKENS + 1)].astype(np.int64))
        logits, balance, _ = model(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimiser.zero_grad(set_to_none=True)
        (loss + BALANCE_WEIGHT * balance).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        on_step(step + 1, loss.item())
    return model


@torch.no_grad()
def routing_of(model: TinyMoe, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the experts and gate weights of a document, each (routed layer, token, top_k), largest gate first.

    It is read in consecutive windows, so its number of tokens must be a multiple of WINDOW_TOKENS.
    """
    windows = torch.from_numpy(document.astype(np.int64)).view(-1, WINDOW_TOKENS)
    _, _, routing = model(windows)
    return np.stack([ids.numpy() for ids, _ in routing]), np.stack([weights.numpy() for _, weights in routing])
