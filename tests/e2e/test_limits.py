"""Who may come, how often and how many, and on which sockets: with the sandbox on."""

from __future__ import annotations

import grp
import os
import shutil
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.dataplane import Dataplane, app_config, eventually, wait_gone
from tests.support.wire import Wire


def wire_from(plane: Dataplane, source: str) -> Wire:
    return Wire(socket.create_connection(plane.address(), 10, source_address=(source, 0)))


def curl(path: Path, *words: str) -> str:
    program = shutil.which("curl")
    assert program is not None
    done = subprocess.run(
        [
            program,
            "-sS",
            "--max-time",
            "10",
            "--unix-socket",
            str(path),
            "http://a.example/",
            *words,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.sock"


@pytest.fixture
def running(plane: Dataplane, path: Path) -> Dataplane:
    """An app with two workers on a UNIX socket, and on all addresses of one port."""
    plane.configure(unix_app(path))
    plane.start()
    return plane


def unix_app(path: Path, mark: str = "blue", mode: str = "0660") -> dict[str, object]:
    config = app_config(mark=mark, workers=2)
    group = grp.getgrgid(os.getgid()).gr_name
    config["listeners"] = [
        {"name": "local", "bind": f"unix:{path}", "protocol": "http", "mode": mode, "group": group},
        {"name": "web", "bind": "[::]:0", "protocol": "http", "dual_stack": True},
        {"name": "only6", "bind": "[::1]:0", "protocol": "http"},
    ]
    return config


@pytest.mark.skipif(shutil.which("curl") is None, reason="it needs curl")
def test_a_unix_socket_serves_over_swaps_and_ends_with_its_app(
    running: Dataplane, path: Path
) -> None:
    inode = path.lstat().st_ino
    assert curl(path) == "blue"
    assert stat.S_IMODE(path.lstat().st_mode) == 0o660
    assert {"listener": "local", "bind": f"unix:{path}"} in running.report()["addresses"]
    running.configure(unix_app(path, mark="green", mode="0600"))
    assert running.swap()["outcome"] == "swapped"
    assert curl(path) == "green"
    assert path.lstat().st_ino == inode
    assert stat.S_IMODE(path.lstat().st_mode) == 0o600
    running.signal(signal.SIGTERM)
    assert running.wait_end() == 0
    assert not path.exists()


def test_a_kept_unix_connection_moves_and_is_not_held_to_rules_for_addresses(
    running: Dataplane, path: Path
) -> None:
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    with Wire(client) as wire:
        assert wire.get("/").body == b"blue"
        running.configure({**unix_app(path, mark="green"), "access": {"allow": ["192.0.2.1"]}})
        ledger = running.swap()
        assert ledger["connections"]["moved_idle"] == 1
        assert wire.get("/").body == b"green"


@pytest.mark.skipif(shutil.which("curl") is None, reason="it needs curl")
def test_a_socket_that_a_killed_supervisor_left_is_taken_again(
    running: Dataplane, path: Path
) -> None:
    former = [worker["pid"] for worker in running.workers()]
    running.signal(signal.SIGKILL)
    assert running.wait_end() == -signal.SIGKILL
    assert curl(path) == "blue"  # its workers serve on
    for pid in former:
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
    assert path.exists()
    running.start()
    assert curl(path) == "blue"


def test_dual_stack_takes_both_kinds_of_addresses(running: Dataplane) -> None:
    port = running.address()[1]
    for address in ("127.0.0.1", "::1"):
        with Wire(socket.create_connection((address, port), 10)) as wire:
            assert wire.get("/").body == b"blue"


def test_a_socket_that_another_program_listens_on_is_left_alone(
    plane: Dataplane, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        plane.configure(unix_app(path))
        refused = plane.cli("run", "--app", "billing", code=1)
        assert f"cannot listen on unix:{path}: the address is in use" in refused.err
        with socket.socket(socket.AF_UNIX) as client:
            assert client.connect_ex(str(path)) == 0
        path.unlink()


def test_a_source_that_may_not_come_gets_403_and_a_change_of_that_closes_its_connections(
    plane: Dataplane,
) -> None:
    plane.configure(app_config(access={"deny": ["127.0.0.9"]}))
    plane.start()
    with wire_from(plane, "127.0.0.9") as unwanted:
        assert unwanted.answer().status == 403
    with wire_from(plane, "127.0.0.1") as kept, wire_from(plane, "127.0.0.8") as next_one:
        assert kept.get("/").status == next_one.get("/").status == 200
        plane.configure(app_config(mark="green", access={"deny": ["127.0.0.8"]}))
        ledger = plane.swap()
        assert ledger["connections"]["moved_idle"] == 1
        assert ledger["connections"]["closed"] == 1
        assert kept.get("/").body == b"green"
    assert plane.metric("dataplane_denied_total") == 2


def test_rates_and_connections_count_once_over_workers_and_a_swap(plane: Dataplane) -> None:
    rules: dict[str, Any] = {
        "workers": 2,
        "rate": {"requests": 1, "burst": 20},
        "limits": {"connections": 6, "connections_per_source": 4},
    }
    plane.configure(app_config(**rules))
    plane.start()
    wires = [wire_from(plane, "127.0.0.1") for _ in range(4)]
    began = time.monotonic()
    seen = [wire.get("/").status for _ in range(3) for wire in wires]
    assert seen == [200] * 12
    plane.configure(app_config(mark="green", **rules))
    assert plane.swap()["connections"]["moved_idle"] == 4
    seen = [wire.get("/").status for _ in range(5) for wire in wires]
    given = time.monotonic() - began  # one a second
    assert 8 <= seen.count(200) <= min(20, 9 + given)
    assert seen.count(200) + seen.count(429) == 20
    with wire_from(plane, "127.0.0.1") as more:
        assert more.answer().status == 503  # of this source
    others = [wire_from(plane, "127.0.0.2") for _ in range(2)]
    assert [wire.get("/").status for wire in others] == [200, 200]
    with wire_from(plane, "127.0.0.3") as more:
        assert more.answer().status == 503  # of the app
    assert plane.metric("dataplane_connections_refused_total") == 2
    for wire in (*wires, *others):
        wire.close()


def test_the_share_of_a_killed_worker_is_given_back(plane: Dataplane) -> None:
    plane.configure(app_config(limits={"connections": 2, "connections_per_source": 2}))
    plane.start()
    wires = [wire_from(plane, "127.0.0.1") for _ in range(2)]
    assert [wire.get("/").status for wire in wires] == [200, 200]
    pid = plane.worker_pid()
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: plane.workers()[0]["pid"] not in (pid, None) or None)
    for wire in wires:
        wire.close()

    def served() -> bool | None:
        with wire_from(plane, "127.0.0.1") as wire:
            return wire.get("/").status == 200 or None

    assert eventually(served)
