"""The switch's and the Hub's tables, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dysharp_env.multimem.faults import AddressFault, BindFault, CountFault, TargetFault, UndispatchedFault
from dysharp_env.multimem.hub import VALID, Hub, Region
from dysharp_env.multimem.links import MULTIMEM_BASE
from dysharp_env.multimem.packets import Kind, Packet, Stage
from dysharp_env.multimem.switch import Switch

REGION = Region(MULTIMEM_BASE, block_bytes=32, num_tokens=10)


def packet(token: int, targets: tuple[int, ...], stage: Stage = Stage.DISPATCH, offset: int = 0) -> Packet:
    values = np.arange(4, dtype="<f4") + 100 * token + offset
    address = REGION.address(token, offset)
    return Packet(Kind.DYNAMIC_STORE, stage, address, 0, 16, len(targets), targets, values.tobytes())


def response(token: int, value: float) -> Packet:
    payload = np.full(4, value, "<f4").tobytes()
    return replace(packet(token, ()), kind=Kind.RESPONSE, count=1, payload=payload)


def values(sent: Packet) -> list[float]:
    return np.frombuffer(sent.payload, "<f4").tolist()


def test_one_replica_leaves_per_port_with_the_targets_behind_it() -> None:
    switch = Switch(np.array([0, 0, 1, 1, 2, 2]), 3, slots_per_port=1)
    replicas = switch.replicate(packet(0, (5, 2, 3, 4)))  # from GPU 0
    assert [(port, replica.targets, replica.count) for port, replica in replicas] == [(2, (5, 4), 2), (1, (2, 3), 2)]


def test_bad_target_lists_are_faults() -> None:
    switch = Switch(np.array([0, 1]), 2, slots_per_port=1)
    with pytest.raises(TargetFault, match=r"target 2 is no expert; there are 2 \[DYNAMIC_STORE .*targets=\[1, 2\]\]"):
        switch.replicate(packet(0, (1, 2)))
    with pytest.raises(TargetFault, match="expert 0 is on GPU 0, which should have served it itself"):
        switch.replicate(packet(0, (1, 0)))
    with pytest.raises(TargetFault, match="named twice"):
        switch.replicate(packet(0, (1, 1)))
    with pytest.raises(CountFault, match="at least one target"):
        switch.replicate(packet(0, ()))


def test_acknowledgements_merge_into_one() -> None:
    switch = Switch(np.array([0, 1]), 2, slots_per_port=1)
    ack = replace(packet(0, ()), kind=Kind.ACK, payload=b"")
    switch.expect_acks(packet(0, (0, 1)), 2)
    with pytest.raises(CountFault, match="still waits for acknowledgements"):
        switch.expect_acks(packet(0, (0, 1)), 2)
    assert switch.merge_ack(ack) is None
    assert switch.merge_ack(ack) == ack
    with pytest.raises(CountFault, match="no store waits"):
        switch.merge_ack(ack)


def test_the_last_contribution_sends_the_sum() -> None:
    switch = Switch(np.array([0, 1]), 2, slots_per_port=1)
    switch.open_reduction(packet(0, (0, 1)), 2)
    with pytest.raises(CountFault, match="open already"):
        switch.open_reduction(packet(0, (0, 1)), 2)
    assert switch.reduce(response(0, 1.5)) == []
    (result,) = switch.reduce(response(0, 2.0))
    assert (result.kind, result.count, values(result)) == (Kind.RESPONSE, 2, [3.5] * 4)
    with pytest.raises(CountFault, match="no open reduction waits"):
        switch.reduce(response(0, 1.0))


def test_the_oldest_partial_sum_leaves_when_slots_run_out() -> None:
    switch = Switch(np.array([0, 1]), 2, slots_per_port=2)
    for token in range(3):
        switch.open_reduction(packet(token, (0, 1)), 2)
    assert [switch.reduce(response(token, 10.0**token)) for token in (1, 0)] == [[], []]
    (evicted,) = switch.reduce(response(2, 100.0))
    assert (evicted.kind, evicted.count, values(evicted)) == (Kind.PARTIAL, 1, [10.0] * 4)
    # Token 1 takes a slot again, evicting token 0; its last contribution is still known as the last.
    partial, result = switch.reduce(response(1, 7.0))
    assert (partial.kind, values(partial)) == (Kind.PARTIAL, [1.0] * 4)
    assert (result.kind, result.count, values(result)) == (Kind.RESPONSE, 1, [7.0] * 4)
    assert switch.evictions == 2


def test_pushes_to_one_address_merge() -> None:
    switch = Switch(np.array([0, 1]), 2, slots_per_port=1)
    push = replace(response(0, 3.0), kind=Kind.PUSH, source=1, count=2)
    assert switch.push(push, home=0) == []
    with pytest.raises(CountFault, match="another push to this address announced 2 contributions"):
        switch.push(replace(push, count=3), home=0)
    (result,) = switch.push(replace(push, source=0), home=0)
    assert (result.kind, result.source, result.count, values(result)) == (Kind.RESPONSE, 0, 2, [6.0] * 4)


def test_sums_are_float32() -> None:
    switch = Switch(np.array([0, 1]), 2, slots_per_port=1)
    switch.open_reduction(packet(0, (0, 1)), 3)
    switch.reduce(response(0, 2.0**24))
    switch.reduce(response(0, 1.0))  # 2**24 + 1 is no float32
    assert values(switch.reduce(response(0, 1.0))[0]) == [2.0**24] * 4


def test_first_touch_allocates_rows_in_order_of_arrival_and_combine_finds_them() -> None:
    hub = Hub(0, REGION, {4: 2, 6: 1}, tlb_entries=512)
    hub.store(packet(7, (4,)), 4)
    hub.store(packet(3, (4, 6)), 4)
    hub.store(packet(3, (4, 6)), 6)
    hub.store(packet(7, (4,), offset=16), 4)  # the other half of a block that has a row
    assert hub.al_table[4][[7, 3]].tolist() == [VALID | 0, VALID | 1]
    assert hub.al_table[6][3] == VALID and np.count_nonzero(hub.al_table[4]) == 2
    assert hub.token_of_row[4].tolist() == [7, 3]
    # Rows of 8 float32 values: expert 4 has two, expert 6 follows. VAddr = VBase + LIdx * 32 + offset.
    assert hub.translate(packet(3, (4,), offset=16), 4, allocate=False) == 1 * 32 + 16
    assert hub.translate(packet(3, (6,)), 6, allocate=False) == 2 * 32
    assert hub.read_rows(Stage.DISPATCH, 4, np.array([0])).tolist() == [[700, 701, 702, 703, 716, 717, 718, 719]]
    # Only token 7 is whole; token 3 lacks its second packet.
    assert hub.rows(4, np.array([7, 3])).tolist() == [0, -1]
    # Combine shares the mapping and has a region of its own.
    hub.write_rows(Stage.COMBINE, 4, np.array([1]), np.full((1, 8), 5, np.float32))
    hub.write_rows(Stage.COMBINE, 6, np.array([0]), np.full((1, 8), 2, np.float32))
    assert hub.load_sum(packet(3, (4, 6), Stage.COMBINE)).tolist() == [7] * 4
    assert hub.read_rows(Stage.DISPATCH, 4, np.array([1]))[0, :4].tolist() == [300, 301, 302, 303]


def test_the_tlb_is_first_in_first_out() -> None:
    hub = Hub(0, REGION, {0: 3}, tlb_entries=2)
    for token in (1, 2, 1, 3, 1):  # a hit on 1 does not save it: 3 drops it
        hub.store(packet(token, (0,)), 0)
    assert list(hub.tlb) == [(0, 3), (0, 1)]
    assert hub.misses == 4


def test_what_the_hub_refuses() -> None:
    hub = Hub(2, REGION, {0: 1}, tlb_entries=2)
    hub.store(packet(1, (0,)), 0)
    with pytest.raises(BindFault, match=r"expert 0 was bound for 1 tokens, not 2 \[DYNAMIC_STORE"):
        hub.store(packet(2, (0,)), 0)
    with pytest.raises(TargetFault, match="expert 1 is not on GPU 2"):
        hub.store(packet(1, (1,)), 1)
    with pytest.raises(UndispatchedFault, match="token 5 was never dispatched to expert 0"):
        hub.load_sum(packet(5, (0,), Stage.COMBINE))
    for bad in (REGION.address(10), MULTIMEM_BASE - 16):
        with pytest.raises(AddressFault, match=f"outside the region .*address={bad:#x}"):
            hub.store(replace(packet(1, (0,)), address=bad), 0)
    with pytest.raises(AddressFault, match="crosses the end of a block of 32 B"):
        hub.store(packet(1, (0,), offset=20), 0)
    hub.tlb.clear()
    hub.al_table[0][1] = VALID | 3  # a row of somebody else
    with pytest.raises(BindFault, match=r"expert 0 was bound for 1 tokens, not 4 \[DYNAMIC_STORE"):
        hub.load_sum(packet(1, (0,), Stage.COMBINE))
    with pytest.raises(BindFault, match=r"expert 0 was bound for 1 tokens, not for rows \[0, -1\]"):
        hub.read_rows(Stage.DISPATCH, 0, np.array([0, -1]))
    with pytest.raises(AddressFault, match="has no COMBINE stage"):
        replace(REGION, stages=1).locate(packet(1, (0,), Stage.COMBINE))
