"""Timelines of layers: what they show is made once from the engine (``build``), and each format has its writer.

``model`` says what a timeline is; ``log``, ``links``, ``groups``, ``phases``, ``counters``, ``flows`` and ``decisions``
fill it; ``chrome``, ``perfetto`` and ``kineto`` write it, and ``chakra`` what depends on what; ``files`` picks one.
"""

from dysharp_env.report.timelines.build import aggregates, timeline_of
from dysharp_env.report.timelines.decisions import replayed
from dysharp_env.report.timelines.files import write_by_gpu, write_timeline

__all__ = ["aggregates", "replayed", "timeline_of", "write_by_gpu", "write_timeline"]
