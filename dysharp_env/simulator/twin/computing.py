"""GEMM on one of the twin's GPUs."""

from __future__ import annotations

from collections.abc import Sequence

from dysharp_env.simulator.layout import (
    EV_BLOCKS,
    EV_GATE,
    EV_NOTIFY,
    EV_TILE,
    GATE_GPU,
    GATE_PHASE,
    GEMM,
    LOG_SM,
    NO_TIME,
    NOTIFY,
    NOTIFY_FLITS,
)
from dysharp_env.simulator.twin.combining import Combining
from dysharp_env.simulator.twin.core import Weights
from dysharp_env.simulator.twin.fabric import Link
from dysharp_env.simulator.twin.parts import (
    Expert,
    Hold,
    Pair,
    Process,
    Row,
    Tile,
)


class Computing(Combining):
    """The GEMM group of one GPU, its experts' tiles, and who learns of finished rows."""

    def close_tile(self, expert: Expert) -> None:
        """Ends an expert's open tile; it is ready a memory latency later if its status entry has spilled."""
        twin, tile = self.twin, expert.open
        assert tile is not None
        expert.open = None
        is_spilled = self.tiles_live > twin.costs.tile_status_entries
        # Tiles of one expert become ready in the order in which they closed.
        expert.ready_ps = max(expert.ready_ps, twin.now_ps + (twin.costs.memory_ps if is_spilled else 0))
        if expert.ready_ps == twin.now_ps:
            self.tile_ready(tile)
        else:
            twin.at(expert.ready_ps, EV_TILE, self.tile_ready, tile)

    def tile_ready(self, tile: Tile) -> None:
        """Makes a tile's GEMM-1 row ready, unless it was closed early and runs already."""
        if tile.start_ps[0] == NO_TIME:
            tile.expert.rows[0].append(tile)
        self.row_ready(tile, 1)

    def row_ready(self, tile: Tile, stage: int) -> None:
        """Notes that a row is ready, and when in the order of all rows."""
        self.twin.rows_ready += 1
        tile.ready_order[stage - 1] = self.twin.rows_ready
        tile.ready_ps[stage - 1] = self.twin.now_ps
        self.hold_gemm = False
        self.mark(GEMM)

    def gemm_group(self) -> Process:
        """Keeps free SMs on thread blocks, row after row."""
        twin = self.twin
        while True:
            if self.free_sms == 0 or (self.row is None and self.hold_gemm):
                yield None
                continue
            if self.row is None:
                # Something must still come to this GPU, or hold would wait for ever.
                may_hold = any(self.arrivals_left) or self.free_sms < self.gemm_sms
                row = yield from twin.choose(GEMM, self, self.list_rows(), twin.program.hold_gemm, may_hold)
                if row is None:
                    yield None
                    continue
                if isinstance(row, Hold):
                    self.hold_gemm = True
                    continue
                assert isinstance(row, Row)
                if row.is_open:
                    self.close_tile(row.tile.expert)
                self.start_row(row)
            self.start_blocks()

    def list_rows(self) -> list[Row]:
        """Returns ready rows, one per expert and GEMM, first ready first; then tiles to close early, fullest first."""
        ready, early = [], []
        for expert in self.experts:
            for stage in (2, 1):
                if self.is_open[stage, expert.part] and expert.rows[stage - 1]:
                    ready.append(Row(expert.rows[stage - 1][0], stage))
            is_next = expert.open is not None and all(tile.start_ps[0] != NO_TIME for tile in expert.tiles[:-1])
            may_close = self.twin.may_close_early and self.is_open[1, expert.part]
            if may_close and is_next and expert.open_count >= self.least_tokens:
                early.append(Row(expert.tiles[-1], 1, is_open=True))
        ready.sort(key=lambda row: row.tile.ready_order[row.stage - 1])
        early.sort(key=lambda row: -len(row.tile.pairs))
        return ready + early

    def start_row(self, row: Row) -> None:
        """Makes a row the current one; its inputs are read from HBM now, behind its weights."""
        twin, tile, stage, count = self.twin, row.tile, row.stage, len(row.tile.pairs)
        self.row = row
        if tile in tile.expert.rows[stage - 1]:
            tile.expert.rows[stage - 1].remove(tile)
        tile.start_ps[stage - 1] = twin.now_ps
        tile.blocks_left = twin.costs.blocks[stage - 1]
        read_bytes, write_bytes = twin.costs.token_bytes[:2] if stage == 1 else twin.costs.token_bytes[2:]
        tile.weights_ps = self.fetch_weights(tile.expert, stage)
        tile.inputs_ps = max(tile.weights_ps, self.use_hbm(count * read_bytes))
        self.use_hbm(count * write_bytes)

    def fetch_weights(self, expert: Expert, stage: int) -> int:
        """Returns when an expert's matrix is in L2, read from HBM if it was not; one larger than L2 fills it."""
        costs, key = self.twin.costs, (expert.number, stage)
        if key not in self.l2:
            size_bytes = min(costs.matrix_bytes[stage - 1], costs.l2_bytes)
            while self.l2 and sum(held.size_bytes for held in self.l2.values()) + size_bytes > costs.l2_bytes:
                self.l2.popitem(last=False)
            self.l2[key] = Weights(size_bytes, self.use_hbm(costs.weight_bytes[stage - 1]))
        self.l2.move_to_end(key)
        return self.l2[key].loaded_ps

    def start_blocks(self) -> None:
        """Puts thread blocks of the current row on all free SMs; none ends before the row's inputs are there."""
        assert self.row is not None
        twin, tile, stage = self.twin, self.row.tile, self.row.stage
        count = min(self.free_sms, tile.blocks_left)
        cold_ps = max(tile.weights_ps - twin.now_ps, 0) // 1000 * twin.costs.cold_exposure_permille
        block_ps = twin.costs.block_ps(stage, len(tile.pairs), self.number)
        end_ps = max(twin.now_ps + block_ps + cold_ps, tile.inputs_ps)
        self.free_sms -= count
        self.sm_busy_ps += count * (end_ps - twin.now_ps)
        tile.blocks_left -= count
        tile.blocks_running += count
        twin.use(LOG_SM, self.number, stage, ("tile", tile.expert.number, tile.expert.part, tile.place), count, end_ps)
        twin.at(end_ps, EV_BLOCKS, self.blocks_end, tile, stage, count)
        if tile.blocks_left == 0:
            self.row = None

    def blocks_end(self, tile: Tile, stage: int, count: int) -> None:
        """Frees the SMs of finished thread blocks; the last ones of a row finish it."""
        self.free_sms += count
        self.fill_groups()
        self.hold_gemm = False
        tile.blocks_running -= count
        self.mark(GEMM)
        if tile.blocks_running == 0 and tile.blocks_left == 0:
            tile.end_ps[stage - 1] = self.twin.now_ps
            self.slots_left[stage - 1][tile.expert.part] -= len(tile.pairs)
            if stage == 1:
                tile.expert.rows[1].append(tile)
                self.row_ready(tile, 2)
                self.end_first_kernel(tile.expert.part)
            else:
                self.finish_gemm2(tile)

    def end_first_kernel(self, part: int) -> None:
        """Opens a part's GEMM-2 behind a kernel boundary: its GEMM-1 is over here, what it dispatched is stored."""
        twin = self.twin
        is_over = self.slots_left[0][part] == 0 and self.part > part
        if twin.program.gates[1] == GATE_PHASE and is_over and not self.is_boundary_paid[part]:
            self.is_boundary_paid[part] = True
            twin.at(twin.now_ps + twin.program.pays_ps[2], EV_GATE, twin.open_gate, 2, part, [self])

    def finish_gemm2(self, tile: Tile) -> None:
        """Makes a tile's results known: to this GPU's combine group (push) or to the home GPUs (pull)."""
        twin = self.twin
        self.tiles_live -= 1
        remote = []
        for pair in tile.pairs:
            pair.experts_done += 1
            if not twin.program.pulls:
                if pair.experts_done == len(pair.experts):
                    self.partial_ready(pair)
            elif twin.program.notifies and pair.token.home != self.number:
                remote.append(pair)
            else:
                twin.gpus[pair.token.home].expert_done(pair.token)
        if remote:
            self.charge_updates(self.uplinks, remote, NOTIFY_FLITS)
            twin.at(twin.now_ps + 2 * twin.costs.hop_ps, EV_NOTIFY, self.notified, tile)
        part, gate, pay_ps = tile.expert.part, twin.program.gates[2], twin.program.pays_ps[3]
        if gate == GATE_PHASE and all(gpu.slots_left[1][part] == 0 for gpu in twin.gpus):
            twin.at(twin.now_ps + pay_ps, EV_GATE, twin.open_gate, 3, part, twin.gpus)
        if gate == GATE_GPU and self.slots_left[1][part] == 0:
            twin.at(twin.now_ps + pay_ps, EV_GATE, twin.open_gate, 3, part, [self])

    def charge_updates(self, links: Sequence[Link], pairs: list[Pair], flits: int) -> None:
        """Charges ``flits`` for each token's counter update, all those of a plane together."""
        for plane, link in enumerate(links):
            count = sum(self.twin.combine_planes[pair.token.number][0] == plane for pair in pairs)
            link.charge(count * flits, NOTIFY)

    def notified(self, tile: Tile) -> None:
        """Lets the home GPUs of a tile's tokens count its finished GEMM-2 row and acknowledge that."""
        ack_flits = self.twin.costs.packet.ack_flits
        remote = [pair for pair in tile.pairs if pair.token.home != self.number]
        for pair in remote:
            home, plane = self.twin.gpus[pair.token.home], self.twin.combine_planes[pair.token.number][0]
            home.downlinks[plane].charge(NOTIFY_FLITS, NOTIFY)
            home.uplinks[plane].charge(ack_flits, NOTIFY)
            home.expert_done(pair.token)
        self.charge_updates(self.downlinks, remote, ack_flits)
