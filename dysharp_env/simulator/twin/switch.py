"""The twin's switch: output ports, reduction units before them, and which of them a segment goes to."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Protocol

from dysharp_env.simulator.layout import (
    COMBINE_DATA,
    DISPATCH_DATA,
    DOWN,
    EV_ACK,
    EV_PORT,
    EV_REACH,
    EVICTION,
    LOG_DOWN,
    LOG_REDUCE,
    RESPONSE,
)
from dysharp_env.simulator.twin.links import Link, Uplink
from dysharp_env.simulator.twin.parts import Name, Pair, Segment, Token
from dysharp_env.simulator.twin.vectors import combine_flits
from dysharp_env.simulator.twin.world import World


class Receiver(Protocol):
    """What the switch tells a GPU."""

    def reach(self, segment: Segment) -> None:
        """Takes a segment in."""

    def acknowledged(self, segment: Segment) -> None:
        """Learns that a segment it sent is stored, or in the switch."""


class Switch:
    """All links and what lies between them, by GPU and plane.

    Attributes:
        uplinks, downlinks: The GPUs' links.
        reducers: The reduction units before the downlinks.
        receivers: The GPUs, which are added once they are there.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        gpus, planes = range(world.num_gpus), range(world.costs.planes)
        self.uplinks = [[Uplink(world, gpu, plane, self._expose) for plane in planes] for gpu in gpus]
        self.downlinks = [[Downlink(world, gpu, plane, self) for plane in planes] for gpu in gpus]
        self.reducers = [[Reducer(world, gpu, plane, self) for plane in planes] for gpu in gpus]
        self.receivers: list[Receiver] = []

    def _expose(self, segment: Segment) -> None:
        """Queues a segment, or each replica of a store by itself, at the output it goes to."""
        for replica in segment.replicas or [segment]:
            replica.tail_ps = segment.tail_ps
            self._output(replica).enqueue(replica)

    def _output(self, segment: Segment) -> Port:
        """Returns the output a segment from an uplink goes to."""
        if segment.purpose == DISPATCH_DATA:
            assert segment.pair is not None
            return self.downlinks[segment.pair.gpu][segment.plane]
        outputs = self.reducers if self.world.combine.in_switch else self.downlinks
        return outputs[segment.token.home][segment.plane]


class Port(Link):
    """An output of the switch: a queue for each class and input; classes take turns, then inputs."""

    def __init__(self, world: World, gpu: int, plane: int, switch: Switch) -> None:
        super().__init__(world, gpu, plane, DOWN)
        self.switch = switch
        # The first input is the next one served; one that still has segments goes to the end.
        self.queues: tuple[OrderedDict[int, deque[Segment]], ...] = (OrderedDict(), OrderedDict())
        self.stalled: Segment | None = None  # taken from its queue, but has to wait for accumulator slots

    def queued_flits(self) -> int:
        """Returns the flits of all segments that wait at the switch for this output."""
        return sum(s.flits_down for inputs in self.queues for queue in inputs.values() for s in queue)

    def append(self, segment: Segment, source: int) -> None:
        """Queues a segment from an input without looking at the output yet."""
        if self.costs.queueing == "output_queued":
            source = 0
        self.queues[segment.vc].setdefault(source, deque()).append(segment)

    def enqueue(self, segment: Segment) -> None:
        """Queues a segment from its GPU; the output takes it at once if it can."""
        self.append(segment, segment.origin)
        self.pump()

    def pump(self) -> None:
        """Starts the next segment if the output is free."""
        if self.stalled is None and not any(self.queues):
            return
        if self.free_ps > self.clock.now_ps:
            self.wake(self.free_ps, EV_PORT)
            return
        self.start(self.stalled or self._take())
        if self.stalled is None and any(self.queues):
            self.wake(self.free_ps, EV_PORT)

    def _take(self) -> Segment:
        """Removes and returns the segment whose turn it is."""
        if self.queues[1 - self.last_vc]:
            self.last_vc = 1 - self.last_vc
        inputs = self.queues[self.last_vc]
        source, queue = inputs.popitem(last=False)
        segment = queue.popleft()
        if queue:
            inputs[source] = queue
        return segment

    def start(self, segment: Segment) -> None:
        """Serves one segment."""
        raise NotImplementedError


