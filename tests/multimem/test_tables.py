"""No table entry of the functional machine can be wrong without a named fault or a wrong result.

Every entry of every table is changed once, in a run of its own, at a moment when it is in use. Lasting tables (of Hub,
routing, teams) are changed before a stage begins; passing ones (what is open or under way) just before each packet that
crosses a link while they hold something. Left out is the order of the reduction slots and of the TLB, which decides
what is dropped first and so costs time, never correctness; and entries that nothing will read again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest

from dysharp_env.multimem.dense import MoeTensors, random_tensors
from dysharp_env.multimem.execute import Action, Execution, Schedule
from dysharp_env.multimem.faults import MultimemFault
from dysharp_env.multimem.hub import VALID
from dysharp_env.multimem.links import WINDOW_BITS
from dysharp_env.multimem.packets import Kind, Packet, Stage
from dysharp_env.multimem.runtime import Runtime
from dysharp_env.simulator.record import record
from dysharp_env.workload import Workload
from tests.multimem.small_layers import INNER, draw_workload, is_dense, played, spec_of

NUM_GPUS = 3
VALUES = 16  # of a vector: one packet, since every packet is changed in turn
Change = Callable[[Execution], None]


@cache
def tiny() -> tuple[Workload, MoeTensors, Schedule]:
    """Returns a layer in phases whose every expert has tokens of other GPUs, and its schedule."""
    workload = draw_workload(4, NUM_GPUS, tokens_per_gpu=2, experts_per_gpu=2, top_k=3)
    home = np.repeat(np.arange(NUM_GPUS), 2)
    for expert, gpu in enumerate(workload.gpu_of_expert):
        assert (home[(workload.topk_ids == expert).any(axis=1)] != gpu).any()
    return workload, random_tensors(workload, VALUES, INNER), record(played(spec_of("dysharp-basic"), workload))


class Setting(NamedTuple):
    """The primitives of a run, and how many reduction slots its switch has."""

    dispatch: str = "multicast"
    combine: str = "pull_reduce"
    slots: int = 512


def new_run(setting: Setting) -> Execution:
    workload, tensors, schedule = tiny()
    schedule = replace(schedule, dispatch=setting.dispatch, combine=setting.combine)
    return Execution(schedule, workload, tensors, reduction_slots=setting.slots)


def watch_packets(execution: Execution, before: Callable[[int], None]) -> None:
    """Calls ``before`` with the number of each packet that is about to cross a link."""
    links, numbers = execution.runtime.links, iter(range(10**6))

    def send(gpu: Any, direction: Any, packet: Any, original: Any = links._send) -> Any:
        before(next(numbers))
        return original(gpu, direction, packet)

    links._send = send


def runs_right(execution: Execution, action: Action | None = None, change: Change | None = None) -> bool:
    """Returns whether the layer comes out right; ``change`` is made before the first step of a kind."""
    workload, tensors, _ = tiny()
    try:
        for step in execution.steps:
            if step.action == action and change is not None:
                change(execution)
                change = None
            execution.apply(step)
        outputs = execution.finish()
    except MultimemFault:
        return False
    return is_dense(outputs, workload, tensors)


@pytest.mark.parametrize("dispatch", ["multicast", "unicast", "broadcast"])
@pytest.mark.parametrize("combine", ["pull_reduce", "push_reduce", "unicast", "reduce_scatter"])
def test_an_untouched_machine_runs_right(dispatch: str, combine: str) -> None:
    assert runs_right(new_run(Setting(dispatch, combine)))


# Lasting tables: each yields a name and a change for every entry, given a machine at the moment of the change.


def al_entries(execution: Execution) -> Iterator[tuple[str, Change]]:
    for gpu, hub in enumerate(execution.runtime.hubs):
        for expert, table in hub.al_table.items():
            for token, entry in enumerate(table):
                # A valid entry loses its bit, or means another row; an invalid one is taken for an old row.
                for flipped in (VALID, np.uint32(1)) if entry & VALID else (VALID,):

                    def change(
                        run: Any, gpu: Any = gpu, expert: Any = expert, token: Any = token, flipped: Any = flipped
                    ) -> None:
                        run.runtime.hubs[gpu].al_table[expert][token] ^= flipped
                        run.runtime.hubs[gpu].tlb.clear()  # so that the entry is read

                    yield f"expert {expert} token {token} flipped {flipped:#x}", change


def tlb_entries(execution: Execution) -> Iterator[tuple[str, Change]]:
    for gpu, hub in enumerate(execution.runtime.hubs):
        for key in hub.tlb:

            def change(run: Any, gpu: Any = gpu, key: Any = key) -> None:
                run.runtime.hubs[gpu].tlb[key] ^= 1

            yield f"GPU {gpu} {key}", change


def counters(name: str) -> Callable[[Execution], Iterator[tuple[str, Change]]]:
    """Returns the changes, one more and one less, of a Hub's table of one number per local expert."""

    def entries(execution: Execution) -> Iterator[tuple[str, Change]]:
        for gpu, hub in enumerate(execution.runtime.hubs):
            for expert, count in getattr(hub, name).items():
                for by in (-1, 1):
                    if name == "allocated" and count + by < 0:
                        continue  # no counter holds that

                    def change(run: Any, gpu: Any = gpu, expert: Any = expert, by: Any = by) -> None:
                        getattr(run.runtime.hubs[gpu], name)[expert] += by

                    yield f"expert {expert} by {by}", change

    return entries


