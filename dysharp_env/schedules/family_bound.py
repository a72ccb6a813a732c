"""A lower bound on the makespan of all layers that one program can run: its family, whatever is decided.

A program says which primitives move vectors and which kernels issue them, what is paid where, which stage waits for
what, how many tokens a tile has, and how many SMs compute. All of that is in the state of a layer that has not begun,
so the bound is worked out from there: no decision has been taken yet.

For every part of a layer and every GPU it follows what must come one after the other: tokens arrive, GEMM-1 may start,
then GEMM-2, then combine, then the last token is home; each with what it pays and with the time that links, SMs and HBM
need in between. Beside that stand bounds over all parts together: links in all, HBM in all, and SMs in all (tiles.py).

Copies wait for their weights: rows of GEMM-1 for one matrix, those of GEMM-2 for both, gates for those of a GPU or of
all. HBM need not read them where they come to.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dysharp_env.schedules.crossings import Crossings, Layer
from dysharp_env.schedules.tiles import Tiles, fewest_slots, fewest_vectors_ps, least_end_ps
from dysharp_env.schedules.ways import Ways, taken_ps
from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state.codes import (
    BY_EXPERTS,
    GATE_FINE,
    GATE_GPU,
    GEMM1,
    GEMM2,
    NOTHING,
    OPENS_COMBINE,
    OPENS_GEMM1,
    OPENS_GEMM2,
)
from dysharp_env.simulator.state.lowering import Lowering
from dysharp_env.simulator.state.state import State
from dysharp_env.workload.workload import Workload


class FamilyBound(NamedTuple):
    """A time that no layer of a program can beat, and what it is the longest of.

    Attributes:
        total_ps: The time.
        links_ps: What links need.
        stages_ps: What the stages of a part need, one after the other.
        sms_ps: What the SMs of a GPU need for all its tiles.
        hbm_ps: What HBM needs for all weights of a GPU.
    """

    total_ps: int
    links_ps: int
    stages_ps: int
    sms_ps: int
    hbm_ps: int


def family_bound(workload: Workload, costs: Costs, program: Program, num_sms: int, least_ps: int) -> FamilyBound:
    """Returns the bound of a program on a workload; no less than the bound ``least_ps`` of any schedule at all."""
    lowering = Lowering(costs, program, num_sms)
    state = lowering.lower(workload, Bound(least_ps, 0, 0, 0))
    fitted = program.fitted(workload.most_experts)
    return _Family(workload, state, lowering.costs, fitted, num_sms).bound(least_ps)


def most_gemm_sms(program: Program, num_sms: int) -> int:
    """Returns the most SMs of a GPU that compute at once, under any split."""
    if not program.splits:
        return program.gemm_sms
    # On the way from one split to another there may be the fewest of both communication groups.
    return num_sms - min(split[0] for split in program.splits) - min(split[1] for split in program.splits)


class _Family:
    """Everything that the bound of one program is made of."""

    def __init__(self, workload: Workload, state: State, costs: Costs, program: Program, num_sms: int) -> None:
        self.workload, self.state, self.costs, self.program = workload, state, costs, program
        self.ways = Ways(state, costs, program)
        self.open_ps = int(state.heap["time_ps"][0])
        self.sms = most_gemm_sms(program, num_sms)
        layer = Layer(state, costs)
        self.layer = layer
        self.crossings: Crossings = layer.crossings()
        experts = state.experts
        self.expert_gpu, self.expert_part = experts["gpu"].astype(np.int64), experts["part"].astype(np.int64)
        self.expert = experts["number"].astype(np.int64)
        self.is_copy = workload.placement.is_copy[self.expert]
        self.copy_of = {expert: copy for copy, expert in enumerate(state.copies["expert"].tolist())}
        self.matrices_ps = layer.matrices_ps()
        total = experts["total"].astype(np.int64)
        self.tiles = Tiles.of(total, self.expert_gpu, costs, program, workload.layer.tile_tokens)
        self._count_home_tokens()

    def _count_home_tokens(self) -> None:
        """Counts of each expert's tokens those that live on its GPU, and those that no other GPU sees."""
        layer, num = self.layer, len(self.expert)
        is_home = layer.gpu == layer.home
        # A token's slots are its pairs', in their order; those behind its last expert are empty.
        pair_of_slot = np.repeat(np.arange(len(layer.gpu)), layer.named)
        is_used = np.arange(self.workload.layer.top_k) < layer.experts_of_token[:, None]
        slot_expert = self.state.slot_expert[is_used.ravel()].astype(np.int64)
        at_home = np.bincount(layer.token, weights=layer.named * is_home, minlength=self.workload.num_tokens)
        is_inner = at_home[layer.token] == layer.experts_of_token[layer.token]
        self.at_home = np.bincount(slot_expert, weights=is_home[pair_of_slot], minlength=num).astype(np.int64)
        inner = np.bincount(slot_expert, weights=(is_home & is_inner)[pair_of_slot], minlength=num).astype(np.int64)
        self.inner = np.zeros_like(inner) if self.program.combine.to_all else inner
        # (gpu, experts named) vectors that cross a GPU's links; as many sums leave it.
        num_gpus, kinds = self.workload.num_gpus, self.workload.layer.top_k + 1
        crossing = (layer.gpu * kinds + layer.named)[layer.crosses & (layer.named > 0)]
        self.vectors = np.bincount(crossing, minlength=num_gpus * kinds).reshape(num_gpus, kinds)

    def bound(self, least_ps: int) -> FamilyBound:
        """Returns the bound, no lower than ``least_ps``."""
        end_ps = int(self.state.root["pay_end_ps"][0])
        times = [self._links_ps(), self._stages_ps(), *self._gpus_ps()]
        return FamilyBound(max(least_ps, max(*times, self.open_ps) + end_ps), *(ps + end_ps for ps in times))

    # Links

    def _links_ps(self) -> int:
        """Returns what the busiest link needs for all there is, for dispatch before the last rows, or for sums alone.

        An uplink's last byte still has two hops to go, a downlink's first had one and its last has one.
        """
        moved, ways = self.crossings, self.ways
        all_ps = sum(each.all_ps() for each in (moved.dispatch, moved.combine, moved.weights, moved.control))
        if not np.any(all_ps):
            return 0
        used = self.tiles.total > 0
        if not used.any():
            return self.open_ps + int(np.max(all_ps)) + 2 * ways.hop_ps
        rows_ps = sum(int(self.tiles.row_ps[gemm, used].min()) for gemm in (GEMM1, GEMM2))
        begins_ps = min(ways.dispatch_delay_ps, min(ways.local_ps, ways.arrival_ps) + rows_ps) * (not self.copy_of)
        ends_ps = self.open_ps + begins_ps + int(np.max(all_ps)) + 2 * ways.hop_ps
        for part in range(self.program.parts):
            if moved.dispatch.up[part].any():
                # What crosses a loop ends at home, which needs no word of its rows.
                tail_ps = ways.combined_ps if self.program.loopback else ways.remote_ps
                tail_ps *= self.program.gates[OPENS_COMBINE] == GATE_FINE
                ends_ps = max(ends_ps, self._last_arrival_ps(part) + rows_ps + tail_ps)
        if not self.layer.is_summed.any():
            return ends_ps
        first_ps = min(int(self._opens_ps(gpu, used & (self.expert_gpu == gpu))[0]) for gpu in self._gpus(used))
        # A sum for static operations may be that of a token whose experts are all at home.
        notify_ps = 0 if self.program.combine.to_all else ways.remote_ps - ways.combined_ps
        sums_ps = int(moved.combine.all_ps().max())
        return max(ends_ps, first_ps + rows_ps + notify_ps + ways.sum_asked_ps + sums_ps + 2 * ways.hop_ps)

    def _gpus(self, experts: np.ndarray) -> list[int]:
        """Returns the GPUs that some experts, a mask, are on."""
        gpus: list[int] = np.unique(self.expert_gpu[experts]).tolist()
        return gpus

    def _last_arrival_ps(self, part: int, gpu: int = NOTHING) -> int:
        """Returns when all tokens of a part can have come at the earliest: to one GPU, or all of them."""
        moved, ways, planes = self.crossings.dispatch, self.ways, self.layer.planes
        of_gpu = slice(None) if gpu == NOTHING else slice(gpu * planes, (gpu + 1) * planes)
        wire_ps = int(moved.down[part, of_gpu].max())
        if gpu == NOTHING:
            wire_ps = max(wire_ps, int(moved.up[part].max()))
        if wire_ps == 0:
            # No token crosses links, or each in less than a quantum.
            return self.open_ps + min(ways.local_ps, ways.arrival_ps)
        last_ps = ways.dispatch_delay_ps + ways.asked_ps + wire_ps + 2 * ways.hop_ps + ways.seen_ps
        if gpu == NOTHING and self.program.parts == 1:
            last_ps = max(last_ps, self._last_taken_ps() + ways.arrival_ps - ways.dispatch_delay_ps)
        return self.open_ps + last_ps

    def _last_taken_ps(self) -> int:
        """Returns how long after its opening dispatch SMs can have sent off their last vector at the earliest."""
        count, sms, ways = int(self.crossings.dispatched.max()), self.program.most_sms[0], self.ways
        return taken_ps(count, sms, self.costs.dispatch_sm, ways.dispatch_delay_ps, ways.dispatch_trip_ps)

    def _came_ps(self, experts: np.ndarray, gemm: int) -> int:
        """Returns when all copies on one GPU among some experts can have all matrices up to one; 0 without copies."""
        copies = [self.copy_of[expert] for expert in np.unique(self.expert[experts & self.is_copy]).tolist()]
        if not copies:
            return 0
        wire_ps = int(self.matrices_ps[copies, : gemm + 1].sum(axis=(0, 1)).max())
        return self.open_ps + self.costs.memory_ps + wire_ps + 2 * self.ways.hop_ps

    # Stages of a part

    def _stages_ps(self) -> int:
        """Returns the longest chain of stages, each after the one before it on the same GPU or on all."""
        return max(self._part_ps(part) for part in range(self.program.parts))

    def _gate(self, stage: int, part: int, gpu: int) -> tuple[int, int]:
        """Returns what a gate pays and not before when it is paid."""
        gate = self.state.parts["stages"]["gate"][gpu * self.program.parts + part, stage]
        if gate == NOTHING:
            return 0, 0
        return int(self.state.gates["pay_ps"][gate]), int(self.state.gates["not_before_ps"][gate])

    def _part_ps(self, part: int) -> int:
        gpus = self._gpus((self.expert_part == part) & (self.tiles.total > 0))
        if not gpus:
            return 0
        done_ps = {gpu: self._done_ps(part, gpu) for gpu in gpus}
        kind, ways, moved = self.program.gates[OPENS_COMBINE], self.ways, self.crossings.combine
        if kind == GATE_FINE:
            return max(done + self._tail_ps(gpu, part) for gpu, done in done_ps.items())
        if kind == GATE_GPU:
            return max(done + self._pushes_ps(part, gpu) for gpu, done in done_ps.items())
        opens_ps = max(done_ps.values()) + self._gate(OPENS_COMBINE, part, gpus[0])[0]
        wire_ps = moved.busiest_ps(part)
        if wire_ps == 0:
            return opens_ps if self.program.combine.reads else max(done_ps.values())
        ends_ps = ways.sum_asked_ps + wire_ps + 2 * ways.hop_ps
        if self.program.parts == 1:
            count, sms, delay_ps = int(self.crossings.summed.max()), self.program.most_sms[1], ways.combine_delay_ps
            last_ps = taken_ps(count, sms, self.costs.combine_sm, delay_ps, ways.sum_trip_ps)
            ends_ps = max(ends_ps, last_ps + ways.combined_ps - delay_ps)
        return opens_ps + ends_ps

    def _pushes_ps(self, part: int, gpu: int) -> int:
        """Returns what a GPU pays and takes to push its sums of a part home when all are done."""
        planes = self.layer.planes
        wire_ps = int(self.crossings.combine.up[part, gpu * planes : (gpu + 1) * planes].max())
        if wire_ps == 0:
            return 0
        return self._gate(OPENS_COMBINE, part, gpu)[0] + self.ways.sum_asked_ps + wire_ps + self.ways.summed_ps

    def _done_ps(self, part: int, gpu: int) -> int:
        """Returns when all rows of a part on a GPU can be done at the earliest."""
        mine = (self.expert_part == part) & (self.expert_gpu == gpu) & (self.tiles.total > 0)
        starts_ps = int(self._starts_ps(part, gpu)[0])
        work = self.tiles.sm_ps[:, mine].sum(axis=1)
        row1, row2 = (int(self.tiles.row_ps[gemm, mine].min()) for gemm in (GEMM1, GEMM2))
        reads1, reads2 = self._reads_ps(mine, GEMM1), self._reads_ps(mine, GEMM2)
        cold1, cold2 = row1 + self._cold_ps(reads1, GEMM1), row2 + self._cold_ps(reads2, GEMM2)
        first_ps = starts_ps + max(int(work[GEMM1]) // self.sms, cold1, reads1)
        if self.program.gates[OPENS_GEMM1] == GATE_FINE:
            first_ps = max(first_ps, self._last_arrival_ps(part, gpu) + row1)
        if self.is_copy[mine].any():
            first_ps = max(first_ps, self._came_ps(mine, GEMM1) + row1)
        last_ps = self._came_ps(mine, GEMM2) + row2
        if self.program.gates[OPENS_GEMM2] == GATE_FINE:
            done_ps = starts_ps + max(int(work.sum()) // self.sms, reads1 + reads2, cold1 + cold2)
            return max(done_ps, first_ps + row2, last_ps)
        pays_ps, _ = self._gate(OPENS_GEMM2, part, gpu)
        return max(first_ps + pays_ps + max(int(work[GEMM2]) // self.sms, cold2, reads2), last_ps)

    def _cold_ps(self, reads_ps: int, gemm: int) -> int:
        """Returns what the first row of an expert loses while its matrix comes, if it must be read by then."""
        if reads_ps == 0:
            return 0
        read_ps = max(0, self.costs.hbm_ps(self.costs.weight_bytes[gemm]) - 1)
        return read_ps // 1000 * self.costs.cold_exposure_permille

    def _reads_ps(self, mine: np.ndarray, gemm: int) -> int:
        """Returns what HBM needs for matrices that no row outside a part reads, unless they may be there already."""
        if self.program.prefetches or (self.program.parts > 1 and self.program.parts_by != BY_EXPERTS):
            return 0
        count = int((mine & ~self.is_copy).sum())
        return max(0, self.costs.hbm_ps(count * self.costs.weight_bytes[gemm]) - count - 1)

    def _starts_ps(self, part: int, gpu: int) -> np.ndarray:
        """Returns when 1, 2, ... tiles of a part on a GPU may start; the first, where they wait for a gate."""
        kind = self.program.gates[OPENS_GEMM1]
        mine = (self.expert_part == part) & (self.expert_gpu == gpu) & (self.tiles.total > 0)
        if kind == GATE_FINE:
            return self._closed_ps(gpu, mine)
        pays_ps, not_before_ps = self._gate(OPENS_GEMM1, part, gpu)
        gpus = [gpu] if kind == GATE_GPU else range(self.workload.num_gpus)
        last_ps = self._last_arrival_ps(part, gpu if kind == GATE_GPU else NOTHING)
        last_ps = max(last_ps, *(self._came_ps(self.expert_gpu == each, GEMM2) for each in gpus))
        return np.array([max(last_ps, not_before_ps) + pays_ps])

    def _closed_ps(self, gpu: int, mine: np.ndarray) -> np.ndarray:
        """Returns when 1, 2, ... tiles of some experts on a GPU may be closed: when enough tokens have come down."""
        local = np.zeros_like(self.at_home) if self.program.loopback else self.at_home
        slots = fewest_slots(self.tiles.first[mine], self.tiles.full, self.tiles.total[mine], local[mine])
        ways = self.ways
        wires_ps = self._wires_ps(gpu, slots)
        remote_ps = ways.arrival_ps + np.maximum(wires_ps - ways.out_ps, 0)
        closed_ps = self.open_ps + np.where(slots > 0, remote_ps, min(ways.local_ps, ways.arrival_ps))
        if not self.is_copy[mine].all():
            return closed_ps
        return np.maximum(closed_ps, min(self._came_ps(self.expert == each, GEMM1) for each in self.expert[mine]))

    def _wires_ps(self, gpu: int, slots: np.ndarray) -> np.ndarray:
        """Returns how long a GPU's downlink is busy at least with vectors that are of so many (token, expert)s."""
        costs = self.costs
        names = self.program.dispatch.names_targets
        most = np.arange(self.workload.layer.top_k + 1)
        lost_ps = costs.dispatch_segments * costs.quantum_ps if costs.resolution == "packet" else 0
        table = np.array(
            [max(0, costs.spread_ps(costs.dispatch_flits(int(count) * names)) - lost_ps) for count in most]
        )
        return np.array([fewest_vectors_ps(int(count), self.vectors[gpu], table) for count in slots])

    # The end of a row

    def _tail_ps(self, gpu: int, part: int = NOTHING) -> int:
        """Returns the least time from the end of a GPU's last row to the end of the layer, where combine is fine."""
        mine = (self.expert_gpu == gpu) & (self.tiles.total > 0)
        if part != NOTHING:
            mine &= self.expert_part == part
        least, ways, reads = self.tiles.least[mine], self.ways, self.program.combine.reads
        if (self.inner[mine] >= least).any():
            return 0
        if (self.at_home[mine] >= least).any():
            return ways.combined_ps if reads else 0
        return ways.remote_ps

    def _unfinished_ps(self, gpu: int) -> np.ndarray:
        """Returns how long before the end 1, 2, ... of a GPU's tiles may be unfinished at the latest."""
        ways = self.ways
        if self.program.gates[OPENS_COMBINE] != GATE_FINE:
            parts = np.unique(self.expert_part[(self.expert_gpu == gpu) & (self.tiles.total > 0)])
            pays_ps = min(self._gate(OPENS_COMBINE, int(part), gpu)[0] for part in parts)
            return np.array([pays_ps if self.program.combine.reads else 0])
        mine = (self.expert_gpu == gpu) & (self.tiles.total > 0)
        slots = fewest_slots(self.tiles.least[mine], self.tiles.full, self.tiles.total[mine], self.at_home[mine])
        home_ps = np.full(self.vectors.shape[1], ways.home_ps)
        sums_ps = np.array([fewest_vectors_ps(int(count), self.vectors[gpu], home_ps) for count in slots])
        return np.where(slots > 0, ways.remote_ps + np.maximum(sums_ps - ways.home_ps, 0), self._tail_ps(gpu))

    # All parts together

    def _gpus_ps(self) -> tuple[int, int]:
        """Returns what the SMs of the busiest GPU need for all its tiles, and its HBM for all its weights."""
        sms_ps, hbm_ps = 0, 0
        for gpu in self._gpus(self.tiles.total > 0):
            mine = (self.expert_gpu == gpu) & (self.tiles.total > 0)
            opens_ps = self._opens_ps(gpu, mine)
            closes_ps = self._unfinished_ps(gpu)
            sms_ps = max(sms_ps, self._sms_ps(mine, opens_ps, closes_ps))
            hbm_ps = max(hbm_ps, self._hbm_ps(gpu, mine, int(opens_ps[0])) + int(closes_ps[0]))
        return sms_ps, hbm_ps

    def _opens_ps(self, gpu: int, mine: np.ndarray) -> np.ndarray:
        """Returns when 1, 2, ... tiles of a GPU may have started, or when the first may where that is all there is."""
        if self.program.gates[OPENS_GEMM1] == GATE_FINE:
            return self._closed_ps(gpu, mine)
        return np.array([min(int(self._starts_ps(int(part), gpu)[0]) for part in np.unique(self.expert_part[mine]))])

    def _sms_ps(self, mine: np.ndarray, opens_ps: np.ndarray, closes_ps: np.ndarray) -> int:
        tiles = self.tiles
        most = int((-(-(tiles.total[mine] - tiles.least[mine]) // tiles.full) + 1).sum())
        blocks = self.costs.blocks
        rows = (int(tiles.row_ps[gemm, mine].min()) for gemm in (GEMM1, GEMM2))
        sms = min(self.sms, most * max(blocks))
        return int(least_end_ps(int(tiles.sm_ps[:, mine].sum()), sms, opens_ps, closes_ps, *blocks, *rows))

    def _hbm_ps(self, gpu: int, mine: np.ndarray, starts_ps: int) -> int:
        """Returns when HBM can have read all weights of a GPU at the earliest.

        Without fetching ahead that begins with the first row. With it, it begins with the layer, or early: where nobody
        counted any expert may be fetched. No more is there before the first row starts than L2 holds: nothing in it is
        dead until then.
        """
        costs = self.costs
        experts = len(np.unique(self.expert[mine & ~self.is_copy]))
        all_bytes, accesses = experts * sum(costs.weight_bytes), 2 * experts + 1
        if not self.program.prefetches:
            return starts_ps + max(0, costs.hbm_ps(all_bytes) - accesses)
        most_bytes = max(costs.l2_bytes * max(costs.weight_bytes[0] // costs.matrix_bytes[0], 1), *costs.weight_bytes)
        begins_ps = int(self.state.gates["pay_ps"][0]) - self.program.early_ps
        late_ps = max(0, costs.hbm_ps(max(0, all_bytes - most_bytes)) - accesses)
        return max(begins_ps + max(0, costs.hbm_ps(all_bytes) - accesses), starts_ps + late_ps)
