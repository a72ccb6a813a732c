"""The numbers of one MoE layer: token vectors, gate weights and expert matrices, and what the layer must return.

An expert is two matrices with a ReLU between them (up, down; as in DySHARP, arXiv 2605.05607), or three, where
SiLU(x gate) scales x up before down (SwiGLU, arXiv 2002.05202). All is float32. Gate weights are applied where GEMM-2
writes its results, since the switch only sums (DySHARP). Number formats below float32 are left out: they would round
the same values, but hide mistakes of the machine behind their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dysharp_env.config import ConfigError
from dysharp_env.workload import Workload


@dataclass(frozen=True)
class MoeTensors:
    """The numbers of one layer, all float32. Experts are logical ones: replicas have the same matrices."""

    tokens: np.ndarray  # (token, hidden)
    gate_weights: np.ndarray  # (token, top_k) weight of each expert of ``Workload.topk_ids``, anything where none is
    up: np.ndarray  # (expert, hidden, inner)
    down: np.ndarray  # (expert, inner, hidden)
    gate: np.ndarray | None = None  # (expert, hidden, inner), of three-matrix experts only

    @property
    def hidden(self) -> int:
        """Values in a token's vector."""
        return self.tokens.shape[1]

    def gemm1(self, expert: int, inputs: np.ndarray) -> np.ndarray:
        """Returns what one expert's GEMM-1 writes, (row, inner), in the precision of ``inputs`` (row, hidden)."""
        scaled = inputs @ self.up[expert]
        if self.gate is None:
            return np.maximum(scaled, 0)
        gate = inputs @ self.gate[expert]
        return gate / (1 + np.exp(-gate)) * scaled

    def gemm2(self, expert: int, inner: np.ndarray, gate_weights: np.ndarray) -> np.ndarray:
        """Returns what one expert's GEMM-2 writes, (row, hidden), each row scaled by its gate weight (row,)."""
        return gate_weights[:, None] * (inner @ self.down[expert])


def random_tensors(workload: Workload, hidden: int, inner: int, seed: int = 0) -> MoeTensors:
    """Returns normal values scaled so that outputs are about 1, for a layer of any width.

    Experts have as many matrices as the workload's layer says.
    """
    rng = np.random.default_rng(seed)
    experts, top_k = workload.layer.experts, workload.layer.top_k

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    weights = rng.random((workload.num_tokens, top_k)) + 0.1
    return MoeTensors(
        tokens=normal(workload.num_tokens, hidden),
        gate_weights=(weights / weights.sum(axis=1, keepdims=True)).astype(np.float32),
        up=normal(experts, hidden, inner, scale=hidden**-0.5),
        down=normal(experts, inner, hidden, scale=inner**-0.5),
        gate=normal(experts, hidden, inner, scale=hidden**-0.5) if workload.layer.ffn_matrices == 3 else None,
    )


def check_tensors(workload: Workload, tensors: MoeTensors) -> None:
    """Checks shapes and types against the workload.

    Raises:
        ConfigError: One of them does not fit.
    """
    experts, inner, hidden = workload.layer.experts, tensors.up.shape[-1], tensors.tokens.shape[-1]
    expected = {
        "tokens": (workload.num_tokens, hidden),
        "gate_weights": (workload.num_tokens, workload.layer.top_k),
        "up": (experts, hidden, inner),
        "down": (experts, inner, hidden),
    }
    if (tensors.gate is not None) != (workload.layer.ffn_matrices == 3):
        given = "missing" if tensors.gate is None else "given"
        raise ConfigError(
            f"tensors.gate is {given}; '{workload.layer.name}' has {workload.layer.ffn_matrices} matrices"
        )
    if tensors.gate is not None:
        expected["gate"] = (experts, hidden, inner)
    for name, shape in expected.items():
        array = getattr(tensors, name)
        if array.shape != shape or array.dtype != np.float32:
            raise ConfigError(f"tensors.{name} is {array.dtype} {array.shape}; it must be float32 {shape}")


def dense_moe(workload: Workload, tensors: MoeTensors) -> np.ndarray:
    """Returns the layer's outputs, (token, hidden) float32, expert by expert in float64: no dispatch, no switch.

    Experts that a token lacks add nothing; the output of one without any is 0.
    """
    outputs = np.zeros(tensors.tokens.shape)
    for expert in range(workload.layer.experts):
        token, place = np.nonzero(workload.logical_ids == expert)
        inner = tensors.gemm1(expert, tensors.tokens[token].astype(np.float64))
        outputs[token] += tensors.gemm2(expert, inner, tensors.gate_weights[token, place])
    return outputs.astype(np.float32)
