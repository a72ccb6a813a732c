"""Sources: GPUs that dispatch, which say that they are done where nobody was told the counts.

Without a count exchange or a gate before GEMM-1 an expert GPU does not know how many tokens are to come. So every GPU,
once all that it dispatches of a part is acknowledged, sets a flag of one flit on each GPU with experts, whatever its
primitive of dispatch: the switch makes no replicas of flags. They cross the links as acknowledgements do. It knows of
itself at once. Parts of experts follow each other without a pause: of them a GPU says so once, at the end of the last.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.links import charge_up
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.state import codes


@compiled
def more_comes(s: Root, gpu: int) -> bool:
    """Returns whether more tokens come to a GPU, or may do so as far as it has been told."""
    return s.gpus[gpu].arrivals_left > 0 or s.gpus[gpu].sources_left > 0


@compiled
def is_source(s: Root, gpu: int, part: int, target: int) -> bool:
    """Returns whether a GPU says to another, or to itself, that it is done with a part."""
    if s.gpus[target].num_experts == 0:
        return False
    return s.parts_by != codes.BY_PEERS or (target - gpu) % s.num_gpus * s.num_parts // s.num_gpus == part


@compiled
def say_done(s: Root, gpu: int, part: int) -> None:
    """Says to all GPUs with experts that all that a GPU dispatches of a part is stored."""
    if not s.in_band or (s.parts_by == codes.BY_EXPERTS and part < s.num_parts - 1):
        return
    for target in range(s.num_gpus):
        if target != gpu and is_source(s, gpu, part, target):
            charge_up(s, gpu, target % s.planes, codes.DONE_FLITS, codes.DISPATCH_DONE)
    push(s, s.now_ps, codes.EV_SAID, gpu, part, 1)
    push(s, s.now_ps + 2 * s.hop_ps, codes.EV_SAID, gpu, part, 0)
