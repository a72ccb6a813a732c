"""Random small layers, machines and programs that together reach every branch of the model."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from dysharp_env.simulator import layout
from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.lowering import Lowering
from dysharp_env.simulator.network import Network
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.twin import Twin
from dysharp_env.system import SystemSpec
from dysharp_env.workload.layer import LayerSpec
from dysharp_env.workload.workload import Workload


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

    def with_primitives(self, dispatch: int, combine: int, **changes) -> "Case":
        """Returns the case with other primitives, without what only its own ones allow."""
        fits = {"copies_per_expert": False, "loopback": False, "by_peers": False}
        gates = tuple(min(gate, layout.GATE_PHASE) for gate in self.program.gates)
        changes = {"gates": gates, **fits, **changes}
        return self.with_program(dispatch_primitive=dispatch, combine_primitive=combine, **changes)

    def with_program(self, **changes) -> "Case":
        values = {name: getattr(self.program, name) for name in Program.__dataclass_fields__}
        return self._replace(program=Program(**{**values, **changes}))


def draw_system(rng: np.random.Generator, num_gpus: int) -> SystemSpec:
    def pick(*values):
        return values[rng.integers(len(values))]

    payload_bytes = pick(128, 256)
    header_flits = pick(0, 1, 2)
    packet_flits = header_flits + payload_bytes // 16
    return SystemSpec(
        name="random",
        num_gpus=num_gpus,
        gpu={
            "num_sms": int(rng.integers(4, 24)),
            "bf16_tflops": pick(0.1, 1.0, 20.0),
            "fp8_tflops": pick(0.2, 2.0, 40.0),
            "gemm_efficiency": 0.7,
            "block_overhead_ns": pick(0, 300),
            "hbm_efficiency": pick(0.5, 1.0),
            "cold_exposure": pick(0.0, 0.6),
            "store_in_flight_bytes": pick(0, 100, 3000, 24000),
            "load_in_flight_bytes": pick(0, 100, 3000, 24000),
            "hbm_gbps": pick(20.0, 333.3, 3350.0),
            "l2_mb": pick(0.01, 0.1, 50.0),
            "memory_latency_ns": pick(0, 1, 400),
            "multimem_queue_entries": pick(0, 1, 4, 32),
            "multimem_access_bytes": pick(128, 512),
            "al_tlb_entries": pick(1, 2, 5, 512),
            "tile_status_entries": pick(1, 2, 1024),
            "output_readiness_entries": pick(1, 3, 1024),
            "block_n": pick(64, 128),
            "row_granularity": pick(1, 4, 64),
        },
        link={
            "gbps": pick(25.0, 333.3, 450.0),
            "planes": pick(1, 3, 4),
            "latency_ns": pick(0, 0.5, 250),
            "payload_bytes": payload_bytes,
            "header_flits": header_flits,
            "ack_flits": pick(0, 1, 3),
            "request_flits": pick(0, 1),
            "store_and_forward": pick(False, False, True),
            "time_quantum_ps": pick(1, 1, 1, 1000),
        },
        switch={
            "queueing": pick("output_queued", "voq", "input_fifo"),
            "vcs_per_class": pick(1, 1, 8),
            "vc_depth_flits": pick(packet_flits, 64, 256),
            "reduction_buffer_bytes": pick(payload_bytes, 4 * payload_bytes, 65536),
            "reduction_cycle_ps": pick(0, 640),
            "reduction_rate": pick(0.5, 0.85, 1.0),
        },
        overheads={"launch_us": 1, "barrier_us": 1, "count_exchange_us": 1},
    )


def draw_case(seed: int) -> Case:
    rng = np.random.default_rng(seed)

    def pick(*values):
        return values[rng.integers(len(values))]

    num_gpus = int(rng.integers(2, 7))
    tokens_per_gpu = int(rng.integers(1, pick(4, 12, 25)))
    experts = num_gpus * int(rng.integers(1, 5))
    layer = LayerSpec(
        name="random",
        hidden=int(pick(16, 64, 200, 2048)),
        moe_ff=int(pick(32, 256, 1000)),
        experts=experts,
        top_k=int(rng.integers(1, min(experts, 6) + 1)),
        ffn_matrices=pick(2, 3),
        dispatch_dtype=pick("bf16", "fp8"),
        compute_dtype=pick("bf16", "fp8"),
        direction=pick("forward", "backward"),
        tile_tokens=int(pick(1, 2, 4, 8, 128)),
        source="test",
    )
    # A skewed choice of experts leaves some GPUs idle and makes others the bottleneck.
    popularity = rng.random(experts) * pick(0.0, 1.0) + rng.random((num_gpus * tokens_per_gpu, experts))
    workload = Workload(
        layer=layer,
        num_gpus=num_gpus,
        tokens_per_gpu=tokens_per_gpu,
        topk_ids=np.argsort(-popularity, axis=1)[:, : layer.top_k],
        gpu_of_expert=rng.permutation(np.arange(experts) % num_gpus),
        name="random",
    )
    system = draw_system(rng, num_gpus)
    num_sms = system.gpu.num_sms
    dispatch_sms, combine_sms = int(rng.integers(1, num_sms // 4 + 1)), int(rng.integers(1, num_sms // 4 + 1))
    kinds = len(layout.DECISION_KINDS)
    weights = rng.normal(size=(kinds, len(layout.FEATURES))) * (
        rng.random((kinds, len(layout.FEATURES))) < pick(0.2, 1)
    )
    dispatch, combine = int(rng.integers(4)), int(rng.integers(5))
    is_plain = dispatch in (layout.UNICAST, layout.PULL) and combine in (layout.PUSH_UNICAST, layout.PULL_UNICAST)
    is_push = combine in (layout.PUSH_UNICAST, layout.PUSH_REDUCE)
    gates = (int(rng.integers(3)), int(rng.integers(2)), int(rng.integers(3 if is_push else 2)))
    is_unicast = dispatch == layout.UNICAST and combine == layout.PUSH_UNICAST
    is_static = dispatch == layout.BROADCAST and combine == layout.REDUCE_SCATTER
    program = Program(
        dispatch_primitive=dispatch,
        combine_primitive=combine,
        copies_per_expert=is_plain and bool(pick(False, True)),
        loopback=is_static and bool(pick(False, True)),
        parts=int(pick(1, 1, 2, 3)),
        by_peers=is_unicast and bool(pick(False, True)),
        exclusive=bool(pick(False, False, True)),
        gates=gates,
        pays_ps=tuple(int(pick(0, 1_000_000, rng.integers(10**6))) for _ in range(4)),
        pay_end_ps=int(pick(0, 0, 1_000_000)),
        dispatch_sms=dispatch_sms,
        gemm_sms=num_sms - dispatch_sms - combine_sms if rng.random() < 0.5 else num_sms,
        combine_sms=combine_sms,
        chunk_tokens=int(rng.integers(1, 9)),
        allow_partial=bool(pick(False, True)),
        min_partial_tokens=int(rng.integers(1, 5)),
        hold_gemm=bool(pick(False, True)),
        hold_combine=bool(pick(False, True)),
        weights=weights * pick(0.0, 1.0, 1.0),
        splits=pick((), (), ((1, 1, 3),), ((1, 2, 3), (2, 1, 2), (1, 1, 200))),
        exposed=frozenset(int(kind) for kind in np.flatnonzero(rng.random(kinds) < pick(0.0, 0.5, 1.0))),
        max_candidates=int(pick(2, 3, 32)),
    )
    # Long vectors are many packets, and the twin is slow.
    is_small = layer.hidden <= 200 or workload.num_tokens <= 40
    resolution = pick("token", "packet", "packet") if is_small else "token"
    costs = Costs.of(system, layer, resolution=resolution)
    bound = Bound(int(rng.integers(10**5, 10**8)), 0, 0, 0)
    case = Case(workload, costs, program, num_sms, bound)
    # Drawn last, so that the layers are what they were before there were networks, orders of tokens and shares.
    networked = frozenset(range(kinds)) - program.exposed
    if networked and rng.random() >= 0.7:
        case = case.with_program(network=draw_network(rng, int(rng.integers(1, 10))), networked=networked)
    case = case.with_program(waves=bool(rng.random() < 0.4))
    case = case._replace(costs=replace(costs, slow_permille=int(pick(1000, 1000, 1300, 5000))))
    # Shares of resources: none, some, and (which no bound says, but shares are cut) more than all.
    total_ps = bound.total_ps
    links_ps, gemms_ps, hbm_ps = (int(pick(0, rng.integers(total_ps), rng.integers(10**8))) for _ in range(3))
    case = case._replace(bound=Bound(total_ps, links_ps, gemms_ps, hbm_ps))
    if rng.random() < 0.6:
        splits = tuple(draw_split(rng, num_sms) for _ in range(int(pick(2, 3, 5))))
        case = case.with_program(splits=splits, split_moments=int(rng.integers(6)))
    return case


def draw_split(rng: np.random.Generator, num_sms: int) -> tuple[int, int, int]:
    """Returns group sizes of all kinds, and the fewest tokens of a tile closed early, more than any tile has or few."""
    dispatch_sms = int(rng.integers(1, num_sms - 1))
    return dispatch_sms, int(rng.integers(1, num_sms - dispatch_sms)), int(rng.choice([1, 2, 5, 200]))


def draw_network(rng: np.random.Generator, width: int) -> Network:
    shapes = {
        "row": (len(layout.FEATURES), width),
        "row_bias": (width,),
        "context": (len(layout.CONTEXT), width),
        "embed": (width, width),
        "embed_bias": (width,),
        "score_row": (width, width),
        "score_bias": (width,),
        "score_pool": (2 * width, width),
        "score": (width,),
        "linear": (len(layout.CONTEXT), len(layout.FEATURES)),
    }
    return Network(**{name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})


def make(system: SystemSpec, layer: LayerSpec, topk_ids: np.ndarray, program: Program, scale_ps: int = 10**6) -> Case:
    workload = Workload(
        layer=layer,
        num_gpus=system.num_gpus,
        tokens_per_gpu=len(topk_ids) // system.num_gpus,
        topk_ids=topk_ids,
        gpu_of_expert=np.arange(layer.experts) * system.num_gpus // layer.experts,
        name="made",
    )
    bound = Bound(scale_ps, scale_ps // 2, scale_ps // 3, scale_ps // 4)
    return Case(workload, Costs.of(system, layer), program, system.gpu.num_sms, bound)


@pytest.fixture(scope="session")
def make_case() -> Callable[..., Case]:
    """Returns the function that makes a case of its parts."""
    return make


@pytest.fixture(scope="session")
def random_case() -> Callable[[int], Case]:
    """Returns the function that draws a case from a seed."""
    return draw_case
