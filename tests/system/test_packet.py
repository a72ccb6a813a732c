"""Packet arithmetic against the numbers of the DySHARP paper, worked by hand."""

from __future__ import annotations

import pytest

from dysharp_env.system.packet import PacketFormat


def test_the_paper_s_payload_efficiencies() -> None:
    packet = PacketFormat()
    # Nine copies of 8 data and 1 header flit, 8 acks and the merged one: 72 of 90.
    assert packet.multicast_efficiency(8) == pytest.approx(72 / 90)
    # Eight address flits in place of one, in the request and in the merged response: 72 of 104.
    assert packet.multicast_efficiency(8, address_flits=8) == pytest.approx(72 / 104)


@pytest.mark.parametrize(("payload", "expected"), [(64, 0.667), (128, 0.800), (256, 0.889)])
def test_efficiency_grows_with_payload(payload: int, expected: float) -> None:
    assert PacketFormat(payload_bytes=payload).multicast_efficiency(8) == pytest.approx(expected, abs=5e-4)


def test_a_vector_is_packets_headers_targets_and_data() -> None:
    packet = PacketFormat()
    # 7168 BF16 values: 112 packets of 128 B, 896 data flits.
    assert packet.packets(14336) == 112
    assert packet.data_flits(14336) == 112 + 896
    # Eight 16-bit ids fill one target flit, nine need two.
    assert packet.data_flits(14336, targets=8) == 112 * 2 + 896
    assert packet.data_flits(14336, targets=9) == 112 * 3 + 896
    assert packet.ask_flits(14336, targets=8) == 112 * 2
    assert packet.acknowledge_flits(14336) == 112


def test_a_part_filled_packet_still_has_a_header() -> None:
    # 7168 FP8 values and 56 scales: 7392 B, 57.75 packets, 462 data flits.
    packet = PacketFormat()
    assert packet.packets(7392) == 58
    assert packet.data_flits(7392) == 58 + 462


def test_one_multimem_request_may_ask_for_several_packets() -> None:
    """A vector of 1000 B in packets of 128 B: 8 requests of a header and a target flit, or 2 that ask for 512 B."""
    wide = PacketFormat(multimem_request_bytes=512)
    assert PacketFormat().ask_flits(1000, targets=8) == 8 * 2
    assert wide.ask_flits(1000, targets=8) == 2 * 2
    assert wide.ask_flits(1000) == 8 and wide.data_flits(1000, 8) == PacketFormat().data_flits(1000, 8)
