"""Random small layers, machines and programs that together reach every branch of the model."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.phases import KERNEL_STAGES, SHARED, STAGES, WEIGHT_GRADIENTS
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes, observation
from dysharp_env.simulator.state.lowering import Lowering
from dysharp_env.simulator.state.observation import COMBINE, DECISION_KINDS, GEMM, PREFETCH
from dysharp_env.simulator.twin import Twin
from dysharp_env.system import SystemSpec
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES, FAMILIES, Primitive
from dysharp_env.workers.cluster import Cluster
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.workload import Workload
from tests.random_workloads import Draw, draw_layer, draw_num_gpus, draw_workload

PLANES = 1, 3, 4  # that random machines have


def pytest_configure() -> None:
    """Sets one numerical thread a process, as ``make`` does: one that tests fork would wait for others for ever."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the disk full whenever a file that is written is to take its place."""

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)


class Case(NamedTuple):
    """What an engine or twin is made of."""

    workload: Workload
    costs: Costs
    program: Program
    num_sms: int
    bound: Bound

    def engine(self, logging: bool = True) -> Engine:
        lowering = Lowering(self.costs, self.program, self.num_sms, logging)
        return Engine(lowering, self.workload, self.bound)

    def twin(self) -> Twin:
        return Twin(*self)

    def with_primitives(self, dispatch: str, combine: str, **changes: Any) -> Case:
        """Returns the case with other primitives, by name, without what only its own ones allow."""
        fits = {"copies_per_expert": False, "loopback": False, "parts_by": codes.BY_TOKENS, "families": ("", "")}
        gates = tuple(min(gate, codes.GATE_PHASE) for gate in self.program.gates)
        counted = self.program.counted or DISPATCH_PRIMITIVES[dispatch].reads
        changes = {"gates": gates, "counted": counted, **fits, **changes}
        primitives = {"dispatch": DISPATCH_PRIMITIVES[dispatch], "combine": COMBINE_PRIMITIVES[combine]}
        return self.with_program(**primitives, **changes)

    def with_program(self, **changes: Any) -> Case:
        values = {name: getattr(self.program, name) for name in Program.__dataclass_fields__}
        program = Program(**{**values, **changes})
        return self._replace(program=program, costs=costs_of(program, self.costs))


def costs_of(program: Program, costs: Costs) -> Costs:
    """Returns costs as a program has them."""
    return costs.under(program.dispatch, program.combine, program.families)


def draw_system(draw: Draw, num_gpus: int) -> SystemSpec:
    payload_bytes, header_flits = draw.pick("payload_bytes", 128, 256), draw.pick("header_flits", 0, 1, 2)
    multimem_flits = draw.pick("multimem_flits", 0, 0, 1, 3)
    return SystemSpec(
        name="random",
        num_gpus=num_gpus,
        gpu=draw_gpu(draw),
        link={
            "gbps": draw.pick("link_gbps", 25.0, 333.3, 450.0),
            "efficiency": draw.pick("efficiency", 1.0, 1.0, 0.93),
            "planes": draw.pick("planes", *PLANES),
            "latency_ns": draw.pick("latency_ns", 0, 0.5, 250),
            "payload_bytes": payload_bytes,
            "header_flits": header_flits,
            "multimem_flits": multimem_flits,
            "ack_flits": draw.pick("ack_flits", 0, 1, 3),
            "request_flits": draw.pick("request_flits", 0, 1),
            "store_and_forward": draw.chance("store_and_forward", 1 / 3),
            "time_quantum_ps": draw.pick("time_quantum_ps", 1, 1, 1, 1000),
        },
        switch={
            "team_gpus": draw.pick("team_gpus", 2, 3, 8),
            "queueing": draw.pick("queueing", "output_queued", "voq", "input_fifo"),
            "vcs_per_class": draw.pick("vcs_per_class", 1, 1, 8),
            "vc_depth_flits": draw.pick(
                "vc_depth_flits", 3 + header_flits + multimem_flits + payload_bytes // 16, 64, 256
            ),
            "reduction_buffer_bytes": draw.pick("reduction_buffer", payload_bytes, 4 * payload_bytes, 65536),
            "reduction_cycle_ps": draw.pick("reduction_cycle_ps", 0, 640),
            "reduction_rate": draw.pick("reduction_rate", 0.5, 0.85, 1.0),
            "reduction_dtypes": ("bf16", "fp8"),
        },
        overheads={
            "launch_us": 1,
            "launch_gap_us": draw.pick("launch_gap_us", 0, 0.3),
            "barrier_us": 1,
            "count_exchange_us": 1,
            "role_change_us": draw.pick("role_change_us", 0, 0, 0.3, 1.7),
            "phase_kernels": draw.chance("phase_kernels", 0.9),
        },
        faults=draw_faults(draw, draw.pick("planes", *PLANES)),
    )


