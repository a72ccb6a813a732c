"""Flows: the way of a few tokens from their chunk over links, through the tiles of their experts, and home again.

A token has a flow for each of its experts: the chunk that it is dispatched with; uplink and downlink, unless the expert
is on its home GPU; both GEMMs of the tile that it is in; and uplink, reduction unit and downlink of the sum. Where a
vector is several packets, the flow goes through the last to arrive.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from dysharp_env.report.timelines.counters import sent_as
from dysharp_env.report.timelines.log import Log
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.simulator.state.state import State


@dataclass
class Flows:
    """Flows by what they go through: rows of the log, and stages of items as the schedule's table names them."""

    of_row: dict[int, tuple[int, ...]] = field(default_factory=dict)
    of_item: dict[tuple[str, str], tuple[int, ...]] = field(default_factory=dict)

    def append(self, flow: int, *, rows: list[int], items: list[tuple[str, str]]) -> None:
        """Leads a flow through rows and items."""
        for row in rows:
            self.of_row[row] = (*self.of_row.get(row, ()), flow)
        for item in items:
            self.of_item[item] = (*self.of_item.get(item, ()), flow)


def sampled(num_tokens: int, count: int) -> np.ndarray:
    """Returns so many tokens, (token,), spread evenly over all."""
    return np.unique(np.linspace(0, num_tokens - 1, min(count, num_tokens)).round().astype(int))


def flows_of(log: Log, tokens: np.ndarray) -> Flows:
    """Returns the flows of (token,) tokens, numbered from 1 in order of token and expert."""
    state, found = log.engine.state, Flows()
    if len(tokens) == 0:
        return found
    out, home = _Links(log, tokens, is_out=True), _Links(log, tokens, is_out=False)
    tiles = _tiles_of_pairs(log, tokens)
    flow = 0
    for token in tokens.tolist():
        first, last = state.tokens["pair0"][token : token + 2].tolist()
        for pair in range(first, last):
            for tile in tiles[pair]:
                flow += 1
                items = [("dispatch", f"chunk {_chunk(state, token)}")]
                items += [("gemm1", f"tile {tile}"), ("gemm2", f"tile {tile}")]
                found.append(flow, rows=[*out.of(pair), *home.of(pair)], items=items)
    return found


def _chunk(state: State, token: int) -> int:
    """Returns the chunk of a token as the schedule's table numbers it."""
    starts = np.flatnonzero(np.diff(state.tokens["chunk"][state.order], prepend=-1))
    place = int(np.flatnonzero(state.order == token)[0])
    return int(np.searchsorted(starts, place, side="right")) - 1


def _tiles_of_pairs(log: Log, tokens: np.ndarray) -> dict[int, list[int]]:
    """Returns the started tiles that each pair of the tokens is in."""
    state, found = log.engine.state, defaultdict(list)
    for tile in np.flatnonzero(state.tiles["rows"]["start_ps"][:, 0] >= 0).tolist():
        first, count = (int(state.tiles[name][tile]) for name in ("first", "count"))
        pairs = state.arrived_pair[first : first + count]
        for pair in pairs[np.isin(state.pairs["token"][pairs], tokens)].tolist():
            found[pair].append(tile)
    return found


class _Links:
    """The rows of links by which vectors of some tokens go out or come home, by pair."""

    def __init__(self, log: Log, tokens: np.ndarray, *, is_out: bool) -> None:
        state, rows = log.engine.state, log.rows
        root = state.root[0]
        mine = np.isin(log.token, tokens) & (rows["resource"] <= codes.LOG_REDUCE)
        first, end = (0, int(root["partial0"])) if is_out else (int(root["partial0"]), int(root["store0"]))
        of_pair = mine & (log.nodes >= first) & (log.nodes < end)
        self._up: dict[int, int] = {}
        for place in np.flatnonzero(mine & (rows["resource"] == codes.LOG_UP)).tolist():
            self._up[int(log.nodes[place])] = place
        # Of each pair the last that arrives, in the reduction unit where there is one.
        in_switch = log.engine.program.combine.in_switch and not is_out
        ends_in = codes.LOG_REDUCE if in_switch else codes.LOG_DOWN
        ending = np.flatnonzero(of_pair & (rows["resource"] == ends_in))
        ending = ending[np.argsort(rows["end_ps"][ending], kind="stable")]
        self._ending = dict(zip(log.owner[ending].tolist(), ending.tolist(), strict=True))
        sent = sent_as(log, ending) if is_out else log.nodes[ending]
        self._sent = dict(zip(ending.tolist(), sent.tolist(), strict=True))
        self._sums: dict[int, int] = {}
        if in_switch:
            is_sum = mine & (log.nodes >= int(root["sum0"])) & (log.nodes < int(root["weights0"]))
            for place in np.flatnonzero(is_sum & (rows["resource"] == codes.LOG_DOWN)).tolist():
                self._sums[int(log.token[place])] = place
        self._token = state.pairs["token"]

    def of(self, pair: int) -> Iterator[int]:
        """Yields the rows that a pair's vector went through, in order of time; none if it did not leave its GPU."""
        ending = self._ending.get(pair, NOTHING)
        if ending == NOTHING:
            return
        yield self._up[self._sent[ending]]
        yield ending
        if int(self._token[pair]) in self._sums:
            yield self._sums[int(self._token[pair])]
