"""One workload's tokens on the functional machine: where their copies and sums lie, and who holds their experts.

Plain memory of every GPU has two areas with a slot of one vector for each copy of each token: the *inbox*, where
dispatched copies arrive or tokens wait to be fetched, and the *sums*, where partial sums do. What a GPU does in its own
memory (copying a received vector into its experts' rows, adding up their results) uses no link.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.multimem.links import plain_address
from dysharp_env.multimem.packets import Stage
from dysharp_env.multimem.runtime import Runtime
from dysharp_env.multimem.team import Team
from dysharp_env.workload import Workload
from dysharp_env.workload.workload import NO_EXPERT


class Tokens:
    """The tokens of one layer and their place in a machine's memory.

    Attributes:
        runtime: The machine, its region created and bound from the counts that its GPUs exchanged.
        region: Its dynamic multimem region.
        block_bytes: Bytes of one vector.
        workload: The layer.
    """

    def __init__(
        self,
        runtime: Runtime,
        workload: Workload,
        block_bytes: int,
        copy_per_expert: bool = False,
        loopback: bool = False,
    ) -> None:
        """Creates and binds the region of a layer on a machine with at least ``plain_bytes`` on each GPU.

        ``copy_per_expert`` and ``loopback`` are those of a ``Schedule``.
        """
        assert runtime.plain.memory.shape[1] >= plain_bytes(workload, block_bytes), runtime.plain.memory.shape
        self.runtime = runtime
        self.block_bytes = block_bytes
        self.workload = workload
        self.region = runtime.create_region(block_bytes, workload.num_tokens)
        runtime.bind(runtime.exchange_counts(np.split(workload.topk_ids, workload.first_token[1:-1])))
        self._copy_per_expert, self._loopback = copy_per_expert, loopback

    def home(self, token: int) -> int:
        """Returns the GPU a token lives on."""
        return int(self.workload.home_of_token[token])

    def experts(self, token: int) -> tuple[int, ...]:
        """Returns all physical experts of a token: the target list of dynamic multimem."""
        return tuple(int(expert) for expert in self.workload.topk_ids[token] if expert != NO_EXPERT)

    def copies(self, token: int) -> list[tuple[int, tuple[int, ...]]]:
        """Returns (GPU, its experts) of each copy of a token, the home GPU first, then its neighbours in order."""
        home = self.home(token)
        gpu_of = {expert: int(self.workload.gpu_of_expert[expert]) for expert in self.experts(token)}
        ring = sorted(set(gpu_of.values()), key=lambda gpu: (gpu - home) % self.workload.num_gpus)
        held = [(gpu, tuple(expert for expert in gpu_of if gpu_of[expert] == gpu)) for gpu in ring]
        if self._copy_per_expert:
            return [(gpu, (expert,)) for gpu, experts in held for expert in experts]
        return held

    def create_team(self, gpus: tuple[int, ...] | None = None) -> Team:
        """Returns a static multimem object of GPUs (default: of all), with a slot of one vector for every token."""
        members = gpus or tuple(range(self.workload.num_gpus))
        return self.runtime.create_team(members, self.workload.num_tokens * self.block_bytes, self._loopback)

    def inbox(self, gpu: int, token: int, place: int) -> int:
        """Returns the address, on a GPU, for the copy of a token that has this place in ``copies``."""
        return plain_address(gpu, self._slot(token, place) * self.block_bytes)

    def sums(self, gpu: int, token: int, place: int) -> int:
        """Returns the address, on a GPU, for the partial sum of the copy of a token that has this place."""
        area = self.workload.num_tokens * self.workload.topk_ids.shape[1]
        return plain_address(gpu, (area + self._slot(token, place)) * self.block_bytes)

    def load(self, gpu: int, address: int, stage: Stage) -> np.ndarray:
        """Returns the vector at a plain address, (values,) float32, loaded by a GPU."""
        return self.runtime.plain.ld(gpu, self.block_bytes, address, stage)

    def scatter(self, gpu: int, token: int, experts: tuple[int, ...], vector: np.ndarray) -> None:
        """Copies a vector that a GPU has received into the rows of its experts."""
        address = self.region.address(token)
        self.runtime.dymultimem_st(gpu, vector, address, len(experts), experts, Stage.DISPATCH)

    def partial_sum(self, gpu: int, token: int, experts: tuple[int, ...]) -> np.ndarray:
        """Returns the sum of a GPU's experts' results of a token, (values,) float32, formed there."""
        address = self.region.address(token)
        return self.runtime.dymultimem_ld_reduce(gpu, self.block_bytes, address, len(experts), experts, Stage.COMBINE)

    def _slot(self, token: int, place: int) -> int:
        return token * self.workload.topk_ids.shape[1] + place


def plain_bytes(workload: Workload, block_bytes: int) -> int:
    """Returns the plain memory a GPU needs: inbox and sums, a slot in each for every expert of every token."""
    return 2 * workload.topk_ids.size * block_bytes
