"""Dynamic multimem: the packets it sends."""

from dysharp_env.multimem.packet import PacketFormat

__all__ = ["PacketFormat"]