def row_entries(name: str, by: int) -> Callable[[Execution], Iterator[tuple[str, Change]]]:
    """Returns the changes of a Hub's table of one number per row of each local expert."""

    def entries(execution: Execution) -> Iterator[tuple[str, Change]]:
        for gpu, hub in enumerate(execution.runtime.hubs):
            for expert, table in getattr(hub, name).items():
                for row in range(len(table)):

                    def change(run: Any, gpu: Any = gpu, expert: Any = expert, row: Any = row) -> None:
                        getattr(run.runtime.hubs[gpu], name)[expert][row] += by

                    yield f"expert {expert} row {row}", change

    return entries


def routing_entries(execution: Execution) -> Iterator[tuple[str, Change]]:
    for expert, port in enumerate(execution.runtime.switch.port_of_expert):
        for other in set(range(NUM_GPUS)) - {int(port)}:

            def change(run: Any, expert: Any = expert, other: Any = other) -> None:
                run.runtime.switch.port_of_expert[expert] = other

            yield f"expert {expert} to port {other}", change


def team_entries(execution: Execution) -> Iterator[tuple[str, Change]]:
    for side in ("_dispatch", "_combine"):
        team = getattr(getattr(execution, side), "_team", None)
        for place in range(len(team.gpus) if team else 0):
            for members in (
                team.gpus[:place] + team.gpus[place + 1 :],
                (*team.gpus[:place], team.gpus[place - 1], *team.gpus[place + 1 :]),
            ):

                def change(run: Any, side: Any = side, members: Any = members) -> None:
                    getattr(run, side)._team.gpus = members

                yield f"{side} {list(members)}", change


LASTING = {
    "AL table, stale": (al_entries, Action.DISPATCH, Setting()),
    "AL table": (al_entries, Action.ASK, Setting()),
    "AL TLB": (tlb_entries, Action.ASK, Setting()),
    "rows bound, at dispatch": (counters("nactive"), Action.DISPATCH, Setting()),
    "rows bound": (counters("nactive"), Action.ASK, Setting()),
    "first rows, at dispatch": (counters("first_row"), Action.DISPATCH, Setting()),
    "first rows": (counters("first_row"), Action.ASK, Setting()),
    "layout counters, at dispatch": (counters("allocated"), Action.DISPATCH, Setting()),
    "layout counters": (counters("allocated"), Action.ASK, Setting()),
    "TID table": (row_entries("token_of_row", 1), Action.READ_GEMM1, Setting()),
    "bytes of rows": (row_entries("row_bytes", -4), Action.READ_GEMM1, Setting()),
    "routing, at dispatch": (routing_entries, Action.DISPATCH, Setting()),
    "routing": (routing_entries, Action.ASK, Setting()),
    "team of a broadcast": (team_entries, Action.DISPATCH, Setting(dispatch="broadcast")),
    "team of a reduce-scatter": (team_entries, Action.ASK, Setting(combine="reduce_scatter")),
}


@pytest.mark.parametrize("table", LASTING)
def test_every_entry_of_a_lasting_table_matters(table: str) -> None:
    entries, action, setting = LASTING[table]
    execution = new_run(setting)
    for step in execution.steps:
        if step.action == action:
            break
        execution.apply(step)
    changes = list(entries(execution))
    assert changes
    assert not [name for name, change in changes if runs_right(new_run(setting), action, change)]


# Passing tables: each yields a name and a change for every entry that a machine has open at the moment.


def reductions(runtime: Runtime) -> Iterator[tuple[tuple, Callable[[Runtime], None]]]:
    for port, table in enumerate(runtime.switch.reductions):
        for key in table:
            for field in ("expected", "announced"):
                for by in (-1, 1):

                    def change(
                        runtime: Any, port: Any = port, key: Any = key, field: Any = field, by: Any = by
                    ) -> None:
                        entry = runtime.switch.reductions[port][key]
                        setattr(entry, field, getattr(entry, field) + by)

                    yield (port, key, field, by), change


