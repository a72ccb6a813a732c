"""The parts of one transformer layer in time, and the settings of a whole step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from dysharp_env.config import Spec
from dysharp_env.reproduction.steps.layers import LayerCase, LayerTimes
from dysharp_env.reproduction.steps.roofline import attention_work, ffn_work, total_ps

Count = Annotated[int, Field(ge=1, le=100_000)]


class StepSpec(Spec):
    """How layers are put together to a step of training or inference."""

    stages: Count = 16
    """Pipeline stages, one node each (DySHARP, arXiv 2605.05607)."""
    micro_batches: Count = 120
    """Micro-batches of a training step: DeepSeek-V3's 15360 sequences over 128 pipelines (2048 GPUs in 16 stages), one
    sequence per GPU (arXiv 2412.19437, sections 3.2 and 4.2); the DySHARP paper gives none."""
    overlap_sms: Count = 20
    """SMs that communication has, and GEMMs do without, where layers overlap (DualPipe, arXiv 2412.19437)."""
    overlap_beside: Literal["everything", "attention"] = "everything"
    """What computes beside the communication of the other pass in DualPipe: attention and experts, as published, or
    attention alone, with each MoE layer in phases as without overlap."""
    decode_sequences: Count = 128
    """Sequences each GPU decodes together: DeepEP's published low-latency setting."""
    decode_tokens: Count = 512
    """Tokens decoded after a prompt (DySHARP, arXiv 2605.05607)."""


@dataclass(frozen=True)
class BlockParts:
    """Times of one pass through one transformer layer, ps.

    Attributes:
        around_ps: Attention and shared experts, which come before the MoE layer (after it, in a backward pass).
        moe_ps: The MoE layer as simulated.
        cut_ps: Its dispatch, GEMMs and combine, if it ran in phases.
    """

    around_ps: int
    moe_ps: int
    cut_ps: tuple[int, int, int] | None = None

    @property
    def total_ps(self) -> int:
        """The whole layer, its parts one after another."""
        return self.around_ps + self.moe_ps

    def phases_ps(self) -> tuple[int, int, int]:
        """Returns the times of dispatch, GEMMs and combine.

        Raises:
            ValueError: The layer cannot be cut.
        """
        if self.cut_ps is None:
            raise ValueError("only a layer run in phases can overlap with other layers")
        return self.cut_ps

    def on_fewer_sms(self, num_sms: int, taken: int) -> BlockParts:
        """Returns the parts with everything that computes slowed down as if ``taken`` of ``num_sms`` SMs were away.

        Raises:
            ValueError: The layer cannot be cut.
        """
        dispatch_ps, gemms_ps, combine_ps = self.phases_ps()
        gemms_ps, around_ps = (each * num_sms // (num_sms - taken) for each in (gemms_ps, self.around_ps))
        return BlockParts(around_ps, dispatch_ps + gemms_ps + combine_ps, (dispatch_ps, gemms_ps, combine_ps))


def around_ps(case: LayerCase, sequences: int, new_tokens: int, cached_tokens: int = 0) -> int:
    """Returns the time of a layer's attention and shared experts in the pass of ``case``."""
    width = case.layer.shared_experts * case.layer.moe_ff
    return round(unscaled_ps(case, width, sequences, new_tokens, cached_tokens) * case.compute_scale)


def unscaled_ps(case: LayerCase, width: int, sequences: int, new_tokens: int, cached_tokens: int) -> int:
    """Returns the time of attention and of a dense FFN of inner ``width``, before ``compute_scale``."""
    attention = attention_work(case.layer, sequences, new_tokens, cached_tokens)
    ffn = ffn_work(case.layer, width, sequences * new_tokens)
    return total_ps(case.system.gpu, (*attention, ffn), case.layer.work_factor)


def block_parts(case: LayerCase, times: LayerTimes) -> BlockParts:
    """Returns the parts of a layer that holds one training sequence (or prompt) of ``case.tokens`` on every GPU."""
    cut = times.cut() if times.is_phased else None
    return BlockParts(around_ps(case, 1, case.tokens), times.makespan_ps, cut)
