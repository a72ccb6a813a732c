"""Faults of a machine as integer costs: which links are slow, which packets cross twice, and how late GPU 0 is."""

from __future__ import annotations

from dataclasses import dataclass

from dysharp_env.system import SystemSpec

SOUND = 1000  # time of a flit on a sound link, in thousandths of itself
LATE_GPU = 0  # which also has the slow links
NO_PLANE = -1  # none that is slow


@dataclass(frozen=True)
class FaultCosts:
    """What is wrong with links, and who is late.

    Attributes:
        slow_link_permille: Time of a flit on links of GPU 0 over that on a sound link, in thousandths.
        slow_plane_permille: The same on links of plane 0; at token resolution that is all there is.
        replay_packets: Every such data packet on a link crosses again; 0: none does.
        replay_ps: How long the link stands still for it besides: a round trip, or the share of it that one of the
            planes is which move as one.
        late_ps: How much later than the others GPU 0 starts.
    """

    slow_link_permille: int = SOUND
    slow_plane_permille: int = SOUND
    replay_packets: int = 0
    replay_ps: int = 0
    late_ps: int = 0

    @classmethod
    def of(cls, system: SystemSpec, planes: int) -> FaultCosts:
        """Returns the faults of a system of which so many planes are told apart."""
        faults, link = system.faults, system.living_link
        return cls(
            slow_link_permille=round(faults.slow_link * SOUND),
            slow_plane_permille=round(faults.slow_plane * SOUND),
            replay_packets=faults.replay_every,
            replay_ps=2 * link.latency_ps * planes // link.planes if faults.replay_every else 0,
            late_ps=round(faults.late_us * 10**6),
        )

    def permille(self, gpu: int, plane: int) -> int:
        """Returns the time of a flit on a link over that on a sound one, in thousandths."""
        of_gpu = self.slow_link_permille if gpu == 0 else SOUND
        return of_gpu * (self.slow_plane_permille if plane == 0 else SOUND) // SOUND

    @property
    def most_permille(self) -> int:
        """That of the slowest link."""
        return self.permille(0, 0)