def draw_faults(draw: Draw, planes: int) -> dict[str, object]:
    """Returns what is wrong with a machine of so many planes: nothing with half of them, else anything at once."""
    if draw.chance("sound", 0.5):
        return {}
    return {
        "slow_link": draw.pick("slow_link", 1.0, 1.0, 1.001, 2.5),
        "slow_plane": draw.pick("slow_plane", 1.0, 1.0, 1.3, 4.0),
        "dead_planes": draw.pick("dead_planes", 0, 0, planes - 1),
        "late_us": draw.pick("late_us", 0.0, 0.0, 0.3, 12.5),
        "replay_every": draw.pick("replay_every", 0, 0, 1, 5, 37),
        "taken_slots": draw.pick("taken_slots", 0.0, 0.0, 0.5, 0.999),
    }


def draw_gpu(draw: Draw) -> dict[str, object]:
    return {
        "num_sms": draw.between("num_sms", 4, 23),
        "bf16_tflops": draw.pick("bf16_tflops", 0.1, 1.0, 20.0),
        "fp8_tflops": draw.pick("fp8_tflops", 0.2, 2.0, 40.0),
        "gemm_efficiency": 0.7,
        "block_overhead_ns": draw.pick("block_overhead_ns", 0, 300),
        "hbm_efficiency": draw.pick("hbm_efficiency", 0.5, 1.0),
        "cold_exposure": draw.pick("cold_exposure", 0.0, 0.6),
        "families": {name: draw_family(draw, name) for name in drawn_families(draw)},
        "in_gemm_share": draw.pick("in_gemm_share", 0.0, 0.35, 1.0),
        "hbm_gbps": draw.pick("hbm_gbps", 20.0, 333.3, 3350.0),
        "l2_mb": draw.pick("l2_mb", 0.01, 0.1, 50.0),
        "l2_copies": draw.pick("l2_copies", 1.0, 2.0, 3.3),
        "memory_latency_ns": draw.pick("memory_latency_ns", 0, 1, 400, 5000),
        "multimem_queue_entries": draw.pick("multimem_queue_entries", 0, 1, 4, 32),
        "multimem_access_bytes": draw.pick("multimem_access_bytes", 128, 512),
        "al_tlb_entries": draw.pick("al_tlb_entries", 1, 2, 5, 512),
        "tile_status_entries": draw.pick("tile_status_entries", 1, 2, 1024),
        "output_readiness_entries": draw.pick("output_readiness_entries", 1, 3, 1024),
        "block_n": draw.pick("block_n", 64, 128),
        "row_granularity": draw.pick("row_granularity", 1, 4, 64),
        "operand_tokens": draw.pick("operand_tokens", 0, 3, 100),
    }


def drawn_families(draw: Draw) -> list[str]:
    """Returns the families of communication kernels that a GPU has: none, or all but multimem and sometimes that."""
    plain = [name for name in FAMILIES if name != "multimem"]
    return draw.pick("families", [], plain, [*plain, "multimem"])


