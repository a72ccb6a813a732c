"""Times and counts as what decisions show: numbers in [0, 1] that mean the same on every size."""

from __future__ import annotations

import math

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.links import wire_ps
from dysharp_env.simulator.kernel.names import Link, Root


@compiled
def rooted(s: Root, ps: int) -> float:
    """Returns the square root of a time over the lower bound, cut to [0, 1]: small backlogs stay visible."""
    return min(1.0, math.sqrt(max(ps, 0) / s.scale_ps))


@compiled
def fraction(part: int, whole: int) -> float:
    """Returns part over whole cut to [0, 1]; nothing to do counts as done."""
    return min(1.0, part / whole) if whole > 0 else 1.0


@compiled
def backlog_ps(s: Root, links: Link, gpu: int) -> int:
    """Returns how long what is queued and being sent will keep the busiest of a GPU's links busy.

    Args:
        s: The root.
        links: ``s.uplinks``, or ``s.ports`` for downlinks and what waits for them at the switch.
        gpu: Whose links.
    """
    longest_ps = 0
    for link in range(gpu * s.planes, (gpu + 1) * s.planes):
        q = links[link]
        longest_ps = max(longest_ps, max(q.free_ps - s.now_ps, 0) + wire_ps(s, q, q.queued_flits))
    return longest_ps


@compiled
def hbm_backlog_ps(s: Root, gpu: int) -> int:
    """Returns how long a GPU's HBM is booked."""
    return max(s.gpus[gpu].hbm_free_ps - s.now_ps, 0)
