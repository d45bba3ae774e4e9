"""Channels: whole messages with their descriptors, or an error."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource
import socket

import pytest

from dataplane.control import channel, messages
from dataplane.control.channel import BlockingChannel, Envelope, Heard, Line
from dataplane.model.errors import ControlError
from dataplane.system.sockets import packet_pair
from tests.support.rig import run

SERVE = messages.Serve()


class Ear:
    """A line that keeps what it heard until it is asked for."""

    def __init__(self, sock: socket.socket) -> None:
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()
        self.line = Line(sock, self._heard.put_nowait, asyncio.get_running_loop())

    async def next(self) -> Heard:
        async with asyncio.timeout(5):
            return await self._heard.get()

    async def envelope(self) -> Envelope:
        heard = await self.next()
        assert isinstance(heard, Envelope), heard
        return heard

    async def error(self) -> ControlError:
        heard = await self.next()
        assert isinstance(heard, ControlError), heard
        return heard


def lines() -> tuple[Ear, Ear]:
    ours, theirs = packet_pair()
    return Ear(ours), Ear(theirs)


def test_message_arrives_with_its_descriptors_close_on_exec() -> None:
    async def life() -> None:
        one, other = lines()
        reader, writer = os.pipe()
        one.line.send(messages.Receive(slot=3), (reader, writer))
        envelope = await other.envelope()
        assert envelope.message == messages.Receive(slot=3)
        assert [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in envelope.fds] == [fcntl.FD_CLOEXEC] * 2
        os.write(envelope.fds[1], b"through")
        assert os.read(reader, 10) == b"through"
        envelope.close_fds()
        os.close(reader)
        os.close(writer)
        one.line.close()
        one.line.close()
        assert await other.next() is None

    run(life)


def test_messages_are_heard_in_order_up_to_the_end() -> None:
    async def life() -> None:
        one, other = lines()
        for number in range(100):
            one.line.send(messages.Receiving(slot=number))
        one.line.close()
        for number in range(100):
            assert (await other.envelope()).message == messages.Receiving(slot=number)
        assert await other.next() is None

    run(life)


def test_end_of_file_is_told_also_with_our_messages_unread() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one = Ear(ours)
        one.line.send(SERVE)
        theirs.close()
        assert await one.next() is None
        with pytest.raises(ControlError, match="the peer is gone"):
            one.line.send(SERVE)

    run(life)


@pytest.mark.parametrize(
    "datagram",
    [b"{", b"[]", b'{"v":1}', b'{"v":2,"type":"Serve"}', b'{"v":1,"type":"Serve","x":1}'],
)
def test_what_is_no_message_is_an_error_and_its_descriptors_are_closed(datagram: bytes) -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one = Ear(ours)
        reader, writer = os.pipe()
        await channel.send_packet(theirs, datagram, (writer,))
        os.close(writer)
        await one.error()
        assert os.read(reader, 1) == b"", "the copy that was sent is closed"
        assert theirs.recv(1) == b"", "and so is the line"
        os.close(reader)
        theirs.close()

    run(life)


def test_message_that_is_too_long_is_an_error() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one = Ear(ours)
        await channel.send_packet(theirs, b" " * (messages.MESSAGE_LIMIT + 1), ())
        assert "cut" in str(await one.error())
        theirs.close()

    run(life)


def test_descriptors_without_room_are_an_error_and_none_is_kept() -> None:
    async def life() -> None:
        one, other = lines()
        _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        other.line.send(SERVE, (0,) * 50)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 5, hard))
        try:
            assert "no room" in str(await one.error())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        again = os.dup(0)
        os.close(again)
        assert again <= lowest
        other.line.close()

    run(life)


def test_peer_that_takes_no_messages_is_an_error() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one = Ear(ours)
        with pytest.raises(ControlError, match="takes no messages"):
            send_without_end(one.line)
        one.line.close()
        theirs.close()

    run(life)


def send_without_end(line: Line | BlockingChannel) -> None:
    while True:
        line.send(SERVE)


def test_sender_of_packets_waits_for_a_slow_reader_and_order_is_kept() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        count = 2000  # far more than the kernel queues

        async def send() -> None:
            for number in range(count):
                await channel.send_packet(ours, str(number).encode(), ())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            for number in range(count):
                packet = await channel.receive_packet(theirs, 100)
                assert packet is not None
                assert packet.data == str(number).encode()
        ours.close()
        assert await channel.receive_packet(theirs, 100) is None
        theirs.close()

    run(life)


def test_channel_without_a_loop_speaks_to_one_with() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one, other = Ear(ours), BlockingChannel(theirs)
        one.line.send(SERVE, (0,))
        envelope = other.receive()
        assert envelope is not None
        assert envelope.message == SERVE
        assert len(envelope.fds) == 1
        other.send(messages.Serving(), envelope.fds)
        envelope.close_fds()
        answer = await one.envelope()
        assert answer.message == messages.Serving()
        answer.close_fds()
        one.line.close()
        assert other.receive() is None
        with pytest.raises(ControlError, match="gone"):
            other.send(SERVE)
        other.close()

    run(life)


def test_channel_without_a_loop_gives_up_on_a_peer_that_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ours, theirs = packet_pair()
    monkeypatch.setattr(channel, "SEND_SECONDS", 0.05)
    with pytest.raises(ControlError, match="takes no messages"):
        send_without_end(BlockingChannel(ours))
    ours.close()
    theirs.close()
