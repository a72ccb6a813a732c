"""What links and switch, memory, and GEMMs of a machine cost a layer, as fields of its ``Costs``."""

from __future__ import annotations

from typing import Any

from dysharp_env.config import ConfigError
from dysharp_env.system import GpuSpec, SystemSpec
from dysharp_env.system.packet import PacketFormat
from dysharp_env.workload.layer import LayerSpec

PS_PER_S = 10**12
PS_PER_US = 10**6


def of_links(system: SystemSpec, resolution: str) -> dict[str, Any]:
    """Returns costs of living links and the switch.

    Raises:
        ConfigError: Requests for several packets at once, which packet resolution does not tell apart.
    """
    link, switch = system.living_link, system.switch
    asked_bytes = link.multimem_request_bytes
    if resolution == "packet" and asked_bytes > link.payload_bytes:
        given = f"link.multimem_request_bytes={asked_bytes} asks for several packets at once"
        raise ConfigError(f"{given}; resolution=packet allows 0 or payload_bytes={link.payload_bytes}")
    # Planes that move as one have the buffers of all ports; a plane of its own has its share.
    planes = link.planes if resolution == "packet" else 1
    slots = switch.reduction_buffer_bytes // link.payload_bytes * link.switch_ports // planes
    return {
        "packet": PacketFormat(
            link.flit_bytes,
            link.payload_bytes,
            link.header_flits,
            link.ack_flits,
            link.request_flits,
            link.target_bytes,
            asked_bytes or None,
        ),
        "planes": planes,
        "quantum_ps": link.time_quantum_ps,
        "hop_ps": link.latency_ps,
        "store_and_forward": link.store_and_forward,
        "credit_flits": switch.vcs_per_class * switch.vc_depth_flits * link.switch_ports // planes,
        "reduction_slots": max(1, round(slots * (1 - system.faults.taken_slots))),
        "cycle_ps": switch.reduction_cycle_ps,
        "reduction_ppm": round(switch.reduction_rate * 1e6),
        "queueing": switch.queueing,
        "team_gpus": switch.team_gpus,
    }


def of_gpu(gpu: GpuSpec, compute_scale: float) -> dict[str, Any]:
    """Returns costs of a GPU's memory, tables and communication SMs."""
    return {
        "al_tlb_entries": gpu.al_tlb_entries,
        "tile_status_entries": gpu.tile_status_entries,
        "output_readiness_entries": gpu.output_readiness_entries,
        "memory_ps": round(gpu.memory_latency_ns * 1000),
        # Whole MB/s, so that exact picoseconds of any transfer stay inside int64.
        "hbm_bytes_per_s": max(1, round(gpu.hbm_gbps * gpu.hbm_efficiency * 1e3 / compute_scale)) * 10**6,
        "l2_bytes": gpu.l2_bytes,
    }


def of_gemms(gpu: GpuSpec, layer: LayerSpec, compute_scale: float) -> dict[str, Any]:
    """Returns costs of the two GEMMs of a layer."""
    block_flops_per_s = gpu.gemm_tflops(layer.compute_dtype) * 1e12 / gpu.num_sms
    blocks, granule_ps, operand_ps = [], [], []
    for columns, depth in layer.gemms:
        count = -(-columns // gpu.block_n)
        # The last block of a row may be narrower; its columns are spread evenly over all blocks of the row.
        token_ps = 2.0 * columns / count * depth * layer.gemm_factor / block_flops_per_s * PS_PER_S * compute_scale
        blocks.append(count)
        granule_ps.append(max(1, round(gpu.row_granularity * token_ps)))
        operand_ps.append(round(gpu.operand_tokens * token_ps))
    # GEMM-1's epilogue applies the activation, so that what it writes is what GEMM-2 reads.
    return {
        "blocks": tuple(blocks),
        "granule_ps": tuple(granule_ps),
        "operand_ps": tuple(operand_ps),
        "block_overhead_ps": round(gpu.block_overhead_ns * 1000 * layer.gemm_factor * compute_scale),
        "cold_exposure_permille": round(gpu.cold_exposure * 1000),
        "row_granularity": gpu.row_granularity,
        "matrix_bytes": layer.weight_bytes,
        "weight_bytes": tuple(num_bytes * layer.gemm_factor for num_bytes in layer.weight_bytes),
        "token_bytes": (layer.dispatch_bytes, layer.mid_bytes, layer.mid_bytes, layer.combine_bytes),
    }
