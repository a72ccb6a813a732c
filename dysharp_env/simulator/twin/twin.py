"""The twin itself: sets a layer up, keeps the event queue, and asks."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import numpy as np

from dysharp_env.simulator.costs import PS_PER_S, Bound, Costs
from dysharp_env.simulator.layout import (
    BROADCAST,
    COMBINE,
    COMBINE_DATA,
    COMBINE_PRIMITIVES,
    CONTEXT,
    DISPATCH,
    DISPATCH_DATA,
    DISPATCH_PRIMITIVES,
    EV_GATE,
    FEATURES,
    GEMM,
    MULTICAST,
    NUM_PURPOSES,
    PULL_REDUCE,
    PULL_UNICAST,
    PUSH_UNICAST,
    REDUCE_SCATTER,
    REQUEST,
    RESPONSE,
    SPLIT,
)
from dysharp_env.simulator.ordering import token_order
from dysharp_env.simulator.planes import vector_planes
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.twin.bundling import BundlingGpu
from dysharp_env.simulator.twin.core import Core, Group
from dysharp_env.simulator.twin.fabric import Port
from dysharp_env.simulator.twin.gpu import Gpu
from dysharp_env.simulator.twin.parts import (
    Candidate,
    Chunk,
    Decision,
    Expert,
    Hold,
    Name,
    Pair,
    Segment,
    Split,
    Token,
    Use,
)
from dysharp_env.simulator.twin.shown import context_of, features_of
from dysharp_env.workload.workload import Workload


class Twin:
    """One simulated layer, with the engine's interface. Time runs only inside ``advance``.

    Attributes:
        now_ps: The simulated time.
        tokens, experts, gpus: What the layer is made of; times are in tokens and in the experts' tiles.
        traffic: (GPU, direction, purpose) int64 flits on the wire.
        log: Every use of a link, reduction unit and SM group.
        decisions: Decisions between two or more legal candidates so far.
        evictions: Partial sums sent home for want of accumulator slots.
        served, sequence: Events served and events pushed so far.
    """

    def __init__(self, workload: Workload, costs: Costs, program: Program, num_sms: int, bound: Bound) -> None:
        """Sets the layer up.

        Args:
            workload: Routing of one layer.
            costs: Its costs on a system.
            program: How it is run.
            num_sms: SMs of one GPU.
            bound: The workload's lower bound, which times are compared with in what decisions show.
        """
        self.workload, self.costs, self.program = workload, costs, program
        self.num_gpus, self.num_sms, self.bound = workload.num_gpus, num_sms, bound
        self.scale_ps = max(1, bound.total_ps)
        self.splits = [Split(row, *split) for row, split in enumerate(program.splits)]
        self.most_sms = {
            DISPATCH: max([program.dispatch_sms, *(split.dispatch_sms for split in self.splits)]),
            COMBINE: max([program.combine_sms, *(split.combine_sms for split in self.splits)]),
        }
        tile_tokens = workload.layer.tile_tokens
        self.may_close_early = program.allow_partial or any(split.early_tokens < tile_tokens for split in self.splits)
        self.dispatch_window = costs.dispatch_window(DISPATCH_PRIMITIVES[program.dispatch_primitive])
        self.combine_window = costs.combine_window(COMBINE_PRIMITIVES[program.combine_primitive])
        self.now_ps = 0
        self.done = False
        self.sequence = self.served = self.rows_ready = self.decisions = self.evictions = 0
        self.traffic = np.zeros((self.num_gpus, 2, NUM_PURPOSES), np.int64)
        self.log: list[Use] = []
        self.marked: deque[Group] = deque()
        self.events: list[tuple[int, int, int, Callable[..., None], tuple[Any, ...]]] = []
        dispatch_planes, combine_planes = vector_planes(costs, workload.num_tokens)
        self.dispatch_planes, self.combine_planes = dispatch_planes.tolist(), combine_planes.tolist()
        self.dispatch_ask_flits = costs.packet.ask_flits(costs.dispatch_bytes) // costs.dispatch_segments
        self.by_chunk = costs.resolution == "chunk"
        make_gpu = BundlingGpu if self.by_chunk else Gpu
        self.gpus: list[Gpu] = [make_gpu(self, number) for number in range(self.num_gpus)]
        self.experts = {
            (number, part): Expert(number, part)
            for number in range(workload.layer.experts)
            for part in range(program.parts)
        }
        self.positions = np.argsort(token_order(workload, program.waves)).tolist()
        self.tokens = [self.make_token(number) for number in range(workload.num_tokens)]
        self.tokens_left = len(self.tokens)
        for expert in self.experts.values():
            gpu = self.gpus[int(workload.gpu_of_expert[expert.number])]
            gpu.experts.append(expert)
            gpu.slots += expert.total
            gpu.arrivals_left[expert.part] += expert.total
            for stage in (0, 1):
                gpu.slots_left[stage][expert.part] += expert.total
        for gpu in self.gpus:
            own = self.tokens[gpu.number * workload.tokens_per_gpu :][: workload.tokens_per_gpu]
            own.sort(key=lambda token: self.positions[token.number])
            for place, first in enumerate(range(0, len(own), program.chunk_tokens)):
                members = own[first : first + program.chunk_tokens]
                part = place * program.parts // -(-len(own) // program.chunk_tokens)
                for reader in self.gpus if program.reads_tokens else [gpu]:
                    for turn in range(program.parts) if program.by_peers else [part]:
                        reader.unsent.append(Chunk(reader.number, gpu.number, place, turn, members))
        for gpu in self.gpus:
            gpu.unsent.sort(key=lambda chunk: (chunk.part, chunk.place, (chunk.home - chunk.gpu) % self.num_gpus))
            for chunk in gpu.unsent:
                gpu.sends_left[chunk.part] += len(chunk.tokens)
            gpu.tokens_to_send = sum(gpu.sends_left)
        self.at(program.pays_ps[0], EV_GATE, self.open_gate, 0, 0, self.gpus)
        self._story = self._tell()
        self._answer: int | None = None
        self._waiting: Decision | None = None

    def make_token(self, number: int) -> Token:
        """Returns a token with a pair for every GPU that any primitive of the program addresses for it."""
        home = number // self.workload.tokens_per_gpu
        token = Token(number, home, self.positions[number] % self.workload.tokens_per_gpu // self.program.chunk_tokens)
        ids = sorted(self.workload.topk_ids[number].tolist())
        # Copies start at the neighbour after the home GPU, so that all GPUs do not address the same one first.
        for offset in range(self.num_gpus):
            gpu = (home + offset) % self.num_gpus
            is_remote = gpu != home or self.program.loopback
            experts = [expert for expert in ids if self.workload.gpu_of_expert[expert] == gpu]
            part = self.part_of(token, gpu)
            for expert in experts:
                self.experts[expert, part].total += 1
            if self.program.copies_per_expert:
                token.pairs.extend(Pair(token, gpu, [expert], is_remote, part) for expert in experts)
            elif experts or self.program.static:
                token.pairs.append(Pair(token, gpu, experts, is_remote, part))
        for pair in token.pairs:
            pair.segments_left = self.costs.dispatch_segments
        summed = sum(self.is_summed(pair) for pair in token.pairs)
        token.contributions_left = [summed] * self.costs.combine_segments
        if self.program.pulls:
            # The local partial sum is added while the others are on their way.
            token.pieces_left = [summed] * self.costs.combine_segments
            self.gpus[home].items_waiting += 1
        else:
            token.pieces_left = [sum(bool(pair.experts) for pair in token.pairs)] * self.costs.combine_segments
            for pair in token.pairs:
                self.gpus[pair.gpu].items_waiting += pair.is_remote and bool(pair.experts)
        return token

    def part_of(self, token: Token, gpu: int) -> int:
        """Returns the part of a token at one GPU: its share of its home GPU's chunks, or the GPU's of its peers."""
        if self.program.by_peers:
            return (gpu - token.home) % self.num_gpus * self.program.parts // self.num_gpus
        return token.place * self.program.parts // -(-self.workload.tokens_per_gpu // self.program.chunk_tokens)

    def is_target(self, pair: Pair) -> bool:
        """Returns whether dispatch sends this pair over links."""
        return pair.is_remote and (bool(pair.experts) or self.program.dispatch_primitive == BROADCAST)

    def is_summed(self, pair: Pair) -> bool:
        """Returns whether combine sends this pair over links."""
        return pair.is_remote and (bool(pair.experts) or self.program.combine_primitive == REDUCE_SCATTER)

    def segment_flits(self, vector_bytes: int, targets: int = 0) -> list[int]:
        """Returns the flits of a vector's segments, ``targets`` experts named in each packet."""
        packet = self.costs.packet
        if self.costs.resolution != "packet":
            return [packet.data_flits(vector_bytes, targets)]
        size = packet.payload_bytes
        return [packet.data_flits(min(size, vector_bytes - at), targets) for at in range(0, vector_bytes, size)]

    def copy(self, pair: Pair) -> list[Segment]:
        """Returns a dispatched vector for one GPU; a multicast replica names only the experts behind that port."""
        targets = len(pair.experts) if self.program.dispatch_primitive == MULTICAST else 0
        token, planes = pair.token, self.dispatch_planes[pair.token.number]
        vc = RESPONSE if self.program.reads_tokens else REQUEST
        return [
            Segment(
                ("copy", token.number, pair.gpu, place),
                place,
                plane,
                DISPATCH_DATA,
                token,
                pair,
                token.home,
                flits,
                flits,
                vc,
            )
            for place, (plane, flits) in enumerate(
                zip(planes, self.segment_flits(self.costs.dispatch_bytes, targets), strict=True)
            )
        ]

    def store_targets(self, token: Token) -> int:
        """Returns how many experts a vector names that is dispatched to all its targets at once."""
        is_named = self.program.dispatch_primitive == MULTICAST
        return sum(len(pair.experts) for pair in token.pairs if pair.is_remote) if is_named else 0

    def store(self, token: Token, replicas: list[list[Segment]]) -> list[Segment]:
        """Returns a vector dispatched to all its targets at once, of which the switch makes the replicas."""
        segments = []
        for place, flits in enumerate(self.segment_flits(self.costs.dispatch_bytes, self.store_targets(token))):
            name, plane = ("store", token.number, token.home, place), self.dispatch_planes[token.number][place]
            whole = Segment(name, place, plane, DISPATCH_DATA, token, None, token.home, flits, 0)
            whole.replicas = [replica[place] for replica in replicas]
            whole.replicas_left = whole.acks_left = len(replicas)
            for replica in whole.replicas:
                replica.carrier = whole
            segments.append(whole)
        return segments

    def partial(self, pair: Pair) -> list[Segment]:
        """Returns one GPU's partial sum of a token on its way home: a read response (pull) or a store (push)."""
        token, vc = pair.token, RESPONSE if self.program.pulls else REQUEST
        return [
            Segment(
                ("partial", token.number, pair.gpu, place),
                place,
                plane,
                COMBINE_DATA,
                token,
                pair,
                pair.gpu,
                flits,
                flits,
                vc,
            )
            for place, (plane, flits) in enumerate(
                zip(self.combine_planes[token.number], self.segment_flits(self.costs.combine_bytes), strict=True)
            )
        ]

    def output(self, segment: Segment) -> Port:
        """Returns the switch output a segment from an uplink goes to."""
        if segment.purpose == DISPATCH_DATA:
            assert segment.pair is not None
            return self.gpus[segment.pair.gpu].downlinks[segment.plane]
        home = self.gpus[segment.token.home]
        is_plain = self.program.combine_primitive in (PUSH_UNICAST, PULL_UNICAST)
        return (home.downlinks if is_plain else home.reducers)[segment.plane]

    def request_flits(self, pairs: Sequence[Pair]) -> int:
        """Returns the flits that ask for a segment of a sum, naming the pairs' experts unless the sum is static."""
        is_named = self.program.combine_primitive == PULL_REDUCE
        flits = self.costs.request_flits(sum(len(pair.experts) for pair in pairs) if is_named else 0)
        return flits // self.costs.combine_segments

    def delivery_ps(self, flits: int) -> int:
        """Returns the time from the first flit entering a link to the last one leaving it at the other end."""
        costs = self.costs
        exact_ps = flits * costs.packet.flit_bytes * PS_PER_S * costs.planes // costs.link_bytes_per_s
        return (self.costs.hop_ps + exact_ps) // self.costs.quantum_ps * self.costs.quantum_ps

    def root(self, ps: int) -> float:
        """Returns the square root of a time over the lower bound, cut to [0, 1]."""
        return min(1.0, math.sqrt(max(ps, 0) / self.scale_ps))

    def at(self, time_ps: int, kind: int, effect: Callable[..., None], *operands: object) -> None:
        """Pushes an event."""
        heapq.heappush(self.events, (time_ps, kind, self.sequence, effect, operands))
        self.sequence += 1

    def use(self, resource: int, gpu: int, purpose: int, item: Name, amount: int, end_ps: int) -> None:
        """Logs that a resource is in use from now on."""
        self.log.append(Use(resource, gpu, purpose, item, amount, self.now_ps, end_ps))

    def splits_for(self, present: Split | None) -> list[Split]:
        """Returns the splits on offer, the present one first, so that a rule without weights keeps it."""
        return sorted(self.splits, key=lambda split: split != present)

    def open_gate(self, stage: int, part: int, gpus: list[Gpu]) -> None:
        """Lets a stage start on some GPUs: 0 everything, 1 GEMM-1, 2 GEMM-2, 3 combine of a part."""
        for gpu in gpus:
            gpu.is_open[stage, part] = True
            if stage == 0:
                for kind in (DISPATCH, GEMM, COMBINE):
                    gpu.mark(kind)
            elif stage == 3:
                gpu.list_part(part)
                gpu.mark(COMBINE)
            else:
                gpu.mark(GEMM)

    def choose(
        self, kind: int, gpu: Core, options: Sequence[Candidate], shows_hold: bool = False, may_hold: bool = False
    ) -> Generator[Decision | None, int, Candidate | None]:
        """Returns the chosen candidate, or None if there is none; one legal answer is taken without asking."""
        candidates = list(options[: self.program.max_candidates - shows_hold])
        if not candidates:
            return None
        num_legal = len(candidates) + (shows_hold and may_hold)
        if shows_hold:
            candidates.append(Hold())
        if num_legal == 1:
            return candidates[0]
        decision = self.describe(kind, self.gpus[gpu.number], candidates, num_legal)
        if kind in self.program.exposed:
            row = yield decision
            self.decisions += 1
            return candidates[row]
        self.decisions += 1
        # The highest score is taken, the first of equals. A rule without weights takes the first.
        if self.program.network and kind in self.program.networked:
            shown = decision.features[: decision.num_candidates]
            return candidates[int(self.program.network.scores(shown, decision.context)[:num_legal].argmax())]
        scores = [0.0] * num_legal
        for row in range(num_legal):
            for weight, feature in zip(self.program.weights[kind], decision.features[row], strict=True):
                scores[row] += float(weight) * float(feature)
        return candidates[scores.index(max(scores))]

    def describe(self, kind: int, gpu: Gpu, candidates: list[Candidate], num_legal: int) -> Decision:
        """Returns a decision with all that it shows; hold comes last, so the legal rows are the first ones."""
        limit = self.program.max_candidates
        features = np.zeros((limit, len(FEATURES)), np.float32)
        for row, candidate in enumerate(candidates):
            values = features_of(gpu, candidate)
            if not isinstance(candidate, Hold):
                values["order"] = row / limit
            features[row] = [values.get(name, 0.0) for name in FEATURES]
        values = context_of(gpu, kind)
        context = np.array([values.get(name, 0.0) for name in CONTEXT], np.float32)
        return Decision(kind, gpu.number, len(candidates), features, context, np.arange(limit) < num_legal, candidates)

    def _tell(self) -> Generator[Decision, int, None]:
        """Runs the layer: all events of an instant are served, then the SM groups they concern act."""
        yield from self._take_split()
        for gpu in self.gpus:
            gpu.staff()
        while True:
            while self.marked:
                group = self.marked.popleft()
                # The mark goes before the group acts: what it does may give it more to do.
                group.is_marked = False
                decision = next(group.process)
                while decision is not None:
                    decision = group.process.send((yield decision))
            if self.tokens_left == 0:
                self.now_ps += self.program.pay_end_ps
                return
            if not self.events:
                raise RuntimeError(
                    f"the schedule is stuck at {self.now_ps} ps with {self.tokens_left} tokens not combined"
                )
            self.now_ps = self.events[0][0]
            while self.events and self.events[0][0] == self.now_ps:
                _, _, _, effect, operands = heapq.heappop(self.events)
                self.served += 1
                effect(*operands)

    def _take_split(self) -> Generator[Decision, int, None]:
        asking = self.choose(SPLIT, self.gpus[0], self.splits)
        try:
            decision = next(asking)
            while decision is not None:
                decision = asking.send((yield decision))
        except StopIteration as end:
            if isinstance(end.value, Split):
                for gpu in self.gpus:
                    gpu.adopt(end.value)

    def advance(self) -> Decision | None:
        """Runs to the next exposed decision and returns it, or None when the layer is done.

        Raises:
            RuntimeError: Nothing can happen any more although tokens are left; the program cannot be run.
        """
        if self._waiting is not None:
            raise RuntimeError("a decision waits for its answer; call decide first")
        try:
            self._waiting = next(self._story) if self._answer is None else self._story.send(self._answer)
        except StopIteration:
            self.done = True
        return self._waiting

    def decide(self, choice: int) -> None:
        """Answers the waiting decision with the row of a legal candidate; time does not move.

        Raises:
            ValueError: The row is masked.
            RuntimeError: No decision waits.
        """
        if self._waiting is None:
            raise RuntimeError("no decision waits")
        if not 0 <= choice < len(self._waiting.mask) or not self._waiting.mask[choice]:
            legal = np.flatnonzero(self._waiting.mask).tolist()
            raise ValueError(f"action {choice} is masked; legal actions are {legal}")
        self._answer, self._waiting = choice, None

    def run(self) -> Twin:
        """Runs to the end under the program's own rules and returns itself.

        Raises:
            RuntimeError: The program exposes a decision.
        """
        if self.advance() is not None:
            raise RuntimeError("the program exposes decisions; answer them, or run a program that exposes none")
        return self
