"""Bytes that lie in a socket's buffer."""

from __future__ import annotations

import socket

import pytest

from dataplane.model.errors import ControlError, LaunchError
from dataplane.system.once import look_into, one_shot


@pytest.mark.parametrize("size", [0, 1, 70_000, 128 * 1024])
def test_all_of_it_is_there_as_often_as_somebody_looks(size: int) -> None:
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    with socket.socket(fileno=one_shot(data)) as sock:
        assert look_into(sock, size) == data
        with sock.dup() as lent:
            assert look_into(lent, size) == data


def test_more_than_is_expected_is_refused() -> None:
    with (
        socket.socket(fileno=one_shot(b"four")) as sock,
        pytest.raises(ControlError, match="more than 3"),
    ):
        look_into(sock, 3)


def test_more_than_a_buffer_takes_is_refused() -> None:
    with pytest.raises(LaunchError, match="cannot hand over"):
        one_shot(bytes(64 << 20))


def test_sender_that_has_not_ended_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"some")
        with pytest.raises(ControlError, match="cannot be read"):
            look_into(theirs, 100)
