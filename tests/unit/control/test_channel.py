"""Channels: whole messages with their descriptors, or an error."""

from __future__ import annotations

import asyncio
import fcntl
import os
import resource

import pytest

from dataplane.control import channel, messages
from dataplane.control.channel import BlockingChannel, Channel
from dataplane.model.errors import ControlError
from dataplane.system.sockets import packet_pair
from tests.support.rig import run

SERVE = messages.Serve()


def test_message_arrives_with_its_descriptors_close_on_exec() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one, other = Channel(ours), Channel(theirs)
        reader, writer = os.pipe()
        await one.send(messages.Receive(slot=3), (reader, writer))
        envelope = await other.receive()
        assert envelope is not None
        assert envelope.message == messages.Receive(slot=3)
        assert [fcntl.fcntl(fd, fcntl.F_GETFD) for fd in envelope.fds] == [fcntl.FD_CLOEXEC] * 2
        os.write(envelope.fds[1], b"through")
        assert os.read(reader, 10) == b"through"
        envelope.close_fds()
        os.close(reader)
        os.close(writer)
        one.close()
        assert await other.receive() is None
        other.close()

    run(life)


def test_end_of_file_is_told_also_with_our_messages_unread() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one = Channel(ours)
        await one.send(SERVE)
        theirs.close()
        assert await one.receive() is None
        with pytest.raises(ControlError, match="the peer is gone"):
            await one.send(SERVE)
        one.close()

    run(life)


@pytest.mark.parametrize(
    "datagram",
    [b"{", b"[]", b'{"v":1}', b'{"v":2,"type":"Serve"}', b'{"v":1,"type":"Serve","x":1}'],
)
def test_what_is_no_message_is_an_error_and_its_descriptors_are_closed(datagram: bytes) -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one = Channel(ours)
        reader, writer = os.pipe()
        await channel.send_packet(theirs, datagram, (writer,))
        os.close(writer)
        with pytest.raises(ControlError):
            await one.receive()
        assert os.read(reader, 1) == b"", "the copy that was sent is closed"
        os.close(reader)
        one.close()
        theirs.close()

    run(life)


def test_message_that_is_too_long_is_an_error() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one = Channel(ours)
        await channel.send_packet(theirs, b" " * (messages.MESSAGE_LIMIT + 1), ())
        with pytest.raises(ControlError, match="cut"):
            await one.receive()
        one.close()
        theirs.close()

    run(life)


def test_descriptors_without_room_are_an_error_and_none_is_kept() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one, other = Channel(ours), Channel(theirs)
        _, hard = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        before = os.listdir("/proc/self/fd")
        await other.send(SERVE, (0,) * 50)
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 5, hard))
        try:
            with pytest.raises(ControlError, match="no room"):
                await one.receive()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert os.listdir("/proc/self/fd") == before
        one.close()
        other.close()

    run(life)


def test_sender_waits_for_a_slow_reader_and_order_is_kept() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one, other = Channel(ours), Channel(theirs)
        count = 2000  # far more than the kernel queues

        async def send() -> None:
            for number in range(count):
                await one.send(messages.Receiving(slot=number))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            for number in range(count):
                envelope = await other.receive()
                assert envelope is not None
                assert envelope.message == messages.Receiving(slot=number)
        one.close()
        other.close()

    run(life)


async def send_without_end(to: Channel) -> None:
    while True:
        await to.send(SERVE)


def test_peer_that_takes_no_messages_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one = Channel(ours)
        with pytest.raises(ControlError, match="takes no messages"):
            await send_without_end(one)
        one.close()
        theirs.close()

    monkeypatch.setattr(channel, "SEND_SECONDS", 0.05)
    run(life)


def test_channel_without_a_loop_speaks_to_one_with() -> None:
    async def life() -> None:
        ours, theirs = packet_pair()
        one, other = Channel(ours), BlockingChannel(theirs)
        await one.send(SERVE, (0,))
        envelope = other.receive()
        assert envelope is not None
        assert envelope.message == SERVE
        assert len(envelope.fds) == 1
        other.send(messages.Serving(), envelope.fds)
        envelope.close_fds()
        answer = await one.receive()
        assert answer is not None
        assert answer.message == messages.Serving()
        answer.close_fds()
        one.close()
        assert other.receive() is None
        with pytest.raises(ControlError, match="gone"):
            other.send(SERVE)
        other.close()

    run(life)
