"""The supervisor's end of a channel to a zygote or a worker: it pushes what comes, and never waits.

What arrives is handed on at once, in order, so that a peer's last words are heard before its death
is acted on. A peer that leaves no room in its queue, or breaks the protocol, is told as an error:
the caller ends it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import TypeAlias

from dataplane.control.messages import MESSAGE_LIMIT, Message, decode_message, encode_message
from dataplane.model.errors import ControlError
from dataplane.system.fds import Packet, close_fds, receive_with_fds, send_with_fds

# A message with its descriptors (the receiver's now), an error, or None at end-of-file.
Received: TypeAlias = tuple[Message, tuple[int, ...]] | ControlError | None


class Line:
    """Mutable: open until `close`, or until an error or end-of-file was handed on."""

    def __init__(self, sock: socket.socket, hear: Callable[[Received], None]) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._hear = hear
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self.read)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends whole and at once. The descriptors stay the caller's. Raises `ControlError`."""
        try:
            send_with_fds(self._sock, encode_message(message), fds)
        except BlockingIOError as error:
            raise ControlError("the peer takes no messages") from error
        except OSError as error:
            raise ControlError(f"the peer is gone: {error.strerror}") from error

    def read(self) -> None:
        """Hands on all that has arrived."""
        while self._sock.fileno() >= 0:
            try:
                packet = receive_with_fds(self._sock, MESSAGE_LIMIT)
            except BlockingIOError:
                return
            except OSError:
                packet = None  # it closed with messages of ours unread
            heard = None if packet is None else _decoded(packet)
            if not isinstance(heard, tuple):
                self.close()
            self._hear(heard)

    def close(self) -> None:
        """Hears nothing more. May be called again."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()


def _decoded(packet: Packet) -> tuple[Message, tuple[int, ...]] | ControlError:
    if packet.truncated:
        close_fds(packet.fds)
        return ControlError("a message was cut")
    try:
        return decode_message(packet.data), packet.fds
    except ControlError as error:
        close_fds(packet.fds)
        return error
