"""Decisions on what is combined next: units, token chunks or partial sums of them, of which something is ready."""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.choices.dispatch import longest_backlog_ps
from dysharp_env.simulator.kernel.combine import issue_combine
from dysharp_env.simulator.kernel.fifo import join, remove, take
from dysharp_env.simulator.kernel.links import spread_ps
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.kernel.shares import backlog_ps, rooted
from dysharp_env.simulator.kernel.sources import more_comes
from dysharp_env.simulator.state.codes import NOTHING
from dysharp_env.simulator.state.observation import COMBINE


@compiled
def act_combine(s: Root, gpu: int) -> bool:
    """Issues what is at hand while SMs may take some; True if a unit has to be chosen for them."""
    g = s.gpus[gpu]
    group = g.groups[COMBINE]
    if not g.start_open or (s.exclusive and (g.part < s.num_parts or more_comes(s, gpu))):
        return False
    while group.able.head != NOTHING:
        if g.issue.head == NOTHING:
            return group.holding == 0
        issue_combine(s, gpu, take(g.issue, s.item_links))
    return False


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
    g = s.gpus[gpu]
    # Who pushes does not know of sums of tokens that may be yet to come.
    return g.items_waiting > 0 or (s.combine.reads == 0 and g.sources_left > 0)


@compiled
def measure_uplinks(s: Root) -> None:
    """Fills ``backlogs`` with those of uplinks, which pulled sums meet."""
    for gpu in range(s.num_gpus):
        s.backlogs[gpu] = backlog_ps(s, s.uplinks, gpu)


@compiled
def most_items(s: Root) -> int:
    """Returns how many items a unit has at most: sums of a chunk's tokens, or one GPU's partial sums of them."""
    if s.copies_per_expert and not s.combine.reads:
        return s.chunk_tokens * min(s.top_k, s.most_experts)
    return s.chunk_tokens


@compiled
def describe_unit(s: Root, unit: int, row: int, walks: bool) -> None:
    """Describes a chunk's ready tokens, or one GPU's ready partial sums of a chunk."""
    f = s.features[row]
    u = s.units[unit]
    f.size = u.count / most_items(s)
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


@compiled
def take_unit(s: Root, gpu: int, row: int) -> bool:
    """Moves everything that is ready in a unit to the group's queue, and unlists it, or lets the group wait."""
    g = s.gpus[gpu]
    unit = s.candidates[row].item
    if unit == NOTHING:
        g.groups[COMBINE].holding = 1
        return True
    u = s.units[unit]
    join(g.issue, s.item_links, u.items)
    remove(g.ready, s.units, unit)
    u.count = 0
    u.listed = 0
    u.copies = 0
    for target in range(unit * s.num_gpus, (unit + 1) * s.num_gpus):
        s.unit_targets[target] = False
    return True
