"""Small layers, the schedules that engines make of them, and what they must compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from dysharp_env.multimem.dense import MoeTensors, dense_moe
from dysharp_env.multimem.links import Links
from dysharp_env.multimem.packets import Kind, Stage
from dysharp_env.schedules.run import Starter
from dysharp_env.schedules.spec import Exposure, ScheduleSpec, load_schedule
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.state import observation
from dysharp_env.system import load_system
from dysharp_env.system.faults import read_faults
from dysharp_env.workload import LayerSpec, Workload
from dysharp_env.workload.placement import Placement, contiguous_placement
from tests.random_workloads import Draw, choose_replicas, drop

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = sorted(path.stem for path in (CONFIGS / "schedules").glob("*.yaml"))
SYSTEMS = sorted(path.stem for path in (CONFIGS / "systems").glob("*.yaml"))
HIDDEN, INNER = 40, 24  # 160 B: a full packet and a part-filled one
EVERYTHING = Exposure(
    kinds=observation.DECISION_KINDS,
    hold=True,
    partial_tiles=True,
    splits=((1, 1), (4, 8, 3), (16, 16)),
    split_moments=2,
    max_candidates=32,
)


def draw_workload(
    seed: int,
    num_gpus: int,
    tokens_per_gpu: int,
    experts_per_gpu: int = 2,
    top_k: int = 4,
    ffn_matrices: int = 2,
    tile_tokens: int = 8,
) -> Workload:
    """Returns a workload with some experts more popular than others, placed at random."""
    rng = np.random.default_rng(seed)
    experts = num_gpus * experts_per_gpu
    layer = small_layer(experts, top_k, ffn_matrices, tile_tokens)
    popularity = rng.random((num_gpus * tokens_per_gpu, experts)) + 0.3 * rng.random(experts)
    return Workload.even(
        layer=layer,
        num_gpus=num_gpus,
        topk_ids=np.argsort(-popularity, axis=1)[:, :top_k],
        gpu_of_expert=rng.permutation(np.arange(experts) % num_gpus),
        name="small",
    )


def draw_shape(
    seed: int,
    num_gpus: int,
    experts: int,
    top_k: int = 3,
    idle_gpus: tuple[int, ...] = (),
    replicas: int = 0,
    dropped: float = 0.0,
    bare: float = 0.0,
    ffn_matrices: int = 2,
    tile_tokens: int = 8,
) -> Workload:
    """Returns a workload with a few tokens on every GPU but the idle ones, experts in shares that differ by one.

    Besides those there are so many replicas, anywhere; ``dropped`` and ``bare`` are those of ``drop``.
    """
    draw, rng = Draw(seed), np.random.default_rng(seed)
    tokens = rng.integers(1, 6, num_gpus)
    tokens[list(idle_gpus)] = 0
    placement = Placement(
        num_gpus,
        np.append(contiguous_placement(experts, num_gpus).gpu_of_expert, rng.integers(0, num_gpus, replicas)),
        np.append(np.arange(experts), rng.integers(0, experts, replicas)),
    )
    logical_ids = np.argsort(rng.random((tokens.sum(), experts)), axis=1)[:, :top_k]
    ids = drop(draw, choose_replicas(draw, logical_ids, placement), dropped, bare)
    return Workload(small_layer(experts, top_k, ffn_matrices, tile_tokens), tokens, ids, placement, "small")


def small_layer(experts: int, top_k: int, ffn_matrices: int, tile_tokens: int) -> LayerSpec:
    """Returns a layer whose vectors have as many bytes here as in the engine."""
    return LayerSpec(
        name="small",
        hidden=2 * HIDDEN,  # BF16 in the engine: as many bytes as HIDDEN float32 values here
        moe_ff=64,
        experts=experts,
        top_k=top_k,
        ffn_matrices=ffn_matrices,
        compute_dtype="bf16",
        tile_tokens=tile_tokens,
        source="test",
    )


def spec_of(name: str) -> ScheduleSpec:
    """Returns a shipped schedule, or ``push``: DySHARP's with pushed sums that the switch merges."""
    return load_schedule(name) if name != "push" else load_schedule("dysharp").with_changes({"combine": "push_reduce"})


def played(
    spec: ScheduleSpec,
    workload: Workload,
    system: str = "gh200-nvl32",
    seed: int | None = None,
    faults: str = "none",
    **switch: int,
) -> Engine:
    """Returns an engine run to its end: under the schedule's rule or, given a seed, by random legal actions.

    Something may be wrong with the machine. ``switch`` are keys of the system's switch that are to have other values.
    """
    exposure = Exposure() if seed is None else EVERYTHING
    # Packets of one format carry everything here, without the flits that hardware loses besides.
    machine = load_system(system, workload.num_gpus)
    alike = {"link.multimem_flits": 0} | {f"switch.{key}": value for key, value in switch.items()}
    for family in machine.gpu.families:
        alike |= {f"gpu.families.{family}.{key}": 0 for key in ("payload_bytes", "extra_flits")}
    machine = machine.with_changes({**alike, "faults": read_faults(faults)})
    if len(spec.options) == 1:
        exposure = spec.fitting(exposure, machine)
    starter = Starter(machine, workload.layer, spec, exposure=exposure)
    # A static planner places by the loads of an earlier batch; of this one, as there is no other.
    loads = np.bincount(workload.logical_ids[workload.topk_ids >= 0], minlength=workload.layer.experts)
    run = starter.start(replace(workload, history=lambda: loads))
    rng = np.random.default_rng(seed)
    while (asked := run.advance()) is not None:
        run.decide(int(rng.choice(np.flatnonzero(asked.mask))))
    return run.engine


def total_flits(links: Links, direction: str, kind: Kind, stage: Stage) -> int:
    """Returns flits of one kind and stage over all GPUs."""
    return sum(
        flits for use, flits in links.flits.items() if (use.direction, use.kind, use.stage) == (direction, kind, stage)
    )


def is_dense(outputs: np.ndarray, workload: Workload, tensors: MoeTensors) -> bool:
    """Returns whether outputs are the dense layer's up to float32 rounding."""
    return np.allclose(outputs, dense_moe(workload, tensors), rtol=2e-5, atol=2e-6)