def draw_family(draw: Draw, name: str) -> dict[str, object]:
    return {
        "token_ns": draw.pick(f"{name} token_ns", 0, 0, 150, 900.5),
        "copy_ns": draw.pick(f"{name} copy_ns", 0, 33.3, 500),
        "byte_ps": draw.pick(f"{name} byte_ps", 0, 20, 333.3),
        "vectors": draw.pick(f"{name} vectors", 1, 2, 3, 8),
        "payload_bytes": draw.pick(f"{name} payload_bytes", 0, 0, 64, 128),
        "extra_flits": draw.pick(f"{name} extra_flits", 0, 0, 1, 3),
        "own_copies": draw.chance(f"{name} own_copies", 0.5),
        "prepare_ns": draw.pick(f"{name} prepare_ns", 0, 0, 1200),
        "prepare_byte_ps": draw.pick(f"{name} prepare_byte_ps", 0, 0, 200.5),
        "start_us": draw.pick(f"{name} start_us", 0, 0, 0.7),
        "start_token_ns": draw.pick(f"{name} start_token_ns", 0, 0, 18.1),
        "start_expert_ns": draw.pick(f"{name} start_expert_ns", 0, 0, 14),
        "sum_byte_ps": draw.pick(f"{name} sum_byte_ps", 0, 0, 1300),
    }


def draw_families(draw: Draw, *primitives: Primitive, name: str = "families") -> tuple[str, ...]:
    """Returns the families that issue some primitives, or nothing where that is left to what is usual."""
    known = drawn_families(draw)
    able = ([family for family in known if family in primitive.families] for primitive in primitives)
    return tuple(
        "" if primitive.in_switch else draw.pick(f"{name} {i}", "", *families)
        for i, (primitive, families) in enumerate(zip(primitives, able, strict=True))
    )


def draw_costs(draw: Draw, system: SystemSpec, workload: Workload) -> Costs:
    # Long vectors are many packets, and the twin is slow.
    is_small = workload.layer.hidden <= 200 or workload.num_tokens <= 40
    resolution = draw.pick("resolution", "token", "packet") if is_small else "token"
    costs = Costs.of(system, workload.layer, resolution=resolution)
    return replace(costs, slow_permille=draw.pick("slow_permille", 1000, 1000, 1300, 5000))


def draw_bound(draw: Draw) -> Bound:
    """Returns a bound with shares of resources: none, some, and (which is cut) more than all."""
    total_ps = draw.between("bound", 10**5, 10**8)
    shares = (
        draw.pick(f"{name}_share", 0, draw.between(name, 0, total_ps), 2 * total_ps) for name in Bound._fields[1:]
    )
    return Bound(total_ps, *shares)


