"""A training step: equal stages of layers in a pipeline over nodes.

Activations between nodes, gradient reduction, the optimiser, embeddings and the output head are left out: they cost
every schedule the same. Layers are spread over the stages as evenly as whole layers go; the fullest stage paces the
pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass

from dysharp_env.reproduction.steps.crosslayer import paired_passes_ps
from dysharp_env.reproduction.steps.layers import PS_PER_US
from dysharp_env.reproduction.steps.parts import BlockParts, StepSpec
from dysharp_env.reproduction.steps.pipelines import PassTimes, dualpipe, one_forward_one_backward
from dysharp_env.reproduction.steps.streams import Op, makespan_ps


@dataclass(frozen=True)
class TrainingStep:
    """One training step, us.

    Attributes:
        step_us: The whole step.
        busy_us: What the busiest node works.
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

    Raises:
        ValueError: Passes are to be paired, but layers do not run in phases, or stages and micro-batches do not fit
            DualPipe.
    """
    stage_layers = -(-layers // spec.stages)
    forward_ps, backward_ps = stage_layers * forward.total_ps, stage_layers * backward.total_ps
    if paired_sms is None:
        ops = one_forward_one_backward(spec.stages, spec.micro_batches, forward_ps, backward_ps)
    else:
        slowed = [block.on_fewer_sms(paired_sms, spec.overlap_sms) for block in (forward, backward)]
        times = PassTimes(
            # What is not paired has all SMs in its compute phases.
            forward_ps=forward_ps,
            backward_ps=backward_ps,
            # Half of a backward pass's GEMM and attention work is for weights.
            weights_ps=stage_layers * (backward.around_ps + backward.phases_ps()[1]) // 2,
            pair_ps=paired_passes_ps(slowed[0], slowed[1], stage_layers, spec.overlap_beside),
        )
        ops = dualpipe(spec.stages, spec.micro_batches, times)
    return _step_of(list(ops))


def _step_of(ops: list[Op]) -> TrainingStep:
    busy_ps: dict[str, int] = {}
    for op in ops:
        busy_ps[op.stream] = busy_ps.get(op.stream, 0) + op.duration_ps
    total_ps, most_ps = makespan_ps(ops), max(busy_ps.values())
    return TrainingStep(total_ps / PS_PER_US, most_ps / PS_PER_US, (total_ps - most_ps) / PS_PER_US)
