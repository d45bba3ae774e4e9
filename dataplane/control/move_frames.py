"""Frames of the move protocol: one datagram each. What they mean: `dataplane.control.move`."""

from __future__ import annotations

import dataclasses
import enum
import socket
import struct
from typing import Final

from dataplane.control.channel import receive_packet, send_packet
from dataplane.model.errors import ControlError

VERSION: Final = 1
HEADER: Final = struct.Struct("<HBBIII")
# Records of a batch: each may carry a head that is partly read, or what a slow reader is owed.
BATCH_BYTES: Final = 1024 * 1024
# A datagram's payload: the kernel takes some 200 KiB at once by default, and wants it in one piece.
PIECE_BYTES: Final = 32 * 1024
# The verdict on a record that was declined for no reason that was told.
UNTOLD: Final = 1


class Kind(enum.IntEnum):
    OFFER = 1
    ACK = 2
    COMMIT = 3
    ABORT = 4
    END = 5
    MORE = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    kind: Kind
    more: int  # of an OFFER: its descriptors; of an ACK: the version of records; 0: not said
    batch: int
    count: int
    length: int  # of an OFFER: all its records; else the payload's
    payload: bytes
    fds: tuple[int, ...]


async def send_frame(
    sock: socket.socket,
    kind: Kind,
    batch: int,
    *,
    more: int = 0,
    count: int = 0,
    payload: bytes = b"",
) -> None:
    header = HEADER.pack(VERSION, kind, more, batch, count, len(payload))
    await send_packet(sock, header + payload, ())


async def receive_frame(sock: socket.socket) -> Frame | None:
    """The next frame, or None at end-of-file. Raises `ControlError`, with no descriptor kept."""
    packet = await receive_packet(sock, HEADER.size + PIECE_BYTES)
    if packet is None:
        return None
    try:
        if packet.truncated:
            raise ControlError("a datagram was cut: too long, or no room for its descriptors")
        return _parse(packet.data, packet.fds)
    except ControlError:
        packet.close_fds()
        raise


def _parse(data: bytes, fds: tuple[int, ...]) -> Frame:
    if len(data) < HEADER.size:
        raise ControlError(f"a frame of {len(data)} bytes")
    version, number, more, batch, count, length = HEADER.unpack_from(data)
    payload = data[HEADER.size :]
    try:
        kind = Kind(number)
    except ValueError:
        raise ControlError(f"a frame of unknown type {number}") from None
    if version != VERSION and kind not in (Kind.ABORT, Kind.END):
        raise ControlError(f"move protocol version {version}, expected {VERSION}")
    if kind is Kind.OFFER:
        if len(payload) != min(length, PIECE_BYTES) or length > BATCH_BYTES:
            raise ControlError(f"an offer of {length} bytes with {len(payload)}")
    elif length != len(payload) or fds or (kind is Kind.MORE and not payload):
        raise ControlError(f"{kind.name} with {len(payload)} of {length} bytes, {len(fds)} fds")
    return Frame(
        kind=kind, more=more, batch=batch, count=count, length=length, payload=payload, fds=fds
    )


def pack_verdicts(verdicts: bytes) -> bytes:
    """As an ACK carries them: a bit for each record, then a byte for each that is declined."""
    bits = bytearray((len(verdicts) + 7) // 8)
    for index, verdict in enumerate(verdicts):
        if verdict:
            bits[index // 8] |= 1 << index % 8
    return bytes(bits) + bytes(verdict for verdict in verdicts if verdict)


def unpack_verdicts(payload: bytes, count: int) -> bytes:
    """A byte for each of `count` records: 0, or why it was declined."""
    bits = payload.ljust((count + 7) // 8, b"\0")
    reasons = iter(payload[(count + 7) // 8 :])
    return bytes(
        (next(reasons, UNTOLD) or UNTOLD) if bits[index // 8] >> index % 8 & 1 else 0
        for index in range(count)
    )
