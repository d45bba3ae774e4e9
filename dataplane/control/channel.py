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
from collections.abc import Sequence
from typing import Final

from dataplane.control.messages import MESSAGE_LIMIT, Message, decode_message, encode_message
from dataplane.model.errors import ControlError
from dataplane.system.fds import Packet, close_fds, receive_with_fds, send_with_fds

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


class Channel:
    """A channel for who has an event loop. One reader at a time, any number of senders."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._sending = asyncio.Lock()

    async def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Sends one message whole. The descriptors stay the caller's, who may close them then.

        Raises `ControlError` if the peer is gone, or makes no room for `SEND_SECONDS`.
        """
        datagram = encode_message(message)
        async with self._sending:
            try:
                async with asyncio.timeout(SEND_SECONDS):
                    await send_packet(self._sock, datagram, fds)
            except TimeoutError as error:
                raise ControlError("the peer takes no messages") from error
            except OSError as error:
                raise ControlError(f"the peer is gone: {error.strerror}") from error

    async def receive(self) -> Envelope | None:
        """The next message, or None at end-of-file. Raises `ControlError`: then close it."""
        packet = await receive_packet(self._sock, MESSAGE_LIMIT)
        return None if packet is None else _open(packet)

    def fileno(self) -> int:
        """The socket's descriptor, -1 once closed."""
        return self._sock.fileno()

    def close(self) -> None:
        """Closes the socket. Nobody may be waiting on it."""
        self._sock.close()


class BlockingChannel:
    """A channel for who owns no event loop: the zygote."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(True)
        self._sock = sock

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """As `Channel.send`; waits by itself."""
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
        """As `Channel.receive`; waits by itself."""
        try:
            packet = receive_with_fds(self._sock, MESSAGE_LIMIT)
        except ConnectionResetError:
            return None  # the peer closed with messages of ours unread
        return None if packet is None else _open(packet)

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
            await _writable(sock)
        else:
            return


async def receive_packet(sock: socket.socket, limit: int) -> Packet | None:
    """The next datagram of a non-blocking socket, or None at end-of-file."""
    while True:
        try:
            return receive_with_fds(sock, limit)
        except BlockingIOError:
            await _readable(sock)
        except ConnectionResetError:
            return None  # the peer closed with datagrams of ours unread


def _open(packet: Packet) -> Envelope:
    if packet.truncated:
        packet.close_fds()
        raise ControlError("a message was cut: too long, or no room for its descriptors")
    try:
        return Envelope(message=decode_message(packet.data), fds=packet.fds)
    except ControlError:
        packet.close_fds()
        raise


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    fd = sock.fileno()
    loop.add_reader(fd, _set_ready, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    fd = sock.fileno()
    loop.add_writer(fd, _set_ready, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


def _set_ready(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
