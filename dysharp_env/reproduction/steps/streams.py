"""Streams of operations, as a GPU's command queues or a pipeline's stages run them.

A stream runs its operations one at a time, in the order they were issued. An operation starts when the one before it in
its stream has ended and everything it waits for has ended. Nothing else is assumed, so a schedule across layers or
stages is the order of its operations and no more.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Op:
    """One operation.

    Attributes:
        name: Unique.
        stream: Where it runs.
        duration_ps: How long.
        after: Names of operations, of any stream, that must have ended.
    """

    name: str
    stream: str
    duration_ps: int
    after: tuple[str, ...] = ()


def run_streams(ops: Iterable[Op]) -> dict[str, tuple[int, int]]:
    """Returns start and end of every operation, ps; operations of a stream are issued in the order given.

    Raises:
        ValueError: Two operations share a name, one waits for an operation that does not exist, or streams wait for
            each other in a circle.
    """
    waiting: dict[str, list[Op]] = {}
    names: set[str] = set()
    for op in ops:
        if op.name in names:
            raise ValueError(f"two operations are named '{op.name}'")
        names.add(op.name)
        waiting.setdefault(op.stream, []).append(op)
    for stream in waiting.values():
        for op in stream:
            unknown = [name for name in op.after if name not in names]
            if unknown:
                raise ValueError(f"'{op.name}' waits for '{unknown[0]}', which does not exist")
        stream.reverse()  # so that the next operation is popped off the end
    spans: dict[str, tuple[int, int]] = {}
    free_ps = dict.fromkeys(waiting, 0)
    while any(waiting.values()):
        before = len(spans)
        for name, queue in waiting.items():
            while queue and all(other in spans for other in queue[-1].after):
                op = queue.pop()
                start = max([free_ps[name], *(spans[other][1] for other in op.after)])
                free_ps[name] = start + op.duration_ps
                spans[op.name] = (start, free_ps[name])
        if len(spans) == before:
            stuck = next(queue[-1] for queue in waiting.values() if queue)
            raise ValueError(f"'{stuck.name}' waits in a circle")
    return spans


def makespan_ps(ops: Iterable[Op]) -> int:
    """Returns when the last operation ends, ps; see ``run_streams``."""
    return max((end for _, end in run_streams(ops).values()), default=0)