def slots(runtime: Runtime) -> Iterator[tuple[tuple, Callable[[Runtime], None]]]:
    for port, table in enumerate(runtime.switch.slots):
        for key in table:

            def recount(runtime: Any, port: Any = port, key: Any = key) -> None:
                runtime.switch.slots[port][key].summed += 1

            def add(runtime: Any, port: Any = port, key: Any = key) -> None:
                runtime.switch.slots[port][key].total[0] += 1

            def lose(runtime: Any, port: Any = port, key: Any = key) -> None:
                del runtime.switch.slots[port][key]

            yield from (((port, key, change.__name__), change) for change in (recount, add, lose))


def acks(runtime: Runtime) -> Iterator[tuple[tuple, Callable[[Runtime], None]]]:
    for key in runtime.switch.acks:
        for by in (-1, 1):

            def change(runtime: Any, key: Any = key, by: Any = by) -> None:
                runtime.switch.acks[key] += by

            yield (key, by), change


def stores(runtime: Runtime) -> Iterator[tuple[tuple, Callable[[Runtime], None]]]:
    for key in runtime.fabric.unacknowledged:

        def lose(runtime: Any, key: Any = key) -> None:
            del runtime.fabric.unacknowledged[key]

        def resize(runtime: Any, key: Any = key) -> None:
            store = runtime.fabric.unacknowledged[key]
            runtime.fabric.unacknowledged[key] = replace(store, length=store.length - 4)

        yield from (((key, change.__name__), change) for change in (lose, resize))


def pulls(runtime: Runtime) -> Iterator[tuple[tuple, Callable[[Runtime], None]]]:
    for key in runtime.pulls:

        def recount(runtime: Any, key: Any = key) -> None:
            runtime.pulls[key].counted += 1

        def add(runtime: Any, key: Any = key) -> None:
            runtime.pulls[key].total[0] += 1

        def toggle(runtime: Any, key: Any = key) -> None:
            runtime.pulls[key].done ^= True

        def ask_more(runtime: Any, key: Any = key) -> None:
            request = runtime.pulls[key].request
            runtime.pulls[key].request = replace(request, count=request.count + 1)

        yield from (((key, change.__name__), change) for change in (recount, add, toggle, ask_more))


def pushed(runtime: Runtime) -> Iterator[tuple[tuple, Callable[[Runtime], None]]]:
    for key in runtime.plain.pushed:
        for by in (-1, 1):

            def change(runtime: Any, key: Any = key, by: Any = by) -> None:
                runtime.plain.pushed[key] += by

            yield (key, by), change


PASSING = {
    "reductions asked for": (reductions, Setting()),
    "reductions pushed": (reductions, Setting(combine="push_reduce")),
    "reductions of a team": (reductions, Setting(combine="reduce_scatter")),
    "slots": (slots, Setting()),
    "slots, too few": (slots, Setting(slots=1)),
    "slots of pushes, too few": (slots, Setting(combine="push_reduce", slots=1)),
    "slots of a team": (slots, Setting(combine="reduce_scatter")),
    "acks to merge": (acks, Setting()),
    "acks of a team": (acks, Setting(dispatch="broadcast")),
    "acks of copies and partial sums": (acks, Setting("unicast", "unicast")),
    "acks of merged pushes": (acks, Setting(combine="push_reduce")),
    "stores under way": (stores, Setting()),
    "stores to a team": (stores, Setting(dispatch="broadcast")),
    "copies and partial sums under way": (stores, Setting("unicast", "unicast")),
    "pushes under way": (stores, Setting(combine="push_reduce")),
    "sums waited for": (pulls, Setting()),
    "sums waited for, in parts": (pulls, Setting(slots=1)),
    "pushed sums": (pushed, Setting(combine="push_reduce")),
}


@pytest.mark.parametrize("table", PASSING)
def test_every_entry_of_a_passing_table_matters(table: str) -> None:
    entries, setting = PASSING[table]
    first_seen: dict[tuple, int] = {}  # change -> number of the packet before which its entry was first there
    probe = new_run(setting)

    def look(number: int) -> None:
        for name, _ in entries(probe.runtime):
            first_seen.setdefault(name, number)

    watch_packets(probe, look)
    assert runs_right(probe) and first_seen
    unnoticed = []
    for name, moment in first_seen.items():
        run = new_run(setting)

        def make(number: Any, run: Any = run, name: str = name, moment: Any = moment) -> None:
            if number == moment:
                dict(entries(run.runtime))[name](run.runtime)

        watch_packets(run, make)
        if runs_right(run):
            unnoticed.append(name)
    assert not unnoticed


