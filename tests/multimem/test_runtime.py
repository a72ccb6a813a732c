"""Regions, instructions and the faults a program can make with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dysharp_env.config import ConfigError
from dysharp_env.multimem.fabric import acknowledgement
from dysharp_env.multimem.faults import (
    AddressFault,
    BindFault,
    CountFault,
    MultimemFault,
    PlainAccessFault,
    TargetFault,
    UndispatchedFault,
)
from dysharp_env.multimem.links import MULTIMEM_BASE, STATIC_BASE, plain_address
from dysharp_env.multimem.packets import Kind, Packet, Stage
from dysharp_env.multimem.runtime import Runtime
from tests.multimem.small_layers import total_flits

VECTOR = np.arange(40, dtype=np.float32)  # 160 B: two packets


def machine(nactive: int = 2, **options: int) -> Runtime:
    """Returns 3 GPUs with 2 experts each, 6 tokens of 160 B."""
    runtime = Runtime(np.arange(6) // 2, 3, plain_bytes=512, **options)
    runtime.create_region(160, 6)
    runtime.bind(np.full(6, nactive))
    return runtime


def store(runtime: Runtime, gpu: int, token: int, *targets: int, data: np.ndarray = VECTOR) -> None:
    runtime.dymultimem_st(gpu, data, runtime.region.address(token), len(targets), targets, Stage.DISPATCH)


def test_store_then_sum_over_local_and_remote_experts() -> None:
    runtime = machine()
    store(runtime, 0, 1, 0, 2, 3, 4)
    total = runtime.dymultimem_ld_reduce(0, 160, runtime.region.address(1), 4, (0, 2, 3, 4), Stage.DISPATCH)
    np.testing.assert_array_equal(total, 4 * VECTOR)
    # Up once, with 3 remote targets: 8 + 1 + 1 and 2 + 1 + 1 flits. Down to GPUs 1 and 2.
    assert total_flits(runtime.links, "up", Kind.DYNAMIC_STORE, Stage.DISPATCH) == 10 + 4
    assert total_flits(runtime.links, "down", Kind.DYNAMIC_STORE, Stage.DISPATCH) == 2 * (10 + 4)
    assert total_flits(runtime.links, "up", Kind.ACK, Stage.DISPATCH) == 2 * 2
    assert total_flits(runtime.links, "down", Kind.ACK, Stage.DISPATCH) == 2
    # Two experts of GPU 1 answer with one sum.
    assert total_flits(runtime.links, "up", Kind.RESPONSE, Stage.DISPATCH) == 2 * (9 + 3)
    assert total_flits(runtime.links, "down", Kind.RESPONSE, Stage.DISPATCH) == 9 + 3


def test_counts_are_exchanged_before_binding() -> None:
    runtime = machine()
    # GPU 1 has no tokens, and a token of GPU 2 has one expert only.
    ids = [np.array([[0, 1], [0, 5]]), np.empty((0, 2), np.int32), np.array([[0, 1], [1, -1]])]
    counts = runtime.exchange_counts(ids)
    assert counts.tolist() == [3, 3, 0, 0, 0, 1]
    runtime.bind(counts)
    assert runtime.hubs[0].nactive == {0: 3, 1: 3} and runtime.hubs[2].nactive == {4: 0, 5: 1}


@pytest.mark.parametrize(
    ("fault", "message", "operands"),
    [
        (AddressFault, "address is outside the region", {"address": MULTIMEM_BASE + 6 * 160}),
        (AddressFault, "no dynamic multimem region holds this address", {"address": STATIC_BASE}),
        (AddressFault, "crosses the end of a block", {"address": MULTIMEM_BASE + 80}),
        (PlainAccessFault, "instruction on a plain address", {"address": plain_address(1, 0)}),
        (TargetFault, "target 6 is no expert; there are 6", {"targets": (1, 6)}),
        (TargetFault, "named twice", {"targets": (1, 1)}),
        (CountFault, "target count 3, but 2 targets are listed", {"count": 3}),
        (CountFault, "target count 0, but 0 targets", {"count": 0, "targets": ()}),
    ],
)
def test_wrong_operands_are_faults_that_show_the_packet(
    fault: type[Any], message: str, operands: dict[str, Any]
) -> None:
    runtime = machine()
    given = {"address": runtime.region.address(1), "count": 2, "targets": (1, 2)} | operands
    with pytest.raises(fault, match=message) as caught:
        runtime.dymultimem_st(0, VECTOR, **given, stage=Stage.DISPATCH)
    assert "DYNAMIC_STORE stage=DISPATCH address=" in str(caught.value)
    assert caught.value.packet is not None and isinstance(caught.value, MultimemFault)
    with pytest.raises(fault, match=message):
        runtime.dymultimem_ld_reduce(0, 160, **given, stage=Stage.DISPATCH)
    assert not runtime.links.flits  # nothing left the GPU


def test_more_tokens_than_bound_is_a_fault() -> None:
    runtime = machine(nactive=1)
    store(runtime, 0, 0, 3)
    with pytest.raises(BindFault, match=r"expert 3 was bound for 1 tokens, not 2 \[DYNAMIC_STORE"):
        store(runtime, 0, 1, 3)


def test_combine_of_a_token_never_dispatched_is_a_fault() -> None:
    runtime = machine()
    store(runtime, 0, 1, 3)
    with pytest.raises(UndispatchedFault, match=r"token 1 was never dispatched to expert 2 \[DYNAMIC_LOAD"):
        runtime.dymultimem_ld_reduce(0, 160, runtime.region.address(1), 2, (3, 2), Stage.COMBINE)
    with pytest.raises(UndispatchedFault, match=r"token 1 was never dispatched to expert 2 \[DYNAMIC_STORE"):
        runtime.dymultimem_st(0, VECTOR, runtime.region.address(1), 1, (2,), Stage.COMBINE)


def test_a_sum_taken_before_all_experts_are_in_it_is_a_fault() -> None:
    runtime = machine()
    store(runtime, 0, 1, 0, 2, 4)
    address = runtime.region.address(1)
    keys = runtime.request_sum(0, 160, address, 3, (0, 2, 4), Stage.DISPATCH)
    with pytest.raises(CountFault, match="has been asked for already"):
        runtime.request_sum(0, 160, address, 3, (0, 2, 4), Stage.DISPATCH)
    with pytest.raises(CountFault, match=r"only 1 of 3 experts were summed \[DYNAMIC_LOAD"):
        runtime.take_sum(keys)


def test_pushed_sums_merge_on_their_way_home() -> None:
    runtime = machine(reduction_slots=1)
    address = plain_address(0, 64)
    runtime.plain.push_sum(1, VECTOR, address, 2, Stage.COMBINE)
    with pytest.raises(CountFault, match="of 2 sums were pushed to 0x40 of GPU 0"):
        runtime.plain.check_pushed(0, 160, address, 2)
    runtime.plain.push_sum(2, VECTOR, address, 2, Stage.COMBINE)
    np.testing.assert_array_equal(runtime.plain.values(0, 64, 160), 2 * VECTOR)


def test_plain_access_to_a_multimem_address_is_a_fault() -> None:
    runtime = machine()
    for address in (runtime.region.address(0), STATIC_BASE):
        with pytest.raises(PlainAccessFault, match=r"plain access to a multimem address \[LOAD .*source=GPU 1"):
            runtime.plain.ld(1, 16, address, Stage.COMBINE)
        with pytest.raises(PlainAccessFault, match=r"plain access to a multimem address \[WRITE"):
            runtime.plain.st(1, VECTOR, address, Stage.COMBINE)


def test_plain_loads_and_stores_reach_one_gpu() -> None:
    runtime = machine()
    runtime.plain.st(0, VECTOR, plain_address(2, 64), Stage.DISPATCH)
    np.testing.assert_array_equal(runtime.plain.ld(1, 160, plain_address(2, 64), Stage.DISPATCH), VECTOR)
    assert not runtime.plain.memory[:2].any()
    for bad in (plain_address(3, 0), plain_address(2, 500)):
        with pytest.raises(AddressFault, match="no GPU has this address"):
            runtime.plain.ld(0, 16, bad, Stage.DISPATCH)


def test_regions_must_be_created_and_bound_first() -> None:
    runtime = Runtime(np.arange(6) // 2, 3)
    with pytest.raises(BindFault, match="no dynamic multimem region has been created"):
        runtime.bind(np.ones(6))
    with pytest.raises(ConfigError, match="block_bytes=6 must be a positive multiple of 4"):
        runtime.create_region(6, 6)
    for tokens, stages in ((0, 2), (6, 3)):
        with pytest.raises(ConfigError, match=f"num_tokens={tokens} must be at least 1, and stages={stages} 1 or 2"):
            runtime.create_region(160, tokens, stages)
    with pytest.raises(ConfigError, match="must lie between"):
        runtime.create_region(160, 6, base=0)
    region = runtime.create_region(160, 6)
    with pytest.raises(BindFault, match="used before it is bound"):
        runtime.dymultimem_st(0, VECTOR, region.address(0), 1, (0,), Stage.DISPATCH)
    with pytest.raises(BindFault, match="from 0 to the region's 6 tokens"):
        runtime.bind(np.full(6, 7))
    with pytest.raises(BindFault, match="5 counts were bound for 6 experts"):
        runtime.bind(np.ones(5))
    with pytest.raises(ConfigError, match="reduction_slots=0 must be from 1"):
        Runtime(np.arange(6) // 2, 3, reduction_slots=0)


def test_static_multimem_stores_adds_and_sums_over_a_fixed_team() -> None:
    runtime = machine()
    team = runtime.create_team((0, 2), 320)
    team.st(0, VECTOR, STATIC_BASE + 160)
    np.testing.assert_array_equal(team.values(2, 160, 160), VECTOR)
    team.red(1, np.ones(40, np.float32), STATIC_BASE + 160)  # PTX: adds to every replica, not to one place
    for gpu in (0, 2):
        np.testing.assert_array_equal(team.values(gpu, 160, 160), VECTOR + 1)
    for gpu in range(3):  # a member uses its own replica, others read both through the switch
        np.testing.assert_array_equal(team.ld_reduce(gpu, 160, STATIC_BASE + 160), 2 * (VECTOR + 1))
    with pytest.raises(AddressFault, match="outside the team's 320 B at 0xc00000000000"):
        team.st(0, VECTOR, STATIC_BASE + 164)
    with pytest.raises(PlainAccessFault, match="multimem instruction on a plain address"):
        team.red(0, VECTOR, plain_address(0, 0))
    with pytest.raises(ConfigError, match=r"team=\[0, 3\] names a GPU outside 0 to 2"):
        runtime.create_team((0, 3), 320)
    with pytest.raises(ConfigError, match="each once"):
        runtime.create_team((0, 0), 320)


def test_teams_do_not_share_addresses() -> None:
    runtime = machine()
    first, second = runtime.create_team((0, 1), 160), runtime.create_team((1, 2), 160)
    first.st(0, VECTOR, first.base)
    second.st(0, 2 * VECTOR, second.base)
    np.testing.assert_array_equal(first.values(1, 0, 160), VECTOR)
    np.testing.assert_array_equal(second.values(1, 0, 160), 2 * VECTOR)
    with pytest.raises(AddressFault, match="outside the team's 160 B at 0xc000000000a0"):
        second.st(0, VECTOR, first.base)


def test_a_team_s_own_replica_is_near_unless_it_loops_back() -> None:
    for loopback, members in ((False, 2), (True, 3)):
        runtime = machine()
        team = runtime.create_team((0, 1, 2), 160, loopback)
        team.st(0, VECTOR, team.base)
        np.testing.assert_array_equal(team.ld_reduce(0, 160, team.base), 3 * VECTOR)
        # 160 B in two packets: 9 and 3 flits.
        assert total_flits(runtime.links, "down", Kind.MULTIMEM_STORE, Stage.DISPATCH) == members * (9 + 3)
        assert total_flits(runtime.links, "up", Kind.RESPONSE, Stage.COMBINE) == members * (9 + 3)


def test_a_store_is_kept_until_it_is_acknowledged() -> None:
    runtime = machine()
    packet = Packet(Kind.WRITE, Stage.DISPATCH, 0, 1, 4, payload=bytes(4))
    runtime.fabric.issue(packet)
    with pytest.raises(CountFault, match=r"an earlier store to this address is not acknowledged yet \[WRITE"):
        runtime.fabric.issue(packet)
    with pytest.raises(CountFault, match=r"this store was never acknowledged \[WRITE"):
        runtime.check_idle()
    runtime.fabric.retire(acknowledgement(packet))
    with pytest.raises(CountFault, match=r"no store of this length waits for this acknowledgement \[ACK"):
        runtime.fabric.retire(acknowledgement(packet))


def test_sums_that_nobody_took_are_found_at_the_end() -> None:
    runtime = machine(nactive=0)
    runtime.plain.push_sum(1, VECTOR, plain_address(0, 64), 1, Stage.COMBINE)
    with pytest.raises(CountFault, match="1 sums were pushed to 0x40 of GPU 0, which never took them"):
        runtime.check_idle()
    runtime = machine(nactive=1)
    for token, expert in enumerate(range(6)):
        store(runtime, 0, token, expert)
    runtime.request_sum(0, 160, runtime.region.address(0), 1, (0,), Stage.DISPATCH)
    with pytest.raises(CountFault, match=r"this sum was never taken \[DYNAMIC_LOAD"):
        runtime.check_idle()


def test_addresses_are_those_of_whole_values() -> None:
    runtime = machine()
    team = runtime.create_team((0, 1), 320)
    for access in (
        lambda: runtime.plain.st(0, VECTOR[:4], plain_address(1, 2), Stage.DISPATCH),
        lambda: runtime.plain.ld(0, 16, plain_address(1, 2), Stage.DISPATCH),
        lambda: team.st(0, VECTOR[:4], team.base + 2),
        lambda: runtime.dymultimem_st(0, VECTOR[:4], runtime.region.address(1, 2), 1, (1,), Stage.DISPATCH),
    ):
        with pytest.raises(AddressFault, match=r"data must be whole float32 values \["):
            access()


def test_a_sum_still_under_way_is_found_at_the_end() -> None:
    runtime = machine()
    store(runtime, 0, 1, 2)
    runtime.request_sum(0, 160, runtime.region.address(1), 1, (2,), Stage.DISPATCH)
    message = "a DISPATCH reduction for GPU 0 at 0x8000000000a0 still waits for 1 contributions"
    with pytest.raises(CountFault, match=message):
        runtime.check_idle()


def test_a_member_without_a_replica_is_a_fault() -> None:
    runtime = machine()
    team = runtime.create_team((0, 1), 160)
    team.gpus = (0, 2)  # as a wrong entry in the switch would have it
    with pytest.raises(TargetFault, match=r"GPU 2 has no replica of this team \[MULTIMEM_STORE"):
        team.st(0, VECTOR, team.base)
    with pytest.raises(TargetFault, match=r"GPU 2 has no replica of this team \[MULTIMEM_LOAD"):
        team.ld_reduce(0, 160, team.base)
