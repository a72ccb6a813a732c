"""Decisions on what is combined next: units, token chunks or partial sums of them, of which something is ready."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.choices.dispatch import longest_backlog_ps
from dysharp_env.simulator.kernel.links import spread_ps
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.shares import backlog_ps, rooted
from dysharp_env.simulator.state.codes import NOTHING


@compiled
def list_units(s: Root, gpu: int, limit: int) -> int:
    """Lists a GPU's ready units, the first ready first."""
    count = 0
    unit = s.gpus[gpu].ready.head
    while unit != NOTHING and count < limit:
        s.candidates[count].item = unit
        count += 1
        unit = s.units[unit].next
    return count


@compiled
def may_hold_combine(s: Root, gpu: int) -> bool:
    """Returns whether something will still become ready, or hold would wait for ever."""
    return s.gpus[gpu].items_waiting > 0


@compiled
def measure_uplinks(s: Root) -> None:
    """Fills ``backlogs`` with those of uplinks, which pulled sums meet."""
    for gpu in range(s.num_gpus):
        s.backlogs[gpu] = backlog_ps(s, s.uplinks, gpu)


@compiled
def describe_unit(s: Root, unit: int, row: int, walks: bool) -> None:
    """Describes a chunk's ready tokens, or one GPU's ready partial sums of a chunk."""
    f = s.features[row]
    u = s.units[unit]
    f.size = u.count / s.chunk_tokens
    f.waiting = rooted(s, s.now_ps - u.ready_ps)
    if not walks:
        return
    copies = u.count
    if s.combine.reads:
        copies = u.copies
        met_ps = longest_backlog_ps(s, s.unit_targets, unit * s.num_gpus)
    else:
        met_ps = s.backlogs[s.pairs[u.items.head].home]
    f.fan_out = min(1.0, copies / (u.count * (s.num_gpus - 1)))
    f.backlog = rooted(s, met_ps)
    f.cost = rooted(s, spread_ps(s, u.count * s.sum_flits))
