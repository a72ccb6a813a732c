"""The twin's links and switch: uplinks with credits, output ports, reduction units."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dysharp_env.simulator.layout import (
    COMBINE_DATA,
    DISPATCH_DATA,
    DOWN,
    EV_ACK,
    EV_CREDIT,
    EV_INPUT_NEXT,
    EV_PORT,
    EV_REACH,
    EV_SWITCH,
    EV_UPLINK,
    EVICTION,
    LOG_DOWN,
    LOG_REDUCE,
    LOG_UP,
    NO_TIME,
    PUSH_REDUCE,
    RESPONSE,
    UP,
)
from dysharp_env.simulator.twin.parts import Name, Pair, Segment, Token

if TYPE_CHECKING:
    from dysharp_env.simulator.twin.twin import Twin


@dataclass(eq=False)
class Lane:
    """One virtual-channel class of an uplink."""

    waiting: deque[Segment] = field(default_factory=deque)
    used_flits: int = 0  # of the input buffer at the switch
    fifo: deque[Segment] = field(default_factory=deque)  # in the switch, where inputs are FIFOs


class Link:
    """A wire of one GPU, plane and direction: one segment at a time; control flits slip in and delay what follows."""

    def __init__(self, twin: Twin, gpu: int, plane: int, direction: int) -> None:
        self.twin, self.gpu, self.plane, self.direction = twin, gpu, plane, direction
        self.free_ps = 0
        self.busy_ps = 0
        self.last_vc = 0
        self.is_woken = False

    def charge(self, flits: int, purpose: int) -> None:
        """Lets control flits cross now."""
        ps = self.twin.costs.wire_ps(flits)
        self.free_ps = max(self.free_ps, self.twin.now_ps) + ps
        self.count(flits, purpose)

    def count(self, flits: int, purpose: int) -> None:
        """Counts flits on the wire."""
        self.busy_ps += self.twin.costs.wire_ps(flits)
        self.twin.traffic[self.gpu, self.direction, purpose] += flits

    def backlog_ps(self) -> int:
        """Returns how long what is queued and being sent keeps the wire busy."""
        return max(self.free_ps - self.twin.now_ps, 0) + self.twin.costs.wire_ps(self.queued_flits())

    def queued_flits(self) -> int:
        """Returns the flits of all segments that wait."""
        raise NotImplementedError


class Uplink(Link):
    """A GPU's uplink and the switch input behind it, with credited buffers unless the switch queues at outputs."""

    def __init__(self, twin: Twin, gpu: int, plane: int) -> None:
        super().__init__(twin, gpu, plane, UP)
        self.lanes = (Lane(), Lane())

    def queued_flits(self) -> int:
        """Returns the flits of all segments that wait at the GPU."""
        return sum(segment.flits_up for lane in self.lanes for segment in lane.waiting)

    def enqueue(self, segment: Segment) -> None:
        """Puts a segment behind the others of its class."""
        self.lanes[segment.vc].waiting.append(segment)
        self.pump()

    def pump(self) -> None:
        """Sends the next segment if the wire is free and the switch has room, classes taking turns."""
        twin = self.twin
        if self.free_ps > twin.now_ps:
            self.wake()
            return
        for vc in (1 - self.last_vc, self.last_vc):
            lane = self.lanes[vc]
            if not lane.waiting:
                continue
            flits = lane.waiting[0].flits_up
            if twin.costs.queueing != "output_queued":
                # A segment larger than the buffer passes alone: its packets stream through.
                if lane.used_flits > 0 and lane.used_flits + flits > twin.costs.credit_flits:
                    continue
                lane.used_flits += flits
            self.last_vc = vc
            self.send(lane.waiting.popleft())
            return

    def send(self, segment: Segment) -> None:
        """Puts a segment on the wire; its head, or with store-and-forward its tail, comes to the switch."""
        twin, now_ps = self.twin, self.twin.now_ps
        segment.tail_ps = now_ps + twin.delivery_ps(segment.flits_up)
        head_ps = segment.tail_ps if twin.costs.store_and_forward else now_ps + twin.costs.hop_ps
        twin.at(head_ps, EV_SWITCH, self.reach_switch, segment)
        self.free_ps = now_ps + twin.costs.wire_ps(segment.flits_up)
        self.count(segment.flits_up, segment.purpose)
        twin.use(LOG_UP, self.gpu, segment.purpose, segment.name, segment.flits_up, self.free_ps)
        self.wake()

    def wake(self) -> None:
        """Makes sure the uplink looks again when the wire falls free, if anything waits."""
        if not self.is_woken and any(lane.waiting for lane in self.lanes):
            self.is_woken = True
            self.twin.at(self.free_ps, EV_UPLINK, self.fall_free)

    def fall_free(self) -> None:
        """Looks again."""
        self.is_woken = False
        self.pump()

    def credit(self, vc: int, flits: int) -> None:
        """Takes input buffer space back."""
        self.lanes[vc].used_flits -= flits
        self.pump()

    def reach_switch(self, segment: Segment) -> None:
        """Offers a segment to its outputs, or puts it behind the others of an input FIFO."""
        if self.twin.costs.queueing == "input_fifo":
            fifo = self.lanes[segment.vc].fifo
            fifo.append(segment)
            if len(fifo) > 1:
                return
        self.expose(segment)

    def expose(self, segment: Segment) -> None:
        """Queues a segment, or each replica of a store by itself, at the output it goes to."""
        if segment.purpose == COMBINE_DATA:
            self.twin.gpus[segment.token.home].head_is_here(segment.token)
        for replica in segment.replicas or [segment]:
            replica.tail_ps = segment.tail_ps
            self.twin.output(replica).enqueue(replica, self.gpu)

    def input_next(self, vc: int) -> None:
        """Moves an input FIFO on: its head has left the switch."""
        fifo = self.lanes[vc].fifo
        fifo.popleft()
        if fifo:
            self.expose(fifo[0])

    def leave_input(self, segment: Segment, end_ps: int) -> None:
        """Gives the input buffer of a segment back, once the last of its replicas leaves it."""
        twin = self.twin
        if twin.costs.queueing == "output_queued":
            return
        whole = segment.carrier or segment
        whole.replicas_left -= 1
        whole.end_ps = max(whole.end_ps, end_ps)
        whole.free_ps = max(whole.free_ps, end_ps - self.streamed_ps(segment, end_ps - twin.now_ps))
        if whole.replicas_left > 0:
            return
        twin.at(
            self.credit_ps(whole, whole.free_ps + twin.costs.hop_ps), EV_CREDIT, self.credit, whole.vc, whole.flits_up
        )
        if twin.costs.queueing == "input_fifo":
            twin.at(whole.end_ps, EV_INPUT_NEXT, self.input_next, whole.vc)

    def streamed_ps(self, segment: Segment, leaving_ps: int) -> int:
        """Returns how long before its tail a segment gives its buffer back, all packets together.

        It took the space of all of them when the first entered the uplink; each holds it as long as if it were alone.
        """
        costs, packets = self.twin.costs, self.packets_of(segment)
        if costs.store_and_forward:
            return 0
        entering_ps = costs.wire_ps(segment.flits_down)
        return min(leaving_ps, (packets - 1) * (entering_ps + leaving_ps) // (2 * packets))

    def credit_ps(self, whole: Segment, free_ps: int) -> int:
        """Returns when buffer space may be used again that the GPU knows, at ``free_ps``, to be free.

        Whole segments leave a rest of the buffer that packets would fill; they hold what they have for less instead.
        """
        costs, flits = self.twin.costs, whole.flits_up
        if costs.store_and_forward or self.packets_of(whole) == 1:
            return free_ps
        held_ps = free_ps - (whole.tail_ps - self.twin.delivery_ps(flits))
        rest_flits = costs.credit_flits - max(costs.credit_flits // flits, 1) * flits
        return max(self.twin.now_ps, free_ps - held_ps * rest_flits // costs.credit_flits)

    def packets_of(self, segment: Segment) -> int:
        """Returns how many packets a copy, partial sum or store is."""
        costs = self.twin.costs
        if segment.purpose == DISPATCH_DATA:
            return segment.vectors * costs.dispatch_packets // costs.dispatch_segments
        return segment.vectors * costs.combine_packets // costs.combine_segments


class Port(Link):
    """An output of the switch: a queue for each class and input; classes take turns, then inputs."""

    def __init__(self, twin: Twin, gpu: int, plane: int) -> None:
        super().__init__(twin, gpu, plane, DOWN)
        # The first input is the next one served; one that still has segments goes to the end.
        self.queues: tuple[OrderedDict[int, deque[Segment]], ...] = (OrderedDict(), OrderedDict())
        self.stalled: Segment | None = None  # taken from its queue, but has to wait for accumulator slots

    def queued_flits(self) -> int:
        """Returns the flits of all segments that wait at the switch for this output."""
        return sum(s.flits_down for inputs in self.queues for queue in inputs.values() for s in queue)

    def append(self, segment: Segment, source: int) -> None:
        """Queues a segment without looking at the output yet."""
        if self.twin.costs.queueing == "output_queued":
            source = 0
        self.queues[segment.vc].setdefault(source, deque()).append(segment)

    def enqueue(self, segment: Segment, source: int) -> None:
        """Queues a segment; the output takes it at once if it can."""
        self.append(segment, source)
        self.pump()

    def pump(self) -> None:
        """Starts the next segment if the output is free."""
        if self.stalled is None and not any(self.queues):
            return
        if self.free_ps > self.twin.now_ps:
            self.wake(self.free_ps)
            return
        self.start(self.stalled or self.take())
        if self.stalled is None and any(self.queues):
            self.wake(self.free_ps)

    def take(self) -> Segment:
        """Removes and returns the segment whose turn it is."""
        if self.queues[1 - self.last_vc]:
            self.last_vc = 1 - self.last_vc
        inputs = self.queues[self.last_vc]
        source, queue = inputs.popitem(last=False)
        segment = queue.popleft()
        if queue:
            inputs[source] = queue
        return segment

    def wake(self, time_ps: int) -> None:
        """Makes sure the output looks again, at the given time unless it was going to already."""
        if not self.is_woken:
            self.is_woken = True
            self.twin.at(time_ps, EV_PORT, self.fall_free)

    def fall_free(self) -> None:
        """Looks again."""
        self.is_woken = False
        self.pump()

    def start(self, segment: Segment) -> None:
        """Serves one segment."""
        raise NotImplementedError


class Downlink(Port):
    """The output that leads to a GPU."""

    def start(self, segment: Segment) -> None:
        """Sends a segment down; one that cuts through cannot leave before its own tail has come."""
        twin, flits = self.twin, segment.flits_down
        serial_ps = twin.costs.wire_ps(flits)
        end_ps = max(twin.now_ps + serial_ps, segment.tail_ps)
        # While a bundle's tail is on its way others go between its vectors.
        self.free_ps = twin.now_ps + serial_ps if twin.by_chunk else end_ps
        self.count(flits, segment.purpose)
        twin.use(LOG_DOWN, self.gpu, segment.purpose, segment.name, flits, self.free_ps)
        reach_ps = end_ps - serial_ps + twin.delivery_ps(flits)
        twin.at(reach_ps, EV_REACH, twin.gpus[self.gpu].reach, segment)
        twin.gpus[self.gpu].free_read(segment, reach_ps, serial_ps)
        if segment.name[0] == "sum" or segment.purpose == EVICTION:
            twin.gpus[self.gpu].reducers[self.plane].drain()
        else:
            twin.gpus[segment.origin].uplinks[self.plane].leave_input(segment, end_ps)


@dataclass(eq=False)
class Accumulator:
    """The open sum of one token, or of one packet of it, in a reduction unit."""

    pieces: int = 0
    last: Pair | None = None  # whose contribution came last
    ready_ps: int = 0


class Reducer(Port):
    """The reduction unit before a downlink: sums contributions in a bounded number of accumulator slots."""

    def __init__(self, twin: Twin, gpu: int, plane: int) -> None:
        super().__init__(twin, gpu, plane)
        self.open: dict[tuple[Token, int], Accumulator] = {}  # by token and place in its vector, the oldest first
        self.need = twin.costs.combine_packets // twin.costs.combine_segments  # slots of one sum
        self.slots_used = 0
        self.slots_draining = 0  # of those used, the ones whose sum waits for the downlink

    def start(self, segment: Segment) -> None:
        """Adds a contribution to its token's sum; the last one sends the result down."""
        twin, token, pair, place = self.twin, segment.token, segment.pair, segment.place
        assert pair is not None
        self.stalled = None
        if (token, place) not in self.open and not self.make_room():
            self.stalled = segment
            return
        if token.begun_ps == NO_TIME:
            token.begun_ps = twin.now_ps
            twin.gpus[self.gpu].sum_begins(token)
        accumulator = self.open.setdefault((token, place), Accumulator())
        self.free_ps = max(twin.now_ps + twin.costs.reduce_ps(segment.flits_down), segment.tail_ps)
        twin.use(LOG_REDUCE, self.gpu, COMBINE_DATA, segment.name, segment.flits_down, self.free_ps)
        sender = twin.gpus[segment.origin]
        sender.uplinks[self.plane].leave_input(segment, self.free_ps)
        if twin.program.combine_primitive == PUSH_REDUCE:
            # The switch holds the contribution now, so it acknowledges the store itself.
            acked_ps = self.free_ps + twin.costs.hop_ps
            twin.at(acked_ps, EV_ACK, sender.combine_acknowledged, segment)
            sender.free_pushed(segment, acked_ps)
        accumulator.pieces += 1
        accumulator.last = pair
        accumulator.ready_ps = self.free_ps + twin.costs.cycle_ps
        token.contributions_left[place] -= 1
        if token.contributions_left[place] == 0:
            self.close(token, place, ("sum", token.number, self.gpu, place), COMBINE_DATA)

    def make_room(self) -> bool:
        """Claims slots for one more sum, evicting the oldest if it must; False if slots must drain first."""
        slots = self.twin.costs.reduction_slots
        while self.open and self.slots_used - self.slots_draining + self.need > slots:
            oldest, place = next(iter(self.open))
            last = self.open[oldest, place].last
            assert last is not None
            self.twin.evictions += 1
            self.close(oldest, place, ("partial", last.token.number, last.gpu, place), EVICTION)
        # A sum larger than the whole buffer passes alone: its packets stream through.
        if self.slots_used > 0 and self.slots_used + self.need > slots:
            return False
        self.slots_used += self.need
        return True

    def close(self, token: Token, place: int, name: Name, purpose: int) -> None:
        """Sends a sum, complete or not, to the downlink; its slots drain with it."""
        twin, accumulator = self.twin, self.open.pop((token, place))
        vectors = max(1, len(token.bundle))
        flits = twin.segment_flits(twin.costs.combine_bytes)[place] * vectors
        segment = Segment(name, place, self.plane, purpose, token, None, self.gpu, 0, flits, RESPONSE, vectors=vectors)
        segment.pieces, segment.tail_ps = accumulator.pieces, accumulator.ready_ps
        self.slots_draining += self.need
        downlink = twin.gpus[self.gpu].downlinks[self.plane]
        downlink.append(segment, twin.num_gpus)
        downlink.wake(max(twin.now_ps, downlink.free_ps))

    def drain(self) -> None:
        """Gets the slots of one sum back, which the downlink has begun to send."""
        self.slots_used -= self.need
        self.slots_draining -= self.need
        if self.stalled is not None:
            self.wake(max(self.twin.now_ps, self.free_ps))
