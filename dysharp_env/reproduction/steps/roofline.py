"""Time of the parts of a model that no scheduler touches: attention, shared experts, dense layers.

Each operation takes the longer of its FLOPs at the GPU's GEMM rate and its bytes at HBM's rate; operations follow each
other. Attention is data-parallel: every GPU has whole sequences, and all heads of them. Softmax, norms and element-wise
work are left out. Score and weighted sum run in BF16 whatever the projections use, as attention kernels do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dysharp_env.system.spec import GpuSpec
from dysharp_env.workload import LayerSpec
from dysharp_env.workload.formats import FORMATS, NATIVE_FORMAT, ComputeName

PS_PER_S = 10**12
ACTIVATION_BYTES = 2  # BF16


@dataclass(frozen=True)
class Work:
    """One operation on one GPU: FLOPs in one number format, and bytes through HBM."""

    flops: int
    num_bytes: int
    dtype: ComputeName

    def time_ps(self, gpu: GpuSpec) -> int:
        """Returns the longer of compute and memory time, rounded down."""
        compute_s = self.flops / (gpu.gemm_tflops(self.dtype) * 1e12)
        memory_s = self.num_bytes / (gpu.hbm_efficiency * gpu.hbm_gbps * 1e9)
        return int(max(compute_s, memory_s) * PS_PER_S)


def total_ps(gpu: GpuSpec, works: Iterable[Work], work_factor: int = 1) -> int:
    """Returns the time of operations one after another; a backward pass does each ``work_factor`` times."""
    return sum(work.time_ps(gpu) for work in works) * work_factor


def attention_work(layer: LayerSpec, sequences: int, new_tokens: int, cached_tokens: int = 0) -> tuple[Work, Work]:
    """Returns a layer's projections and its attention over keys, causal, on one GPU.

    ``new_tokens`` of each sequence pass through the layer, 1 where it decodes; the keys and values of the
    ``cached_tokens`` before them are read from the KV cache.
    """
    assert layer.transformer is not None, f"'{layer.name}' has no attention"
    attention, hidden, dtype = layer.transformer.attention, layer.hidden, layer.compute_dtype
    tokens = sequences * new_tokens
    weights = attention.weights(hidden)
    projections = Work(
        flops=2 * weights * tokens,
        num_bytes=_weight_bytes(weights, dtype) + 2 * tokens * hidden * ACTIVATION_BYTES,
        dtype=dtype,
    )
    # A new token sees what is cached, the new tokens before it and itself.
    pairs = sequences * (new_tokens * cached_tokens + new_tokens * (new_tokens + 1) // 2)
    cache = sequences * (cached_tokens + new_tokens) * attention.cached_values
    queries_and_outputs = 2 * tokens * attention.heads * attention.head_dim
    core = Work(
        flops=pairs * attention.pair_flops(absorbed=new_tokens == 1),
        num_bytes=(cache + queries_and_outputs) * ACTIVATION_BYTES,
        dtype="bf16",
    )
    return projections, core


def ffn_work(layer: LayerSpec, width: int, tokens: int) -> Work:
    """Returns a dense FFN of inner ``width`` over ``tokens``: shared experts, or a dense layer's own."""
    weights = layer.ffn_matrices * layer.hidden * width
    num_bytes = _weight_bytes(weights, layer.compute_dtype) + 2 * tokens * layer.hidden * ACTIVATION_BYTES
    return Work(2 * weights * tokens, num_bytes if width else 0, layer.compute_dtype)


def _weight_bytes(weights: int, dtype: ComputeName) -> int:
    """Returns the bytes of weights in the format that tensor cores of a rate read."""
    return FORMATS[NATIVE_FORMAT[dtype]].matrix_bytes(weights)
