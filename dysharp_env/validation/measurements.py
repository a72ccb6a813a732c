"""Public measurements beside the simulator: rows of group ``measurement``.

A row is ``set`` if its number was used to choose a constant, and ``predicted`` if not. One set of constants holds for a
generation of GPUs; none is chosen for a row. All that were set are listed in ``tables/constants.py``. What was run is
said in ``kernels``. Kernels that communicate were set on the tables (``validate --table``), so that all their rows here
are predictions. How a ``set`` row gave its constant in ``configs/systems``, each step of which a test repeats:

gemm_efficiency, block_overhead_ns, Hopper
    DeepGEMM's contiguous rates. 63 waves of thread blocks at K = 7168 and 109 at K = 2048, less what the weights of 4
    groups cost, give the time of a block at each K; it is linear in K.
gemm_efficiency, block_overhead_ns, Blackwell
    cuBLASLt's dense FP8 GEMMs, 8192^3 and 16384^3. 28 and 111 waves of thread blocks, less what cold weights cost, give
    the time of a block at each K. It is proportional to K: 0.59 of the peak, and nothing besides.
cold_exposure
    DeepGEMM's masked rate of 4 x 256 rows at K = 7168, which reads the most weights for its work.
hbm_efficiency, Hopper
    No row: dense GEMMs of 64 rows read up to 2.7 of 3.35 TB/s (DeepGEMM README).
multimem_flits, Hopper
    NVLS all-reduce of 4 to 8 H100, which moves 0.85 of what flits alone allow; its row here is near to that.

How the tables gave the constants of kernels: what one token takes gave what a kernel takes besides its vectors, tokens
and SMs in their middle what an SM does, and many tokens what links lose. Values are those of least errors (the mean
of logarithms and the 90th percentile) over some forty rows of a table, rounded.

From published figure to compared figure:

DeepEP
    GB/s count the vectors a rank receives, its own included, FP8 scales too. So tokens x E x 7392 B (dispatch) or
    14336 B (combine) over the figure is the time; E = 8 (1 - C(224, 8) / C(256, 8)) = 5.29 is the mean number of ranks
    of a token with uniform routing. UCCL-EP, which runs DeepEP's kernels, publishes times too.
TensorRT-LLM
    Times as published. AIConfigurator's for the same kernels (table trtllm-alltoall-gb200) differ from them: a combine
    of one token at EP8 takes 25.3 us there and 31.0 here, one of 2048 tokens 351 and 323.
NCCL
    Bus bandwidth as published: 365 to 370 GB/s for the ring (compared with 367.5) and 480 for NVLS.
DeepGEMM, cuBLASLt
    TFLOP/s as published.

Known to be missing where predictions err: DeepGEMM's 2 x 512 rows at K = 7168 run without the multicast of operands to
pairs of SMs that 1 x 1024 rows have, and the engine knows neither.

Left out: NCCL EP LL and pplx-kernels. What crosses nodes is out of scope.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dysharp_env.system import load_system
from dysharp_env.validation.kernels import (
    DENSE_TFLOPS,
    GROUPED_TFLOPS,
    SHAPES,
    deepep_us,
    dense_gemm_tflops,
    grouped_gemm_tflops,
    nvls_all_reduce_gbps,
    one_sided_us,
    ring_all_reduce_gbps,
)
from dysharp_env.validation.layers import expected_remote_gpus
from dysharp_env.validation.rows import Role, ValidationRow

GROUP = "measurement"
# Largest error that passes, as a fraction of what was measured.
TOLERANCE: dict[Role, float] = {"predicted": 0.12, "set": 0.02}

# DeepEP, 7168 values, top-8 of 256, FP8 dispatch and BF16 combine: (what, preset, tokens, sending SMs, family of
# kernels, (dispatch, combine) GB/s). V1 has half of its 24 SMs send (docs/legacy.md; uccl-project/uccl, ep/README.md);
# V2, whose kernels copy in bulk, is taken to do so too (README of deepseek-ai/DeepEP).
DEEPEP = (
    ("DeepEP V1 on 8 H200", "dgx-h200", 4096, 12, "warp_queue", (320, 319)),
    ("DeepEP V1 on 8 H800", "dgx-h800", 4096, 12, "warp_queue", (153, 158)),
    ("DeepEP V2 on 8 SM100, 24 SMs", "dgx-b200", 8192, 12, "bulk", (643, 675)),
    ("DeepEP V2 on 8 SM100, 64 SMs", "dgx-b200", 8192, 32, "bulk", (726, 740)),
)
# UCCL-EP gives these as times, too.
DEEPEP_TIMES_US = {"DeepEP V1 on 8 H200": (500.0, 973.0)}
DEEPEP_BYTES = (7392, 14336)
# TensorRT-LLM tech blog 18, NVLinkOneSided on GB200, BF16, 7168 values, 8 distinct ranks of 256 experts: (dispatch,
# combine) us by ranks and tokens per rank.
ONE_SIDED_US = {
    8: {1: (18.9, 31.0), 64: (22.3, 34.1), 128: (31.7, 38.1), 512: (89.5, 91.7), 2048: (311.8, 322.6)},
    32: {1: (19.8, 31.4), 64: (26.2, 36.4), 128: (37.8, 41.1), 512: (109.6, 102.5), 2048: (373.7, 369.5)},
}
# All-reduce of 8 H100, bus bandwidth in GB/s: NVIDIA/nccl issue 1455.
RING_GBPS = (365 + 370) / 2
NVLS_GBPS = 480.0


def measurement_rows(seed: int = 0) -> Iterator[ValidationRow]:
    """Yields every measurement, simulating as it goes; ``seed`` draws random routing and orders."""
    yield from _deepep(seed)
    yield from _one_sided(seed)
    yield from _all_reduce()
    yield from _grouped_gemm()
    yield from _dense_gemm()


def prediction_errors_pct(rows: Iterable[ValidationRow]) -> tuple[float, float]:
    """Returns the mean and largest absolute error of the predicted measurements among ``rows``; 0 if there is none."""
    errors = [abs(row.error_pct) for row in rows if row.group == GROUP and row.role == "predicted"]
    return sum(errors) / max(len(errors), 1), max(errors, default=0.0)


def deepep_published_us(name: str, tokens: int, gbps: tuple[int, int]) -> tuple[float, float]:
    """Returns the times of a dispatch and a combine that a published bandwidth stands for; see the module's text."""
    if name in DEEPEP_TIMES_US:
        return DEEPEP_TIMES_US[name]
    ranks = expected_remote_gpus(256, 8, 8) * 8 / 7
    dispatch_us, combine_us = (
        tokens * ranks * num_bytes / rate / 1e3 for num_bytes, rate in zip(DEEPEP_BYTES, gbps, strict=True)
    )
    return dispatch_us, combine_us


