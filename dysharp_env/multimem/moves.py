"""How each primitive moves a token to its experts, and brings their results home as one sum, on the functional machine.

What names targets is one dynamic instruction at the home GPU. Everything else moves one vector for each entry of
``Tokens.copies``: through a fixed team where it addresses all, through teams of just its targets where there are such,
else through a slot of plain memory, at the GPU that has the vector where the other one reads it, and at the other one
where it is written. A GPU itself copies what it received to its experts' rows, and adds up their results before they
leave.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.multimem.packets import Stage
from dysharp_env.multimem.switch import ReplyKey
from dysharp_env.multimem.team import Team
from dysharp_env.multimem.tokens import Tokens
from dysharp_env.system.primitives import Primitive


class Dispatch:
    """Sends the tokens of one layer by a dispatch primitive."""

    def __init__(self, tokens: Tokens, primitive: Primitive, team_gpus: int) -> None:
        """Takes the layer's tokens; ``team_gpus`` is a ``Schedule``'s."""
        self._tokens = tokens
        self._primitive = primitive
        self._team = tokens.create_team() if primitive.to_all else None
        self._team_gpus = team_gpus
        # All are there before the layer starts; one that nobody uses takes no memory here.
        self._teams: dict[tuple[int, ...], Team] = {}

    def send(self, token: int, vector: np.ndarray) -> None:
        """Dispatches one token, (values,) float32, to all its experts.

        One without any moves only where a primitive addresses all GPUs.
        """
        tokens, home = self._tokens, self._tokens.home(token)
        if not tokens.experts(token) and not self._team:
            return
        offset, reads = token * tokens.block_bytes, self._primitive.reads
        if self._primitive.names_targets:
            tokens.scatter(home, token, tokens.experts(token), vector)
            return
        if self._team:
            self._team.st(home, vector, self._team.base + offset)
        elif reads:
            tokens.runtime.plain.st(home, vector, tokens.inbox(home, token, 0), Stage.DISPATCH)
        teams = self._store_to_teams(home, token, vector) if self._primitive.by_team else {}
        for place, (gpu, experts) in enumerate(tokens.copies(token)):
            received = vector
            if gpu in teams:
                received = teams[gpu].values(gpu, offset, tokens.block_bytes)
            elif self._team:
                received = self._team.values(gpu, offset, tokens.block_bytes)
            elif reads:
                received = tokens.load(gpu, tokens.inbox(home, token, 0), Stage.DISPATCH)
            elif gpu != home:
                tokens.runtime.plain.st(home, vector, tokens.inbox(gpu, token, place), Stage.DISPATCH)
                received = tokens.load(gpu, tokens.inbox(gpu, token, place), Stage.DISPATCH)
            tokens.scatter(gpu, token, experts, received)

    def _store_to_teams(self, home: int, token: int, vector: np.ndarray) -> dict[int, Team]:
        """Stores a token to the team of its targets in each group of GPUs that has several; returns it by target."""
        targets = [gpu for gpu, _ in self._tokens.copies(token) if gpu != home]
        reached: dict[int, Team] = {}
        for group in sorted({gpu // self._team_gpus for gpu in targets}):
            members = tuple(sorted(gpu for gpu in targets if gpu // self._team_gpus == group))
            if len(members) == 1:
                continue  # a plain store, as today's libraries do
            if members not in self._teams:
                self._teams[members] = self._tokens.create_team(members)
            team = self._teams[members]
            team.st(home, vector, team.base + token * self._tokens.block_bytes)
            reached |= dict.fromkeys(members, team)
        return reached


class Combine:
    """Sums the results of one layer's tokens by a combine primitive, several tokens at once where a schedule has it so.

    A sum over a fixed team takes in GPUs that have no expert of the token, whose replica is zero.
    """

    def __init__(self, tokens: Tokens, primitive: Primitive) -> None:
        self._tokens = tokens
        self._primitive = primitive
        self._team = tokens.create_team() if primitive.to_all else None
        self._asked: dict[int, list[ReplyKey]] = {}  # by token
        self._pushes: list[tuple[int, int, np.ndarray]] = []  # GPU, token, its sum

    def ask(self, token: int) -> None:
        """Starts the combine of one token: issues its reads, or sends its experts' sums on their way."""
        tokens, home = self._tokens, self._tokens.home(token)
        if self._primitive.names_targets:
            experts, address = tokens.experts(token), tokens.region.address(token)
            self._asked[token] = tokens.runtime.request_sum(
                home, tokens.block_bytes, address, len(experts), experts, Stage.COMBINE
            )
            return
        for place, (gpu, experts) in enumerate(tokens.copies(token)):
            partial = tokens.partial_sum(gpu, token, experts)
            if self._team:
                self._team.values(gpu, token * tokens.block_bytes, tokens.block_bytes)[:] = partial
            elif self._primitive.in_switch and gpu != home:
                self._pushes.append((gpu, token, partial))
            else:
                tokens.runtime.plain.st(gpu, partial, self._slot(token, gpu, place), Stage.COMBINE)

    def respond(self) -> None:
        """Lets what was asked for or pushed arrive, one GPU's after the other's."""
        tokens = self._tokens
        tokens.runtime.respond()
        pushes, self._pushes = sorted(self._pushes, key=lambda push: push[0]), []
        for gpu, token, partial in pushes:
            address = tokens.sums(tokens.home(token), token, 0)
            tokens.runtime.plain.push_sum(gpu, partial, address, self._num_pushed(token), Stage.COMBINE)

    def take(self, token: int) -> np.ndarray:
        """Returns the combined result of a token, (values,) float32, at its home GPU."""
        tokens, home = self._tokens, self._tokens.home(token)
        if self._primitive.names_targets:
            return tokens.runtime.take_sum(self._asked.pop(token))
        if self._team:
            return self._team.ld_reduce(home, tokens.block_bytes, self._team.base + token * tokens.block_bytes)
        if self._primitive.in_switch:
            address = tokens.sums(home, token, 0)
            tokens.runtime.plain.check_pushed(home, tokens.block_bytes, address, self._num_pushed(token))
            return tokens.load(home, address, Stage.COMBINE)
        slots = [self._slot(token, gpu, place) for place, (gpu, _) in enumerate(tokens.copies(token))]
        return np.sum([tokens.load(home, slot, Stage.COMBINE) for slot in slots], axis=0)

    def _slot(self, token: int, gpu: int, place: int) -> int:
        """Returns the address of a GPU's sum in plain memory: its own if it is read from there, else the home GPU's."""
        return self._tokens.sums(gpu if self._primitive.reads else self._tokens.home(token), token, place)

    def _num_pushed(self, token: int) -> int:
        return sum(gpu != self._tokens.home(token) for gpu, _ in self._tokens.copies(token))
