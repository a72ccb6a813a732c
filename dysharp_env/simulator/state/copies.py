"""The part of a layer's initial state that copies of weights are: who moves which tiles to whom, and what waits for it.

With plain stores a copy gets its weights from the expert that its placement names, which may be a copy itself. Loads
and in-switch stores get them from the expert at the beginning of such a chain: neither needs relays.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.simulator.costs import Costs
from dysharp_env.simulator.phases import Load
from dysharp_env.simulator.state.codes import NOTHING, OPENS_GEMM1
from dysharp_env.simulator.state.parameters import fill
from dysharp_env.simulator.state.planes import plane_of
from dysharp_env.simulator.state.records import COPY
from dysharp_env.simulator.state.state import State
from dysharp_env.simulator.weights import WeightCosts
from dysharp_env.system.primitives import Primitive
from dysharp_env.workload.placement import Placement


def copies_of(placement: Placement, primitive: Primitive, team_gpus: int) -> np.ndarray:
    """Returns (copy,) COPY the copies of a placement, by where they come from, and of one in-switch store together.

    Args:
        placement: Of a layer.
        primitive: Moves weights.
        team_gpus: GPUs of a group, each of which is stored to by itself where that is by teams.
    """
    expert = np.flatnonzero(placement.is_copy)
    source = placement.copied_from[expert]
    if primitive.reads or primitive.in_switch:
        while placement.is_copy[source].any():
            source = np.where(placement.is_copy[source], placement.copied_from[source], source)
    gpu = placement.gpu_of_expert[expert]
    group = gpu // team_gpus if primitive.by_team else np.zeros_like(gpu)
    order = np.lexsort((expert, group, source))
    expert, source, gpu, group = expert[order], source[order], gpu[order], group[order]
    begins = np.ones(len(order), bool)  # a source's copies
    begins[1:] = source[1:] != source[:-1]
    stored = begins.copy()  # those of one store
    stored[1:] |= group[1:] != group[:-1]
    copies = np.zeros(len(order), COPY)
    copies["expert"], copies["gpu"] = expert, gpu
    copies["source"], copies["source_gpu"] = source, placement.gpu_of_expert[source]
    copies["is_first"] = begins
    if primitive.in_switch:
        copies["store"] = np.cumsum(stored) - 1
        copies["replicas"] = np.bincount(copies["store"])[copies["store"]]
        # What follows a source's first store is sent what was read for that.
        copies["is_first"] = begins[np.searchsorted(copies["store"], copies["store"])]
    first, end = (np.searchsorted(source, expert, side) for side in ("left", "right"))
    copies["child0"], copies["children"] = first, end - first
    return copies


def gradients_ps(costs: Costs, weights: WeightCosts, placement: Placement) -> int:
    """Returns what adding up the gradients of a placement's copies takes at the end: on the GPU with most to do.

    Every copy's leave it; where they come from the same number comes, or one of what one in-switch store reached.
    """
    if not any(weights.gradients):
        return 0
    copies = copies_of(placement, weights.primitive, costs.team_gpus)
    coming = copies
    if weights.primitive.in_switch:
        coming = copies[np.unique(copies["store"], return_index=True)[1]]
    leaving, added = (
        np.bincount(gpu, minlength=placement.num_gpus).tolist() for gpu in (copies["gpu"], coming["source_gpu"])
    )
    loads = (Load(copies=out, gradients=back) for out, back in zip(leaving, added, strict=True))
    return max(weights.gradients.ps(load, costs.hbm_ps) for load in loads)


# The lengths of arrays of a layer without copies.
NO_COPIES = {"copies": 0, "weight_tiles": 0, "weight_stores": 0}


class WeightMoves:
    """What is moved of the weights of one workload's copies, and the nodes that do it."""

    def __init__(self, placement: Placement, costs: Costs, weights: WeightCosts) -> None:
        """Finds out what is moved."""
        self._placement, self._costs, self._weights = placement, costs, weights
        self._copies = copies_of(placement, weights.primitive, costs.team_gpus)
        self._num_tiles = len(weights.tiles)
        # (store,) the first copy that each in-switch store reaches.
        self._firsts = np.zeros(0, np.int64)
        if weights.primitive.in_switch:
            self._firsts = np.flatnonzero(np.diff(self._copies["store"], prepend=-1))

    @property
    def num_nodes(self) -> int:
        """Tiles of all copies, and those that are stored to several."""
        return (len(self._copies) + len(self._firsts)) * self._num_tiles

    @property
    def sizes(self) -> dict[str, int]:
        """The lengths of arrays that are written whole here."""
        tiles = self._num_tiles
        return {"copies": len(self._copies), "weight_tiles": tiles, "weight_stores": len(self._firsts) * tiles}

    def write(self, state: State, first_node: int, first_address: int) -> None:
        """Writes all of it into a state that is otherwise complete.

        Args:
            state: Its nodes from ``first_node`` on are free, and hold anything.
            first_node: That.
            first_address: Of multimem and memory: what no vector has; see planes.py.
        """
        copies, weights = self._copies, self._weights
        state.copies[...] = copies
        tiles = state.weight_tiles
        for field in ("num_bytes", "gemm", "packets", "ask_flits"):
            tiles[field] = [getattr(tile, field) for tile in weights.tiles]
        sm, primitive = weights.sm, weights.primitive
        flow = {"slots": sm.slots, "vector_ps": sm.vector_ps, "reads": primitive.reads}
        fill(state.root["copying"], {**flow, "in_switch": primitive.in_switch})
        store0 = first_node + len(copies) * self._num_tiles
        fill(state.root, {"weights0": first_node, "weight_store0": store0, "num_weight_tiles": self._num_tiles})
        fill(state.root, {"copy_sms": weights.copy_sms, "weights_left": 2 * len(copies)})
        self._write_nodes(state.nodes[first_node:], first_address)
        self._write_matrices(state)
        self._write_movers(state, first_node, store0)

    def _write_nodes(self, nodes: np.ndarray, first_address: int) -> None:
        """Writes the nodes of copies and then those of stores, all of each."""
        copies, primitive = self._copies, self._weights.primitive
        owner = np.concatenate([np.arange(len(copies)), self._firsts])
        named = np.concatenate([np.ones(len(copies), np.int64), copies["replicas"][self._firsts]])
        # Whose memory is addressed: that which is read, or written, or of a multimem store that of the source's number.
        addressed = copies["source" if primitive.reads or primitive.in_switch else "expert"][owner].astype(np.int64)
        address = first_address + addressed[:, None] * self._num_tiles + np.arange(self._num_tiles)
        nodes["tail_ps"] = nodes["next"] = nodes["pieces"] = 0
        nodes["owner"] = np.repeat(owner, self._num_tiles)
        nodes["plane"] = plane_of(address, self._costs.planes).reshape(-1)
        packets, payload_flits = (
            np.array([getattr(tile, field) for tile in self._weights.tiles]) for field in ("packets", "payload_flits")
        )
        head_flits = np.array([self._weights.head_flits(count) for count in named.tolist()])
        nodes["payload_flits"] = np.tile(payload_flits, len(owner))
        nodes["flits"] = (head_flits[:, None] * packets + payload_flits).reshape(-1)

    def _write_matrices(self, state: State) -> None:
        """Writes what is to come of matrices, and the gates and GPUs that wait for it."""
        copies, matrices = self._copies, state.matrices.reshape(-1, 2)
        sources = copies["source"][~self._placement.is_copy[copies["source"]]]
        matrices["here_bytes"][sources] = self._costs.matrix_bytes
        of_gemm = np.bincount(state.weight_tiles["gemm"], minlength=2)
        matrices["tiles_left"][copies["expert"]] = of_gemm
        state.gpus["weights_left"] = 2 * np.bincount(copies["gpu"], minlength=len(state.gpus))
        stages = state.parts["stages"].reshape(len(state.gpus), -1, 3)
        for gpu in copies["gpu"].tolist():
            for gate in stages["gate"][gpu, :, OPENS_GEMM1].tolist():
                if gate != NOTHING:
                    state.gates["left"][gate] += 1
        stores, counts = state.weight_stores, copies["replicas"][self._firsts]
        stores["end_ps"] = stores["free_ps"] = 0
        stores["acks_left"] = stores["replicas_left"] = np.repeat(counts, self._num_tiles)

    def _write_movers(self, state: State, first_node: int, store0: int) -> None:
        """Lines up at each GPU what it issues, but for what comes to it first, tile by tile for all of a source."""
        copies, primitive, tiles = self._copies, self._weights.primitive, np.arange(self._num_tiles)
        queues: list[list[np.ndarray]] = [[] for _ in state.movers]
        if primitive.reads:
            for copy in np.argsort(copies["expert"], kind="stable"):
                queues[copies["gpu"][copy]].append(first_node + copy * self._num_tiles + tiles)
        else:
            unit = copies["store"] if primitive.in_switch else np.arange(len(copies))
            base = store0 if primitive.in_switch else first_node
            for source in np.unique(copies["source"]):
                mine = copies["source"] == source
                gpu = int(copies["source_gpu"][mine][0])
                nodes = base + np.unique(unit[mine]) * self._num_tiles + tiles[:, None]
                state.movers["left"][gpu] += nodes.size
                if not self._placement.is_copy[source]:
                    queues[gpu].append(nodes.reshape(-1))
        for gpu, queue in enumerate(queues):
            if queue:
                nodes = np.concatenate(queue)
                state.nodes["next"][nodes[:-1]] = nodes[1:]
                state.nodes["next"][nodes[-1]] = NOTHING
                state.movers["queue"][["head", "tail"]][gpu] = (nodes[0], nodes[-1])
                if primitive.reads:
                    state.movers["left"][gpu] = len(nodes)
