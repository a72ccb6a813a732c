"""DeepGEMM's grouped FP8 GEMMs run on the engine: a layer whose tokens are all at home, its two GEMMs apart.

Published: TFLOP/s of H800 SXM, README of deepseek-ai/DeepGEMM at commit 327ec92. A layer of 7168 x 2048 experts with
gate and up has both published shapes: GEMM-1 is N = 4096, K = 7168 and GEMM-2 is N = 7168, K = 2048. A group is an
expert with so many rows; *contiguous* and *masked* differ in how the library finds a group's rows, which the engine
does not model. Compared is 2 M N K over the time from a GEMM's first thread block to its last.
"""

from __future__ import annotations

import numpy as np

from dysharp_env.schedules import ScheduleSpec, simulate
from dysharp_env.system import load_system
from dysharp_env.workload import Workload, load_model
from dysharp_env.workload.workload import contiguous_placement

SYSTEM = "dgx-h800"
# (kind, groups, rows of each): TFLOP/s at N = 4096, K = 7168 and at N = 7168, K = 2048.
GROUPED_TFLOPS = {
    ("contiguous", 4, 8192): (1346, 1214),
    ("contiguous", 8, 4096): (1346, 1214),
    ("masked", 1, 1024): (1233, 925),
    ("masked", 2, 512): (1040, 916),
    ("masked", 4, 256): (932, 815),
}
SHAPES = ("N 4096 K 7168", "N 7168 K 2048")
# The engine knows no machine of one GPU; the second does the same.
_NUM_GPUS = 2


def grouped_gemm_tflops(groups: int, rows: int, **changes: float) -> tuple[float, float]:
    """Returns the simulated TFLOP/s of GEMM-1 and GEMM-2 of ``groups`` experts with ``rows`` rows each.

    Args:
        groups: Experts on a GPU.
        rows: Rows of each.
        **changes: Fields of the GPU to replace.
    """
    layer = load_model("large").with_changes(
        {"experts": _NUM_GPUS * groups, "top_k": 1, "ffn_matrices": 3, "compute_dtype": "fp8", "dispatch_dtype": "fp8"}
    )
    # A long pause before each GEMM lets HBM finish what arrivals and the GEMM before have queued there.
    system = load_system(SYSTEM, _NUM_GPUS).with_changes(
        {"overheads.barrier_us": 10_000, **{f"gpu.{name}": value for name, value in changes.items()}}
    )
    placement = contiguous_placement(layer.experts, _NUM_GPUS)
    topk_ids = np.repeat(np.arange(layer.experts), rows)[:, None]
    workload = Workload(layer, _NUM_GPUS, groups * rows, topk_ids, placement, f"{groups} x {rows} rows")
    schedule = ScheduleSpec.model_validate(
        {
            "name": "grouped GEMM",
            "dispatch": "unicast",
            "combine": "unicast",
            "readiness": {"gemm1": "phase", "gemm2": "phase", "combine": "phase"},
            "sms": {"dispatch": 1, "combine": 1},
            "pays": {"gemm1": ["barrier"], "gemm2": ["barrier"]},
            # Group after group, as the library's scheduler walks them.
            "rule": {"gemm": {"weights_in_l2": 1.0}},
        }
    )
    phases_us = simulate(system, workload, schedule).result().phases_us
    flops = groups * rows * layer.gemm1_flops, groups * rows * layer.gemm2_flops
    seconds = [(end - start) * 1e-6 for start, end in (phases_us["gemm1"], phases_us["gemm2"])]
    return flops[0] / seconds[0] / 1e12, flops[1] / seconds[1] / 1e12
