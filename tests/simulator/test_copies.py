"""Copies of weights made in the layer: hand-worked times, flits, what waits for weights, and who moves them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.simulator.engine import Engine
from dysharp_env.simulator.families import Families
from dysharp_env.simulator.result import schedule_table, summarise
from dysharp_env.simulator.state import codes
from dysharp_env.simulator.state.codes import GATE_FINE, GATE_GPU, GATE_PHASE
from dysharp_env.simulator.state.observation import GEMM
from dysharp_env.simulator.state.state import State
from dysharp_env.system.spec import FamilySpec
from tests.conftest import Case
from tests.simulator.copy_rules import copied_case
from tests.simulator.round_machine import round_layer
from tests.simulator.run_log import Use, ended, play, started, uses

# Matrices of 8192 B in tiles of 1024 B: 8 packets of 9 flits. A flit takes 1000 ps, a hop 100,000, memory 50,000.
TILES = 8
TILE_PS = 72_000
OPENED_PS = 10_000
READ_PS = 50_000
HOPS_PS = 200_000
ASK_PS = 8_000


def with_family(case: Case, **spec: object) -> Case:
    """Returns a case whose SMs cost something on vectors of any kind."""
    specs = {"warp_direct": FamilySpec(), "warp_load": FamilySpec(), "bulk": FamilySpec(**spec)}
    families: Families = dataclasses.replace(case.costs.families, specs=specs)
    return case._replace(costs=dataclasses.replace(case.costs, families=families))


def came_ps(state: State, expert: int) -> list[int]:
    """Returns when an expert's matrices had come."""
    ends: list[int] = state.matrices["end_ps"][2 * expert : 2 * expert + 2].tolist()
    return ends


def run(case: Case) -> Engine:
    """Returns the finished engine, whose end is the twin's too."""
    engine, twin = case.engine().run(), case.twin().run()
    assert engine.now_ps == twin.now_ps
    return engine


def sent(engine: Engine, direction: int, purpose: int) -> list[int]:
    """Returns the flits of each GPU."""
    counted = engine.state.traffic.reshape(-1, 2, codes.NUM_PURPOSES)
    flits: list[int] = counted[:, direction, purpose].tolist()
    return flits


# Times worked by hand.


def test_a_copy_that_loads_its_weights_worked_by_hand() -> None:
    """The copy's GPU asks for all tiles at once; from the first answer on they follow each other on the links."""
    state = run(copied_case("pull", [(0, 1)])).state
    asked = OPENED_PS + ASK_PS + HOPS_PS
    answered = asked + READ_PS
    assert came_ps(state, 2) == [answered + TILES * TILE_PS + HOPS_PS, answered + 2 * TILES * TILE_PS + HOPS_PS]
    assert state.matrices["start_ps"][4:].tolist() == [OPENED_PS, OPENED_PS]


def test_a_copy_whose_weights_are_stored_worked_by_hand() -> None:
    """The other GPU sends tile after tile, each read first; nothing has to be asked for."""
    state = run(copied_case("unicast", [(0, 1)])).state
    first = OPENED_PS + READ_PS
    assert came_ps(state, 2) == [first + TILES * TILE_PS + HOPS_PS, first + 2 * TILES * TILE_PS + HOPS_PS]


@pytest.mark.parametrize(("sms", "slots", "tile_ps"), [(1, 8, 300_000), (2, 8, 150_000), (1, 1, 530_000)])
def test_sms_pace_the_tiles_that_they_ask_for(sms: int, slots: int, tile_ps: int) -> None:
    """One after each 300,000 ps of one SM, or of two half as much; with one at hand, one after each round trip."""
    case = with_family(copied_case("pull", [(0, 1)], copying_family="bulk"), copy_ns=300, vectors=slots)
    state = run(case.with_program(copy_sms=sms)).state
    assert ASK_PS + HOPS_PS + READ_PS + TILE_PS + HOPS_PS == 530_000
    last_asked = OPENED_PS + (2 * TILES - 1) * tile_ps
    assert came_ps(state, 2)[1] == last_asked + 530_000


