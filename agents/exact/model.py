"""A tiny layer as a constraint program for OR-Tools' CP-SAT: the engine's timing rules on the stripped machine.

What is decided: the order in which each GPU dispatches its tokens, the order and start of every GEMM row, the order
and start of every partial sum on its uplink and, where weights take time to come, of every matrix that HBM reads. What
follows, as in the engine: a GPU's dispatches enter its uplink back to back when the kernel has started, sums go behind
them; the switch serves each downlink in the order in which heads arrive, cut through; tokens fill their experts' tiles
in the order of arrival; the GEMM-1 row of a tile, and then its GEMM-2 row, may run when it is full or its expert's
last; or, where tiles may be closed early, it runs with fewer tokens before the next one arrives. HBM reads one matrix
after the other from the launch on, each that rows use once: nothing leaves L2, as nothing has to. The tokens that a GPU
dispatches are read behind what it had begun to read by then. A row asks for its matrix when it starts, if nobody has,
and the first row of a matrix ends no sooner than all of that is there.

A row, sum or matrix may wait for any time after it is ready, where the engine's groups hold until something happens;
and a sum's head that arrives at the instant of another head may be served in either order. Both only add schedules. So
whatever the engine plays is a solution with the same times, and the optimum is a lower bound on all that can be played.
Matrices of experts without tokens are left out, which are read at most where counts are not known, and in vain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

from dysharp_env.config import ConfigError, how_to_install
from dysharp_env.simulator.state.codes import COMBINE_DATA, DISPATCH_DATA

from .tiny import TinyLayer

Variable = Any  # of CP-SAT, which is imported only where it is used


@dataclass(frozen=True)
class Segment:
    """A dispatched copy or a pushed sum at the switch, whose output is the downlink of ``target``."""

    purpose: int
    token: int
    gpu: int  # of the expert
    source: int
    target: int
    head: Variable  # when its head reaches the switch; may be an expression
    start: Variable  # when it enters the downlink
    free: Variable  # when it has left the switch
    serial_ps: int


def require_solver() -> Any:
    """Returns OR-Tools' module ``cp_model``.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        raise ConfigError(f"OR-Tools is not installed: {how_to_install('ortools', 'exact')}") from None
    return cp_model