def draw_movement(draw: Draw) -> dict[str, object]:
    """Returns primitives, and what fits them."""
    dispatch = draw.pick("dispatch", *DISPATCH_PRIMITIVES.values())
    combine = draw.pick("combine", *COMBINE_PRIMITIVES.values())
    is_plain = not dispatch.in_switch and not combine.in_switch
    gates = (
        draw.pick("gate1", codes.GATE_FINE, codes.GATE_PHASE, codes.GATE_GPU),
        draw.pick("gate2", codes.GATE_FINE, codes.GATE_PHASE),
        draw.pick("gate3", codes.GATE_FINE, codes.GATE_PHASE, *(() if combine.reads else (codes.GATE_GPU,))),
    )
    copies_per_expert = is_plain and draw.chance("copies_per_expert", 0.5)
    parts_by = codes.BY_TOKENS
    if is_plain and not (dispatch.reads or combine.reads) and draw.chance("by_peers", 0.5):
        parts_by = codes.BY_PEERS
    elif copies_per_expert and gates[2] == codes.GATE_FINE and draw.chance("by_experts", 0.7):
        parts_by = codes.BY_EXPERTS
    pays_ps = [draw.pick(f"pays{i}", 0, 1_000_000, draw.between(f"pay{i}", 0, 10**6)) for i in range(4)]
    return {
        "dispatch": dispatch,
        "combine": combine,
        "copies_per_expert": copies_per_expert,
        "loopback": dispatch.to_all and combine.to_all and draw.chance("loopback", 0.5),
        "parts": draw.pick("parts", 1, 1, 2, 3),
        "parts_by": parts_by,
        "exclusive": draw.chance("exclusive", 1 / 3),
        "prefetches": draw.chance("prefetches", 0.4),
        "early_ps": draw.between("early_ps", 0, pays_ps[0]) if draw.chance("early", 0.5) else 0,
        "meets": draw.chance("meets", 0.5),
        "counted": draw.chance("counted", 0.5) or (dispatch.reads and gates[0] == codes.GATE_FINE),
        "gates": gates,
        "pays_ps": tuple(pays_ps),
        "pay_end_ps": draw.pick("pay_end_ps", 0, 0, 1_000_000),
        "kernels": draw_phase_kernels(draw),
        "hides_shared": draw.chance("hides_shared", 0.3),
        "chunk_tokens": draw.between("chunk_tokens", 1, 8),
        "waves": draw.chance("waves", 0.4),
        "families": draw_families(draw, dispatch, combine),
        "in_gemm": draw.chance("in_gemm", 0.4),
    }


def draw_copying(draw: Draw, matrix_bytes: int) -> dict[str, object]:
    """Returns how copies get their weights, in a few tiles."""
    primitive = DISPATCH_PRIMITIVES[draw.pick("copying", "unicast", "unicast", "multicast", "team", "pull")]
    return {
        "copying": primitive,
        "copying_family": draw_families(draw, primitive, name="copying_family")[0],
        "copy_sms": draw.between("copy_sms", 1, 4),
        "copies_behind": draw.chance("copies_behind", 0.5),
        "weight_tile_bytes": matrix_bytes // draw.between("weight_tiles", 1, 9) + draw.pick("uneven_tiles", 0, 1, 37),
    }


def draw_phase_kernels(draw: Draw) -> tuple[tuple[str, ...], ...]:
    """Returns kernels that stages pay, some of them twice."""
    known = [(stage, name) for name, stages in KERNEL_STAGES.items() for stage in stages]
    known += [("dispatch", SHARED), ("end", SHARED), ("end", WEIGHT_GRADIENTS)]
    times = {key: draw.pick(f"pays {key}", 0, 0, 0, 0, 1, 2) for key in known}
    return tuple(sum(((name,) * times[where, name] for where, name in known if where == stage), ()) for stage in STAGES)


