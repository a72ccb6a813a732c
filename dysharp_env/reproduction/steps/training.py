"""A training step: equal stages of layers in a pipeline over nodes.

Activations between nodes, gradient reduction, the optimiser, embeddings and the output head are left out: they cost
every schedule the same. Layers are spread over the stages as evenly as whole layers go; the fullest stage paces the
pipeline.
"""

from __future__ import annotations

from dysharp_env.reproduction.steps.crosslayer import EXPERTS_STREAM, paired_passes_ops
from dysharp_env.reproduction.steps.parts import BlockParts, StepSpec
from dysharp_env.reproduction.steps.pipelines import PassTimes, dualpipe, one_forward_one_backward
from dysharp_env.reproduction.steps.streams import Op, makespan_ps


def training_ops(
    spec: StepSpec, layers: int, forward: BlockParts, backward: BlockParts, paired_sms: int | None = None
) -> list[Op]:
    """Returns the operations of a training step of a model of ``layers`` equal layers, each node a stream.

    Without ``paired_sms``, layer runs after layer under 1F1B. Otherwise passes are paired as DualPipe does, on a GPU of
    this many SMs, of which communication has ``spec.overlap_sms``, also in the layers as simulated.

    Raises:
        ValueError: Passes are to be paired, but layers do not run in phases, or stages and micro-batches do not fit
            DualPipe.
    """
    stage_layers = -(-layers // spec.stages)
    forward_ps, backward_ps = stage_layers * forward.total_ps, stage_layers * backward.total_ps
    if paired_sms is None:
        return [*one_forward_one_backward(spec.stages, spec.micro_batches, forward_ps, backward_ps)]
    slow_forward, slow_backward = (block.on_fewer_sms(paired_sms, spec.overlap_sms) for block in (forward, backward))
    paired = paired_passes_ops(slow_forward, slow_backward, stage_layers, EXPERTS_STREAM[spec.overlap_beside])
    times = PassTimes(
        # What is not paired has all SMs in its compute phases.
        forward_ps=forward_ps,
        backward_ps=backward_ps,
        # Half of a backward pass's GEMM and attention work is for weights.
        weights_ps=stage_layers * (backward.around_ps + backward.phases_ps()[1]) // 2,
        pair_ps=makespan_ps(paired),
    )
    return [*dualpipe(spec.stages, spec.micro_batches, times)]
