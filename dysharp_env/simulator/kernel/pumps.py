"""Who acts when: what each SM group does as long as it can, choosing as it goes.

A group is looked at when something has marked it (``groups.mark``). Each pump returns True where it has to ask.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.choices.gemm import is_open
from dysharp_env.simulator.kernel.choosing import WAIT, decide
from dysharp_env.simulator.kernel.combine import issue_combine, take_unit
from dysharp_env.simulator.kernel.dispatch import end_part, next_token, take_chunk, take_token
from dysharp_env.simulator.kernel.fifo import take
from dysharp_env.simulator.kernel.gemm import close_tile, start_blocks, start_row
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.staffing import resize
from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, GEMM, SPLIT


@compiled
def pump_split(s: Root, gpu: int) -> bool:
    """Lets a GPU choose its group sizes again."""
    row = decide(s, SPLIT, gpu)
    if row == WAIT:
        return True
    if row != NOTHING and s.candidates[row].item != s.gpus[gpu].split:
        resize(s, gpu, s.candidates[row].item)
    return False


@compiled
def pump_dispatch(s: Root, gpu: int) -> bool:
    """Gives tokens to SMs that may take one, choosing chunks."""
    g = s.gpus[gpu]
    if not g.start_open:
        return False
    while True:
        if g.chunk == NOTHING:
            while end_part(s, gpu):
                pass
        if g.groups[DISPATCH].able.head == NOTHING:
            return False
        if g.chunk == NOTHING:
            row = decide(s, DISPATCH, gpu)
            if row == WAIT:
                return True
            if row == NOTHING:
                return False
            take_chunk(s, gpu, s.candidates[row].item)
        take_token(s, gpu, next_token(s, gpu))


@compiled
def pump_gemm(s: Root, gpu: int) -> bool:
    """Keeps the GEMM group's SMs on thread blocks, choosing rows."""
    g = s.gpus[gpu]
    if not g.start_open:
        return False
    while g.free_sms > 0:
        if g.row_tile == NOTHING:
            if g.groups[GEMM].holding:
                return False
            row = decide(s, GEMM, gpu)
            if row == WAIT:
                return True
            if row == NOTHING:
                return False
            candidate = s.candidates[row]
            if candidate.item == NOTHING:
                g.groups[GEMM].holding = 1
                return False
            if is_open(s, candidate.item):
                close_tile(s, s.tiles[candidate.item].expert)
            start_row(s, gpu, candidate.item, candidate.gemm)
        start_blocks(s, gpu)
    return False


@compiled
def pump_combine(s: Root, gpu: int) -> bool:
    """Issues tokens or partial sums while SMs may take some, choosing units."""
    g = s.gpus[gpu]
    group = g.groups[COMBINE]
    if not g.start_open or (s.exclusive and (g.part < s.num_parts or g.arrivals_left > 0)):
        return False
    while group.able.head != NOTHING:
        if g.issue.head != NOTHING:
            issue_combine(s, gpu, take(g.issue, s.item_links))
            continue
        if group.holding:
            return False
        row = decide(s, COMBINE, gpu)
        if row == WAIT:
            return True
        if row == NOTHING:
            return False
        if s.candidates[row].item == NOTHING:
            group.holding = 1
            return False
        take_unit(s, gpu, s.candidates[row].item)
    return False


@compiled
def pump(s: Root, kind: int, gpu: int) -> bool:
    """Lets one SM group act, or its GPU choose group sizes."""
    if kind == SPLIT:
        return pump_split(s, gpu)
    if kind == DISPATCH:
        return pump_dispatch(s, gpu)
    if kind == GEMM:
        return pump_gemm(s, gpu)
    return pump_combine(s, gpu)