def _row(name: str, expected: float, simulated: float, role: Role) -> ValidationRow:
    return ValidationRow(GROUP, name, expected, simulated, role, TOLERANCE[role] * expected)


def _deepep(seed: int) -> Iterator[ValidationRow]:
    for name, preset, tokens, sms, family, gbps in DEEPEP:
        published = deepep_published_us(name, tokens, gbps)
        simulated = deepep_us(load_system(preset), tokens, sms, seed, family)
        for stage, expected, value in zip(("dispatch", "combine"), published, simulated, strict=True):
            yield _row(f"{name}, {stage}, us", expected, value, "predicted")


def _one_sided(seed: int) -> Iterator[ValidationRow]:
    for ranks, by_tokens in ONE_SIDED_US.items():
        system = load_system("gb200-nvl72", ranks)
        for tokens, published in by_tokens.items():
            simulated = one_sided_us(system, tokens, seed)
            for stage, expected, value in zip(("dispatch", "combine"), published, simulated, strict=True):
                name = f"TensorRT-LLM one-sided on GB200, EP{ranks}, {tokens} tokens, {stage}, us"
                yield _row(name, expected, value, "predicted")


def _all_reduce() -> Iterator[ValidationRow]:
    system = load_system("dgx-h100")
    yield _row("NCCL ring all-reduce of 8 H100, GB/s", RING_GBPS, ring_all_reduce_gbps(system), "predicted")
    yield _row("NCCL NVLS all-reduce of 8 H100, GB/s", NVLS_GBPS, nvls_all_reduce_gbps(system), "predicted")


def _grouped_gemm() -> Iterator[ValidationRow]:
    for (kind, groups, rows), published in GROUPED_TFLOPS.items():
        simulated = grouped_gemm_tflops(groups, rows)
        for shape, expected, value in zip(SHAPES, published, simulated, strict=True):
            # The contiguous rates gave two constants, the coldest masked one a third.
            is_set = kind == "contiguous" or (groups == 4 and shape == SHAPES[0])
            name = f"DeepGEMM {kind} FP8 on H800, {groups} x {rows} rows, {shape}, TFLOP/s"
            yield _row(name, expected, value, "set" if is_set else "predicted")


def _dense_gemm() -> Iterator[ValidationRow]:
    for edge, published in DENSE_TFLOPS.items():
        yield _row(f"cuBLASLt FP8 on GB200, {edge}^3, TFLOP/s", published, dense_gemm_tflops(edge), "set")
