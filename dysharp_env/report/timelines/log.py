"""The engine's log by what moved: for every row of a link or reduction unit the token, GPUs and bytes, as arrays."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import codes

# What a segment is, in the order of the engine's nodes; see simulator/state/records.py.
COPY, PARTIAL, STORE, SUM, WEIGHTS, WEIGHT_STORE = range(6)


class Log:
    """The log of an engine that kept one, with names for what moved; arrays are (row,) of all rows.

    Attributes:
        engine: Whose it is.
        rows: The rows, as ``LOG_ROW``.
    """

    def __init__(self, engine: Engine) -> None:
        """Takes the rows that are in use."""
        self.engine, self._state = engine, engine.state
        self.rows = engine.state.log[: int(engine.state.root["log_size"][0])]

    @cached_property
    def nodes(self) -> np.ndarray:
        """Its node where a row is of a link or reduction unit; 0 elsewhere."""
        return np.where(self.rows["resource"] <= codes.LOG_REDUCE, self.rows["item"], 0)

    @cached_property
    def what(self) -> np.ndarray:
        """``COPY`` to ``WEIGHT_STORE``, by node."""
        root = self._state.root[0]
        bases = [int(root[name]) for name in ("partial0", "store0", "sum0", "weights0", "weight_store0")]
        return np.searchsorted(bases, self.nodes, side="right")

    @cached_property
    def owner(self) -> np.ndarray:
        """Whose the node is: a pair, a store, a token or a copy of an expert."""
        return self._state.nodes["owner"][self.nodes].astype(np.int64)

    @cached_property
    def token(self) -> np.ndarray:
        """Whose vector moved; of weights NOTHING."""
        pairs, what = self._state.pairs, self.what
        found = np.full(len(self.rows), codes.NOTHING)
        of_pair = what <= PARTIAL
        found[of_pair] = pairs["token"][self.owner[of_pair]]
        found[what == STORE] = self.owner[what == STORE] // int(self._state.root["stores_per_token"][0])
        found[what == SUM] = self.owner[what == SUM]
        return found

    @cached_property
    def expert_gpu(self) -> np.ndarray:
        """Expert GPU of a copy or partial sum; NOTHING of what is of several."""
        found = np.full(len(self.rows), codes.NOTHING)
        of_pair = self.what <= PARTIAL
        found[of_pair] = self._state.pairs["gpu"][self.owner[of_pair]]
        return found

    @cached_property
    def expert(self) -> np.ndarray:
        """Of weights the expert that gets them, or of a store that gives them; NOTHING of vectors."""
        found, copies = np.full(len(self.rows), codes.NOTHING), self._state.copies
        for what, name in ((WEIGHTS, "expert"), (WEIGHT_STORE, "source")):
            mine = self.what == what
            found[mine] = copies[name][self.owner[mine]]
        return found

    @cached_property
    def place(self) -> np.ndarray:
        """Packet in its vector, 0 at token resolution; of weights the tile."""
        root, what = self._state.root[0], self.what
        bases = np.array([0, *(int(root[name]) for name in ("partial0", "store0", "sum0"))], np.int64)
        segments = np.array([int(root[stage]["segments"]) for stage in ("dispatch", "combine") * 2], np.int64)
        vector = np.minimum(what, SUM)
        of_vector = self.nodes - bases[vector] - self.owner * segments[vector]
        of_weights = (self.nodes - int(root["weights0"])) % max(int(root["num_weight_tiles"]), 1)
        return np.where(what >= WEIGHTS, of_weights, of_vector)

    @cached_property
    def plane(self) -> np.ndarray:
        """Plane that it takes; 0 at token resolution."""
        return self._state.nodes["plane"][self.nodes].astype(np.int64)

    @cached_property
    def wire_bytes(self) -> np.ndarray:
        """Bytes on the wire, headers included."""
        return self.rows["amount"] * self.engine.costs.packet.flit_bytes

    @cached_property
    def payload_bytes(self) -> np.ndarray:
        """Bytes of data among them, as far as they fill flits."""
        flits = self._state.nodes["payload_flits"][self.nodes].astype(np.int64)
        return flits * self.engine.costs.packet.flit_bytes
