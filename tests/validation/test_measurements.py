"""How the constants of ``configs/systems`` follow from public measurements, step by step, and what the rows compare."""

from __future__ import annotations

from typing import Any

import pytest

from dysharp_env.system import load_system
from dysharp_env.validation.kernels import (
    DENSE_TFLOPS,
    GROUPED_TFLOPS,
    deepep_us,
    dense_gemm_tflops,
    grouped_gemm_tflops,
    one_sided_us,
)
from dysharp_env.validation.measurements import (
    DEEPEP,
    ONE_SIDED_US,
    deepep_published_us,
    prediction_errors_pct,
)
from dysharp_env.validation.rows import ValidationRow


def test_a_bandwidth_becomes_the_time_of_what_ranks_receive() -> None:
    # UCCL-EP publishes both for DeepEP on 8 H200: 320 GB/s and 500 us, 319 GB/s and 973 us.
    for published_us, from_gbps in zip((500, 973), deepep_published_us("any", 4096, (320, 319)), strict=True):
        assert from_gbps == pytest.approx(published_us, rel=0.004)
    assert deepep_published_us("DeepEP V1 on 8 H200", 4096, (320, 319)) == (500, 973)


@pytest.mark.parametrize("name", ["DeepEP V1 on 8 H200", "DeepEP V2 on 8 SM100, 24 SMs"])
def test_window_of_stores_from_deepep_s_dispatch(name: str) -> None:
    """Time falls as the window grows; where it is what was measured is the window of the preset, to 2 %."""
    _, preset, tokens, sms, gbps, _ = next(row for row in DEEPEP if row[0] == name)
    system = load_system(preset)
    window = system.gpu.store_in_flight_bytes
    measured_us, _ = deepep_published_us(name, tokens, gbps)
    low, high = round(0.9 * window), round(1.1 * window)
    slow_us, fast_us = (deepep_us(system, tokens, sms, 0, store_in_flight_bytes=value)[0] for value in (low, high))
    assert fast_us < measured_us < slow_us
    # In between, time goes with the inverse of the window.
    inverse = 1 / low + (slow_us - measured_us) / (slow_us - fast_us) * (1 / high - 1 / low)
    assert 1 / inverse == pytest.approx(window, rel=0.02)


def test_launch_and_window_of_loads_from_one_token_on_blackwell() -> None:
    system = load_system("gb200-nvl72", 8)
    gpu, hop_us = system.gpu, system.link.latency_ns / 1000
    vector_bytes = 7168 * 2
    serial_us = vector_bytes / 128 * 9 * 16 / 900e3
    dispatch_us, combine_us = ONE_SIDED_US[8][1]
    # One SM stores 7 vectors, two in flight at a time: the last pair leaves after three round trips, each stretched to
    # what two vectors need of the window.
    trip_us = (4 * hop_us + serial_us) * 2 * vector_bytes / gpu.store_in_flight_bytes
    stores_us = 3 * trip_us + 2 * hop_us + serial_us
    launch_us = (dispatch_us - system.overheads.barrier_us - stores_us) / 2
    assert launch_us == pytest.approx(system.overheads.launch_us, abs=0.1)
    # It loads 7 vectors one after the other, each window by window.
    loads_us = combine_us - system.overheads.barrier_us - 2 * system.overheads.launch_us
    load_us = 4 * hop_us + gpu.memory_latency_ns / 1000 + serial_us
    window = 6 * load_us * vector_bytes / (loads_us - load_us)
    assert window == pytest.approx(gpu.load_in_flight_bytes, rel=0.02)
    # And the engine says the same.
    assert one_sided_us(system, 1, 0) == pytest.approx((dispatch_us, combine_us), rel=0.005)


def test_thread_blocks_from_deepgemm_s_contiguous_rates() -> None:
    gpu = load_system("dgx-h800").gpu
    rows, flops_of_peak = 4 * 8192, gpu.fp8_tflops * 1e12 / gpu.num_sms
    block_us = {}
    published = GROUPED_TFLOPS["contiguous", 4, 8192]
    for (columns, depth), tflops in zip(((4096, 7168), (7168, 2048)), published, strict=True):
        waves = -(-rows // 128 * columns // 128 // gpu.num_sms)
        cold_us = 4 * columns * depth / (gpu.hbm_gbps * gpu.hbm_efficiency * 1e3) * gpu.cold_exposure
        block_us[depth] = (2 * rows * columns * depth / tflops / 1e6 - cold_us) / waves
    per_depth_us = (block_us[7168] - block_us[2048]) / (7168 - 2048)
    efficiency = 2 * 128 * 128 / (per_depth_us * 1e-6) / flops_of_peak
    overhead_ns = (block_us[2048] - 2048 * per_depth_us) * 1e3
    assert efficiency == pytest.approx(gpu.gemm_efficiency, rel=0.01)
    assert overhead_ns == pytest.approx(gpu.block_overhead_ns, rel=0.06)


def test_thread_blocks_from_cublaslt_s_dense_rates_on_blackwell() -> None:
    gpu = load_system("gb200-nvl72").gpu
    block_us = {}
    for edge, tflops in DENSE_TFLOPS.items():
        waves = -(-((edge // 128) ** 2) // gpu.num_sms)
        cold_us = edge**2 / (gpu.hbm_gbps * gpu.hbm_efficiency * 1e3) * gpu.cold_exposure
        block_us[edge] = (2 * edge**3 / tflops / 1e6 - cold_us) / waves
    per_depth_us = (block_us[16384] - block_us[8192]) / 8192
    overhead_us = block_us[8192] - 8192 * per_depth_us
    # Nothing but noise beside 13 us: taken as none.
    assert -0.3 < overhead_us < 0.1 and gpu.block_overhead_ns == 0
    flops_of_peak = gpu.fp8_tflops * 1e12 / gpu.num_sms
    efficiency = 2 * 128 * 128 * 16384 / (block_us[16384] * 1e-6) / flops_of_peak
    assert efficiency == pytest.approx(gpu.gemm_efficiency, rel=0.01)
    for edge, tflops in DENSE_TFLOPS.items():
        assert dense_gemm_tflops(edge) == pytest.approx(tflops, rel=0.005)


def test_cold_weights_from_deepgemm_s_masked_rate() -> None:
    gpu = load_system("dgx-h800").gpu
    measured = GROUPED_TFLOPS["masked", 4, 256][0]
    slow, fast = (grouped_gemm_tflops(4, 256, cold_exposure=gpu.cold_exposure + change)[0] for change in (0.1, -0.1))
    assert slow < measured < fast
    share = (fast - measured) / (fast - slow)
    assert gpu.cold_exposure - 0.1 + 0.2 * share == pytest.approx(0.58, abs=0.01)
    assert gpu.cold_exposure == pytest.approx(0.58, rel=0.1)


def test_smaller_tiles_are_less_efficient() -> None:
    """A block's fixed cost weighs more on 64 rows than on 128."""
    full, half = (grouped_gemm_tflops(1, rows, cold_exposure=0.0)[0] for rows in (2 * 128 * 33, 64))
    assert half < 0.8 * full


def test_only_predicted_measurements_count_in_the_summary() -> None:
    def row(group: Any, expected: Any, role: Any) -> Any:
        return ValidationRow(group, "name", expected, 110.0, role, 100.0)

    rows = [row("measurement", 100, "predicted"), row("measurement", 110, "predicted"), row("measurement", 50, "set")]
    mean, largest = prediction_errors_pct([*rows, row("closed-form", 10, "predicted")])
    assert (mean, largest) == pytest.approx((5, 10))
