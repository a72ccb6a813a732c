"""How each combine primitive brings the results of a token's experts home as one sum, on the functional machine.

``pull_reduce`` is ``dymultimem.ld_reduce``. In all others an expert GPU first adds up its own experts' results, one sum
for each entry of ``Tokens.copies``: with ``unicast`` it writes it to a slot at home, which adds them; ``push_reduce``
pushes it there and the switch merges what meets; ``reduce_scatter`` is ``multimem.ld_reduce`` over all GPUs' sums; with
``pull`` the home GPU reads every sum by plain loads and adds them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from dysharp_env.multimem.packets import Stage
from dysharp_env.multimem.switch import ReplyKey
from dysharp_env.multimem.tokens import Tokens
from dysharp_env.system.primitives import Primitive


class Combine(Protocol):
    """Sums the results of one layer's tokens, in three steps, so that several tokens can be under way at once."""

    def __init__(self, tokens: Tokens) -> None: ...

    def ask(self, token: int) -> None:
        """Starts the combine of one token: issues its reads, or sends its experts' sums on their way."""

    def respond(self) -> None:
        """Lets what was asked for or pushed arrive, one GPU's after the other's."""

    def take(self, token: int) -> np.ndarray:
        """Returns the combined result of a token, (values,) float32, at its home GPU."""


class PullReduce:
    """The home GPU names the experts, and the switch sums what their GPUs answer."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._asked: dict[int, list[ReplyKey]] = {}

    def ask(self, token: int) -> None:
        """See ``Combine``."""
        tokens, experts = self._tokens, self._tokens.experts(token)
        address = tokens.region.address(token)
        self._asked[token] = tokens.runtime.request_sum(
            tokens.home(token), tokens.block_bytes, address, len(experts), experts, Stage.COMBINE
        )

    def respond(self) -> None:
        """See ``Combine``."""
        self._tokens.runtime.respond()

    def take(self, token: int) -> np.ndarray:
        """See ``Combine``."""
        return self._tokens.runtime.take_sum(self._asked.pop(token))


class Unicast:
    """Every expert GPU writes its sums to slots at home, which adds them."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def ask(self, token: int) -> None:
        """See ``Combine``."""
        tokens, home = self._tokens, self._tokens.home(token)
        for place, (gpu, experts) in enumerate(tokens.copies(token)):
            partial = tokens.partial_sum(gpu, token, experts)
            tokens.runtime.plain.st(gpu, partial, tokens.sums(home, token, place), Stage.COMBINE)

    def respond(self) -> None:
        """See ``Combine``."""

    def take(self, token: int) -> np.ndarray:
        """See ``Combine``."""
        tokens, home = self._tokens, self._tokens.home(token)
        slots = [tokens.sums(home, token, place) for place in range(len(tokens.copies(token)))]
        return np.sum([tokens.load(home, slot, Stage.COMBINE) for slot in slots], axis=0)


class Pull:
    """Every expert GPU keeps its sums, and the home GPU reads and adds them."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def ask(self, token: int) -> None:
        """See ``Combine``."""
        tokens = self._tokens
        for place, (gpu, experts) in enumerate(tokens.copies(token)):
            partial = tokens.partial_sum(gpu, token, experts)
            tokens.runtime.plain.st(gpu, partial, tokens.sums(gpu, token, place), Stage.COMBINE)

    def respond(self) -> None:
        """See ``Combine``."""

    def take(self, token: int) -> np.ndarray:
        """See ``Combine``."""
        tokens, home = self._tokens, self._tokens.home(token)
        slots = [tokens.sums(gpu, token, place) for place, (gpu, _) in enumerate(tokens.copies(token))]
        return np.sum([tokens.load(home, slot, Stage.COMBINE) for slot in slots], axis=0)


class PushReduce:
    """Every expert GPU pushes its sum to one slot at home, and the switch merges what it holds at the same time."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._under_way: list[tuple[int, int, np.ndarray]] = []  # GPU, token, its sum

    def ask(self, token: int) -> None:
        """See ``Combine``."""
        tokens, home = self._tokens, self._tokens.home(token)
        for gpu, experts in tokens.copies(token):
            partial = tokens.partial_sum(gpu, token, experts)
            if gpu == home:
                tokens.runtime.plain.st(home, partial, tokens.sums(home, token, 0), Stage.COMBINE)
            else:
                self._under_way.append((gpu, token, partial))

    def respond(self) -> None:
        """See ``Combine``."""
        tokens = self._tokens
        under_way, self._under_way = sorted(self._under_way, key=lambda push: push[0]), []
        for gpu, token, partial in under_way:
            address = tokens.sums(tokens.home(token), token, 0)
            tokens.runtime.plain.push_sum(gpu, partial, address, self._num_remote(token), Stage.COMBINE)

    def take(self, token: int) -> np.ndarray:
        """See ``Combine``."""
        tokens, home = self._tokens, self._tokens.home(token)
        address = tokens.sums(home, token, 0)
        tokens.runtime.plain.check_pushed(home, tokens.block_bytes, address, self._num_remote(token))
        return tokens.load(home, address, Stage.COMBINE)

    def _num_remote(self, token: int) -> int:
        return sum(gpu != self._tokens.home(token) for gpu, _ in self._tokens.copies(token))


class ReduceScatter:
    """Every GPU keeps a sum for every token, zero where it has no expert; the switch sums them for the home GPU."""

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._team = tokens.create_team()

    def ask(self, token: int) -> None:
        """See ``Combine``."""
        tokens, offset = self._tokens, token * self._tokens.block_bytes
        for gpu, experts in tokens.copies(token):
            self._team.values(gpu, offset, tokens.block_bytes)[:] = tokens.partial_sum(gpu, token, experts)

    def respond(self) -> None:
        """See ``Combine``."""

    def take(self, token: int) -> np.ndarray:
        """See ``Combine``."""
        tokens = self._tokens
        return self._team.ld_reduce(
            tokens.home(token), tokens.block_bytes, self._team.base + token * tokens.block_bytes
        )


def combine_by(primitive: Primitive) -> type[Combine]:
    """Returns what brings sums home by a combine primitive."""
    if primitive.names_targets:
        return PullReduce
    if primitive.to_all:
        return ReduceScatter
    if primitive.in_switch:
        return PushReduce
    return Pull if primitive.reads else Unicast
