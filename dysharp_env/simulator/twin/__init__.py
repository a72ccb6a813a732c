"""The engine's slow, readable twin: the same model in plain Python, to be read as its specification and tested against.

Nothing is shared with the compiled engine but inputs (workload, costs, program, bound) and tables of constants. Objects
stand for what the engine keeps in arrays, and the event queue is ``heapq``. Events carry ``(time, kind, sequence)`` as
in the engine and are pushed in the same order, so both agree to the picosecond, ties included. About a thousand times
slower than the engine; it keeps a log of every resource's use.

Read it in the order of its imports: ``parts``, ``world`` and ``routing``; ``links``, ``switch`` and ``staffing``; the
groups ``combine``, ``gemm`` and ``dispatch``; ``gpu``, ``shown`` and ``twin``.
"""

from dysharp_env.simulator.twin.twin import Twin

__all__ = ["Twin"]
