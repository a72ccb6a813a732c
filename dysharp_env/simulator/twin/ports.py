"""The links of one of the twin's GPUs, as its groups use them."""

from __future__ import annotations

from dysharp_env.simulator.twin.parts import Segment
from dysharp_env.simulator.twin.switch import Switch


class GpuPorts:
    """The uplinks and downlinks of one GPU, by plane."""

    def __init__(self, switch: Switch, gpu: int) -> None:
        self.clock = switch.world.clock
        self.uplinks, self.downlinks = switch.uplinks[gpu], switch.downlinks[gpu]

    def send(self, vector: list[Segment]) -> None:
        """Puts the segments of a vector at the uplinks."""
        for segment in vector:
            self.uplinks[segment.plane].enqueue(segment)

    def ask(self, planes: list[int], flits: int, purpose: int) -> int:
        """Sends read requests, one for each segment's plane, and returns when the last one has crossed its uplink."""
        crossed_ps = self.clock.now_ps
        for plane in planes:
            self.uplinks[plane].charge(flits, purpose)
            crossed_ps = max(crossed_ps, self.uplinks[plane].free_ps)
        return crossed_ps

    def uplink_backlog_ps(self) -> int:
        """Returns how long what is queued and being sent keeps the busiest uplink busy."""
        return max(link.backlog_ps() for link in self.uplinks)

    def downlink_backlog_ps(self) -> int:
        """Returns the same of the busiest downlink, queued at the switch."""
        return max(link.backlog_ps() for link in self.downlinks)
