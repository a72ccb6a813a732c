"""The engine's slow, readable twin: the same model in plain Python, to be read as its specification and tested against.

Nothing is shared with the compiled engine but inputs (workload, costs, program, bound) and tables of constants: the
order of tokens, planes, features and scores of networks are worked out here once more. Objects stand for what the
engine keeps in arrays and the event queue is ``heapq``. Events carry ``(time, kind, sequence)`` as in the engine and
are pushed in the same order, so both agree to the picosecond, ties included. About a thousand times slower than the
engine; it keeps a log of every resource's use.

Read it from the bottom up: ``clock`` (events), ``parts`` (tokens, tiles, segments), ``world`` (what all share),
``routing`` and ``vectors`` (how a layer's tokens become segments), ``links`` and ``switch``, ``memory``, ``staffing``
(SMs) and ``gates``, the groups ``combine``, ``gemm`` and ``dispatch``, the ``gpu`` that holds them, ``shown`` and
``scores`` (what decisions show, and what a network makes of it), and ``twin``, which runs the story.
"""

from dysharp_env.simulator.twin.twin import Twin

__all__ = ["Twin"]