def draw_sms(draw: Draw, num_sms: int) -> dict[str, object]:
    """Returns the SM groups, and what they may be changed to."""
    dispatch_sms, combine_sms = (draw.between(name, 1, num_sms // 4) for name in ("dispatch_sms", "combine_sms"))
    sizes = {
        "dispatch_sms": dispatch_sms,
        "gemm_sms": num_sms - dispatch_sms - combine_sms if draw.chance("apart", 0.5) else num_sms,
        "combine_sms": combine_sms,
    }
    if draw.chance("resized", 0.6):
        splits = tuple(draw_split(draw, i, num_sms) for i in range(draw.pick("num_splits", 2, 3, 5)))
        return {**sizes, "splits": splits, "split_moments": draw.between("split_moments", 0, 5)}
    return {**sizes, "splits": draw.pick("splits", (), (), ((1, 1, 3),), ((1, 2, 3), (2, 1, 2), (1, 1, 200)))}


def draw_split(draw: Draw, row: int, num_sms: int) -> tuple[int, int, int]:
    """Returns group sizes of all kinds, and the fewest tokens of a tile closed early, more than any tile has or few."""
    dispatch_sms = draw.between(f"split_dispatch{row}", 1, num_sms - 2)
    combine_sms = draw.between(f"split_combine{row}", 1, num_sms - dispatch_sms - 1)
    return dispatch_sms, combine_sms, draw.pick(f"split_early{row}", 1, 2, 5, 200)


def draw_rules(draw: Draw) -> dict[str, object]:
    """Returns what is asked, and what answers the rest."""
    shape = (len(observation.DECISION_KINDS), len(observation.FEATURES))
    weights = draw.stream("weights").normal(size=shape) * draw.pick("ruled", 0.0, 1.0, 1.0)
    weights *= draw.stream("weighed").random(shape) < draw.pick("features_weighed", 0.2, 1)
    asked = draw.pick("asked", 0.0, 0.5, 1.0)
    kinds = enumerate(observation.DECISION_KINDS)
    exposed = frozenset(kind for kind, name in kinds if draw.chance(f"asks {name}", asked))
    rules = {
        "partial_tiles": draw.chance("allow_partial", 0.5),
        "min_partial_tokens": draw.between("min_partial_tokens", 1, 4),
        "may_hold": frozenset(
            kind for kind in (PREFETCH, GEMM, COMBINE) if draw.chance(f"hold_{DECISION_KINDS[kind]}", 0.5)
        ),
        "weights": weights,
        "exposed": exposed,
        "max_candidates": draw.pick("max_candidates", 2, 3, 32),
    }
    networked = frozenset(range(len(observation.DECISION_KINDS))) - exposed
    if networked and draw.chance("networked", 0.4):
        rules |= {"network": draw_network(draw, draw.between("width", 1, 9)), "networked": networked}
    return rules


def draw_network(draw: Draw, width: int) -> Network:
    arrays = {name: draw.stream(f"network {name}").normal(size=shape) for name, shape in Network.shapes(width).items()}
    return Network(**{name: array.astype(np.float32) for name, array in arrays.items()})


def draw_case(seed: int, even: bool | None = None) -> Case:
    """Returns a case; about half of them have as many tokens and experts on every GPU, or all or none if asked to."""
    draw = Draw(seed)
    if even is None:
        even = draw.chance("even", 0.5)
    num_gpus = draw_num_gpus(draw, even)
    system, layer = draw_system(draw, num_gpus), draw_layer(draw, num_gpus, even)
    workload = draw_workload(draw, layer, num_gpus, even)
    num_sms = system.gpu.num_sms
    costs = draw_costs(draw, system, workload)
    copying = draw_copying(draw, max(costs.matrix_bytes))
    program = Program(**draw_movement(draw), **draw_sms(draw, num_sms), **draw_rules(draw), **copying)
    costs = costs_of(program, costs)
    return Case(workload, costs, program, num_sms, draw_bound(draw))


def make(system: SystemSpec, layer: LayerSpec, topk_ids: np.ndarray, program: Program, scale_ps: int = 10**6) -> Case:
    workload = Workload.even(
        layer=layer,
        num_gpus=system.num_gpus,
        topk_ids=topk_ids,
        gpu_of_expert=np.arange(layer.experts) * system.num_gpus // layer.experts,
        name="made",
    )
    bound = Bound(scale_ps, scale_ps // 2, scale_ps // 3, scale_ps // 4)
    return Case(workload, costs_of(program, Costs.of(system, layer)), program, system.gpu.num_sms, bound)


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """Returns the function that makes a case of its parts."""
    return make


@pytest.fixture(scope="session")
def random_case() -> Callable[..., Case]:
    """Returns the function that draws a case from a seed; see ``draw_case``."""
    return draw_case


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """Starts a Ray cluster of two CPUs, which every ``Cluster`` of this process then uses."""
    pytest.importorskip("ray")
    with Cluster(2) as cluster:
        assert cluster.map(abs, [-1]) == [1]
        yield
