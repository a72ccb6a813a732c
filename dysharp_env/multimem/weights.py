"""Experts' weights on the functional machine: where they lie, and how they come to copies while the layer runs.

Every physical expert has a place for its two matrices in plain memory of its GPU, which holds them before the layer
unless the expert is a copy. A matrix moves as a whole here, at the end that the schedule gives it: by plain loads or
stores between these places; through a fixed team of just the GPUs that it goes to; or by dynamic multimem that names
the copies, to which each block of a matrix is what a token is to experts. A store in the switch reaches all its copies
when the first of them is to have it; none of them may use it before its own time. Weights have a machine of their own,
since a machine has one dynamic region at a time.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.multimem.dense import MoeTensors
from dysharp_env.multimem.fabric import FLOAT_BYTES
from dysharp_env.multimem.faults import ScheduleFault
from dysharp_env.multimem.links import plain_address
from dysharp_env.multimem.packets import Stage
from dysharp_env.multimem.runtime import Runtime
from dysharp_env.multimem.team import Team
from dysharp_env.system.primitives import DISPATCH_PRIMITIVES
from dysharp_env.workload import Workload
from dysharp_env.workload.placement import NOWHERE

BLOCK_VALUES = 32  # float32 values of a block of the dynamic region: 128 B


class Weights:
    """The weights of one layer with copies.

    Attributes:
        runtime: The machine that they move through.
    """

    def __init__(self, workload: Workload, tensors: MoeTensors, copying: str, team_gpus: int) -> None:
        """Puts weights where they are before the layer.

        Args:
            workload: The layer.
            tensors: Its numbers.
            copying: Primitive that moves weights, by name.
            team_gpus: That of a ``Schedule``.

        Raises:
            ConfigError: No primitive is named, or one that addresses all GPUs.
        """
        if copying not in DISPATCH_PRIMITIVES or DISPATCH_PRIMITIVES[copying].to_all:
            raise ConfigError(f"copying='{copying}' cannot move the weights of {workload.placement.num_copies} copies")
        self._primitive, self._team_gpus = DISPATCH_PRIMITIVES[copying], team_gpus
        self._placement, self._tensors = workload.placement, tensors
        self._gpu_of = self._placement.gpu_of_expert.tolist()
        shapes = ((len(self._first_matrices()), *tensors.up.shape[1:]), tensors.down.shape[1:])
        self._shapes = shapes
        self._bytes = tuple(int(np.prod(shape)) * FLOAT_BYTES for shape in shapes)
        held = int(self._placement.held.max())
        size = held * sum(self._bytes)
        self.runtime = Runtime(self._placement.gpu_of_expert, workload.num_gpus, plain_bytes=size)
        places = [self._gpu_of[:expert].count(gpu) for expert, gpu in enumerate(self._gpu_of)]
        self._offsets = [place * sum(self._bytes) for place in places]
        self._here = np.repeat(~self._placement.is_copy[:, None], 2, axis=1)  # (physical, GEMM)
        for expert, logical in enumerate(self._placement.logical_of_expert.tolist()):
            matrices = np.stack([matrix[logical] for matrix in self._first_matrices()]), tensors.down[logical]
            for gemm in (0, 1):
                # Nothing may be computed with what has not come.
                self._values(expert, gemm)[:] = matrices[gemm].ravel() if self._here[expert, gemm] else np.nan
        self._stored: dict[tuple[int, int, int], Team | None] = {}  # (source, group, GEMM): what a store went through
        if self._primitive.names_targets:
            self._bind()

    def copy(self, expert: int, gemm: int) -> None:
        """Brings a matrix, 0 for GEMM-1's or 1 for GEMM-2's, to a copy.

        Raises:
            ScheduleFault: It is not yet where it would come from.
        """
        source, gpu = self._source(expert), self._gpu_of[expert]
        if not self._here[source, gemm]:
            raise ScheduleFault(f"GEMM-{gemm + 1}'s weights of expert {expert} come before they are at expert {source}")
        plain, num_bytes = self.runtime.plain, self._bytes[gemm]
        if self._primitive.reads:
            address = self._address(source, gemm)
            self._values(expert, gemm)[:] = plain.ld(gpu, num_bytes, address, Stage.DISPATCH)
        elif not self._primitive.in_switch:
            plain.st(self._gpu_of[source], self._values(source, gemm), self._address(expert, gemm), Stage.DISPATCH)
        elif self._primitive.names_targets:
            self._store_to(source, 0, gemm)
            blocks = self._blocks(source, gemm)
            hub = self.runtime.hubs[gpu]
            received = hub.read_rows(Stage.DISPATCH, expert, hub.rows(expert, blocks))
            self._values(expert, gemm)[:] = received.ravel()[: num_bytes // FLOAT_BYTES]
        else:
            team = self._store_to(source, gpu // self._team_gpus, gemm)
            if team:
                self._values(expert, gemm)[:] = team.values(gpu, 0, num_bytes)
        self._here[expert, gemm] = True

    def require(self, expert: int, gemm: int, tile: int) -> None:
        """Checks that a matrix is there when a row of a tile starts.

        Raises:
            ScheduleFault: It is not.
        """
        if not self._here[expert, gemm]:
            raise ScheduleFault(
                f"GEMM-{gemm + 1} of tile {tile} starts before the weights of expert {expert} have come"
            )

    def of(self, expert: int) -> MoeTensors:
        """Returns the layer's numbers with the matrices of one expert alone, as they lie on its GPU."""
        first, down = (self._values(expert, gemm).reshape(self._shapes[gemm]) for gemm in (0, 1))
        gate = first[1][None] if len(first) == 2 else None
        return replace(self._tensors, up=first[0][None], down=down[None], gate=gate)

    def order_of(self, expert: int) -> int:
        """Returns how many copies a copy's weights come through: of those that come at once, later ones have more."""
        return 0 if self._here[expert].all() else 1 + self.order_of(self._source(expert))

    def _first_matrices(self) -> list[np.ndarray]:
        """Returns the matrices that are GEMM-1's, (expert, hidden, inner) each."""
        return [self._tensors.up] if self._tensors.gate is None else [self._tensors.up, self._tensors.gate]

    def _source(self, expert: int) -> int:
        """Returns the expert that a copy has its weights from: only plain stores have relays."""
        source = int(self._placement.copied_from[expert])
        if not self._primitive.reads and not self._primitive.in_switch:
            return source
        while self._placement.copied_from[source] != NOWHERE:
            source = int(self._placement.copied_from[source])
        return source

    def _values(self, expert: int, gemm: int) -> np.ndarray:
        """Returns (values,) float32 of an expert's matrix, shared with its GPU's memory."""
        offset = self._offsets[expert] + gemm * self._bytes[0]
        return self.runtime.plain.values(self._gpu_of[expert], offset, self._bytes[gemm])

    def _address(self, expert: int, gemm: int) -> int:
        return plain_address(self._gpu_of[expert], self._offsets[expert] + gemm * self._bytes[0])

    def _targets(self, source: int, group: int) -> list[int]:
        """Returns the copies that one store of a source reaches."""
        copies = [
            expert for expert in np.flatnonzero(self._placement.is_copy).tolist() if self._source(expert) == source
        ]
        if self._primitive.names_targets:
            return copies
        return [expert for expert in copies if self._gpu_of[expert] // self._team_gpus == group]

    def _store_to(self, source: int, group: int, gemm: int) -> Team | None:
        """Stores a matrix once to all copies that a store reaches; returns the team it went through, if any."""
        key = (source, group, gemm)
        if key in self._stored:
            return self._stored[key]
        gpu, targets, data = self._gpu_of[source], self._targets(source, group), self._values(source, gemm)
        members = tuple(sorted({self._gpu_of[expert] for expert in targets}))
        team = None
        if self._primitive.names_targets:
            assert self.runtime.region is not None
            for block, start in zip(self._blocks(source, gemm), range(0, len(data), BLOCK_VALUES), strict=True):
                values = np.zeros(BLOCK_VALUES, np.float32)
                values[: len(data) - start] = data[start : start + BLOCK_VALUES]
                address = self.runtime.region.address(int(block))
                self.runtime.dymultimem_st(gpu, values, address, len(targets), tuple(targets), Stage.DISPATCH)
        elif len(members) == 1:
            # A plain store for each, as today's libraries do.
            for expert in targets:
                self.runtime.plain.st(gpu, data, self._address(expert, gemm), Stage.DISPATCH)
        else:
            team = self.runtime.create_team(members, self._bytes[gemm])
            team.st(gpu, data, team.base)
        self._stored[key] = team
        return team

    def _num_blocks(self, gemm: int) -> int:
        return -(-self._bytes[gemm] // (BLOCK_VALUES * FLOAT_BYTES))

    def _blocks(self, source: int, gemm: int) -> np.ndarray:
        """Returns the algebraic indices of a matrix of an expert."""
        first = source * (self._num_blocks(0) + self._num_blocks(1)) + gemm * self._num_blocks(0)
        return np.arange(first, first + self._num_blocks(gemm))

    def _bind(self) -> None:
        """Gives every copy room for the blocks of its matrices."""
        each = self._num_blocks(0) + self._num_blocks(1)
        self.runtime.create_region(BLOCK_VALUES * FLOAT_BYTES, each * len(self._placement), stages=1)
        self.runtime.bind(np.where(self._placement.is_copy, each, 0))
