"""The twin's switch: output ports, reduction units before them, and which of them a segment goes to."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import replace

from dysharp_env.simulator.state import codes
from dysharp_env.simulator.twin.links import Link, Uplink
from dysharp_env.simulator.twin.parts import Segment, Token, TokenSegment
from dysharp_env.simulator.twin.world import World


class Switch:
    """All uplinks, downlinks and reduction units, by GPU and plane."""

    def __init__(self, world: World) -> None:
        self.world = world
        gpus, planes = range(world.num_gpus), range(world.costs.planes)
        self.uplinks = [[Uplink(world, gpu, plane, self._expose) for plane in planes] for gpu in gpus]
        self.downlinks = [[Downlink(world, gpu, plane, self) for plane in planes] for gpu in gpus]
        self.reducers = [[Reducer(world, gpu, plane, self) for plane in planes] for gpu in gpus]

    def _expose(self, segment: Segment) -> None:
        """Queues a segment, or each replica of a store by itself, at the output it goes to."""
        for replica in segment.replicas or [segment]:
            replica.tail_ps = segment.tail_ps
            is_summed = replica.purpose == codes.COMBINE_DATA and self.world.combine.in_switch
            outputs: Sequence[Sequence[Port]] = self.reducers if is_summed else self.downlinks
            output = outputs[replica.target][replica.plane]
            output.append(replica, replica.origin)
            output.pump()


class Port(Link):
    """An output of the switch: a queue for each class and input; classes take turns, then inputs."""

    def __init__(self, world: World, gpu: int, plane: int, switch: Switch) -> None:
        super().__init__(world, gpu, plane, codes.DOWN)
        self.switch = switch
        # The first input is the next one served; one that still has segments goes to the end.
        self.queues: tuple[OrderedDict[int, deque[Segment]], ...] = (OrderedDict(), OrderedDict())
        self.stalled: Segment | None = None  # taken from its queue, but has to wait for accumulator slots

    def append(self, segment: Segment, source: int) -> None:
        """Queues a segment from an input without looking at the output yet."""
        if self.costs.queueing == "output_queued":
            source = 0
        self.queues[segment.vc].setdefault(source, deque()).append(segment)
        self.queued_flits += segment.flits

    def take(self) -> Segment | None:
        """Returns the segment that had to wait, or removes and returns the one whose turn it is."""
        if self.stalled is not None or not any(self.queues):
            return self.stalled
        if self.queues[1 - self.last_vc]:
            self.last_vc = 1 - self.last_vc
        inputs = self.queues[self.last_vc]
        source, queue = inputs.popitem(last=False)
        segment = queue.popleft()
        self.queued_flits -= segment.flits
        if queue:
            inputs[source] = queue
        return segment


class Downlink(Port):
    """The output that leads to a GPU."""

    def start(self, segment: Segment) -> bool:
        """Sends a segment down; one that cuts through cannot leave before its own tail has come."""
        lost_ps = self.replay(segment)
        serial_ps = self.serial_ps(segment.flits, lost_ps)
        self.free_ps = max(self.clock.now_ps + serial_ps, segment.tail_ps)
        self.carry(segment, serial_ps)
        reach_ps = self.free_ps - serial_ps + self.delivery_ps(segment.flits, lost_ps)
        self.clock.at(reach_ps, codes.EV_REACH, segment.reach, segment)
        if segment.is_sum:
            self.switch.reducers[self.gpu][self.plane].drain()
        else:
            self.switch.uplinks[segment.origin][self.plane].leave_input(segment, self.free_ps)
        return True


class Reducer(Port):
    """The reduction unit before a downlink: sums contributions in a bounded number of accumulator slots."""

    def __init__(self, world: World, gpu: int, plane: int, switch: Switch) -> None:
        super().__init__(world, gpu, plane, switch)
        # By token and place in its vector, the oldest first: what came last, how many did, when their sum is there.
        self.open: dict[tuple[Token, int], tuple[TokenSegment, int, int]] = {}
        self.need = world.costs.combine_packets // world.costs.combine_segments  # slots of one sum
        self.slots_used = 0
        self.slots_draining = 0  # of those used, the ones whose sum waits for the downlink

    def start(self, segment: Segment) -> bool:
        """Adds a contribution to its token's sum; the last one sends the result down."""
        assert isinstance(segment, TokenSegment)
        token, place = segment.token, segment.place
        self.stalled = None
        if (token, place) not in self.open and not self._make_room():
            self.stalled = segment
            return False
        self.free_ps = max(self.clock.now_ps + self.costs.reduce_ps(segment.flits), segment.tail_ps)
        self.world.use(codes.LOG_REDUCE, self.gpu, segment.purpose, segment.name, segment.flits, self.free_ps)
        self.switch.uplinks[segment.origin][self.plane].leave_input(segment, self.free_ps)
        if not self.world.combine.reads:
            # The switch holds the contribution now, so it acknowledges the store itself.
            self.clock.at(self.free_ps + self.costs.hop_ps, codes.EV_ACK, segment.acknowledged, segment)
        _, pieces, _ = self.open.get((token, place), (segment, 0, 0))
        self.open[token, place] = segment, pieces + 1, self.free_ps + self.costs.cycle_ps
        token.contributions_left[place] -= 1
        if token.contributions_left[place] == 0:
            self._close(token, place, is_whole=True)
        return True

    def _make_room(self) -> bool:
        """Claims slots for one more sum, evicting the oldest if it must; False if slots must drain first."""
        slots = self.costs.reduction_slots
        while self.open and self.slots_used - self.slots_draining + self.need > slots:
            self.world.evictions += 1
            self._close(*next(iter(self.open)), is_whole=False)
        # A sum larger than the whole buffer passes alone: its packets stream through.
        if self.slots_used > 0 and self.slots_used + self.need > slots:
            return False
        self.slots_used += self.need
        return True

    def _close(self, token: Token, place: int, is_whole: bool) -> None:
        """Sends a sum, whole or evicted, to the downlink; its slots drain with it."""
        last, pieces, ready_ps = self.open.pop((token, place))
        segment = replace(
            last,
            # What is evicted has the name of the contribution that came last.
            name=("sum", token.number, self.gpu, place) if is_whole else last.name,
            purpose=codes.COMBINE_DATA if is_whole else codes.EVICTION,
            pair=None,
            is_sum=True,
            origin=self.gpu,
            vc=codes.RESPONSE,
            tail_ps=ready_ps,
            pieces=pieces,
        )
        self.slots_draining += self.need
        downlink = self.switch.downlinks[self.gpu][self.plane]
        downlink.append(segment, self.world.num_gpus)
        downlink.wake()

    def drain(self) -> None:
        """Gets the slots of one sum back, which the downlink has begun to send."""
        self.slots_used -= self.need
        self.slots_draining -= self.need
        if self.stalled is not None:
            self.wake()
