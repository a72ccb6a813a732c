"""The engine's slow, readable twin: the same model in plain Python, to be read as its specification and tested against.

Nothing here is shared with the compiled kernel but the names of codes and the integer costs. Objects stand for what the
engine keeps in arrays, an SM group is a generator that runs until it has to wait, and the event queue is ``heapq``.
Events carry ``(time, kind, sequence)`` as in the engine and are pushed in the same order, so both agree to the
picosecond, ties included. About a thousand times slower than the engine; it keeps a log of every resource's use.
"""

from dysharp_env.simulator.twin.twin import Twin

__all__ = ["Twin"]
