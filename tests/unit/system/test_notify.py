"""sd_notify(3): what the environment says, and what is sent where."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dataplane.system.notify import NO_NOTIFY_SOCKET, NotifySocket

PID = 4711


@pytest.mark.parametrize(
    ("environment", "address", "seconds"),
    [
        ({}, None, None),
        ({"NOTIFY_SOCKET": ""}, None, None),
        ({"NOTIFY_SOCKET": "/run/n"}, "/run/n", None),
        ({"NOTIFY_SOCKET": "@n"}, "@n", None),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, None, None),
        ({"WATCHDOG_USEC": "1500000"}, None, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "4711"}, None, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "4712"}, None, None),
        ({"WATCHDOG_USEC": "0"}, None, None),
        ({"WATCHDOG_USEC": "often"}, None, None),
    ],
)
def test_the_environment_is_understood(
    environment: dict[str, str], address: str | None, seconds: float | None
) -> None:
    manager = NotifySocket.from_environment(environment, PID)
    assert (manager.address, manager.watchdog_seconds) == (address, seconds)


def test_news_arrives_as_one_datagram_at_a_path_or_an_abstract_name(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    for address in (str(path), f"@{path}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
            listening.bind(address.replace("@", "\0", 1))
            listening.settimeout(5)
            NotifySocket(address=address, watchdog_seconds=None).tell(READY=1, STATUS="all well")
            assert listening.recv(4096) == b"READY=1\nSTATUS=all well"
    path.unlink()


def test_a_manager_that_is_gone_or_deaf_stops_nobody(tmp_path: Path) -> None:
    NO_NOTIFY_SOCKET.tell(READY=1)
    NotifySocket(address=str(tmp_path / "none"), watchdog_seconds=None).tell(READY=1)
    name = f"{tmp_path}/deaf"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind("\0" + name)
        manager = NotifySocket(address="@" + name, watchdog_seconds=None)
        for _ in range(10_000):  # far more than its queue takes
            manager.tell(WATCHDOG=1)
