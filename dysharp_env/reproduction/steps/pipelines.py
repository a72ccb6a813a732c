"""Pipelines of equal stages over nodes: in which order each node runs its forward and backward passes.

A node is a stream, and a pass starts when its node is free and its neighbour has finished the same micro-batch. The
orders are the published ones: 1F1B, and DeepSeek's DualPipe, whose micro-batches enter from both ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from dysharp_env.reproduction.steps.streams import Op


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


@dataclass(frozen=True)
class PassTimes:
    """What one stage's passes over one micro-batch take, ps.

    Attributes:
        forward_ps: A forward pass by itself.
        backward_ps: A backward pass by itself.
        weights_ps: The part of a backward pass that computes gradients of weights, which may run later.
        pair_ps: A forward and a backward pass of two micro-batches, overlapped.
    """

    forward_ps: int
    backward_ps: int
    weights_ps: int
    pair_ps: int

    @property
    def inputs_ps(self) -> int:
        """A backward pass whose gradients of weights are put off."""
        return self.backward_ps - self.weights_ps


@dataclass(frozen=True)
class _Step:
    """One entry of a node's order: passes as (kind, end that the micro-batch entered at), and what they take."""

    takes: str  # a field of ``PassTimes``
    passes: tuple[tuple[str, int], ...] = ()


NEAR, FAR = range(2)
_FORWARD = [_Step("forward_ps", (("F", end),)) for end in (NEAR, FAR)]
_BACKWARD = [_Step("backward_ps", (("B", end),)) for end in (NEAR, FAR)]
_INPUTS = [_Step("inputs_ps", step.passes) for step in _BACKWARD]
_WEIGHTS = _Step("weights_ps")
# Forward of one end with backward of the other.
_PAIR = [_Step("pair_ps", (("F", end), ("B", 1 - end))) for end in (NEAR, FAR)]


def dualpipe(stages: int, micro_batches: int, times: PassTimes) -> Iterator[Op]:
    """Yields the operations of DualPipe (DeepSeek-V3 report, arXiv 2412.19437, section 3.2.1), each node a stream.

    A node holds the stage of its place from either end. Passes are overlapped in pairs where the published order pairs
    them: not while the pipeline fills and drains. Gradients of weights are put off where they shorten the drain.

    Raises:
        ValueError: ``stages`` or ``micro_batches`` is odd, or there are fewer than two micro-batches for each stage.
    """
    if stages % 2 or micro_batches % 2 or micro_batches < 2 * stages:
        raise ValueError(
            f"DualPipe needs even stages and micro-batches, two or more a stage, not {stages} and {micro_batches}"
        )
    plans = [_plan(node, stages, micro_batches) for node in range(stages)]
    where = {name: op for plan in plans for op, names, _ in plan for name in names}
    for node, plan in enumerate(plans):
        for op, names, step in plan:
            after = {where[need] for name in names for need in _needs(name, stages)} - {op}
            yield Op(op, f"node {node}", getattr(times, step.takes), tuple(sorted(after)))


def _order(stages: int, micro_batches: int, place: int) -> list[_Step]:
    """Returns the order of a node that is ``place`` nodes from the nearer end of the pipeline."""
    inner, outer = stages // 2 - place - 1, place + 1
    order = [_FORWARD[NEAR]] * (2 * inner) + _FORWARD * outer
    order += [_INPUTS[FAR], _WEIGHTS, _FORWARD[FAR]] * inner
    steady = _PAIR * (micro_batches // 2 - stages + outer)
    if inner == 0:
        # The two middle nodes hand over to each other and cannot overlap their first pair.
        steady[:1] = [_FORWARD[NEAR], _BACKWARD[FAR]]
    order += steady
    order += [_BACKWARD[FAR], _PAIR[FAR]] * inner
    # Backward passes alone, far and near in turn; the second half of them puts its gradients of weights off.
    ends = [FAR, NEAR] * outer
    order += [_BACKWARD[end] for end in ends[:outer]] + [_INPUTS[end] for end in ends[outer:]]
    order += [_WEIGHTS, _INPUTS[NEAR]] * inner
    return order + [_WEIGHTS] * outer


def _plan(node: int, stages: int, micro_batches: int) -> list[tuple[str, tuple[str, ...], _Step]]:
    """Returns (operation, passes in it, step) of a node in its order.

    A pass is named by its kind, the end that its micro-batch entered at, its stage from there, and its micro-batch.
    """
    place = min(node, stages - 1 - node)
    end_of = (0, 1) if node < stages // 2 else (1, 0)
    stage_of = (place, stages - 1 - place)
    begun: Counter[tuple[str, int]] = Counter()
    plan = []
    for position, step in enumerate(_order(stages, micro_batches, place)):
        names = tuple(f"{kind}{end_of[end]}.{stage_of[end]}.{begun[kind, end]}" for kind, end in step.passes)
        begun.update(step.passes)
        plan.append((f"node {node}, {position}", names, step))
    return plan


def _needs(name: str, stages: int) -> Iterator[str]:
    """Yields the passes that must be over before a pass starts."""
    kind, (end, stage, batch) = name[0], name[1:].split(".")
    if kind == "F":
        if int(stage):
            yield f"F{end}.{int(stage) - 1}.{batch}"
    elif int(stage) + 1 < stages:
        yield f"B{end}.{int(stage) + 1}.{batch}"
    else:
        yield f"F{end}.{stage}.{batch}"