class ExactModel:
    """The constraint program of one tiny layer.

    Attributes:
        cp: OR-Tools' module ``cp_model``.
        model: Its model, with all rules.
        makespan: When the last token is combined.
        places: By token, its place in the order of its home GPU's dispatches.
        sends, pushes, rows, fetches: When what ``Times`` calls so starts; rows of all tiles there might be.
        row_ends: When rows end.
        segments: By (purpose, token, GPU), what crosses the switch.
        used: By (expert, tile), whether the tile has tokens.
        in_tile: By (expert, token, tile), whether the tile has the token.
    """

    def __init__(self, tiny: TinyLayer, horizon_ps: int) -> None:
        """States all rules; no time is later than the horizon, which some schedule must reach."""
        self.cp = require_solver()
        self.model = self.cp.CpModel()
        self._tiny, self._costs, self._horizon_ps = tiny, tiny.costs, horizon_ps
        workload = tiny.workload
        self.tokens = range(workload.num_tokens)
        self.gpus = range(workload.num_gpus)
        ids, gpu_of_expert = workload.topk_ids.tolist(), workload.gpu_of_expert.tolist()
        # Experts of every (token, GPU), GPUs from the home GPU's neighbour on as copies are sent.
        self._pairs: dict[tuple[int, int], list[int]] = {}
        for token in self.tokens:
            for offset in self.gpus:
                gpu = (self.home(token) + offset) % workload.num_gpus
                experts = [expert for expert in sorted(ids[token]) if gpu_of_expert[expert] == gpu]
                if experts:
                    self._pairs[token, gpu] = experts
        self.gpu_of_expert = gpu_of_expert
        self._before: dict[tuple[Any, Any], Variable] = {}
        self.places: dict[int, Variable] = {}
        self.sends: dict[int, Variable] = {}
        self.pushes: dict[tuple[int, int], Variable] = {}
        self.segments: dict[tuple[int, int, int], Segment] = {}
        self.fetches: dict[tuple[int, int], Variable] = {}
        self.rows: dict[tuple[int, int, int], Variable] = {}
        self.row_ends: dict[tuple[int, int, int], Variable] = {}
        self._sizes: dict[tuple[int, int], Variable] = {}  # of (expert, tile), 0 for tiles that are not needed
        self._short: dict[tuple[int, int], Variable] = {}  # whether a tile is less than full
        self.used: dict[tuple[int, int], Variable] = {}  # whether a tile has tokens
        self.in_tile: dict[tuple[int, int, int], Variable] = {}  # by expert, token, tile
        self.makespan = self._time("makespan")
        self.model.add(self.makespan >= tiny.bound.total_ps)
        for gpu in self.gpus:
            self._dispatch(gpu)
        self._declare_pushes()
        for gpu in self.gpus:
            self._serve_downlink(gpu)
        self._fill_tiles()
        for gpu in self.gpus:
            self._serve_hbm(gpu)
        self._run_rows()
        self._combine()

    def home(self, token: int) -> int:
        """Returns a token's home GPU."""
        return int(self._tiny.workload.home_of_token[token])

    def _remote(self, token: int) -> list[int]:
        return [gpu for gpu in self.gpus if (token, gpu) in self._pairs and gpu != self.home(token)]

    def _time(self, name: str) -> Variable:
        return self.model.new_int_var(0, self._horizon_ps, name)

    def _order(self, first: Any, second: Any) -> Variable:
        """Returns whether ``first`` is before ``second``: one variable for both ways round."""
        if (first, second) not in self._before:
            variable = self.model.new_bool_var(f"{first} before {second}")
            self._before[first, second], self._before[second, first] = variable, variable.negated()
        return self._before[first, second]

    def _no_overlap(self, starts_and_ps: Iterable[tuple[Variable, int]]) -> None:
        self.model.add_no_overlap(
            [self.model.new_fixed_size_interval_var(start, ps, "") for start, ps in starts_and_ps]
        )

    # Dispatch.

    def _send_ps(self, token: int) -> int:
        """Returns how long a token's dispatch keeps its home GPU's uplink busy."""
        remote = self._remote(token)
        if self._tiny.instance.dispatch == "unicast":
            return len(remote) * self._costs.wire_ps(self._costs.dispatch_flits())
        targets = sum(len(self._pairs[token, gpu]) for gpu in remote)
        return self._costs.wire_ps(self._costs.dispatch_flits(targets)) if remote else 0

    def _dispatch(self, gpu: int) -> None:
        """Sends a GPU's tokens back to back, in an order that is free."""
        model, costs = self.model, self._costs
        own = [token for token in self.tokens if self.home(token) == gpu]
        places = {token: model.new_int_var(0, len(own) - 1, f"place of {token}") for token in own}
        model.add_all_different(places.values())
        self.places |= places
        for first, second in combinations(own, 2):
            is_first = self._order(("send", first), ("send", second))
            model.add(places[first] < places[second]).only_enforce_if(is_first)
            model.add(places[second] < places[first]).only_enforce_if(is_first.negated())
        for token in own:
            ahead = [other for other in own if other != token]
            behind_ps = sum(self._order(("send", other), ("send", token)) * self._send_ps(other) for other in ahead)
            if self._send_ps(token):
                self.sends[token] = self._time(f"send {token}")
                model.add(self.sends[token] == costs.launch_ps + behind_ps)
                self._declare_copies(token)

    def _declare_copies(self, token: int) -> None:
        """Has a token's copies reach the switch: one after the other, or all at once as replicas."""
        costs, home = self._costs, self.home(token)
        enters, up_ps = self.sends[token], self._send_ps(token)
        is_multicast = self._tiny.instance.dispatch == "multicast"
        for gpu in (gpu for sent, gpu in self._pairs if sent == token and gpu != home):
            flits = costs.dispatch_flits(len(self._pairs[token, gpu]) if is_multicast else 0)
            serial_ps = costs.wire_ps(flits)
            copy_ps = up_ps if is_multicast else serial_ps
            assert len(self._pairs[token, gpu]) <= costs.packet.targets_per_flit, "dispatches differ in length"
            self._declare(DISPATCH_DATA, token, gpu, home, gpu, enters, copy_ps, serial_ps)
            if not is_multicast:
                enters = enters + serial_ps

    def _declare(
        self, purpose: int, token: int, gpu: int, source: int, target: int, enters: Variable, up_ps: int, serial_ps: int
    ) -> None:
        """Adds a segment that enters its uplink at ``enters`` for ``up_ps``, and its way through the downlink."""
        start, free = self._time(f"start {purpose} {token} {gpu}"), self._time(f"free {purpose} {token} {gpu}")
        head = enters + self._costs.hop_ps
        self.model.add(start >= head)
        # One that cuts through cannot have left before its own tail has come.
        if up_ps > serial_ps:
            self.model.add_max_equality(free, [start + serial_ps, head + up_ps])
        else:
            self.model.add(free == start + serial_ps)
        self.segments[purpose, token, gpu] = Segment(purpose, token, gpu, source, target, head, start, free, serial_ps)

    def _declare_pushes(self) -> None:
        """Sends every remote partial sum home, behind its GPU's dispatches, in an order that is free."""
        costs = self._costs
        push_ps = costs.wire_ps(costs.combine_flits())
        for source in self.gpus:
            sent_ps = sum(self._send_ps(token) for token in self.tokens if self.home(token) == source)
            mine = [(token, gpu) for token, gpu in self._pairs if gpu == source and self.home(token) != gpu]
            for token, gpu in mine:
                self.pushes[token, gpu] = self._time(f"push {token} {gpu}")
                self.model.add(self.pushes[token, gpu] >= costs.launch_ps + sent_ps)
                enters = self.pushes[token, gpu]
                self._declare(COMBINE_DATA, token, gpu, gpu, self.home(token), enters, push_ps, push_ps)
            self._no_overlap((self.pushes[pair], push_ps) for pair in mine)
            for first, second in combinations(mine, 2):
                is_first = self._order(("push", *first), ("push", *second))
                self.model.add(self.pushes[first] + push_ps <= self.pushes[second]).only_enforce_if(is_first)
                self.model.add(self.pushes[second] + push_ps <= self.pushes[first]).only_enforce_if(is_first.negated())

    def _serve_downlink(self, gpu: int) -> None:
        """Serves what leaves the switch for a GPU in the order in which heads arrive."""
        here = [segment for segment in self.segments.values() if segment.target == gpu]
        for first, second in combinations(here, 2):
            is_first = self._precedes(first, second)
            for early, late, holds in ((first, second, is_first), (second, first, is_first.negated())):
                self.model.add(early.head + self._lead_ps(early, late) <= late.head).only_enforce_if(holds)
                self.model.add(early.free <= late.start).only_enforce_if(holds)
        self._no_overlap((segment.start, segment.serial_ps) for segment in here)

    def _lead_ps(self, early: Segment, late: Segment) -> int:
        """Returns by how much one head must come before another to be served first.

        Kernels start together and all dispatches are equally long, so those that arrive at one instant were sent in
        the order of the GPUs. Other heads that meet may be served in either order.
        """
        are_dispatches = early.purpose == late.purpose == DISPATCH_DATA
        return int(are_dispatches and early.source > late.source)

    def _precedes(self, first: Segment, second: Segment) -> Variable:
        """Returns whether one segment leaves the switch before another; those of one uplink keep their order."""
        if first.source != second.source:
            return self._order(_name(first), _name(second))
        if first.purpose != second.purpose:
            return self.model.new_constant(int(first.purpose == DISPATCH_DATA))
        if first.purpose == DISPATCH_DATA:
            return self._order(("send", first.token), ("send", second.token))
        return self._order(("push", first.token, first.gpu), ("push", second.token, second.gpu))

    # GEMMs.

    def _arrival(self, token: int, gpu: int) -> Variable:
        """Returns when a token is visible to its experts on a GPU."""
        costs = self._costs
        if self.home(token) == gpu:
            return costs.launch_ps + costs.memory_ps
        translated_ps = costs.memory_ps if self._tiny.instance.dispatch == "multicast" else 0
        return self.segments[DISPATCH_DATA, token, gpu].free + costs.hop_ps + translated_ps

    def _arrives_before(self, first: int, second: int, gpu: int) -> Variable:
        """Returns whether one token arrives before another; all of the GPU's own do before what crosses links."""
        costs = self._costs
        assert costs.memory_ps < 2 * costs.hop_ps + costs.wire_ps(costs.dispatch_flits()), "remote tokens come first"
        are_local = [self.home(token) == gpu for token in (first, second)]
        if all(are_local):
            return self._order(("send", first), ("send", second))
        if any(are_local):
            return self.model.new_constant(int(are_local[0]))
        return self._precedes(self.segments[DISPATCH_DATA, first, gpu], self.segments[DISPATCH_DATA, second, gpu])

    def _fill_tiles(self) -> None:
        """Puts the tokens of each expert into its tiles in the order in which they arrive."""
        for expert, gpu in enumerate(self.gpu_of_expert):
            here = [token for (token, at), experts in self._pairs.items() if at == gpu and expert in experts]
            self._declare_tiles(expert, len(here))
            for token in here:
                ahead = sum(self._arrives_before(other, token, gpu) for other in here if other != token)
                self._place_token(expert, token, ahead, self._arrival(token, gpu))

    def _declare_tiles(self, expert: int, count: int) -> None:
        """Adds as many tiles as there could be for so many tokens, and their rows."""
        model, full, is_early = self.model, self._tiny.workload.layer.tile_tokens, self._tiny.instance.is_early
        least = -(-count // full)
        sizes = [
            model.new_int_var(tile < least, full, f"size {expert} {tile}")
            for tile in range(count if is_early else least)
        ]
        model.add(sum(sizes) == count)
        if not is_early:
            for size in sizes[:-1]:
                model.add(size == full)
        for tile, size in enumerate(sizes):
            used = model.new_bool_var(f"used {expert} {tile}")
            self._sizes[expert, tile], self.used[expert, tile] = size, used
            model.add(size >= 1).only_enforce_if(used)
            model.add(size == 0).only_enforce_if(used.negated())
            self._short[expert, tile] = model.new_bool_var(f"short {expert} {tile}")
            model.add(size < full).only_enforce_if(self._short[expert, tile])
            model.add(size == full).only_enforce_if(self._short[expert, tile].negated())
            if tile > 0:
                model.add_implication(used, self.used[expert, tile - 1])
            for stage in (1, 2):
                self._declare_row(expert, tile, stage)

    def _declare_row(self, expert: int, tile: int, stage: int) -> None:
        """Adds a tile's row in one GEMM, a thread block whose time grows with the tile; the first awaits weights."""
        costs, row = self._costs, (expert, tile, stage)
        assert costs.blocks == (1, 1) and costs.row_granularity == 1, "rows are more than one block, or rounded up"
        self.rows[row], self.row_ends[row] = self._time(f"row {row}"), self._time(f"end of row {row}")
        fixed_ps = costs.block_overhead_ps * self.used[expert, tile]
        row_ps = fixed_ps + costs.granule_ps[stage - 1] * self._sizes[expert, tile]
        if tile == 0 and self._tiny.instance.is_fetching:
            fetch = self.fetches[expert, stage] = self._time(f"fetch {expert} {stage}")
            ends = [self.rows[row] + row_ps, fetch + self._fetch_ps(stage)]
            self.model.add_max_equality(self.row_ends[row], ends)
        else:
            self.model.add(self.row_ends[row] == self.rows[row] + row_ps)

    def _fetch_ps(self, stage: int) -> int:
        return self._costs.hbm_ps(self._costs.weight_bytes[stage - 1])

    def _serve_hbm(self, gpu: int) -> None:
        """Reads matrices one after the other, and a GPU's own tokens, which all ask at the launch, as one."""
        model, launch_ps = self.model, self._costs.launch_ps
        mine = {place: fetch for place, fetch in self.fetches.items() if self.gpu_of_expert[place[0]] == gpu}
        own = sum(self.home(token) == gpu for token in self.tokens)
        tokens_ps = own * self._costs.hbm_ps(self._costs.token_bytes[0])
        tokens = self._time(f"tokens {gpu}")
        model.add(tokens >= launch_ps)
        for place, fetch in mine.items():
            is_ahead = model.new_bool_var(f"fetch {place} before tokens")
            model.add(fetch == launch_ps).only_enforce_if(is_ahead)
            model.add(fetch >= tokens + tokens_ps).only_enforce_if(is_ahead.negated())
        self._no_overlap([(tokens, tokens_ps), *((fetch, self._fetch_ps(place[1])) for place, fetch in mine.items())])
        for first, second in permutations(mine, 2):
            is_first = self._order(("fetch", *first), ("fetch", *second))
            model.add(mine[first] + self._fetch_ps(first[1]) <= mine[second]).only_enforce_if(is_first)
            # A row asks for what it lacks when it starts, and what is asked for later is read later.
            expert, stage = second
            model.add(mine[first] <= self.rows[expert, 0, stage]).only_enforce_if(is_first)

    def _place_token(self, expert: int, token: int, ahead: Variable, arrival: Variable) -> None:
        """Puts a token, ``ahead`` of whose fellows arrive earlier, into one of its expert's tiles."""
        model = self.model
        tiles = [tile for number, tile in self._sizes if number == expert]
        inside = [model.new_bool_var(f"{token} in {expert} {tile}") for tile in tiles]
        model.add_exactly_one(inside)
        for tile, is_inside in enumerate(inside):
            self.in_tile[expert, token, tile] = is_inside
            before = sum(self._sizes[expert, other] for other in range(tile))
            model.add(ahead >= before).only_enforce_if(is_inside)
            model.add(ahead < before + self._sizes[expert, tile]).only_enforce_if(is_inside)
            model.add(self.rows[expert, tile, 1] >= arrival).only_enforce_if(is_inside)
            if tile > 0:
                # The tile before was full, or ran before this token came.
                is_short = self._short[expert, tile - 1]
                model.add(self.rows[expert, tile - 1, 1] < arrival).only_enforce_if(is_inside, is_short)

    def _run_rows(self) -> None:
        """Runs rows one at a time on each GPU, those of one expert and GEMM in the order of their tiles."""
        intervals: dict[int, list[Variable]] = {gpu: [] for gpu in self.gpus}
        for (expert, tile, stage), start in self.rows.items():
            used, end = self.used[expert, tile], self.row_ends[expert, tile, stage]
            row_ps = self._time(f"time of {(expert, tile, stage)}")
            interval = self.model.new_optional_interval_var(start, row_ps, end, used, "")
            intervals[self.gpu_of_expert[expert]].append(interval)
            if stage == 2:
                self.model.add(start >= self.row_ends[expert, tile, 1])
            if tile > 0:
                self.model.add(start >= self.row_ends[expert, tile - 1, stage]).only_enforce_if(used)
        for gpu, mine in intervals.items():
            self.model.add_no_overlap(mine)
            # That follows from the rest; the search is the faster for being told.
            here = [row for row in self.rows if self.gpu_of_expert[row[0]] == gpu]
            work_ps = sum(self.row_ends[row] - self.rows[row] for row in here)
            self.model.add(self.makespan >= self._costs.launch_ps + self._costs.memory_ps + work_ps)

    # Combine.

    def _combine(self) -> None:
        """Has partial sums ready when their last expert is done, and the layer over when the last sum is home."""
        for (token, gpu), experts in self._pairs.items():
            is_local = self.home(token) == gpu
            ready = self.makespan if is_local else self.pushes[token, gpu]
            for expert in experts:
                for tile in (tile for e, t, tile in self.in_tile if (e, t) == (expert, token)):
                    is_inside = self.in_tile[expert, token, tile]
                    self.model.add(ready >= self.row_ends[expert, tile, 2]).only_enforce_if(is_inside)
            if not is_local:
                home = self.segments[COMBINE_DATA, token, gpu].free + self._costs.hop_ps
                self.model.add(self.makespan >= home)


def _name(segment: Segment) -> tuple[str, int, int, int]:
    return "segment", segment.purpose, segment.token, segment.gpu
