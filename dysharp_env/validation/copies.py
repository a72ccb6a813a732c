"""Copies of weights beside what is published of them: MoonEP's fetches of experts' weights on GB200, group ``copies``.

MoonEP (MoonshotAI, pull request 23) times its kernel that fetches weights over NVLink with 32 SMs, on 4 GPUs of one
GB200 node, for experts of 3584 x 3072 values in BF16: 1, 2, 3, 5 or 12 such matrices come to each GPU. The bytes that
it gives a rate for are those that leave and those that come; a GPU receives half of them. Here every GPU copies as much
from the next one, by bulk loads, and nothing was set on these rows. Tiles of 64 KB are an assumption that hardly
matters: from 8 KB to 1 MB times are within 1 %.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dysharp_env.simulator.costs import Bound, Costs
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.result import summarise
from dysharp_env.simulator.state.codes import GATE_FINE
from dysharp_env.simulator.state.lowering import Lowering
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.validation.rows import ValidationRow
from dysharp_env.workload import LayerSpec, Workload
from dysharp_env.workload.placement import Placement

GROUP = "copies"
TOLERANCE = 0.12
# Matrices that come to each GPU: microseconds.
MOONEP_US = {1: 34.5, 2: 62.3, 3: 90.3, 5: 146.9, 12: 343.5}
_GPUS, _SMS, _HIDDEN, _INNER = 4, 32, 3584, 3072
_TILE_BYTES = 65536


def copy_rows() -> Iterator[ValidationRow]:
    """Yields every comparison, simulating as it goes."""
    system = load_system("gb200-nvl72", _GPUS)
    for matrices, expected in MOONEP_US.items():
        name = f"MoonEP on 4 GB200, {_SMS} SMs, {matrices} x {2 * _HIDDEN * _INNER / 1e6:.2f} MB to each GPU, us"
        simulated = fetch_us(system, matrices)
        yield ValidationRow(GROUP, name, expected, simulated, "predicted", TOLERANCE * expected)


def fetch_us(system: SystemSpec, matrices: int, tile_bytes: int = _TILE_BYTES) -> float:
    """Returns the time of a kernel, from its launch on, that fetches weights from each GPU's neighbour.

    Args:
        system: The machine.
        matrices: How many come to each GPU. An expert is one here: two matrices of half the inner width.
        tile_bytes: They move in tiles of so many bytes.
    """
    num_gpus = system.num_gpus
    layer = LayerSpec(
        name="fetched",
        hidden=_HIDDEN,
        moe_ff=_INNER // 2,
        experts=num_gpus * matrices,
        top_k=1,
        ffn_matrices=2,
        compute_dtype="bf16",
        source="an expert of 3584 x 3072 BF16 values; there is nothing to compute",
    )
    home = np.arange(layer.experts) % num_gpus
    gpus = np.concatenate([home, (home + 1) % num_gpus])
    experts = np.tile(np.arange(layer.experts), 2)
    sources = np.concatenate([np.full(layer.experts, -1), np.arange(layer.experts)])
    # The engine wants a token; it stays where it is.
    tokens = np.arange(num_gpus) == 0
    placement = Placement(num_gpus, gpus, experts, sources)
    workload = Workload(layer, tokens.astype(np.int64), np.zeros((1, 1), np.int64), placement, "fetched")
    program = Program(
        dispatch=DISPATCH_PRIMITIVES["unicast"],
        combine=COMBINE_PRIMITIVES["unicast"],
        gates=(GATE_FINE, GATE_FINE, GATE_FINE),
        pays_ps=(0, 0, 0, 0),
        dispatch_sms=1,
        gemm_sms=system.gpu.num_sms,
        combine_sms=1,
        copying=DISPATCH_PRIMITIVES["pull"],
        copying_family="bulk",
        copy_sms=_SMS,
        weight_tile_bytes=tile_bytes,
    )
    lowering = Lowering(Costs.of(system, layer), program, system.gpu.num_sms)
    engine = Engine(lowering, workload, Bound(1, 1, 1, 1)).run()
    start_us, end_us = summarise(engine, 1).phases_us["weights"]
    return system.overhead_us("launch") + end_us - start_us
