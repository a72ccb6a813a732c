"""How each primitive moves a token out to its experts and its results back, on the functional machine.

Dispatch: ``multicast`` is one ``dymultimem.st`` per token; ``unicast`` writes one copy per expert GPU to a slot of its
own and ``broadcast`` stores to all GPUs with ``multimem.st``; in both, the receiver copies the vector to its experts'
rows. Combine: ``pull_reduce`` is ``dymultimem.ld_reduce``; with ``unicast`` every expert GPU pushes the sum of its
experts to a slot at home, which adds them; ``push_reduce`` pushes the same sums, but the switch merges them;
``reduce_scatter`` is ``multimem.ld_reduce`` over all GPUs' sums.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.config import ConfigError, require_choice
from dysharp_env.multimem.links import STATIC_BASE, plain_address
from dysharp_env.multimem.runtime import Runtime
from dysharp_env.multimem.switch import ReplyKey
from dysharp_env.multimem.wire import Stage
from dysharp_env.workload import Workload

DISPATCH = ("unicast", "multicast", "broadcast")
COMBINE = ("unicast", "pull_reduce", "push_reduce", "reduce_scatter")


class Transfers:
    """Dispatch and combine of one workload's tokens with two primitives.

    Attributes:
        runtime: The machine, region created and bound from the counts that its GPUs exchanged.
    """

    def __init__(self, runtime: Runtime, workload: Workload, block_bytes: int, dispatch: str, combine: str) -> None:
        """Creates and binds what the primitives need.

        Raises:
            ConfigError: A primitive is unknown, or plain memory is too small for one slot per token and stage.
        """
        require_choice("dispatch", dispatch, DISPATCH)
        require_choice("combine", combine, COMBINE)
        if runtime.plain.shape[1] < plain_bytes(workload, block_bytes):
            raise ConfigError(f"plain_bytes={runtime.plain.shape[1]} must be {plain_bytes(workload, block_bytes)}")
        self.runtime = runtime
        self._workload, self._block_bytes = workload, block_bytes
        self._dispatch, self._combine = dispatch, combine
        self.region = runtime.create_region(block_bytes, workload.num_tokens)
        runtime.bind(runtime.exchange_counts(workload.topk_ids))
        everyone = tuple(range(workload.num_gpus))
        team_bytes = workload.num_tokens * block_bytes
        self._gathered = runtime.create_team(everyone, team_bytes) if dispatch == "broadcast" else None
        self._scattered = runtime.create_team(everyone, team_bytes) if combine == "reduce_scatter" else None
        self._asked: dict[int, list[ReplyKey]] = {}
        self._pushes: list[tuple[int, int, np.ndarray]] = []  # GPU, token, partial sum about to be pushed

    def experts_by_gpu(self, token: int) -> dict[int, tuple[int, ...]]:
        """Returns a token's experts on each GPU that has some, the home GPU first, then its neighbours in order."""
        experts = self._workload.topk_ids[token]
        gpus = self._workload.gpu_of_expert[experts]
        home = token // self._workload.tokens_per_gpu
        ring = sorted({int(gpu) for gpu in gpus}, key=lambda gpu: (gpu - home) % self._workload.num_gpus)
        return {gpu: tuple(int(expert) for expert in experts[gpus == gpu]) for gpu in ring}

    def send(self, token: int, vector: np.ndarray) -> None:
        """Dispatches one token, (values,) float32, to all its experts."""
        runtime, home = self.runtime, token // self._workload.tokens_per_gpu
        address = self.region.address(token)
        if self._dispatch == "multicast":
            targets = tuple(int(expert) for expert in self._workload.topk_ids[token])
            runtime.dymultimem_st(home, vector, address, len(targets), targets, Stage.DISPATCH)
            return
        slot = token * self._block_bytes
        if self._gathered is not None:
            self._gathered.st(home, vector, STATIC_BASE + slot)
        for gpu, experts in self.experts_by_gpu(token).items():
            if self._gathered is not None:
                received = self._gathered.replica(gpu)[slot : slot + self._block_bytes].view("<f4")
            elif gpu == home:
                received = vector
            else:
                runtime.st(home, vector, plain_address(gpu, slot), Stage.DISPATCH)
                received = runtime.plain[gpu, slot : slot + self._block_bytes].view("<f4")
            # Targets that are all local: the receiver's copy into its experts' rows uses no link.
            runtime.dymultimem_st(gpu, received, address, len(experts), experts, Stage.DISPATCH)

    def ask(self, token: int) -> None:
        """Starts the combine of one token: issues its reads, or pushes its experts' sums home."""
        home, address = token // self._workload.tokens_per_gpu, self.region.address(token)
        if self._combine == "pull_reduce":
            targets = tuple(int(expert) for expert in self._workload.topk_ids[token])
            self._asked[token] = self.runtime.request_sum(
                home, self._block_bytes, address, len(targets), targets, Stage.COMBINE
            )
            return
        for gpu, experts in self.experts_by_gpu(token).items():
            partial = self.runtime.dymultimem_ld_reduce(
                gpu, self._block_bytes, address, len(experts), experts, Stage.COMBINE
            )
            if self._scattered is not None:
                slot = token * self._block_bytes
                self._scattered.replica(gpu)[slot : slot + self._block_bytes].view("<f4")[:] = partial
            elif self._combine == "push_reduce":
                self._pushes.append((gpu, token, partial))
            else:
                self.runtime.st(gpu, partial, plain_address(home, self._slot(token, gpu)), Stage.COMBINE)

    def respond(self) -> None:
        """Lets what was asked for or pushed arrive, one GPU's after the other's."""
        self.runtime.respond()
        pushes, self._pushes = sorted(self._pushes, key=lambda push: push[0]), []
        for gpu, token, partial in pushes:
            home = token // self._workload.tokens_per_gpu
            slot = self._slot(token, home)
            if gpu == home:
                self.runtime.add_plain(home, slot, partial)
            else:
                count = self._num_remote(token)
                self.runtime.push_sum(gpu, partial, plain_address(home, slot), count, Stage.COMBINE)

    def take(self, token: int) -> np.ndarray:
        """Returns the combined result of a token, (values,) float32, at its home GPU."""
        home = token // self._workload.tokens_per_gpu
        if self._combine == "pull_reduce":
            return self.runtime.take_sum(self._asked.pop(token))
        if self._scattered is not None:
            return self._scattered.ld_reduce(home, self._block_bytes, STATIC_BASE + token * self._block_bytes)
        if self._combine == "push_reduce":
            slot = self._slot(token, home)
            self.runtime.check_pushed(home, self._block_bytes, plain_address(home, slot), self._num_remote(token))
            return self.runtime.plain[home, slot : slot + self._block_bytes].view("<f4").copy()
        total = np.zeros(self._block_bytes // 4, np.float32)
        for gpu in self.experts_by_gpu(token):
            slot = self._slot(token, gpu)
            total += self.runtime.plain[home, slot : slot + self._block_bytes].view("<f4")
        return total

    def _num_remote(self, token: int) -> int:
        """Returns how many GPUs other than a token's home hold experts of it."""
        return len(self.experts_by_gpu(token).keys() - {token // self._workload.tokens_per_gpu})

    def _slot(self, token: int, gpu: int) -> int:
        """Returns where the home GPU keeps the partial sum that one GPU pushes: after the slots of dispatch."""
        place = self._workload.num_tokens + token % self._workload.tokens_per_gpu * self._workload.num_gpus + gpu
        return place * self._block_bytes


def plain_bytes(workload: Workload, block_bytes: int) -> int:
    """Returns the plain memory a GPU needs: a slot for every token, and one for every partial sum pushed home."""
    return 2 * workload.num_tokens * block_bytes
