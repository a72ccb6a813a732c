"""The Hub of one GPU: where a token's vector lies in this GPU's memory, given its place in the whole multimem space.

A multimem address means algebraic index x block size + offset: where the token would sit if every GPU gathered all
tokens. Each expert packs what it receives; the first packet of a block allocates the expert's next layout index and
registers the pair in the AL table, later packets and the combine find it there (DySHARP, arXiv 2605.05607, memory
manager). An AL entry is 1 valid bit and a 31-bit layout index; 512 entries are cached in the AL TLB (FIFO here, as its
replacement is not published). Dispatch and combine share the mapping but have a virtual region each.

A read that names several experts of one GPU is answered once, with their sum; the paper leaves open whether. The TID
table and the bytes counted per row tell that a token is whole (the paper's tile status counts arrivals of a tile). Left
out: what cached tables cost (the simulator charges TLB misses and spills).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from dysharp_env.multimem.fabric import require_floats
from dysharp_env.multimem.faults import AddressFault, BindFault, CountFault, TargetFault, UndispatchedFault
from dysharp_env.multimem.packets import Packet, Stage

VALID = np.uint32(1 << 31)
LAYOUT_MASK = np.uint32((1 << 31) - 1)


@dataclass(frozen=True)
class Region:
    """A dynamic multimem region, the same on all GPUs.

    Attributes:
        base: First multimem address.
        block_bytes: Bytes of one token's vector (``bsize``).
        num_tokens: Blocks in the region (``ntoken``): tokens of all GPUs together.
        stages: Virtual regions behind it (``hsize``): dispatch, or dispatch and combine.
    """

    base: int
    block_bytes: int
    num_tokens: int
    stages: int = 2

    @property
    def end(self) -> int:
        """The first address after the region."""
        return self.base + self.num_tokens * self.block_bytes

    def address(self, algebraic: int, offset: int = 0) -> int:
        """Returns the multimem address of a byte of one block."""
        return self.base + algebraic * self.block_bytes + offset

    def locate(self, packet: Packet) -> tuple[int, int]:
        """Returns the algebraic index and the offset in its block that a packet addresses.

        Raises:
            AddressFault: It lies outside the region or crosses the end of its block, or the stage has no region.
        """
        if not self.base <= packet.address < self.end:
            raise AddressFault(f"address is outside the region {self.base:#x} to {self.end:#x}", packet)
        if packet.stage >= self.stages:
            raise AddressFault(f"the region has no {packet.stage.name} stage", packet)
        algebraic, offset = divmod(packet.address - self.base, self.block_bytes)
        if offset + packet.length > self.block_bytes:
            raise AddressFault(f"data crosses the end of a block of {self.block_bytes} B", packet)
        require_floats(packet)
        return algebraic, offset


class Hub:
    """Address translation and memory of one GPU.

    Attributes:
        nactive: Rows bound for each local expert.
        first_row: Row of the virtual regions at which each local expert's rows begin (VBase).
        allocated: Rows given out, by local expert: its next layout index.
        al_table: AL sub-table of each local expert, (tokens,) uint32.
        tlb: AL TLB, (expert, algebraic index) -> layout index, oldest first.
        token_of_row: TID table of each local expert, (bound rows,) int64 algebraic index of each row, -1 where none.
        row_bytes: Bytes stored in each row in dispatch, by local expert: what a tile's readiness counts.
        misses: TLB misses so far.
    """

    def __init__(self, gpu: int, region: Region, nactive: dict[int, int], tlb_entries: int) -> None:
        """Binds the region here: ``nactive`` is how many tokens each local expert will receive."""
        self.gpu = gpu
        self.region = region
        self.nactive = dict(nactive)
        self.al_table = {expert: np.zeros(region.num_tokens, np.uint32) for expert in nactive}
        self.token_of_row = {expert: np.full(count, -1, np.int64) for expert, count in nactive.items()}
        self.row_bytes = {expert: np.zeros(count, np.int64) for expert, count in nactive.items()}
        self.tlb: OrderedDict[tuple[int, int], int] = OrderedDict()
        self.misses = 0
        self.allocated = dict.fromkeys(nactive, 0)
        # Experts' rows follow each other in each virtual region.
        starts = np.cumsum([0, *nactive.values()])
        self.first_row = {expert: int(start) for expert, start in zip(nactive, starts, strict=False)}
        self._tlb_entries = tlb_entries
        self._num_rows = int(starts[-1])
        self._memory = np.zeros((region.stages, self._num_rows * region.block_bytes), np.uint8)

    def holds(self, expert: int) -> bool:
        """Returns whether an expert is on this GPU."""
        return expert in self.nactive

    def store(self, packet: Packet, expert: int) -> None:
        """Stores a packet's payload in one expert's block; the first packet of a dispatched block allocates it.

        Raises:
            AddressFault, TargetFault, BindFault, UndispatchedFault: See ``translate``.
        """
        place = self.translate(packet, expert, allocate=packet.stage == Stage.DISPATCH)
        self._memory[packet.stage, place : place + packet.length] = np.frombuffer(packet.payload, np.uint8)
        if packet.stage == Stage.DISPATCH:
            row = place // self.region.block_bytes - self.first_row[expert]
            self.row_bytes[expert][row] += packet.length

    def load_sum(self, packet: Packet) -> np.ndarray:
        """Returns (values,) float32: the sum over the experts a read names, which the Hub forms before it responds.

        Raises:
            AddressFault, TargetFault, BindFault, UndispatchedFault: See ``translate``.
        """
        total = np.zeros(packet.length // 4, np.float32)
        for expert in packet.targets:
            place = self.translate(packet, expert, allocate=False)
            total += self._memory[packet.stage, place : place + packet.length].view("<f4")
        return total

    def translate(self, packet: Packet, expert: int, allocate: bool) -> int:
        """Returns the byte in the stage's virtual region that a packet's address means for one expert.

        VAddr = VBase + layout index x block size + offset in the block.

        Raises:
            AddressFault: The packet leaves the region or its block.
            TargetFault: The expert is not on this GPU.
            BindFault: The expert would receive more tokens than were bound, or its rows are not all in the region.
            UndispatchedFault: The block was never dispatched to the expert, and ``allocate`` is False.
        """
        algebraic, offset = self.region.locate(packet)
        if not self.holds(expert):
            raise TargetFault(f"expert {expert} is not on GPU {self.gpu}", packet)
        layout = self._layout(packet, expert, algebraic, allocate)
        if layout >= self.nactive[expert]:
            raise BindFault(f"expert {expert} was bound for {self.nactive[expert]} tokens, not {layout + 1}", packet)
        row = self.first_row[expert] + layout
        if not 0 <= row < self._num_rows:
            raise BindFault(f"row {row} for expert {expert} is outside the {self._num_rows} rows bound", packet)
        return row * self.region.block_bytes + offset

    def rows(self, expert: int, algebraic: np.ndarray) -> np.ndarray:
        """Returns the layout index of each token by the TID table, (tokens,) int64; -1 for one that has no row.

        A token counts as being there only when all its bytes are.
        """
        there = self.row_bytes[expert] == self.region.block_bytes
        row_of_token = {int(t): row for row, t in enumerate(self.token_of_row[expert]) if there[row]}
        return np.array([row_of_token.get(int(token), -1) for token in algebraic], np.int64)

    def read_rows(self, stage: Stage, expert: int, rows: np.ndarray) -> np.ndarray:
        """Returns a copy of rows of an expert's region, (rows, values) float32."""
        return self._values(stage)[self._places(expert, rows)]

    def write_rows(self, stage: Stage, expert: int, rows: np.ndarray, values: np.ndarray) -> None:
        """Writes rows of an expert's region, as a GEMM does; ``values`` is (rows, values) float32."""
        self._values(stage)[self._places(expert, rows)] = values

    def check_complete(self) -> None:
        """Checks that every local expert received all tokens it was bound for, and the tables list just these.

        Raises:
            CountFault: One received fewer, so its last tile would wait for ever, or entries are left from elsewhere.
        """
        for expert, bound in self.nactive.items():
            valid = np.count_nonzero(self.al_table[expert] & VALID)
            if not bound == self.allocated[expert] == valid:
                raise CountFault(
                    f"expert {expert} was bound for {bound} tokens and received {self.allocated[expert]}; its AL table"
                    f" holds {valid}"
                )

    def _places(self, expert: int, rows: np.ndarray) -> np.ndarray:
        places = self.first_row[expert] + rows
        own = (0 <= rows) & (rows < self.nactive[expert])
        if not (own & (0 <= places) & (places < self._num_rows)).all():
            raise BindFault(
                f"expert {expert} was bound for {self.nactive[expert]} tokens, not for rows {rows.tolist()}"
            )
        return places

    def _values(self, stage: Stage) -> np.ndarray:
        return self._memory[stage].view("<f4").reshape(self._num_rows, self.region.block_bytes // 4)

    def _layout(self, packet: Packet, expert: int, algebraic: int, allocate: bool) -> int:
        key = (expert, algebraic)
        if key in self.tlb:
            return self.tlb[key]
        self.misses += 1
        entry = self.al_table[expert][algebraic]
        if not entry & VALID:
            if not allocate:
                raise UndispatchedFault(f"token {algebraic} was never dispatched to expert {expert}", packet)
            entry = self._allocate(packet, expert, algebraic)
        if len(self.tlb) == self._tlb_entries:
            self.tlb.popitem(last=False)
        layout = int(entry & LAYOUT_MASK)
        self.tlb[key] = layout
        return layout

    def _allocate(self, packet: Packet, expert: int, algebraic: int) -> np.uint32:
        """Registers the expert's next row for a block and returns its AL entry."""
        layout = self.allocated[expert]
        if layout >= self.nactive[expert]:
            raise BindFault(f"expert {expert} was bound for {self.nactive[expert]} tokens, not {layout + 1}", packet)
        self.allocated[expert] += 1
        self.token_of_row[expert][layout] = algebraic
        entry = VALID | np.uint32(layout)
        self.al_table[expert][algebraic] = entry
        return entry
