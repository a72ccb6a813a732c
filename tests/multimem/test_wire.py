"""Packets as bytes: what goes in comes out, sizes are the packet arithmetic's, and nonsense has a name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dysharp_env.config import ConfigError
from dysharp_env.multimem.faults import CountFault, WireFault
from dysharp_env.multimem.packets import LISTS_TARGETS, Kind, Packet, Stage
from dysharp_env.multimem.wire import check_format, decode, encode
from dysharp_env.system.packet import PacketFormat

WITHOUT_DATA = {Kind.LOAD, Kind.MULTIMEM_LOAD, Kind.DYNAMIC_LOAD, Kind.ACK}
WITH_DATA = set(Kind) - WITHOUT_DATA


@st.composite
def packets(draw: Any) -> Packet:
    kind = draw(st.sampled_from(Kind))
    payload = draw(st.binary(max_size=256)) if kind in WITH_DATA else b""
    targets = tuple(draw(st.lists(st.integers(0, 2**16 - 1), max_size=40))) if kind in LISTS_TARGETS else ()
    return Packet(
        kind=kind,
        stage=draw(st.sampled_from(Stage)),
        address=draw(st.integers(0, 2**48 - 1)),
        source=draw(st.integers(0, 2**16 - 1)),
        length=len(payload) if kind in WITH_DATA else draw(st.integers(0, 2**16 - 1)),
        count=len(targets) if kind in LISTS_TARGETS else draw(st.integers(0, 2**15 - 1)),
        targets=targets,
        payload=payload,
        tag=draw(st.integers(0, 2**16 - 1)),
    )


def store(num_targets: int = 8, payload_bytes: int = 128) -> Packet:
    targets = tuple(range(0x100, 0x100 + num_targets))
    payload = bytes(range(1, 1 + payload_bytes))
    return Packet(Kind.DYNAMIC_STORE, Stage.COMBINE, 0x123456789ABC, 3, payload_bytes, num_targets, targets, payload)


@settings(max_examples=300, deadline=None)
@given(packets())
def test_decode_undoes_encode(packet: Any) -> None:
    assert decode(encode(packet)) == packet


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 64), st.integers(1, 200))
def test_a_vector_in_packets_has_the_flits_of_the_packet_format(num_targets: Any, vector_bytes: Any) -> None:
    sizes = PacketFormat()
    lengths = [min(128, vector_bytes - start) for start in range(0, vector_bytes, 128)]
    sent = [encode(store(num_targets, length)) for length in lengths]
    assert sum(map(len, sent)) == 16 * sizes.data_flits(vector_bytes, targets=num_targets)
    asked = [encode(replace(store(num_targets, n), kind=Kind.DYNAMIC_LOAD, payload=b"")) for n in lengths]
    assert sum(map(len, asked)) == 16 * sizes.ask_flits(vector_bytes, targets=num_targets)
    acks = [encode(replace(store(0, n), kind=Kind.ACK, payload=b"")) for n in lengths]
    assert sum(map(len, acks)) == 16 * sizes.acknowledge_flits(vector_bytes)


def test_the_paper_s_efficiency_counted_in_bytes_of_packets() -> None:
    # One store without target flits to 8 GPUs, 9 times 9 flits; 8 acks and the merged one: 72 data flits of 90.
    plain = Packet(Kind.MULTIMEM_STORE, Stage.DISPATCH, 0, 0, 128, payload=bytes(128))
    ack = replace(plain, kind=Kind.ACK, payload=b"")
    assert 9 * 128 / (9 * len(encode(plain)) + 9 * len(encode(ack))) == pytest.approx(0.8)
    # With a target flit on the way up and on every replica: 72 of 99.
    assert 9 * 128 / (9 * len(encode(store())) + 9 * len(encode(ack))) == pytest.approx(0.727, abs=5e-4)


def test_the_address_field_is_48_bits_of_address_a_stage_bit_and_a_15_bit_count() -> None:
    data = encode(store(num_targets=9))
    assert int.from_bytes(data[:8], "little") == 0x123456789ABC | 1 << 48 | 9 << 49
    assert data[16:18] == b"\x00\x01"  # the first target, 0x100, little-endian
    assert data[32:34] == b"\x08\x01"  # the ninth starts a second target flit
    assert data[34:48] == bytes(14)
    assert data[48:] == store().payload


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"address": 2**48}, "address 281474976710656 does not fit 48 bits"),
        ({"targets": (2**16,) * 8}, "target 65536 does not fit 16 bits"),
        ({"count": 2**15}, "target count 32768 does not fit 15 bits"),
        ({"source": -1}, "source -1 does not fit 16 bits"),
        ({"length": 127}, "128 B of payload"),
    ],
)
def test_fields_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(WireFault, match=message) as caught:
        encode(replace(store(), **change))
    assert "DYNAMIC_STORE stage=COMBINE" in str(caught.value)


def test_a_count_that_is_not_the_number_of_targets_is_refused() -> None:
    with pytest.raises(CountFault, match="target count 7, but 8 targets are listed"):
        encode(replace(store(), count=7))


def test_malformed_bytes_are_refused() -> None:
    good = encode(store(num_targets=9, payload_bytes=120))
    with pytest.raises(WireFault, match="is no whole number of 16 B flits"):
        decode(good[:-1])
    with pytest.raises(WireFault, match="0 B is no whole number"):
        decode(b"")
    with pytest.raises(CountFault, match="10 flits came, 11 were announced"):
        decode(good[:-16])
    with pytest.raises(WireFault, match="packet kind 99 is unknown"):
        decode(good[:8] + bytes([99]) + good[9:])
    with pytest.raises(WireFault, match="unused header byte is 1"):
        decode(good[:9] + b"\x01" + good[10:])
    for place in (40, len(good) - 1):  # after the ninth target; after the payload
        with pytest.raises(WireFault, match="padding is not zero"):
            decode(good[:place] + b"\x01" + good[place + 1 :])


def test_only_the_payload_size_of_the_format_is_free() -> None:
    check_format(PacketFormat(payload_bytes=256))
    with pytest.raises(ConfigError, match="only payload_bytes may differ"):
        check_format(PacketFormat(header_flits=2))
    for size in (0, 2**16):
        with pytest.raises(ConfigError, match=f"payload_bytes={size} must be from 1 to 65535"):
            check_format(PacketFormat(payload_bytes=size))
