"""What surrounds an MoE layer in its model: attention, shared and dense parts, how many layers, how long a sequence.

Sizes only; what they cost on a GPU belongs to ``steps``. Left out: embeddings, the output head, norms, the router, and
attention windows (a windowed layer is counted as a full one).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dysharp_env.config import Spec

Size = Annotated[int, Field(ge=1, le=1_000_000)]
SizeOrZero = Annotated[int, Field(ge=0, le=1_000_000)]


class AttentionSpec(Spec):
    """Multi-head or grouped-query attention; with ``latent_kv`` above zero, multi-head latent attention (MLA)."""

    heads: Size
    """Query heads."""
    kv_heads: Size
    """Key and value heads; with MLA all heads share one latent vector and this equals ``heads``."""
    head_dim: Size
    """Values of one query or key, without the rotary part that MLA keeps apart."""
    rotary_dim: SizeOrZero = 0
    """Values of the rotary part that MLA adds to queries and keys; its key is shared by all heads."""
    latent_query: SizeOrZero = 0
    """Width of the compressed query (MLA); 0 projects queries directly."""
    latent_kv: SizeOrZero = 0
    """Width of the compressed key and value (MLA); 0 caches keys and values themselves."""

    @model_validator(mode="after")
    def _check_heads(self) -> AttentionSpec:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.latent_kv and self.kv_heads != self.heads:
            raise ValueError(f"kv_heads={self.kv_heads} must equal heads={self.heads} where latent_kv is given")
        if not self.latent_kv and (self.latent_query or self.rotary_dim):
            raise ValueError("latent_query and rotary_dim belong to MLA and need latent_kv")
        return self

    def weights(self, hidden: int) -> int:
        """Returns the values in the projections of one layer whose vectors have ``hidden`` values."""
        query_width = self.heads * (self.head_dim + self.rotary_dim)
        output = self.heads * self.head_dim * hidden
        query = self.latent_query * (hidden + query_width) if self.latent_query else hidden * query_width
        if self.latent_kv:
            down = hidden * (self.latent_kv + self.rotary_dim)
            return query + down + self.latent_kv * self.heads * 2 * self.head_dim + output
        return query + hidden * self.kv_heads * 2 * self.head_dim + output

    @property
    def cached_values(self) -> int:
        """Values that one token leaves in the KV cache of one layer."""
        return self.latent_kv + self.rotary_dim if self.latent_kv else 2 * self.kv_heads * self.head_dim

    def pair_flops(self, absorbed: bool) -> int:
        """Returns the FLOPs of one query with one key and value: score and weighted sum, all heads.

        ``absorbed`` MLA works on latent vectors, as decoding does, rather than on projected keys and values.
        """
        if self.latent_kv and absorbed:
            return 2 * self.heads * (2 * self.latent_kv + self.rotary_dim)
        return 2 * self.heads * (2 * self.head_dim + self.rotary_dim)


class TransformerSpec(Spec):
    """A model of equal MoE layers, some of which may be dense."""

    layers: Size
    """Layers of the whole model."""
    dense_layers: SizeOrZero = 0
    """How many of them have a dense FFN in place of the MoE layer."""
    dense_ff: SizeOrZero = 0
    """Inner width of a dense layer's FFN."""
    sequence_tokens: Size
    """Tokens of one training sequence, which is also what one GPU has in one micro-batch."""
    attention: AttentionSpec
    source: str = Field(min_length=1)
    """Public document the numbers come from, and what it leaves open."""

    @model_validator(mode="after")
    def _check_dense(self) -> TransformerSpec:
        if self.dense_layers > self.layers:
            raise ValueError(f"dense_layers={self.dense_layers} must be at most layers={self.layers}")
        if bool(self.dense_layers) != bool(self.dense_ff):
            raise ValueError("dense_layers and dense_ff must be given together")
        return self
