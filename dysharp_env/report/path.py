"""The critical path of a layer: what the last token to come home waited for, and how long, from the start to the end.

The path is walked backwards. The last sum home waited for links, for its turn, and for the last of the rows that are in
it; that row for SMs, for memory, and for the last token of its tile; that token for links and for its turn. Where a
stage waits behind a gate that opened later than its own inputs came, the path goes on with what the gate waited for, on
whatever GPU that was. Where something waits for its turn, the path names what is busy and does not follow that.

Times are those that the engine keeps and logs. Each step begins where the one before it ends, so that all steps make up
the makespan to the picosecond; where several things ended at one moment, the path follows one of them.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.report import STAGE_NAMES
from dysharp_env.report.moves import Moves, Way
from dysharp_env.report.paid import Payer
from dysharp_env.report.steps import Step, joined
from dysharp_env.schedules import LayerRun
from dysharp_env.simulator.faults import LATE_GPU
from dysharp_env.simulator.state.codes import BY_EXPERTS, GEMM1, GEMM2, NOTHING, OPENS_COMBINE, OPENS_GEMM1, OPENS_GEMM2

START = "before the start"
_GEMMS = ("gemm1", "gemm2")


def critical_path(run: LayerRun) -> list[Step]:
    """Returns the steps of the critical path of a finished layer whose engine kept a log, the first first."""
    walk = _Walk(run)
    walk.pay("end", None, "after the last token")
    walk.through_stages()
    walk.pay("dispatch", None, START)
    return joined(walk.steps[::-1])


class _Walk:
    """A walk back from the end of a layer; ``cursor`` is how far it has come."""

    def __init__(self, run: LayerRun) -> None:
        self.engine, self.payer = run.engine, Payer.of(run)
        self.state, self.costs, self.program = run.engine.state, run.engine.costs, run.engine.program
        self.moves = Moves(run.engine)
        self.opened_ps = int(self.state.gates["pay_ps"][0])  # dispatch may begin
        self.cursor = run.engine.now_ps
        self.steps: list[Step] = []
        tiles = self.state.tiles
        self.begun = np.flatnonzero(tiles["rows"]["start_ps"][:, GEMM1] >= 0)
        self.tile_gpu = self.state.experts["gpu"][tiles["expert"]]
        self.tile_part = self.state.experts["part"][tiles["expert"]]
        # (place in arrived_pair,) the tile that it is in
        self.tile_at = np.full(len(self.state.arrived_pair), NOTHING)
        for tile in self.begun:
            first = tiles["first"][tile]
            self.tile_at[first : first + tiles["count"][tile]] = tile

    def back(self, since_ps: int, what: str, waited_for: str, stage: str, is_waiting: bool) -> None:
        """Moves the cursor back to a time and says what was going on since; what lies ahead of it is passed over."""
        since_ps = max(0, int(since_ps))
        if since_ps < self.cursor:
            self.steps.append(Step(what, waited_for, stage, is_waiting, since_ps, self.cursor))
            self.cursor = since_ps

    def starts_ps(self, gpu: int) -> int:
        """Returns when a GPU may dispatch: as the layer opens, or where it is late or waits for one that is, later."""
        waits = self.program.meets or gpu == LATE_GPU
        return self.opened_ps + self.costs.faults.late_ps * waits

    def start(self, gpu: int, what: str, waited_for: str, stage: str) -> None:
        """Goes back over what a GPU waited for since it started, and from there to when dispatch began elsewhere."""
        self.back(self.starts_ps(gpu), what, waited_for, stage, True)
        self.back(self.opened_ps, "late start", f"GPU {LATE_GPU}, whose kernels start late", "software", True)

    def pay(self, stage: str, gate: np.void | None, what: str) -> None:
        """Goes back over what is paid before a stage behind a gate, or before dispatch or at the end, item by item."""
        for item in reversed(self.payer.items(stage, gate)):
            self.back(self.cursor - item.took_ps, what, item.text, "software", False)

    def gate(self, stage: int, part: int, gpu: int) -> np.void | None:
        """Returns the gate that a stage of a part waits behind on a GPU, if it has one."""
        gates = self.state.gates[1:]
        mine = (gates["stage"] == stage) & (gates["part"] == part) & np.isin(gates["gpu"], (NOTHING, gpu))
        return gates[np.argmax(mine)] if mine.any() else None

    def last_behind(self, gate: np.void, part: int, times_ps: np.ndarray) -> int:
        """Returns the last of the tiles that a gate waits for, by times, (tile,)."""
        mine = self.begun[self.tile_part[self.begun] == part]
        if gate["gpu"] != NOTHING:
            mine = mine[self.tile_gpu[mine] == gate["gpu"]]
        return int(mine[np.argmax(times_ps[mine])])

    def through_stages(self) -> None:
        """Goes back from what came last, a token's result at home or a copy's weights, to when dispatch began."""
        home_ps, matrices_ps = self.state.tokens["combine_end"][:-1], self.state.matrices["end_ps"]
        if matrices_ps.max() > home_ps.max():
            self.come_over(int(np.argmax(matrices_ps)))
        elif len(self.begun) > 0:  # some token has an expert
            tile, pair = self.run_gemm2(self.come_home(int(np.argmax(home_ps))))
            if tile != NOTHING and pair == NOTHING:
                pair = self.run_gemm1(tile)
            if pair != NOTHING:
                self.dispatch(pair)

    # Weights.

    def come_over(self, block: int) -> int:
        """Goes back from when a copy's matrix, expert * 2 + GEMM, was there to when dispatch began; returns NOTHING."""
        copies, name = self.state.copies, STAGE_NAMES["weights"]
        expert, gemm = divmod(block, 2)
        while (copies["expert"] == expert).any():
            copy = copies[np.argmax(copies["expert"] == expert)]
            source, target, number = int(copy["source_gpu"]), int(copy["gpu"]), expert
            text = f"those of expert {number}, from GPU {source} to GPU {target}"
            self.back(self.state.matrices["start_ps"][2 * expert + gemm], name, text, "copying", False)
            expert = int(copy["source"])  # of which a relay waits for the first tile
        mover = target if self.state.root["copying"]["reads"][0] else source
        text = f"GPU {mover}, at weights before those of expert {number}"
        self.start(mover, f"waiting for {name}", text, "copying")
        return NOTHING

    # Combine.

    def come_home(self, token: int) -> int:
        """Goes back from a token's result at home to the end of GEMM-2 of a tile, which is returned."""
        home = int(self.state.tokens["home"][token])
        pair, local = self._last_sum(token, home)
        if local != NOTHING:
            return local
        self._cross_combine(token, pair, home)
        gpu = home if self.program.combine.reads else int(self.state.pairs["gpu"][pair])
        waited_for = f"combine SMs of GPU {gpu}, at other sums"
        if self.program.exclusive:
            waited_for = f"GPU {gpu}'s dispatch, or {waited_for}"
        return self._be_combined(token, pair, gpu, waited_for)

    def _last_sum(self, token: int, home: int) -> tuple[int, int]:
        """Returns the pair whose partial sum came home last, and NOTHING; or a tile at home that was later still."""
        if self.program.combine.reads:
            return self.moves.last_partial(token), NOTHING
        for pair in self.moves.pairs_of(token):
            if self.state.pairs["gpu"][pair] == home and not self.moves.crossed(pair):
                tile = self._last_tile([pair])
                if tile != NOTHING and self._end_ps(tile, GEMM2) == self.cursor:
                    return pair, tile
        return self.moves.last_partial(token), NOTHING

    def _cross_combine(self, token: int, pair: int, home: int) -> None:
        """Goes back from home to when the sum, or the partial sum of a pair, was taken by an SM."""
        if pair == NOTHING:
            return
        gpu = int(self.state.pairs["gpu"][pair])
        way = self.moves.way_home(token, pair)
        name = STAGE_NAMES["combine"]
        self.back(way.down_ps, name, f"on the wire to GPU {home}", "combine", False)
        if way.reduced_ps is not None:
            # A sum goes down as its last piece is added: what lies between is the downlink.
            self.back(way.reduced_ps, name, f"downlink of GPU {home}, at other sums", "combine", True)
            self.back(way.switch_ps, name, f"reduction unit of GPU {home}, at other sums", "combine", True)
        else:
            self.back(way.switch_ps, name, f"downlink of GPU {home}, at other sums", "combine", True)
        self.back(way.up_ps, name, f"on the wire from GPU {gpu} to the switch", "combine", False)
        self._take_off(way, "combine", gpu, home, "sums")

    def _take_off(self, way: Way, stage: str, gpu: int, reader: int, others: str) -> None:
        """Goes back from when a vector took the uplink of the GPU that has it to when an SM took it to work on."""
        name, reads = STAGE_NAMES[stage], getattr(self.program, stage).reads
        asked_ps = way.departs_ps + reads * (2 * self.costs.hop_ps + self.costs.memory_ps)
        self.back(asked_ps, name, f"uplink of GPU {gpu}, at other {others}", stage, True)
        self.back(way.departs_ps, name, f"asked for, and read by GPU {gpu}", stage, False)
        by = "thread blocks" if self.program.in_gemm else f"{name} SM"
        self.back(way.taken_ps, name, f"{by} of GPU {reader if reads else gpu}, at work on it", stage, False)

    def _be_combined(self, token: int, pair: int, gpu: int, waited_for: str) -> int:
        """Goes back from when a sum was taken to the end of the row, or the opening of the gate, that it waited for."""
        reads, hops_ps = self.program.combine.reads, 2 * self.costs.hop_ps
        ends_ps = self.state.tiles["rows"]["end_ps"][:, GEMM2]
        known_ps = ends_ps
        if reads:
            pairs = list(self.moves.pairs_of(token))
            part = int(self.state.units["part"][self.state.tokens["chunk"][token]])
            if self.program.notifies:
                known_ps = ends_ps + np.where(self.tile_gpu == gpu, 0, hops_ps)
        else:
            pairs, part = [pair], int(self.state.pairs["part"][pair])
        tiles = self._tiles_of(pairs)
        tile = int(tiles[np.argmax(known_ps[tiles])])
        what = "waiting to be combined"
        gate = self.gate(OPENS_COMBINE, part, gpu)
        if gate is not None:
            last = self.last_behind(gate, part, ends_ps)
            if ends_ps[last] + gate["pay_ps"] >= known_ps[tile]:
                self.back(ends_ps[last] + gate["pay_ps"], what, waited_for, "combine", True)
                self.pay("combine", gate, "before combine")
                return last
        self.back(known_ps[tile], what, waited_for, "combine", True)
        self.back(ends_ps[tile], "notification", f"GPU {gpu} learns that the row is done", "combine", False)
        return tile

    # GEMMs.

    def run_gemm2(self, tile: int) -> tuple[int, int]:
        """Goes back over a tile's GEMM-2 row to the end of a GEMM-1 row, or to the arrival of a GPU's last copy.

        Returns:
            The tile of the GEMM-1 row and NOTHING, or any tile and the pair that the copy was for; NOTHING twice if the
            row waited for weights.
        """
        self._run_blocks(tile, GEMM2)
        gpu, part = int(self.tile_gpu[tile]), int(self.tile_part[tile])
        ends_ps = self.state.tiles["rows"]["end_ps"][:, GEMM1]
        gate, block = self.gate(OPENS_GEMM2, part, gpu), self._block(tile, GEMM2)
        came_ps = int(self.state.matrices["end_ps"][block])
        if gate is not None:
            last = self.last_behind(gate, part, ends_ps)
            pair, stored_ps, known_ps = self.moves.last_sent(gpu, part)
            opens_ps = max(int(ends_ps[last]), known_ps) + int(gate["pay_ps"])
            if came_ps <= opens_ps:
                self._wait_for_sms(tile, GEMM2, opens_ps)
                self.pay("gemm2", gate, "before GEMM-2")
                if known_ps <= ends_ps[last]:
                    return last, NOTHING
                self.back(stored_ps, "end of dispatch", f"GPU {gpu} learns that all is stored", "dispatch", False)
                return tile, pair
        elif came_ps <= ends_ps[tile]:
            self._wait_for_sms(tile, GEMM2, int(ends_ps[tile]))
            return tile, NOTHING
        self._wait_for_sms(tile, GEMM2, came_ps)
        return self.come_over(block), NOTHING

    def run_gemm1(self, tile: int) -> int:
        """Goes back over a tile's GEMM-1 row to the arrival of a tile's last token, or of the last of those before it.

        Returns:
            The pair that this is of, or NOTHING where the row waited for shared experts or weights instead.
        """
        self._run_blocks(tile, GEMM1)
        gpu, part = int(self.tile_gpu[tile]), int(self.tile_part[tile])
        ready_ps = self.state.tiles["rows"]["ready_ps"][:, GEMM1]
        gate = self.gate(OPENS_GEMM1, part, gpu)
        if gate is not None:
            last = self.last_behind(gate, part, ready_ps)
            shared_ps, block = int(gate["not_before_ps"]), self._last_block(int(gate["gpu"]))
            came_ps = int(self.state.matrices["end_ps"][block])
            opens_ps = max(int(ready_ps[last]), shared_ps, came_ps)
            self._wait_for_sms(tile, GEMM1, opens_ps + int(gate["pay_ps"]))
            self.pay("gemm1", gate, "before GEMM-1")
            if came_ps > max(ready_ps[last], shared_ps):
                return self.come_over(block)
            if shared_ps > ready_ps[last]:
                if self.program.hides_shared:
                    self.back(self.starts_ps(gpu), "shared experts", "SMs beside those that dispatch", "gemm1", False)
                self.start(LATE_GPU, "waiting to begin", "all GPUs", "software")
                return NOTHING
            tile = last
        else:
            self._wait_for_sms(tile, GEMM1, int(ready_ps[tile]))
        if self.state.matrices["end_ps"][self._block(tile, GEMM1)] == ready_ps[tile]:
            return self.come_over(self._block(tile, GEMM1))
        return self._fill(tile)

    def _fill(self, tile: int) -> int:
        """Goes back from when a tile closed to the arrival of the copy that it waited for, and returns its pair."""
        row = self.state.tiles[tile]
        pair = int(self.state.arrived_pair[row["first"] + row["count"] - 1])
        expert = self.state.experts[row["expert"]]
        is_full = row["count"] == self.engine.workload.layer.tile_tokens
        is_early = not is_full and row["first"] + row["count"] < expert["slot0"] + expert["total"]
        arrived_ps = self.moves.arrived_ps(pair, self.cursor)
        if self.program.in_band and not (is_full or is_early):
            last, stored_ps, known_ps, told_ps = self._last_source(int(expert["gpu"]), int(expert["part"]))
            is_early = told_ps > self.cursor
            if arrived_ps < told_ps <= self.cursor:
                text = f"GPU {int(expert['gpu'])}, till all GPUs have said that they are done"
                self.back(told_ps, "waiting for its tile to close", text, "gemm1", True)
                source = int(self.state.pairs["home"][last])
                text = f"GPU {int(expert['gpu'])} learns that GPU {source} is done"
                self.back(known_ps, "end of dispatch", text, "dispatch", False)
                text = f"GPU {source} learns that all is stored"
                self.back(stored_ps, "end of dispatch", text, "dispatch", False)
                return last
        if is_early:
            text = f"more tokens for expert {int(expert['number'])}, till its tile is closed early"
            self.back(arrived_ps, "waiting for its tile to fill", text, "gemm1", True)
        self.back(arrived_ps, STAGE_NAMES["dispatch"], f"tables of GPU {int(expert['gpu'])}", "dispatch", False)
        return pair

    def _last_source(self, gpu: int, part: int) -> tuple[int, int, int, int]:
        """Returns what a GPU heard of last in a part: a copy's pair, when it came, was known to have, and was heard of.

        Of GPUs that have sent nothing nothing is known, and they were done before.
        """
        if self.program.parts_by == BY_EXPERTS:
            part = self.program.parts - 1
        found = []
        for source in range(self.engine.workload.num_gpus):
            pair, stored_ps, known_ps = self.moves.last_sent(source, part)
            found.append((known_ps + 2 * self.costs.hop_ps * (source != gpu), pair, stored_ps, known_ps))
        told_ps, pair, stored_ps, known_ps = max(found)
        return pair, stored_ps, known_ps, told_ps

    def _block(self, tile: int, gemm: int) -> int:
        """Returns the matrix that a tile's row uses: expert * 2 + GEMM."""
        return 2 * int(self.state.experts["number"][self.state.tiles["expert"][tile]]) + gemm

    def _last_block(self, gpu: int) -> int:
        """Returns the matrix that came last of all copies on a GPU, NOTHING for any; any other if there are none."""
        copies = self.state.copies
        experts = copies["expert"][(copies["gpu"] == gpu) | (gpu == NOTHING)]
        blocks = np.concatenate([2 * experts, 2 * experts + 1, [0]])
        return int(blocks[np.argmax(self.state.matrices["end_ps"][blocks])])

    def _wait_for_sms(self, tile: int, gemm: int, since_ps: int) -> None:
        gpu = int(self.tile_gpu[tile])
        text = f"GEMM SMs of GPU {gpu}, at other rows"
        if since_ps < self.cursor:
            hbm, communication = self.moves.lost_shares(gpu, since_ps, self.cursor)
            text += f" ({hbm:.0%} of that for HBM)"
            if self.program.in_gemm:
                text = f"SMs of GPU {gpu}, at other rows ({hbm:.0%} HBM, {communication:.0%} communication)"
        self.back(since_ps, f"waiting for its {STAGE_NAMES[_GEMMS[gemm]]} row", text, _GEMMS[gemm], True)

    def _run_blocks(self, tile: int, gemm: int) -> None:
        """Goes back over the thread blocks of a row, one after the other, to its start."""
        gpu, row = int(self.tile_gpu[tile]), self.state.tiles[tile]
        name, stage = STAGE_NAMES[_GEMMS[gemm]], _GEMMS[gemm]
        number, count = int(self.state.experts["number"][row["expert"]]), int(row["count"])
        tokens = "1 token" if count == 1 else f"{count} tokens"
        blocks, lost = self.moves.blocks
        is_mine = (blocks["item"] == tile) & (blocks["purpose"] == gemm + 1)
        mine, hbm_ps, communication_ps = blocks[is_mine], lost.hbm_ps[is_mine], lost.communication_ps[is_mine]
        start_ps = int(row["rows"][gemm]["start_ps"])
        while self.cursor > start_ps:
            ending = np.flatnonzero(mine["end_ps"] == self.cursor)
            if len(ending) == 0:
                self.back(start_ps, name, f"SMs of GPU {gpu}, at earlier rows", stage, True)
                break
            block = ending[np.argmin(mine["start_ps"][ending])]
            begun_ps = int(mine["start_ps"][block])
            fed_ps = begun_ps + int(hbm_ps[block])
            text = f"thread blocks of expert {number}, {tokens}"
            self.back(fed_ps + int(communication_ps[block]), name, text, stage, False)
            self.back(fed_ps, name, f"thread blocks of GPU {gpu}, at communication", "communication", True)
            self.back(begun_ps, name, f"weights and tokens from HBM of GPU {gpu}", "memory", True)

    def _tiles_of(self, pairs: list[int]) -> np.ndarray:
        """Returns the tiles that pairs' tokens are in."""
        return self.tile_at[np.flatnonzero(np.isin(self.state.arrived_pair, pairs))]

    def _last_tile(self, pairs: list[int]) -> int:
        tiles = self._tiles_of(pairs)
        return int(max(tiles, key=lambda tile: self._end_ps(tile, GEMM2), default=NOTHING))

    def _end_ps(self, tile: int, gemm: int) -> int:
        return int(self.state.tiles["rows"]["end_ps"][tile, gemm])

    # Dispatch.

    def dispatch(self, pair: int) -> None:
        """Goes back from a token's arrival at an expert GPU to when dispatch began."""
        home, gpu = int(self.state.pairs["home"][pair]), int(self.state.pairs["gpu"][pair])
        token = int(self.state.pairs["token"][pair])
        name, way = STAGE_NAMES["dispatch"], self.moves.way_out(pair)
        if way is None:
            self.back(self.cursor - self.costs.memory_ps, name, f"from memory of GPU {gpu}", "dispatch", False)
        elif way.taken_ps < self.cursor:
            self.back(way.down_ps, name, f"on the wire to GPU {gpu}", "dispatch", False)
            self.back(way.switch_ps, name, f"downlink of GPU {gpu}, at other tokens", "dispatch", True)
            self.back(way.up_ps, name, f"on the wire from GPU {home} to the switch", "dispatch", False)
            self._take_off(way, "dispatch", home, gpu, "tokens")
        by = gpu if self.program.dispatch.reads else home
        text = f"dispatch SMs of GPU {by}, at tokens before token {token}"
        self.start(by, "waiting to be dispatched", text, "dispatch")
