"""A channel whose messages are awaited, one after the other: for tests that play a supervisor."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from dataplane.control.channel import Envelope, receive_packet, send_packet
from dataplane.control.messages import MESSAGE_LIMIT, Message, decode_message, encode_message


class Channel:
    """Over one end of a SEQPACKET pair."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock

    async def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends one message whole, waiting for room."""
        async with asyncio.timeout(5):
            await send_packet(self._sock, encode_message(message), fds)

    async def receive(self) -> Envelope | None:
        """The next message, or None at end-of-file."""
        packet = await receive_packet(self._sock, MESSAGE_LIMIT)
        if packet is None:
            return None
        assert not packet.truncated
        return Envelope(message=decode_message(packet.data), fds=packet.fds)

    def close(self) -> None:
        self._sock.close()
