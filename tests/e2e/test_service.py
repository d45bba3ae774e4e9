"""Under a service manager: what it is told of a supervisor's life, and the unit that is shipped."""

from __future__ import annotations

import configparser
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Final

import pytest

from tests.support.dataplane import Dataplane, app_config

ROOT: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 20.0

News = dict[str, str]


class Manager:
    """A service manager as far as the protocol goes: a socket, and what came to it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._news: Queue[News] = Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        """At once, as a service manager does: the kernel keeps a few datagrams only."""
        while told := self._sock.recv(4096).decode():
            self._news.put(dict(line.split("=", 1) for line in told.splitlines()))

    def next(self) -> News:
        return self._news.get(timeout=SECONDS)

    def until(self, word: str) -> None:
        while word not in (news := self.next()):
            assert set(news) == {"WATCHDOG"}, news

    def close(self, address: str) -> None:
        self._sock.sendto(b"", address)
        self._reader.join()


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "notify")


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address)
        manager = Manager(sock)
        yield manager
        manager.close(address)
    os.unlink(address)


def test_it_is_told_of_start_reload_and_end(
    plane: Dataplane, manager: Manager, address: str
) -> None:
    for app in ("one", "two"):
        plane.configure(app_config(app=app))
    plane.start("up", environment={"NOTIFY_SOCKET": address})
    assert manager.next() == {"READY": "1", "STATUS": "2 of 2 apps serve"}

    plane.signal(signal.SIGHUP)
    reloading = manager.next()
    assert reloading["RELOADING"] == "1"
    assert int(reloading["MONOTONIC_USEC"]) > 0
    assert manager.next()["READY"] == "1"

    plane.signal(signal.SIGTERM)
    assert manager.next()["STOPPING"] == "1"
    assert plane.wait_end() == 0


def test_an_app_that_does_not_start_is_in_its_status(
    plane: Dataplane, manager: Manager, address: str
) -> None:
    plane.configure(app_config(app="one"))
    plane.configure({**app_config(app="two"), "listeners": []})
    plane.start("up", environment={"NOTIFY_SOCKET": address})
    assert manager.next() == {"READY": "1", "STATUS": "1 of 2 apps serve"}


def test_its_watchdog_hears_from_the_supervisor_and_from_nobody_else(
    plane: Dataplane, manager: Manager, address: str
) -> None:
    plane.configure(app_config())
    watched = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
    plane.start(environment=watched)
    manager.until("READY")
    for _ in range(3):
        assert manager.next() == {"WATCHDOG": "1"}
    for process in (plane.pid, plane.zygote_pids()[0], plane.worker_pid()):
        names = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        is_ours = process == plane.pid
        assert any(name.startswith(b"NOTIFY_SOCKET=") for name in names) is is_ours


def test_the_unit_that_is_shipped_starts_this_program_and_keeps_its_workers() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "configs" / "deploy" / "dataplane.service")
    service = unit["Service"]
    program, *words = service["ExecStart"].split()
    assert os.path.basename(program) == "dataplane"
    assert words == ["up"]
    kept = {
        "Type": "notify",
        "KillMode": "process",
        "Restart": "always",
        "Delegate": "yes",
        "RuntimeDirectory": "dataplane",
        "RuntimeDirectoryPreserve": "yes",
    }
    assert {name: service[name] for name in kept} == kept
    assert service["WatchdogSec"]
