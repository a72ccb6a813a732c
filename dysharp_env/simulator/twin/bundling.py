"""The twin's GPU at chunk resolution: what its communication groups issue moves in bundles.

A bundle is one ``Segment`` that weighs as much as the vectors in it. A group has one window for all its SMs, counted in
vectors; see ``simulator/bundles.py`` for the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dysharp_env.simulator.bundles import SUM_SHARE
from dysharp_env.simulator.layout import (
    BROADCAST,
    COMBINE,
    COMBINE_ACK,
    COMBINE_REQUEST,
    DISPATCH,
    DISPATCH_ACK,
    DISPATCH_DATA,
    DISPATCH_REQUEST,
    EV_ACK,
    EV_ARRIVE,
    EV_REQUEST,
    EV_RESPOND,
    EV_SLOT,
    MULTICAST,
    NO_TIME,
    PULL_REDUCE,
    PULL_UNICAST,
    PUSH_REDUCE,
    PUSH_UNICAST,
)
from dysharp_env.simulator.twin.gpu import Gpu
from dysharp_env.simulator.twin.parts import Chunk, Hold, Pair, Process, Segment, Token, Unit
from dysharp_env.simulator.twin.staffing import GROUPS

if TYPE_CHECKING:
    from dysharp_env.simulator.twin.twin import Twin


def merged(vectors: Sequence[Segment]) -> Segment:
    """Returns the first of several vectors, made to stand for all."""
    bundle = vectors[0]
    bundle.flits_up = sum(vector.flits_up for vector in vectors)
    bundle.flits_down = sum(vector.flits_down for vector in vectors)
    bundle.vectors = len(vectors)
    bundle.pairs = [vector.pair for vector in vectors if vector.pair]
    return bundle


class BundlingGpu(Gpu):
    """One GPU whose communication groups work by chunk."""

    sending: Chunk | None = None

    def __init__(self, twin: Twin, number: int) -> None:
        super().__init__(twin, number)
        self.copies_left: list[list[Pair]] = []  # of that chunk, by destination
        self.stores_left: list[Token] = []  # of that chunk
        self.reads_left: list[list[Pair]] = []  # of the unit that is being read, by source
        self.held = {DISPATCH: 0, COMBINE: 0}  # what the windows are taken by

    def window(self, kind: int) -> int:
        """Returns the vectors that a group may have in flight: none beyond its size or the SMs that are here."""
        count = min(self.sizes[kind], self.here[kind])
        # An SM needs a token to be at; one that pushes needs a partial sum.
        if kind == DISPATCH:
            count = min(count, max(self.tokens_to_send // self.twin.program.parts, 1))
        elif self.twin.program.pulls:
            count = min(count, self.twin.workload.tokens_per_gpu)
        return count * self.slots_of(kind)

    def change_over(self) -> None:
        """Lets windows be what the sizes say; SMs change over as far as they may."""
        for kind in GROUPS:
            self.mark(kind)
        self.shrink_windows()

    def shrink_windows(self) -> None:
        """Lets SMs leave groups that are too large, as far as what is in flight fits the windows that stay."""
        for kind in GROUPS:
            while self.lacking(kind) < 0 and self.held[kind] <= (self.here[kind] - 1) * self.slots_of(kind):
                self.join_gemm(kind)
        self.fill_groups()

    def come(self, kind: int) -> None:
        """Has a group look whose window has grown."""
        self.mark(kind)

    def begin(self, kind: int, vectors: int) -> int:
        """Counts a bundle that a group puts in flight; returns the time."""
        self.held[kind] += vectors
        if kind == DISPATCH:
            self.dispatch_in_flight += vectors
        else:
            self.combine_in_flight += vectors
        return self.twin.now_ps

    def free_early(self, kind: int, vectors: int, issued_ps: int, home_ps: int, lead_ps: int) -> None:
        """Frees the room of a bundle when its first vector has made the round trip, ``lead_ps`` before a last one."""
        twin = self.twin
        freed_ps = max(twin.now_ps, home_ps - lead_ps // vectors * (vectors - 1))
        window = twin.dispatch_window if kind == DISPATCH else twin.combine_window
        freed_ps += (freed_ps - issued_ps) // 1000 * window.hold_permille
        twin.at(freed_ps, EV_SLOT, self.free_room, kind, vectors)

    def free_room(self, kind: int, vectors: int) -> None:
        """Gives a group the room of a bundle back."""
        self.held[kind] -= vectors
        self.mark(kind)
        self.shrink_windows()

    # Dispatch.

    def dispatch_group(self) -> Process:
        """Issues chunk after chunk as far as the window has room."""
        twin = self.twin
        while True:
            if not self.sending:
                self.end_parts()
            if self.held[DISPATCH] >= self.window(DISPATCH):
                yield None
                continue
            if not self.sending:
                in_turn = [chunk for chunk in self.unsent if chunk.part == self.part]
                chunk = yield from twin.choose(DISPATCH, self, in_turn)
                if chunk is None:
                    yield None
                    continue
                assert isinstance(chunk, Chunk)
                self.unsent.remove(chunk)
                self.open_chunk(chunk)
            if not self.issue_chunk():
                yield None

    def open_chunk(self, chunk: Chunk) -> None:
        """Begins a chunk: the experts here get what is theirs, and what is to be sent is sorted by destination."""
        twin = self.twin
        self.sending = chunk
        for token in chunk.tokens:
            if token.dispatch_start == NO_TIME:
                token.dispatch_start = twin.now_ps
        pairs = [pair for token in chunk.tokens for pair in self.in_turn(token)]
        local = [pair for pair in pairs if not pair.is_remote and pair.experts]
        if local:
            twin.at(twin.now_ps + twin.costs.memory_ps, EV_ARRIVE, self.arrive_together, local)
        if twin.program.dispatch_primitive in (MULTICAST, BROADCAST):
            self.stores_left = [token for token in chunk.tokens if any(map(twin.is_target, token.pairs))]
        else:
            self.copies_left = self.by_gpu(pair for pair in pairs if twin.is_target(pair))

    def by_gpu(self, pairs: Iterable[Pair]) -> list[list[Pair]]:
        """Returns pairs by their GPU, this one and then its neighbours round."""
        found: dict[int, list[Pair]] = {}
        for pair in pairs:
            found.setdefault((pair.gpu - self.number) % self.twin.num_gpus, []).append(pair)
        return [found[offset] for offset in sorted(found)]

    def issue_chunk(self) -> bool:
        """Issues what is left of the chunk as far as the window has room; False if something stays."""
        assert self.sending
        while self.stores_left or self.copies_left:
            left: list[Token] | list[Pair] = self.stores_left or self.copies_left[0]
            vectors = min(len(left), self.window(DISPATCH))
            if 2 * (self.window(DISPATCH) - self.held[DISPATCH]) < vectors:
                return False
            if self.stores_left:
                bundle = self.store_bundle(self.stores_left[:vectors])
            else:
                bundle = merged([self.twin.copy(pair)[0] for pair in self.copies_left[0][:vectors]])
            del left[:vectors]
            self.copies_left = [pairs for pairs in self.copies_left if pairs]
            bundle.issued_ps = self.begin(DISPATCH, vectors)
            if self.twin.program.reads_tokens:
                self.ask_for_token([bundle])
            else:
                self.send([bundle])
        before, self.tokens_sent = self.tokens_sent, self.tokens_sent + len(self.sending.tokens)
        self.share_done(before, self.tokens_sent, self.tokens_to_send)
        self.sends_left[self.part] -= len(self.sending.tokens)
        self.sending = None
        return True

    def store_bundle(self, tokens: list[Token]) -> Segment:
        """Returns a bundle for all targets of several tokens, of which the switch makes the replicas."""
        twin = self.twin
        targets = [[pair for pair in token.pairs if twin.is_target(pair)] for token in tokens]
        store = merged([twin.store(token, [])[0] for token in tokens])
        store.replicas = [
            merged([twin.copy(pair)[0] for pair in pairs])
            for pairs in self.by_gpu(pair for pairs in targets for pair in pairs)
        ]
        store.replicas_left = store.acks_left = len(store.replicas)
        for replica in store.replicas:
            replica.carrier = store
        return store

    def ask_for_token(self, copy: list[Segment]) -> None:
        """Reads a bundle from its home GPU."""
        twin, (bundle,) = self.twin, copy
        flits = bundle.vectors * twin.dispatch_ask_flits
        crossed_ps = self.ask([bundle.plane], flits, DISPATCH_REQUEST)
        twin.at(crossed_ps + 2 * twin.costs.hop_ps, EV_REQUEST, twin.gpus[bundle.origin].asked_for_token, copy)

    def asked_for_token(self, copy: list[Segment]) -> None:
        """Reads a bundle of this GPU for another one, and responds with it."""
        twin, (bundle,) = self.twin, copy
        self.downlinks[bundle.plane].charge(bundle.vectors * twin.dispatch_ask_flits, DISPATCH_REQUEST)
        twin.at(twin.now_ps + twin.costs.memory_ps, EV_RESPOND, self.send, copy)

    def reach_dispatch(self, copy: Segment) -> None:
        """Stores a bundle and acknowledges it."""
        twin = self.twin
        if twin.program.reads_tokens:
            # The reader has what it asked for; nobody is told.
            self.arrive_together(copy.pairs)
            self.end_bundle(copy)
            return
        uplink = self.uplinks[copy.plane]
        uplink.charge(uplink.packets_of(copy) * twin.costs.packet.ack_flits, DISPATCH_ACK)
        # The switch merges the acknowledgements of a multicast store: the last one counts.
        whole = copy.carrier or copy
        whole.acks_left -= 1
        if whole.acks_left == 0:
            home, acked_ps = twin.gpus[copy.token.home], twin.now_ps + 2 * twin.costs.hop_ps
            assert isinstance(home, BundlingGpu)
            twin.at(acked_ps, EV_ACK, home.dispatch_acknowledged, whole)
            lead_ps = twin.costs.wire_ps(whole.flits_up)
            home.free_early(DISPATCH, whole.vectors, whole.issued_ps, acked_ps, lead_ps)
        if twin.program.dispatch_primitive == MULTICAST:
            delay_ps = max([self.translate(pair) for pair in copy.pairs])
            twin.at(twin.now_ps + delay_ps, EV_ARRIVE, self.arrive_together, copy.pairs)
        else:
            self.arrive_together(copy.pairs)

    def arrive_together(self, pairs: list[Pair]) -> None:
        """Makes the tokens of a bundle visible to their experts here."""
        for pair in pairs:
            if pair.experts:
                self.arrive(pair)
            else:
                self.use_hbm(self.twin.costs.token_bytes[0])

    def dispatch_acknowledged(self, whole: Segment) -> None:
        """Counts a bundle that is stored."""
        packets = self.uplinks[whole.plane].packets_of(whole)
        self.downlinks[whole.plane].charge(packets * self.twin.costs.packet.ack_flits, DISPATCH_ACK)
        self.end_bundle(whole)

    def end_bundle(self, bundle: Segment) -> None:
        """Counts a bundle that is stored or read; with it a part may be over."""
        self.dispatch_in_flight -= bundle.vectors
        self.mark(DISPATCH)

    # Combine.

    def combine_group(self) -> Process:
        """Issues unit after unit as far as the window has room."""
        twin = self.twin
        while True:
            if self.must_dispatch_first() or self.held[COMBINE] >= self.window(COMBINE):
                yield None
                continue
            if self.reads_left or self.issuing:
                if not (self.issue_reads() if self.reads_left else self.issue_items()):
                    yield None
                continue
            if self.hold_combine:
                yield None
                continue
            unit = yield from twin.choose(COMBINE, self, self.ready, twin.program.hold_combine, self.items_waiting > 0)
            if unit is None:
                yield None
            elif isinstance(unit, Hold):
                self.hold_combine = True
            else:
                assert isinstance(unit, Unit)
                self.ready.remove(unit)
                items, unit.items = unit.items, []
                self.open_items(items)

    def open_items(self, items: list[Token | Pair]) -> None:
        """Begins a unit: tokens with nothing to come are done; what is read plainly is sorted by source."""
        twin = self.twin
        reads: list[Pair] = []
        for item in items:
            token = item.token if isinstance(item, Pair) else item
            if token.combine_start == NO_TIME:
                token.combine_start = twin.now_ps
            sources = [pair for pair in token.pairs if twin.is_summed(pair)]
            if isinstance(item, Token) and not sources:
                self.complete(item)
            elif twin.program.combine_primitive == PULL_UNICAST:
                reads.extend(sources)
            else:
                self.issuing.append(item)
        self.reads_left = self.by_gpu(reads)

    def has_room(self, vectors: int) -> bool:
        """Returns whether at least half of a bundle fits the combine group's window."""
        return 2 * (self.window(COMBINE) - self.held[COMBINE]) >= vectors

    def issue_reads(self) -> bool:
        """Asks for what is left to read, source by source; False if something stays."""
        twin = self.twin
        while self.reads_left:
            pairs = self.reads_left[0]
            vectors = min(len(pairs), self.window(COMBINE))
            if not self.has_room(vectors):
                return False
            bundle = merged([twin.partial(pair)[0] for pair in pairs[:vectors]])
            del pairs[:vectors]
            self.reads_left = [left for left in self.reads_left if left]
            bundle.issued_ps = self.begin(COMBINE, vectors)
            self.request([bundle], sum(twin.request_flits([pair]) for pair in bundle.pairs))
        return True

    def request(self, bundles: list[Segment], flits: int) -> None:
        """Sends one request of so many flits to the GPUs that have the bundles."""
        twin = self.twin
        crossed_ps = self.ask([0], flits, COMBINE_REQUEST)
        twin.at(crossed_ps + 2 * twin.costs.hop_ps, EV_REQUEST, self.requested_together, bundles)

    def issue_items(self) -> bool:
        """Issues what is left of a unit, cut to its share of the window; False if the window has no room for it."""
        twin, most = self.twin, self.window(COMBINE)
        if twin.program.combine_primitive == PUSH_REDUCE:
            most = 1
        elif twin.program.pulls:
            most = max(1, most // SUM_SHARE)
        vectors = min(len(self.issuing), most)
        if not self.has_room(vectors):
            return False
        items = [self.issuing.popleft() for _ in range(vectors)]
        if twin.program.pulls:
            self.ask_for_sums([item for item in items if isinstance(item, Token)])
            return True
        pairs = [item for item in items if isinstance(item, Pair)]
        bundle = merged([twin.partial(pair)[0] for pair in pairs])
        bundle.issued_ps = self.begin(COMBINE, vectors)
        self.use_hbm(sum(len(pair.experts) for pair in pairs) * twin.costs.token_bytes[3])
        self.send([bundle])
        return True

    def ask_for_sums(self, tokens: list[Token]) -> None:
        """Asks the experts' GPUs for the sums of several tokens, each for its partial sums of those it has any of."""
        twin, carrier = self.twin, tokens[0]
        pairs = [pair for token in tokens for pair in token.pairs if twin.is_summed(pair)]
        bundles = [merged([twin.partial(pair)[0] for pair in of_gpu]) for of_gpu in self.by_gpu(pairs)]
        for bundle in bundles:
            bundle.token = carrier
        carrier.bundle, carrier.inputs = tokens, len(pairs)
        carrier.contributions_left, carrier.pieces_left = [len(bundles)], [len(bundles)]
        carrier.heads_left = len(bundles)
        carrier.issued_ps = self.begin(COMBINE, len(tokens))
        flits = sum(twin.request_flits([pair for pair in token.pairs if pair.is_remote]) for token in tokens)
        self.request(bundles, flits)

    def requested_together(self, bundles: list[Segment]) -> None:
        """Has the bundles that one request asks for read; those whose translation misses come later."""
        twin = self.twin
        read: tuple[list[Segment], list[Segment]] = ([], [])
        for bundle in bundles:
            source = twin.gpus[bundle.origin]
            assert isinstance(source, BundlingGpu)
            read[source.read_partials(bundle) > 0].append(bundle)
        for accesses, group in enumerate(read, start=1):
            if group:
                twin.at(twin.now_ps + accesses * twin.costs.memory_ps, EV_RESPOND, self.respond_together, group)

    def read_partials(self, bundle: Segment) -> int:
        """Reads partial sums that their home GPU has asked for; returns the delay of their translation."""
        twin = self.twin
        delay_ps = 0
        if twin.program.combine_primitive == PULL_REDUCE:
            delay_ps = max([self.translate(pair) for pair in bundle.pairs])
        flits = sum(twin.request_flits([pair]) for pair in bundle.pairs)
        self.downlinks[bundle.plane].charge(flits, COMBINE_REQUEST)
        # A static reduce-scatter reads one vector from every GPU, whether it holds a result or not.
        self.use_hbm(sum(max(len(pair.experts), 1) for pair in bundle.pairs) * twin.costs.token_bytes[3])
        return delay_ps

    def respond_together(self, bundles: list[Segment]) -> None:
        """Sends bundles that have been read, each from its GPU."""
        for bundle in bundles:
            self.twin.gpus[bundle.origin].send([bundle])

    def reach_combine(self, segment: Segment) -> None:
        """Takes a bundle of partial or reduced sums in at its home GPU."""
        twin, uplink = self.twin, self.uplinks[segment.plane]
        primitive = twin.program.combine_primitive
        if not twin.program.pulls:
            uplink.charge(uplink.packets_of(segment) * twin.costs.packet.ack_flits, COMBINE_ACK)
        if primitive == PUSH_UNICAST:
            sender, acked_ps = twin.gpus[segment.origin], twin.now_ps + 2 * twin.costs.hop_ps
            assert isinstance(sender, BundlingGpu)
            twin.at(acked_ps, EV_ACK, sender.combine_acknowledged, segment)
            lead_ps = twin.costs.wire_ps(segment.flits_up)
            sender.free_early(COMBINE, segment.vectors, segment.issued_ps, acked_ps, lead_ps)
        if primitive == PULL_UNICAST:
            self.combine_in_flight -= segment.vectors
        if primitive == PUSH_REDUCE:
            self.deliver(segment.token, 0, segment.pieces)
        elif primitive in (PUSH_UNICAST, PULL_UNICAST):
            for pair in segment.pairs:
                self.deliver(pair.token, 0, 1)
        else:
            self.deliver_sums(segment.token, segment.pieces)

    def deliver_sums(self, carrier: Token, pieces: int) -> None:
        """Adds what has come to the sums of a bundle; with the last of its GPUs all its tokens are combined."""
        carrier.pieces_left[0] -= pieces
        if carrier.pieces_left[0] == 0:
            self.combine_in_flight -= len(carrier.bundle)
            for token in carrier.bundle:
                self.complete(token)

    def combine_acknowledged(self, segment: Segment) -> None:
        """Counts pushed partial sums that are stored, or in the switch."""
        packets = self.uplinks[segment.plane].packets_of(segment)
        self.downlinks[segment.plane].charge(packets * self.twin.costs.packet.ack_flits, COMBINE_ACK)
        self.combine_in_flight -= segment.vectors

    def free_read(self, segment: Segment, home_ps: int, serial_ps: int) -> None:
        """Frees the window of a plain read that this GPU will have."""
        if segment.purpose == DISPATCH_DATA:
            kind, is_read = DISPATCH, self.twin.program.reads_tokens
        else:
            kind, is_read = COMBINE, self.twin.program.combine_primitive == PULL_UNICAST
        if is_read:
            self.free_early(kind, segment.vectors, segment.issued_ps, home_ps, serial_ps)

    def free_pushed(self, segment: Segment, acked_ps: int) -> None:
        """Frees the window of a sum's contribution."""
        self.free_early(COMBINE, segment.vectors, segment.issued_ps, acked_ps, 0)

    def head_is_here(self, carrier: Token) -> None:
        """Counts a contribution to sums that this GPU has asked for."""
        carrier.heads_left -= 1
        self.free_sum(carrier)

    def sum_begins(self, carrier: Token) -> None:
        """Notes that the reduction unit has a slot for sums of this GPU."""
        self.free_sum(carrier)

    def free_sum(self, carrier: Token) -> None:
        """Frees the window of a bundle of sums once its first vector can be summed: all heads are here, and a slot."""
        if not carrier.bundle or carrier.heads_left > 0 or carrier.begun_ps == NO_TIME:
            return
        twin, vectors = self.twin, len(carrier.bundle)
        flits = twin.costs.combine_flits()
        first_ps = carrier.begun_ps + twin.costs.reduce_ps(flits * carrier.inputs) // vectors
        home_ps = max(twin.now_ps, first_ps) + twin.delivery_ps(flits)
        self.free_early(COMBINE, vectors, carrier.issued_ps, home_ps, 0)
