"""Dynamic multimem: its packets, the tables of switch and Hub, and what they compute.

``PacketFormat`` is the arithmetic that timing and function share. ``execute`` runs a finished schedule on real vectors.
"""

from dysharp_env.multimem.dense import MoeTensors, dense_moe, random_tensors
from dysharp_env.multimem.execute import Schedule, execute
from dysharp_env.multimem.packet import PacketFormat
from dysharp_env.multimem.runtime import Runtime

__all__ = ["MoeTensors", "PacketFormat", "Runtime", "Schedule", "dense_moe", "execute", "random_tensors"]
