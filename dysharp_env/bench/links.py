"""The links and switch alone, written four times: by the engine, as two SimPy models, and as a plain Python heap loop.

One vector for every (token, remote expert GPU) of a workload waits at its home GPU's uplink, in the engine's order. An
uplink sends one vector at a time; its head is at the switch one hop later; there it waits, in order of arrival and with
no limit of buffers, for the downlink of its GPU, and one hop after the downlink has sent it, it has arrived. Nothing is
acknowledged. The models do this and no more. The engine does it as the dispatch phase of a layer, with its SM groups,
traffic counts and arrivals; it stops where the phase is over, at the first choice among GEMM rows.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from dysharp_env.bench.timing import Row, Seconds, least, per_second, timed
from dysharp_env.schedules import Exposure, LayerRun, Starter, load_schedule
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.workload import ScenarioSpec, Workload

_SYSTEM = "dgx-h100"


class Moved(NamedTuple):
    """What a run moved."""

    transfers: int
    """Vectors on uplinks plus vectors on downlinks."""
    end_ps: int
    """When the last vector had arrived."""


@dataclass(frozen=True)
class LinkProblem:
    """What the models are given.

    Attributes:
        targets: For each home GPU, the GPUs that its vectors go to, in the order in which they leave.
        vector_ps: How long one vector keeps a link busy.
        hop_ps: From GPU to switch, or from switch to GPU.
        start_ps: When the first vectors leave.
    """

    targets: list[list[int]]
    vector_ps: int
    hop_ps: int
    start_ps: int

    @classmethod
    def of(cls, run: LayerRun) -> LinkProblem:
        """Returns what the dispatch of a layer by unicast gives the links to do."""
        engine = run.engine
        costs, workload = engine.costs, engine.workload
        home, gpu = engine.state.pairs["home"], engine.state.pairs["gpu"]
        remote = gpu != home
        targets = [gpu[remote & (home == each)].tolist() for each in range(workload.num_gpus)]
        vector_ps = costs.wire_ps(costs.dispatch_flits())
        return cls(targets, vector_ps, costs.hop_ps, engine.program.pays_ps[0])


def link_system(num_gpus: int) -> SystemSpec:
    """Returns a machine stripped to links and queues: no buffers, acknowledgements or costs of software."""
    return load_system(_SYSTEM, num_gpus).with_changes(
        {
            "link.ack_flits": 0,
            "switch.queueing": "output_queued",
            "gpu.families": {},  # SMs send as many vectors as there are
            "overheads.launch_us": 0,
            "overheads.barrier_us": 0,
            "overheads.count_exchange_us": 0,
            "overheads.launch_gap_us": 0,
            "overheads.phase_kernels": False,
        }
    )


def link_workload(num_gpus: int, tokens: int) -> Workload:
    """Returns the tokens that are sent."""
    spec = ScenarioSpec(system=_SYSTEM, gpus=num_gpus, tokens=tokens, routing="uniform")
    return spec.build().draw(0)


def start_engine(workload: Workload) -> LayerRun:
    """Returns the layer at time zero.

    It runs in phases, so that nothing but the dispatch is on the links while that lasts, and asks about GEMM rows, so
    that ``advance`` comes back when it is over.
    """
    system, schedule = link_system(workload.num_gpus), load_schedule("deepep")
    exposure = Exposure(kinds=("gemm",))
    return Starter(system, workload.layer, schedule, exposure=exposure, compute_scale=1e-6).start(workload)


def run_engine(run: LayerRun) -> Moved:
    """Runs a layer from time zero to the end of its dispatch phase."""
    run.engine.advance()
    return Moved(int(run.engine.state.root["transfers"][0]), run.engine.now_ps)


def run_heap(problem: LinkProblem) -> Moved:
    """Runs the links as a loop over a heap of (time, sequence, kind, GPU)."""
    leave, reach_switch, fall_free = range(3)
    vector_ps, hop_ps = problem.vector_ps, problem.hop_ps
    waiting = [deque(targets) for targets in problem.targets]
    queued = [0] * len(waiting)  # at the switch for each downlink, the one being sent included
    heap = [(problem.start_ps, gpu, leave, gpu) for gpu, targets in enumerate(waiting) if targets]
    sequence = len(waiting)
    transfers = end_ps = 0
    while heap:
        now_ps, _, kind, gpu = heapq.heappop(heap)
        if kind == leave:
            transfers += 1
            heapq.heappush(heap, (now_ps + hop_ps, sequence, reach_switch, waiting[gpu].popleft()))
            sequence += 1
            if not waiting[gpu]:
                continue
        elif kind == reach_switch:
            queued[gpu] += 1
            if queued[gpu] > 1:
                continue
            kind = fall_free
        else:
            transfers += 1
            end_ps = max(end_ps, now_ps + hop_ps)
            queued[gpu] -= 1
            if not queued[gpu]:
                continue
        heapq.heappush(heap, (now_ps + vector_ps, sequence, kind, gpu))
        sequence += 1
    return Moved(transfers, end_ps)


def run_simpy(problem: LinkProblem) -> Moved:
    """Runs the links as SimPy's manual models machines: a process for each vector, a resource for each link."""
    simpy: Any = import_module("simpy")
    env = simpy.Environment(initial_time=problem.start_ps)
    uplinks = [simpy.Resource(env) for _ in problem.targets]
    downlinks = [simpy.Resource(env) for _ in problem.targets]
    transfers = end_ps = 0

    def vector(home: int, target: int) -> Iterator[Any]:
        nonlocal transfers, end_ps
        with uplinks[home].request() as turn:
            yield turn
            env.process(cut_through(target))
            yield env.timeout(problem.vector_ps)
            transfers += 1

    def cut_through(target: int) -> Iterator[Any]:
        nonlocal transfers, end_ps
        yield env.timeout(problem.hop_ps)
        with downlinks[target].request() as turn:
            yield turn
            yield env.timeout(problem.vector_ps)
            transfers += 1
        yield env.timeout(problem.hop_ps)
        end_ps = env.now

    for home, targets in enumerate(problem.targets):
        for target in targets:
            env.process(vector(home, target))
    env.run()
    return Moved(transfers, end_ps)


