"""SM groups change size: which SMs leave a communication group, when they may, and who comes to it.

A GPU decides on the sizes of its groups (``split``) before the layer starts, and where the program says so again as it
gets on: whenever another share of its tokens is dispatched, when the first of its sums may be combined, and whenever
another share of them may. An SM changes over when it has nothing to do: one that communicates takes no more tokens and
goes once its last vector has made the round trip; one that computes goes at the end of its thread block. The GEMM group
has whoever is in no other group. Where changing over takes time, an SM is nobody's on its way to the GEMM group; on its
way to a communication group it holds its place there, and takes nothing yet. SMs that move weights are another
matter; see movers.py.
"""

from __future__ import annotations

from dysharp_env.simulator.jit.compiled import compiled
from dysharp_env.simulator.kernel.events import push
from dysharp_env.simulator.kernel.groups import flow_of, list_sm, mark
from dysharp_env.simulator.kernel.movers import offer_mover, staff_mover
from dysharp_env.simulator.kernel.names import Root
from dysharp_env.simulator.state.codes import AWAY, COMING, EV_ROLE, LEAVING, NOTHING, ON_DUTY
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH, GEMM, SPLIT

COMMUNICATION = (DISPATCH, COMBINE)


@compiled
def first_sm(s: Root, kind: int, gpu: int) -> int:
    """Returns the first SM that may be in a GPU's dispatch or combine group."""
    return gpu * (s.dispatch.most_sms + s.combine.most_sms) + flow_of(s, kind).first_sm


@compiled
def is_idle(s: Root, sm: int) -> bool:
    """Returns whether a communication SM is at no token and waits for no vector."""
    return s.sms[sm].token == NOTHING and s.sms[sm].in_flight == 0


@compiled
def want_sizes(s: Root, gpu: int, row: int) -> None:
    """Notes the sizes that a GPU's communication groups should have by a row of ``splits``."""
    g = s.gpus[gpu]
    sizes = s.splits[row]
    g.split = row
    g.groups[DISPATCH].wanted_sms = sizes.dispatch_sms
    g.groups[COMBINE].wanted_sms = sizes.combine_sms
    g.early_tokens = sizes.early_tokens


@compiled
def staff_groups(s: Root, row: int) -> None:
    """Divides every GPU's SMs among its groups before the layer starts; communication SMs may take something.

    Args:
        s: The root.
        row: The row of ``splits`` that says how, NOTHING for the program's own sizes.
    """
    for gpu in range(s.num_gpus):
        g = s.gpus[gpu]
        if row != NOTHING:
            want_sizes(s, gpu, row)
            g.groups[GEMM].sms = s.num_sms - s.splits[row].dispatch_sms - s.splits[row].combine_sms
        g.free_sms = g.groups[GEMM].sms
        if not s.copies_behind:
            staff_mover(s, gpu)
        g.items = g.items_waiting
        for kind in COMMUNICATION:
            group = g.groups[kind]
            group.sms = group.wanted_sms
            first = first_sm(s, kind, gpu)
            for i in range(flow_of(s, kind).most_sms):
                s.sms[first + i].duty = ON_DUTY if i < group.sms else AWAY
                if i < group.sms:
                    list_sm(s, kind, gpu, first + i)


@compiled
def go_to_gemm(s: Root, gpu: int) -> None:
    """Has an SM go to the GEMM group."""
    if s.role_change_ps > 0:
        push(s, s.now_ps + s.role_change_ps, EV_ROLE, GEMM, gpu, NOTHING)
    else:
        join_gemm(s, gpu)


@compiled
def leave_if_idle(s: Root, kind: int, gpu: int, sm: int) -> None:
    """Lets an SM that is to leave its communication group go to the GEMM group, if it has nothing left to do."""
    if s.sms[sm].duty != LEAVING or not is_idle(s, sm):
        return
    g = s.gpus[gpu]
    s.sms[sm].duty = AWAY
    g.groups[kind].leaving -= 1
    g.groups[kind].sms -= 1
    go_to_gemm(s, gpu)


@compiled
def join_gemm(s: Root, gpu: int) -> None:
    """Adds an SM to the GEMM group."""
    g = s.gpus[gpu]
    g.groups[GEMM].sms += 1
    g.groups[GEMM].holding = 0
    g.free_sms += 1
    mark(s, GEMM, gpu)
    fill_groups(s, gpu)
    offer_mover(s, gpu)


@compiled
def role_changed(s: Root, kind: int, gpu: int, sm: int) -> None:
    """Ends an SM's change over: it computes, or may take something, or is no longer wanted and goes back."""
    if kind == GEMM:
        join_gemm(s, gpu)
        return
    group = s.gpus[gpu].groups[kind]
    if group.sms - group.leaving <= group.wanted_sms:
        s.sms[sm].duty = ON_DUTY
        list_sm(s, kind, gpu, sm)
    else:
        s.sms[sm].duty = LEAVING
        group.leaving += 1
        leave_if_idle(s, kind, gpu, sm)


