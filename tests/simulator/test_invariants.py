"""What must hold in every run: conservation, causality, capacity, exact traffic, determinism; and two runs by hand."""

import dataclasses
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pytest

from dysharp_env.simulator import engine as engine_module
from dysharp_env.simulator import layout
from dysharp_env.simulator.program import Program
from dysharp_env.simulator.result import segment_name
from dysharp_env.system import SystemSpec
from dysharp_env.workload.layer import LayerSpec

GROUPS, CASES_PER_GROUP = 10, 12
# Primitives whose vectors cross the switch as they are.
PLAIN_DISPATCH = (layout.UNICAST, layout.PULL)
PLAIN_COMBINE = (layout.PUSH_UNICAST, layout.PULL_UNICAST)
FIRST_SEED = 10_000

# A machine and layer of round numbers: 1000 ps a flit, 100,000 ps a hop, 1 ps a byte of HBM, 50,000 ps a memory access,
# and a GEMM of one thread block that takes 1000 ps a token.
ROUND_PROGRAM = Program(
    dispatch_primitive=layout.UNICAST,
    combine_primitive=layout.PUSH_UNICAST,
    gates=(layout.GATE_FINE, layout.GATE_FINE, layout.GATE_FINE),
    pays_ps=(10_000, 0, 0, 0),
    dispatch_sms=1,
    gemm_sms=2,
    combine_sms=1,
)


def round_system(num_gpus: int, num_sms: int = 4) -> SystemSpec:
    return SystemSpec(
        name="round",
        num_gpus=num_gpus,
        gpu={
            "num_sms": num_sms,
            "bf16_tflops": num_sms * 2 * 64 * 64 / 1000,  # one block, one token: 2 x 64 x 64 FLOP in 1000 ps
            "fp8_tflops": 1,
            "gemm_efficiency": 1.0,
            "hbm_gbps": 1000,
            "l2_mb": 1,
            "memory_latency_ns": 50,
            "block_n": 64,
            "row_granularity": 1,
        },
        link={"gbps": 16, "planes": 1, "latency_ns": 100},
        switch={"reduction_rate": 0.5, "reduction_cycle_ps": 640},
        overheads={"launch_us": 0, "barrier_us": 0, "count_exchange_us": 0},
    )


def round_layer(experts: int, tile_tokens: int = 2) -> LayerSpec:
    """Vectors of 128 B: one packet of 8 flits and a header. Matrices of 8192 B."""
    return LayerSpec(
        name="round",
        hidden=64,
        moe_ff=64,
        experts=experts,
        top_k=2,
        ffn_matrices=2,
        compute_dtype="bf16",
        tile_tokens=tile_tokens,
        source="test",
    )


class Use(NamedTuple):
    """A log row whose item is spelt out: ``store`` (whole token), ``copy``, ``partial``, ``sum`` or ``tile``."""

    resource: int
    gpu: int
    purpose: int
    what: str
    token: int
    peer: int  # the expert GPU of a copy or partial sum
    place: int  # in its vector
    plane: int
    amount: int
    start_ps: int
    end_ps: int


def play(case, seed: int):
    """Returns the engine after a run in which random answers are given to what it asks."""
    rng = np.random.default_rng(seed)
    engine = case.engine()
    while (asked := engine.advance()) is not None:
        engine.decide(int(rng.choice(np.flatnonzero(asked.mask))))
    return engine


def uses(state) -> list[Use]:
    found = []
    for resource, gpu, purpose, item, amount, start_ps, end_ps in state.log[: state.root["log_size"][0]].tolist():
        name = ("tile", item, gpu, 0, 0) if resource == layout.LOG_SM else segment_name(state, item)
        found.append(Use(resource, gpu, purpose, *name, amount, start_ps, end_ps))
    return found


def experts_at(case) -> dict[tuple[int, int], list[int]]:
    """Returns the experts of every (token, GPU) that has some, straight from the routing."""
    found = defaultdict(list)
    for token, ids in enumerate(case.workload.topk_ids.tolist()):
        for expert in ids:
            found[token, int(case.workload.gpu_of_expert[expert])].append(expert)
    return dict(found)


def tiles_of(state, expert: int) -> np.ndarray:
    first, count = state.experts["tile0"][expert], state.experts["tiles_open"][expert]
    return state.tiles[first : first + count]


