"""Inference steps: a prefill of one prompt per GPU, and the decoding of tokens after it.

Layers follow each other; a two-batch variant overlaps two halves of the batch. Embeddings, the output head and sampling
are left out.
"""

from __future__ import annotations

from dysharp_env.reproduction.steps.crosslayer import two_batch_ops
from dysharp_env.reproduction.steps.layers import PS_PER_US, LayerCase, LayerTimes
from dysharp_env.reproduction.steps.parts import BlockParts, StepSpec, around_ps, block_parts, unscaled_ps
from dysharp_env.reproduction.steps.streams import makespan_ps


def prefill_us(case: LayerCase, times: LayerTimes) -> float:
    """Returns the time of a prompt of ``case.tokens`` per GPU through all layers of its model, us."""
    moe_layers, dense_ps = _layers(case, 1, case.tokens, 0)
    return (moe_layers * block_parts(case, times).total_ps + dense_ps) / PS_PER_US


def prefill_two_batch_us(case: LayerCase, times: LayerTimes, spec: StepSpec) -> float:
    """Returns the time of two prompts of ``case.tokens`` per GPU through all layers, one computing as one sends, us."""
    moe_layers, dense_ps = _layers(case, 1, case.tokens, 0)
    block = block_parts(case, times).on_fewer_sms(case.system.gpu.num_sms, spec.overlap_sms)
    return (makespan_ps(two_batch_ops(block, moe_layers)) + 2 * dense_ps) / PS_PER_US


def decode_us(case: LayerCase, times: LayerTimes, spec: StepSpec, prompt_tokens: int) -> float:
    """Returns the time of ``spec.decode_tokens`` decoding steps, us.

    ``case`` has one token of each sequence, so ``case.tokens`` sequences per GPU, and is simulated once: routing
    changes from step to step, its cost hardly. To ``prompt_tokens`` in the KV cache each step adds one.
    """
    total_ps = 0
    for decoded in range(spec.decode_tokens):
        moe_layers, dense_ps = _layers(case, case.tokens, 1, prompt_tokens + decoded)
        block = BlockParts(around_ps(case, case.tokens, 1, prompt_tokens + decoded), times.makespan_ps)
        total_ps += moe_layers * block.total_ps + dense_ps
    return total_ps / PS_PER_US


def _layers(case: LayerCase, sequences: int, new_tokens: int, cached_tokens: int) -> tuple[int, int]:
    """Returns the number of MoE layers, and the time of all dense ones, ps."""
    model = case.layer.transformer
    assert model is not None, f"'{case.layer.name}' has no model around it"
    dense_ps = model.dense_layers * unscaled_ps(case, model.dense_ff, sequences, new_tokens, cached_tokens)
    return model.layers - model.dense_layers, round(dense_ps * case.compute_scale)
