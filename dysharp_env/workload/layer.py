"""The shape of one Mixture-of-Experts layer: sizes, number formats, and the bytes and FLOPs that follow from them.

Everything here is per token, per expert or per (token, expert) pair; how many there are and where they live belongs to
the workload. Left out: the router itself. Shared experts and attention are recorded for whole steps of a model; they
run where the token lives and send nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dysharp_env.config import Spec, find_config, parse_spec, read_yaml
from dysharp_env.workload.formats import FORMATS, NATIVE_FORMAT, ComputeName, Format, FormatName
from dysharp_env.workload.hub_config import read_hub_config
from dysharp_env.workload.transformer import Size, TransformerSpec


class LayerSpec(Spec):
    """One MoE layer as the scheduler sees it."""

    name: str = Field(min_length=1)
    """Name shown in results."""
    hidden: Size
    """Values in a token's vector."""
    moe_ff: Size
    """Inner width of one expert."""
    experts: Annotated[int, Field(ge=1, le=65536)]
    """Routed experts in the layer."""
    top_k: Size
    """Experts each token chooses, all distinct; of those that compute nothing it goes to none."""
    ffn_matrices: Literal[2, 3]
    """Matrices of an expert: up and down (2), or gate, up and down (3); gate and up are one GEMM-1."""
    dispatch_dtype: FormatName = "bf16"
    """Format of a vector on its way to an expert."""
    combine_dtype: Literal["bf16", "fp8"] = "bf16"
    """Format of a result on its way home; the switch sums it only if the system says so (``reduction_dtypes``)."""
    compute_dtype: ComputeName
    """Rate at which both GEMMs run; what lies between them is in its format, NVFP4 for ``fp4``."""
    weight_dtype: FormatName | None = None
    """Format of the weights that GEMMs read; none means that of ``compute_dtype``."""
    tile_tokens: Size = 128
    """Tokens of one expert that form a tile (the paper's best ``tsize``, DySHARP, arXiv 2605.05607)."""
    direction: Literal["forward", "backward"] = "forward"
    """Training pass; backward moves the same vectors and does the GEMM work twice, or what the next keys say."""
    weight_gradients: Literal["fused", "deferred"] = "fused"
    """Of a backward pass. ``fused``: computed beside gradients of inputs, so that both GEMMs are done twice.
    ``deferred``: after the last token is home, at all SMs, and written in FP32."""
    recompute: bool = False
    """Whether a backward pass with deferred weight gradients does GEMM-1 again, for which every token's input is
    dispatched again beside its gradient; false: inputs and activations were kept on the expert's GPU."""
    shared_experts: Annotated[int, Field(ge=0)] = 0
    """Experts that every token visits at home: part of a whole step, not of the layer."""
    zero_experts: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Further experts that the router may choose and that compute nothing (LongCat-Flash, arXiv 2509.01322): a token
    that chooses some of them has fewer than ``top_k`` to go to."""
    n_group: Size = 1
    """Groups the experts are divided into for routing; 1 means none."""
    topk_group: Size = 1
    """Groups one token may draw its experts from."""
    source: str = ""
    """Public document the numbers come from; every preset names one."""
    transformer: TransformerSpec | None = None
    """The model around the layer; none where only the layer is known."""

    @model_validator(mode="after")
    def _check_routing(self) -> LayerSpec:
        if self.top_k > self.choices:
            zero = f" and zero_experts={self.zero_experts} together" if self.zero_experts else ""
            raise ValueError(f"top_k={self.top_k} must be at most experts={self.experts}{zero}")
        if self.zero_experts and self.n_group > 1:
            raise ValueError(f"zero_experts={self.zero_experts} needs n_group=1, not {self.n_group}")
        if self.recompute and self.weight_gradients == "fused":
            raise ValueError("recompute=true needs weight_gradients='deferred', not 'fused'")
        if self.experts % self.n_group:
            raise ValueError(f"experts={self.experts} must be divisible by n_group={self.n_group}")
        if self.topk_group > self.n_group:
            raise ValueError(f"topk_group={self.topk_group} must be at most n_group={self.n_group}")
        reachable = self.topk_group * (self.experts // self.n_group) + self.zero_experts
        if self.top_k > reachable:
            raise ValueError(
                f"top_k={self.top_k} must be at most the {reachable} experts in topk_group={self.topk_group} "
                f"of n_group={self.n_group} groups"
            )
        return self

    @property
    def choices(self) -> int:
        """Experts that the router chooses from: those that compute, then those that do not."""
        return self.experts + self.zero_experts

    @property
    def dispatch_bytes(self) -> int:
        """Payload bytes of one token's vector in dispatch, scales included; of both where it is recomputed."""
        return FORMATS[self.dispatch_dtype].vector_bytes(self.hidden) * self.dispatched_vectors

    @property
    def is_deferred(self) -> bool:
        """Whether this is a backward pass whose GEMMs compute gradients of inputs alone."""
        return self.direction == "backward" and self.weight_gradients == "deferred"

    @property
    def dispatched_vectors(self) -> int:
        """Vectors sent for a token: its input, or its gradient; both where activations are recomputed."""
        return 2 if self.is_deferred and self.recompute else 1

    @property
    def combine_bytes(self) -> int:
        """Payload bytes of one token's result in combine, scales included."""
        return FORMATS[self.combine_dtype].vector_bytes(self.hidden)

    @property
    def forward_gemms(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(Output columns, inner dimension) of GEMM-1, gate and up side by side if it has both, and of GEMM-2."""
        return (self.moe_ff * (self.ffn_matrices - 1), self.hidden), (self.hidden, self.moe_ff)

    @property
    def gemms(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(Output columns, inner dimension) of what stages GEMM-1 and GEMM-2 of this pass compute.

        Gradients of inputs go back through the last matrix first; recomputed activations are columns beside them.
        """
        if not self.is_deferred:
            return self.forward_gemms
        inner = self.moe_ff * (self.ffn_matrices - 1)
        return (self.moe_ff + inner * self.recompute, self.hidden), (self.hidden, inner)

    @property
    def weight_bytes(self) -> tuple[int, ...]:
        """Bytes of one expert's weights in each stage's GEMM, scales included."""
        return tuple(self.weight_format.matrix_bytes(columns * depth) for columns, depth in self.gemms)

    @property
    def weight_format(self) -> Format:
        """How weights are stored."""
        return FORMATS[self.weight_dtype or NATIVE_FORMAT[self.compute_dtype]]

    @property
    def compute_format(self) -> Format:
        """How vectors are stored that GEMMs compute with."""
        return FORMATS[NATIVE_FORMAT[self.compute_dtype]]

    @property
    def mid_bytes(self) -> int:
        """Bytes of one token at one expert between the GEMMs, scales included: what GEMM-2 reads."""
        (_, _), (_, depth) = self.gemms
        return self.compute_format.vector_bytes(depth)

    @property
    def gemm_flops(self) -> tuple[int, ...]:
        """Forward FLOPs of each GEMM for one token at one expert (a multiply and an add count as two)."""
        return tuple(2 * columns * depth for columns, depth in self.forward_gemms)

    @property
    def work_factor(self) -> int:
        """Times the forward work this pass does in all: backward needs gradients of inputs and of weights."""
        return 2 if self.direction == "backward" else 1

    @property
    def gemm_factor(self) -> int:
        """Times the GEMMs of the stages are done while tokens are under way: less where weight gradients wait."""
        return 1 if self.is_deferred else self.work_factor


def load_model(name_or_path: str, top_k: int | None = None, **overrides: Any) -> LayerSpec:
    """Returns the layer of a preset name or path, with ``top_k`` and others of its fields replaced if not None.

    A path is that of a YAML file of these fields, or of a model hub's ``config.json``.

    Raises:
        ConfigError: No such model, or a key or value in it or in the overrides is wrong.
    """
    changes = {key: value for key, value in {"top_k": top_k, **overrides}.items() if value is not None}
    if name_or_path.endswith(".json"):
        return parse_spec(LayerSpec, {**read_hub_config(Path(name_or_path)), **changes}, source=name_or_path)
    path = find_config("models", name_or_path)
    source = f"models/{name_or_path}" if path.stem == name_or_path else name_or_path
    return parse_spec(LayerSpec, {**read_yaml(path), **changes}, source=source)
