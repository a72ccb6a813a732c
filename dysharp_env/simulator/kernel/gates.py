"""Gates: a stage starts when what is before it is done and what it pays is paid.

A gate is a counter of what is left, when it may be paid for at the earliest, what is then paid, and what it opens.
Lowering lays out the gates of a schedule and says of each part's stages which gate they wait for; the engine counts,
whatever the schedule.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled, compiled_in_place
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.names import Part, Root
from dysharp_env.simulator.state.codes import EV_GATE, NOTHING


@compiled_in_place
def part_of(s: Root, gpu: int, part: int) -> Part:
    """Returns what is left of a part on a GPU, and which of its stages may run there."""
    return s.parts[gpu * s.num_parts + part]


@compiled
def count_towards(s: Root, gpu: int, part: int, stage: int, done: int) -> None:
    """Counts what is done of a part on a GPU for the gate of a stage, if it has one; the last opens it once paid."""
    gate = part_of(s, gpu, part).stages[stage].gate
    if gate == NOTHING:
        return
    g = s.gates[gate]
    g.left -= done
    if g.left == 0:
        push(s, max(s.now_ps, g.not_before_ps) + g.pay_ps, EV_GATE, gate, 0, 0)