def run_lean_simpy(problem: LinkProblem) -> Moved:
    """Runs the links as SimPy processes: one for each uplink and downlink, and a store before each downlink.

    Vectors are no processes of their own, and a hop is no event of its own: this is as few events as the model needs.
    """
    simpy: Any = import_module("simpy")
    env = simpy.Environment(initial_time=problem.start_ps)
    ports = [simpy.Store(env) for _ in problem.targets]
    transfers = end_ps = 0

    def uplink(targets: list[int]) -> Iterator[Any]:
        nonlocal transfers
        for target in targets:
            transfers += 1
            ports[target].put(env.now + problem.hop_ps)
            yield env.timeout(problem.vector_ps)

    def downlink(port: Any) -> Iterator[Any]:
        nonlocal transfers, end_ps
        while True:
            head_ps = yield port.get()
            # A head that is still on its way is waited for with the sending.
            yield env.timeout(max(head_ps - env.now, 0) + problem.vector_ps)
            transfers += 1
            end_ps = max(end_ps, env.now + problem.hop_ps)

    for targets, port in zip(problem.targets, ports, strict=True):
        env.process(uplink(targets))
        env.process(downlink(port))
    env.run()
    return Moved(transfers, end_ps)


def has_simpy() -> bool:
    """Returns whether SimPy, which the ``dev`` extra installs, is there."""
    return find_spec("simpy") is not None


def link_rows(num_gpus: int, tokens: int, repeats: int) -> Iterator[Row]:
    """Yields transfers per second of the engine and the models, and how many times as fast the engine is.

    All are given the same, in this process, one after the other.
    """
    workload = link_workload(num_gpus, tokens)
    problem = LinkProblem.of(start_engine(workload))
    models = {"heap loop": run_heap}
    if has_simpy():
        models |= {"SimPy, a process a vector": run_simpy, "SimPy, a process a link": run_lean_simpy}
    name = f"links, {num_gpus} GPUs x {tokens} tokens"

    def dispatch() -> tuple[Moved, Seconds]:
        started = start_engine(workload)
        return timed(lambda: run_engine(started))

    expected, engine_took = least(dispatch, repeats)
    yield per_second(f"{name}: engine", expected.transfers, engine_took, "transfers")
    for model, run in models.items():
        moved, took = least(lambda run=run: timed(lambda: run(problem)), repeats)  # type: ignore[misc]
        assert moved == expected, (model, moved, expected)
        yield per_second(f"{name}: {model}", moved.transfers, took, "transfers")
        yield Row(f"{name}: engine over {model}, transfers per CPU second", took.cpu_s / engine_took.cpu_s, "ratio")
