"""A machine, a layer and a program of round numbers, for runs that are worked out by hand."""

from dysharp_env.simulator.program import Program
from dysharp_env.simulator.state import codes
from dysharp_env.system import SystemSpec
from dysharp_env.system.primitives import COMBINE_PRIMITIVES, DISPATCH_PRIMITIVES
from dysharp_env.workload.layer import LayerSpec

# A machine and layer of round numbers: 1000 ps a flit, 100,000 ps a hop, 1 ps a byte of HBM, 50,000 ps a memory access,
# and a GEMM of one thread block that takes 1000 ps a token.
ROUND_PROGRAM = Program(
    dispatch=DISPATCH_PRIMITIVES["unicast"],
    combine=COMBINE_PRIMITIVES["unicast"],
    gates=(codes.GATE_FINE, codes.GATE_FINE, codes.GATE_FINE),
    pays_ps=(10_000, 0, 0, 0),
    dispatch_sms=1,
    gemm_sms=2,
    combine_sms=1,
)


def round_system(num_gpus: int, num_sms: int = 4) -> SystemSpec:
    return SystemSpec(
        name="round",
        num_gpus=num_gpus,
        gpu={
            "num_sms": num_sms,
            "bf16_tflops": num_sms * 2 * 64 * 64 / 1000,  # one block, one token: 2 x 64 x 64 FLOP in 1000 ps
            "fp8_tflops": 1,
            "gemm_efficiency": 1.0,
            "hbm_gbps": 1000,
            "l2_mb": 1,
            "memory_latency_ns": 50,
            "block_n": 64,
            "row_granularity": 1,
        },
        link={"gbps": 16, "planes": 1, "latency_ns": 100},
        switch={"reduction_rate": 0.5, "reduction_cycle_ps": 640},
        overheads={"launch_us": 0, "barrier_us": 0, "count_exchange_us": 0},
    )


def round_layer(experts: int, tile_tokens: int = 2) -> LayerSpec:
    """Vectors of 128 B: one packet of 8 flits and a header. Matrices of 8192 B."""
    return LayerSpec(
        name="round",
        hidden=64,
        moe_ff=64,
        experts=experts,
        top_k=2,
        ffn_matrices=2,
        compute_dtype="bf16",
        tile_tokens=tile_tokens,
        source="test",
    )
