"""Overlap across layers: two batches on two streams, one computing while the other communicates.

Each GPU has a compute stream and a communication stream. The communication stream does one thing at a time, so dispatch
and combine never share the links; the operations and their order are what the published schedules issue. Where only
attention is to run beside communication, experts take their turn in the communication stream.
"""

from __future__ import annotations

from collections.abc import Iterator

from dysharp_env.reproduction.steps.parts import BlockParts
from dysharp_env.reproduction.steps.streams import Op

COMPUTE, COMMUNICATION = "compute", "communication"
# Where experts run, by ``StepSpec.overlap_beside``.
EXPERTS_STREAM = {"everything": COMPUTE, "attention": COMMUNICATION}


def two_batch_ops(block: BlockParts, layers: int) -> Iterator[Op]:
    """Yields the order of vLLM's dual-batch overlap (its page "Dual Batch Overlap"), shared experts with attention.

    Two micro-batches, each of ``block``'s size, go through ``layers`` equal layers.
    Compute runs attention a, attention b, experts a, experts b; communication dispatch a, dispatch b, combine a,
    combine b; so experts a run beside dispatch b, and attention a of the next layer beside combine b.
    """
    dispatch_ps, gemms_ps, combine_ps = block.phases_ps()
    for layer in range(layers):
        for batch in "ab":
            before = (f"C{layer - 1}{batch}",) if layer else ()
            yield Op(f"A{layer}{batch}", COMPUTE, block.around_ps, before)
        for batch in "ab":
            yield Op(f"D{layer}{batch}", COMMUNICATION, dispatch_ps, (f"A{layer}{batch}",))
            yield Op(f"M{layer}{batch}", COMPUTE, gemms_ps, (f"D{layer}{batch}",))
        for batch in "ab":
            yield Op(f"C{layer}{batch}", COMMUNICATION, combine_ps, (f"M{layer}{batch}",))


def paired_passes_ops(forward: BlockParts, backward: BlockParts, layers: int, experts: str = COMPUTE) -> Iterator[Op]:
    """Yields DualPipe's order for a forward and a backward pass (DeepSeek-V3 report, arXiv 2412.19437, figure 4).

    Per layer compute runs experts backward, experts forward, attention backward, attention forward of the next layer;
    communication runs dispatch forward, dispatch backward, combine forward, combine backward of the next layer. In a
    backward pass gradients take the way of the combine first and that of the dispatch last.
    """
    f_dispatch, f_gemms, f_combine = forward.phases_ps()
    # The backward of a combine sends what a dispatch sends, and the other way round; the layer runs in that order.
    b_first, b_gemms, b_last = backward.phases_ps()
    yield Op("FA0", COMPUTE, forward.around_ps)
    yield Op("BC0", COMMUNICATION, b_first)
    for layer in range(layers):
        yield Op(f"FD{layer}", COMMUNICATION, f_dispatch, (f"FA{layer}",))
        yield Op(f"BM{layer}", experts, b_gemms, (f"BC{layer}",))
        yield Op(f"FM{layer}", experts, f_gemms, (f"FD{layer}",))
        yield Op(f"BD{layer}", COMMUNICATION, b_last, (f"BM{layer}",))
        yield Op(f"FC{layer}", COMMUNICATION, f_combine, (f"FM{layer}",))
        yield Op(f"BA{layer}", COMPUTE, backward.around_ps, (f"BD{layer}",))
        if layer + 1 < layers:
            yield Op(f"FA{layer + 1}", COMPUTE, forward.around_ps, (f"FC{layer}",))
            yield Op(f"BC{layer + 1}", COMMUNICATION, b_first, (f"BA{layer}",))
