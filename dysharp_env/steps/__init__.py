"""What a whole step of a model costs: simulated MoE layers, rooflines around them, streams and pipelines of them."""

from dysharp_env.steps.inference import decode_us, prefill_us
from dysharp_env.steps.layers import LayerCase, LayerTimes, simulate_case
from dysharp_env.steps.parts import BlockParts, StepSpec, block_parts
from dysharp_env.steps.training import TrainingStep, training_step

__all__ = [
    "BlockParts",
    "LayerCase",
    "LayerTimes",
    "StepSpec",
    "TrainingStep",
    "block_parts",
    "decode_us",
    "prefill_us",
    "simulate_case",
    "training_step",
]
