"""SM groups change size: which SMs leave a communication group, when they may, and who comes to it.

A GPU decides on the sizes of its groups (``split``) before the layer starts, and where the program says so again as it
gets on: whenever another share of its tokens is dispatched, when the first of its sums may be combined, and whenever
another share of them may. An SM changes over when it has nothing to do: one that communicates takes no more tokens and
goes once its last vector has made the round trip; one that computes goes at the end of its thread block. The GEMM group
has whoever is in no other group.
"""

from __future__ import annotations

from dysharp_env.simulator.compiled import compiled
from dysharp_env.simulator.groups import list_sm, mark_dirty
from dysharp_env.simulator.layout import AWAY, COMBINE, DISPATCH, GEMM, LEAVING, NOTHING, ON_DUTY, SPLIT
from dysharp_env.simulator.views import Root


@compiled
def first_sm(s: Root, kind: int, gpu: int) -> int:
    """Returns the first SM that may be in a GPU's dispatch or combine group."""
    return gpu * (s.most_dispatch_sms + s.most_combine_sms) + (s.most_dispatch_sms if kind == COMBINE else 0)


@compiled
def most_sms(s: Root, kind: int) -> int:
    """Returns the most SMs that a dispatch or combine group can have."""
    return s.most_combine_sms if kind == COMBINE else s.most_dispatch_sms


@compiled
def is_idle(s: Root, sm: int) -> bool:
    """Returns whether a communication SM is at no token and waits for no vector."""
    return s.sms[sm].token == NOTHING and s.sms[sm].in_flight == 0


@compiled
def list_if_free(s: Root, kind: int, gpu: int, sm: int) -> None:
    """Lists an SM on duty that is at no token if its window has room for another."""
    m = s.sms[sm]
    slots = s.combine_slots if kind == COMBINE else s.dispatch_slots
    if m.duty == ON_DUTY and m.token == NOTHING and m.in_flight < slots:
        list_sm(s, kind, gpu, sm)


@compiled
def staff_groups(s: Root) -> None:
    """Divides every GPU's SMs among its groups before the layer starts; communication SMs may take something."""
    for gpu in range(s.num_gpus):
        g = s.gpus[gpu]
        g.dispatch_sms = s.dispatch_sms
        g.combine_sms = s.combine_sms
        g.dispatch_here = s.dispatch_sms
        g.combine_here = s.combine_sms
        g.gemm_sms = s.gemm_sms
        g.free_sms = s.gemm_sms
        g.items = g.items_waiting
        for kind in (DISPATCH, COMBINE):
            size = s.combine_sms if kind == COMBINE else s.dispatch_sms
            first = first_sm(s, kind, gpu)
            for i in range(most_sms(s, kind)):
                s.sms[first + i].duty = ON_DUTY if i < size else AWAY
                if i < size:
                    list_sm(s, kind, gpu, first + i)


@compiled
def join_gemm(s: Root, kind: int, gpu: int) -> None:
    """Moves an SM that has left a communication group to the GEMM group."""
    g = s.gpus[gpu]
    if kind == COMBINE:
        g.combine_here -= 1
    else:
        g.dispatch_here -= 1
    g.gemm_sms += 1
    g.free_sms += 1
    g.hold_gemm = 0
    mark_dirty(s, GEMM, gpu)


@compiled
def leave_if_idle(s: Root, kind: int, gpu: int, sm: int) -> None:
    """Lets an SM that is to leave its communication group go, if it has nothing left to do."""
    m = s.sms[sm]
    if m.duty == LEAVING and is_idle(s, sm):
        m.duty = AWAY
        if kind == COMBINE:
            s.gpus[gpu].combine_leaving -= 1
        else:
            s.gpus[gpu].dispatch_leaving -= 1
        join_gemm(s, kind, gpu)
        fill_groups(s, gpu)


@compiled
def come(s: Root, kind: int, gpu: int) -> None:
    """Moves a free SM of the GEMM group to a communication group that lacks one."""
    g = s.gpus[gpu]
    g.gemm_sms -= 1
    g.free_sms -= 1
    if kind == COMBINE:
        g.combine_here += 1
    else:
        g.dispatch_here += 1
    sm = first_sm(s, kind, gpu)
    while s.sms[sm].duty != AWAY:
        sm += 1
    s.sms[sm].duty = ON_DUTY
    list_sm(s, kind, gpu, sm)


