"""A store-and-forward all-to-all in the engine's simplest mode, to compare with analytical network simulators.

No acknowledgements, no headers, unlimited output queues, no costs of software, no wait for SMs. A hop keeps its link
busy for floor(bytes / bandwidth) nanoseconds and delivers floor(latency + bytes / bandwidth) after it began. Every rank
sends ``messages`` messages to each other rank, round after round in the order rank + 1, rank + 2, ...
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dysharp_env.schedules import load_schedule, simulate
from dysharp_env.system import SystemSpec, load_system
from dysharp_env.validation.layers import laid_out
from dysharp_env.validation.rows import ValidationRow
from dysharp_env.workload import LayerSpec

GIB_PER_S = 2**30 / 1e9  # in GB/s
# ASTRA-sim's congestion-aware analytical backend (github.com/astra-sim/astra-network-analytical) with the link of
# astra-sim/astra-sim examples/network/analytical/HGX-H100-validated.yml, 400 GiB/s and 936.25 ns:
# (ranks, messages to each, bytes of a message) to the nanosecond at which the last message arrives.
ALL_TO_ALL_NS = {
    (8, 64, 65536): 70120,
    (64, 4, 65536): 40328,
    (64, 16, 65536): 155240,
    (8, 256, 16384): 70006,
}
_PACKET_BYTES = 4096


def all_to_all_rows() -> Iterator[ValidationRow]:
    """Yields exchanges whose end ASTRA-sim's analytical network gives to the nanosecond."""
    for (ranks, messages, message_bytes), expected_ns in ALL_TO_ALL_NS.items():
        name = f"{ranks} ranks, {messages} chunks of {message_bytes} B each way, ns"
        simulated_ns = all_to_all_ns(ranks, messages, message_bytes)
        yield ValidationRow("all-to-all", name, expected_ns, simulated_ns, "exact", 0.0)


def all_to_all_system(ranks: int) -> SystemSpec:
    """Returns a machine stripped to links and queues."""
    return load_system("hypothetical-nvl256", ranks).with_changes(
        {
            "link.gbps": 400 * GIB_PER_S,
            "link.latency_ns": 936.25,
            "link.header_flits": 0,
            "link.ack_flits": 0,
            "link.request_flits": 0,
            "link.payload_bytes": _PACKET_BYTES,
            "link.store_and_forward": True,
            "link.time_quantum_ps": 1000,
            "switch.queueing": "output_queued",
            "gpu.families": {},  # no SM is waited for
            "link.efficiency": 1.0,
            "link.efficiency_per_doubling": 0.0,
            "link.multimem_flits": 0,
            "overheads.launch_us": 0,
            "overheads.barrier_us": 0,
            "overheads.count_exchange_us": 0,
            "overheads.launch_gap_us": 0,
            "overheads.phase_kernels": False,
        }
    )


def all_to_all_ns(ranks: int, messages: int, message_bytes: int) -> float:
    """Returns when the last message arrives: a token stands for a message, the one expert of a GPU for its rank."""
    layer = LayerSpec(
        name="all-to-all",
        hidden=message_bytes // 2,
        moe_ff=1,
        experts=ranks,
        top_k=1,
        ffn_matrices=2,
        compute_dtype="bf16",
        source="a message is a BF16 vector of that many bytes; there is nothing to compute",
    )
    tokens = messages * (ranks - 1)
    rank, index = np.divmod(np.arange(ranks * tokens), tokens)
    receiver = (rank + 1 + index % (ranks - 1)) % ranks
    workload = laid_out(layer, ranks, receiver[:, None])
    run = simulate(all_to_all_system(ranks), workload, load_schedule("deepep"), compute_scale=1e-6)
    return run.result().phases_us["dispatch"][1] * 1000
