"""The SMs of a GPU that move weights: where they come from, and when they issue another tile; see weights.py.

They are taken from the GEMM group as they fall free, at the start or, where weights go behind tokens, once all that the
GPU dispatches is stored, and go back when it has nothing left to move.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.simulator.state.observation import GEMM


@compiled
def issue_soon(s: Root, gpu: int) -> None:
    """Has a GPU issue its next tile as soon as it may, if there is one."""
    m = s.movers[gpu]
    if not s.gpus[gpu].start_open:
        return
    if m.queue.head != NOTHING and m.issuing == 0 and m.in_flight < s.copying.slots * m.sms:
        m.issuing = 1
        push(s, max(s.now_ps, m.next_ps), codes.EV_MOVE, gpu, 0, 0)


@compiled
def staff_mover(s: Root, gpu: int) -> None:
    """Gives SMs that move weights to a GPU that has some to move, as many as the GEMM group has if that is fewer."""
    m = s.movers[gpu]
    if m.left > 0:
        m.wanted_sms = max(1, min(s.copy_sms, s.gpus[gpu].groups[GEMM].sms))
        hire(s, gpu)


@compiled
def staff_late(s: Root, gpu: int) -> None:
    """The same behind tokens: whoever comes has computed, and changes over."""
    s.movers[gpu].next_ps = s.now_ps + s.role_change_ps
    staff_mover(s, gpu)
    issue_soon(s, gpu)


@compiled
def hire(s: Root, gpu: int) -> None:
    """Takes free SMs of the GEMM group for weights as long as some are wanted."""
    g = s.gpus[gpu]
    m = s.movers[gpu]
    while g.free_sms > 0 and m.sms < m.wanted_sms:
        g.groups[GEMM].sms -= 1
        g.free_sms -= 1
        m.sms += 1
        m.pace_ps = s.copying.vector_ps // m.sms


@compiled
def offer_mover(s: Root, gpu: int) -> None:
    """Lets free SMs move weights where more are wanted."""
    m = s.movers[gpu]
    if m.sms < m.wanted_sms:
        hire(s, gpu)
        issue_soon(s, gpu)
