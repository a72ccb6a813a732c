"""What must hold in every run: conservation, causality, capacity, exact traffic."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable

import numpy as np
import pytest

from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.observation import GEMM
from dysharp_env.simulator.state.ordering import token_order
from dysharp_env.simulator.state.state import State
from dysharp_env.workload.workload import NO_EXPERT
from tests.conftest import Case
from tests.simulator.buffer_rules import check_buffers_hold_their_credits
from tests.simulator.copy_rules import packet_of, tile_bytes, weight_traffic
from tests.simulator.run_log import Use, ended, group_of, play, started, uses

GROUPS, CASES_PER_GROUP = 10, 12
FIRST_SEED = 10_000


def experts_at(case: Case) -> dict[tuple[int, int], list[int]]:
    """Returns the experts of every (token, GPU) that has some, straight from the routing."""
    found = defaultdict(list)
    for token, ids in enumerate(case.workload.topk_ids.tolist()):
        for expert in (expert for expert in ids if expert != NO_EXPERT):
            found[token, int(case.workload.gpu_of_expert[expert])].append(expert)
    return dict(found)


def tiles_of(state: State, expert: int) -> np.ndarray:
    first, count = state.experts["tile0"][expert], state.experts["tiles_open"][expert]
    return state.tiles[first : first + count]


def tile_of(state: State) -> dict[tuple[int, int], np.void]:
    """Returns the tile of every (token, expert)."""
    found = {}
    for index, expert in enumerate(state.experts["number"].tolist()):
        for tile in tiles_of(state, index):
            for pair in state.arrived_pair[tile["first"] : tile["first"] + tile["count"]]:
                found[int(state.pairs["token"][pair]), expert] = tile
    return found


def part_of(case: Case, token: int, gpu: int, expert: int | None = None) -> int:
    """Returns the part of a token at a GPU: by its chunk's place, how far the GPU is from its home, or its expert."""
    if case.program.parts_by == codes.BY_EXPERTS:
        assert expert is not None
        here = np.flatnonzero(case.workload.gpu_of_expert == gpu)
        parts = min(case.program.parts, case.workload.most_experts)
        return int(np.flatnonzero(here == expert)[0]) * parts // len(here)
    home = case.workload.home_of_token[token]
    position = np.flatnonzero(token_order(case.workload, case.program.waves) == token)[0]
    if case.program.parts_by == codes.BY_PEERS:
        return int(gpu - home) % case.workload.num_gpus * case.program.parts // case.workload.num_gpus
    place = int(position - case.workload.first_token[home])
    num_chunks = -(-int(case.workload.tokens_of_gpu[home]) // case.program.chunk_tokens)
    return place // case.program.chunk_tokens * case.program.parts // num_chunks


def check_every_expert_computes_its_tokens_once(case: Case, state: State) -> None:
    for index, (expert, part) in enumerate(state.experts[["number", "part"]].tolist()):
        chosen = [
            token
            for token in np.flatnonzero((case.workload.topk_ids == expert).any(axis=1)).tolist()
            if part_of(case, token, int(case.workload.gpu_of_expert[expert]), expert) == part
        ]
        tiles, slot0 = tiles_of(state, index), int(state.experts["slot0"][index])
        arrived = state.arrived_pair[slot0 : slot0 + len(chosen)]
        assert sorted(state.pairs["token"][arrived].tolist()) == chosen
        ends = np.cumsum(tiles["count"])
        assert (tiles["first"] == slot0 + ends - tiles["count"]).all()
        assert tiles["count"].sum() == len(chosen) and (tiles["count"] >= 1).all()
        assert (tiles["count"] <= case.workload.layer.tile_tokens).all()
        assert (0 <= started(tiles, 0)).all() and (started(tiles, 0) < ended(tiles, 0)).all()
        assert (ended(tiles, 0) <= started(tiles, 1)).all() and (started(tiles, 1) < ended(tiles, 1)).all()


def check_everything_moves_once(case: Case, state: State, log: list[Use]) -> None:
    """Every vector crosses every link it has to exactly once, and nothing else crosses."""
    program, home = case.program, case.workload.home_of_token.tolist()
    tokens, gpus = range(case.workload.num_tokens), range(case.workload.num_gpus)
    served = set(np.flatnonzero(case.workload.experts_of_token).tolist())
    needed = {(token, gpu) for token, gpu in experts_at(case) if gpu != home[token]}
    everywhere = {(token, gpu) for token in tokens for gpu in gpus if gpu != home[token] or program.loopback}
    sent = everywhere if program.dispatch.to_all else needed
    summed = {(token, gpu) for token, gpu in everywhere if token in served} if program.combine.to_all else needed
    on_wires = [use for use in log if use.resource not in (codes.LOG_SM, codes.LOG_HBM)]
    counts = Counter((use.resource, *use[3:8]) for use in on_wires if use.purpose != codes.EVICTION)
    for (_, what, token, peer, *_), count in counts.items():
        is_per_expert = program.copies_per_expert and what in ("copy", "partial")
        assert count == (len(experts_at(case)[token, peer]) if is_per_expert else 1)

    def moved(resource: int, what: str) -> set:
        """Returns the vectors of which every segment has moved; none that is awaited may have moved in part."""
        segments = Counter(
            (token, peer, group)
            for token, peer, group, _ in {
                (use.token, use.peer, use.group, use.place)
                for use in log
                if (use.resource, use.what) == (resource, what) and use.purpose != codes.EVICTION
            }
        )
        whole = case.costs.dispatch_segments if what in ("copy", "store") else case.costs.combine_segments
        # The layer may be over while a store, or a copy of it, is on its way to where nobody waits for it.
        may_be_cut = what == "store" or (resource, what) == (codes.LOG_DOWN, "copy")
        assert may_be_cut or set(segments.values()) <= {whole}
        return {vector for vector, count in segments.items() if count == whole}

    stores = {(token, home[token], group_of(case, gpu)) for token, gpu in sent}
    waiting = {(token, gpu) for token, gpu in experts_at(case) if (token, gpu) in sent}
    awaited = {(token, home[token], group_of(case, gpu)) for token, gpu in waiting}
    needed, sent, summed = ({(*vector, 0) for vector in vectors} for vectors in (needed, sent, summed))
    is_unicast = not program.dispatch.in_switch
    assert is_unicast or awaited <= moved(codes.LOG_UP, "store") <= stores
    assert not is_unicast or not moved(codes.LOG_UP, "store")
    assert moved(codes.LOG_UP, "copy") == (sent if is_unicast else set())
    assert needed <= moved(codes.LOG_DOWN, "copy") <= sent
    assert moved(codes.LOG_UP, "partial") == summed
    in_switch, sums = program.combine.in_switch, {(token, home[token], 0) for token, *_ in summed}
    assert moved(codes.LOG_REDUCE, "partial") == (summed if in_switch else set())
    assert moved(codes.LOG_DOWN, "partial") == (set() if in_switch else summed)
    assert moved(codes.LOG_DOWN, "sum") == (sums if in_switch else set())
    evicted = sum(use.purpose == codes.EVICTION for use in log)
    assert evicted == state.root["evictions"][0]


def check_nothing_starts_before_its_inputs(case: Case, state: State, log: list[Use]) -> None:
    # Where times are rounded down, a hop may lose up to a quantum.
    hop_ps = case.costs.hop_ps if case.costs.quantum_ps == 1 else 0
    by_name = {}  # the first of its name, where every expert has a copy of its own
    for use in log:
        if use.purpose != codes.EVICTION:
            by_name.setdefault((use.resource, *use[3:8]), use)
    costs = case.costs
    tokens, tiles, homes = state.tokens, tile_of(state), case.workload.home_of_token.tolist()
    for (token, gpu), experts in experts_at(case).items():
        home, first_ps = homes[token], tokens["dispatch_start"][token] + case.costs.memory_ps
        assert case.program.pays_ps[0] <= tokens["dispatch_start"][token]
        if gpu != home or case.program.loopback:
            is_unicast = not case.program.dispatch.in_switch
            first_ps = 0
            for place in range(costs.dispatch_segments):
                store = "store", token, home, place, group_of(case, gpu)
                up = by_name[codes.LOG_UP, *(("copy", token, gpu, place, 0) if is_unicast else store)]
                down = by_name[codes.LOG_DOWN, "copy", token, gpu, place, 0]
                assert up.plane == down.plane
                assert up.start_ps >= tokens["dispatch_start"][token]
                assert down.start_ps >= up.start_ps + hop_ps
                assert down.end_ps >= up.end_ps + hop_ps
                first_ps = max(first_ps, down.end_ps + hop_ps)
        for expert in experts:
            tile = tiles[token, expert]
            assert started(tile, 0) >= first_ps
            assert tokens["combine_end"][token] >= ended(tile, 1)
            if case.program.combine.reads:
                assert tokens["combine_start"][token] >= ended(tile, 1)
        for place in range(costs.combine_segments if gpu != home else 0):
            partial = by_name[codes.LOG_UP, "partial", token, gpu, place, 0]
            ends_ps = [tiles[token, expert]["rows"]["end_ps"][..., 1] for expert in experts]
            assert partial.start_ps >= (min if case.program.copies_per_expert else max)(ends_ps)
    for use in log:
        if use.what == "partial" and use.resource in (codes.LOG_REDUCE, codes.LOG_DOWN):
            if use.purpose != codes.EVICTION:
                up = by_name[codes.LOG_UP, "partial", use.token, use.peer, use.place, 0]
                assert up.plane == use.plane
                assert use.start_ps >= up.start_ps + hop_ps and use.end_ps >= up.end_ps + hop_ps
            assert tokens["combine_end"][use.token] >= use.end_ps + hop_ps
        if use.resource == codes.LOG_REDUCE:
            total = by_name[codes.LOG_DOWN, "sum", use.token, homes[use.token], use.place, 0]
            assert total.end_ps >= use.end_ps
    last_ps = max(int(tokens["combine_end"][:-1].max()), int(state.root["weights_last"][0]))
    if case.costs.faults.late_ps > 0:
        last_ps = max(last_ps, case.program.pays_ps[0] + case.costs.faults.late_ps)  # it is over on no GPU before
    assert engine_end(state) == last_ps + int(state.root["pay_end_ps"][0])


def check_gates_are_kept(case: Case, state: State, log: list[Use]) -> None:
    """A part's stage starts when its gate says: the stage before it is over on all GPUs, or on its own."""
    gates, pays_ps = case.program.gates, case.program.pays_ps
    tiles = state.tiles[started(state.tiles, 0) >= 0]
    gpu, part = state.experts["gpu"][tiles["expert"]], state.experts["part"][tiles["expert"]]
    if case.program.parts_by == codes.BY_TOKENS:
        served = np.flatnonzero(case.workload.experts_of_token)
        of_token = np.array([part_of(case, token, int(case.workload.home_of_token[token])) for token in served])
        for tile, its_part in zip(tiles, part, strict=True):
            if gates[0] == codes.GATE_PHASE:
                assert started(tile, 0) >= state.tokens["dispatch_end"][served][of_token == its_part].max() + pays_ps[1]
            if gates[2] == codes.GATE_PHASE and case.program.combine.reads:
                assert state.tokens["combine_start"][served][of_token == its_part].min() >= ended(tile, 1) + pays_ps[3]
    for tile, its_gpu, its_part in zip(tiles, gpu, part, strict=True):
        if gates[1] == codes.GATE_PHASE:
            assert started(tile, 1) >= ended(tiles, 0)[(gpu == its_gpu) & (part == its_part)].max() + pays_ps[2]
    sent = [use for use in log if use.what == "partial" and use.resource == codes.LOG_UP]
    for use in [] if case.program.combine.reads else sent:
        if gates[2] != codes.GATE_FINE:
            its_part = part_of(case, use.token, use.gpu)
            here = (part == its_part) & (gpu == use.gpu if gates[2] == codes.GATE_GPU else True)
            assert use.start_ps >= ended(tiles, 1)[here].max() + pays_ps[3]
    if case.program.exclusive and not case.program.dispatch.reads:
        for use in log:
            if use.what == "partial" and use.resource == codes.LOG_UP and not case.program.combine.reads:
                own = [copy for copy in log if copy.resource == codes.LOG_UP and copy.gpu == use.gpu]
                assert all(copy.end_ps <= use.start_ps for copy in own if copy.what in ("copy", "store"))


def engine_end(state: State) -> int:
    return int(state.root["now_ps"][0])


def check_nothing_is_used_beyond_capacity(case: Case, state: State, log: list[Use]) -> None:
    most_gemm_sms = int(state.gpus["groups"]["sms"][:, GEMM].max())
    assert most_gemm_sms <= case.num_sms
    if case.program.split_moments > 0 and case.program.splits:
        fewest = [min(sms) for sms in zip(*case.program.splits, strict=True)]
        most_gemm_sms = case.num_sms - fewest[0] - fewest[1]
    by_resource = defaultdict(list)
    for use in log:
        by_resource[use.resource, use.gpu, use.plane].append(use)
    for (resource, *_), found in by_resource.items():
        if resource == codes.LOG_SM:
            # At equal times what ends comes first: (time, change) sorts so.
            changes = sorted(
                [(use.start_ps, use.amount) for use in found] + [(use.end_ps, -use.amount) for use in found]
            )
            assert np.cumsum([change for _, change in changes]).max() <= most_gemm_sms
        else:
            assert all(before.end_ps <= after.start_ps for before, after in zip(found, found[1:], strict=False))
    num_links = case.workload.num_gpus * case.costs.planes
    for way, links in ((codes.UP, state.uplinks), (codes.DOWN, state.ports[:num_links])):
        # A wire carries one thing at a time, so it has been busy no longer than until it falls free.
        control = state.traffic.reshape(-1, 2, codes.NUM_PURPOSES)[:, way].sum(axis=1).repeat(case.costs.planes)
        for place, (link, flits) in enumerate(zip(links, control, strict=True)):
            wire_ps = case.costs.on_link(*divmod(place, case.costs.planes)).wire_ps(int(flits))
            late_ps = link["packets"] * case.costs.faults.replay_ps  # what stood still for packets that cross again
            assert link["busy_ps"] <= link["free_ps"] <= engine_end(state) + wire_ps + late_ps


def expected_traffic(case: Case) -> dict[tuple[int, int], np.ndarray]:
    """Returns the flits of every GPU by (direction, purpose), from the routing and the packet format alone."""
    program, costs, packet, num_gpus = case.program, case.costs, case.costs.dispatch_packet, case.workload.num_gpus
    flits = defaultdict(lambda: np.zeros(num_gpus, np.int64))
    needed = experts_at(case)
    is_named = program.dispatch.names_targets
    is_unicast = not program.dispatch.in_switch
    for token in range(case.workload.num_tokens):
        home = int(case.workload.home_of_token[token])
        others = [gpu for gpu in range(num_gpus) if gpu != home]
        remote = {gpu: len(needed[token, gpu]) for gpu in others if (token, gpu) in needed}
        copies = [gpu for gpu, experts in remote.items() for _ in range(experts if program.copies_per_expert else 1)]
        everyone = list(range(num_gpus)) if program.loopback else others
        sent = everyone if program.dispatch.to_all else copies
        num_stores = len({group_of(case, gpu) for gpu in sent})
        if is_unicast:
            flits[codes.UP, codes.DISPATCH_DATA][home] += len(sent) * costs.dispatch_flits()
        elif sent:
            named = sum(remote.values()) * is_named
            flits[codes.UP, codes.DISPATCH_DATA][home] += num_stores * costs.dispatch_flits(named)
        for gpu in sent:
            flits[codes.DOWN, codes.DISPATCH_DATA][gpu] += costs.dispatch_flits(remote.get(gpu, 0) * is_named)
            if program.dispatch.reads:
                asked_flits = packet.ask_flits(costs.dispatch_bytes)
                flits[codes.UP, codes.DISPATCH_REQUEST][gpu] += asked_flits
                flits[codes.DOWN, codes.DISPATCH_REQUEST][home] += asked_flits
            else:
                flits[codes.UP, codes.DISPATCH_ACK][gpu] += costs.dispatch_packets * packet.ack_flits
        # One acknowledgement comes back for a store of any width.
        acks = 0 if program.dispatch.reads else len(sent) if is_unicast else num_stores
        flits[codes.DOWN, codes.DISPATCH_ACK][home] += acks * costs.dispatch_packets * packet.ack_flits
        has_experts = case.workload.experts_of_token[token] > 0
        summed = (everyone if has_experts else []) if program.combine.to_all else copies
        comes_once = program.combine.in_switch
        results = min(len(summed), 1) if comes_once else len(summed)
        flits[codes.DOWN, codes.COMBINE_DATA][home] += results * costs.combine_flits()
        for gpu in summed:
            flits[codes.UP, codes.COMBINE_DATA][gpu] += costs.combine_flits()
        if program.combine.reads and summed:
            names = program.combine.names_targets
            asked_flits = costs.request_flits(sum(remote.values()) * names)
            flits[codes.UP, codes.COMBINE_REQUEST][home] += asked_flits * (1 if comes_once else len(summed))
            for gpu in summed:
                flits[codes.DOWN, codes.COMBINE_REQUEST][gpu] += costs.request_flits(remote.get(gpu, 0) * names)
        if not program.combine.reads:
            ack_flits = costs.combine_packets * packet.ack_flits
            flits[codes.UP, codes.COMBINE_ACK][home] += results * ack_flits
            for gpu in summed:
                flits[codes.DOWN, codes.COMBINE_ACK][gpu] += ack_flits
        if program.notifies:
            for gpu, experts in remote.items():
                # A counter update is a header and a flit of data, each way acknowledged by the other side.
                flits[codes.UP, codes.NOTIFY][gpu] += 2 * experts
                flits[codes.DOWN, codes.NOTIFY][home] += 2 * experts
                flits[codes.UP, codes.NOTIFY][home] += experts * packet.ack_flits
                flits[codes.DOWN, codes.NOTIFY][gpu] += experts * packet.ack_flits
    for source, target in flags(case):
        flits[codes.UP, codes.DISPATCH_DONE][source] += 1
        flits[codes.DOWN, codes.DISPATCH_DONE][target] += 1
    return flits | weight_traffic(case)


def flags(case: Case) -> list[tuple[int, int]]:
    """Returns who says to whom, over links, that it has stored all it dispatches, once for every part."""
    program, gpus = case.program, range(case.workload.num_gpus)
    if not program.in_band:
        return []
    expert_gpus = set(case.workload.gpu_of_expert.tolist())
    pairs = [(source, target) for source in gpus for target in gpus if source != target and target in expert_gpus]
    # A GPU is in one part of its peers; of waves of experts all are said to be over at once.
    return pairs * (program.parts if program.parts_by == codes.BY_TOKENS else 1)


def replayed_flits(case: Case, log: list[Use]) -> np.ndarray:
    """Returns the flits, (gpu, direction), of packets that have crossed a link again: every so-many-th on it."""
    every, costs = case.costs.faults.replay_packets, case.costs
    flits = np.zeros((case.workload.num_gpus, 2), np.int64)
    packets: dict[tuple[int, int, int], int] = defaultdict(int)
    for use in log if every else ():
        if use.resource in (codes.LOG_UP, codes.LOG_DOWN):
            if use.purpose == codes.WEIGHT_DATA:
                count = packet_of(case).packets(sum(tile_bytes(case), [])[use.place])
            elif use.what in ("partial", "sum"):
                count = costs.combine_packets // costs.combine_segments
            else:
                count = costs.dispatch_packets // costs.dispatch_segments
            link, way = (use.resource, use.gpu, use.plane), (codes.UP, codes.DOWN)[use.resource == codes.LOG_DOWN]
            packets[link] += count
            again = packets[link] // every - (packets[link] - count) // every
            flits[use.gpu, way] += again * -(-use.amount // count)
    return flits


def check_traffic_is_packet_arithmetic(case: Case, state: State, log: list[Use]) -> None:
    expected = expected_traffic(case)
    counted = state.traffic.reshape(case.workload.num_gpus, 2, codes.NUM_PURPOSES)
    evicted = counted[:, codes.DOWN, codes.EVICTION]
    evictions = np.bincount([use.gpu for use in log if use.purpose == codes.EVICTION], minlength=case.workload.num_gpus)
    assert evicted.sum() == sum(use.amount for use in log if use.purpose == codes.EVICTION)
    if case.costs.resolution == "token":
        assert evicted.tolist() == (evictions * case.costs.combine_flits()).tolist()
    assert counted[:, :, codes.REPLAY].tolist() == replayed_flits(case, log).tolist()
    is_broadcast = case.program.dispatch.to_all
    for way in (codes.UP, codes.DOWN):
        for purpose, name in enumerate(codes.PURPOSES):
            found, wanted = counted[:, way, purpose], expected[way, purpose]
            # The layer is over when its tokens are home; what is still on its way then is not counted any more.
            is_told = name.endswith(("_ack", "_done"))
            may_be_short = (way == codes.DOWN and is_told) or (is_broadcast and "dispatch" in name)
            if name == "combine_ack" and way == codes.UP:
                # Sums that came in parts are acknowledged in parts.
                ack_flits = case.costs.packet.ack_flits * case.costs.combine_packets // case.costs.combine_segments
                found = found - evictions * ack_flits * (not case.program.combine.reads)
            if purpose not in (codes.EVICTION, codes.REPLAY):
                assert (found <= wanted).all() if may_be_short else (found == wanted).all(), (way, name)


@pytest.mark.parametrize("group", range(GROUPS))
def test_random_runs_keep_the_laws(random_case: Callable[[int], Case], group: int) -> None:
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
