"""A batch worked on in pieces by several threads, forwards and backwards.

Torch's own threads share every operation; for networks as small as a policy they wait for one another most of the time,
and for very long where a core is busy with something else. Here a thread takes a piece through all operations. Pieces
are the same for any number of threads, and so are results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Work = Callable[[Any], tuple[Tensor, ...]]
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


def in_pieces(work: Work, pieces: Sequence[Any], parameters: Iterable[Tensor], mapping: Map) -> tuple[Tensor, ...]:
    """Returns the results of ``work`` for each of the pieces, one after the other along the first dimension.

    Args:
        work: Takes a piece; what it returns has gradients for ``parameters`` alone.
        pieces: What it is given.
        parameters: What results depend on, each of them.
        mapping: Does what ``map`` does, perhaps by several threads.
    """
    return _InPieces.apply(work, pieces, mapping, *parameters)  # type: ignore[no-untyped-call]


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, work: Work, pieces: Sequence[Any], mapping: Map, *parameters: Tensor) -> tuple[Tensor, ...]:
        def run(piece: Any) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                return work(piece)

        ctx.results, ctx.mapping, ctx.parameters = [*mapping(run, pieces)], mapping, parameters
        return tuple(torch.cat([each.detach() for each in same]) for same in zip(*ctx.results, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        sizes = [len(result[0]) for result in ctx.results]
        given = zip(*(gradient.split(sizes) for gradient in gradients), strict=True)

        def run(piece: tuple[Sequence[Tensor], Sequence[Tensor]]) -> Sequence[Tensor]:
            return torch.autograd.grad(piece[0], ctx.parameters, piece[1], allow_unused=True, materialize_grads=True)

        of_pieces = ctx.mapping(run, zip(ctx.results, given, strict=True))
        return None, None, None, *(torch.stack(same).sum(dim=0) for same in zip(*of_pieces, strict=True))