class Downlink(Port):
    """The output that leads to a GPU."""

    def start(self, segment: Segment) -> None:
        """Sends a segment down; one that cuts through cannot leave before its own tail has come."""
        flits = segment.flits_down
        serial_ps = self.costs.wire_ps(flits)
        self.free_ps = max(self.clock.now_ps + serial_ps, segment.tail_ps)
        self.count(flits, segment.purpose)
        self.world.use(LOG_DOWN, self.gpu, segment.purpose, segment.name, flits, self.free_ps)
        reach_ps = self.free_ps - serial_ps + self.delivery_ps(flits)
        self.clock.at(reach_ps, EV_REACH, self.switch.receivers[self.gpu].reach, segment)
        if segment.name[0] == "sum" or segment.purpose == EVICTION:
            self.switch.reducers[self.gpu][self.plane].drain()
        else:
            self.switch.uplinks[segment.origin][self.plane].leave_input(segment, self.free_ps)


@dataclass(eq=False)
class Accumulator:
    """The open sum of one token, or of one packet of it, in a reduction unit."""

    pieces: int = 0
    last: Pair | None = None  # whose contribution came last
    ready_ps: int = 0


class Reducer(Port):
    """The reduction unit before a downlink: sums contributions in a bounded number of accumulator slots."""

    def __init__(self, world: World, gpu: int, plane: int, switch: Switch) -> None:
        super().__init__(world, gpu, plane, switch)
        self.open: dict[tuple[Token, int], Accumulator] = {}  # by token and place in its vector, the oldest first
        self.need = world.costs.combine_packets // world.costs.combine_segments  # slots of one sum
        self.slots_used = 0
        self.slots_draining = 0  # of those used, the ones whose sum waits for the downlink

    def start(self, segment: Segment) -> None:
        """Adds a contribution to its token's sum; the last one sends the result down."""
        token, place = segment.token, segment.place
        self.stalled = None
        if (token, place) not in self.open and not self._make_room():
            self.stalled = segment
            return
        accumulator = self.open.setdefault((token, place), Accumulator())
        self.free_ps = max(self.clock.now_ps + self.costs.reduce_ps(segment.flits_down), segment.tail_ps)
        self.world.use(LOG_REDUCE, self.gpu, COMBINE_DATA, segment.name, segment.flits_down, self.free_ps)
        self.switch.uplinks[segment.origin][self.plane].leave_input(segment, self.free_ps)
        if not self.world.combine.reads:
            # The switch holds the contribution now, so it acknowledges the store itself.
            sender = self.switch.receivers[segment.origin]
            self.clock.at(self.free_ps + self.costs.hop_ps, EV_ACK, sender.acknowledged, segment)
        accumulator.pieces += 1
        accumulator.last = segment.pair
        accumulator.ready_ps = self.free_ps + self.costs.cycle_ps
        token.contributions_left[place] -= 1
        if token.contributions_left[place] == 0:
            self._close(token, place, ("sum", token.number, self.gpu, place), COMBINE_DATA)

    def _make_room(self) -> bool:
        """Claims slots for one more sum, evicting the oldest if it must; False if slots must drain first."""
        slots = self.costs.reduction_slots
        while self.open and self.slots_used - self.slots_draining + self.need > slots:
            (oldest, place), accumulator = next(iter(self.open.items()))
            assert accumulator.last is not None
            self.world.evictions += 1
            self._close(oldest, place, ("partial", oldest.number, accumulator.last.gpu, place), EVICTION)
        # A sum larger than the whole buffer passes alone: its packets stream through.
        if self.slots_used > 0 and self.slots_used + self.need > slots:
            return False
        self.slots_used += self.need
        return True

    def _close(self, token: Token, place: int, name: Name, purpose: int) -> None:
        """Sends a sum, complete or not, to the downlink; its slots drain with it."""
        accumulator = self.open.pop((token, place))
        segment = Segment(
            name=name,
            place=place,
            plane=self.plane,
            purpose=purpose,
            token=token,
            pair=None,
            origin=self.gpu,
            flits_up=0,
            flits_down=combine_flits(self.world)[place],
            packets=self.need,
            vc=RESPONSE,
            tail_ps=accumulator.ready_ps,
            pieces=accumulator.pieces,
        )
        self.slots_draining += self.need
        downlink = self.switch.downlinks[self.gpu][self.plane]
        downlink.append(segment, self.world.num_gpus)
        downlink.wake(max(self.clock.now_ps, downlink.free_ps), EV_PORT)

    def drain(self) -> None:
        """Gets the slots of one sum back, which the downlink has begun to send."""
        self.slots_used -= self.need
        self.slots_draining -= self.need
        if self.stalled is not None:
            self.wake(max(self.clock.now_ps, self.free_ps), EV_PORT)