# What packets say, as those who receive them read it.


def changed_fields(packet: Packet) -> Iterator[tuple[str, Packet]]:
    yield "address", replace(packet, address=packet.address + 4 * VALUES)
    yield "GPU of the address", replace(packet, address=packet.address ^ 1 << WINDOW_BITS)
    yield "source", replace(packet, source=(packet.source + 1) % NUM_GPUS)
    yield "stage", replace(packet, stage=Stage(1 - packet.stage))
    yield "tag", replace(packet, tag=1)
    if packet.kind in (Kind.RESPONSE, Kind.PARTIAL, Kind.PUSH):
        yield "count", replace(packet, count=packet.count + 1)
    # A static store also goes where no expert wants the token; nobody reads it there.
    if packet.payload and packet.kind != Kind.MULTIMEM_STORE:
        first = np.frombuffer(packet.payload[:4], "<f4") + np.float32(1)
        yield "payload", replace(packet, payload=first.tobytes() + packet.payload[4:])
    for place, target in enumerate(packet.targets):
        other = (target + 1) % tiny()[0].layer.experts
        targets = (*packet.targets[:place], other, *packet.targets[place + 1 :])
        yield f"target {place}", replace(packet, targets=targets)
        fewer = packet.targets[:place] + packet.targets[place + 1 :]
        yield f"target {place} dropped", replace(packet, targets=fewer, count=len(fewer))


@pytest.mark.parametrize(
    "setting",
    [
        Setting(),
        Setting(combine="push_reduce", slots=1),
        Setting("unicast", "unicast"),
        Setting("broadcast", "reduce_scatter"),
        Setting("pull", "pull"),
    ],
)
def test_every_target_and_field_of_every_packet_matters(setting: Setting) -> None:
    crossings: list[Packet] = []
    probe = new_run(setting)
    links = probe.runtime.links

    def record(gpu: Any, direction: Any, packet: Any, original: Any = links._send) -> Any:
        crossings.append(original(gpu, direction, packet))
        return crossings[-1]

    links._send = record
    assert runs_right(probe) and crossings
    unnoticed = []
    for number, packet in enumerate(crossings):
        for name, wrong in changed_fields(packet):
            run = new_run(setting)
            numbers = iter(range(len(crossings) * 2))

            def corrupt(
                gpu: Any,
                direction: Any,
                packet: Any,
                original: Any = run.runtime.links._send,
                numbers: Any = numbers,
                at: Any = number,
                w: Any = wrong,
            ) -> Any:
                arrived = original(gpu, direction, packet)
                return w if next(numbers) == at else arrived

            run.runtime.links._send = corrupt
            if runs_right(run):
                unnoticed.append((number, packet.describe(), name))
    assert not unnoticed


def test_every_table_is_covered_here() -> None:
    """Whoever gives the machine another table adds it above; data, sizes and counters of flits are no tables."""
    covered = {
        ("Hub", "al_table"), ("Hub", "tlb"), ("Hub", "nactive"), ("Hub", "first_row"), ("Hub", "allocated"),
        ("Hub", "token_of_row"), ("Hub", "row_bytes"), ("Switch", "port_of_expert"), ("Switch", "reductions"),
        ("Switch", "slots"), ("Switch", "acks"), ("Fabric", "unacknowledged"), ("Runtime", "pulls"),
        ("PlainMemory", "pushed"), ("Team", "gpus"),
    }  # fmt: skip
    not_tables = {
        ("Hub", "_memory"), ("PlainMemory", "memory"), ("Team", "memory"),  # vectors
        ("Links", "flits"),  # what is counted, not used
        ("Runtime", "hubs"),  # the Hubs themselves
        ("Runtime", "_gpu_of_expert"),  # what a program binds; gone into the Hubs and the routing table
        ("Runtime", "_asked"),  # packets that have arrived; changed above as packets
    }  # fmt: skip
    execution = new_run(Setting("broadcast", "reduce_scatter"))
    runtime = execution.runtime
    machine = [runtime, runtime.links, runtime.switch, runtime.fabric, runtime.plain, runtime.hubs[0]]
    found = {
        (type(part).__name__, name)
        for part in [*machine, execution._dispatch._team]
        for name, value in vars(part).items()
        if isinstance(value, dict | list | tuple | np.ndarray)
    }
    assert found == covered | not_tables
