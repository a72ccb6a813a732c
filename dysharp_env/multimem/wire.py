"""Packets as bytes: what NVLink with static and dynamic multimem puts on a wire, flit by flit.

The 64-bit address field of flit 0 holds a 48-bit address, 1 stage bit and a 15-bit target count; target flits follow,
eight 16-bit expert ids each, then the payload (DySHARP, arXiv 2605.05607, packet format). The other half of flit 0 is
not published; here it holds packet kind, source GPU, payload length and a tag. Byte order is little-endian. The last
target flit and the last payload flit are padded with zeros. CRC and byte enables count as part of the header, as in
``PacketFormat``, with whose sizes ``encode`` agrees to the flit; neither has bits of its own here.

Only dynamic packets need the stage bit; others carry it so that their flits can be counted by stage. Replies repeat the
address of what they answer, which tells transactions apart as long as a GPU has one under way per address and stage;
the tag is for those that have more, and nothing here uses it.
"""

from __future__ import annotations

import struct

from dysharp_env.config import ConfigError
from dysharp_env.multimem.faults import CountFault, WireFault
from dysharp_env.multimem.packets import LISTS_TARGETS, WITH_DATA, Kind, Packet, Stage
from dysharp_env.system.packet import PacketFormat

ADDRESS_BITS = 48
COUNT_BITS = 15
TARGET_BITS = 16
FLIT_BYTES = 16

# Address field, kind, one unused byte, source GPU, payload bytes, tag.
_HEADER = struct.Struct("<QBxHHH")


def check_format(packet_format: PacketFormat) -> None:
    """Checks that packets of this format can be written as bytes.

    Raises:
        ConfigError: A size other than the payload is not the published one.
    """
    published = PacketFormat(payload_bytes=packet_format.payload_bytes)
    if packet_format != published:
        raise ConfigError(f"packet format {packet_format} cannot be put in bytes; only payload_bytes may differ")
    if not 0 < packet_format.payload_bytes < 2**16:
        raise ConfigError(f"payload_bytes={packet_format.payload_bytes} must be from 1 to {2**16 - 1}")


def flits_of(packet: Packet) -> int:
    """Returns how many flits a packet takes, by the packet arithmetic that the simulator charges."""
    sizes = PacketFormat()
    if packet.kind == Kind.ACK:
        return sizes.ack_flits
    named = sizes.target_flits(packet.count) if packet.kind in LISTS_TARGETS else 0
    if packet.kind in WITH_DATA:
        return sizes.header_flits + named + sizes.payload_flits(packet.length)
    return sizes.request_flits + named


def encode(packet: Packet) -> bytes:
    """Returns the bytes of a packet, a whole number of flits.

    Raises:
        WireFault: A field does not fit its bits, or the payload is not as long as the packet says.
        CountFault: The target count is not the number of targets listed.
    """
    for name, value, bits in (
        ("address", packet.address, ADDRESS_BITS),
        ("target count", packet.count, COUNT_BITS),
        ("source", packet.source, 16),
        ("length", packet.length, 16),
        ("tag", packet.tag, 16),
        *(("target", target, TARGET_BITS) for target in packet.targets),
    ):
        if not 0 <= value < 2**bits:
            raise WireFault(f"{name} {value} does not fit {bits} bits", packet)
    if len(packet.targets) != (packet.count if packet.kind in LISTS_TARGETS else 0):
        raise CountFault(f"target count {packet.count}, but {len(packet.targets)} targets are listed", packet)
    if len(packet.payload) != (packet.length if packet.kind in WITH_DATA else 0):
        raise WireFault(f"{len(packet.payload)} B of payload", packet)
    field = packet.address | packet.stage << ADDRESS_BITS | packet.count << (ADDRESS_BITS + 1)
    header = _HEADER.pack(field, packet.kind, packet.source, packet.length, packet.tag)
    targets = struct.pack(f"<{len(packet.targets)}H", *packet.targets)
    return header + _padded(targets) + _padded(packet.payload)


def decode(data: bytes) -> Packet:
    """Returns the packet that bytes hold.

    Raises:
        WireFault: They are not a whole number of flits, their kind is unknown, or padding is not zero.
        CountFault: There are more or fewer flits than target count and length say.
    """
    if not data or len(data) % FLIT_BYTES:
        raise WireFault(f"{len(data)} B is no whole number of {FLIT_BYTES} B flits")
    field, kind, source, length, tag = _HEADER.unpack_from(data)
    if kind not in Kind._value2member_map_:
        raise WireFault(f"packet kind {kind} is unknown; kinds are 0 to {max(Kind)}")
    if data[9]:
        raise WireFault(f"unused header byte is {data[9]}, not 0")
    packet = Packet(
        kind=Kind(kind),
        stage=Stage(field >> ADDRESS_BITS & 1),
        address=field & (2**ADDRESS_BITS - 1),
        source=source,
        length=length,
        count=field >> (ADDRESS_BITS + 1),
        tag=tag,
    )
    if len(data) != flits_of(packet) * FLIT_BYTES:
        raise CountFault(f"{len(data) // FLIT_BYTES} flits came, {flits_of(packet)} were announced", packet)
    num_targets = packet.count if packet.kind in LISTS_TARGETS else 0
    payload_at = FLIT_BYTES + len(_padded(bytes(2 * num_targets)))
    payload_end = payload_at + (length if packet.kind in WITH_DATA else 0)
    if any(data[FLIT_BYTES + 2 * num_targets : payload_at]) or any(data[payload_end:]):
        raise WireFault("padding is not zero", packet)
    targets = struct.unpack_from(f"<{num_targets}H", data, FLIT_BYTES)
    return Packet(**{**packet.__dict__, "targets": targets, "payload": data[payload_at:payload_end]})


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % FLIT_BYTES)
