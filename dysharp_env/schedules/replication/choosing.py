"""What may be copied next where that is a decision, and what is shown of it; planners have lists of their own.

Work is counted in time, not in tokens: rows of a GPU's experts on its SMs, but no less for an expert than HBM takes to
read its weights. Few tokens of many experts therefore weigh more than as many of one, and a copy is work for whoever
gets it. All of it follows from exchanged counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dysharp_env.native import native
from dysharp_env.schedules.replication.sharing import Sharing
from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.program import Program
from dysharp_env.workload import Workload

# Features of ``replicate`` besides order and hold; see simulator/state/observation.py.
SHOWN = ("relief", "gain", "adds", "room", "cost", "beyond", "late", "stays", "holders")
LEAST = 0.01  # of the mean work, that a move takes off a GPU
RELIEF, GAIN, ADDS, ROOM, COST, BEYOND, LATE, STAYS, HOLDERS = range(len(SHOWN))


class Work(NamedTuple):
    """What experts' tokens and weights take, in picoseconds."""

    rows_ps: np.ndarray  # (tokens + 1,) int64, of both rows of a tile with so many tokens, on all GEMM SMs of a GPU
    weights_ps: int  # of HBM, to read an expert's weights
    link_ps: int  # of a link, to move them
    stored_once: bool  # whether one crossing of the uplink serves all copies of an expert

    @classmethod
    def of(cls, costs: Costs, program: Program, tile_tokens: int) -> Work:
        """Returns what they take under a program that copies experts."""
        assert program.copying is not None
        tokens = range(1, tile_tokens + 1)
        rows_ps = [sum(costs.blocks[gemm] * costs.block_ps(gemm + 1, each) for gemm in (0, 1)) for each in tokens]
        family = program.copying_family or program.copying.usual_family
        packet = costs.families.packet_of(family, program.copying.in_switch)
        return cls(
            rows_ps=np.array([0, *rows_ps]) // program.gemm_sms,
            weights_ps=costs.hbm_ps(sum(costs.weight_bytes)),
            link_ps=costs.wire_ps(sum(packet.data_flits(num_bytes) for num_bytes in costs.matrix_bytes)),
            stored_once=program.copying.in_switch,
        )


class Choosing:
    """Copies of a layer as they are chosen one after the other.

    Attributes:
        sharing: How the work is shared by now.
        before: (expert, gpu) tokens of each logical expert that each GPU would have computed.
        moves: (candidate, 4) int64 what was listed last: expert, the GPU that tokens leave, the one that is to compute
            them, and how many.
    """

    def __init__(self, workload: Workload, slots: int, work: Work, bound_ps: int) -> None:
        """Begins with no copies.

        Args:
            workload: The layer.
            slots: Experts that a GPU has room for besides its own.
            work: What tokens and weights take.
            bound_ps: The layer's bound, which times are shown over.
        """
        self.sharing = Sharing.of(workload, slots)
        self.before = self.sharing.quota.copy()
        self._homes = self.sharing.holds.argmax(axis=1)
        # (gpu,) expert's weights that leave and come, as far as chosen; (expert,) whether there is a copy.
        self._sends, self._receives = (np.zeros(workload.num_gpus, np.int64) for _ in range(2))
        self._is_copied = np.zeros(len(self._homes), bool)
        self._work, self._bound_ps = work, bound_ps
        self.moves = np.zeros((0, 4), np.int64)

    def listed(self, limit: int) -> np.ndarray:
        """Lists what would relieve GPUs that have more work than the mean, what takes most time off them first.

        For each expert on each of them these GPUs with less than the mean are listed: the one with least work that
        holds it already, and of those that need a copy the one with least work and the one where most of its tokens
        live. Each is to compute as many tokens as bring one of both to the mean, or as take no longer than weights.
        Left out is what takes less than a hundredth of the mean off the busier, or makes the other as busy.

        Args:
            limit: The most candidates.

        Returns:
            (candidate, feature) float64 what is shown of them, by ``SHOWN``.
        """
        sharing = self.sharing
        state = (sharing.counts, sharing.quota, sharing.holds, sharing.slots)
        links = (self._homes, self._sends, self._receives, self._is_copied)
        moves, shown = _list(*state, *links, *self._work, self._bound_ps)
        best = np.argsort(-shown[:, GAIN], kind="stable")[:limit]
        self.moves = moves[best]
        return shown[best]

    def take(self, row: int) -> None:
        """Makes a listed move."""
        expert, source, gpu, tokens = self.moves[row].tolist()
        if not self.sharing.holds[expert, gpu]:
            self._sends[self._homes[expert]] += not (self._work.stored_once and self._is_copied[expert])
            self._receives[gpu] += 1
            self._is_copied[expert] = True
        self.sharing.take(expert, source, gpu, tokens)


