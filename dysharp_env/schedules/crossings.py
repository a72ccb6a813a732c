"""What must cross the links of every GPU under one program, added up from the state of a layer that has not begun.

All that somebody waits for, and nothing else: a static store to GPUs that none of its experts is on may still be under
way when the layer ends. So may acknowledgements and requests on their way down; what else is no data is counted where
data of the same token must follow it on the same link.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.faults import SOUND
from dysharp_env.simulator.state.codes import NOTIFY_FLITS
from dysharp_env.simulator.state.state import State


class Crossing(NamedTuple):
    """Picoseconds that vectors of one direction keep links busy, (part, link): up, down and in reduction units."""

    up: np.ndarray
    down: np.ndarray
    reduced: np.ndarray

    def busiest_ps(self, part: int) -> int:
        """Returns what the busiest of all is busy for with one part."""
        return int(max(each[part].max() for each in self))

    def all_ps(self) -> np.ndarray:
        """Returns what each uplink, downlink and reduction unit is busy for, (3, link)."""
        return np.array([each.sum(axis=0) for each in self])


class Crossings(NamedTuple):
    """Vectors that dispatch and combine move, weights, the control flits around them, and how many each GPU takes.

    Attributes:
        dispatch: Dispatched vectors that somebody waits for.
        combine: Partial and reduced sums.
        weights: Weights of copies, without which no layer is over, all as of one part.
        control: What else is before the last data on each link: requests, acknowledgements, notifications.
        dispatched: (gpu,) vectors that its dispatch SMs take and somebody waits for.
        summed: (gpu,) vectors that its combine SMs take.
    """

    dispatch: Crossing
    combine: Crossing
    weights: Crossing
    control: Crossing
    dispatched: np.ndarray
    summed: np.ndarray


class Layer:
    """The arrays of a state that has not begun which say what has to move."""

    def __init__(self, state: State, costs: Costs) -> None:
        """Takes a fresh state."""
        self.root, self.costs, pairs = state.root[0], costs, state.pairs
        self.num_gpus, self.planes = int(self.root["num_gpus"]), int(self.root["planes"])
        self.num_parts = int(self.root["num_parts"])
        self.state = state
        self.permille = state.uplinks["permille"]
        self.is_slow = bool((self.permille != SOUND).any())
        self.gpu, self.home, self.part = (pairs[name].astype(np.int64) for name in ("gpu", "home", "part"))
        self.token, self.named = pairs["token"].astype(np.int64), pairs["num_experts"].astype(np.int64)
        self.crosses = (self.gpu != self.home) | bool(self.root["loopback"])
        is_used = self.named > 0
        self.is_copied = self.crosses & is_used
        # Nobody sums up a token without experts.
        self.experts_of_token = state.tokens["num_experts"][:-1].astype(np.int64)
        is_served = self.experts_of_token[self.token] > 0
        self.is_summed = self.crosses & (is_used | (is_served & bool(self.root["combine"]["to_all"])))

    def crossings(self) -> Crossings:
        """Returns all that must cross."""
        control = self._nothing()
        dispatch, dispatched = self._dispatch(control)
        combine, summed = self._combine(control)
        weights = self._weights(control)
        if self.planes == 1:
            # Behind them is data of the same token, on the same link where there is one.
            self._add_updates(control)
        return Crossings(dispatch, combine, weights, control, dispatched, summed)

    def _nothing(self) -> Crossing:
        shape = (self.num_parts, self.num_gpus * self.planes)
        return Crossing(*(np.zeros(shape, np.int64) for _ in range(3)))

    def _add(self, table: np.ndarray, part: np.ndarray, gpu: np.ndarray, nodes: np.ndarray, ps: np.ndarray) -> None:
        """Adds times on sound links to links of GPUs, on the planes of nodes, which may be slow."""
        link = gpu * self.planes + self.state.nodes["plane"][nodes]
        if self.is_slow:
            quantum_ps = self.costs.quantum_ps
            ps = ps * self.permille[link] // SOUND // quantum_ps * quantum_ps
        self._add_to(table, part, link, ps)

    @staticmethod
    def _add_to(table: np.ndarray, part: np.ndarray, link: np.ndarray, ps: np.ndarray) -> None:
        counts = np.bincount(part * table.shape[1] + link, weights=ps, minlength=table.size)
        table += counts.astype(np.int64).reshape(table.shape)

    def _nodes(self, base: str, owners: np.ndarray, segments: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the segments of vectors, and for each the place of its vector in ``owners``."""
        first = (int(self.root[base]) if base else 0) + owners * segments
        nodes = (first[:, None] + np.arange(segments)).ravel()
        return nodes, np.repeat(np.arange(len(owners)), segments)

    def _wire_ps(self, nodes: np.ndarray) -> np.ndarray:
        return self.costs.wire_ps(self.state.nodes["flits"][nodes].astype(np.int64))

    def _dispatch(self, control: Crossing) -> tuple[Crossing, np.ndarray]:
        moved, root, flow = self._nothing(), self.root, self.root["dispatch"]
        segments = int(flow["segments"])
        pairs = np.flatnonzero(self.is_copied)
        nodes, of = self._nodes("", pairs, segments)
        pair = pairs[of]
        ps = self._wire_ps(nodes)
        self._add(moved.down, self.part[pair], self.gpu[pair], nodes, ps)
        if flow["in_switch"]:
            groups = int(root["stores_per_token"])
            of_pair = self.token * groups
            if groups > 1:
                of_pair += self.gpu // int(root["team_gpus"])
            stores, first = np.unique(of_pair[pairs], return_index=True)
            nodes, of = self._nodes("store0", stores, segments)
            home, part = self.home[pairs[first]], self.part[pairs[first]]
            self._add(moved.up, part[of], home[of], nodes, self._wire_ps(nodes))
            return moved, np.bincount(home, minlength=self.num_gpus)
        self._add(moved.up, self.part[pair], self.home[pair], nodes, ps)
        if not flow["reads"]:
            return moved, np.bincount(self.home[pairs], minlength=self.num_gpus)
        ask_ps = np.full(len(nodes), self.costs.wire_ps(int(root["dispatch_ask_flits"])))
        self._add(control.up, self.part[pair], self.gpu[pair], nodes, ask_ps)
        return moved, np.bincount(self.gpu[pairs], minlength=self.num_gpus)

    def _combine(self, control: Crossing) -> tuple[Crossing, np.ndarray]:
        moved, flow, state = self._nothing(), self.root["combine"], self.state
        segments = int(flow["segments"])
        pairs = np.flatnonzero(self.is_summed)
        nodes, of = self._nodes("partial0", pairs, segments)
        pair = pairs[of]
        ps = self._wire_ps(nodes)
        self._add(moved.up, self.part[pair], self.gpu[pair], nodes, ps)
        names = bool(flow["names_targets"])
        ask_ps = self.costs.wire_ps(state.ask_flits)
        if not flow["in_switch"]:
            self._add(moved.down, self.part[pair], self.home[pair], nodes, ps)
            if flow["reads"]:
                self._add(control.up, self.part[pair], self.home[pair], nodes, np.full(len(nodes), ask_ps[0]))
            taken = self.home if flow["reads"] else self.gpu
            return moved, np.bincount(taken[pairs], minlength=self.num_gpus)
        unit = self.home[pair] * self.planes + self.state.nodes["plane"][nodes]
        self._add_to(moved.reduced, self.part[pair], unit, ps * 10**6 // self.costs.reduction_ppm)
        tokens, first = np.unique(self.token[pairs], return_index=True)
        nodes, of = self._nodes("sum0", tokens, segments)
        home, part = self.home[pairs[first]], self.part[pairs[first]]
        self._add(moved.down, part[of], home[of], nodes, self._wire_ps(nodes))
        if not flow["reads"]:
            return moved, np.bincount(self.gpu[pairs], minlength=self.num_gpus)
        targets = state.tokens["remote_targets"][tokens].astype(np.int64) if names else np.zeros_like(tokens)
        self._add(control.up, part[of], home[of], nodes, ask_ps[targets][of])
        return moved, np.bincount(home, minlength=self.num_gpus)

    def _weights(self, control: Crossing) -> Crossing:
        moved, flow, state = self._nothing(), self.root["copying"], self.state
        tiles, copies = len(state.weight_tiles), state.copies
        nodes, of = self._nodes("weights0", np.arange(len(copies)), tiles)
        gpu, source = (copies[name].astype(np.int64)[of] for name in ("gpu", "source_gpu"))
        part, ps = np.zeros_like(of), self._wire_ps(nodes)
        self._add(moved.down, part, gpu, nodes, ps)
        if not flow["in_switch"]:
            self._add(moved.up, part, source, nodes, ps)
            if flow["reads"]:
                ask_ps = self.costs.wire_ps(state.weight_tiles["ask_flits"].astype(np.int64))
                self._add(control.up, part, gpu, nodes, np.tile(ask_ps, len(copies)))
            return moved
        stores, first = np.unique(copies["store"], return_index=True)
        nodes, of = self._nodes("weight_store0", stores.astype(np.int64), tiles)
        source = copies["source_gpu"].astype(np.int64)[first]
        self._add(moved.up, np.zeros_like(of), source[of], nodes, self._wire_ps(nodes))
        return moved

    def matrices_ps(self) -> np.ndarray:
        """Returns what each copy's matrices keep its downlinks busy, (copy, GEMM, plane)."""
        copies, tiles = np.arange(len(self.state.copies)), len(self.state.weight_tiles)
        table = np.zeros((len(copies), 2, self.planes), np.int64)
        nodes, of = self._nodes("weights0", copies, tiles)
        gemm = np.tile(self.state.weight_tiles["gemm"], len(copies))
        np.add.at(table, (of, gemm, self.state.nodes["plane"][nodes]), self._wire_ps(nodes))
        return table

    def _add_updates(self, control: Crossing) -> None:
        """Adds acknowledgements of tokens that come, and counter updates of rows that are done."""
        pairs = np.flatnonzero((self.gpu != self.home) & (self.named > 0))
        part, gpu, home = self.part[pairs], self.gpu[pairs], self.home[pairs]
        nodes = np.zeros_like(pairs)
        flow = self.root["dispatch"]
        if not flow["reads"]:
            flits = int(flow["segments"] * flow["segment_packets"] * self.root["ack_flits"])
            self._add(control.up, part, gpu, nodes, np.full(len(pairs), self.costs.wire_ps(flits)))
        if self.root["notifies"]:
            ps = self.costs.wire_ps(NOTIFY_FLITS) * self.named[pairs]
            self._add(control.up, part, gpu, nodes, ps)
            self._add(control.down, part, home, nodes, ps)