@compiled
def fill_groups(s: Root, gpu: int) -> None:
    """Gives communication groups that lack SMs those of the GEMM group that are free; dispatch has its first."""
    g = s.gpus[gpu]
    while g.free_sms > 0 and g.dispatch_here - g.dispatch_leaving < g.dispatch_sms:
        come(s, DISPATCH, gpu)
    while g.free_sms > 0 and g.combine_here - g.combine_leaving < g.combine_sms:
        come(s, COMBINE, gpu)


@compiled
def unlist_leaving(s: Root, kind: int, gpu: int) -> None:
    """Takes SMs that are no longer on duty out of the list of those that may take something; the others keep order."""
    g = s.gpus[gpu]
    sm = g.take_head if kind == COMBINE else g.send_head
    if kind == COMBINE:
        g.take_head = NOTHING
    else:
        g.send_head = NOTHING
    while sm != NOTHING:
        following = s.sms[sm].next
        if s.sms[sm].duty == ON_DUTY:
            list_sm(s, kind, gpu, sm)
        sm = following


@compiled
def send_off(s: Root, kind: int, gpu: int, count: int) -> None:
    """Picks SMs that are to leave a communication group: idle ones, then others, the last first; idle ones go."""
    if count <= 0:
        return
    first = first_sm(s, kind, gpu)
    for busy in range(2):
        sm = first + most_sms(s, kind) - 1
        while count > 0 and sm >= first:
            if s.sms[sm].duty == ON_DUTY and (busy or is_idle(s, sm)):
                s.sms[sm].duty = LEAVING
                count -= 1
                if kind == COMBINE:
                    s.gpus[gpu].combine_leaving += 1
                else:
                    s.gpus[gpu].dispatch_leaving += 1
            sm -= 1
    unlist_leaving(s, kind, gpu)
    for sm in range(first, first + most_sms(s, kind)):
        leave_if_idle(s, kind, gpu, sm)


@compiled
def call_back(s: Root, kind: int, gpu: int, count: int) -> None:
    """Keeps SMs that were to leave a communication group and have not, the first first, at most so many."""
    g = s.gpus[gpu]
    sm = first_sm(s, kind, gpu)
    leaving = g.combine_leaving if kind == COMBINE else g.dispatch_leaving
    count = min(count, leaving)
    while count > 0:
        if s.sms[sm].duty == LEAVING:
            s.sms[sm].duty = ON_DUTY
            list_if_free(s, kind, gpu, sm)
            count -= 1
            if kind == COMBINE:
                g.combine_leaving -= 1
            else:
                g.dispatch_leaving -= 1
        sm += 1


@compiled
def resize(s: Root, gpu: int, row: int) -> None:
    """Gives a GPU's groups the sizes of a row of ``splits``; SMs change over as they get free."""
    g = s.gpus[gpu]
    g.split = row
    g.dispatch_sms = s.splits[row].dispatch_sms
    g.combine_sms = s.splits[row].combine_sms
    g.min_partial = s.splits[row].early_tokens
    g.hold_gemm = 0
    mark_dirty(s, GEMM, gpu)
    # Those that come take the places of SMs that are away, so whoever has not left yet is called back before.
    call_back(s, DISPATCH, gpu, g.dispatch_sms - g.dispatch_here + g.dispatch_leaving)
    call_back(s, COMBINE, gpu, g.combine_sms - g.combine_here + g.combine_leaving)
    send_off(s, DISPATCH, gpu, g.dispatch_here - g.dispatch_leaving - g.dispatch_sms)
    send_off(s, COMBINE, gpu, g.combine_here - g.combine_leaving - g.combine_sms)
    fill_groups(s, gpu)


@compiled
def share_done(s: Root, gpu: int, before: int, after: int, total: int) -> None:
    """Asks a GPU for its group sizes again if another share of so many tokens is done."""
    if s.split_moments > 0 and after * s.split_moments // total > before * s.split_moments // total:
        mark_dirty(s, SPLIT, gpu)


@compiled
def sum_ready(s: Root, gpu: int) -> None:
    """Counts one more token or partial sum that a GPU may combine, and asks for its group sizes at the first."""
    g = s.gpus[gpu]
    g.items_waiting -= 1
    if s.split_moments > 0:
        done = g.items - g.items_waiting
        if done == 1:
            mark_dirty(s, SPLIT, gpu)
        share_done(s, gpu, done - 1, done, g.items)
