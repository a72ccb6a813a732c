"""A training step: equal stages of layers in a pipeline over nodes.

Activations between nodes, gradient reduction, the optimiser, embeddings and the output head are left out: they cost
every schedule the same. Layers are spread over the stages as evenly as whole layers go; the fullest stage paces the
pipeline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dysharp_env.steps.crosslayer import paired_passes_ps
from dysharp_env.steps.layers import PS_PER_US
from dysharp_env.steps.parts import BlockParts, StepSpec
from dysharp_env.steps.streams import Op, makespan_ps


@dataclass(frozen=True)
class TrainingStep:
    """One training step, us.

    Attributes:
        step_us: The whole step.
        busy_us: What the pacing stage works.
        bubble_us: What it waits.
    """

    step_us: float
    busy_us: float
    bubble_us: float


def training_step(
    spec: StepSpec, layers: int, forward: BlockParts, backward: BlockParts, paired_sms: int | None = None
) -> TrainingStep:
    """Returns a training step of a model of ``layers`` equal layers.

    Args:
        spec: Stages and micro-batches.
        layers: Layers of the model.
        forward: One layer, forward.
        backward: One layer, backward.
        paired_sms: None runs layer after layer under 1F1B. Otherwise passes are paired as DualPipe does, on a GPU of
            this many SMs, of which communication has ``spec.overlap_sms``, also in the layers as simulated.
    """
    stage_layers = -(-layers // spec.stages)
    if paired_sms is None:
        forward_ps, backward_ps = stage_layers * forward.total_ps, stage_layers * backward.total_ps
        total_ps = makespan_ps(one_forward_one_backward(spec.stages, spec.micro_batches, forward_ps, backward_ps))
        busy_ps = spec.micro_batches * (forward_ps + backward_ps)
    else:
        total_ps, busy_ps = _dualpipe_ps(spec, stage_layers, forward, backward, paired_sms)
    return TrainingStep(total_ps / PS_PER_US, busy_ps / PS_PER_US, (total_ps - busy_ps) / PS_PER_US)


def one_forward_one_backward(stages: int, micro_batches: int, forward_ps: int, backward_ps: int) -> Iterator[Op]:
    """Yields the operations of a 1F1B pipeline, each stage a stream.

    A stage runs as many forward passes ahead as there are stages after it, then alternates, then drains.
    """
    for stage in range(stages):
        ahead = min(stages - stage - 1, micro_batches)
        order = [("F", batch) for batch in range(ahead)]
        for batch in range(micro_batches - ahead):
            order += [("F", ahead + batch), ("B", batch)]
        order += [("B", batch) for batch in range(micro_batches - ahead, micro_batches)]
        for kind, batch in order:
            if kind == "F":
                after = (f"F{stage - 1}.{batch}",) if stage else ()
            else:
                after = (f"F{stage}.{batch}", *((f"B{stage + 1}.{batch}",) if stage + 1 < stages else ()))
            yield Op(f"{kind}{stage}.{batch}", f"stage {stage}", forward_ps if kind == "F" else backward_ps, after)


def _dualpipe_ps(
    spec: StepSpec, stage_layers: int, forward: BlockParts, backward: BlockParts, num_sms: int
) -> tuple[int, int]:
    """Returns a step's time and its busy part: a pair for each micro-batch, and DualPipe's bubble.

    The bubble is (stages / 2 - 1) (pair + B - 3 W), with B a whole backward pass and W the part of it that computes
    gradients of weights (DeepSeek-V3 report, arXiv 2412.19437, table 2): half of its GEMM and attention work.
    """
    slowed = [block.on_fewer_sms(num_sms, spec.overlap_sms) for block in (forward, backward)]
    pair_ps = paired_passes_ps(slowed[0], slowed[1], stage_layers)
    # What is not paired has all SMs in its compute phases.
    backward_ps = stage_layers * backward.total_ps
    weights_ps = stage_layers * (backward.around_ps + (backward.cut_ps or (0, 0, 0))[1]) // 2
    bubble_ps = max(0, (spec.stages // 2 - 1) * (pair_ps + backward_ps - 3 * weights_ps))
    busy_ps = spec.micro_batches * pair_ps
    return busy_ps + bubble_ps, busy_ps