def tile_of(state) -> dict[tuple[int, int], np.void]:
    """Returns the tile of every (token, expert)."""
    found = {}
    for index, expert in enumerate(state.experts["number"].tolist()):
        for tile in tiles_of(state, index):
            for pair in state.arrived_pair[tile["first"] : tile["first"] + tile["count"]]:
                found[int(state.pairs["token"][pair]), expert] = tile
    return found


def part_of(case, token: int, gpu: int) -> int:
    """Returns the part of a token at a GPU: by its chunk's place, or by how far the GPU is from its home."""
    home, place = divmod(token, case.workload.tokens_per_gpu)
    if case.program.by_peers:
        return (gpu - home) % case.workload.num_gpus * case.program.parts // case.workload.num_gpus
    num_chunks = -(-case.workload.tokens_per_gpu // case.program.chunk_tokens)
    return place // case.program.chunk_tokens * case.program.parts // num_chunks


def check_every_expert_computes_its_tokens_once(case, state) -> None:
    for index, (expert, part) in enumerate(state.experts[["number", "part"]].tolist()):
        chosen = [
            token
            for token in np.flatnonzero((case.workload.topk_ids == expert).any(axis=1)).tolist()
            if part_of(case, token, int(case.workload.gpu_of_expert[expert])) == part
        ]
        tiles, slot0 = tiles_of(state, index), int(state.experts["slot0"][index])
        arrived = state.arrived_pair[slot0 : slot0 + len(chosen)]
        assert sorted(state.pairs["token"][arrived].tolist()) == chosen
        ends = np.cumsum(tiles["count"])
        assert (tiles["first"] == slot0 + ends - tiles["count"]).all()
        assert tiles["count"].sum() == len(chosen) and (tiles["count"] >= 1).all()
        assert (tiles["count"] <= case.workload.layer.tile_tokens).all()
        assert (0 <= tiles["start1"]).all() and (tiles["start1"] < tiles["end1"]).all()
        assert (tiles["end1"] <= tiles["start2"]).all() and (tiles["start2"] < tiles["end2"]).all()


def check_everything_moves_once(case, state, log) -> None:
    """Every vector crosses every link it has to exactly once, and nothing else crosses."""
    program, per_gpu = case.program, case.workload.tokens_per_gpu
    tokens, gpus = range(case.workload.num_tokens), range(case.workload.num_gpus)
    needed = {(token, gpu) for token, gpu in experts_at(case) if gpu != token // per_gpu}
    everywhere = {(token, gpu) for token in tokens for gpu in gpus if gpu != token // per_gpu or program.loopback}
    sent = everywhere if program.dispatch_primitive == layout.BROADCAST else needed
    summed = everywhere if program.combine_primitive == layout.REDUCE_SCATTER else needed
    counts = Counter(
        (use.resource, *use[3:7]) for use in log if use.purpose != layout.EVICTION and use.resource != layout.LOG_SM
    )
    for (_, what, token, peer, _), count in counts.items():
        is_per_expert = program.copies_per_expert and what in ("copy", "partial")
        assert count == (len(experts_at(case)[token, peer]) if is_per_expert else 1)

    def moved(resource: int, what: str) -> set:
        """Returns the vectors of which every segment has moved; none may have moved in part but at the very end."""
        segments = Counter(
            (token, peer)
            for token, peer, _ in {
                (use.token, use.peer, use.place)
                for use in log
                if (use.resource, use.what) == (resource, what) and use.purpose != layout.EVICTION
            }
        )
        whole = case.costs.dispatch_segments if what in ("copy", "store") else case.costs.combine_segments
        assert (resource, what) == (layout.LOG_DOWN, "copy") or set(segments.values()) <= {whole}
        return {vector for vector, count in segments.items() if count == whole}

    stores = {(token, token // per_gpu) for token, _ in sent}
    is_unicast = program.dispatch_primitive in PLAIN_DISPATCH
    assert moved(layout.LOG_UP, "store") == (set() if is_unicast else stores)
    assert moved(layout.LOG_UP, "copy") == (sent if is_unicast else set())
    # A static store also goes where nobody waits for it, so the layer may be over first.
    assert needed <= moved(layout.LOG_DOWN, "copy") <= sent
    assert moved(layout.LOG_UP, "partial") == summed
    in_switch = program.combine_primitive not in PLAIN_COMBINE
    assert moved(layout.LOG_REDUCE, "partial") == (summed if in_switch else set())
    assert moved(layout.LOG_DOWN, "partial") == (set() if in_switch else summed)
    assert moved(layout.LOG_DOWN, "sum") == ({(token, token // per_gpu) for token, _ in summed} if in_switch else set())
    evicted = sum(use.purpose == layout.EVICTION for use in log)
    assert evicted == state.root["evictions"][0]


def check_nothing_starts_before_its_inputs(case, state, log) -> None:
    # Where times are rounded down, a hop may lose up to a quantum.
    hop_ps = case.costs.hop_ps if case.costs.quantum_ps == 1 else 0
    by_name = {}  # the first of its name, where every expert has a copy of its own
    for use in log:
        if use.purpose != layout.EVICTION:
            by_name.setdefault((use.resource, *use[3:7]), use)
    costs = case.costs
    tokens, tiles, per_gpu = state.tokens, tile_of(state), case.workload.tokens_per_gpu
    for (token, gpu), experts in experts_at(case).items():
        home, first_ps = token // per_gpu, tokens["dispatch_start"][token] + case.costs.memory_ps
        assert case.program.pays_ps[0] <= tokens["dispatch_start"][token]
        if gpu != home or case.program.loopback:
            is_unicast = case.program.dispatch_primitive in PLAIN_DISPATCH
            first_ps = 0
            for place in range(costs.dispatch_segments):
                up = by_name[layout.LOG_UP, *(("copy", token, gpu) if is_unicast else ("store", token, home)), place]
                down = by_name[layout.LOG_DOWN, "copy", token, gpu, place]
                assert up.plane == down.plane
                assert up.start_ps >= tokens["dispatch_start"][token]
                assert down.start_ps >= up.start_ps + hop_ps and down.end_ps >= up.end_ps + hop_ps
                first_ps = max(first_ps, down.end_ps + hop_ps)
        for expert in experts:
            tile = tiles[token, expert]
            assert tile["start1"] >= first_ps
            assert tokens["combine_end"][token] >= tile["end2"]
            if case.program.pulls:
                assert tokens["combine_start"][token] >= tile["end2"]
        for place in range(costs.combine_segments if gpu != home else 0):
            partial = by_name[layout.LOG_UP, "partial", token, gpu, place]
            ends_ps = [tiles[token, expert]["end2"] for expert in experts]
            assert partial.start_ps >= (min if case.program.copies_per_expert else max)(ends_ps)
    for use in log:
        if use.what == "partial" and use.resource in (layout.LOG_REDUCE, layout.LOG_DOWN):
            if use.purpose != layout.EVICTION:
                up = by_name[layout.LOG_UP, "partial", use.token, use.peer, use.place]
                assert up.plane == use.plane
                assert use.start_ps >= up.start_ps + hop_ps and use.end_ps >= up.end_ps + hop_ps
            assert tokens["combine_end"][use.token] >= use.end_ps + hop_ps
        if use.resource == layout.LOG_REDUCE:
            total = by_name[layout.LOG_DOWN, "sum", use.token, use.token // per_gpu, use.place]
            assert total.end_ps >= use.end_ps
    assert engine_end(state) == tokens["combine_end"][:-1].max() + case.program.pay_end_ps


def check_gates_are_kept(case, state, log) -> None:
    """A part's stage starts when its gate says: the stage before it is over on all GPUs, or on its own."""
    gates, pays_ps = case.program.gates, case.program.pays_ps
    tiles = state.tiles[state.tiles["start1"] >= 0]
    gpu, part = state.experts["gpu"][tiles["expert"]], state.experts["part"][tiles["expert"]]
    if not case.program.by_peers:
        per_gpu = case.workload.tokens_per_gpu
        of_token = np.array([part_of(case, token, token // per_gpu) for token in range(case.workload.num_tokens)])
        for tile, its_part in zip(tiles, part, strict=True):
            if gates[0] == layout.GATE_PHASE:
                assert tile["start1"] >= state.tokens["dispatch_end"][:-1][of_token == its_part].max() + pays_ps[1]
            if gates[2] == layout.GATE_PHASE and case.program.pulls:
                assert state.tokens["combine_start"][:-1][of_token == its_part].min() >= tile["end2"] + pays_ps[3]
    for tile, its_gpu, its_part in zip(tiles, gpu, part, strict=True):
        if gates[1] == layout.GATE_PHASE:
            assert tile["start2"] >= tiles["end1"][(gpu == its_gpu) & (part == its_part)].max() + pays_ps[2]
    pushed = [use for use in log if use.what == "partial" and use.resource == layout.LOG_UP and not case.program.pulls]
    for use in pushed:
        its_part = part_of(case, use.token, use.gpu)
        here = (part == its_part) & (gpu == use.gpu if gates[2] == layout.GATE_GPU else True)
        if gates[2] != layout.GATE_FINE:
            assert use.start_ps >= tiles["end2"][here].max() + pays_ps[3]
    if case.program.exclusive and not case.program.reads_tokens:
        for use in log:
            if use.what == "partial" and use.resource == layout.LOG_UP and not case.program.pulls:
                own = [copy for copy in log if copy.resource == layout.LOG_UP and copy.gpu == use.gpu]
                assert all(copy.end_ps <= use.start_ps for copy in own if copy.what in ("copy", "store"))


def engine_end(state) -> int:
    return int(state.root["now_ps"][0])


def check_nothing_is_used_beyond_capacity(case, state, log) -> None:
    root = state.root[0]
    assert root["gemm_sms"] <= case.num_sms
    by_resource = defaultdict(list)
    for use in log:
        by_resource[use.resource, use.gpu, use.plane].append(use)
    for (resource, *_), found in by_resource.items():
        if resource == layout.LOG_SM:
            # At equal times what ends comes first: (time, change) sorts so.
            changes = sorted(
                [(use.start_ps, use.amount) for use in found] + [(use.end_ps, -use.amount) for use in found]
            )
            assert np.cumsum([change for _, change in changes]).max() <= root["gemm_sms"]
        else:
            assert all(before.end_ps <= after.start_ps for before, after in zip(found, found[1:], strict=False))
    num_links = case.workload.num_gpus * case.costs.planes
    for way, links in ((layout.UP, state.uplinks), (layout.DOWN, state.ports[:num_links])):
        # A wire carries one thing at a time, so it has been busy no longer than until it falls free.
        control = state.traffic.reshape(-1, 2, layout.NUM_PURPOSES)[:, way].sum(axis=1).repeat(case.costs.planes)
        for busy_ps, free_ps, flits in zip(links["busy_ps"], links["free_ps"], control, strict=True):
            assert busy_ps <= free_ps <= engine_end(state) + case.costs.wire_ps(int(flits))


def space_back_ps(costs, what: str, flits: int, enter_ps: int, leaving: list[Use]) -> int:
    """Returns when the buffer space of a segment is back at the GPU that sent it, from when its replicas leave."""
    packets = costs.dispatch_packets // costs.dispatch_segments
    if what == "partial":
        packets = costs.combine_packets // costs.combine_segments
    if packets == 1 or costs.store_and_forward:
        return max(use.end_ps for use in leaving) + costs.hop_ps
    # A vector stands for packets that enter and leave one by one, each on average with the vector's middle.
    middle_ps = max(
        max(
            use.start_ps,
            use.end_ps - (packets - 1) * (costs.wire_ps(use.amount) + use.end_ps - use.start_ps) // (2 * packets),
        )
        for use in leaving
    )
    # As many whole vectors as fit pass as much as the packets that would fill the buffer.
    free_ps = middle_ps + costs.hop_ps
    rest_flits = costs.credit_flits - max(costs.credit_flits // flits, 1) * flits
    return max(max(use.start_ps for use in leaving), free_ps - (free_ps - enter_ps) * rest_flits // costs.credit_flits)


def check_buffers_hold_their_credits(case, log) -> None:
    """Flits between leaving a GPU and the return of their credit never exceed a class's buffer, one segment apart."""
    if case.costs.queueing == "output_queued" or case.program.copies_per_expert:
        return  # copies to one GPU share a name, so which of them has left is not in the log
    leaving = defaultdict(list)  # by (what, token, peer, place) of what went up: how it leaves the switch
    is_unicast = case.program.dispatch_primitive in PLAIN_DISPATCH
    for use in log:
        leaves = use.resource == layout.LOG_REDUCE or (use.resource == layout.LOG_DOWN and use.what != "sum")
        if leaves and use.purpose != layout.EVICTION:
            whole = "store", use.token, use.token // case.workload.tokens_per_gpu, use.place
            leaving[use[3:7] if use.what == "partial" or is_unicast else whole].append(use)
    sent = defaultdict(list)
    for use in log:
        if use.resource == layout.LOG_UP:
            is_response = case.program.pulls if use.what == "partial" else case.program.reads_tokens
            sent[use.gpu, use.plane, is_response].append(use)
    for found in sent.values():
        held = []  # (when its space is back, flits)
        for use in found:
            held = [(back_ps, flits) for back_ps, flits in held if back_ps > use.start_ps]
            used = sum(flits for _, flits in held)
            assert used == 0 or used + use.amount <= case.costs.credit_flits
            if leaving[use[3:7]]:
                back_ps = space_back_ps(case.costs, use.what, use.amount, use.start_ps, leaving[use[3:7]])
                held.append((back_ps, use.amount))


def expected_traffic(case) -> dict[tuple[int, int], np.ndarray]:
    """Returns the flits of every GPU by (direction, purpose), from the routing and the packet format alone."""
    program, costs, packet, num_gpus = case.program, case.costs, case.costs.packet, case.workload.num_gpus
    flits = defaultdict(lambda: np.zeros(num_gpus, np.int64))
    needed = experts_at(case)
    is_named = program.dispatch_primitive == layout.MULTICAST
    is_unicast = program.dispatch_primitive in PLAIN_DISPATCH
    for token in range(case.workload.num_tokens):
        home = token // case.workload.tokens_per_gpu
        others = [gpu for gpu in range(num_gpus) if gpu != home]
        remote = {gpu: len(needed[token, gpu]) for gpu in others if (token, gpu) in needed}
        copies = [gpu for gpu, experts in remote.items() for _ in range(experts if program.copies_per_expert else 1)]
        everyone = list(range(num_gpus)) if program.loopback else others
        sent = everyone if program.dispatch_primitive == layout.BROADCAST else copies
        if is_unicast:
            flits[layout.UP, layout.DISPATCH_DATA][home] += len(sent) * costs.dispatch_flits()
        elif sent:
            flits[layout.UP, layout.DISPATCH_DATA][home] += costs.dispatch_flits(sum(remote.values()) * is_named)
        for gpu in sent:
            flits[layout.DOWN, layout.DISPATCH_DATA][gpu] += costs.dispatch_flits(remote.get(gpu, 0) * is_named)
            if program.reads_tokens:
                asked_flits = packet.ask_flits(costs.dispatch_bytes)
                flits[layout.UP, layout.DISPATCH_REQUEST][gpu] += asked_flits
                flits[layout.DOWN, layout.DISPATCH_REQUEST][home] += asked_flits
            else:
                flits[layout.UP, layout.DISPATCH_ACK][gpu] += costs.dispatch_packets * packet.ack_flits
        # One acknowledgement comes back for a store of any width.
        acks = 0 if program.reads_tokens else len(sent) if is_unicast else min(len(sent), 1)
        flits[layout.DOWN, layout.DISPATCH_ACK][home] += acks * costs.dispatch_packets * packet.ack_flits
        summed = everyone if program.combine_primitive == layout.REDUCE_SCATTER else copies
        comes_once = program.combine_primitive not in PLAIN_COMBINE
        results = min(len(summed), 1) if comes_once else len(summed)
        flits[layout.DOWN, layout.COMBINE_DATA][home] += results * costs.combine_flits()
        for gpu in summed:
            flits[layout.UP, layout.COMBINE_DATA][gpu] += costs.combine_flits()
        if program.pulls and summed:
            names = program.combine_primitive == layout.PULL_REDUCE
            asked_flits = costs.request_flits(sum(remote.values()) * names)
            flits[layout.UP, layout.COMBINE_REQUEST][home] += asked_flits * (1 if comes_once else len(summed))
            for gpu in summed:
                flits[layout.DOWN, layout.COMBINE_REQUEST][gpu] += costs.request_flits(remote.get(gpu, 0) * names)
        if not program.pulls:
            ack_flits = costs.combine_packets * packet.ack_flits
            flits[layout.UP, layout.COMBINE_ACK][home] += results * ack_flits
            for gpu in summed:
                flits[layout.DOWN, layout.COMBINE_ACK][gpu] += ack_flits
        if program.notifies:
            for gpu, experts in remote.items():
                # A counter update is a header and a flit of data, each way acknowledged by the other side.
                flits[layout.UP, layout.NOTIFY][gpu] += 2 * experts
                flits[layout.DOWN, layout.NOTIFY][home] += 2 * experts
                flits[layout.UP, layout.NOTIFY][home] += experts * packet.ack_flits
                flits[layout.DOWN, layout.NOTIFY][gpu] += experts * packet.ack_flits
    return flits


def check_traffic_is_packet_arithmetic(case, state, log) -> None:
    expected = expected_traffic(case)
    counted = state.traffic.reshape(case.workload.num_gpus, 2, layout.NUM_PURPOSES)
    evicted = counted[:, layout.DOWN, layout.EVICTION]
    evictions = np.bincount(
        [use.gpu for use in log if use.purpose == layout.EVICTION], minlength=case.workload.num_gpus
    )
    assert evicted.sum() == sum(use.amount for use in log if use.purpose == layout.EVICTION)
    if case.costs.resolution == "token":
        assert evicted.tolist() == (evictions * case.costs.combine_flits()).tolist()
    is_broadcast = case.program.dispatch_primitive == layout.BROADCAST
    for way in (layout.UP, layout.DOWN):
        for purpose, name in enumerate(layout.PURPOSES):
            found, wanted = counted[:, way, purpose], expected[way, purpose]
            # The layer is over when its tokens are home; what is still on its way then is not counted any more.
            may_be_short = (way == layout.DOWN and name.endswith("_ack")) or (is_broadcast and "dispatch" in name)
            if name == "combine_ack" and way == layout.UP:
                # Sums that came in parts are acknowledged in parts.
                ack_flits = case.costs.packet.ack_flits * case.costs.combine_packets // case.costs.combine_segments
                found = found - evictions * ack_flits * (not case.program.pulls)
            if purpose != layout.EVICTION:
                assert (found <= wanted).all() if may_be_short else (found == wanted).all(), (way, name)


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_runs_keep_the_laws(random_case, group):
    for seed in range(FIRST_SEED + group * CASES_PER_GROUP, FIRST_SEED + (group + 1) * CASES_PER_GROUP):
        case = random_case(seed)
        state = play(case, seed).state
        log = uses(state)
        check_every_expert_computes_its_tokens_once(case, state)
        check_everything_moves_once(case, state, log)
        check_nothing_starts_before_its_inputs(case, state, log)
        check_nothing_is_used_beyond_capacity(case, state, log)
        check_gates_are_kept(case, state, log)
        check_buffers_hold_their_credits(case, log)
        check_traffic_is_packet_arithmetic(case, state, log)


def content(state) -> list[bytes]:
    """Returns all that a finished state holds but where it lies in memory."""
    names = [name for name in layout.ROOT.names if not name.endswith("_at")]
    return [state.root[name].tobytes() for name in names] + [array.tobytes() for array in state[1:]]


def test_a_run_repeated_alone_or_beside_others_gives_the_same_bytes(random_case):
    seeds = [FIRST_SEED + index for index in range(24)]
    alone = [content(play(random_case(seed), seed).state) for seed in seeds]
    with ThreadPoolExecutor(max_workers=2) as pool:
        beside = list(pool.map(lambda seed: content(play(random_case(seed), seed).state), seeds))
    assert alone == beside


def test_logging_changes_nothing(random_case):
    for seed in range(12):
        case = random_case(seed).with_program(exposed=frozenset())
        quiet, logged = case.engine(logging=False).run().state, case.engine().run().state
        assert quiet.tokens.tobytes() == logged.tokens.tobytes() and quiet.tiles.tobytes() == logged.tiles.tobytes()


GUARD_ROWS, UNTOUCHED = 1024, -77


class TightArrays:
    """Gives a state's heap, pool and log just the room that one step is promised, with guard rows behind."""

    def __init__(self) -> None:
        self.guards: list[np.ndarray] = []

    def __call__(self, state):
        root = state.root[0]
        heap = self._array(state.heap, int(root["heap_size"]), int(root["heap_margin"]))
        pool = self._array(state.pool, int(root["pool_used"]), int(root["heap_margin"]))
        log = self._array(state.log, int(root["log_size"]), int(root["log_margin"]))
        return layout.bind(state._replace(heap=heap, pool=pool, log=log))

    def _array(self, old: np.ndarray, size: int, margin: int) -> np.ndarray:
        assert size <= len(old), "a step wrote beyond the room it was promised"
        new = np.full((size + margin + GUARD_ROWS, old.shape[1]), UNTOUCHED)
        new[:size] = old[:size]
        self.guards.append(new[size + margin :])
        return new[: size + margin]

    def run(self, case):
        engine = case.engine()
        engine.state = self(engine.state)
        engine.run()
        assert all((guard == UNTOUCHED).all() for guard in self.guards), "a step wrote beyond the room it was promised"
        return engine


def test_when_arrays_grow_changes_nothing(random_case, monkeypatch):
    for seed in range(240, 260):
        case = random_case(seed).with_program(exposed=frozenset())
        roomy = case.engine().run().state
        tight = TightArrays()
        monkeypatch.setattr(engine_module, "_with_room", tight)
        grown = tight.run(case).state
        monkeypatch.undo()
        assert roomy.tokens.tobytes() == grown.tokens.tobytes(), seed
        assert roomy.root["sequence"] == grown.root["sequence"]


@pytest.mark.parametrize(
    ("program", "costs"),
    [
        # A split may give combine more SMs, and so more requests in flight at once, than the program starts with.
        ({"combine_primitive": layout.REDUCE_SCATTER, "splits": ((1, 8),), "gates": (1, 1, 1)}, {}),
        # Where times are rounded down to 0, all that the windows allow is sent in one step.
        ({"dispatch_sms": 8}, {"quantum_ps": 10**6, "store_bytes": 32 * 128}),
        # All tokens of a tile may become ready at once, through entries that have spilled.
        ({"combine_primitive": layout.PULL_REDUCE}, {"output_readiness_entries": 1}),
    ],
)
def test_no_step_needs_more_room_than_it_is_promised(make_case, monkeypatch, program, costs):
    case = make_case(
        round_system(6, num_sms=16), round_layer(6, tile_tokens=512), np.array([[0, 1]] * 360), ROUND_PROGRAM
    )
    windows = {"store_bytes": 8 * 128, "multimem_bytes": 8 * 128}
    costs = dataclasses.replace(case.costs, **{**windows, **costs})
    tight = TightArrays()
    monkeypatch.setattr(engine_module, "_with_room", tight)
    tight.run(case.with_program(**program)._replace(costs=costs))


def times(state) -> dict[str, list[int]]:
    """Returns the times of both tokens and of the tile of each of the two experts."""
    tiles = state.tiles[state.tiles["count"] > 0]
    tokens = {name: state.tokens[name][:-1].tolist() for name in ("dispatch_start", "dispatch_end", "combine_start")}
    return {
        **tokens,
        "combine_end": state.tokens["combine_end"][:-1].tolist(),
        **{name: tiles[name].tolist() for name in ("start1", "end1", "start2", "end2")},
    }


def test_multicast_and_pull_worked_by_hand(make_case):
    """Two GPUs, each with one token and one expert; both tokens go to both experts, so both GPUs do the same."""
    program = dataclasses.replace(
        ROUND_PROGRAM, dispatch_primitive=layout.MULTICAST, combine_primitive=layout.PULL_REDUCE
    )
    case = make_case(round_system(2), round_layer(2), np.array([[0, 1], [0, 1]]), program)
    engine, twin = case.engine().run(), case.twin().run()
    # Start: what is paid first.
    sent = 10_000
    # The local copy goes through memory and is written: HBM is busy from 60,000 to 60,128.
    # Up: header, one target flit, 8 payload flits. The head cuts through the switch after a hop and goes on at once.
    at_switch = sent + 100_000
    stored = at_switch + 10 * 1000 + 100_000
    assert stored == 220_000
    # The algebraic index is not in the TLB yet: one memory access. The tile has its two tokens.
    arrived = stored + 50_000
    # HBM: write the token 128, read weights 8192, read two tokens 256, write their results 256. The SM waits for the
    # inputs, which take longer than its 2 x 1000 ps.
    end1 = arrived + 128 + 8192 + 256
    hbm_free = end1 + 256
    # GEMM-2 starts at once, but its weights queue behind that write.
    end2 = hbm_free + 8192 + 256
    assert (arrived, end1, end2) == (270_000, 278_576, 287_280)
    # Each GPU tells the other, two hops away; its own token was counted at once. Now both know both.
    known = end2 + 2 * 100_000
    # The request of 2 flits asks for the partial sum, behind the flit that acknowledges the counter update, two hops
    # away; there, one memory access (the TLB has it by now).
    responds = known + (1 + 2) * 1000 + 2 * 100_000 + 50_000
    # The response of 9 flits meets the reduction unit after a hop; it adds at half the line rate, and a cycle.
    summed = responds + 100_000 + 2 * 9000 + 640
    # The sum cuts through too: its last flit leaves the switch when it is added, and takes a hop.
    combined = summed + 100_000
    assert (known, responds, combined) == (487_280, 740_280, 958_920)
    assert times(engine.state) == {
        "dispatch_start": [sent] * 2,
        "dispatch_end": [arrived] * 2,
        "combine_start": [known] * 2,
        "combine_end": [combined] * 2,
        "start1": [arrived] * 2,
        "end1": [end1] * 2,
        "start2": [end1] * 2,
        "end2": [end2] * 2,
    }
    assert engine.now_ps == twin.now_ps == combined
    # Flits of one GPU: store 10 up and replica 10 down; an ack of 1 each way; counter update of 2 and its ack of 1 each
    # way; request of 2 each way; partial sum of 9 up; sum of 9 down.
    traffic = dict(zip(layout.PURPOSES, engine.state.traffic.reshape(2, 2, -1)[0].T.tolist(), strict=True))
    assert traffic == {
        "dispatch_request": [0, 0],
        "dispatch_data": [10, 10],
        "dispatch_ack": [1, 1],
        "combine_request": [2, 2],
        "combine_data": [9, 9],
        "combine_ack": [0, 0],
        "notify": [3, 3],
        "eviction": [0, 0],
    }


def test_unicast_in_phases_worked_by_hand(make_case):
    """The same layer with copies, pushed partial sums, and every stage behind the end of the one before it."""
    phases = (layout.GATE_PHASE,) * 3
    program = dataclasses.replace(ROUND_PROGRAM, gates=phases, pays_ps=(10_000, 1000, 2000, 3000))
    case = make_case(round_system(2), round_layer(2), np.array([[0, 1], [0, 1]]), program)
    engine, twin = case.engine().run(), case.twin().run()
    # 9 flits; a copy says where it goes, so no table is asked.
    arrived = 10_000 + 100_000 + 9000 + 100_000
    # All has arrived; GEMM-1 pays 1000 to start. HBM is idle then: weights 8192, two tokens 256, results 256.
    start1 = arrived + 1000
    end1 = start1 + 8192 + 256
    # GEMM-2 waits longer for the acknowledgement of what this GPU sent, two hops after it was stored, and pays 2000.
    start2 = arrived + 2 * 100_000 + 2000
    end2 = start2 + 8192 + 256
    # Combine pays 3000, pushes 9 flits.
    pushed = end2 + 3000
    combined = pushed + 100_000 + 9000 + 100_000
    assert (start1, end1, start2, end2, pushed, combined) == (220_000, 228_448, 421_000, 429_448, 432_448, 641_448)
    assert times(engine.state) == {
        "dispatch_start": [10_000] * 2,
        "dispatch_end": [arrived] * 2,
        # The partial sum that is home already is added as soon as it is there.
        "combine_start": [end2] * 2,
        "combine_end": [combined] * 2,
        "start1": [start1] * 2,
        "end1": [end1] * 2,
        "start2": [start2] * 2,
        "end2": [end2] * 2,
    }
    assert engine.now_ps == twin.now_ps == combined


def test_too_few_slots_evict_the_oldest_sum(make_case):
    """GPU 1 pushes its sums of tokens 0 and 1 while GPU 2 has others to do: with one slot, they push each other out."""
    program = dataclasses.replace(ROUND_PROGRAM, combine_primitive=layout.PUSH_REDUCE)
    topk_ids = np.array([[1, 2], [1, 2], [0, 2], [0, 2], [0, 2], [0, 2]])
    case = make_case(round_system(3), round_layer(3), topk_ids, program)
    roomy = case.engine().run().state
    tight = case._replace(costs=dataclasses.replace(case.costs, reduction_slots=1)).engine().run().state
    assert roomy.root["evictions"][0] == 0 and tight.root["evictions"][0] > 0
    assert (tight.sums["pieces_left"] == 0).all() and (tight.sums["contributions_left"] == 0).all()
    down = tight.traffic.reshape(3, 2, -1)[:, layout.DOWN].sum(axis=0)
    assert down[layout.EVICTION] == tight.root["evictions"][0] * case.costs.combine_flits()
