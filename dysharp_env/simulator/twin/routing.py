"""A layer's tokens, experts and chunks as the twin's objects, and which planes vectors take."""

from __future__ import annotations

from collections import Counter
from math import isqrt

from dysharp_env.simulator.state.codes import BY_EXPERTS, BY_PEERS, BY_TOKENS
from dysharp_env.simulator.state.observation import COMBINE, DISPATCH
from dysharp_env.simulator.twin.parts import Chunk, Expert, Pair, Token
from dysharp_env.simulator.twin.world import World
from dysharp_env.workload.workload import NO_EXPERT, Workload

GOLDEN = (isqrt(5 << 128) - (1 << 64)) // 2  # 2**64 over the golden ratio, an odd number


def token_order(workload: Workload, waves: bool) -> list[int]:
    """Returns tokens in the order in which chunks hold them; in waves, tokens of the busiest experts come first.

    An expert's rank is how many experts of its GPU receive more tokens, or as many and have a lower number. A home GPU
    compares its tokens by their experts' ranks, the lowest first; an expert that a token lacks ranks behind all.
    """
    tokens = list(range(workload.num_tokens))
    if not waves:
        return tokens
    received = Counter(workload.topk_ids.ravel().tolist())
    gpu_of = workload.gpu_of_expert.tolist()
    ranks = []
    for expert, gpu in enumerate(gpu_of):
        others = [other for other in range(len(gpu_of)) if gpu_of[other] == gpu]
        ranks.append(sum((-received[other], other) < (-received[expert], expert) for other in others))
    ranks_of = [
        sorted(len(gpu_of) if expert == NO_EXPERT else ranks[expert] for expert in experts)
        for experts in workload.topk_ids.tolist()
    ]
    return sorted(tokens, key=lambda token: (workload.home_of_token[token], ranks_of[token]))


def planes_of(first: int, segments: int, planes: int) -> list[int]:
    """Returns the planes of segments: a run of as many addresses as planes takes each once, from a hashed start on."""
    runs = [divmod(address, planes) for address in range(first, first + segments)]
    return [(place + (run * GOLDEN % 2**64 >> 40)) % planes for run, place in runs]


def part_of(world: World, token: Token, gpu: int) -> int:
    """Returns the part of a token at one GPU: its share of its home GPU's chunks, or the GPU's of its peers.

    Where parts are of experts a token at a GPU may be in several of them; none has a gate of its own then, and this is
    the first.
    """
    program = world.program
    if program.parts_by == BY_EXPERTS:
        return 0
    if program.parts_by == BY_PEERS:
        return (gpu - token.home) % world.num_gpus * program.parts // world.num_gpus
    num_chunks = -(-int(world.workload.tokens_of_gpu[token.home]) // program.chunk_tokens)
    return token.place * program.parts // num_chunks


class Routing:
    """Who is to be sent where: all tokens, by number, and parts of experts and chunks to dispatch, of all GPUs."""

    def __init__(self, world: World) -> None:
        self.world = world
        numbers, parts = range(world.workload.num_experts), range(world.program.parts)
        self.wave_of = self._waves()
        self.experts = {
            (number, part): Expert(number, part)
            for number in numbers
            for part in parts
            if world.program.parts_by != BY_EXPERTS or self.wave_of[number] == part
        }
        order = token_order(world.workload, world.program.waves)
        self.tokens = sorted(map(self._make_token, order, range(len(order))), key=lambda token: token.number)
        self.chunks: list[list[Chunk]] = [[] for _ in range(world.num_gpus)]  # in the order of dispatch
        for home in range(world.num_gpus):
            self._cut(home, [self.tokens[number] for number in order if self.tokens[number].home == home])
        for gpu, chunks in enumerate(self.chunks):
            chunks.sort(key=lambda chunk: (chunk.part, chunk.place, (chunk.home - gpu) % world.num_gpus))

    def _waves(self) -> list[int]:
        """Returns the part of every expert, where parts are of experts: its GPU's experts in order, cut into parts."""
        gpu_of, parts = self.world.workload.gpu_of_expert.tolist(), self.world.program.parts
        return [gpu_of[:expert].count(gpu) * parts // gpu_of.count(gpu) for expert, gpu in enumerate(gpu_of)]

    def _make_token(self, number: int, position: int) -> Token:
        """Returns a token with a pair for every GPU that any primitive of the program addresses for it."""
        world, costs, workload = self.world, self.world.costs, self.world.workload
        home = int(workload.home_of_token[number])
        place = position - int(workload.first_token[home])
        # Addresses count segments; the region of dispatched vectors comes first.
        first = number * costs.dispatch_segments
        first_sum = workload.num_tokens * costs.dispatch_segments + number * costs.combine_segments
        planes = {
            DISPATCH: planes_of(first, costs.dispatch_segments, costs.planes),
            COMBINE: planes_of(first_sum, costs.combine_segments, costs.planes),
        }
        token = Token(number, home, place // world.program.chunk_tokens, planes)
        # Copies start at the neighbour after the home GPU, so that all GPUs do not address the same one first.
        for offset in range(world.num_gpus):
            self._add_pairs(token, (home + offset) % world.num_gpus)
        sums = sum(pair.is_summed for pair in token.pairs)
        token.contributions_left = [sums] * costs.combine_segments
        # Where sums are asked for, the local partial sum is added while the others are on their way.
        pieces = sums if world.combine.reads else sum(bool(pair.experts) for pair in token.pairs)
        token.pieces_left = [pieces] * costs.combine_segments
        return token

    def _add_pairs(self, token: Token, gpu: int) -> None:
        world, workload = self.world, self.world.workload
        part, is_remote = part_of(world, token, gpu), gpu != token.home or world.program.loopback
        ids = sorted(expert for expert in workload.topk_ids[token.number].tolist() if expert != NO_EXPERT)
        here = [expert for expert in ids if workload.gpu_of_expert[expert] == gpu]
        groups = [[expert] for expert in here] if world.program.copies_per_expert else [here]
        for experts in groups:
            if world.program.parts_by == BY_EXPERTS:
                part = self.wave_of[experts[0]]
            for expert in experts:
                self.experts[expert, part].total += 1
            is_sent = is_remote and (bool(experts) or world.dispatch.to_all)
            is_summed = is_remote and (bool(experts) or world.combine.to_all)
            if experts or world.dispatch.to_all or world.combine.to_all:
                segments = world.costs.dispatch_segments
                token.pairs.append(Pair(token, gpu, experts, part, is_remote, is_sent, is_summed, segments))

    def _cut(self, home: int, tokens: list[Token]) -> None:
        """Cuts a home GPU's tokens into chunks, for itself or for all who read them."""
        program, size = self.world.program, self.world.program.chunk_tokens
        for place, first in enumerate(range(0, len(tokens), size)):
            members = tokens[first : first + size]
            is_of_tokens = program.parts_by == BY_TOKENS
            parts = [part_of(self.world, members[0], home)] if is_of_tokens else range(program.parts)
            for gpu in range(self.world.num_gpus) if self.world.dispatch.reads else [home]:
                self.chunks[gpu].extend(Chunk(home, place, part, members) for part in parts)
