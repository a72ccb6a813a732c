"""How each dispatch primitive moves a token from its home GPU to its experts, on the functional machine.

``multicast`` is one ``dymultimem.st`` per token. ``unicast`` writes one copy for each entry of ``Tokens.copies``;
``broadcast`` stores to all GPUs with ``multimem.st``; with ``pull`` the token waits at home and expert GPUs read it by
plain loads. In the last three the receiver copies the vector to its experts' rows.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dysharp_env.multimem.packets import Stage
from dysharp_env.multimem.tokens import Tokens
from dysharp_env.system.primitives import Primitive


class Dispatch(Protocol):
    """Sends the tokens of one layer."""

    def __init__(self, tokens: Tokens) -> None: ...

    def send(self, token: int, vector: np.ndarray) -> None:
        """Dispatches one token, (values,) float32, to all its experts."""


class Multicast:
    """The switch replicates what names its target experts."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def send(self, token: int, vector: np.ndarray) -> None:
        """See ``Dispatch``."""
        tokens, experts = self._tokens, self._tokens.experts(token)
        address = tokens.region.address(token)
        tokens.runtime.dymultimem_st(tokens.home(token), vector, address, len(experts), experts, Stage.DISPATCH)


class Unicast:
    """The home GPU writes every copy to its receiver's inbox."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def send(self, token: int, vector: np.ndarray) -> None:
        """See ``Dispatch``."""
        tokens, home = self._tokens, self._tokens.home(token)
        for place, (gpu, experts) in enumerate(tokens.copies(token)):
            if gpu != home:
                tokens.runtime.plain.st(home, vector, tokens.inbox(gpu, token, place), Stage.DISPATCH)
            received = vector if gpu == home else tokens.load(gpu, tokens.inbox(gpu, token, place), Stage.DISPATCH)
            tokens.scatter(gpu, token, experts, received)


class Pull:
    """The home GPU keeps the token in its inbox, from where every expert GPU reads its copies."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def send(self, token: int, vector: np.ndarray) -> None:
        """See ``Dispatch``."""
        tokens, home = self._tokens, self._tokens.home(token)
        address = tokens.inbox(home, token, 0)
        tokens.runtime.plain.st(home, vector, address, Stage.DISPATCH)
        for gpu, experts in tokens.copies(token):
            tokens.scatter(gpu, token, experts, tokens.load(gpu, address, Stage.DISPATCH))


class Broadcast:
    """The home GPU stores to every GPU of a fixed team; who holds no expert of the token ignores it."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._team = tokens.create_team()

    def send(self, token: int, vector: np.ndarray) -> None:
        """See ``Dispatch``."""
        tokens, offset = self._tokens, token * self._tokens.block_bytes
        self._team.st(tokens.home(token), vector, self._team.base + offset)
        for gpu, experts in tokens.copies(token):
            tokens.scatter(gpu, token, experts, self._team.values(gpu, offset, tokens.block_bytes))


def dispatch_by(primitive: Primitive) -> type[Dispatch]:
    """Returns what sends tokens by a dispatch primitive."""
    if primitive.names_targets:
        return Multicast
    if primitive.to_all:
        return Broadcast
    return Pull if primitive.reads else Unicast