@native
def _expert_ps(tokens: int, rows_ps: np.ndarray, weights_ps: int) -> int:
    """Returns what an expert's tokens take of a GPU."""
    if tokens == 0:
        return 0
    tile = len(rows_ps) - 1
    return max(tokens // tile * rows_ps[tile] + rows_ps[tokens % tile], weights_ps)


@native
def _list(
    counts: np.ndarray,
    quota: np.ndarray,
    holds: np.ndarray,
    slots: np.ndarray,
    homes: np.ndarray,
    sends: np.ndarray,
    receives: np.ndarray,
    is_copied: np.ndarray,
    rows_ps: np.ndarray,
    weights_ps: int,
    link_ps: int,
    stored_once: bool,
    bound_ps: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns candidates and what is shown of them, see ``listed``; arrays as in ``Sharing`` and ``Choosing``."""
    work = np.zeros(len(slots), np.int64)
    for of_gpu in quota:
        for gpu in range(len(slots)):
            work[gpu] += _expert_ps(of_gpu[gpu], rows_ps, weights_ps)
    mean = work.sum() // len(slots)
    excess, least = np.maximum(work - mean, 0), max(1, int(mean * LEAST))
    token_ps = max(1, rows_ps[-1] // (len(rows_ps) - 1))
    moves, shown, found = np.zeros((3 * quota.size, 4), np.int64), np.zeros((3 * quota.size, len(SHOWN))), 0
    for source in np.flatnonzero(excess):
        for expert in np.flatnonzero(quota[:, source]):
            here, here_ps = quota[expert, source], _expert_ps(quota[expert, source], rows_ps, weights_ps)
            for gpu in _takers(expert, counts, holds, slots, work, mean - least):
                there, there_ps = quota[expert, gpu], _expert_ps(quota[expert, gpu], rows_ps, weights_ps)
                # As many tokens as HBM takes the weights' time for come at no further cost.
                most = max(there_ps + mean - work[gpu], weights_ps) // token_ps - there
                tokens = min(here, -(-excess[source] // token_ps), max(1, most))
                saved = here_ps - _expert_ps(here - tokens, rows_ps, weights_ps)
                added = _expert_ps(there + tokens, rows_ps, weights_ps) - there_ps
                # Two GPUs whose busier one gets less busy: so there is an end.
                if saved < least or work[gpu] + added >= work[source]:
                    continue
                links_ps = 0
                if not holds[expert, gpu]:
                    is_sent = stored_once and is_copied[expert]
                    links_ps = max(sends[homes[expert]] + (not is_sent), receives[gpu] + 1) * link_ps
                moves[found] = expert, source, gpu, tokens
                row = shown[found]
                row[RELIEF] = saved / excess.sum()
                row[GAIN], row[ADDS] = np.sqrt(saved / bound_ps), np.sqrt(added / bound_ps)
                row[ROOM], row[BEYOND] = added / (mean - work[gpu]), np.sqrt(excess[source] / bound_ps)
                row[COST], row[LATE] = np.sqrt(links_ps / bound_ps), links_ps / work[source]
                row[STAYS] = (min(counts[gpu, expert], there + tokens) - min(counts[gpu, expert], there)) / tokens
                row[HOLDERS] = holds[expert].sum() / len(slots)
                found += 1
    return moves[:found], np.minimum(shown[:found], 1.0)


@native
def _takers(
    expert: np.integer, counts: np.ndarray, holds: np.ndarray, slots: np.ndarray, work: np.ndarray, most_ps: int
) -> list[int]:
    """Returns the GPUs that are listed for an expert, of those with no more work than ``most_ps``."""
    held = idle = local = -1
    for gpu in range(len(slots)):
        if work[gpu] > most_ps:
            continue
        if holds[expert, gpu]:
            if held < 0 or work[gpu] < work[held]:
                held = gpu
        elif slots[gpu] > 0:
            if idle < 0 or work[gpu] < work[idle]:
                idle = gpu
            if local < 0 or counts[gpu, expert] > counts[local, expert]:
                local = gpu
    return [gpu for place, gpu in enumerate((held, idle, local)) if gpu >= 0 and (place < 2 or gpu != idle)]
