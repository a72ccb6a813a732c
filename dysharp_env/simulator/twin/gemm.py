"""GEMM on one of the twin's GPUs: arrivals, the tiles they fill, rows of thread blocks, and who learns of them."""

from __future__ import annotations

from collections.abc import Sequence

from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.codes import NO_TIME
from dysharp_env.simulator.twin.combine import CombineGroup
from dysharp_env.simulator.twin.links import Link
from dysharp_env.simulator.twin.parts import Expert, Pair, Row, Tile
from dysharp_env.simulator.twin.prefetch import PrefetchGroup
from dysharp_env.simulator.twin.staffing import Group, Site
from dysharp_env.simulator.twin.weights import Mover
from dysharp_env.simulator.twin.world import COMBINING, GEMM1, GEMM2


class GemmGroup(Group):
    """The GEMM group of one GPU and its experts, by number and part."""

    def __init__(
        self,
        site: Site,
        combines: list[CombineGroup],
        experts: dict[tuple[int, int], Expert],
        mover: Mover,
        prefetch: PrefetchGroup,
    ) -> None:
        super().__init__(site, observation.GEMM)
        self.combines, self.experts, self.mover, self.prefetch = combines, experts, mover, prefetch
        mover.on_matrix = self.matrix_comes
        self.held: dict[tuple[int, int], list[Tile]] = {}  # rows by expert and stage whose weights are to come
        self.slots = sum(expert.total for expert in experts.values())  # (token, expert)s
        for expert in experts.values():
            for left in self.progress.left.values():
                left[expert.part] += expert.total
        self._find_sources()
        self.tiles_live = 0
        self.row: Row | None = None  # whose blocks are being started
        self.busy_ps = 0  # of all SMs, in thread blocks so far

    def arrive(self, pair: Pair) -> None:
        """Makes a token visible to its experts here, filling their tiles."""
        pair.token.dispatch_end = self.clock.now_ps
        self.progress.left[GEMM1][pair.part] -= len(pair.experts)
        for number in pair.experts:
            self._fill(self.experts[number, pair.part], pair)
        if self.world.may_close_early:
            self.mark()
        self.progress.check(GEMM1, pair.part)
        if self.world.program.exclusive and not any(self.progress.left[GEMM1]):
            self.combines[self.gpu].mark()

    def _fill(self, expert: Expert, pair: Pair) -> None:
        """Adds a token to an expert's open tile."""
        if expert.open is None:
            expert.open = Tile(expert, len(expert.tiles))
            expert.tiles.append(expert.open)
            self.tiles_live += 1
        expert.open.pairs.append(pair)
        pair.tiles.append(expert.open)
        self.memory.write(expert.open.block("in"), self.costs.token_bytes[0])
        expert.arrived += 1
        if expert.arrived == 1 and not self.world.program.counted:
            self.prefetch.wake()
        if expert.open_count == self.world.workload.layer.tile_tokens or self._is_last(expert):
            self._close_tile(expert)

    def _is_last(self, expert: Expert) -> bool:
        """Returns whether nothing more comes for an expert, as far as this GPU knows."""
        return expert.arrived == expert.total and self.progress.sources_left[expert.part] == 0

    def _find_sources(self) -> None:
        """Notes who is to say that it has stored all it dispatches to the experts here."""
        program, gpus = self.world.program, range(self.world.num_gpus)
        for part in range(program.parts):
            told_by = [gpu for gpu in gpus if self.is_told_by(gpu, part)] if program.in_band else []
            self.progress.sources[part] = self.progress.sources_left[part] = len(told_by)

    def is_told_by(self, source: int, part: int) -> bool:
        """Returns whether a GPU says here that it is done with a part."""
        program, num_gpus = self.world.program, self.world.num_gpus
        of_peers = (self.gpu - source) % num_gpus * program.parts // num_gpus
        return bool(self.experts) and (program.parts_by != codes.BY_PEERS or of_peers == part)

    def hear_done(self, source: int, part: int) -> None:
        """Learns that all that a GPU dispatches of a part is stored; where parts are waves of experts, of all."""
        if source != self.gpu:
            self.downlinks[self.gpu % self.costs.planes].charge(codes.DONE_FLITS, codes.DISPATCH_DONE)
        parts_by = self.world.program.parts_by
        for each in range(part + 1) if parts_by == codes.BY_EXPERTS else [part]:
            self._count_source(each)

    def _count_source(self, part: int) -> None:
        """Counts a source that is done with a part; the last closes the tiles of experts that have all their tokens."""
        self.progress.sources_left[part] -= 1
        if self.progress.sources_left[part] > 0:
            return
        for expert in self.experts.values():
            if expert.part == part and expert.open and self._is_last(expert):
                self._close_tile(expert)
        self.wake()
        self.combines[self.gpu].wake()
        self.prefetch.wake()
        self.progress.end_first_kernel(part)
        self.progress.check(COMBINING, part)

    def _close_tile(self, expert: Expert) -> None:
        """Ends an expert's open tile; it is ready a memory latency later if its status entry has spilled."""
        now_ps, tile = self.clock.now_ps, expert.open
        assert tile is not None
        expert.open = None
        is_spilled = self.tiles_live > self.costs.tile_status_entries
        # Tiles of one expert become ready in the order in which they closed.
        expert.ready_ps = max(expert.ready_ps, now_ps + (self.costs.memory_ps if is_spilled else 0))
        if expert.ready_ps == now_ps:
            self._row_ready(tile, GEMM1)
        else:
            self.clock.at(expert.ready_ps, codes.EV_TILE, self._row_ready, tile, GEMM1)

    def _row_ready(self, tile: Tile, stage: int) -> None:
        """Makes a row ready, unless it was closed early and runs already, and notes when in the order of all rows.

        One whose weights are to come waits for them.
        """
        if not self.mover.is_here(tile.expert.number, stage):
            self.held.setdefault((tile.expert.number, stage), []).append(tile)
            return
        if tile.start_ps[stage - 1] == NO_TIME:
            tile.expert.rows[stage - 1].append(tile)
        self.world.rows_ready += 1
        tile.ready_order[stage - 1] = self.world.rows_ready
        tile.ready_ps[stage - 1] = self.clock.now_ps
        self.prefetch.wake()
        self.wake()

    def matrix_comes(self, expert: int, stage: int) -> None:
        """Makes rows ready that waited for a copy's matrix, in the order in which they did; tiles may be closed now."""
        for tile in self.held.pop((expert, stage), []):
            self._row_ready(tile, stage)
        self.prefetch.wake()
        self.wake()

    def act(self) -> list[Row]:
        """Keeps free SMs on thread blocks of the current row, then offers the ready rows."""
        while self.progress.has_begun and self.site.free_sms > 0:
            if self.prefetch.is_marked:
                # What may be fetched ahead comes first, as HBM serves in turn.
                self.mark()
                return []
            if self.row is None:
                return [] if self.holds else self._list_rows()
            self._start_blocks(self.row)
        return []

    def may_hold(self) -> bool:
        """Returns whether something is yet to arrive here, or to finish."""
        is_to_come = self.progress.more_comes or self.mover.matrices_left > 0
        return is_to_come or self.site.free_sms < self.site.gemm_sms

    def take(self, row: Row) -> None:
        """Makes a row the current one: it reads its weights and inputs now, and its results have their place."""
        tile, stage, count = row.tile, row.stage, len(row.tile.pairs)
        if row.is_open:
            self._close_tile(tile.expert)
        self.row = row
        if tile in tile.expert.rows[stage - 1]:
            tile.expert.rows[stage - 1].remove(tile)
        tile.start_ps[stage - 1] = self.clock.now_ps
        tile.blocks_left = self.costs.blocks[stage - 1]
        read_bytes, write_bytes = self.costs.token_bytes[:2] if stage == GEMM1 else self.costs.token_bytes[2:]
        tile.weights_ps = self.memory.fetch_weights(tile.expert.number, stage)
        source, target = ("in", "mid") if stage == GEMM1 else ("mid", "out")
        tile.inputs_ps = max(tile.weights_ps, self.memory.read(tile.block(source), count * read_bytes))
        self.memory.write(tile.block(target), count * write_bytes)
        self.prefetch.row_started(tile.expert.number, stage)

    def _list_rows(self) -> list[Row]:
        """Returns ready rows, one per expert and GEMM, first ready first; then tiles to close early, fullest first."""
        ready, early = [], []
        for expert in self.experts.values():
            for stage in (GEMM2, GEMM1):
                if self.progress.is_open[stage, expert.part] and expert.rows[stage - 1]:
                    ready.append(Row(expert.rows[stage - 1][0], stage))
            is_next = expert.open is not None and all(tile.start_ps[0] != NO_TIME for tile in expert.tiles[:-1])
            may_close = self.world.may_close_early and self.progress.is_open[GEMM1, expert.part]
            may_close = may_close and self.mover.is_here(expert.number, GEMM1)
            if may_close and is_next and expert.open_count >= self.site.split.early_tokens:
                early.append(Row(expert.tiles[-1], GEMM1, is_open=True))
        ready.sort(key=lambda row: row.tile.ready_order[row.stage - 1])
        early.sort(key=lambda row: -len(row.tile.pairs))
        return ready + early

    def _start_blocks(self, row: Row) -> None:
        """Puts thread blocks of a row on all free SMs; none ends before the row's inputs are there."""
        tile, stage, now_ps = row.tile, row.stage, self.clock.now_ps
        count = min(self.site.free_sms, tile.blocks_left)
        cold_ps = max(tile.weights_ps - now_ps, 0) // 1000 * self.costs.cold_exposure_permille
        block_ps = self.costs.block_ps(stage, len(tile.pairs), self.gpu)
        # The blocks share what those before them lost to communication, at most their own time again.
        lost_ps = min(self.site.debt_ps // count, block_ps)
        self.site.debt_ps -= lost_ps * count
        end_ps = max(now_ps + block_ps + lost_ps + cold_ps, tile.inputs_ps)
        self.site.free_sms -= count
        self.busy_ps += count * (end_ps - now_ps)
        tile.blocks_left -= count
        tile.blocks_running += count
        name = ("tile", tile.expert.number, tile.expert.part, tile.place)
        self.world.use(codes.LOG_SM, self.gpu, stage, name, count, end_ps)
        self.clock.at(end_ps, codes.EV_BLOCKS, self._blocks_end, tile, stage, count)
        if tile.blocks_left == 0:
            self.row = None

    def _blocks_end(self, tile: Tile, stage: int, count: int) -> None:
        """Frees the SMs of finished thread blocks; the last ones of a row finish it."""
        self.site.free_sms += count
        self.site.fill_crews()
        self.site.mover.offer()
        tile.blocks_running -= count
        self.wake()
        if tile.blocks_running == 0 and tile.blocks_left == 0:
            part = tile.expert.part
            tile.end_ps[stage - 1] = self.clock.now_ps
            self.progress.left[stage + 1][part] -= len(tile.pairs)
            if stage == GEMM1:
                self._row_ready(tile, GEMM2)
                self.progress.end_first_kernel(part)
            else:
                self._finish(tile)
                self.progress.check(COMBINING, part)

    def _finish(self, tile: Tile) -> None:
        """Makes a tile's results known: to this GPU's combine group (push) or to the home GPUs (pull)."""
        self.tiles_live -= 1
        told = []
        for pair in tile.pairs:
            pair.experts_done += 1
            if not self.world.combine.reads:
                if pair.experts_done == len(pair.experts):
                    self.combines[self.gpu].partial_ready(pair)
            elif self.world.notifies and pair.token.home != self.gpu:
                told.append(pair)
            else:
                self.combines[pair.token.home].expert_done(pair.token)
        if told:
            self._charge_updates(self.uplinks, told, codes.NOTIFY_FLITS)
            self.clock.at(self.clock.now_ps + 2 * self.costs.hop_ps, codes.EV_NOTIFY, self._notified, told)

    def _charge_updates(self, links: Sequence[Link], pairs: list[Pair], flits: int) -> None:
        """Charges ``flits`` for each token's counter update, all those of a plane together."""
        for plane, link in enumerate(links):
            link.charge(sum(pair.token.planes[observation.COMBINE][0] == plane for pair in pairs) * flits, codes.NOTIFY)

    def _notified(self, told: list[Pair]) -> None:
        """Lets the home GPUs of a tile's tokens count its finished GEMM-2 row and acknowledge that."""
        ack_flits = self.costs.packet.ack_flits
        for pair in told:
            home, plane = self.combines[pair.token.home], pair.token.planes[observation.COMBINE][0]
            home.downlinks[plane].charge(codes.NOTIFY_FLITS, codes.NOTIFY)
            home.uplinks[plane].charge(ack_flits, codes.NOTIFY)
            home.expert_done(pair.token)
        self._charge_updates(self.downlinks, told, ack_flits)
