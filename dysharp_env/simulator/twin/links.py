"""The twin's links: control flits that slip in, and uplinks with credits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dysharp_env.simulator.faults import SOUND
from dysharp_env.simulator.hardware import PS_PER_S
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin.parts import Segment
from dysharp_env.simulator.twin.world import World


class Link:
    """A wire of one GPU, plane and direction: one segment at a time; control flits slip in and delay what follows."""

    def __init__(self, world: World, gpu: int, plane: int, direction: int) -> None:
        self.world, self.clock, self.costs = world, world.clock, world.costs.on_link(gpu, plane)
        self.gpu, self.plane, self.direction = gpu, plane, direction
        self.free_ps = self.busy_ps = self.last_vc = 0
        self.packets = 0  # of data that have entered it
        self.queued_flits = 0  # of all segments that wait
        self.is_woken = False

    def charge(self, flits: int, purpose: int) -> None:
        """Lets control flits cross now."""
        self.free_ps = max(self.free_ps, self.clock.now_ps) + self.costs.wire_ps(flits)
        self.busy_ps += self.costs.wire_ps(flits)
        self.count(flits, purpose)

    def carry(self, segment: Segment, serial_ps: int) -> None:
        """Has a segment on the wire, busy for so long, until it is free again."""
        self.busy_ps += serial_ps
        self.count(segment.flits, segment.purpose)
        what = codes.LOG_UP if self.direction == codes.UP else codes.LOG_DOWN
        self.world.use(what, self.gpu, segment.purpose, segment.name, segment.flits, self.free_ps)

    def count(self, flits: int, purpose: int) -> None:
        """Counts flits on the wire."""
        self.world.traffic[self.gpu, self.direction, purpose] += flits

    def exact_ps(self, flits: int) -> int:
        """Returns how long flits take, without the quantum."""
        costs = self.costs
        sound_ps = flits * costs.packet.flit_bytes * PS_PER_S * costs.planes // costs.link_bytes_per_s
        return sound_ps * costs.link_permille // SOUND

    def delivery_ps(self, flits: int, lost_ps: int = 0) -> int:
        """Returns the time from the first flit entering the link to the last one leaving it at the other end."""
        exact_ps = self.costs.hop_ps + self.exact_ps(flits) + lost_ps
        return exact_ps // self.costs.quantum_ps * self.costs.quantum_ps

    def serial_ps(self, flits: int, lost_ps: int) -> int:
        """Returns how long the link is busy with flits, and with what is lost beside them."""
        return (self.exact_ps(flits) + lost_ps) // self.costs.quantum_ps * self.costs.quantum_ps

    def replay(self, segment: Segment) -> int:
        """Returns how long packets of a segment take that cross the link again: each stops it for a round trip."""
        faults, lost_ps = self.costs.faults, 0
        for _ in range(segment.packets if faults.replay_packets else 0):
            self.packets += 1
            if self.packets % faults.replay_packets == 0:
                flits = -(-segment.flits // segment.packets)
                lost_ps += faults.replay_ps + self.exact_ps(flits)
                self.count(flits, codes.REPLAY)
        return lost_ps

    def backlog_ps(self) -> int:
        """Returns how long what is queued and being sent keeps the wire busy."""
        return max(self.free_ps - self.clock.now_ps, 0) + self.costs.wire_ps(self.queued_flits)

    def pump(self) -> None:
        """Serves the next segment if the link is free, and looks again when it falls free if more of them wait."""
        if self.free_ps <= self.clock.now_ps:
            segment = self.take()
            if segment is None or not self.start(segment):
                return
        if self.queued_flits > 0:
            self.wake()

    def take(self) -> Segment | None:
        """Removes and returns the segment whose turn it is, if any may be served."""
        raise NotImplementedError

    def start(self, segment: Segment) -> bool:
        """Serves a segment that was taken, and returns whether that could be."""
        raise NotImplementedError

    def wake(self) -> None:
        """Makes sure the link looks again, once it is free."""
        if not self.is_woken:
            self.is_woken = True
            kind = codes.EV_UPLINK if self.direction == codes.UP else codes.EV_PORT
            self.clock.at(max(self.clock.now_ps, self.free_ps), kind, self._look_again)

    def _look_again(self) -> None:
        self.is_woken = False
        self.pump()


@dataclass(eq=False)
class Lane:
    """One virtual-channel class of an uplink."""

    waiting: deque[Segment] = field(default_factory=deque)
    used_flits: int = 0  # of the input buffer at the switch
    fifo: deque[Segment] = field(default_factory=deque)  # in the switch, where inputs are FIFOs


class Uplink(Link):
    """A GPU's uplink and the switch input behind it, with credited buffers unless the switch queues at outputs."""

    def __init__(self, world: World, gpu: int, plane: int, expose: Callable[[Segment], None]) -> None:
        """Takes what is told of a segment that the switch's outputs may see."""
        super().__init__(world, gpu, plane, codes.UP)
        self.lanes = (Lane(), Lane())
        self._expose = expose

    def enqueue(self, segment: Segment) -> None:
        """Puts a segment behind the others of its class."""
        self.lanes[segment.vc].waiting.append(segment)
        self.queued_flits += segment.flits
        self.pump()

    def take(self) -> Segment | None:
        """Removes and returns the next segment that the switch has room for, classes taking turns."""
        for vc in (1 - self.last_vc, self.last_vc):
            lane = self.lanes[vc]
            if not lane.waiting:
                continue
            flits = lane.waiting[0].flits
            if self.costs.queueing != "output_queued":
                # A segment larger than the buffer passes alone: its packets stream through.
                if lane.used_flits > 0 and lane.used_flits + flits > self.costs.credit_flits:
                    continue
                lane.used_flits += flits
            self.last_vc = vc
            self.queued_flits -= flits
            return lane.waiting.popleft()
        return None

    def start(self, segment: Segment) -> bool:
        """Puts a segment on the wire; its head, or with store-and-forward its tail, comes to the switch."""
        now_ps, lost_ps = self.clock.now_ps, self.replay(segment)
        serial_ps = self.serial_ps(segment.flits, lost_ps)
        segment.tail_ps = now_ps + self.delivery_ps(segment.flits, lost_ps)
        head_ps = segment.tail_ps if self.costs.store_and_forward else now_ps + self.costs.hop_ps
        self.clock.at(head_ps, codes.EV_SWITCH, self._reach_switch, segment)
        self.free_ps = now_ps + serial_ps
        self.carry(segment, serial_ps)
        return True

    def _reach_switch(self, segment: Segment) -> None:
        """Shows a segment to the outputs, or puts it behind the others of an input FIFO."""
        if self.costs.queueing == "input_fifo":
            fifo = self.lanes[segment.vc].fifo
            fifo.append(segment)
            if len(fifo) > 1:
                return
        self._expose(segment)

    def leave_input(self, segment: Segment, end_ps: int) -> None:
        """Gives the input buffer of a segment back, once the last of its replicas leaves it at ``end_ps``."""
        if self.costs.queueing == "output_queued":
            return
        whole = segment.carrier or segment
        whole.replicas_left -= 1
        whole.end_ps = max(whole.end_ps, end_ps)
        whole.free_ps = max(whole.free_ps, end_ps - self._streamed_ps(segment, end_ps - self.clock.now_ps))
        if whole.replicas_left > 0:
            return
        known_ps = whole.free_ps + self.costs.hop_ps
        self.clock.at(self._credit_ps(whole, known_ps), codes.EV_CREDIT, self._credit, whole.vc, whole.flits)
        if self.costs.queueing == "input_fifo":
            self.clock.at(whole.end_ps, codes.EV_INPUT_NEXT, self._input_next, whole.vc)

    def _credit(self, vc: int, flits: int) -> None:
        """Takes input buffer space back."""
        self.lanes[vc].used_flits -= flits
        self.pump()

    def _input_next(self, vc: int) -> None:
        """Moves an input FIFO on: its head has left the switch."""
        fifo = self.lanes[vc].fifo
        fifo.popleft()
        if fifo:
            self._expose(fifo[0])

    def _streamed_ps(self, segment: Segment, leaving_ps: int) -> int:
        """Returns how long before its tail a segment gives its buffer back, all packets together.

        It took the space of all of them when the first entered the uplink; each holds it as long as if it were alone.
        """
        if self.costs.store_and_forward:
            return 0
        packets, entering_ps = segment.packets, self.costs.wire_ps(segment.flits)
        return min(leaving_ps, (packets - 1) * (entering_ps + leaving_ps) // (2 * packets))

    def _credit_ps(self, whole: Segment, free_ps: int) -> int:
        """Returns when buffer space may be used again that the GPU knows, at ``free_ps``, to be free.

        Whole segments leave a rest of the buffer that packets would fill; they hold what they have for less instead.
        """
        costs, flits = self.costs, whole.flits
        if costs.store_and_forward or whole.packets == 1:
            return free_ps
        held_ps = free_ps - (whole.tail_ps - self.delivery_ps(flits))
        rest_flits = costs.credit_flits - max(costs.credit_flits // flits, 1) * flits
        return max(self.clock.now_ps, free_ps - held_ps * rest_flits // costs.credit_flits)