@compiled
def offer_place(s: Root, kind: int, gpu: int, sm: int) -> None:
    """Lets a communication SM at no token, of which a place has fallen free, take another one, or leave if it is to."""
    m = s.sms[sm]
    if m.duty != ON_DUTY:
        leave_if_idle(s, kind, gpu, sm)
    elif m.in_flight == flow_of(s, kind).slots - 1:
        # With fewer at hand it is listed already.
        list_sm(s, kind, gpu, sm)


@compiled
def come(s: Root, kind: int, gpu: int) -> None:
    """Moves a free SM of the GEMM group to a communication group that lacks one."""
    g = s.gpus[gpu]
    g.groups[GEMM].sms -= 1
    g.free_sms -= 1
    g.groups[kind].sms += 1
    sm = first_sm(s, kind, gpu)
    while s.sms[sm].duty != AWAY:
        sm += 1
    if s.role_change_ps > 0:
        s.sms[sm].duty = COMING
        push(s, s.now_ps + s.role_change_ps, EV_ROLE, kind, gpu, sm)
    else:
        s.sms[sm].duty = ON_DUTY
        list_sm(s, kind, gpu, sm)


@compiled
def fill_groups(s: Root, gpu: int) -> None:
    """Gives communication groups that lack SMs those of the GEMM group that are free; dispatch has its first."""
    g = s.gpus[gpu]
    for kind in COMMUNICATION:
        group = g.groups[kind]
        while g.free_sms > 0 and group.sms - group.leaving < group.wanted_sms:
            come(s, kind, gpu)


@compiled
def unlist_leaving(s: Root, kind: int, gpu: int) -> None:
    """Takes SMs that are no longer on duty out of the list of those that may take something; the others keep order."""
    able = s.gpus[gpu].groups[kind].able
    sm = able.head
    able.head = NOTHING
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
    group = s.gpus[gpu].groups[kind]
    first = first_sm(s, kind, gpu)
    end = first + flow_of(s, kind).most_sms
    for busy in range(2):
        sm = end - 1
        while count > 0 and sm >= first:
            if s.sms[sm].duty == ON_DUTY and (busy or is_idle(s, sm)):
                s.sms[sm].duty = LEAVING
                count -= 1
                group.leaving += 1
            sm -= 1
    unlist_leaving(s, kind, gpu)
    for sm in range(first, end):
        leave_if_idle(s, kind, gpu, sm)


@compiled
def call_back(s: Root, kind: int, gpu: int, count: int) -> None:
    """Keeps SMs that were to leave a communication group and have not, the first first, at most so many."""
    group = s.gpus[gpu].groups[kind]
    sm = first_sm(s, kind, gpu)
    count = min(count, group.leaving)
    while count > 0:
        m = s.sms[sm]
        if m.duty == LEAVING:
            m.duty = ON_DUTY
            count -= 1
            group.leaving -= 1
            if m.token == NOTHING and m.in_flight < flow_of(s, kind).slots:
                list_sm(s, kind, gpu, sm)
        sm += 1


@compiled
def resize(s: Root, gpu: int, row: int) -> None:
    """Gives a GPU's groups the sizes of a row of ``splits``; SMs change over as they get free."""
    g = s.gpus[gpu]
    want_sizes(s, gpu, row)
    g.groups[GEMM].holding = 0
    mark(s, GEMM, gpu)
    # Those that come take the places of SMs that are away, so whoever has not left yet is called back before.
    for kind in COMMUNICATION:
        group = g.groups[kind]
        call_back(s, kind, gpu, group.wanted_sms - group.sms + group.leaving)
    for kind in COMMUNICATION:
        group = g.groups[kind]
        send_off(s, kind, gpu, group.sms - group.leaving - group.wanted_sms)
    fill_groups(s, gpu)


@compiled
def share_done(s: Root, gpu: int, before: int, after: int, total: int) -> None:
    """Asks a GPU for its group sizes again if another share of so many tokens is done."""
    if s.split_moments > 0 and after * s.split_moments // total > before * s.split_moments // total:
        mark(s, SPLIT, gpu)


@compiled
def sum_ready(s: Root, gpu: int) -> None:
    """Counts one more token or partial sum that a GPU may combine, and asks for its group sizes at the first."""
    g = s.gpus[gpu]
    g.items_waiting -= 1
    if s.split_moments > 0:
        done = g.items - g.items_waiting
        if done == 1:
            mark(s, SPLIT, gpu)
        share_done(s, gpu, done - 1, done, g.items)