def test_a_last_tile_that_is_smaller() -> None:
    """8192 B in tiles of 3000: two of 24 packets and 188 flits of data, one of 2192 B, 18 packets and 137 flits."""
    engine = run(copied_case("unicast", [(0, 1)], weight_tile_bytes=3000))
    flits = 2 * (24 + 188) + 18 + 137
    assert came_ps(engine.state, 2)[0] == OPENED_PS + READ_PS + flits * 1000 + HOPS_PS
    assert sent(engine, codes.UP, codes.WEIGHT_DATA)[0] == 2 * flits
    assert sent(engine, codes.UP, codes.WEIGHT_ACK)[1] == 2 * (2 * 24 + 18)


# What crosses which link.

THREE = [(0, 1), (0, 2), (0, 3)]
CHAIN = [(0, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize(
    ("primitive", "copies", "up", "down"),
    [
        ("unicast", THREE, [3, 0, 0, 0], [0, 1, 1, 1]),
        ("pull", THREE, [3, 0, 0, 0], [0, 1, 1, 1]),
        ("unicast", CHAIN, [1, 1, 1, 0], [0, 1, 1, 1]),
        # Only plain stores need relays.
        ("pull", CHAIN, [3, 0, 0, 0], [0, 1, 1, 1]),
        ("multicast", THREE, [1, 0, 0, 0], [0, 1, 1, 1]),
        ("multicast", CHAIN, [1, 0, 0, 0], [0, 1, 1, 1]),
        # Groups of two: GPU 1 is in the sender's, GPUs 2 and 3 are in one.
        ("team", THREE, [2, 0, 0, 0], [0, 1, 1, 1]),
    ],
)
def test_how_often_weights_cross_each_link(
    primitive: str, copies: list[tuple[int, int]], up: list[int], down: list[int]
) -> None:
    case = copied_case(primitive, copies)
    engine = run(case._replace(costs=dataclasses.replace(case.costs, team_gpus=2)))
    # A dynamic store names experts in a flit of each packet.
    flits = 2 * TILES * 8 * (10 if primitive == "multicast" else 9)
    assert sent(engine, codes.UP, codes.WEIGHT_DATA) == [flits * times for times in up]
    assert sent(engine, codes.DOWN, codes.WEIGHT_DATA) == [flits * times for times in down]
    payload = engine.state.payload.reshape(4, 2, codes.NUM_PURPOSES)[:, :, codes.WEIGHT_DATA]
    assert payload[:, codes.DOWN].tolist() == [2 * 8192 // 16 * times for times in down]
    acks = [0 if primitive == "pull" else 2 * TILES * 8 * times for times in down]
    assert sent(engine, codes.UP, codes.WEIGHT_ACK) == acks
    asks = [2 * TILES * 8 * times if primitive == "pull" else 0 for times in down]
    assert sent(engine, codes.UP, codes.WEIGHT_REQUEST) == asks
    assert sent(engine, codes.DOWN, codes.WEIGHT_REQUEST) == [sum(asks), 0, 0, 0]


def test_a_store_to_three_copies_brings_all_of_them_their_weights_at_once() -> None:
    """Ten flits a packet: one names the experts."""
    state = run(copied_case("multicast", THREE)).state
    came = OPENED_PS + READ_PS + TILES * 80_000 + HOPS_PS
    assert [came_ps(state, expert)[0] for expert in (2, 3, 4)] == [came] * 3


def test_plain_stores_to_three_copies_take_turns_tile_by_tile() -> None:
    state = run(copied_case("unicast", THREE)).state
    first = OPENED_PS + READ_PS
    came = [came_ps(state, expert)[0] for expert in (2, 3, 4)]
    # The links also carry what acknowledges tiles of others; none of that is on the sender's uplink.
    assert came == [first + (3 * (TILES - 1) + place) * TILE_PS + HOPS_PS for place in (1, 2, 3)]


def test_a_relay_sends_on_each_tile_as_it_comes() -> None:
    """Without acknowledgements, which would take time of its links: a tile is read at the relay and is on its way."""
    case = copied_case("unicast", [(0, 1), (2, 2)])
    silent = dataclasses.replace(case.costs.packet, ack_flits=0)
    state = run(case._replace(costs=dataclasses.replace(case.costs, packet=silent))).state
    first, last = (OPENED_PS + READ_PS + tiles * TILE_PS + HOPS_PS for tiles in (1, 2 * TILES))
    assert (state.matrices["start_ps"][6], came_ps(state, 2)[1]) == (first, last)
    assert came_ps(state, 3)[1] == last + READ_PS + TILE_PS + HOPS_PS


# Rows and gates.


def test_rows_wait_for_the_matrix_that_they_use() -> None:
    """Tokens are there long before; GEMM-2 of the first needs GEMM-2's matrix, which comes later."""
    state = run(copied_case("unicast", [(0, 1)], [(2, 1)] * 3)).state
    x = state.experts[2]
    tiles = state.tiles[x["tile0"] : x["tile0"] + 2]
    assert tiles["count"].tolist() == [2, 1]
    here = came_ps(state, 2)
    assert tiles["rows"]["ready_ps"].tolist() == [[here[0], here[1]]] * 2
    # In the order in which they began to wait: the smaller tile's GEMM-1 is over first.
    assert np.argsort(tiles["rows"]["ready_sequence"], axis=0).tolist() == [[0, 1], [1, 0]]
    assert started(tiles, 0)[0] == here[0] and started(tiles, 1)[0] == here[1]


@pytest.mark.parametrize("gate", [GATE_FINE, GATE_GPU, GATE_PHASE])
def test_phases_wait_for_weights_too(gate: int) -> None:
    """GPU 1 has a copy that no token takes and one that one takes, GPU 3 one; expert 0 is at home."""
    case = copied_case("unicast", [(0, 1), (1, 1), (1, 3)], [(0, 3), (0, 4)], gates=(gate, GATE_FINE, GATE_FINE))
    state = run(case).state
    starts = {int(x["number"]): int(started(state.tiles[x["tile0"]], 0)) for x in state.experts[[0, 3, 4]]}
    unused, of_gpu1, of_gpu3 = (came_ps(state, expert) for expert in (2, 3, 4))
    assert unused[1] < of_gpu1[1] < of_gpu3[1]
    if gate == GATE_FINE:
        assert starts == {0: 60_000, 3: of_gpu1[0], 4: of_gpu3[0]}
    elif gate == GATE_GPU:
        # At home tokens come through memory; the second is dispatched when the first has left.
        assert starts[0] < 100_000 and (starts[3], starts[4]) == (of_gpu1[1], of_gpu3[1])
    else:
        assert starts == dict.fromkeys((0, 3, 4), of_gpu3[1])


def test_an_open_tile_is_closed_early_only_when_its_weights_are_there() -> None:
    """A tile of 128 tokens never fills; the GEMM group would take what has come at once."""
    early = {"partial_tiles": True, "min_partial_tokens": 1}
    case = copied_case("unicast", [(0, 1)], [(2, 1)] * 40, layer=round_layer(2, tile_tokens=128), **early)
    state = run(case).state
    assert started(state.tiles[state.experts["tile0"][2]], 0) == came_ps(state, 2)[0]
    # At home they are.
    assert started(state.tiles[state.experts["tile0"][1]], 0) < came_ps(state, 2)[0]


def test_the_layer_ends_with_weights_that_nobody_waits_for() -> None:
    engine = run(copied_case("unicast", [(0, 1)]))
    assert engine.now_ps == came_ps(engine.state, 2)[1] > engine.state.tokens["combine_end"][0]


def test_weights_that_have_not_come_are_not_fetched_ahead() -> None:
    """All of the copy's tokens are there, HBM is idle and L2 empty; nothing of it may come from HBM."""
    case = copied_case("unicast", [(0, 1)], [(2, 1)] * 3, prefetches=True, counted=True)
    found = [use for use in uses(run(case).state) if use.resource == codes.LOG_HBM]
    assert {use.token for use in found if use.purpose == codes.HBM_WEIGHTS} == {2, 3}


# Memory.


def hbm_reads(state: State, gpu: int) -> list[Use]:
    found = [use for use in uses(state) if use.resource == codes.LOG_HBM and use.gpu == gpu]
    return [use for use in found if use.purpose == codes.HBM_READ and use.token < state.root["tile_blocks"][0]]


@pytest.mark.parametrize(("primitive", "times"), [("unicast", 1), ("multicast", 1), ("team", 1), ("pull", 3)])
def test_a_tile_is_read_once_for_all_that_it_is_stored_to(primitive: str, times: int) -> None:
    """No row brings expert 1's matrices into L2 before they are copied, since no token takes it at home."""
    case = copied_case(primitive, [(1, 1), (1, 2), (1, 3)], [(0, 2)])
    case = case._replace(costs=dataclasses.replace(case.costs, team_gpus=2))
    reads = hbm_reads(run(case).state, 0)
    assert len(reads) == times * 2 * TILES and {use.amount for use in reads} == {1024}
    assert {use.token for use in reads} == {2, 3}


def test_what_is_in_l2_is_not_read_from_hbm() -> None:
    """GEMM-1 of expert 0 begins after a memory access; what is copied later than that is in L2 by then."""
    case = with_family(copied_case("pull", [(0, 1)], copying_family="bulk"), copy_ns=300, vectors=8)
    state = run(case).state
    start_ps = started(state.tiles[state.experts["tile0"][0]], 0)
    asked = [OPENED_PS + ASK_PS + HOPS_PS + place * 300_000 for place in range(2 * TILES)]
    reads = hbm_reads(state, 0)
    assert [use.start_ps for use in reads] == [time_ps for time_ps in asked if time_ps < start_ps]


def test_a_copy_gives_way_in_l2_and_comes_back_from_hbm() -> None:
    """L2 holds one matrix: writing GEMM-2's puts GEMM-1's out, which its row reads again."""
    case = copied_case("unicast", [(0, 1)], [(2, 1)], gates=(GATE_GPU, GATE_FINE, GATE_FINE))
    state = run(case._replace(costs=dataclasses.replace(case.costs, l2_bytes=8192))).state
    on_gpu = [use for use in uses(state) if use.resource == codes.LOG_HBM and use.gpu == 1]
    written = sum(
        use.amount for use in on_gpu if use.purpose == codes.HBM_WRITE and use.start_ps <= came_ps(state, 2)[1]
    )
    # A token of 128 B had its place there, too.
    assert 8192 <= written <= 8192 + 256
    assert [use.amount for use in on_gpu if use.purpose == codes.HBM_WEIGHTS][0] == 8192


# Who moves them.


@pytest.mark.parametrize(
    ("primitive", "copies", "movers"),
    [("pull", THREE, [1, 2, 3]), ("unicast", THREE, [0]), ("unicast", CHAIN, [0, 1, 2]), ("team", THREE, [0])],
)
def test_who_moves_weights_gives_sms_until_it_is_done(
    primitive: str, copies: list[tuple[int, int]], movers: list[int]
) -> None:
    """Two SMs compute on each GPU, one of them moves weights first; it takes 1,700,000 ps to change over."""
    case = copied_case(primitive, copies, exposed=frozenset({GEMM}))
    case = case._replace(costs=dataclasses.replace(case.costs, role_change_ps=1_700_000))
    engine = case.engine()
    engine.advance()
    sizes = engine.state.gpus["groups"]["sms"][:, GEMM].tolist()
    assert sizes == [1 if gpu in movers else 2 for gpu in range(4)]
    engine.follow_rule()
    engine.run()
    # The layer ends with the last weights, before the last mover can have changed over.
    assert not engine.state.movers["left"].any() and 1 in engine.state.gpus["groups"]["sms"][:, GEMM]


def test_a_gpu_has_no_more_sms_to_move_weights_than_compute() -> None:
    case = with_family(copied_case("pull", [(0, 1)], copying_family="bulk"), copy_ns=300, vectors=8)
    four, two = (run(case.with_program(copy_sms=count)).state for count in (4, 2))
    assert came_ps(four, 2) == came_ps(two, 2)


def test_sms_come_back_and_compute() -> None:
    """Nothing is left to move when the last tile is acknowledged; the rest of the layer has all SMs."""
    case = copied_case("unicast", [(0, 1)], [(2, 1)] * 30, chunk_tokens=1)
    state = run(case).state
    assert state.gpus["groups"]["sms"][:, GEMM].tolist() == [2] * 4
    assert state.gpus["free_sms"].tolist() == [2] * 4


@pytest.mark.parametrize("change_ps", [0, 700_000])
def test_weights_go_behind_tokens(change_ps: int) -> None:
    """The first tile is issued once the last token's acknowledgement is back, by SMs that have changed over."""
    case = copied_case("unicast", [(0, 1)], [(2, 1)] * 3, copies_behind=True)
    state = run(case._replace(costs=dataclasses.replace(case.costs, role_change_ps=change_ps))).state
    stored_ps = int(state.tokens["dispatch_end"].max()) + HOPS_PS
    assert state.matrices["start_ps"][4] == stored_ps + change_ps > OPENED_PS


def test_sms_that_go_behind_tokens_compute_before() -> None:
    """Of two SMs that compute on GPU 0 none waits for the tokens to be stored, and one moves weights then."""
    case = copied_case("unicast", [(0, 1)], [(2, 1)] * 3, copies_behind=True, exposed=frozenset({GEMM}))
    engine = case.engine()
    engine.advance()
    assert engine.state.gpus["groups"]["sms"][0, GEMM] == 2
    engine.follow_rule()
    engine.run()
    assert engine.state.gpus["groups"]["sms"][0, GEMM] == 2 and not engine.state.movers["left"].any()


# Results.


def test_results_say_when_weights_moved() -> None:
    engine = run(copied_case("unicast", [(0, 1)], [(2, 1)]))
    result = summarise(engine, 10**6)
    assert result.phases_us["weights"] == (OPENED_PS / 1e6, came_ps(engine.state, 2)[1] / 1e6)
    assert result.wire_bytes["by_purpose"]["weight_data"] == 2 * 16 * 2 * TILES * 72
    rows = [row for row in schedule_table(engine) if row.resource == "weights"]
    assert [(row.item, row.stage, row.gpu, row.expert) for row in rows] == [
        ("copy 2", "weights1", 1, 2),
        ("copy 2", "weights2", 1, 2),
    ]
    assert [row.end_us for row in rows] == [time_ps / 1e6 for time_ps in came_ps(engine.state, 2)]
    plain = summarise(run(copied_case("unicast", [])), 10**6)
    assert "weights" not in plain.phases_us


BACKWARD = round_layer(2).with_changes({"direction": "backward"})


@pytest.mark.parametrize(
    ("primitive", "leaving", "coming"),
    # Two copies on GPU 1, one on GPU 2, of experts of GPU 0; in the switch those of one expert become one.
    [("unicast", 2, 3), ("pull", 2, 3), ("multicast", 2, 2), ("team", 2, 2)],
)
@pytest.mark.parametrize("hbm_gbps", [1, 1000])
def test_a_backward_pass_ends_with_the_copies_gradients(
    primitive: str, leaving: int, coming: int, hbm_gbps: int
) -> None:
    """4 B for each of 2 x 64 x 64 weights; home reads and writes what it adds to."""
    copies = [(0, 1), (1, 1), (0, 2)]
    case = copied_case(primitive, copies, layer=BACKWARD)
    rate = {"hbm_bytes_per_s": hbm_gbps * 10**9}
    kernels = tuple((stage, name, kernel._replace(launch_ps=0)) for stage, name, kernel in case.costs.kernels)
    case = case._replace(costs=dataclasses.replace(case.costs, kernels=kernels, **rate))
    engine = run(case)
    num_bytes = 4 * 2 * 64 * 64
    wire_ps = num_bytes // 128 * 9 * 1000 * max(leaving, coming)
    read_ps = max(leaving * num_bytes, coming * 2 * num_bytes) * 1000 // hbm_gbps
    last_ps = max(int(engine.state.tokens["combine_end"][0]), *(came_ps(engine.state, copy)[1] for copy in (2, 3, 4)))
    assert int(engine.state.root["pay_end_ps"][0]) == max(wire_ps, read_ps)
    assert engine.now_ps == last_ps + max(wire_ps, read_ps)


def test_a_forward_pass_has_no_gradients() -> None:
    assert run(copied_case("unicast", THREE)).state.root["pay_end_ps"][0] == 0


# What random runs keep.


@pytest.mark.parametrize("group", range(6))
def test_random_copies_keep_the_laws(random_case: Callable[[int], Case], group: int) -> None:
    found = 0
    for seed in range(20_000 + group * 30, 20_000 + (group + 1) * 30):
        case = random_case(seed)
        placement = case.workload.placement
        if placement.num_copies == 0:
            continue
        found += 1
        state = play(case, seed).state
        check_weights_come_once(case, state)
        check_rows_wait(case, state)
    assert found > 3


def check_weights_come_once(case: Case, state: State) -> None:
    """Every tile of every copy goes down once, after it has gone up, and its matrix is there with the last."""
    downs = [use for use in uses(state) if use.resource == codes.LOG_DOWN and use.what == "weights"]
    ups = [use for use in uses(state) if use.resource == codes.LOG_UP and use.purpose == codes.WEIGHT_DATA]
    tiles = {(use.token, use.place): use for use in downs}
    copies = np.flatnonzero(case.workload.placement.is_copy).tolist()
    counts = [-(-whole // case.program.weight_tile_bytes) for whole in case.costs.matrix_bytes]
    assert len(downs) == len(tiles) == len(copies) * sum(counts)
    # Where times are rounded down, a hop may lose up to a quantum.
    hop_ps = case.costs.hop_ps if case.costs.quantum_ps == 1 else 0
    if not case.program.copying.in_switch:
        for up in ups:
            assert tiles[up.token, up.place].start_ps >= up.start_ps + hop_ps
    for expert in copies:
        for gemm, places in enumerate((range(counts[0]), range(counts[0], sum(counts)))):
            last_ps = max(tiles[expert, place].end_ps for place in places)
            assert came_ps(state, expert)[gemm] >= last_ps + hop_ps
    relayed = case.program.copying.name == "unicast"
    for up in ups if relayed else []:
        source = int(case.workload.placement.copied_from[up.token])
        if source in copies:
            assert up.start_ps >= tiles[source, up.place].end_ps + hop_ps + case.costs.memory_ps


def check_rows_wait(case: Case, state: State) -> None:
    for expert in state.experts:
        tiles = state.tiles[expert["tile0"] : expert["tile0"] + expert["tiles_open"]]
        if case.workload.placement.is_copy[expert["number"]]:
            here = came_ps(state, int(expert["number"]))
            assert (started(tiles, 0) >= here[0]).all() and (started(tiles, 1) >= here[1]).all()
            assert (started(tiles, 1) >= ended(tiles, 0)).all()
    assert not state.movers["left"].any() and (state.matrices["tiles_left"] == 0).all()


# Refusals.


def test_weights_cannot_be_broadcast() -> None:
    with pytest.raises(ValueError, match="weights cannot go to all GPUs, as broadcast does: copies are of some"):
        copied_case("broadcast", [(0, 1)])


def test_a_family_must_issue_the_primitive() -> None:
    with pytest.raises(ValueError, match="'warp_load' does not issue team; choose from"):
        copied_case("team", [(0, 1)], copying_family="warp_load")


def test_a_schedule_that_makes_no_copies_refuses_them() -> None:
    case = copied_case("pull", [(0, 1)]).with_program(copying=None)
    message = "the placement has 1 copies made in the layer, which the schedule cannot make"
    with pytest.raises(ConfigError, match=message):
        case.engine()


def test_too_many_weights_for_exact_time() -> None:
    case = copied_case("pull", [(0, 1)])
    large = dataclasses.replace(case.costs, matrix_bytes=(2**40, 2**40))
    with pytest.raises(ConfigError, match="1 copies are too many for exact picoseconds on this system"):
        case._replace(costs=large).with_program(weight_tile_bytes=2**34).engine()
