"""Channels: `dataplane.control.messages` over SEQPACKET sockets, with descriptors beside them.

A channel never hands on what it cannot vouch for: a datagram that was cut, one with descriptors
missing, or one that is no message of this protocol raises `ControlError`, and its descriptors are
closed. End-of-file is an event like any other, because a peer's death is one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import select
import socket
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from dataplane.control.messages import MESSAGE_LIMIT, Message, decode_message, encode_message
from dataplane.model.errors import ControlError
from dataplane.system.fds import Packet, close_fds, receive_with_fds, send_with_fds
from dataplane.system.readiness import readable, writable

# Who reads a channel does nothing else: a peer that takes longer to make room is stuck or gone.
SEND_SECONDS: Final = 5.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A message and the descriptors that came with it, which are the receiver's now."""

    message: Message
    fds: tuple[int, ...]

    def close_fds(self) -> None:
        """Closes the descriptors of a message that is not taken."""
        close_fds(self.fds)


# What was heard: a message, an error or, at end-of-file, None. After the latter two it is closed.
Heard: TypeAlias = Envelope | ControlError | None


class Line:
    """A channel for who has an event loop: it hands on what comes, and never waits.

    No task belongs to it, so that an idle process at its end stays small. Mutable: open or closed.
    """

    def __init__(
        self, sock: socket.socket, hear: Callable[[Heard], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._hear = hear
        self._loop = loop
        loop.add_reader(sock.fileno(), self.read)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends one message whole and at once. The descriptors stay the caller's.

        Raises `ControlError` if the peer is gone, or leaves no room in its queue of some 200.
        """
        try:
            send_with_fds(self._sock, encode_message(message), fds)
        except BlockingIOError as error:
            raise ControlError("the peer takes no messages") from error
        except OSError as error:
            raise ControlError(f"the peer is gone: {error.strerror}") from error

    def close(self) -> None:
        """Hears nothing more. May be called again."""
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    def read(self) -> None:
        """Hands on all that has arrived."""
        while self._sock.fileno() >= 0:
            try:
                heard: Heard = _open(receive_with_fds(self._sock, MESSAGE_LIMIT))
            except BlockingIOError:
                return
            except ConnectionResetError:
                heard = None  # the peer closed with messages of ours unread
            except ControlError as error:
                heard = error
            if not isinstance(heard, Envelope):
                self.close()
            self._hear(heard)


class BlockingChannel:
    """A channel for who owns no event loop: the zygote."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """As `Line.send`, but waits a little for room."""
        datagram = encode_message(message)
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        if not poll.poll(SEND_SECONDS * 1000):
            raise ControlError("the peer takes no messages")
        try:
            send_with_fds(self._sock, datagram, fds)
        except OSError as error:
            raise ControlError(f"the peer is gone: {error.strerror}") from error

    def receive(self) -> Envelope | None:
        """The next message, or None at end-of-file. Raises `ControlError`: then close it."""
        try:
            packet = receive_with_fds(self._sock, MESSAGE_LIMIT)
        except ConnectionResetError:
            return None  # the peer closed with messages of ours unread
        return _open(packet)

    def fileno(self) -> int:
        """The socket's descriptor, for poll(2)."""
        return self._sock.fileno()

    def close(self) -> None:
        """Closes the socket."""
        self._sock.close()


async def send_packet(sock: socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Sends one datagram over a non-blocking socket. Raises `OSError` if the peer is gone."""
    while True:
        try:
            send_with_fds(sock, data, fds)
        except BlockingIOError:
            await writable(sock.fileno())
        else:
            return


async def receive_packet(sock: socket.socket, limit: int) -> Packet | None:
    """The next datagram of a non-blocking socket, or None at end-of-file."""
    while True:
        try:
            return receive_with_fds(sock, limit)
        except BlockingIOError:
            await readable(sock.fileno())
        except ConnectionResetError:
            return None  # the peer closed with datagrams of ours unread


def _open(packet: Packet | None) -> Envelope | None:
    if packet is None:
        return None
    if packet.truncated:
        packet.close_fds()
        raise ControlError("a message was cut: too long, or no room for its descriptors")
    try:
        return Envelope(message=decode_message(packet.data), fds=packet.fds)
    except ControlError:
        packet.close_fds()
        raise
